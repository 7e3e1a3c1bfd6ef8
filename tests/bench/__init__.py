"""`make bench`: what we cost on this machine beside the peers, in one run, as a table, files and a picture."""

import importlib
import os
import time
import traceback
from collections.abc import Iterable, Iterator

from bench.comparison import Comparison, Row, measure
from bench.output import line, save
from dfkd_lib.core import WorkbenchError, resolve

# Each module holds its part of the table of comparisons, COMPARISONS.
BENCHES = ("capture", "frechet", "students", "gan", "detr", "frames")
BENCHES += ("pipeline", "workers", "memory")


def chosen(only: str | None) -> list[str]:
    """The benches of a comma-separated choice, all by default; WorkbenchError if there is none of a name."""
    names = list(BENCHES) if only is None else [name.strip() for name in only.split(",")]
    for name in names:
        if name not in BENCHES:
            raise WorkbenchError(
                f"there is no bench '{name}'",
                expected="some of " + ", ".join(BENCHES),
                got=only,
                fix="separate them by commas",
            )
    return names


def comparisons(names: Iterable[str]) -> list[Comparison]:
    """The table of comparisons, of these benches."""
    return [
        comparison
        for name in names
        for comparison in importlib.import_module(f"bench.{name}").COMPARISONS
    ]


def measured(comparison: Comparison, quick: bool) -> Iterator[Row]:
    """The rows of a comparison; one that breaks off ends with a row that says why, and the others go on."""
    try:
        yield from measure(comparison, quick)
    except Exception as error:
        traceback.print_exc()
        yield Row(
            comparison.name,
            "broke off",
            comparison.setting,
            note=f"failed: {type(error).__name__}: {error}"[:300],
            failed=True,
        )


def run(only: str | None = None, out: str = "reports/bench", quick: bool = False) -> int:
    """Measure, print a line a row as it comes, write the folder; the exit code: 1 if a comparison broke off.

    Args:
        only: comma-separated names of BENCHES. quick: two rounds.
    """
    os.environ["DFKD_PROGRESS"] = "none"
    table, folder, start, rows = comparisons(chosen(only)), resolve(out), time.perf_counter(), []
    try:
        for comparison in table:
            for row in measured(comparison, quick):
                rows.append(row)
                print(line(row), flush=True)
    finally:  # a run that is stopped keeps what it found
        save(rows, folder, time.perf_counter() - start)
    print(folder / "bench.md")
    return int(any(row.failed for row in rows))
