"""What every bench returns: one row a comparison, timed in rounds in which all take turns.

On a machine that others use too, two runs a minute apart are not alike, but those of one round nearly are: so a ratio is
taken within each round, and its median and quartiles over rounds are shown.
"""

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

LEAST = 2  # rounds, for a range
NOT_INSTALLED = "not installed: pip install dfkd-workbench[bench]"
FASTER = ("images/s", "GFLOP/s")  # units of which more is better


class Effort(NamedTuple):
    """How long to measure: rounds of a comparison wanted, and a factor on the seconds after which none further begins."""

    rounds: int = 5
    seconds: float = 1.0


@dataclass(frozen=True)
class Row:
    """One comparison of ours with a peer.

    Args:
        bench, what, setting: which bench, what is compared, at which size. peer: with whom.
        ours, theirs: medians over rounds in `unit`, or None. ratio: how many times as fast as the peer ours is within a
            round: (25 % quartile, median, 75 % quartile), or None. rounds: so many.
        asked: what the figure should be, in words. note: why a figure is missing, or how it is to be read.
        failed: whether the bench broke off here.
    """

    bench: str
    what: str
    setting: str
    peer: str
    ours: float | None = None
    theirs: float | None = None
    unit: str = "ms"
    ratio: tuple[float, float, float] | None = None
    rounds: int = 0
    asked: str = ""
    note: str = ""
    failed: bool = False


def seconds(work: Callable) -> float:
    """How long one call takes, the device's work included; its result is thrown away after the clock has stopped."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = work()  # noqa: F841
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def take_turns(
    work: dict[str, Callable],
    limit: float,
    most: int = 10**6,
    least: int = LEAST,
    rare: tuple[str, ...] = (),
    every: int = 4,
) -> list[dict[str, float]]:
    """Seconds of each call by name, in rounds of random order.

    Args:
        limit: seconds after which no further round begins once there are `least`. most: rounds that are wanted.
        rare: names that take part in the first of so many (`every`) rounds only.
    """
    rounds, start, shuffle = [], time.perf_counter(), random.Random(0).shuffle
    while len(rounds) < least or len(rounds) < most and time.perf_counter() - start < limit:
        order = [name for name in work if name not in rare or len(rounds) % every == 0]
        shuffle(order)
        rounds.append({name: seconds(work[name]) for name in order})
    return rounds


def compared(
    rounds: list[dict[str, float]],
    mine: str,
    peer: str,
    bench: str,
    what: str,
    setting: str,
    unit: str = "ms",
    per: float = 1000,
    name: str = "",
    **more,
) -> Row:
    """The row of two contenders of these rounds' seconds.

    Args:
        per: what a second is in `unit` (1000 ms), or, where more is better, how much work (images) the seconds did.
        name: the peer's, where it is not that of the rounds. more: fields of Row.
    """
    both = [each for each in rounds if mine in each and peer in each]
    speed = unit in FASTER
    ours, theirs = (
        statistics.median(per / each[who] if speed else per * each[who] for each in both)
        for who in (mine, peer)
    )
    return Row(
        bench,
        what,
        setting,
        name or peer,
        ours,
        theirs,
        unit,
        quartiles([each[peer] / each[mine] for each in both]),
        len(both),
        **more,
    )


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """(25 % quartile, median, 75 % quartile); of one value that value."""
    low, middle, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    )
    return low, middle, high


def missing(bench: str, what: str, setting: str, peer: str) -> Row:
    """The row of a peer that is not installed."""
    return Row(bench, what, setting, peer, note=NOT_INSTALLED)
