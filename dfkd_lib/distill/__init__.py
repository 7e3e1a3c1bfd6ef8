"""Teachers and students of classification: KD + CE + patch probes, early features, distillation token, CutMix and MixUp."""

from dfkd_lib.distill.classification import (
    kept_targets,
    obtain_teacher,
    train_student,
    train_teacher,
)
from dfkd_lib.distill.mixing import Augmentation, Batch
from dfkd_lib.distill.runner import (
    evaluate,
    frozen,
    load_trained,
    predict,
    shipped_teacher,
    test_logits,
    train_classifier,
)
from dfkd_lib.distill.step import distill_step, label_step
from dfkd_lib.distill.targets import live_targets, stored_targets, teacher_targets
from dfkd_lib.distill.weights import KDWeights, drop_one

__all__ = [
    "Augmentation",
    "Batch",
    "KDWeights",
    "distill_step",
    "drop_one",
    "evaluate",
    "frozen",
    "kept_targets",
    "label_step",
    "live_targets",
    "load_trained",
    "obtain_teacher",
    "predict",
    "shipped_teacher",
    "stored_targets",
    "teacher_targets",
    "test_logits",
    "train_classifier",
    "train_student",
    "train_teacher",
]
