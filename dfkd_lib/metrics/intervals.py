"""Means with confidence intervals over seeds, and paired differences: what a comparison needs to mean something."""

import itertools
import math
from collections.abc import Hashable, Sequence

import numpy as np

from dfkd_lib.core import WorkbenchError

# Differences of equal shares, times 100, differ by rounding: a spread this small beside the values is none.
ROUNDING = 1e-9
FEWEST = 3  # values behind an interval that is shown: of two, Student's t is 12.7 standard errors
EXACT_CLUSTERS = 7  # up to 7! = 5,040 orders are all tried, beyond that as many as asked are drawn


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """(mean, half width of the Student-t interval) of independent values; half width NaN for a single one.

    Raises:
        WorkbenchError: without any value, or with one that is not finite.
    """
    values = [float(v) for v in values]
    if not values or not all(math.isfinite(v) for v in values):
        raise WorkbenchError(
            "no interval of these values", expected="at least one finite number", got=values
        )
    count = len(values)
    mean = sum(values) / count
    if count == 1:
        return mean, math.nan
    from scipy.stats import t

    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (count - 1))
    return mean, float(t.ppf(0.5 + confidence / 2, count - 1)) * spread / math.sqrt(count)


def shown_interval(values: Sequence[float]) -> tuple[float, float]:
    """(mean, half width of the 95 % interval) to be shown: the half width is NaN with fewer than three values."""
    mean, half = mean_interval(values)
    return mean, half if len(values) >= FEWEST else math.nan


def interval_text(values: Sequence[float], spec: str = ".2f", unit: str = "") -> str:
    """ "mean ± half width of the 95 % interval"; with fewer than three values, too few for one, these and their number.

    Args:
        values: one or more.
        spec: how a value is written.
        unit: written once, at the end.
    """
    if len(values) < FEWEST:
        texts = ", ".join(f"{v:{spec}}" for v in values)
        return texts + unit + (f" (n = {len(values)})" if len(values) > 1 else "")
    mean, half = mean_interval(values)
    return f"{mean:{spec}} ± {half:{spec}}{unit}"


