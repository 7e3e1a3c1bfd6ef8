"""The library's step of a student: named losses, weighted and summed."""

from collections.abc import Callable
from contextlib import nullcontext

import torch.nn.functional as F
from torch import Tensor, nn

from dfkd_lib.attention import outputs_and_probe
from dfkd_lib.distill.targets import Targets, early_tokens, has_probe
from dfkd_lib.distill.weights import KDWeights
from dfkd_lib.losses import hard_distillation_loss, kd_loss, patch_probe_loss
from dfkd_lib.training import Batch, label_loss


def kd_step(weights: KDWeights) -> Callable:
    """The weighted sum of the losses that `weights` uses, against a teacher's targets, as a step for `train`.

    Losses of weight 0 are logged where all they need is at hand. A student without distillation token has no hard and soft;
    early features need an `aligner` beside the student (`models.dearkd.EarlyAligner`).
    Source: A Algorithm 1; B stage 1; C eq. 9, 10.
    """

    def step(
        student: nn.Module,
        batch: Batch,
        teacher: Callable[[Batch], Targets],
        progress: float = 0.0,
        aligner: nn.Module | None = None,
    ) -> dict[str, Tensor]:
        target = teacher(batch)
        with early_tokens(student) if aligner is not None else nullcontext() as early:
            probed = target.probe is not None and has_probe(student)
            output, probe = outputs_and_probe(student, batch.images, probed)
        logits, distilled = output if isinstance(output, tuple) else (output, None)
        losses = {
            "kd": kd_loss(logits, target.logits, weights.temperature),
            "ce": label_loss(logits, batch),
        }
        if probe is not None:
            losses["patch"] = patch_probe_loss(probe, target.probe)
        if distilled is not None:
            losses["hard"] = hard_distillation_loss(distilled, target.logits)
            losses["soft"] = kd_loss(distilled, target.logits, weights.temperature)
        if aligner is not None:
            aligned = aligner(early[0], target.early.shape[2:]).float()
            losses["early"] = F.mse_loss(aligned, target.early.float())
        total = sum(weight * losses[name] for name, weight in weights.at(progress).items())
        return {"loss": total, **losses}

    step.weights = weights
    return step
