"""How long a run still takes, from what its parts took before."""

import heapq
import json
import re
import sys
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from statistics import mean

import numpy as np
from threadpoolctl import threadpool_limits

from dfkd_lib.core import save_json
from dfkd_lib.pipeline.known import TIMES

# Preset -> {"product": of the machine, see `product_rate`, "took": {part: seconds}}, of one run of all notebooks.
SHIPPED = Path(__file__).with_name(TIMES)
SIDE = 512  # of the matrices whose product tells how fast a machine is
DOUBT = 120.0  # seconds of parts that must have ended in a run for its own pace to count half
STRANGE = 0.25  # share of the trainings that are left of which nothing need be known


class Estimate:
    """The seconds that the rest of a run takes, learned from earlier runs and corrected by what this one has seen.

    Args:
        known: {part of the run: seconds}, of an earlier run, on whatever machine.
    """

    def __init__(self, known: Mapping[str, float]):
        self.known, self.took = known, {}

    def ended(self, name: str, seconds: float) -> None:
        """Take in how long a part took in this run."""
        self.took[name] = round(seconds, 2)

    def left(
        self, waiting: Mapping[str, Collection[str]], running: Mapping[str, float], workers: int
    ) -> float | None:
        """Seconds until all parts have ended, each begun as soon as a worker is free and what it needs has ended.

        Args:
            waiting: part → the parts that must end before, in the order of their turns.
            running: part → seconds that it has run for.

        Returns:
            None while too little is known: nothing of any part, or nothing of many of the trainings.
        """
        # What a notebook took says little: it may have found all that it made before.
        seen = [name for name in self.took if ": " in name and self.known.get(name, 0) > 0]
        known, took = (DOUBT + sum(map(of.get, seen)) for of in (self.known, self.took))
        ratio = took / known
        times = {name: ratio * seconds for name, seconds in self.known.items()} | self.took
        alike: dict[str, list[float]] = {}
        for name, seconds in times.items():
            alike.setdefault(_seedless(name), []).append(seconds)
        trainings = [name for name in (*waiting, *running) if ": " in name]
        strange = sum(_seedless(name) not in alike for name in trainings)
        if not times or strange > STRANGE * len(trainings):
            return None

        def expected(name: str) -> float:
            if name in self.known:
                return ratio * self.known[name]
            return mean(alike.get(_seedless(name)) or times.values())

        ends = {name: max(0.0, expected(name) - spent) for name, spent in running.items()}
        free, rest = [*ends.values(), *[0.0] * (workers - len(ends))], dict(waiting)
        heapq.heapify(free)
        while rest:
            starts = {
                name: max((ends.get(other, 0.0) for other in needs), default=0.0)
                for name, needs in rest.items()
                if not rest.keys() & needs
            }
            name = min(starts, key=lambda name: max(starts[name], free[0]))
            ends[name] = max(starts[name], heapq.heappop(free)) + expected(name)
            heapq.heappush(free, ends[name])
            del rest[name]
        return max(ends.values(), default=0.0)


def _seedless(name: str) -> str:
    """The name of a part without the seed, by which trainings take as long as one another."""
    return re.sub(r", seed \d+$", "", name)


def shipped_seconds(profile: str) -> dict[str, float]:
    """What each part takes on this machine, by the run that the library ships and what both machines multiply; or {}."""
    run = json.loads(SHIPPED.read_text()).get(profile)
    if run is None:
        return {}
    scale = run["product"] / product_rate()
    return {name: scale * seconds for name, seconds in run["took"].items()}


def product_rate(seconds: float = 0.3) -> float:
    """Products of two float32 matrices of 512 × 512 that one thread of this machine computes in a second."""
    a = np.ones((SIDE, SIDE), np.float32)
    with threadpool_limits(1):  # several wait for one another where others are at work
        a @ a  # caches wake up
        start, done = time.perf_counter(), 0
        while (spent := time.perf_counter() - start) < seconds:
            a @ a
            done += 1
    return done / spent


def ship(folders: Iterable[Path]) -> None:
    """Take what the runs in these folders took, on this machine, as what is known of their presets everywhere."""
    shipped = json.loads(SHIPPED.read_text())
    for folder in folders:
        saved = json.loads((folder / "results.json").read_text())
        took = {name: round(seconds, 1) for name, seconds in sorted(saved["took"].items())}
        shipped[saved["profile"]] = {"product": round(product_rate(3.0)), "took": took}
    save_json(SHIPPED, shipped)


if __name__ == "__main__":
    ship(map(Path, sys.argv[1:]))
