"""Bootstrap intervals: how far a measure would move with other images of the same kind."""

import math

import torch
from torch import Tensor

from dfkd_lib.metrics.distances import trace_root
from dfkd_lib.metrics.score import scores

LEAST = 20  # replicates below which no spread is reported, whatever they cost


def counts(images: int, rounds: int, generator: torch.Generator) -> Tensor:
    """How often each image is drawn, float64 (rounds, images), in as many draws with replacement as there are images."""
    draws = torch.randint(images, (rounds, images), generator=generator)
    return torch.zeros(rounds, images, dtype=torch.float64).scatter_add_(
        1, draws, torch.ones_like(draws).double()
    )


def spread_interval(
    estimate: float, replicates: Tensor, least: float = 0.0, most: float = math.inf
) -> tuple[float, float]:
    """A 95 % interval (low, high): the replicates' spread about their own mean, placed at the estimate, within bounds.

    Student's t times the standard deviation, which a few replicates tell better than their outermost values. NaN with
    fewer than two.
    """
    if len(replicates) < 2:
        return math.nan, math.nan
    from scipy.stats import t

    half = float(t.ppf(0.975, len(replicates) - 1)) * float(replicates.std())
    return max(estimate - half, least), min(estimate + half, most)


def affordable(rounds: int, images: int, dimensions: int, budget: float) -> int:
    """How many of `rounds` replicates of a Fréchet distance `budget` (floating point operations) allows, at least 20.

    One costs two covariances of `images` rows in all and, roughly, 25 D³ for the roots.
    """
    cost = 2 * images * dimensions**2 + 25 * dimensions**3
    return min(rounds, max(LEAST, int(budget / cost)))


def span_dimensions(a: Tensor, b: Tensor) -> int:
    """In how many dimensions the covariances of two sets of features meet: D, or what the fewer images span."""
    return min(len(a) - 1, len(b) - 1, a.shape[1])


def frechet_replicates(a: Tensor, b: Tensor, rounds: int, generator: torch.Generator) -> Tensor:
    """Fréchet distances, float64 (rounds,), of both sides resampled with replacement; features (Na, D), (Nb, D).

    The product of two covariances is nought outside what the fewer images span. So with fewer images than dimensions
    both sides are turned into that span once, and each replicate costs as much as its dimensions do; this is exact.
    """
    few, centre = (a, a.double().mean(0)) if len(a) <= len(b) else (b, b.double().mean(0))
    full = [side.double() - centre for side in (a, b)]
    inner = full
    if span_dimensions(a, b) < a.shape[1]:
        basis = torch.linalg.qr((few.double() - centre).T).Q
        inner = [side @ basis for side in full]
    squares = [side.square().sum(1) for side in full]
    distances = torch.empty(rounds, dtype=torch.float64)
    for i in range(rounds):
        means, traces, sigmas = [], [], []
        for side, within, square in zip(full, inner, squares, strict=True):
            weights, count = counts(len(side), 1, generator)[0], len(side)
            mean, drawn = weights @ side / count, weights > 0
            rows = (within[drawn] - weights @ within / count) * weights[drawn].sqrt()[:, None]
            means.append(mean)
            traces.append((weights @ square - count * mean.square().sum()) / (count - 1))
            sigmas.append(rows.T @ rows / (count - 1))
        distances[i] = (means[0] - means[1]).square().sum() + sum(traces) - 2 * trace_root(*sigmas)
    return distances.clamp(min=0)


def score_replicates(logits: Tensor, rounds: int, generator: torch.Generator) -> Tensor:
    """Scores, float64 (rounds,), of images resampled with replacement; logits (N, K)."""
    # 20 at a time keep what 60,000 images need at about 20 MB.
    parts = [min(20, rounds - start) for start in range(0, rounds, 20)]
    every = [scores(logits, counts(len(logits), part, generator)) for part in parts]
    return torch.cat([torch.empty(0), *every])
