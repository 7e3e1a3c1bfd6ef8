"""Notebook 40 as stages: the teacher, its students, from plain parameters, each made or found by its key."""

from dataclasses import dataclass, fields, replace

import numpy as np

from dfkd_lib.artifacts import Artifact, Store
from dfkd_lib.datasets.scenes import SceneSet
from dfkd_lib.detection.distill import DetectionTerms, shown, train_detector
from dfkd_lib.detection.evaluate import THRESHOLD
from dfkd_lib.detection.shipped import shipped_detector
from dfkd_lib.detection.source import SceneSource
from dfkd_lib.errors import WorkbenchError
from dfkd_lib.training import TrainConfig

ARMS = {"train": "labels + teacher", "synthetic": "teacher alone, other scenes", "plain": "labels alone"}


@dataclass(frozen=True)
class DetectionRecipe:
    """Every parameter of detection KD as a plain scalar; the defaults are the quick profile's.

    Args:
        data, size, train_scenes, test_scenes, crop, shortest: see `SceneSource`. augment: see `batches.augmented`.
        seed: of everything random.
        teacher: "shipped" (the file named by `shipped`) or "train" (teacher_model for teacher_epochs).
        pretrained, weights: start that training from published weights (download) or from a file or folder of yours.
        student_*, teacher_*, batch_size, precision: models and training. *_weight, temperature, pairing: the losses.
    """

    data: str = "scenes"
    size: int = 80
    train_scenes: int = 6000
    test_scenes: int = 300
    crop: float = 0.0
    shortest: int = 0
    augment: float = 0.0
    seed: int = 0
    teacher: str = "shipped"
    shipped: str = "detr_micro_scenes"
    teacher_model: str = "detr_micro"
    teacher_epochs: int = 40
    teacher_lr: float = 1e-3
    pretrained: bool = False
    weights: str = ""
    student_model: str = "detr_nano"
    student_epochs: int = 10
    student_lr: float = 1e-3
    batch_size: int = 32
    precision: str = "bf16"
    class_weight: float = 2.0
    box_weight: float = 100.0
    giou_weight: float = 2.0
    distillation_weight: float = 1.0
    temperature: float = 2.0
    pairing: str = "hungarian"

    @classmethod
    def of(cls, parameters: dict) -> "DetectionRecipe":
        """The recipe from a notebook's parameters (`globals()`), taking those it knows by name."""
        known = {f.name: type(f.default) for f in fields(cls)}
        return cls(**{name: kind(parameters[name]) for name, kind in known.items() if name in parameters})

    @property
    def source(self) -> SceneSource:
        return SceneSource(self.data, self.size, self.train_scenes, self.test_scenes, self.seed, self.crop,
                           self.shortest)

    @property
    def terms(self) -> DetectionTerms:
        return DetectionTerms(self.class_weight, self.box_weight, self.giou_weight, self.distillation_weight,
                              self.temperature, self.pairing)

    def _config(self, epochs: int, lr: float) -> TrainConfig:
        return TrainConfig(epochs, self.batch_size, lr, weight_decay=1e-4, warmup_epochs=0.5, grad_clip=1.0,
                           precision=self.precision, seed=self.seed)

    def teacher_artifact(self, store: Store) -> Artifact:
        """The teacher: shipped, or trained on the labelled training scenes."""
        if self.teacher == "shipped":
            return shipped_detector(store, self.shipped, self.source)
        if self.teacher != "train":
            raise WorkbenchError("no such teacher", expected="shipped or train", got=self.teacher, where="teacher")
        config = self._config(self.teacher_epochs, self.teacher_lr)
        return train_detector(store, self.teacher_model, self.source, config, self.terms, augment=self.augment,
                              pretrained=self.pretrained, weights=self.weights or None)

    def student(self, store: Store, arm: str) -> Artifact:
        """The student of an arm of `ARMS`: distilled on labelled training scenes, distilled on synthetic scenes without
        labels, or trained on labelled scenes without a teacher (what KD must beat)."""
        if arm not in ARMS:
            raise WorkbenchError("no such arm", expected=", ".join(ARMS), got=arm, where="arms",
                                 mend="name arms separated by commas")
        teacher = None if arm == "plain" else self.teacher_artifact(store)
        config = self._config(self.student_epochs, self.student_lr)
        return train_detector(store, self.student_model, self.source, config, self.terms, teacher,
                              "synthetic" if arm == "synthetic" else "train", self.augment)

    def examples(self, detectors: dict[str, Artifact], count: int, threshold: float = THRESHOLD) -> dict:
        """The first `count` test scenes with an object, their true boxes and what each detector finds there with at
        least that score: the arguments of `plots.detection_grid` (A Figure 18)."""
        test = self.source.load("test")
        rows = [i for i, labels in enumerate(test.labels) if len(labels)][:count]
        found = {name: shown(artifact, len(test), threshold) for name, artifact in detectors.items()}
        return {"images": test.pixels[rows].numpy(), "classes": test.classes,
                "truth": [_truth(test, i) for i in rows],
                "found": {name: [scenes[i] for i in rows] for name, scenes in found.items()}}


    def scenes(self, count: int) -> dict:
        """The first `count` training scenes and their boxes, as arguments of `plots.detection_grid`."""
        drawn = replace(self.source, train=min(count, self.train_scenes)) if self.data == "scenes" else self.source
        train = drawn.load("train")
        rows = range(min(count, len(train)))
        truth = [_truth(train, i) for i in rows]
        return {"images": train.pixels[:count].numpy(), "classes": train.classes, "truth": truth,
                "found": {"true boxes": truth}}


def _truth(scenes: SceneSet, row: int) -> dict:
    return {"boxes": scenes.boxes[row].numpy(), "labels": scenes.labels[row].numpy()}


def ap_table(detectors: dict[str, Artifact]):
    """COCO measures of each detector as a pandas table: size, scenes read, AP, AP50, AP75, precision, AP50 by class."""
    import pandas as pd

    rows = []
    for name, artifact in detectors.items():
        m = artifact.metrics
        rows.append({"detector": f"{name} ({artifact.settings['model']})", "parameters": m["parameters"],
                     "AP": m["AP"], "AP50": m["AP50"], "AP75": m["AP75"], "precision": m["precision"],
                     "recall": m["recall"], **{f"AP50 {c}": v["AP50"] for c, v in m["per_class"].items()}})
    return pd.DataFrame(rows).replace({None: np.nan})


def seen_table(detectors: dict[str, Artifact]):
    """What each detector was made from: scenes of data sets that its own training read, by the ledger."""
    import pandas as pd

    rows = []
    for name, artifact in detectors.items():
        read = {row["split"]: row["images"] for row in artifact.ledger if row["purpose"] != "evaluation"}
        rows.append({"detector": name, "scenes it trained on": artifact.metrics["train_scenes"],
                     "of them from a data set": sum(read.values()), "splits": ", ".join(read) or "none",
                     "labels": "the teacher's detections" if artifact.settings.get("scenes") == "synthetic" else
                     "the data set's"})
    return pd.DataFrame(rows)
