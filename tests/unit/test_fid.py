"""The Fréchet distance against closed forms and scipy's matrix square root."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from dfkd_lib import metrics
from dfkd_lib.core import WorkbenchError


def gaussian(seed, size):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(size, size))
    return rng.normal(size=size), root @ root.T / size


def test_commuting_covariances_by_hand():
    # Normal distributions in each dimension: (μ1 − μ2)² + (σ1 − σ2)².
    a, b = torch.tensor([1.0, 4.0, 9.0]), torch.tensor([4.0, 1.0, 16.0])
    found = metrics.frechet_distance(torch.ones(3), a.diag(), torch.tensor([4.0, 1, 1]), b.diag())
    assert found == pytest.approx(9 + 1 + 1 + 1)


@pytest.mark.parametrize("size", [2, 30, 100])
def test_against_scipys_square_root(size):
    (mu_a, a), (mu_b, b) = gaussian(0, size), gaussian(1, size)
    expected = ((mu_a - mu_b) ** 2).sum() + np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real)
    assert metrics.frechet_distance(mu_a, a, mu_b, b) == pytest.approx(expected, rel=1e-7)


def test_zero_symmetric_and_growing_with_a_shift():
    (mu, a), (_, b) = gaussian(2, 10), gaussian(3, 10)
    assert metrics.frechet_distance(mu, a, mu, a) == pytest.approx(0, abs=1e-8)
    assert metrics.frechet_distance(mu, a, mu, b) == pytest.approx(
        metrics.frechet_distance(mu, b, mu, a), rel=1e-8
    )
    assert metrics.frechet_distance(mu, a, mu + 1, a) == pytest.approx(10)


def test_statistics_are_numpys():
    x = np.random.default_rng(0).normal(size=(50, 4))
    mu, sigma = metrics.statistics(torch.from_numpy(x))
    assert np.allclose(mu, x.mean(0)) and np.allclose(sigma, np.cov(x, rowvar=False))


def low_rank(seed, size, rank, smallest=0.0):
    """A covariance (size, size) of `rank` eigenvalues from 1 down to 0.1, the others being `smallest`."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(size, size)))[0]
    values = np.concatenate([np.linspace(1, 0.1, rank), np.full(size - rank, smallest)])
    return (basis * values) @ basis.T, (basis * values**0.5) @ basis.T


@pytest.mark.parametrize("rank_a, rank_b", [(20, 60), (60, 20), (20, 30), (60, 60), (1, 1)])
@pytest.mark.parametrize("smallest", [0.0, 1e-10])
def test_singular_and_nearly_singular_covariances(rank_a, rank_b, smallest):
    (a, root_a), (b, root_b) = low_rank(0, 60, rank_a, smallest), low_rank(1, 60, rank_b, smallest)
    # tr (ab)^½ is the sum of the singular values of a^½ b^½: no root of a singular matrix to compare with.
    expected = np.trace(a) + np.trace(b) - 2 * scipy.linalg.svdvals(root_a @ root_b).sum()
    zero = np.zeros(60)
    assert metrics.frechet_distance(zero, a, zero, b) == pytest.approx(expected, rel=1e-7)
    assert metrics.frechet_distance(zero, b, zero, a) == pytest.approx(expected, rel=1e-7)


def test_no_spread_at_all_leaves_the_means_and_the_other_side():
    parts = [(torch.ones(3), torch.eye(3)), (torch.zeros(3), torch.zeros(3, 3))]
    for one, other in (parts, parts[::-1]):
        assert metrics.frechet_distance(*one, *other) == pytest.approx(3 + 3)


@pytest.mark.parametrize("count", [2, 20, 63, 64, 65, 300])
@pytest.mark.parametrize("others", [30, 400])
def test_distance_of_few_features(count, others):
    """Fewer images than dimensions on one side or both: the same as with whole covariances."""
    generator = torch.Generator().manual_seed(count)
    many = torch.randn(others, 64, generator=generator) @ torch.randn(64, 64, generator=generator)
    few = torch.randn(count, 64, generator=generator) * 3 - 1
    known = metrics.statistics(many)
    expected = metrics.frechet_distance(*known, *metrics.statistics(few))
    assert metrics.frechet_distance_to(*known, few) == pytest.approx(expected, rel=1e-7)
    assert metrics.frechet_distance_from_features(few, many) == pytest.approx(expected, rel=1e-7)


def test_a_set_is_at_no_distance_from_itself():
    for count in (30, 300):
        a = torch.randn(count, 64, generator=torch.Generator().manual_seed(0))
        assert metrics.frechet_distance_from_features(a, a) == pytest.approx(0, abs=1e-6)
        assert metrics.frechet_distance_to(*metrics.statistics(a), a) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    "mu, sigma, features, message",
    [
        (torch.zeros(3), torch.eye(3), torch.zeros(2, 4), "different features"),
        (torch.zeros(3), torch.eye(3), torch.zeros(9, 4), "different features"),
        (torch.zeros(4), torch.eye(4), torch.zeros(1, 4), "too few images"),
        (torch.zeros(4), torch.eye(4), torch.zeros(4), "too few images"),
        (torch.zeros(4), torch.full((4, 4), math.nan), torch.zeros(2, 4), "not numbers"),
        (torch.zeros(4), torch.full((4, 4), math.nan), torch.zeros(9, 4), "not numbers"),
        (torch.zeros(4), torch.eye(4), torch.full((2, 4), math.inf), "not numbers"),
    ],
)
def test_bad_statistics(mu, sigma, features, message):
    with pytest.raises(WorkbenchError, match=message):
        metrics.frechet_distance_to(mu, sigma, features)


MEASURES = "frechet_distance_from_features kernel_distance prdc memorisation near_duplicates"


@pytest.mark.parametrize("name", MEASURES.split())
def test_every_measure_refuses_features_of_two_networks_and_nan(name):
    measure = getattr(metrics, name)
    with pytest.raises(WorkbenchError, match="different networks"):
        measure(torch.rand(9, 3), torch.rand(9, 4))
    with pytest.raises(WorkbenchError, match="not numbers"):
        measure(torch.rand(9, 3), torch.full((9, 3), math.nan))


def test_kernel_distance_by_hand():
    # D = 1, k(x, y) = (xy + 1)³. Pairs of one side: k(0, 1) = 1 and k(1, 2) = 27; across: k(0, ·) = 1, k(1, 1) = 8, 27.
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]])
    found = metrics.kernel_distance(a, b)
    assert found.mean == pytest.approx(1 + 27 - 2 * (1 + 1 + 8 + 27) / 4)
    assert math.isnan(found.std)


def test_kernel_distance_keeps_its_seed():
    a, b = torch.arange(200.0).sin().view(50, 4), torch.arange(320.0).cos().view(80, 4)
    found = metrics.kernel_distance(a, b, subsets=7)
    assert found.std > 0
    assert metrics.kernel_distance(a, b, subsets=7) == found
    assert metrics.kernel_distance(a, b, subsets=7, seed=1) != found
