"""The bench of students' training: all contenders train the same, take turns, and a missing peer only loses its row."""

import importlib.util

import pytest
import torch
from bench import students
from bench.rows import NOT_INSTALLED, Effort

from dfkd_lib.core import WorkbenchError
from dfkd_lib.datasets import ImageSet, to_float

BATCH, TINY = 4, ("vit_mnist_smoke", "vit_mnist_smoke")
HAS_PEER = importlib.util.find_spec("torchdistill") is not None
OURS = [students.KEPT, students.MADE, students.LIVE]


@pytest.fixture
def given(monkeypatch):
    monkeypatch.setenv("DFKD_PROGRESS", "none")
    drawn = torch.Generator().manual_seed(0)
    images = ImageSet(
        torch.randint(0, 256, (3 * BATCH, 1, 28, 28), dtype=torch.uint8, generator=drawn),
        torch.arange(3 * BATCH) % 10,
        tuple(map(str, range(10))),
    )
    with students.prepared(images, BATCH, TINY) as setting:
        # Untrained networks say nearly the same of all images: a wrong order or a wrong temperature would not show.
        with torch.no_grad():
            for model in (setting.teacher, setting.student):
                model.head.weight.mul_(4)
        yield setting


def without(monkeypatch, name):
    real = importlib.util.find_spec
    monkeypatch.setattr(students, "find_spec", lambda asked: None if asked == name else real(asked))


def test_peers_read_the_same_images(given):
    images, labels = students.first_batch(given)
    assert torch.equal(labels, given.images.labels[:BATCH])
    assert torch.allclose(images, to_float(given.images.images[:BATCH]), atol=1e-6)
    assert len(students.mnist(given)) == len(given.images)


@pytest.mark.parametrize("precision", students.PRECISIONS)
def test_ours_and_the_plain_loop_come_to_the_same_losses(monkeypatch, given, precision):
    without(monkeypatch, "torchdistill")
    given = given._replace(precision=precision)
    ways = students.contenders(given, 0, students.target_maker(given)())
    kept, live, plain = (
        ways[name].two_losses() for name in (students.KEPT, students.LIVE, students.PLAIN)
    )
    assert kept == pytest.approx(plain, rel=students.TOLERANCE[precision]) == live
    assert (
        abs(plain[1] - plain[0]) > 1e-3 and ways[students.PLAIN].two_losses() == plain
    )  # it learns, and on a copy
    assert all(ways[name].two_losses()[0] > kept[0] for name in students.EXTRA)


@pytest.mark.skipif(not HAS_PEER, reason="torchdistill is not installed")
@pytest.mark.parametrize("precision", students.PRECISIONS)
def test_torchdistill_comes_to_the_same_losses(given, precision):
    given = given._replace(precision=precision)
    plain, theirs = students.plain(given), students.torchdistill(given)
    assert theirs.two_losses() == pytest.approx(
        plain.two_losses(), rel=students.TOLERANCE[precision]
    )
    before = [p.clone() for p in given.student.parameters()]
    theirs.epoch()
    assert all(map(torch.equal, before, given.student.parameters()))


def test_contenders_that_train_another_loss_are_refused(monkeypatch, given):
    without(monkeypatch, "torchdistill")
    ways = students.contenders(given, 0, students.target_maker(given)())
    losses = ways[students.PLAIN].two_losses
    ways[students.LIVE] = students.Way(None, lambda: [loss * 1.001 for loss in losses()])
    with pytest.raises(WorkbenchError, match="do not train the same"):
        students.difference(ways, "fp32")


def test_every_contender_is_beside_every_peer(monkeypatch, given):
    without(monkeypatch, "torchdistill")
    rows = students.measure(given, 0, 2)
    wanted = [(name, peer) for name in [*OURS, *students.EXTRA] for peer in students.PEERS]
    assert [(row.what, row.peer) for row in rows] == wanted
    for row in rows:
        if row.peer == students.TORCHDISTILL:
            assert row.ratio is None and row.note == NOT_INSTALLED
        else:
            assert row.rounds == 2 and 0 < row.ratio[0] <= row.ratio[1] <= row.ratio[2]


def test_kept_targets_pay_for_their_making():
    rounds = 2 * [
        {
            students.KEPT: 2.0,
            students.MADE: 5.0,
            students.LIVE: 4.0,
            students.PLAIN: 4.0,
            students.TORCHDISTILL: 8.0,
        }
    ]
    rows = {(row.what, row.peer): row for row in students.rows_of(rounds, 100)}
    assert [rows[name, students.PLAIN].ours for name in OURS] == [
        50,
        pytest.approx(100 * 5 / (5 + 5 * 2)),
        25,
    ]
    assert rows[students.KEPT, students.TORCHDISTILL].ratio == (4, 4, 4)
    assert rows[students.KEPT, students.PLAIN].ratio == (2, 2, 2)
    assert rows[students.MADE, students.PLAIN].ratio == pytest.approx([4 / 3] * 3)


def test_the_better_number_of_workers_is_taken(monkeypatch, given):
    taken = {0: iter([9, 3, 1, 3]), 2: iter([9, 2, 2, 2])}
    monkeypatch.setattr(
        students, "plain", lambda given, workers: students.Way(lambda: workers, None)
    )
    monkeypatch.setattr(students, "seconds", lambda epoch: next(taken[epoch()]))
    next(taken[0]), next(taken[2])  # noqa: B018
    assert students.better_workers(given) == 2


def test_there_are_rows_at_either_precision(monkeypatch, given):
    for name, value in {"TEACHER": TINY[0], "STUDENT": TINY[1], "BATCH": BATCH}.items():
        monkeypatch.setattr(students, name, value)
    monkeypatch.setattr(students, "better_workers", lambda given: 0)
    monkeypatch.setattr(students, "load_images", lambda name, split: given.images)
    rows = list(students.rows(Effort(1, 0)))
    assert [row.setting for row in rows] == 6 * [f"{TINY[1]}, batch 4, fp32"] + 10 * [
        f"{TINY[1]}, batch 4, bf16"
    ]
    assert HAS_PEER or [row.note for row in rows].count(NOT_INSTALLED) == 8
