"""Teachers and students of classification: KD + CE + patch probes, early KD, distillation token with CutMix."""

from dfkd_lib.distill.classification import KDWeights, drop_one, obtain_teacher, train_student, train_teacher
from dfkd_lib.distill.runner import (evaluate, frozen, load_trained, predict, shipped_teacher, test_logits,
                                     train_classifier)

__all__ = ["KDWeights", "drop_one", "evaluate", "frozen", "load_trained", "obtain_teacher", "predict",
           "shipped_teacher", "test_logits", "train_classifier", "train_student", "train_teacher"]
