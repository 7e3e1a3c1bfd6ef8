"""Tasks that the tests of fan-out give to worker processes; light to import."""

import os
import time
from pathlib import Path

from dfkd_lib import jobs


def here(tell, needs, seconds: float = 0.0) -> dict:
    """Say where this ran, with what, and when."""
    tell({"line": "hello"})
    start = time.time()
    time.sleep(seconds)
    return {
        "pid": os.getpid(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "start": start,
        "end": time.time(),
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }


def for_ever(tell, needs, mark: str) -> None:
    """A training without an end; it notes that it was left in order."""
    with jobs.alone_in_process(1):
        tell({"line": "training"})
        try:
            while True:
                time.sleep(0.01)
        except KeyboardInterrupt:
            Path(mark).write_text("left in order")
            raise
