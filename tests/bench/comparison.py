"""A comparison of ours with peers: ways to do the same, which take turns and are compared within a round.

On a machine that others use too, two runs a minute apart are not alike, but those of one round nearly are: so a ratio is
taken within each round, and its median and quartiles over rounds are shown.
"""

import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from dfkd_lib.core import WorkbenchError

FOREVER = 10**6  # rounds
Figures = dict[str, float]


class Ways(NamedTuple):
    """What takes turns.

    Args:
        run: by name. A way that returns a float has measured itself; else it is timed, in seconds.
        note: what is known of them all, such as how equal their results are.
    """

    run: dict[str, Callable[[], object]]
    note: str = ""


class Pair(NamedTuple):
    """Ours, beside which peer (None: alone), and what is asked of it in words."""

    ours: str
    peer: str | None
    asked: str = ""


@dataclass(frozen=True)
class Comparison:
    """One line of the table of comparisons.

    Args:
        name: the bench it belongs to. setting: at which size.
        ways: makes the ways, in a context that lasts as long as they run; raises WorkbenchError if they do not do the same.
        pairs: which ways are compared.
        unit: of the figures shown, and per: so many of them a second, or, of "images/s", so many images a run.
        seconds: after which no further round begins. least, most: rounds. warm: whether all run once untimed.
    """

    name: str
    setting: str
    ways: Callable[[], AbstractContextManager[Ways]]
    pairs: tuple[Pair, ...]
    unit: str = "ms"
    per: float = 1000.0
    seconds: float = 20.0
    least: int = 2
    most: int = FOREVER
    warm: bool = True


@dataclass(frozen=True)
class Row:
    """One figure.

    Args:
        bench, what, setting, peer: what is compared with whom.
        ours, theirs: medians over rounds in `unit`, or None.
        ratio: how many times as fast ours is within a round: [25 % quartile, median, 75 % quartile], or None.
        note: how it is to be read. failed: whether the comparison broke off.
    """

    bench: str
    what: str
    setting: str
    peer: str = ""
    ours: float | None = None
    theirs: float | None = None
    unit: str = ""
    ratio: list[float] | None = None
    rounds: int = 0
    asked: str = ""
    note: str = ""
    failed: bool = False


def measure(comparison: Comparison, quick: bool = False) -> Iterator[Row]:
    """The rows of a comparison; quick: at most two rounds."""
    with comparison.ways() as ways:
        if comparison.warm:
            for way in ways.run.values():
                way()
        most = min(2, comparison.most) if quick else comparison.most
        rounds = take_turns(ways.run, comparison.seconds, min(comparison.least, most), most)
        yield from rows(comparison, rounds, ways.note)


def take_turns(
    ways: dict[str, Callable[[], object]], seconds: float, least: int = 2, most: int = FOREVER
) -> list[Figures]:
    """The figure of each way by name, in rounds of random order; none begins after so many seconds once there are `least`."""
    rounds: list[Figures] = []
    start, shuffled = time.perf_counter(), random.Random(0)
    while len(rounds) < least or len(rounds) < most and time.perf_counter() - start < seconds:
        order = shuffled.sample(list(ways), len(ways))
        rounds.append({name: figure(ways[name]) for name in order})
    return rounds


def figure(way: Callable[[], object]) -> float:
    """What a way has measured of itself, or how many seconds it took, the device's work included."""
    _wait_for_device()
    start = time.perf_counter()
    result = way()
    _wait_for_device()
    return result if isinstance(result, float) else time.perf_counter() - start


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def rows(comparison: Comparison, rounds: list[Figures], note: str = "") -> Iterator[Row]:
    """A row for each pair."""

    def median(name: str) -> float:
        middle, per = statistics.median(each[name] for each in rounds), comparison.per
        return per / middle if comparison.unit.endswith("/s") else per * middle

    for ours, peer, asked in comparison.pairs:
        row = Row(
            comparison.name,
            ours,
            comparison.setting,
            peer or "",
            median(ours),
            unit=comparison.unit,
            rounds=len(rounds),
            asked=asked,
            note=note,
        )
        if peer is not None:
            ratios = [each[peer] / each[ours] for each in rounds]
            quartiles = np.quantile(ratios, (0.25, 0.5, 0.75)).tolist()
            row = replace(row, theirs=median(peer), ratio=quartiles)
        yield row


def agree(found: dict[str, object], tolerance: float, where: str) -> str:
    """A note on how equal the ways' results (numbers, lists, tensors of one shape) are to those of the first.

    Raises:
        WorkbenchError: if one is farther than `tolerance` times the largest of the first.
    """
    values = {name: torch.as_tensor(value).double().cpu() for name, value in found.items()}
    first, *others = values
    apart = {name: (values[name] - values[first]).abs().nan_to_num(torch.inf) for name in others}
    worst = max(apart, key=lambda name: apart[name].max())
    far = float(apart[worst].max() / values[first].abs().max())
    if not far <= tolerance:
        raise WorkbenchError(
            "what is compared does not do the same",
            expected=f"results of {worst} and of {first} apart by at most {tolerance}",
            got=f"{far:.2g}",
            where=where,
        )
    return f"equal to {far:.0e}"
