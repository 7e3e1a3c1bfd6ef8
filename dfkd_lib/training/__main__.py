"""`python -m dfkd_lib.training train-teacher`: train a teacher and write it where the notebooks find it as shipped."""

import argparse
import shlex
import sys

from dfkd_lib.core import WorkbenchError, processes
from dfkd_lib.core.artifacts import Store
from dfkd_lib.datasets import load_images
from dfkd_lib.training import TeacherConfig, ship_teacher, train_teacher


def main(argv: list[str]) -> None:
    """Train a teacher and ship it."""
    parser = argparse.ArgumentParser(prog="python -m dfkd_lib.training")
    parser.add_argument("verb", choices=["train-teacher"])
    parser.add_argument("--model", default="vit_mnist_small")
    parser.add_argument(
        "--data", default="mnist", help="a named data set, or a folder of class folders"
    )
    parser.add_argument("--name", default="vit_mnist_small", help="file name in data/teachers")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    args = parser.parse_args(argv)
    names = ("epochs", "batch_size", "lr", "precision")
    config = TeacherConfig(**{name: getattr(args, name) for name in names})
    train, test = (load_images(args.data, split) for split in ("train", "test"))
    made = train_teacher(Store(), args.model, train, test, config.training(seed=args.seed))
    if not processes.is_main():
        return
    path = ship_teacher(made, args.name, f"python -m dfkd_lib.training {shlex.join(argv)}")
    print(f"{path}: test accuracy {made.metrics['accuracy']:.4f}, {made.seconds:.0f} s")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except WorkbenchError as error:  # what to fix; where in the library it arose helps nobody
        sys.exit(str(error))
