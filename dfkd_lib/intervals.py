"""Means with confidence intervals over seeds, and paired differences: what a comparison needs to mean something."""

import math
from collections.abc import Sequence

from dfkd_lib.errors import WorkbenchError


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """(mean, half width of the Student-t interval) of independent values; half width NaN for a single one.

    Raises:
        WorkbenchError: without any value, or with one that is not finite.
    """
    values = [float(v) for v in values]
    if not values or not all(math.isfinite(v) for v in values):
        raise WorkbenchError("no interval of these values", expected="at least one finite number", got=values)
    count = len(values)
    mean = sum(values) / count
    if count == 1:
        return mean, math.nan
    from scipy.stats import t

    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (count - 1))
    return mean, float(t.ppf(0.5 + confidence / 2, count - 1)) * spread / math.sqrt(count)


def paired_difference(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> dict:
    """Mean of b − a over pairs (same seed), its t interval and the paired t test's p.

    Returns:
        {"difference", "low", "high", "p", "pairs"}; NaN for interval and p with fewer than two pairs.

    Raises:
        WorkbenchError: if the lengths differ.
    """
    if len(a) != len(b):
        raise WorkbenchError("pairs need as many values on both sides", expected=len(a), got=len(b))
    differences = [y - x for x, y in zip(a, b, strict=True)]
    mean, half = mean_interval(differences, confidence)
    p = math.nan
    if len(a) > 1 and half > 0:
        from scipy.stats import ttest_rel

        p = float(ttest_rel(b, a).pvalue)
    return {"difference": mean, "low": mean - half, "high": mean + half, "p": p, "pairs": len(a)}


def accuracy_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval (low, high) of an accuracy measured on `total` independent test images."""
    from scipy.stats import norm

    z, share = float(norm.ppf(0.5 + confidence / 2)), correct / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return centre - half, centre + half
