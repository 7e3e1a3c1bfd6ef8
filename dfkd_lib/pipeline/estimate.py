"""How long a run still takes, from what its parts took before."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from dfkd_lib.core import REPOSITORY, is_number

PUBLISHED = REPOSITORY / "reports" / "published"


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
        self, waiting: Iterable[str], running: Mapping[str, float], workers: int
    ) -> float | None:
        """Seconds until all parts have ended: those that wait, and those that have run for so many seconds.

        Returns:
            None while nothing is known of any part.
        """
        # What a notebook took says little: it may have found all that it made before.
        seen = [name for name in self.took if ": " in name and self.known.get(name, 0) > 0]
        ratio = 1.0
        if seen:
            ratio = sum(map(self.took.get, seen)) / sum(map(self.known.get, seen))
        all_known = [ratio * seconds for seconds in self.known.values()] + [*self.took.values()]
        if not all_known:
            return None
        usual = sum(all_known) / len(all_known)

        def expected(name: str) -> float:
            return ratio * self.known[name] if name in self.known else usual

        rest = [max(0.0, expected(name) - spent) for name, spent in running.items()]
        rest += map(expected, waiting)
        return max(sum(rest) / max(1, workers), max(rest, default=0.0))


def known_seconds(folder: Path, profile: str) -> dict[str, float]:
    """What each part of a run under a preset took when it was last made, by the results in a folder; {} without any."""
    try:
        saved = json.loads((folder / "results.json").read_text())
        seconds = saved["took"] if saved["profile"] == profile else {}
        return {name: s for name, s in seconds.items() if is_number(s) and s > 0}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
