"""What the code in the keys of a whole report costs."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from unittest.mock import patch

from bench.comparison import Comparison, Pair, Ways
from dfkd_lib.core.code import Fingerprint, stage_fingerprint
from dfkd_lib.core.graph import forget
from dfkd_lib.pipeline import make_plan, train

PROFILE, KEYS = "smoke", "code of all keys of a report"


def keys_of(artifacts: str, profile: str) -> list[tuple]:
    """What each key of a whole report is computed from, (make, code), by making all that its notebooks train."""
    found, fingerprint = [], stage_fingerprint

    def noted(make: Callable, code: Sequence = ()) -> Fingerprint:
        found.append((make, code))
        return fingerprint(make, code)

    with patch("dfkd_lib.core.artifacts.stage_fingerprint", noted):
        train(make_plan(profile, artifacts=artifacts))
    return found


@contextmanager
def keys(profile: str = PROFILE) -> Iterator[Ways]:
    """The code in all keys of a report, for a process that has read no source yet, but finds it in the cache on disk."""
    with tempfile.TemporaryDirectory() as artifacts:
        known = keys_of(artifacts, profile)

    def all_of_them() -> None:
        forget()
        for make, code in known:
            stage_fingerprint(make, code)

    yield Ways({KEYS: all_of_them}, f"{len(known)} keys")


COMPARISONS = (
    Comparison("pipeline", PROFILE, keys, (Pair(KEYS, None, "<= 50 ms"),), seconds=5, least=3),
)
