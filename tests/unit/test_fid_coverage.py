"""Precision, recall, density, coverage by hand and against whole distance matrices; copies are found."""

import math

import pytest
import sklearn
import torch

from dfkd_lib import metrics
from dfkd_lib.core import WorkbenchError


def cloud(count, size, seed, scale=1.0):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed)) * scale


def test_prdc_by_hand():
    # On a line, k = 1. Real 0, 1, 10: radii 1, 1, 9. Made 0.5, 4, 30: radii 3.5, 3.5, 26.
    real, made = torch.tensor([[0.0], [1.0], [10.0]]), torch.tensor([[0.5], [4.0], [30.0]])
    found = metrics.prdc(real, made, k=1)
    assert found.precision == pytest.approx(2 / 3)  # 30 lies in no real ball
    # 0.5 lies in the balls of 0 and 1 (9.5 > 9), 4 in that of 10, 30 in none.
    assert found.density == pytest.approx((2 + 1 + 0) / 3)
    assert found.coverage == pytest.approx(1)
    assert found.recall == pytest.approx(1)  # 10 lies 20 from 30, whose ball reaches to 26


@pytest.mark.parametrize("k", [1, 3, 5])
def test_prdc_is_that_of_whole_matrices_also_in_blocks(k):
    real, made = cloud(60, 6, 0).double(), cloud(45, 6, 1, 1.5).double()
    radii = [torch.cdist(s, s).sort(1).values[:, k] for s in (real, made)]
    across = torch.cdist(real, made)
    inside = across <= radii[0][:, None]
    expected = (
        inside.any(0).double().mean(),
        (across <= radii[1]).any(1).double().mean(),
        inside.double().sum(0).mean() / k,
        inside.any(1).double().mean(),
    )
    assert metrics.prdc(real, made, k) == pytest.approx([float(e) for e in expected])
    with sklearn.config_context(working_memory=0.01):
        assert metrics.prdc(real, made, k) == pytest.approx([float(e) for e in expected])


def test_copies_of_all_real_images_are_precise_and_cover_also_far_from_the_origin():
    real = cloud(50, 8, 0) + 1e4
    found = metrics.prdc(real, real.clone())
    assert found.precision == found.recall == found.coverage == 1
    # Its own ball, and five neighbours' on average.
    assert found.density == pytest.approx((5 + 1) / 5)


def test_nearest_is_sorted_exact_and_never_itself():
    pool = cloud(40, 5, 0)
    distances, places = metrics.nearest(pool[:4] + 1e-4, pool, k=3)
    assert places[:, 0].tolist() == [0, 1, 2, 3]
    assert distances[:, 0] == pytest.approx(torch.full((4,), 1e-4 * 5**0.5).numpy(), rel=1e-2)
    assert (distances.diff(dim=1) >= 0).all()
    others, places = metrics.nearest(pool, pool, k=2, leave_one_out=True)
    expected = torch.cdist(pool.double(), pool.double()).fill_diagonal_(math.inf).sort(1)
    assert torch.equal(places, expected.indices[:, :2])
    assert torch.allclose(others, expected.values[:, :2])


@pytest.mark.parametrize("count, k", [(5, 5), (5, 6), (9, 0)])
def test_too_few_images_for_the_neighbours(count, k):
    with pytest.raises(WorkbenchError, match="too few images"):
        metrics.prdc(cloud(count, 3, 0), cloud(count, 3, 1), k)


def test_copies_are_told_from_new_images():
    seen, new = cloud(600, 6, 0), cloud(600, 6, 1)
    fresh = metrics.memorisation(new, seen)
    assert fresh.share < 0.03 and fresh.images == 600
    assert fresh.ratio == pytest.approx(1, abs=0.1)
    copies = metrics.memorisation(seen[:300] + 1e-6, seen)
    assert copies.share == 1 and copies.ratio < 1e-4
    half = metrics.memorisation(torch.cat((new[:300], seen[:300])), seen)
    assert half.share == pytest.approx(0.5, abs=0.03)


def test_the_same_image_over_and_over_is_told():
    real, made = cloud(600, 6, 0), cloud(900, 6, 1)
    assert metrics.near_duplicates(made, real).share < 0.03
    assert metrics.near_duplicates(made, real).images == 600
    repeated = made[:30].repeat(20, 1) + cloud(600, 6, 2, 1e-5)
    assert metrics.near_duplicates(repeated, real).share == 1
    assert metrics.near_duplicates(repeated, real, most=50).images == 50
