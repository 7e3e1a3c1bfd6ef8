"""One pure function for each equation of the papers."""

from dfkd_lib.losses.classification import (
    attention_consistency_loss,
    cutmix_loss,
    hard_distillation_loss,
    kd_loss,
    patch_probe_loss,
)
from dfkd_lib.losses.detection import detection_losses
from dfkd_lib.losses.schedule import Schedule, read_schedules
from dfkd_lib.losses.synthesis import (
    BatchNormStatistics,
    attention_outputs,
    disagreement,
    diversity_loss,
    intra_divergence_loss,
    logit_distance,
    patch_similarity_entropy,
    patch_similarity_loss,
    total_variation,
)

__all__ = [
    "BatchNormStatistics",
    "Schedule",
    "attention_consistency_loss",
    "attention_outputs",
    "cutmix_loss",
    "detection_losses",
    "disagreement",
    "diversity_loss",
    "hard_distillation_loss",
    "intra_divergence_loss",
    "kd_loss",
    "logit_distance",
    "patch_probe_loss",
    "patch_similarity_entropy",
    "patch_similarity_loss",
    "read_schedules",
    "total_variation",
]
