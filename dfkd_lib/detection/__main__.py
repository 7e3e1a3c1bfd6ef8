"""`python -m dfkd_lib.detection train-teacher`: train a detector and write it where notebook 40 finds it; `overfit`: see
whether a detector can learn a few scenes by heart."""

import argparse
import shlex
import sys

from dfkd_lib.core import Store, WorkbenchError, processes
from dfkd_lib.detection.config import DetectionConfig
from dfkd_lib.detection.detector import train
from dfkd_lib.detection.overfit import overfit, spread
from dfkd_lib.detection.shipped import ship_detector
from dfkd_lib.detection.step import detection_step

# Flag -> the setting that it changes, and its default here.
FLAGS = {
    "model": ("teacher.model", "detr_micro"),
    "data": ("data.name", "scenes"),
    "size": ("data.size", 80),
    "scenes": ("data.train_scenes", 20_000),
    "test-scenes": ("data.test_scenes", 300),
    "shortest": ("data.shortest", 0),
    "crop": ("data.crop", 0.0),
    "crops": ("data.crops", 1),
    "crop-spread": ("data.crop_spread", 1.0),
    "crop-anywhere": ("data.crop_anywhere", 0.0),
    "weights": ("teacher.weights", ""),
    "augment": ("teacher.augment", 0.0),
    "epochs": ("teacher.epochs", 18),
    "batch-size": ("teacher.batch_size", 32),
    "lr": ("teacher.lr", 1e-3),
    "seed": ("seed", 0),
    "precision": ("teacher.precision", "bf16"),
    "giou": ("losses.giou", 2.0),
}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m dfkd_lib.detection")
    parser.add_argument("verb", choices=["train-teacher", "overfit"])
    parser.add_argument("--name", default="detr_micro_scenes", help="file name in data/teachers")
    parser.add_argument("--few", type=int, default=10, help="scenes to overfit, in --epochs steps")
    known = DetectionConfig().settings()
    for flag, (setting, default) in FLAGS.items():
        parser.add_argument(f"--{flag}", default=default, help=known[setting].help, dest=setting)
    args = vars(parser.parse_args(argv))
    config = DetectionConfig().override({name: args[name] for name, _ in FLAGS.values()})
    data, teacher = config.data.replace(seed=config.seed), config.teacher
    if args["verb"] == "overfit":
        few = spread(data.scenes("train").load(), args["few"])
        found = overfit(teacher.model, few, teacher.epochs, teacher.lr, config.seed)
        if processes.is_main():
            print(", ".join(f"{step}: {ap:.2f}" for step, ap in found["curve"]))
            of = f"{teacher.model} on {len(few)} scenes of {data.name}"
            print(f"{of}: AP50 {found['AP50']:.3f}, AP {found['AP']:.3f}")
        return
    step, scenes, test = detection_step(config.losses), data.scenes("train"), data.scenes("test")
    made = train(Store(), teacher, step, scenes, test, seed=config.seed)
    if not processes.is_main():
        return
    command = f"python -m dfkd_lib.detection {shlex.join(argv)}"
    path = ship_detector(made, args["name"], command)
    found = made.metrics
    print(f"{path}: AP {found['AP']:.3f}, AP50 {found['AP50']:.3f}, {made.seconds:.0f} s")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except WorkbenchError as error:  # what to fix; where in the library it arose helps nobody
        sys.exit(str(error))
