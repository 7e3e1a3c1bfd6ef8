"""`python -m dfkd_lib.datasets check FOLDER`: what is wrong with a COCO folder, and a repaired copy of it."""

import argparse
import sys

from dfkd_lib.core import WorkbenchError, resolve
from dfkd_lib.datasets.coco_check import SPLITS, check_coco
from dfkd_lib.datasets.coco_repair import LIST, repair_coco


def main(argv: list[str]) -> int:
    """Run a command; the exit code: 0, or 1 if a folder is unfit for training or the command failed."""
    parser = argparse.ArgumentParser(prog="python -m dfkd_lib.datasets")
    verbs = parser.add_subparsers(dest="verb", required=True)
    check = verbs.add_parser("check", help="report all that is wrong with a COCO folder and where")
    check.add_argument("folder")
    check.add_argument("--split", nargs="+", help="which (default: all whose file is there)")
    check.add_argument("--repair", metavar="OUT", help="write a copy without what is wrong")
    check.add_argument("--most", type=int, default=20, help="faults shown of each kind (0: all)")
    args = parser.parse_args(argv)
    try:
        return _check(args)
    except WorkbenchError as error:
        print(error, file=sys.stderr)
        return 1


def _check(args: argparse.Namespace) -> int:
    folder = resolve(args.folder)
    there = [split for split in SPLITS if (folder / f"{split}.json").exists()]
    splits = args.split or there or ["train"]
    if args.repair:
        done = repair_coco(folder, args.repair, splits)
        folder = resolve(args.repair)
        print(f"{folder}: {len(done)} changes, listed in {LIST}; what is left:")
    reports = [check_coco(folder, split) for split in splits]
    print("\n".join(report.text(args.most) for report in reports))
    if not args.split and len(there) == 1:
        print(f"note: no split but {there[0]} is there; notebook 40 also needs test or val")
    return int(any(report.fatal for report in reports))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
