"""Nearest neighbours in feature space: precision, recall, density, coverage; neighbours that look like copies."""

import math
from typing import Annotated, NamedTuple

import torch
from pydantic import BeforeValidator
from torch import Tensor

from dfkd_lib.core import WorkbenchError
from dfkd_lib.metrics.distances import check_pair


class Prdc(NamedTuple):
    """Four shares of images that lie where the other side's do; density alone may exceed 1."""

    precision: float
    recall: float
    density: float
    coverage: float


def nearest(
    made: Tensor, pool: Tensor, k: int = 1, leave_one_out: bool = False
) -> tuple[Tensor, Tensor]:
    """The k nearest of the pool's features (M, D) to each of (N, D): for showing what an image may be a copy of.

    Args:
        leave_one_out: `made` is the pool itself, and no image is its own neighbour.

    Returns:
        Distances, float64 (N, k), ascending, and places in the pool, int64 (N, k).

    Raises:
        WorkbenchError: if the pool has fewer than k (others), on dimensions that differ or values that are not finite.
    """
    from sklearn.neighbors import NearestNeighbors

    check_pair(made, pool)
    if not 1 <= k <= len(pool) - leave_one_out:
        raise WorkbenchError(
            "too few images for that many neighbours",
            expected=f"more than {k - 1 + leave_one_out} images",
            got=len(pool),
            fix="give more images or a smaller k",
        )
    pool, made = pool.double(), made.double()
    centre = pool.mean(0)
    tree = NearestNeighbors(n_neighbors=k, algorithm="brute").fit((pool - centre).numpy())
    asked = None if leave_one_out else (made - centre).numpy()
    places = torch.from_numpy(tree.kneighbors(asked, return_distance=False))
    # |x|² − 2xy + |y|² loses half the digits for near images: the few that are found are measured anew.
    columns = [(made - pool[column]).square().sum(1).sqrt() for column in places.T]
    return torch.stack(columns, dim=1), places


def prdc(real: Tensor, made: Tensor, k: int = 5) -> Prdc:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020) of features (N, D).

    Around each image lies a ball that reaches to its k-th nearest of its own side. Precision: the share of made images in
    some real ball; recall: of real images in some made ball; density: the mean number of real balls a made image lies in,
    over k; coverage: the share of real balls with a made image in them. Balls hold their border.

    Args:
        k: neighbours; both sides need more images than that.

    Raises:
        WorkbenchError: with too few images, on dimensions that differ or values that are not finite.
    """
    from sklearn.metrics import pairwise_distances_chunked

    check_pair(real, made)
    radii = [nearest(side, side, k, leave_one_out=True)[0].amax(1) for side in (real, made)]
    centre = made.double().mean(0)
    real, made = real.double() - centre, made.double() - centre
    # A border that rounding alone would move is moved outwards, so that copies of real images lie in their balls.
    slack = 1e-6 * max(side.norm(dim=1).max().item() for side in (real, made))
    inside, recalled, covered = torch.zeros(len(made), dtype=torch.int64), 0, 0
    start = 0
    for block in pairwise_distances_chunked(real.numpy(), made.numpy(), working_memory=64):
        distances = torch.from_numpy(block) - slack
        within = distances <= radii[0][start : start + len(block), None]
        inside += within.sum(0)
        covered += int(within.any(1).sum())
        recalled += int((distances <= radii[1]).any(1).sum())
        start += len(block)
    return Prdc(
        (inside > 0).double().mean().item(),
        recalled / len(real),
        inside.double().mean().item() / k,
        covered / len(real),
    )


# A float whose NaN is None in JSON.
Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]


class Nearness(NamedTuple):
    """How near made images lie to others, beside how near real ones do.

    ratio: median nearest distance of the made over that of the real. share: of made images that are nearer than
    `threshold`, the 1 % quantile of the real distances; 0.01 is what real images would have. images: number of made ones.
    """

    ratio: Number
    share: Number
    threshold: Number
    images: int


QUANTILE = 0.01


def _nearness(made: Tensor, real: Tensor) -> Nearness:
    threshold, median = real.quantile(QUANTILE).item(), real.median().item()
    ratio = made.median().item() / median if median else math.nan
    return Nearness(ratio, (made <= threshold).double().mean().item(), threshold, len(made))


def memorisation(made: Tensor, seen: Tensor) -> Nearness:
    """Whether made images (N, D) lie nearer to the real ones their maker has seen (M, D) than these do to each other.

    Copies have a ratio near 0 and a share near 1. A maker of few, typical images also comes near: look at the neighbours
    before calling it copying.

    Raises:
        WorkbenchError: with too few images, on dimensions that differ or values that are not finite.
    """
    real, _ = nearest(seen, seen, leave_one_out=True)
    return _nearness(nearest(made, seen)[0].flatten(), real.flatten())


def near_duplicates(made: Tensor, real: Tensor, most: int = 5000, seed: int = 0) -> Nearness:
    """Whether made images (N, D) lie nearer to each other than real ones (M, D) do: the same image over and over.

    Neighbours come nearer the more images there are, so both sides are drawn down to the same number, at most `most`.

    Raises:
        WorkbenchError: with too few images, on dimensions that differ or values that are not finite.
    """
    check_pair(made, real)
    size, generator = min(len(made), len(real), most), torch.Generator().manual_seed(seed)
    # Ordered subsets keep everything as it is where nothing is to be left out.
    drawn = [
        side[torch.randperm(len(side), generator=generator)[:size].sort().values]
        for side in (made, real)
    ]
    return _nearness(*(nearest(side, side, leave_one_out=True)[0].flatten() for side in drawn))
