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
    found = np.asarray(values, float)
    if not len(found) or not np.isfinite(found).all():
        raise WorkbenchError(
            "no interval of these values", expected="at least one finite number", got=values
        )
    mean, count = float(found.mean()), len(found)
    if count == 1:
        return mean, math.nan
    from scipy.stats import sem, t

    return mean, float(t.ppf(0.5 + confidence / 2, count - 1) * sem(found))


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


def percent_interval(mean: float, half: float) -> tuple[float, float]:
    """(low, high) of a mean share in percent ± `half`, bent so that it stays between 0 and 100: symmetric in the logit."""
    share, width = mean / 100, half / 100
    if not 0 < share < 1 or not math.isfinite(half):
        return mean - half, mean + half
    middle, width = math.log(share / (1 - share)), width / (share * (1 - share))
    low, high = (50 * (1 + math.tanh((middle + side) / 2)) for side in (-width, width))
    return low, high


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
    a, b = np.asarray(x, float), np.asarray(y, float)
    names = list(range(len(a))) if clusters is None else list(clusters)
    if not len(a) == len(b) == len(names) or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise WorkbenchError(
            "no correlation of these values",
            expected="as many finite x as y, each with its cluster",
            got=f"{len(a)} x, {len(b)} y, {len(names)} clusters",
            where="correlation",
            fix="leave out pairs of which a value is missing",
        )
    order = {name: i for i, name in enumerate(dict.fromkeys(names))}
    found = dict.fromkeys(("pearson", "low", "high", "spearman", "p"), math.nan)
    found |= {"count": len(a), "clusters": len(order)}
    if len(order) < 3 or not (_varies(a) and _varies(b)):
        return found
    from scipy.stats import spearmanr

    a, b = a - a.mean(), b - b.mean()
    # Moments of each cluster: a sample's correlation needs only how often each of them was drawn.
    member = np.equal.outer(range(len(order)), [order[name] for name in names]).astype(float)
    moments = member @ np.stack([np.ones_like(a), a, b, a * a, b * b, a * b], 1)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(order), [1 / len(order)] * len(order), rounds)
    low, high = np.nanquantile(_pearson(drawn @ moments), [0.025, 0.975])
    means = moments[:, 1:3] / moments[:, :1]
    return found | {
        "pearson": float(_pearson(moments.sum(0))),
        "low": float(low),
        "high": float(high),
        "spearman": float(spearmanr(a, b).statistic),
        "p": _order_test(means[:, 0], means[:, 1], rounds, rng),
    }


def _varies(values: np.ndarray) -> bool:
    return bool(np.ptp(values) > ROUNDING * np.abs(values).max())


def _pearson(moments: np.ndarray) -> np.ndarray:
    """Pearson's correlation from sums of 1, x, y, x², y², xy along the last axis; NaN where x or y is constant."""
    n, x, y, xx, yy, xy = np.moveaxis(moments, -1, 0)
    spread_x, spread_y = xx - x * x / n, yy - y * y / n
    varies = (spread_x > ROUNDING * xx) & (spread_y > ROUNDING * yy)
    scale = np.sqrt(np.where(varies, spread_x * spread_y, np.nan))
    return ((xy - x * y / n) / scale).clip(-1, 1)


def _order_test(x: np.ndarray, y: np.ndarray, rounds: int, rng: np.random.Generator) -> float:
    """The p of no association, two-sided, by putting y in all orders, or in `rounds` drawn ones and its own."""
    if not (_varies(x) and _varies(y)):
        return math.nan
    own = np.arange(len(y))
    if len(y) <= EXACT_CLUSTERS:
        places = np.array(list(itertools.permutations(own)))
    else:
        places = np.vstack([own, rng.permuted(np.tile(own, (rounds, 1)), axis=1)])
    products = np.abs((y - y.mean())[places] @ (x - x.mean()))
    # The first order is the true one.
    return float((products >= products[0] * (1 - ROUNDING)).mean())
