"""Nearest neighbours in feature space: precision, recall, density, coverage; neighbours that look like copies."""

import math
from collections.abc import Iterator
from typing import Annotated, NamedTuple

import torch
from pydantic import BeforeValidator
from torch import Tensor

from dfkd_lib.core import WorkbenchError
from dfkd_lib.metrics.distances import check_pair

BLOCK = 2**23  # distances held at a time: 64 MB


class Prdc(NamedTuple):
    """Four shares of images that lie where the other side's do; density alone may exceed 1."""

    precision: float
    recall: float
    density: float
    coverage: float


def _blocks(rows: Tensor, columns: Tensor, chunk: int | None) -> Iterator[tuple[int, Tensor]]:
    """(first row, squared distances (rows of the chunk, columns)) over all rows, in float64."""
    chunk = chunk or max(1, BLOCK // len(columns))
    centre = columns.double().mean(0)
    rows, columns = rows.double() - centre, columns.double() - centre
    norms = columns.square().sum(1)
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk]
        squares = torch.addmm(norms, part, columns.T, alpha=-2).add_(
            part.square().sum(1, keepdim=True)
        )
        yield start, squares.clamp_(min=0)


def nearest(
    made: Tensor, pool: Tensor, k: int = 1, chunk: int | None = None, leave_one_out: bool = False
) -> tuple[Tensor, Tensor]:
    """The k nearest of the pool's features (M, D) to each of (N, D): for showing what an image may be a copy of.

    Args:
        chunk: rows of `made` at a time; by default as many as keep the distances at 64 MB.
        leave_one_out: `made` is the pool itself, and no image is its own neighbour.

    Returns:
        Distances, float64 (N, k), ascending, and places in the pool, int64 (N, k).

    Raises:
        WorkbenchError: if the pool has fewer than k (others), on dimensions that differ or values that are not finite.
    """
    check_pair(made, pool)
    if not 1 <= k <= len(pool) - leave_one_out:
        raise WorkbenchError(
            "too few images for that many neighbours",
            expected=f"more than {k - 1 + leave_one_out} images",
            got=len(pool),
            fix="give more images or a smaller k",
        )
    found = []
    for start, squares in _blocks(made, pool, chunk):
        if leave_one_out:
            own = torch.arange(len(squares))
            squares[own, own + start] = torch.inf
        found.append(squares.topk(k, dim=1, largest=False).indices)
    places = torch.cat(found)
    # |x|² − 2xy + |y|² loses half the digits for near images: the few that are kept are taken anew.
    pool, made = pool.double(), made.double()
    distances = torch.stack(
        [(made - pool[places[:, j]]).square().sum(1).sqrt() for j in range(k)], dim=1
    )
    return distances, places


def prdc(real: Tensor, made: Tensor, k: int = 5, chunk: int | None = None) -> Prdc:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020) of features (N, D).

    Around each image lies a ball that reaches to its k-th nearest of its own side. Precision: the share of made images in
    some real ball; recall: of real images in some made ball; density: the mean number of real balls a made image lies in,
    over k; coverage: the share of real balls with a made image in them. Balls hold their border.

    Args:
        k: neighbours; both sides need more images than that.
        chunk: rows at a time, by default as `nearest`.

    Raises:
        WorkbenchError: with too few images, on dimensions that differ or values that are not finite.
    """
    check_pair(real, made)
    # A border that rounding alone would move is moved outwards, so that copies of real images lie in their balls.
    slack = 1e-12 * max(
        (side.double() - made.double().mean(0)).square().sum(1).max().item()
        for side in (real, made)
    )
    real_radii, made_radii = (
        nearest(side, side, k, chunk, leave_one_out=True)[0].amax(1).square() + slack
        for side in (real, made)
    )
    inside, recalled, covered = torch.zeros(len(made), dtype=torch.int64), [], []
    for start, squares in _blocks(real, made, chunk):
        within = squares <= real_radii[start : start + len(squares), None]
        inside += within.sum(0)
        covered.append(within.any(1))
        recalled.append((squares <= made_radii).any(1))
    return Prdc(
        (inside > 0).double().mean().item(),
        torch.cat(recalled).double().mean().item(),
        inside.double().mean().item() / k,
        torch.cat(covered).double().mean().item(),
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
    ratio = made.median().item() / median if median else float("nan")
    return Nearness(ratio, (made <= threshold).double().mean().item(), threshold, len(made))


def memorisation(
    made: Tensor, seen: Tensor, held_out: Tensor | None = None, chunk: int | None = None
) -> Nearness:
    """Whether made images (N, D) lie nearer to the real ones their maker has seen (M, D) than other real ones do.

    The distances to compare with are those of held-out real features to the seen ones, or, without them, each seen
    image's to its nearest other. Copies have a ratio near 0 and a share near 1. A maker of few, typical images
    also comes near: look at the neighbours before calling it copying.

    Raises:
        WorkbenchError: with too few images, on dimensions that differ or values that are not finite.
    """
    real = (
        nearest(seen, seen, 1, chunk, True)[0]
        if held_out is None
        else nearest(held_out, seen, 1, chunk)[0]
    )
    return _nearness(nearest(made, seen, 1, chunk)[0].flatten(), real.flatten())


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
