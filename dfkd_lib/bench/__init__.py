"""`make bench`: what training steps and attention capture cost on this machine, in time and memory."""

import json
import os

from dfkd_lib.artifacts import REPOSITORY
from dfkd_lib.bench.attention import print_attention
from dfkd_lib.bench.deploy import print_deploy
from dfkd_lib.bench.detection import print_detection
from dfkd_lib.bench.frechet import print_frechet
from dfkd_lib.bench.memory import print_memory
from dfkd_lib.bench.students import print_students
from dfkd_lib.bench.synthesis import print_synthesis
from dfkd_lib.bench.training import print_training


def report_seconds() -> float | None:
    """Seconds of the last whole `make report`, or None if there was none."""
    try:
        saved = json.loads((REPOSITORY / "reports" / "quick" / "results.json").read_text())
        return saved["provenance"]["seconds"]
    except (OSError, ValueError, KeyError):
        return None


def print_table(repeats: int) -> None:
    """Print the speed of training steps (beside peers too), what attention, images, a Fréchet distance and reports cost."""
    os.environ["DFKD_PROGRESS"] = "none"
    print_training(repeats)
    print()
    print_students(repeats)
    print()
    print_detection()
    print()
    print_deploy()
    print()
    print_attention()
    print()
    print_memory()
    print()
    print_synthesis()
    print()
    print_frechet(min(repeats, 3))  # a matrix square root takes ten seconds and more
    seconds = report_seconds()
    print("last make report: " + ("none yet" if seconds is None else f"{seconds:.0f} s"))
