"""The bench of the Fréchet distance compares ways that find the same, and refuses one that does not."""

import importlib.util

import pytest
from bench import frechet
from bench.rows import NOT_INSTALLED

from dfkd_lib.core import WorkbenchError


@pytest.mark.parametrize("images", [(12, 15), (12, 90), (60, 90)])
def test_every_way_is_timed_and_finds_the_same(images, monkeypatch):
    monkeypatch.setattr(frechet, "find_spec", lambda name: None)
    *rows, missing = frechet.compare(images, dimensions=24, limit=0)
    assert [row.peer for row in rows] == [frechet.SCIPY, "torchmetrics"] and all(
        row.rounds == 2 for row in rows
    )
    assert all(0 < row.ratio[0] <= row.ratio[1] <= row.ratio[2] for row in rows)
    assert missing.peer == "pytorch-fid" and missing.note == NOT_INSTALLED and missing.ratio is None


@pytest.mark.skipif(
    importlib.util.find_spec("pytorch_fid") is None, reason="pytorch-fid is not installed"
)
def test_pytorch_fid_itself_finds_the_same():
    rows = frechet.compare((60, 90), dimensions=24, limit=0)
    assert [row.peer for row in rows] == ["pytorch-fid", "torchmetrics"]


def test_another_distance_is_refused(monkeypatch):
    monkeypatch.setattr(frechet, "find_spec", lambda name: None)
    monkeypatch.setattr(frechet, "by_square_root", lambda a, b: 1.01 * frechet.by_eigenvalues(a, b))
    with pytest.raises(WorkbenchError, match="scipy sqrtm"):
        frechet.compare((60, 90), dimensions=24, limit=0)
