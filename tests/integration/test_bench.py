"""The bench: ways take turns, are timed only where all find the same, and one that breaks off does not stop the others."""

import csv
import json
from contextlib import contextmanager
from functools import partial

import bench
import nbformat
import pytest
import torch
from bench import __main__ as command
from bench import capture, detr, frechet, gan, memory, output, pipeline, students, workers
from bench.comparison import (
    NOT_INSTALLED,
    Comparison,
    Pair,
    Row,
    Ways,
    agree,
    figure,
    measure,
    quartiles,
    rows,
    take_turns,
)

from dfkd_lib.core import WorkbenchError
from dfkd_lib.datasets import ImageSet, to_float

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
    pairs = (Pair("ours", "peer", ">= 2"), Pair("ours", None), Pair("ours", "absent"))
    beside, alone, absent = rows(Comparison("bench", "size", None, pairs), ROUNDS, "note")
    assert beside.ratio == (2.5, 3, 3.5) and (beside.ours, beside.theirs) == (2000, 8000)
    assert (beside.asked, beside.note, beside.rounds, beside.unit) == (">= 2", "note", 3, "ms")
    assert alone.ours == 2000 and alone.theirs is alone.ratio is None
    assert absent.note == NOT_INSTALLED and absent.ours is None
    speed = Comparison("bench", "size", None, pairs[:1], "images/s", 100)
    (row,) = rows(speed, ROUNDS)
    assert row.ratio == beside.ratio and (row.ours, row.theirs) == (50, 12.5)
    assert quartiles([3.0]) == (3, 3, 3)


def test_ways_that_differ_are_not_compared():
    close = {"a": [1.0, -2.0], "b": torch.tensor([1.0001, -2.0])}
    assert agree(close, 1e-4, "here") == "equal to 5e-05"
    for wrong in (-2.1, float("nan")):
        with pytest.raises(WorkbenchError, match="(?s)does not do the same.*c and of a.*here"):
            agree({**close, "c": [1.0, wrong]}, 1e-4, "here")


ROWS = [
    Row("one", "a step", "2 | bf16", "a peer", 1.5, 3.0, "ms", (1.8, 2.0, 2.2), 5, ">= 2", "equal"),
    Row("one", "a step", "batch 2", "pytorch-fid", note=NOT_INSTALLED),
    Row("two", "memory", "big", "", 1234.5, None, "MB"),
]


def test_rows_become_files_and_a_picture(tmp_path):
    output.save(ROWS, tmp_path, 3.21)
    saved = json.loads((tmp_path / "bench.json").read_text())
    assert saved["rows"][0]["ratio"] == [1.8, 2.0, 2.2]
    assert saved["provenance"]["threads"] == torch.get_num_threads()
    assert {"git", "hardware", "versions", "date", "seconds"} <= set(saved["provenance"])
    assert len(list(csv.reader(open(tmp_path / "bench.csv")))) == 1 + len(ROWS)
    text = (tmp_path / "bench.md").read_text()
    assert all(part in text for part in ("2.00 (1.80-2.20)", "2 / bf16", NOT_INSTALLED, "1,234"))
    assert (tmp_path / "bench.png").stat().st_size > 5000
    assert "a peer" in (tmp_path / "bench.svg").read_text()
    assert NOT_INSTALLED in output.line(ROWS[1])


def test_every_ratio_is_drawn_and_nothing_is_cut_off():
    setting, peer = "detr_resnet18_2x2 <- detr_resnet50, 4 x 192 px, bf16", "papermill + nbconvert"
    ratios = [(0.01 * 4**i, 0.02 * 4**i, 0.03 * 4**i) for i in range(6)]
    many = [
        Row("bench", f"what is compared, at length {i}", setting, peer, 1, 1, "ms", ratio, 3)
        for i, ratio in enumerate(ratios)
    ]
    figure = output.picture(many, "a machine")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert len(axes.get_yticklabels()) == 6 and axes.get_xscale() == "log"
    for text in [*axes.get_yticklabels(), *axes.texts, axes.xaxis.label]:
        box, whole = text.get_window_extent(), figure.bbox
        assert whole.x0 <= box.x0 and box.x1 <= whole.x1, text
        assert whole.y0 <= box.y0 and box.y1 <= whole.y1, text


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
    monkeypatch.setattr(memory, "COMPARISONS", table[1:])
    assert command.main(["--only", "students", "--quick", "--out", str(tmp_path)]) == 1
    found = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert [(row["bench"], row["failed"]) for row in found] == [("students", True), ("two", False)]
    assert "RuntimeError: no luck" in found[0]["note"] and "no luck" in capsys.readouterr().out
    assert command.main(["--only", "memory", "--quick", "--out", str(tmp_path)]) == 0
    assert command.main(["--only", "nothing"]) == 2
    assert "there is no bench" in capsys.readouterr().err


def test_every_bench_has_its_part_of_the_table():
    table = bench.comparisons(bench.BENCHES)
    assert {comparison.name for comparison in table} == set(bench.BENCHES)
    assert all(comparison.pairs and comparison.setting for comparison in table)


# ---- what is compared does the same


def test_every_way_to_attention_finds_the_same(monkeypatch):
    from timm.layers import use_fused_attn

    before, pairs = use_fused_attn(), [p for c in capture.COMPARISONS[:2] for p in c.pairs]
    names = (capture.PLAIN, capture.OURS, capture.EXTRACT, capture.HUB_OURS, capture.EAGER)
    compared(partial(capture.ways, CASE, names, **TINY), *pairs)
    assert use_fused_attn() == before
    with torch.no_grad():
        probes = capture.readings(CASE, **TINY)[capture.OURS](torch.randn(2, 3, 32, 32))
    assert probes.shape == (2, 2, 3, 4) and (probes - 1 / 5).abs().max() > 0.01  # far from even


