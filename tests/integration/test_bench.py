"""The bench: rows of one kind, timed only where all find the same; one that breaks off is named, the others still run."""

import csv
import json

import bench
import pytest
import torch
from bench import attention, coco, flops, gan, memory, output, students, synthesis
from bench.rows import NOT_INSTALLED, Effort, Row, compared, missing, quartiles, take_turns

from dfkd_lib import cli as command
from dfkd_lib.core import WorkbenchError
from dfkd_lib.models import create_model

TINY = {"embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
CASE, CPU = attention.Case("deit_tiny_patch16_224", 32, 2, 0), torch.device("cpu")


def well_formed(rows):
    rows = list(rows)
    for row in rows:
        assert isinstance(row, Row) and row.what and row.setting and not row.failed
        if row.note == NOT_INSTALLED:
            assert row.ours is None and row.ratio is None and row.peer
        elif row.ratio is not None:
            low, middle, high = row.ratio
            assert 0 < low <= middle <= high and row.ours > 0 and row.theirs > 0 and row.rounds > 0
    return rows


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("DFKD_PROGRESS", "none")


def test_all_take_their_turn_in_random_order_and_the_rare_ones_now_and_then():
    called = []
    work = {name: lambda name=name: called.append(name) for name in "abc"}
    rounds = take_turns(work, limit=0, least=6, rare=("c",), every=4)
    assert [set(each) for each in rounds] == [
        set("abc"),
        set("ab"),
        set("ab"),
        set("ab"),
        set("abc"),
        set("ab"),
    ]
    assert len({tuple(called[i : i + 2]) for i in (3, 5, 7, 12)}) == 2
    assert (
        len(take_turns(work, limit=60, most=3)) == 3 and len(take_turns(work, limit=0, most=9)) == 2
    )


def test_a_ratio_is_taken_within_rounds_and_says_how_many_times_as_fast():
    rounds = [
        {"ours": 1.0, "peer": 2.0},
        {"ours": 10.0, "peer": 30.0},
        {"ours": 2.0, "peer": 8.0},
        {"ours": 5.0},
    ]
    row = compared(rounds, "ours", "peer", "bench", "what", "size")
    assert row.ratio == (2.5, 3, 3.5) and (row.ours, row.theirs, row.unit, row.rounds) == (
        2000,
        8000,
        "ms",
        3,
    )
    speed = compared(rounds, "ours", "peer", "bench", "what", "size", "images/s", 100)
    assert speed.ratio == row.ratio and (speed.ours, speed.theirs) == (50, 12.5)
    assert quartiles([3.0]) == (3, 3, 3)


def test_every_way_to_attention_is_timed_and_finds_the_same():
    from timm.layers import use_fused_attn

    before = use_fused_attn()
    rows = well_formed(attention.compare(CASE, CPU, Effort(5, 0), **TINY))
    assert use_fused_attn() == before and len(rows) == len(attention.PAIRS)
    assert [row.rounds for row in rows] == [5, 2, 2, 2, 2]
    assert {"timm AttentionExtract, fx", "transformers, eager attention"} <= {
        row.peer for row in rows
    }


def test_what_is_compared_is_far_from_even():
    ways, images = attention.methods(CASE, CPU, **TINY), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        maps = ways.run["our maps"](images)
    assert maps.shape == (2, 2, 3, 5, 5) and (maps - 1 / 5).abs().max() > 0.01


def test_a_capture_unlike_the_peers_is_refused(monkeypatch):
    real = attention._captured
    monkeypatch.setattr(attention, "_captured", lambda *args: real(*args) * 1.01)
    with pytest.raises(WorkbenchError, match="not what another library finds"):
        attention.compare(CASE, CPU, **TINY)


def test_the_memory_of_class_probes_and_of_made_images_is_measured_apart():
    assert 0 < memory.growth_apart(300) < 2000
    found = synthesis.memory_apart(300)
    assert 50 < found["before"] and 0 < found["making"] < 2000 and 0 < found["learning"] < 2000


def test_both_arms_of_the_gan_are_timed_as_often(monkeypatch):
    seen = []

    def gan_step(generator, discriminator, teacher, probes, lam, side, steps, share):
        def step(batch, progress):
            seen.append((lam, progress))
            for name, module in (("discriminator", discriminator), ("generator", generator)):
                yield name, {"loss": sum(p.square().sum() for p in module.parameters())}

        return step

    for name, value in {
        "gan_step": gan_step,
        "BATCH": 2,
        "PAIRS": 3,
        "Generator": lambda k, c: torch.nn.Linear(1, 1),
        "Discriminator": lambda k, c: torch.nn.Linear(1, 1),
        "TEACHER": "vit_mnist_smoke",
    }.items():
        monkeypatch.setattr(synthesis, name, value)
    found = synthesis.gan_steps()
    assert [lam for lam, _ in seen] == [
        0.0,
        1.0,
    ] * 6 and found.ratio == found.vanilla / found.augmented > 0
    assert [progress for lam, progress in seen if lam == 0] == pytest.approx([0, 1 / 3, 2 / 3] * 2)


@pytest.fixture
def small_gan(monkeypatch):
    from dfkd_lib.models import Discriminator, Generator

    for name, value in {
        "BATCH": 4,
        "STEPS": 2,
        "TEACHER": "vit_mnist_smoke",
        "PRECISIONS": ("fp32",),
        "Generator": lambda k, c: Generator(k, c, 32),
        "Discriminator": lambda k, c: Discriminator(k, c, 8),
    }.items():
        monkeypatch.setattr(gan, name, value)
    monkeypatch.setattr(synthesis, "rows", lambda effort: iter(()))
    monkeypatch.setattr(gan, "SECONDS", 0)


def test_the_gan_and_the_plain_loop_come_to_the_same_losses(small_gan):
    (row,) = well_formed(gan.rows(Effort()))
    assert row.peer == "plain PyTorch loop" and row.rounds == 2


def test_a_gan_that_trains_otherwise_is_refused(monkeypatch, small_gan):
    monkeypatch.setitem(gan.CONFIG, "betas", (0.5, 0.999))
    monkeypatch.setattr(
        gan, "gan_step", lambda g, d, *args, real=gan.gan_step: real(g, d.eval(), *args)
    )
    real = gan.plain
    monkeypatch.setattr(gan, "plain", lambda *args: lambda: [1.01 * loss for loss in real(*args)()])
    with pytest.raises(WorkbenchError, match="do not train the same"):
        list(gan.rows(Effort()))


def test_ours_pycocotools_and_torchmetrics_find_the_same_ap(monkeypatch):
    rows = well_formed(coco.compare(12, 0))
    assert [row.peer for row in rows] == ["pycocotools COCOeval", "torchmetrics"]
    assert 0 < float(rows[0].note.split()[1].rstrip(",")) < 1
    real = coco.PEERS["torchmetrics"]
    monkeypatch.setitem(coco.PEERS, "torchmetrics", lambda *args: real(*args) | {"AP75": 0.99})
    with pytest.raises(WorkbenchError, match="torchmetrics"):
        coco.compare(12, 0)


def test_the_flops_of_a_step_are_those_of_its_products():
    """A ViT of width d, T tokens: its last block makes keys and values of all, the rest of the class token alone."""
    model = create_model("vit_mnist_smoke")
    width, patches, depth = model.embed_dim, model.patch_embed.num_patches, len(model.blocks)
    tokens, hidden, batch = (
        patches + model.num_prefix_tokens,
        model.blocks[0].mlp.fc1.out_features,
        3,
    )
    pixels = model.patch_embed.proj.weight[0].numel()
    whole = tokens * (4 * width**2 + 2 * width * hidden) + 2 * tokens**2 * width
    last = 2 * tokens * width**2 + 2 * width**2 + 2 * width * hidden + 2 * tokens * width
    forward = (depth - 1) * whole + last + width * model.num_classes
    # Going backward each product is two more, but for the images, which need no gradient.
    expected = 2 * batch * (3 * forward + 2 * patches * pixels * width)
    assert flops.step_flops(model, torch.randn(batch, 1, 28, 28)) == pytest.approx(
        expected, rel=1e-6
    )


def test_the_share_of_the_matrix_product_is_that_of_the_rates():
    row = flops.measure("bf16", 0, 64, 1, 8, ("vit_mnist_smoke", "vit_mnist_smoke"))
    well_formed([row])
    assert row.unit == "GFLOP/s" and row.rounds == 3 and "64 x 64" in row.peer


ROWS = [
    Row(
        "one",
        "a step",
        "batch 2 | bf16",
        "a peer",
        1.5,
        3.0,
        "ms",
        (1.8, 2.0, 2.2),
        5,
        ">= 2",
        "equal",
    ),
    missing("one", "a step", "batch 2", "torchdistill"),
    Row("two", "memory", "big", "", 1234.5, None, "MB"),
]


def test_rows_become_files_and_a_picture(tmp_path):
    output.save(ROWS, tmp_path, 3.21)
    saved = json.loads((tmp_path / "bench.json").read_text())
    assert (
        saved["rows"][0]["ratio"] == [1.8, 2.0, 2.2]
        and saved["provenance"]["threads"] == torch.get_num_threads()
    )
    assert {"git", "hardware", "versions", "date", "seconds"} <= set(saved["provenance"])
    assert len(list(csv.reader(open(tmp_path / "bench.csv")))) == 1 + len(ROWS)
    text = (tmp_path / "bench.md").read_text()
    assert (
        "2.00 (1.80-2.20)" in text
        and "batch 2 / bf16" in text
        and NOT_INSTALLED in text
        and "1,234" in text
    )
    assert (tmp_path / "bench.png").stat().st_size > 5000 and "a peer" in (
        tmp_path / "bench.svg"
    ).read_text()
    assert all(NOT_INSTALLED in line for line in map(output.line, ROWS) if "torchdistill" in line)


def test_every_ratio_is_drawn_and_nothing_is_cut_off():
    setting, peer = "detr_resnet18_2x2 <- detr_resnet50, 4 x 192 px, bf16", "papermill + nbconvert"
    many = [
        Row(
            "bench",
            f"what is compared, at length {i}",
            setting,
            peer,
            1,
            1,
            "ms",
            (0.01 * 4**i, 0.02 * 4**i, 0.03 * 4**i),
            3,
        )
        for i in range(6)
    ]
    figure = output.picture(many, "a machine")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert len(axes.get_yticklabels()) == 6 and axes.get_xscale() == "log"
    whole = figure.bbox
    for text in [*axes.get_yticklabels(), *axes.texts, axes.xaxis.label]:
        box = text.get_window_extent()
        assert (
            whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1
        ), text


def test_a_bench_that_breaks_off_is_named_and_the_others_run(monkeypatch, tmp_path, capsys):
    def broken(effort):
        yield ROWS[0]
        raise RuntimeError("no luck")

    monkeypatch.setattr(students, "rows", broken)
    monkeypatch.setattr(coco, "rows", lambda effort: iter([ROWS[2]]))
    assert command.main(["bench", "--only", "students,coco", "--out", str(tmp_path)]) == 1
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert [row["bench"] for row in rows] == [
        "one",
        "students",
        "two",
    ] and "RuntimeError: no luck" in rows[1]["note"]
    assert rows[1]["failed"] and "no luck" in capsys.readouterr().out
    assert command.main(["bench", "--only", "coco", "--out", str(tmp_path)]) == 0
    assert (
        command.main(["bench", "--only", "nothing"]) == 2
        and "there is no bench" in capsys.readouterr().err
    )


def test_every_bench_is_there():
    import importlib

    for place in bench.BENCHES.values():
        module, _, function = place.partition(".")
        assert callable(getattr(importlib.import_module(f"bench.{module}"), function or "rows"))
