"""The Fréchet distance against closed forms and scipy's matrix square root; intervals against textbook values."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

from dfkd_lib import fid, intervals
from dfkd_lib.errors import WorkbenchError


def gaussian(seed, size):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(size, size))
    return rng.normal(size=size), root @ root.T / size


def test_one_dimension_by_hand():
    # Two normal distributions: (μ1 − μ2)² + (σ1 − σ2)².
    found = fid.frechet_distance(torch.tensor([1.0]), torch.tensor([[4.0]]), torch.tensor([4.0]), torch.tensor([[25.0]]))
    assert found == pytest.approx(9 + 9)


def test_commuting_covariances_by_hand():
    a, b = torch.tensor([1.0, 4.0, 9.0]), torch.tensor([4.0, 1.0, 16.0])
    found = fid.frechet_distance(torch.zeros(3), a.diag(), torch.zeros(3), b.diag())
    assert found == pytest.approx(float((a.sqrt() - b.sqrt()).square().sum()))


@pytest.mark.parametrize("size", [2, 30, 100])
def test_against_scipys_square_root(size):
    (mu_a, a), (mu_b, b) = gaussian(0, size), gaussian(1, size)
    expected = ((mu_a - mu_b) ** 2).sum() + np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real)
    assert fid.frechet_distance(mu_a, a, mu_b, b) == pytest.approx(expected, rel=1e-7)


def test_zero_symmetric_and_growing_with_a_shift():
    (mu, a), (_, b) = gaussian(2, 10), gaussian(3, 10)
    assert fid.frechet_distance(mu, a, mu, a) == pytest.approx(0, abs=1e-8)
    assert fid.frechet_distance(mu, a, mu, b) == pytest.approx(fid.frechet_distance(mu, b, mu, a), rel=1e-8)
    assert fid.frechet_distance(mu, a, mu + 1, a) == pytest.approx(10)


@pytest.mark.parametrize("count_a, count_b", [(20, 20), (20, 500), (500, 30), (500, 400)])
def test_fewer_images_than_dimensions(count_a, count_b):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(count_a, 64, generator=generator), torch.randn(count_b, 64, generator=generator) * 2 + 1
    direct = fid.frechet_distance(*fid.statistics(a), *fid.statistics(b))
    assert fid.frechet_distance_from_features(a, b) == pytest.approx(direct, rel=1e-6)


def test_statistics_are_numpys():
    x = np.random.default_rng(0).normal(size=(50, 4))
    mu, sigma = fid.statistics(torch.from_numpy(x))
    assert np.allclose(mu, x.mean(0)) and np.allclose(sigma, np.cov(x, rowvar=False))


@pytest.mark.parametrize("bad", [torch.zeros(1, 3), torch.zeros(3), torch.full((4, 3), math.nan)])
def test_bad_features(bad):
    with pytest.raises(WorkbenchError):
        fid.statistics(bad)


def test_statistics_of_different_features():
    with pytest.raises(WorkbenchError, match="different features"):
        fid.frechet_distance(torch.zeros(2), torch.eye(2), torch.zeros(3), torch.eye(3))


def test_classifier_features_are_the_last_layers_input():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    images = torch.randint(0, 256, (7, 1, 4, 4), dtype=torch.uint8)
    expected = model[:3](images.float() / 127.5 - 1)
    assert torch.allclose(fid.classifier_features(model, images, batch_size=3), expected, atol=1e-6)


def test_absent_inception_weights_say_the_mend(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.delenv("DFKD_INCEPTION", raising=False)
    with pytest.raises(WorkbenchError, match="download=True"):
        fid.inception_features(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))


def test_intervals_by_hand():
    mean, half = intervals.mean_interval([1.0, 2.0, 3.0])
    assert mean == 2 and half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-5)  # t table, 2 degrees of freedom
    assert math.isnan(intervals.mean_interval([1.0])[1])
    low, high = intervals.accuracy_interval(50, 100)
    assert (low, high) == (pytest.approx(0.4038, abs=1e-3), pytest.approx(0.5962, abs=1e-3))
    with pytest.raises(WorkbenchError):
        intervals.mean_interval([])


def test_paired_difference_sees_through_common_noise():
    noise = np.random.default_rng(0).normal(size=8) * 10
    found = intervals.paired_difference(noise, noise + 1 + np.linspace(-0.1, 0.1, 8))
    assert found["difference"] == pytest.approx(1)
    assert 0 < found["low"] < 1 < found["high"] and found["p"] < 1e-6
    with pytest.raises(WorkbenchError):
        intervals.paired_difference([1.0], [1.0, 2.0])
