"""One table of every measure of made images against real ones, overall and by class, with what makes it doubtful."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from dfkd_lib.core import WorkbenchError
from dfkd_lib.metrics.bootstrap import (
    affordable,
    frechet_replicates,
    score_replicates,
    span_dimensions,
    spread_interval,
)
from dfkd_lib.metrics.coverage import Nearness, Number, memorisation, near_duplicates, prdc
from dfkd_lib.metrics.distances import (
    check_features,
    frechet_distance_from_features,
    kernel_distance,
)
from dfkd_lib.metrics.doubts import collapse_doubts, missing_doubts, singular_doubts
from dfkd_lib.metrics.score import score

BUDGET = 1e12  # floating point operations for the whole and again for all classes: about a minute each on 2 cores


class Features(NamedTuple):
    """What a network makes of images: values float32 (N, D), labels int64 (N,), 0..K-1, logits (N, K) or None.

    space: name of the network and the place in it; measures of different spaces mean nothing beside each other.
    """

    values: Tensor
    labels: Tensor
    logits: Tensor | None
    space: str


@dataclass(frozen=True)
class Row:
    """The measures of all images or of one class, NaN where they cannot be taken; rounds: bootstrap replicates done."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str
    images: int
    real_images: int
    distance: Number = math.nan
    low: Number = math.nan
    high: Number = math.nan
    kid: Number = math.nan
    kid_std: Number = math.nan
    precision: Number = math.nan
    recall: Number = math.nan
    density: Number = math.nan
    coverage: Number = math.nan
    score: Number = math.nan
    score_low: Number = math.nan
    score_high: Number = math.nan
    rounds: int = 0
    kid_subset: int = 0


TITLES = {"name": "class", "distance": "Fréchet distance", "kid": "KID", "kid_std": "KID std"}
COLUMNS = {
    field.name: TITLES.get(field.name, field.name.replace("_", " "))
    for field in fields(Row)
    if field.name not in ("rounds", "kid_subset")
}


