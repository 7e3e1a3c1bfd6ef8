"""The bench of the Fréchet distance compares ways that find the same, and refuses one that does not."""

import pytest

from dfkd_lib.bench import frechet
from dfkd_lib.errors import WorkbenchError


@pytest.mark.parametrize("images", [(12, 15), (12, 90), (60, 90)])
def test_every_way_is_timed_and_finds_the_same(images):
    rows = frechet.compare(images, dimensions=24, runs=2)
    assert [row.method for row in rows] == ["ours", "ours, both sides' statistics", "scipy sqrtm", "torchmetrics eigvals"]
    assert all(row.seconds > 0 and row.difference <= 1e-4 for row in rows)
    assert rows[0].ratio == 1 and rows[2].ratio == pytest.approx(rows[2].seconds / rows[0].seconds)


def test_another_distance_is_refused(monkeypatch):
    monkeypatch.setattr(frechet, "by_square_root", lambda a, b: 1.01 * frechet.by_eigenvalues(a, b))
    with pytest.raises(WorkbenchError, match="scipy sqrtm"):
        frechet.compare((60, 90), dimensions=24, runs=1)
