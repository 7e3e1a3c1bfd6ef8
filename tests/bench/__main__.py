"""`make bench`: everything beside its peers, timed; how cost grows; what large sets would cost."""

import argparse
import sys

import bench
from bench import costs, growth, workers
from dfkd_lib.core import WorkbenchError


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="make bench", description=__doc__)
    top.add_argument("--only", metavar="attention,frechet", help="these alone (default: all)")
    top.add_argument(
        "--repeats",
        type=int,
        default=5,
        metavar="K",
        help="rounds of long comparisons (short: more)",
    )
    top.add_argument(
        "--out", default="reports/bench", metavar="DIR", help="where table and picture go"
    )
    top.add_argument("--quick", action="store_true", help="two rounds, a third of the time")
    other = top.add_mutually_exclusive_group()
    other.add_argument(
        "--growth", action="store_true", help="cost at 1, 4 and 16 times the work, and slopes"
    )
    other.add_argument(
        "--costs",
        action="store_true",
        help="on paper, printed: ImageNet-1k and COCO on 1, 8 and 64 GPUs",
    )
    return top


def main(words: list[str] | None = None) -> int:
    """Measure what was asked for; the exit code is 1 if a measurement broke off, 2 if the command is wrong."""
    options = parser().parse_args(words)
    try:
        if options.costs:
            if options.only or options.quick:
                raise WorkbenchError(
                    "--costs is computed, all of it", got="--only or --quick", fix="leave them out"
                )
            print(costs.tables())
            return 0
        if options.growth:
            return growth.run(options.only, options.out, () if options.only else (workers.growth,))
        return bench.run(options.only, options.repeats, options.out, options.quick)
    except WorkbenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
