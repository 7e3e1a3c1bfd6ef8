"""`python -m dfkd_lib.training train-teacher`: train a teacher and write it where the notebooks find it as shipped."""

import argparse
import shlex
import sys

from dfkd_lib.core import WorkbenchError, processes
from dfkd_lib.core.artifacts import Store
from dfkd_lib.datasets import DataConfig, load_splits
from dfkd_lib.training import TeacherConfig, open_teacher, read_shipped, ship_teacher

# What the shipped teacher of the digits was trained with, where it is not the paper's.
DEFAULTS = "model=vit_mnist_small epochs=10"


def main(argv: list[str]) -> None:
    """Train a teacher and ship it."""
    parser = argparse.ArgumentParser(prog="python -m dfkd_lib.training")
    parser.add_argument("verb", choices=["train-teacher"])
    parser.add_argument(
        "--data", default="mnist", help="a named data set, or a folder of class folders"
    )
    parser.add_argument("--name", help="file name in data/teachers, by default the model's")
    parser.add_argument(
        "--validation",
        type=float,
        default=0.0,
        help="share of the training images that is held out and measures, for choices: nothing is written (a guide that "
        "learnt these images flatters)",
    )
    parser.add_argument("settings", nargs="*", help="of a teacher by name, as in epochs=12 seed=1")
    args = parser.parse_intermixed_args(argv)
    config = TeacherConfig().override(DEFAULTS).override(shlex.join(args.settings))
    config = config.replace(source="train")
    data = DataConfig(name=args.data, validation=args.validation)
    made = open_teacher(Store(), config, *load_splits(data), config.seed)
    if not processes.is_main():
        return
    accuracy = made.metrics["accuracy"]
    if args.validation:
        print(f"accuracy on held-out training images {accuracy:.4f}, {made.seconds:.0f} s")
        return
    seen = read_shipped(config.guide)[1]["ledger"] if config.guide else ()
    command = f"python -m dfkd_lib.training {shlex.join(argv)}"
    path = ship_teacher(made, args.name or config.model, command, inherited=seen)
    print(f"{path}: test accuracy {accuracy:.4f}, {made.seconds:.0f} s")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except WorkbenchError as error:  # what to fix; where in the library it arose helps nobody
        sys.exit(str(error))
