"""Intervals, corrected p values, correlations and paired differences against values worked out by hand."""

import math

import numpy as np
import pytest
from scipy.stats import t

from dfkd_lib.core import WorkbenchError
from dfkd_lib.metrics import intervals

KEYS = ("pearson", "low", "high", "spearman", "p")


def test_holm_by_hand():
    # Sorted 0.005 0.01 0.03 0.04, times 4 3 2 1; the last may not fall below the one before.
    assert intervals.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert intervals.holm([0.5, 0.6]) == [1.0, 1.0] and intervals.holm([]) == []
    # Only what was tested counts.
    found = intervals.holm([math.nan, 0.01, math.nan, 0.02])
    assert math.isnan(found[0]) and math.isnan(found[2])
    assert found[1::2] == pytest.approx([0.02, 0.02])


def test_the_paired_interval_is_the_t_interval_of_the_differences():
    # 1, 2, 3: mean 2, deviation 1
    found = intervals.paired_difference([90.0, 95, 80], [91.0, 97, 83])
    half = t.ppf(0.975, 2) / math.sqrt(3)
    assert found["difference"] == 2
    assert (found["low"], found["high"]) == pytest.approx((2 - half, 2 + half))
    assert found["p"] == pytest.approx(2 * t.sf(2 * math.sqrt(3), 2))
    with pytest.raises(WorkbenchError, match="as many values"):
        intervals.paired_difference([1.0], [1.0, 2.0])


@pytest.mark.parametrize("shift", [0.0, 0.013])  # the second leaves a spread of 2e-14
def test_equal_differences_are_not_proof_by_rounding(shift):
    a = [100 * 0.971, 100 * 0.963, 100 * 0.9581]
    b = [100 * round(value + shift, 4) for value in (0.971, 0.963, 0.9581)]
    found = intervals.paired_difference(a, b)
    assert math.isnan(found["p"]) and found["low"] == found["high"] == pytest.approx(100 * shift)


def test_correlation_by_hand():
    # Deviations of x: -2 -1 0 1 2, of y: -1.4 -0.4 -1.4 1.6 1.6, of its ranks: -1.5 0 -1.5 1.5 1.5.
    found = intervals.correlation([1, 2, 3, 4, 5], [1, 2, 1, 4, 4])
    assert found["pearson"] == pytest.approx(8 / math.sqrt(92))
    assert found["spearman"] == pytest.approx(7.5 / math.sqrt(90))
    assert found["low"] < found["pearson"] <= found["high"]
    assert (found["count"], found["clusters"]) == (5, 5)
    falling = intervals.correlation([1, 2, 3, 4, 5], [-1, -2, -1, -4, -4])
    assert falling["pearson"] == pytest.approx(-8 / math.sqrt(92))


def test_the_order_test_counts_orders():
    even = intervals.correlation([1, 2, 3, 4], [2, 4, 6, 8])
    assert even["p"] == pytest.approx(2 / 24)  # it and its reverse
    uneven = intervals.correlation([1, 2, 3, 9], [2, 4, 6, 18])
    assert uneven["p"] == pytest.approx(1 / 24)  # no other is as straight
    many = intervals.correlation(range(12), range(12), rounds=999)
    assert many["p"] == pytest.approx(1 / 1000)


def test_the_order_test_weighs_clusters_alike_whatever_their_size():
    x, y, names = [1, 2, 3, 9, 9, 9], [2, 4, 6, 18, 18, 18], "abcddd"
    assert intervals.correlation(x, y, names)["p"] == pytest.approx(1 / 24)
    even = intervals.correlation([1, 1, 1, 2, 3, 4], [2, 2, 2, 4, 6, 8], "aaabcd")
    assert even["p"] == pytest.approx(2 / 24)  # as of four even points: the reverse is as straight


def test_repeating_a_cluster_s_points_adds_no_evidence():
    rng = np.random.default_rng(3)
    x = rng.normal(size=9)
    y = x + rng.normal(size=9)
    once, names = intervals.correlation(x, y), np.repeat(np.arange(9), 5)
    many = intervals.correlation(np.repeat(x, 5), np.repeat(y, 5), names)
    assert [many[k] for k in KEYS] == pytest.approx([once[k] for k in KEYS])
    naive = intervals.correlation(np.repeat(x, 5), np.repeat(y, 5))
    assert naive["high"] - naive["low"] < 0.7 * (once["high"] - once["low"])


def test_the_interval_holds_the_true_correlation_about_as_often_as_it_says():
    rng, inside = np.random.default_rng(0), 0
    for _ in range(120):
        centres = rng.normal(size=(30, 1, 2)) @ np.linalg.cholesky([[1, 0.6], [0.6, 1]]).T
        points = (centres + 0.5 * rng.normal(size=(30, 3, 2))).reshape(-1, 2)
        found = intervals.correlation(*points.T, np.repeat(np.arange(30), 3), rounds=400)
        inside += found["low"] <= 0.6 / 1.25 <= found["high"]
    assert 0.85 <= inside / 120 <= 0.995


def test_without_three_clusters_or_without_spread_nothing_is_said():
    two, level = ([1, 2, 3, 4], [1, 2, 3, 5], "aabb"), ([1, 2, 3], [0.1 * 3, 0.3, 0.3], "abc")
    for x, y, clusters in (two, level, (level[1], level[0], "abc"), ([], [], "")):
        found = intervals.correlation(x, y, clusters)
        assert all(math.isnan(found[k]) for k in KEYS) and found["clusters"] == len(set(clusters))


def test_correlation_refuses_what_is_not_there():
    with pytest.raises(WorkbenchError, match="finite"):
        intervals.correlation([1, 2, math.nan], [1, 2, 3])
    with pytest.raises(WorkbenchError, match="3 x, 2 y"):
        intervals.correlation([1, 2, 3], [1, 2])


def test_intervals_by_hand():
    mean, half = intervals.mean_interval([1.0, 2.0, 3.0])
    # t table, 2 degrees of freedom
    assert mean == 2 and half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-5)
    assert math.isnan(intervals.mean_interval([1.0])[1])
    low, high = intervals.accuracy_interval(50, 100)
    assert (low, high) == (pytest.approx(0.4038, abs=1e-3), pytest.approx(0.5962, abs=1e-3))
    for values in ([], [1.0, math.nan]):
        with pytest.raises(WorkbenchError, match="finite"):
            intervals.mean_interval(values)
