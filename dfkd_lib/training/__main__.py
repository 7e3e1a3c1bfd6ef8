"""`python -m dfkd_lib.training train-teacher`: train a teacher and write it where the notebooks find it as shipped."""

import argparse
import shlex
import sys

from dfkd_lib.core import WorkbenchError, processes
from dfkd_lib.core.artifacts import Store
from dfkd_lib.datasets import DataConfig, load_splits
from dfkd_lib.training import TeacherConfig, open_teacher, ship_teacher

# What the shipped teacher of the digits was trained with, where it is not the paper's.
DEFAULTS = "model=vit_mnist_small epochs=12 batch_size=128 lr=0.001 weight_decay=0.025"


def main(argv: list[str]) -> None:
    """Train a teacher and ship it."""
    parser = argparse.ArgumentParser(prog="python -m dfkd_lib.training")
    parser.add_argument("verb", choices=["train-teacher"])
    parser.add_argument(
        "--data", default="mnist", help="a named data set, or a folder of class folders"
    )
    parser.add_argument("--name", default="vit_mnist_small", help="file name in data/teachers")
    parser.add_argument("--validation", type=float, default=0.0, help="share held out, for choices")
    parser.add_argument("settings", nargs="*", help="of a teacher by name, as in epochs=12 seed=1")
    args = parser.parse_intermixed_args(argv)
    config = TeacherConfig().override(DEFAULTS).override(shlex.join(args.settings))
    data = DataConfig(name=args.data, validation=args.validation)
    made = open_teacher(Store(), config, *load_splits(data), config.seed)
    if not processes.is_main():
        return
    path = ship_teacher(made, args.name, f"python -m dfkd_lib.training {shlex.join(argv)}")
    print(f"{path}: test accuracy {made.metrics['accuracy']:.4f}, {made.seconds:.0f} s")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except WorkbenchError as error:  # what to fix; where in the library it arose helps nobody
        sys.exit(str(error))
