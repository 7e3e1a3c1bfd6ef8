"""A Fréchet distance in 2048 dimensions beside pytorch-fid's way, scipy's matrix square root, and torchmetrics' eigenvalues."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from bench.comparison import Comparison, Pair, Ways, agree
from dfkd_lib import metrics

DIMENSIONS = 2048  # Inception's
# Images on either side, and what is asked.
SIZES = {(500, 500): ">= 100", (500, 10_000): ">= 100", (10_000, 10_000): ">= 4"}
TOLERANCE = 1e-4
OURS, SCIPY = "distance", "scipy sqrtm (pytorch-fid's way)"
TORCHMETRICS = "torchmetrics"
Statistics = tuple[Tensor, Tensor]


def features(count: int, dimensions: int, seed: int) -> Tensor:
    """Random features (count, dimensions), float32, ≥ 0, correlated as those of a network with rectifiers are."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dimensions, dimensions, generator=generator)
    mix *= torch.arange(1, dimensions + 1) ** -0.5
    return (torch.randn(count, dimensions, generator=generator) @ mix.T / 4 + 0.1).relu()


def by_square_root(a: Statistics, b: Statistics) -> float:
    """The distance as pytorch-fid takes it: the trace of scipy's `sqrtm` of the covariances' product, float64."""
    root = float(np.trace(sqrtm((a[1] @ b[1]).numpy())).real)
    return float((a[0] - b[0]).square().sum() + a[1].trace() + b[1].trace()) - 2 * root


def by_eigenvalues(a: Statistics, b: Statistics) -> float:
    """The distance as torchmetrics takes it: the eigenvalues of the covariances' product."""
    from torchmetrics.image.fid import _compute_fid

    return float(_compute_fid(*a, *b))


def ours(a: Tensor, b: Tensor, known: tuple[Statistics, Statistics]) -> Callable[[], float]:
    """Our step where it starts: at the statistics if there are as many images as dimensions, else at the few features."""
    if min(len(a), len(b)) >= a.shape[1]:
        return lambda: metrics.frechet_distance(*known[0], *known[1])
    if max(len(a), len(b)) < a.shape[1]:
        return lambda: metrics.frechet_distance_from_features(a, b)
    return lambda: metrics.frechet_distance_to(*known[1], a)


def timed(way: Callable[[], float]) -> Callable[[], None]:
    """A way without its result, which would be taken for a time."""

    def run() -> None:
        way()

    return run


@contextmanager
def ways(images: tuple[int, int], dimensions: int = DIMENSIONS) -> Iterator[Ways]:
    """Ours and every peer, who get both sides' statistics for nothing."""
    a, b = (features(count, dimensions, seed) for seed, count in enumerate(images))
    known = metrics.statistics(a), metrics.statistics(b)
    run = {
        OURS: ours(a, b, known),
        SCIPY: partial(by_square_root, *known),
        TORCHMETRICS: partial(by_eigenvalues, *known),
    }
    note = agree({name: way() for name, way in run.items()}, TOLERANCE, f"{images} images")
    yield Ways({name: timed(way) for name, way in run.items()}, note)


COMPARISONS = tuple(
    Comparison(
        "frechet",
        f"{images[0]:,} and {images[1]:,} images, {DIMENSIONS} dimensions, float64",
        partial(ways, images),
        (Pair(OURS, SCIPY, asked), Pair(OURS, TORCHMETRICS, asked)),
        unit="s",
        per=1,
        seconds=45,
        most=3,
        warm=False,  # `agree` has run all
    )
    for images, asked in SIZES.items()
)
