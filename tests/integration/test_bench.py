"""The bench: ways take turns, are timed only where all find the same, and one that breaks off does not stop the others."""

import importlib
import json
from contextlib import contextmanager
from functools import partial

import pandas as pd
import pytest
import torch
from bench import __main__ as command
from bench import attention, capture, detr, frechet, gan, output, roofline, students
from bench.comparison import (
    Comparison,
    Pair,
    Row,
    Ways,
    agree,
    figure,
    measure,
    rows,
    take_turns,
)

from dfkd_lib.core import WorkbenchError
from dfkd_lib.datasets import ImageSet, to_float
from dfkd_lib.models import Discriminator, Generator

TINY = {"embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
CASE = capture.Case("deit_tiny_patch16_224", 32, 2, 0)
SCENES = detr.Case("detr_nano", "detr_micro", 48, 4, 0.0)
BATCH, SMOKE = 4, ("vit_mnist_smoke", "vit_mnist_smoke")


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("DFKD_PROGRESS", "none")


def compared(ways, *pairs, **options) -> list[Row]:
    """The rows of two short rounds, all complete."""
    comparison = Comparison("bench", "tiny", ways, pairs, seconds=0, **options)
    found = list(measure(comparison, quick=True))
    assert [(row.what, row.peer) for row in found] == [
        (ours, peer or "") for ours, peer, _ in pairs
    ]
    for row in found:
        assert row.ours > 0 and row.rounds == 2 and not row.failed
        assert not row.peer or row.theirs > 0 and 0 < row.ratio[0] <= row.ratio[1] <= row.ratio[2]
    return found


# ---- turns, rows, output


def test_all_take_their_turn_in_random_order():
    called = []
    ways = {name: partial(called.append, name) for name in "abcde"}
    found = take_turns(ways, seconds=0, least=6)
    assert [set(each) for each in found] == [set("abcde")] * 6
    assert len({tuple(called[i : i + 5]) for i in range(0, 30, 5)}) > 1
    assert len(take_turns(ways, seconds=60, most=3)) == 3
    assert figure(lambda: 4.5) == 4.5 and 0 <= figure(lambda: None) < 4.5


ROUNDS = [{"ours": 1.0, "peer": 2.0}, {"ours": 10.0, "peer": 30.0}, {"ours": 2.0, "peer": 8.0}]


def test_a_ratio_is_taken_within_rounds_and_says_how_many_times_as_fast():
    pairs = (Pair("ours", "peer", ">= 2"), Pair("ours", None))
    beside, alone = rows(Comparison("bench", "size", None, pairs), ROUNDS, "note")
    assert beside.ratio == [2.5, 3, 3.5] and (beside.ours, beside.theirs) == (2000, 8000)
    assert (beside.asked, beside.note, beside.rounds, beside.unit) == (">= 2", "note", 3, "ms")
    assert alone.ours == 2000 and alone.theirs is alone.ratio is None
    speed = Comparison("bench", "size", None, pairs[:1], "images/s", 100)
    (row,) = rows(speed, ROUNDS)
    assert row.ratio == beside.ratio and (row.ours, row.theirs) == (50, 12.5)


def test_ways_that_differ_are_not_compared():
    close = {"a": [1.0, -2.0], "b": torch.tensor([1.0001, -2.0])}
    assert agree(close, 1e-4, "here") == "equal to 5e-05"
    for wrong in (-2.1, float("nan")):
        with pytest.raises(WorkbenchError, match="(?s)does not do the same.*c and of a.*here"):
            agree({**close, "c": [1.0, wrong]}, 1e-4, "here")


ROWS = [
    Row("one", "a step", "2 | bf16", "a peer", 1.5, 3.0, "ms", [1.8, 2.0, 2.2], 5, ">= 2", "equal"),
    Row("one", "broke off", "batch 2", note="failed: no luck", failed=True),
    Row("two", "memory", "big", "", 1234.5, None, "MB"),
]


def test_rows_become_files(tmp_path):
    output.save(ROWS, tmp_path, 3.21)
    saved = json.loads((tmp_path / "bench.json").read_text())
    assert saved["rows"][0]["ratio"] == [1.8, 2.0, 2.2]
    assert saved["provenance"]["threads"] == torch.get_num_threads()
    assert {"git", "hardware", "versions", "date", "seconds"} <= set(saved["provenance"])
    assert len(pd.read_csv(tmp_path / "bench.csv")) == len(ROWS)
    text = (tmp_path / "bench.md").read_text()
    assert all(
        part in text for part in ("2.00 (1.80-2.20)", r"2 \| bf16", "failed: no luck", "1,234")
    )
    assert output.line(ROWS[1]).endswith("failed: no luck")


def test_a_comparison_that_breaks_off_is_named_and_the_others_run(monkeypatch, tmp_path, capsys):
    @contextmanager
    def broken():
        raise RuntimeError("no luck")
        yield

    @contextmanager
    def fine():
        yield Ways({"ours": lambda: 1.0})

    table = [
        Comparison("students", "s", broken, ()),
        Comparison("two", "s", fine, (Pair("ours", None),)),
    ]
    monkeypatch.setattr(students, "COMPARISONS", table)
    monkeypatch.setattr(gan, "COMPARISONS", table[1:])
    assert command.main(["--only", "students", "--quick", "--out", str(tmp_path)]) == 1
    found = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert [(row["bench"], row["failed"]) for row in found] == [("students", True), ("two", False)]
    assert "RuntimeError: no luck" in found[0]["note"] and "no luck" in capsys.readouterr().out
    assert command.main(["--only", "gan", "--quick", "--out", str(tmp_path)]) == 0
    assert command.main(["--only", "nothing"]) == 2
    assert "there is no bench" in capsys.readouterr().err


def test_every_bench_has_its_part_of_the_table():
    for name in command.BENCHES:
        table = importlib.import_module(f"bench.{name}").COMPARISONS
        assert table and all(one.name == name and one.pairs for one in table)


# ---- what is compared does the same


def test_every_way_to_attention_finds_the_same():
    from timm.layers import use_fused_attn

    before, pairs = use_fused_attn(), [p for c in capture.COMPARISONS[:3] for p in c.pairs]
    names = (capture.PLAIN, capture.OURS, capture.MAPS, capture.EXTRACT)
    compared(partial(capture.ways, CASE, names, **TINY), *pairs)
    assert use_fused_attn() == before
    with torch.no_grad():
        probes = capture.readings(CASE, **TINY)[capture.OURS](torch.randn(2, 3, 32, 32))
    assert probes.shape == (2, 2, 3, 4) and (probes - 1 / 5).abs().max() > 0.01  # far from even


def test_products_and_the_fused_kernel_are_compared():
    compared(partial(attention.ways, attention.Case(2, 3, 17, 8)), *attention.COMPARISONS[0].pairs)


@pytest.mark.parametrize("images", [(12, 15), (12, 90), (60, 90)])
def test_every_way_to_a_frechet_distance_finds_the_same(images):
    peers = (Pair(frechet.OURS, frechet.SCIPY), Pair(frechet.OURS, frechet.TORCHMETRICS))
    compared(partial(frechet.ways, images, 24), *peers)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3 * BATCH, 1, 28, 28), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels, torch.arange(3 * BATCH) % 10, tuple(map(str, range(10))))