@dataclass(frozen=True)
class Measures:
    """What `measure` found: rows ("all", then each class), nearness of made images to each other and to real ones.

    warnings: full sentences, each a reason not to take the numbers as they stand; empty if there is none.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    space: str
    dimensions: int
    neighbours: int
    rows: tuple[Row, ...]
    duplicates: Nearness
    copies: Nearness
    warnings: list[str]

    def table(self, classes: Sequence[str] | None = None):
        """A DataFrame, one row for all images and one a class, called by `classes` or by number."""
        from pandas import DataFrame

        frame = DataFrame(
            [{title: getattr(row, key) for key, title in COLUMNS.items()} for row in self.rows]
        )
        if classes is not None:
            frame["class"] = ["all", *classes]
        return frame

    def as_dict(self) -> dict:
        """Everything as JSON can hold it; NaN becomes None, which JSON has."""
        return json.loads(TypeAdapter(Measures).dump_json(self))

    @classmethod
    def from_dict(cls, saved: dict) -> "Measures":
        """The measures that `as_dict` saved.

        Raises:
            WorkbenchError: if a part is missing or unknown.
        """
        try:
            return TypeAdapter(cls).validate_python(saved)
        except ValidationError as error:
            raise WorkbenchError(
                "these are no saved measures",
                expected=", ".join(field.name for field in fields(cls)),
                got=error,
                fix="measure again",
            ) from error


def measure(
    real: Features,
    made: Features,
    num_classes: int,
    rounds: int = 100,
    seed: int = 0,
    k: int = 5,
    seen: Features | None = None,
) -> Measures:
    """Every measure of made images against real ones, overall and for each of `num_classes` classes.

    The 95 % interval of a Fréchet distance comes from resampling both sides' images with replacement. Resampled images
    repeat, so each replicate's covariance has less rank and its distance is larger than the estimate: percentiles of the
    replicates would often not even hold the estimate. So the interval is the spread of the replicates about their own
    mean, placed at the estimate and cut off at 0: how far the number would move with other images; for a distance that
    is all noise it is too wide. It does not undo the estimate's own bias, which is upwards and of the order of D / N:
    compare makers at equal numbers of images only. The shares of the classes vary in the replicates, too.
    High dimensions get fewer rounds (`Row.rounds`, at least 20 if so many are asked), so that the time is bounded.
    A class's score is near 1 if the classifier tells all its images as one class.

    Args:
        rounds: bootstrap replicates; 0 gives no intervals.
        k: neighbours of precision, recall, density and coverage.
        seen: the real images that the maker was trained on, where `real` are others; copies are searched
            among these.

    Raises:
        WorkbenchError: on different feature spaces or dimensions, NaN, labels or logits that do not fit, no more than
            k images on a side. A class with no more than k images gives NaN and a warning instead.
    """
    _check(real, made, seen, num_classes, k)
    generator = torch.Generator().manual_seed(seed)
    rows = [_row("all", real, made, rounds, generator, k, BUDGET)]
    for label in range(num_classes):
        mine, theirs = _only(real, label), _only(made, label)
        if min(len(mine.values), len(theirs.values)) <= k:
            rows.append(Row(str(label), len(theirs.values), len(mine.values)))
        else:
            rows.append(_row(str(label), mine, theirs, rounds, generator, k, BUDGET / num_classes))
    duplicates = near_duplicates(made.values, real.values, seed=seed)
    copies = (
        memorisation(made.values, real.values)
        if seen is None
        else memorisation(made.values, seen.values, real.values)
    )
    sizes = [(row.name, row.images, row.real_images) for row in rows]
    warnings = [
        *singular_doubts(sizes, made.values.shape[1], k),
        *missing_doubts(sizes[1:], k),
        *collapse_doubts(real.labels, made.logits, num_classes, duplicates, copies),
    ]
    return Measures(made.space, made.values.shape[1], k, tuple(rows), duplicates, copies, warnings)


def _only(side: Features, label: int) -> Features:
    of_class = side.labels == label
    return Features(
        side.values[of_class],
        side.labels[of_class],
        None if side.logits is None else side.logits[of_class],
        side.space,
    )


def _row(
    name: str,
    real: Features,
    made: Features,
    rounds: int,
    generator: torch.Generator,
    k: int,
    budget: float,
) -> Row:
    distance = frechet_distance_from_features(made.values, real.values)
    kernel = kernel_distance(made.values, real.values)
    images = len(real.values) + len(made.values)
    done = affordable(rounds, images, span_dimensions(real.values, made.values), budget)
    low, high = spread_interval(
        distance, frechet_replicates(real.values, made.values, done, generator)
    )
    scored = {}
    if made.logits is not None:
        value = score(made.logits)
        replicates = score_replicates(made.logits, rounds, generator) if rounds else torch.empty(0)
        ends = spread_interval(value, replicates, 1.0, float(made.logits.shape[1]))
        scored = dict(zip(("score", "score_low", "score_high"), (value, *ends), strict=True))
    return Row(
        name,
        len(made.values),
        len(real.values),
        distance,
        low,
        high,
        kernel.mean,
        kernel.std,
        **prdc(real.values, made.values, k)._asdict(),
        **scored,
        rounds=done,
        kid_subset=kernel.subset_size,
    )


def _check(real: Features, made: Features, seen: Features | None, num_classes: int, k: int) -> None:
    for name, side in {
        "real images": real,
        "made images": made,
        "images seen in training": seen,
    }.items():
        if side is None:
            continue
        if (
            side.space != made.space
            or side.values.ndim != 2
            or side.values.shape[1] != made.values.shape[1]
        ):
            raise WorkbenchError(
                "features of different spaces cannot be compared",
                where=name,
                expected=f"{made.space}, (N, {made.values.shape[-1]})",
                got=f"{side.space}, {tuple(side.values.shape)}",
                fix="take every side with the same feature network",
            )
        check_features(side.values, name)
        _check_labels(name, side, num_classes)
        if len(side.values) <= k:
            raise WorkbenchError(
                "too few images to measure",
                expected=f"more than k = {k}",
                got=len(side.values),
                where=name,
                fix="give more images or a smaller k",
            )


def _check_labels(name: str, side: Features, num_classes: int) -> None:
    count = len(side.values)
    if (
        side.labels.shape != (count,)
        or not ((side.labels >= 0) & (side.labels < num_classes)).all()
    ):
        raise WorkbenchError(
            "labels do not fit the images",
            expected=f"({count},), 0..{num_classes - 1}",
            where=name,
            got=f"{tuple(side.labels.shape)}, {side.labels.unique().tolist()[:20]}",
            fix="give one label an image, and the number of classes",
        )
    if side.logits is not None and (
        side.logits.shape != (count, num_classes) or not side.logits.isfinite().all()
    ):
        raise WorkbenchError(
            "logits do not fit the images",
            expected=f"finite, ({count}, {num_classes})",
            where=name,
            got=tuple(side.logits.shape),
            fix="take them with a classifier of these classes, or give None",
        )
