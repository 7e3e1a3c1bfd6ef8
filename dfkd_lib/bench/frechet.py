"""What a Fréchet distance in 2048 dimensions costs beside scipy's matrix square root and torchmetrics' eigenvalues."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from dfkd_lib import fid
from dfkd_lib.errors import WorkbenchError

DIMENSIONS = 2048  # Inception's
SIZES = ((500, 500), (500, 10_000), (2048, 2048), (10_000, 10_000))  # images on either side
RUNS = 3
TOLERANCE = 1e-4
Statistics = tuple[Tensor, Tensor]


class Row(NamedTuple):
    """One way to a distance: median seconds, how many times as long as ours, and how far from ours, relatively."""

    method: str
    seconds: float
    ratio: float
    difference: float


def features(count: int, dimensions: int, seed: int) -> Tensor:
    """Random features (count, dimensions), float32, ≥ 0, correlated as those of a network with rectifiers are."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dimensions, dimensions, generator=generator) * torch.arange(1, dimensions + 1) ** -0.5
    return (torch.randn(count, dimensions, generator=generator) @ mix.T / 4 + 0.1).relu()


def by_square_root(a: Statistics, b: Statistics) -> float:
    """The distance as pytorch-fid takes it: the trace of scipy's `sqrtm` of the covariances' product, float64."""
    root = sqrtm((a[1] @ b[1]).numpy())
    return float((a[0] - b[0]).square().sum() + a[1].trace() + b[1].trace()) - 2 * float(np.trace(root).real)


def by_eigenvalues(a: Statistics, b: Statistics) -> float:
    """The distance as torchmetrics takes it: the eigenvalues of the covariances' product."""
    from torchmetrics.image.fid import _compute_fid

    return float(_compute_fid(*a, *b))


def ours(a: Tensor, b: Tensor, known: tuple[Statistics, Statistics]) -> Callable[[], float]:
    """Our step where it starts: at the statistics if there are as many images as dimensions, else at the few features."""
    if min(len(a), len(b)) >= a.shape[1]:
        return lambda: fid.frechet_distance(*known[0], *known[1])
    if max(len(a), len(b)) < a.shape[1]:
        return lambda: fid.frechet_distance_from_features(a, b)
    return lambda: fid.frechet_distance_to(*known[1], a)


def compare(images: tuple[int, int], dimensions: int = DIMENSIONS, runs: int = RUNS) -> list[Row]:
    """A row for each way, timed in turns; the others get both sides' statistics for nothing.

    Args:
        images: on either side, the fewer first.

    Raises:
        WorkbenchError: if a way finds another distance.
    """
    a, b = (features(count, dimensions, seed) for seed, count in enumerate(images))
    known = fid.statistics(a), fid.statistics(b)
    ways = {"ours": ours(a, b, known), "ours, both sides' statistics": lambda: fid.frechet_distance(*known[0], *known[1]),
            "scipy sqrtm": lambda: by_square_root(*known), "torchmetrics eigvals": lambda: by_eigenvalues(*known)}
    times: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, float] = {}
    for _ in range(runs):
        for name, way in ways.items():
            start = time.perf_counter()
            found[name] = way()
            times[name].append(time.perf_counter() - start)
    seconds = {name: statistics.median(taken) for name, taken in times.items()}
    rows = [Row(name, seconds[name], seconds[name] / seconds["ours"], abs(found[name] / found["ours"] - 1)) for name in ways]
    worst = max(rows, key=lambda row: row.difference)
    if not worst.difference <= TOLERANCE:
        raise WorkbenchError("a Fréchet distance is not what another way finds", got=f"{worst.difference:.2g} apart",
                             expected=f"at most {TOLERANCE}", where=f"{worst.method}, {images} images")
    return rows


def print_frechet(runs: int = RUNS) -> None:
    """Print what each way costs at each number of images, the median of `runs`."""
    print(f"Fréchet distance in {DIMENSIONS} dimensions, float64, {torch.get_num_threads()} threads, median of {runs}; "
          "ratio: time over ours")
    for images in SIZES:
        print(f"{images[0]:,} against {images[1]:,} images")
        for row in compare(images, runs=runs):
            print(f"  {row.method:<32}{row.seconds:>9.3f} s{row.ratio:>8.1f}  relative difference {row.difference:.0e}")