def paired_difference(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> dict:
    """Mean of b − a over pairs (same seed), its t interval and the paired t test's p.

    Returns:
        {"difference", "low", "high", "p", "pairs"}; NaN for interval and p with fewer than two pairs. If all pairs differ
        by the same amount the interval has no width and p is NaN: a t test has nothing to hold the difference against.

    Raises:
        WorkbenchError: if the lengths differ.
    """
    if len(a) != len(b):
        raise WorkbenchError("pairs need as many values on both sides", expected=len(a), got=len(b))
    differences = [y - x for x, y in zip(a, b, strict=True)]
    mean, half = mean_interval(differences, confidence)
    if half <= ROUNDING * max(map(abs, [*a, *b])):
        half = 0.0
    p = math.nan
    if len(a) > 1 and half > 0:
        from scipy.stats import ttest_rel

        p = float(ttest_rel(b, a).pvalue)
    return {"difference": mean, "low": mean - half, "high": mean + half, "p": p, "pairs": len(a)}


def accuracy_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval (low, high) of an accuracy measured on `total` independent test images."""
    from scipy.stats import binomtest

    ends = binomtest(correct, total).proportion_ci(confidence, method="wilson")
    return float(ends.low), float(ends.high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of p values, in their order: each at most 1, in the same order of size.

    The family is the finite values; NaN (not tested) stays NaN and does not count.

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure (Scandinavian Journal of Statistics 6, 1979).
    """
    corrected, most = [math.nan] * len(p_values), 0.0
    tested = sorted((float(p), i) for i, p in enumerate(p_values) if math.isfinite(p))
    for place, (p, i) in enumerate(tested):
        most = max(most, min(1.0, (len(tested) - place) * p))
        corrected[i] = most
    return corrected


def correlation(
    x: Sequence[float],
    y: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    rounds: int = 4000,
    seed: int = 0,
) -> dict:
    """Correlations of x and y where only `clusters` (rows of several seeds) are independent, with a bootstrap interval.

    The interval is of Pearson's: percentiles over whole clusters drawn with replacement, samples in which x or y is
    constant left out. With fewer than some ten clusters it is rough, mostly too narrow. p asks whether clusters differ in
    x and y together: the share of orders of the clusters' mean y that are as correlated with their mean x, up or down, as
    the true one; all orders up to 7 clusters, `rounds` drawn beyond.

    Args:
        x: finite, n of them.
        y: likewise.
        clusters: name of each one's cluster; None: each is its own.
        rounds: samples of the bootstrap, and orders drawn.
        seed: of what is drawn.

    Returns:
        {"pearson", "low", "high", "spearman", "p", "count", "clusters"}; all NaN but the last two with fewer than three
        clusters, or where x or y is constant.

    Raises:
        WorkbenchError: if lengths differ or a value is not finite.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    names = list(range(len(x))) if clusters is None else list(clusters)
    if not len(x) == len(y) == len(names) or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise WorkbenchError(
            "no correlation of these values",
            expected="as many finite x as y, each with its cluster",
            got=f"{len(x)} x, {len(y)} y, {len(names)} clusters",
            where="correlation",
            fix="leave out pairs of which a value is missing",
        )
    order = {name: i for i, name in enumerate(dict.fromkeys(names))}
    found = dict.fromkeys(("pearson", "low", "high", "spearman", "p"), math.nan)
    found |= {"count": len(x), "clusters": len(order)}
    if len(order) < 3 or not (_varies(x) and _varies(y)):
        return found
    from scipy.stats import spearmanr

    x, y = x - x.mean(), y - y.mean()
    # Moments of each cluster: a sample's correlation needs only how often each of them was drawn.
    member = np.equal.outer(range(len(order)), [order[name] for name in names]).astype(float)
    moments = member @ np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], 1)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(order), [1 / len(order)] * len(order), rounds)
    ends = np.nanquantile(_pearson(drawn @ moments), [0.025, 0.975])
    means = moments[:, 1:3] / moments[:, :1]
    return found | {
        "pearson": float(_pearson(moments.sum(0))),
        "low": float(ends[0]),
        "high": float(ends[1]),
        "spearman": float(spearmanr(x, y).statistic),
        "p": _order_test(*means.T, rounds, rng),
    }


def _varies(values: np.ndarray) -> bool:
    return bool(np.ptp(values) > ROUNDING * np.abs(values).max())


def _pearson(moments: np.ndarray) -> np.ndarray:
    """Pearson's correlation from sums of 1, x, y, x², y², xy along the last axis; NaN where x or y is constant."""
    n, x, y, xx, yy, xy = np.moveaxis(moments, -1, 0)
    spread_x, spread_y = xx - x * x / n, yy - y * y / n
    constant = (spread_x <= ROUNDING * xx) | (spread_y <= ROUNDING * yy)
    return np.where(
        constant, np.nan, (xy - x * y / n) / np.sqrt(np.where(constant, 1, spread_x * spread_y))
    ).clip(-1, 1)


def _order_test(x: np.ndarray, y: np.ndarray, rounds: int, rng: np.random.Generator) -> float:
    """The p of no association, two-sided, by putting y in all orders, or in `rounds` drawn ones and its own."""
    if not (_varies(x) and _varies(y)):
        return math.nan
    places = (
        np.array(list(itertools.permutations(range(len(y)))))
        if len(y) <= EXACT_CLUSTERS
        else np.vstack(
            [np.arange(len(y)), rng.permuted(np.tile(np.arange(len(y)), (rounds, 1)), axis=1)]
        )
    )
    products = np.abs((y - y.mean())[places] @ (x - x.mean()))
    # The first order is the true one.
    return float((products >= products[0] * (1 - ROUNDING)).mean())
