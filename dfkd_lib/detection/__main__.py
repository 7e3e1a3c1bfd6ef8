"""`python -m dfkd_lib.detection train-teacher`: train a detector and write it where notebook 40 finds it; `students`: train
the teacher and students of notebook 40, those of its `quick` that need no GAN or those that `students=` names, without its
comparison of GANs and pages, and write its metrics; `overfit`: see whether a detector can learn a few scenes by heart."""

import argparse
import shlex
import sys
import tempfile
import time
from itertools import combinations
from pathlib import Path

from dfkd_lib.core import Artifact, Store, WorkbenchError, processes, provenance, save_json
from dfkd_lib.datasets import GENERATED, Scenes, SceneSet
from dfkd_lib.detection.config import DetectionConfig
from dfkd_lib.detection.detector import DetectorConfig, ship_detector, train
from dfkd_lib.detection.step import DetectionWeights, detection_step
from dfkd_lib.detection.study import DetectionStudy
from dfkd_lib.detection.tables import with_objects
from dfkd_lib.metrics import intervals

POINTS = 10  # of the curve of `overfit`
# What a small teacher of the generated scenes needs, where it is not the paper's.
DEFAULTS = (
    "data.size=80 data.train_scenes=20000 data.test_scenes=300 data.shortest=0 losses.giou=2 "
    "teacher.model=detr_micro teacher.epochs=18 teacher.batch_size=32 teacher.lr=0.001 teacher.augment=0 "
    "students=plain,train,generated"
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


def student_metrics(study: DetectionStudy) -> dict[str, object]:
    """What the teacher and each student of the configuration reach on whole frames, and on crops where they learn these, a
    value a seed, by the names of notebook 40's metrics; and what each student has over each one before it, by seed."""
    config, seeds = study.config, study.config.seeds
    made: dict[str, list[Artifact]] = {"teacher": [study.teacher]}
    for name in config.variants:
        made[f"student_{name}"] = [study.student(name, seed=seed) for seed in seeds]
    whole = {name: [study.whole(one) for one in each] for name, each in made.items()}
    frames = config.data.name != GENERATED
    found: dict[str, object] = {"measured_on": "whole frames" if frames else "generated scenes"}
    for name, each in made.items():
        for measure in ("AP", "AP50", "AP75", "precision", "recall"):
            found[f"{name}_{measure}"] = [one.metrics[measure] for one in whole[name]]
            if study.tile:
                found[f"{name}_crops_{measure}"] = [one.metrics[measure] for one in each]
        for measure in ("parameters", "train_scenes"):
            found[f"{name}_{measure}"] = each[0].metrics[measure]
        found[f"{name}_seconds"] = [round(one.seconds) for one in each]
    for one, other in combinations(config.variants, 2):
        before, after = (
            [made.metrics["AP50"] for made in whole[f"student_{name}"]] for name in (one, other)
        )
        gain = f"student_{other}_over_{one}_AP50"
        found[gain] = [late - early for early, late in zip(before, after, strict=True)]
        if len(seeds) >= intervals.FEWEST:
            found[f"{gain}_p"] = intervals.paired_difference(before, after)["p"]
    return found


def write_students(study: DetectionStudy, command: str, out: Path) -> None:
    """The metrics as a results file, which `dfkd published` reads."""
    start, started = time.perf_counter(), time.strftime("%Y-%m-%d %H:%M:%S %z")
    # What cannot be, a folder or a student, is reported before anything is trained.
    out.parent.mkdir(parents=True, exist_ok=True)
    study.check()
    metrics, config = student_metrics(study), study.config
    if not processes.is_main():
        return
    settings = {name: [one.default] for name, one in config.settings().items()}
    made = {"metrics": metrics, "settings": settings}
    known = {**provenance.describe(), "started": started, "command": command}
    known["seconds"] = round(time.perf_counter() - start)
    save_json(out, {"notebooks": {"40_detection_kd": made}, "provenance": known})
    print(*(f"{name}: {value}" for name, value in metrics.items()), out, sep="\n")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("python -m dfkd_lib.detection", description=__doc__)
    parser.add_argument("verb", choices=["train-teacher", "students", "overfit"])
    parser.add_argument("--name", default="detr_micro_scenes", help="file name in data/teachers")
    parser.add_argument(
        "--few", type=int, default=10, help="scenes to overfit, in teacher.epochs steps"
    )
    parser.add_argument("--out", default="reports/students.json", help="results of students")
    parser.add_argument(
        "settings",
        nargs="*",
        help=f"of notebook 40 by name, as in teacher.epochs=18; unless given: {DEFAULTS}",
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
    command = f"python -m dfkd_lib.detection {shlex.join(argv)}"
    if args.verb == "students":
        return write_students(DetectionStudy(Store(), config), command, Path(args.out))
    step, scenes, test = detection_step(config.losses), data.scenes("train"), data.scenes("test")
    made = train(Store(), teacher, step, scenes, test, seed=config.seed)
    if not processes.is_main():
        return
    path = ship_detector(made, args.name, command)
    found = made.metrics
    print(f"{path}: AP {found['AP']:.3f}, AP50 {found['AP50']:.3f}, {made.seconds:.0f} s")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except WorkbenchError as error:  # what to fix; where in the library it arose helps nobody
        sys.exit(str(error))
