"""One table of every measure of made images against real ones, overall and by class, with what makes it doubtful."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from pydantic import TypeAdapter
from torch import Tensor

from dfkd_lib.core import WorkbenchError
from dfkd_lib.metrics import bootstrap
from dfkd_lib.metrics.coverage import Nearness, Number, memorisation, near_duplicates, prdc
from dfkd_lib.metrics.distances import frechet_distance_from_features, kernel_distance
from dfkd_lib.metrics.doubts import collapse_doubts, size_doubts
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

    def of_class(self, label: int) -> "Features":
        """Those of one class."""
        mine = self.labels == label
        logits = None if self.logits is None else self.logits[mine]
        return Features(self.values[mine], self.labels[mine], logits, self.space)


@dataclass(frozen=True)
class Row:
    """The measures of all images or of one class, NaN where they cannot be taken."""

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


TITLES = {"name": "class", "distance": "Fréchet distance", "kid": "KID", "kid_std": "KID std"}


@dataclass(frozen=True)
class Measures:
    """What `measure` found: rows ("all", then each class), nearness of made images to each other and to real ones.

    warnings: full sentences, each a reason not to take the numbers as they stand; empty if there is none.
    """

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

        frame = DataFrame(map(asdict, self.rows))
        frame = frame.rename(columns=lambda name: TITLES.get(name, name.replace("_", " ")))
        if classes is not None:
            frame["class"] = ["all", *classes]
        return frame

    def as_dict(self) -> dict:
        """Everything as JSON can hold it; NaN becomes None, which JSON has."""
        return json.loads(TypeAdapter(Measures).dump_json(self))

    @classmethod
    def from_dict(cls, saved: dict) -> "Measures":
        """The measures that `as_dict` saved."""
        return TypeAdapter(cls).validate_python(saved)


def measure(
    real: Features,
    made: Features,
    num_classes: int,
    rounds: int = 100,
    seed: int = 0,
    k: int = 5,
) -> Measures:
    """Every measure of made images against real ones, overall and for each of `num_classes` classes.

    The 95 % interval of a Fréchet distance comes from resampling both sides' images with replacement. Resampled images
    repeat, so each replicate's covariance has less rank and its distance is larger than the estimate: percentiles of the
    replicates would often not even hold the estimate. So the interval is the spread of the replicates about their own
    mean, placed at the estimate and cut off at 0: how far the number would move with other images; for a distance that
    is all noise it is too wide. It does not undo the estimate's own bias, which is upwards and of the order of D / N:
    compare makers at equal numbers of images only. The shares of the classes vary in the replicates, too.
    High dimensions get fewer rounds (at least 20 if so many are asked), so that the time is bounded.
    A class's score is near 1 if the classifier tells all its images as one class.

    Args:
        rounds: bootstrap replicates; 0 gives no intervals.
        k: neighbours of precision, recall, density and coverage.

    Raises:
        WorkbenchError: on different feature spaces or dimensions, NaN, labels or logits that do not fit, no more than
            k images on a side. A class with no more than k images gives NaN and a warning instead.
    """
    for name, side in (("real", real), ("made", made)):
        _check(f"images {name}", side, made.space, num_classes)
    generator = torch.Generator().manual_seed(seed)
    rows = [_row("all", real, made, rounds, generator, k, BUDGET)]
    for label in range(num_classes):
        mine, theirs = real.of_class(label), made.of_class(label)
        if min(len(mine.values), len(theirs.values)) <= k:
            rows.append(Row(str(label), len(theirs.values), len(mine.values)))
        else:
            rows.append(_row(str(label), mine, theirs, rounds, generator, k, BUDGET / num_classes))
    duplicates = near_duplicates(made.values, real.values, seed=seed)
    copies = memorisation(made.values, real.values)
    dimensions = made.values.shape[1]
    warnings = size_doubts([(row.name, row.images, row.real_images) for row in rows], dimensions, k)
    warnings += collapse_doubts(real.labels, made.logits, num_classes, duplicates, copies)
    return Measures(made.space, dimensions, k, tuple(rows), duplicates, copies, warnings)


def _row(
    name: str,
    real: Features,
    made: Features,
    rounds: int,
    generator: torch.Generator,
    k: int,
    budget: float,
) -> Row:
    """All measures of these images; `budget` is of the bootstrap, see `bootstrap.affordable`."""
    distance = frechet_distance_from_features(made.values, real.values)
    images = len(real.values) + len(made.values)
    dimensions = bootstrap.span_dimensions(real.values, made.values)
    done = bootstrap.affordable(rounds, images, dimensions, budget)
    replicates = bootstrap.frechet_replicates(real.values, made.values, done, generator)
    low, high = bootstrap.spread_interval(distance, replicates)
    scored = {}
    if made.logits is not None:
        replicates = bootstrap.score_replicates(made.logits, rounds, generator)
        scored["score"] = score(made.logits)
        scored["score_low"], scored["score_high"] = bootstrap.spread_interval(
            scored["score"], replicates, 1.0, float(made.logits.shape[1])
        )
    kernel = kernel_distance(made.values, real.values)
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
    )


def _check(name: str, side: Features, space: str, num_classes: int) -> None:
    """WorkbenchError unless a side is of that feature space, with labels and logits of its images."""
    if side.space != space:
        raise WorkbenchError(
            "features of different spaces cannot be compared",
            where=name,
            expected=space,
            got=side.space,
            fix="take every side with the same feature network",
        )
    count, labels, logits = len(side.values), side.labels, side.logits
    fits = labels.shape == (count,) and ((labels >= 0) & (labels < num_classes)).all()
    if logits is not None:
        fits = fits and logits.shape == (count, num_classes) and logits.isfinite().all()
    if not fits:
        shapes = f"{tuple(labels.shape)}, {None if logits is None else tuple(logits.shape)}"
        raise WorkbenchError(
            "labels or logits do not fit the images",
            expected=f"({count},), 0..{num_classes - 1}, and ({count}, {num_classes}), finite, or None",
            where=name,
            got=f"{shapes}; labels {labels.unique().tolist()[:20]}",
            fix="give one label an image, the number of classes, and logits of a classifier of these",
        )
