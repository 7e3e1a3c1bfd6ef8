"""`make bench`: what we cost on this machine beside the peers, in one run, as a table."""

import argparse
import importlib
import os
import sys
import time
import traceback
from collections.abc import Iterator

from bench.comparison import Comparison, Row, measure
from bench.output import line, save
from dfkd_lib.core import WorkbenchError, one_of, resolve

# Each module holds its part of the table of comparisons, COMPARISONS.
BENCHES = tuple("capture attention frechet students roofline gan detr frames pipeline".split())


def measured(comparison: Comparison, quick: bool) -> Iterator[Row]:
    """The rows of a comparison; one that breaks off ends with a row that says why, and the others go on."""
    try:
        yield from measure(comparison, quick)
    except Exception as error:
        traceback.print_exc()
        note = f"failed: {type(error).__name__}: {error}"[:300]
        yield Row(comparison.name, "broke off", comparison.setting, note=note, failed=True)


def run(only: str, out: str, quick: bool) -> int:
    """Measure, print a line a row as it comes, write the folder; the exit code: 1 if a comparison broke off."""
    os.environ["DFKD_PROGRESS"] = "none"
    names = [one_of("bench", name.strip(), BENCHES) for name in only.split(",")]
    modules = [importlib.import_module(f"bench.{name}") for name in names]
    folder, start, rows = resolve(out), time.perf_counter(), []
    try:
        for comparison in (one for module in modules for one in module.COMPARISONS):
            for row in measured(comparison, quick):
                rows.append(row)
                print(line(row), flush=True)
    finally:  # a run that is stopped keeps what it found
        save(rows, folder, time.perf_counter() - start)
    print(folder / "bench.md")
    return int(any(row.failed for row in rows))


def main(arguments: list[str] | None = None) -> int:
    """Measure what was asked for; the exit code is 1 if a comparison broke off, 2 if the command is wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", default=",".join(BENCHES), help="these alone (default: all)")
    parser.add_argument("--out", default="reports/bench", metavar="DIR", help="where tables go")
    parser.add_argument("--quick", action="store_true", help="two rounds of each")
    try:
        return run(**vars(parser.parse_args(arguments)))
    except WorkbenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
