"""`make bench`: everything beside its peers, timed."""

import argparse
import sys

import bench
from dfkd_lib.core import WorkbenchError


def main(arguments: list[str] | None = None) -> int:
    """Measure what was asked for; the exit code is 1 if a comparison broke off, 2 if the command is wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", metavar="capture,frechet", help="these alone (default: all)")
    parser.add_argument(
        "--out", default="reports/bench", metavar="DIR", help="where table and picture go"
    )
    parser.add_argument("--quick", action="store_true", help="two rounds of each")
    try:
        return bench.run(**vars(parser.parse_args(arguments)))
    except WorkbenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
