"""`python -m dfkd_lib.detection train-teacher`: train a detector and write it where notebook 40 finds it; `overfit`: see
whether a detector can learn a few scenes by heart."""

import argparse
import shlex
import sys
import tempfile

from dfkd_lib.core import Store, WorkbenchError, processes
from dfkd_lib.datasets import Scenes, SceneSet
from dfkd_lib.detection.config import DetectionConfig
from dfkd_lib.detection.detector import DetectorConfig, ship_detector, train
from dfkd_lib.detection.step import DetectionWeights, detection_step
from dfkd_lib.detection.tables import with_objects

POINTS = 10  # of the curve of `overfit`
# What a small teacher of the generated scenes needs, where it is not the paper's.
DEFAULTS = (
    "data.size=80 data.train_scenes=20000 data.test_scenes=300 data.shortest=0 losses.giou=2 "
    "teacher.model=detr_micro teacher.epochs=18 teacher.batch_size=32 teacher.lr=0.001 teacher.augment=0"
)


def overfit(name: str, scenes: SceneSet, steps: int, lr: float = 1e-3, seed: int = 0) -> dict:
    """Train a detector from nothing on a few scenes, all of them at every step, for at least so many steps.

    Returns:
        Metrics on these scenes as of `train`, and "curve": [(step, AP50)].
    """
    repeats, count = -(-steps // POINTS), len(scenes)
    repeated = scenes.subset([*range(count)] * repeats)
    shared = {"warmup_epochs": 0.2, "precision": "fp32", "augment": None, "seed": seed}
    config = DetectorConfig(model=name, epochs=POINTS, batch_size=count, lr=lr, **shared)
    step = detection_step(DetectionWeights(giou=2.0))
    with tempfile.TemporaryDirectory() as folder:
        made = train(Store(folder), config, step, repeated, Scenes.of(scenes))
        history = made.json("history.json")
    curve = [(row["epoch"] * repeats, row["AP50"]) for row in history]
    return {**made.metrics, "curve": curve}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m dfkd_lib.detection")
    parser.add_argument("verb", choices=["train-teacher", "overfit"])
    parser.add_argument("--name", default="detr_micro_scenes", help="file name in data/teachers")
    parser.add_argument(
        "--few", type=int, default=10, help="scenes to overfit, in teacher.epochs steps"
    )
    parser.add_argument(
        "settings", nargs="*", help="of notebook 40 by name, as in teacher.epochs=18"
    )
    args = parser.parse_intermixed_args(argv)
    config = DetectionConfig().override(DEFAULTS).override(shlex.join(args.settings))
    data, teacher = config.data.replace(seed=config.seed), config.teacher
    if args.verb == "overfit":
        scenes = data.scenes("train").load()
        few = scenes.subset(with_objects(scenes, args.few))
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
    path = ship_detector(made, args.name, command)
    found = made.metrics
    print(f"{path}: AP {found['AP']:.3f}, AP50 {found['AP50']:.3f}, {made.seconds:.0f} s")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except WorkbenchError as error:  # what to fix; where in the library it arose helps nobody
        sys.exit(str(error))
