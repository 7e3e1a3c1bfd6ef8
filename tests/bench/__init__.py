"""`make bench`: what we cost on this machine beside the peers, all in one run, as a table, files and a picture."""

import importlib
import os
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from bench.output import line, save
from bench.rows import Effort, Row
from dfkd_lib.core import WorkbenchError
from dfkd_lib.core.artifacts import resolve

# Each module has a function `rows(effort)`, or the one named after a dot.
BENCHES = {
    "attention": "attention",
    "flops": "flops",
    "students": "students",
    "gan": "gan",
    "detr": "detection",
    "coco": "coco",
    "frechet": "frechet",
    "pipeline": "pipeline",
    "workers": "workers",
    "deploy": "deploy",
    "memory": "synthesis.memory_rows",
}
QUICK = Effort(rounds=2, seconds=0.3)


def chosen(only: str | None) -> list[str]:
    """The benches of a comma-separated choice, all by default; WorkbenchError if there is none of a name."""
    names = list(BENCHES) if only is None else [word.strip() for word in only.split(",")]
    for name in names:
        if name not in BENCHES:
            raise WorkbenchError(
                f"there is no bench '{name}'",
                expected="some of " + ", ".join(BENCHES),
                got=only,
                fix="separate them by commas",
            )
    return names


def rows_of(name: str, effort: Effort) -> Iterator[Row]:
    """The rows of one bench as they are measured; one that breaks off ends with a row that says why, marked as failed."""
    module, _, function = BENCHES[name].partition(".")
    try:
        yield from getattr(importlib.import_module(f"bench.{module}"), function or "rows")(effort)
    except Exception as error:  # whatever stops one bench must not stop the others
        traceback.print_exc()
        yield Row(
            name,
            "broke off",
            "",
            "",
            note=f"failed: {type(error).__name__}: {error}"[:300],
            failed=True,
        )


def run(
    only: str | None = None, repeats: int = 5, out: str = "reports/bench", quick: bool = False
) -> int:
    """Measure, print a line a row as it goes, write the folder; the exit code: 1 if a bench broke off.

    Args:
        only: comma-separated names of BENCHES. repeats: rounds of long comparisons wanted (short ones have more).
        quick: two rounds and a third of the time.
    """
    os.environ["DFKD_PROGRESS"] = "none"
    names, folder, start, found = chosen(only), resolve(out), time.perf_counter(), []
    effort = QUICK if quick else Effort(repeats)
    try:
        for name in names:
            begun = time.perf_counter()
            for row in rows_of(name, effort):
                found.append(row)
                print(line(row), flush=True)
            print(f"{name}: {time.perf_counter() - begun:.0f} s", flush=True)
    finally:  # a run that is stopped keeps what it found
        save(found, folder, time.perf_counter() - start)
    print(os.path.relpath(Path(folder) / "bench.md"))
    return int(any(row.failed for row in found))