def test_a_capture_unlike_the_peers_is_refused(monkeypatch):
    real = capture.captured
    monkeypatch.setattr(capture, "captured", lambda *args: real(*args) * 1.01)
    with pytest.raises(WorkbenchError, match="does not do the same"):
        compared(partial(capture.ways, CASE, (capture.OURS,), **TINY))


@pytest.mark.parametrize("images", [(12, 15), (12, 90), (60, 90)])
def test_every_way_to_a_frechet_distance_finds_the_same(images, monkeypatch):
    monkeypatch.setattr(frechet, "HAS_PYTORCH_FID", False)
    peers = (Pair(frechet.OURS, frechet.SCIPY), Pair(frechet.OURS, frechet.TORCHMETRICS))
    compared(partial(frechet.ways, images, 24), *peers)
    eigenvalues = frechet.by_eigenvalues
    monkeypatch.setattr(frechet, "by_square_root", lambda a, b: 1.01 * eigenvalues(a, b))
    with pytest.raises(WorkbenchError, match="scipy sqrtm"):
        compared(partial(frechet.ways, images, 24))


def test_pytorch_fid_itself_finds_the_same():
    pytest.importorskip("pytorch_fid")
    compared(partial(frechet.ways, (60, 90), 24), Pair(frechet.OURS, frechet.PYTORCH_FID))


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
    found = students.trainings(setting, students.stored_teacher(setting), 0)
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


def test_stored_targets_pay_for_their_making(images, monkeypatch):
    monkeypatch.setattr(students, "better_loader", lambda setting: 0)
    ways = partial(students.ways, "bf16", images, BATCH, SMOKE)
    compared(ways, *students.COMPARISONS[0].pairs, unit="images/s", per=3 * BATCH)
    with ways() as found:
        seconds = {students.STORED: 2.0, "make": 5.0}
        monkeypatch.setattr(students, "figure", lambda way: seconds.get(way, 5.0))
        found.run[students.STORED] = students.STORED
        assert found.run[students.MADE]() == 2.0 + 5.0 / students.EPOCHS


def test_the_better_number_of_loading_workers_is_taken(monkeypatch):
    taken = {0: iter([9, 3.0, 1.0, 3.0]), 2: iter([9, 2.0, 2.0, 2.0])}
    monkeypatch.setattr(
        students, "plain", lambda _, workers: students.Way(lambda: next(taken[workers]), None)
    )
    assert students.better_loader(None) == 2


@pytest.fixture
def small_gan(monkeypatch):
    from dfkd_lib.models import Discriminator, Generator

    monkeypatch.setattr(gan, "BATCH", 4)
    monkeypatch.setattr(gan, "STEPS", 2)
    monkeypatch.setattr(gan, "Generator", lambda k, c: Generator(k, c, 32))
    monkeypatch.setattr(gan, "Discriminator", lambda k, c: Discriminator(k, c, 8))
    return partial(gan.ways, "fp32", SMOKE[0])


def test_the_gan_and_the_plain_loop_come_to_the_same_losses(small_gan, monkeypatch):
    compared(small_gan, *gan.COMPARISONS[0].pairs)
    real = gan.plain
    monkeypatch.setattr(gan, "plain", lambda *args: lambda: [1.01 * x for x in real(*args)()])
    with pytest.raises(WorkbenchError, match="does not do the same"):
        compared(small_gan)


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


def test_a_detector_that_reads_otherwise_is_refused(monkeypatch):
    monkeypatch.setattr(detr, "pixels", lambda detector, images: images)
    with pytest.raises(WorkbenchError, match="does not do the same"):
        compared(partial(detr.ways, SCENES, "fp32"))


def test_a_notebook_runs_as_a_bare_script_with_the_parameters_given(tmp_path):
    cells = [
        nbformat.v4.new_markdown_cell("# text"),
        nbformat.v4.new_code_cell("a = 1\nb = 'x'", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("print(a, b)\nassert a == 2"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "n.ipynb")
    pipeline.run(pipeline.bare(tmp_path / "n.ipynb", {"a": 2}, tmp_path))
    with pytest.raises(Exception, match="non-zero"):
        pipeline.run(pipeline.bare(tmp_path / "n.ipynb", {"a": 3}, tmp_path))


def test_the_pipelines_overhead_is_its_seconds_less_those_of_a_bare_process(monkeypatch):
    known = {pipeline.COMMAND: lambda: None, pipeline.BY_HAND: lambda: None, "bare": lambda: 10.0}
    monkeypatch.setattr(pipeline, "commands", lambda *_: known)
    monkeypatch.setattr(pipeline, "result", lambda *_: {"seconds": 14.5})
    with pipeline.ways() as ways:
        assert ways.run[pipeline.OVERHEAD]() == 4.5


def test_memory_is_measured_in_a_process_of_its_own():
    assert 0 < memory.measured(memory.probes, 300) < 2000
    for function in (memory.making, memory.learning):
        assert 50 < memory.measured(function, 300) < 3000


def test_the_students_of_several_workers_are_trained():
    tiny = workers.BASE | {"student_model": SMOKE[1], "student_images": 60, "student_epochs": 1}
    assert workers.students(2, 2, tiny) > 0
    with pytest.raises(WorkbenchError, match="was not trained"):
        workers.students(1, 1, tiny | {"kd_weight": 1e300, "student_epochs": 4})