@pytest.fixture(params=students.TOLERANCES)
def setting(images, request):
    with students.prepared(images, BATCH, request.param, SMOKE) as made:
        # Untrained networks' logits hardly differ: a wrong order or a wrong temperature would not show.
        with torch.no_grad():
            for model in (made.teacher, made.student):
                model.head.weight.mul_(4)
        yield made


def test_ours_and_the_plain_loop_come_to_the_same_losses(setting):
    pixels, labels = students.first_batch(setting)
    assert torch.equal(labels, setting.images.labels[:BATCH])
    assert torch.allclose(pixels, to_float(setting.images.images[:BATCH]), atol=1e-6)
    before = [p.clone() for p in setting.student.parameters()]
    found = students.trainings(setting)
    plain, *others = [way.two_losses() for way in found.values()]
    assert all(
        losses == pytest.approx(plain, rel=students.TOLERANCES[setting.precision])
        for losses in others
    )
    for way in found.values():
        way.epoch()
    # It learns, and on a copy.
    assert abs(plain[1] - plain[0]) > 1e-3 and found[students.PLAIN].two_losses() == plain
    assert all(map(torch.equal, before, setting.student.parameters()))


def test_students_are_compared(images):
    ways = partial(students.ways, "bf16", images, BATCH, SMOKE)
    compared(ways, *students.COMPARISONS[0].pairs, unit="images/s", per=3 * BATCH)


def test_a_students_step_is_compared_with_products_of_as_many_operations(monkeypatch):
    """A block of width D has 24 D^2 + 4 T D operations a token in products; the last is computed for the class token alone."""
    monkeypatch.setattr(roofline, "SIDE", 64)
    compared(partial(roofline.ways, "fp32", 2, 2), *roofline.COMPARISONS[0].pairs)
    with roofline.ways("fp32", 1, 2) as ways:
        counted = float(ways.note.split()[0])
    tokens, width = 50, 256
    block = tokens * (24 * width**2 + 4 * tokens * width)
    keys_and_values = tokens * 4 * width**2
    forward = 2 * (2 * block + keys_and_values) / 1e9  # of two images
    assert 2.9 * forward < counted < 3.2 * forward
    clock = iter([1.0, 1.5])
    monkeypatch.setattr(roofline.time, "perf_counter", lambda: next(clock))
    assert roofline.products(6 * 64**3, "bf16")() == pytest.approx(3 * 0.5)


def test_steps_of_the_gan_are_compared(monkeypatch):
    monkeypatch.setattr(gan, "BATCH", 4)
    monkeypatch.setattr(gan, "STEPS", 2)
    monkeypatch.setattr(gan, "Generator", lambda k, c: Generator(k, c, 32))
    monkeypatch.setattr(gan, "Discriminator", lambda k, c: Discriminator(k, c, 8))
    compared(partial(gan.ways, "fp32", SMOKE[0]), *gan.COMPARISONS[0].pairs)


@pytest.mark.parametrize("precision", students.TOLERANCES)
def test_both_detection_steps_train_a_copy_of_the_student(precision):
    student, teacher, batch = detr.prepared(SCENES)
    before = [p.clone() for p in student.parameters()]
    for way in (detr.ours, detr.theirs):
        module, loss = way(student, teacher, batch)
        start = loss().item()
        step = detr.trainer(module, loss, precision)
        for _ in range(5):
            step()
        assert loss().item() < start
    assert all(map(torch.equal, before, student.parameters()))
    compared(partial(detr.ways, SCENES, precision), Pair(detr.OURS, detr.THEIRS))
