"""One pure function for each equation of the papers."""

from dfkd_lib.losses.classification import (attention_consistency_loss, cutmix_loss, hard_distillation_loss, kd_loss,
                                            patch_probe_loss)
from dfkd_lib.losses.detection import detection_losses

__all__ = ["attention_consistency_loss", "cutmix_loss", "detection_losses", "hard_distillation_loss", "kd_loss",
           "patch_probe_loss"]
