"""What a Fréchet distance in 2048 dimensions costs beside pytorch-fid's matrix square root and torchmetrics' eigenvalues."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec

import numpy as np
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from bench.rows import Effort, Row, compared, missing, take_turns
from dfkd_lib import metrics
from dfkd_lib.core import WorkbenchError

DIMENSIONS = 2048  # Inception's
# Images on either side, and what is asked.
SIZES = {(500, 500): ">= 100", (500, 10_000): ">= 100", (10_000, 10_000): ">= 4"}
SECONDS = 45  # of measuring a size, at least two rounds
TOLERANCE = 1e-4
Statistics = tuple[Tensor, Tensor]


OURS, SCIPY, PYTORCH_FID, TORCHMETRICS = (
    "ours",
    "scipy sqrtm (pytorch-fid's way)",
    "pytorch-fid",
    "torchmetrics",
)


def features(count: int, dimensions: int, seed: int) -> Tensor:
    """Random features (count, dimensions), float32, ≥ 0, correlated as those of a network with rectifiers are."""
    generator = torch.Generator().manual_seed(seed)
    mix = (
        torch.randn(dimensions, dimensions, generator=generator)
        * torch.arange(1, dimensions + 1) ** -0.5
    )
    return (torch.randn(count, dimensions, generator=generator) @ mix.T / 4 + 0.1).relu()


def by_square_root(a: Statistics, b: Statistics) -> float:
    """The distance as pytorch-fid takes it: the trace of scipy's `sqrtm` of the covariances' product, float64."""
    root = sqrtm((a[1] @ b[1]).numpy())
    return float((a[0] - b[0]).square().sum() + a[1].trace() + b[1].trace()) - 2 * float(
        np.trace(root).real
    )


def by_pytorch_fid(a: Statistics, b: Statistics) -> float:
    """The distance by pytorch-fid's own function."""
    from pytorch_fid.fid_score import calculate_frechet_distance

    return float(calculate_frechet_distance(*(part.numpy() for part in (*a, *b))))


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


def compare(
    images: tuple[int, int], dimensions: int = DIMENSIONS, limit: float = SECONDS, most: int = 3
) -> list[Row]:
    """A row for each peer; they get both sides' statistics for nothing. Without pytorch-fid, its way by scipy.

    Args:
        images: on either side, the fewer first. limit, most: see `take_turns`.

    Raises:
        WorkbenchError: if a way finds another distance.
    """
    a, b = (features(count, dimensions, seed) for seed, count in enumerate(images))
    known = metrics.statistics(a), metrics.statistics(b)
    theirs = {PYTORCH_FID: by_pytorch_fid} if find_spec("pytorch_fid") else {SCIPY: by_square_root}
    theirs[TORCHMETRICS] = by_eigenvalues
    ways = {
        OURS: ours(a, b, known),
        **{name: lambda way=way: way(*known) for name, way in theirs.items()},
    }
    for way in theirs.values():
        way(
            *2 * [(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))]
        )  # imports its library
    found: dict[str, float] = {}
    rounds = take_turns(
        {name: lambda name=name: found.update({name: ways[name]()}) for name in ways}, limit, most
    )
    differences = {name: abs(found[name] / found[OURS] - 1) for name in theirs}
    worst = max(differences, key=differences.get)
    if not differences[worst] <= TOLERANCE:
        raise WorkbenchError(
            "a Fréchet distance is not what another way finds",
            got=f"{differences[worst]:.2g} apart",
            expected=f"at most {TOLERANCE}",
            where=f"{worst}, {images} images",
        )
    what, setting = "distance", f"{images[0]:,} and {images[1]:,} images, {dimensions} dimensions"
    asked = SIZES.get(images, "")
    made = [
        compared(
            rounds,
            OURS,
            name,
            "frechet",
            what,
            setting,
            "s",
            1,
            asked=asked,
            note=f"equal to {differences[name]:.0e}",
        )
        for name in theirs
    ]
    return (
        made if PYTORCH_FID in theirs else [*made, missing("frechet", what, setting, PYTORCH_FID)]
    )


def rows(effort: Effort) -> Iterator[Row]:
    """Every number of images: float64, two or three rounds, for a matrix square root takes ten seconds and more."""
    for images in SIZES:
        yield from compare(images, DIMENSIONS, SECONDS * effort.seconds)
