"""`python -m dfkd_lib.datasets check FOLDER`: what a folder of images or a COCO folder holds, and what is wrong with it."""

import argparse
import sys
from pathlib import Path

from dfkd_lib.core import WorkbenchError, resolve
from dfkd_lib.datasets.coco_check import SPLITS, check_coco
from dfkd_lib.datasets.coco_read import has_split
from dfkd_lib.datasets.coco_repair import LIST, repair_coco
from dfkd_lib.datasets.config import DataConfig, load_splits


def main(argv: list[str]) -> int:
    """Run a command; the exit code: 0, or 1 if a folder is unfit for training or the command failed."""
    parser = argparse.ArgumentParser(prog="python -m dfkd_lib.datasets")
    verbs = parser.add_subparsers(dest="verb", required=True)
    check = verbs.add_parser(
        "check", help="report what a folder holds, and all that is wrong with it"
    )
    check.add_argument("folder", help="with train/<class>/*.png, or train.json of COCO")
    size = "pixels that the images of classes are resized to (default: as they are)"
    check.add_argument("--size", type=int, default=0, help=size)
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
    there = [split for split in SPLITS if has_split(folder, split)]
    if not there and (folder / "train").is_dir():
        return _check_images(folder, args.size)
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


def _check_images(folder: Path, size: int) -> int:
    """Read a folder of images by class as a training does, and print how many there are of each; raises where that does."""
    for images in load_splits(DataConfig(name=str(folder), size=size)):
        counts = images.labels.bincount(minlength=images.num_classes).tolist()
        each = ", ".join(f"{name} {n:,}" for name, n in zip(images.classes, counts, strict=True))
        print(f"{images.name}: {len(images):,} images (C, H, W) {images.shape}: {each}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
