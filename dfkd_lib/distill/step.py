"""The steps of every student and teacher here: named losses, weighted and summed."""

from collections.abc import Callable
from contextlib import nullcontext

import torch.nn.functional as F
from torch import Tensor, nn

from dfkd_lib.attention import outputs_and_probe
from dfkd_lib.distill.mixing import Batch
from dfkd_lib.distill.targets import Targets, early_tokens, has_probe
from dfkd_lib.distill.weights import KDWeights
from dfkd_lib.losses import cutmix_loss, hard_distillation_loss, kd_loss, patch_probe_loss


def label_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Cross entropy of logits (B, K) to the batch's labels, mixed ones where images are mixed (A eq. 9; C eq. 9)."""
    if batch.others is None:
        return F.cross_entropy(logits.float(), batch.labels)
    return cutmix_loss(logits, batch.labels, batch.others, batch.share)


def label_step(model: nn.Module) -> Callable:
    """Cross entropy alone, no teacher: how teachers, baselines and DearKD's stage 2 are trained.

    The prediction of a model with two heads is the mean of their logits, the same that is tested.
    """

    def step(batch: Batch, progress: float) -> dict[str, Tensor]:
        output, _ = outputs_and_probe(model, batch.images, probe=False)
        ce = label_loss((output[0] + output[1]) / 2 if isinstance(output, tuple) else output, batch)
        return {"loss": ce, "ce": ce}

    return step


def distill_step(
    student: nn.Module,
    targets: Callable[[Batch], Targets],
    weights: KDWeights,
    aligner: nn.Module | None = None,
) -> Callable:
    """The weighted sum of the losses that `weights` uses, against a teacher's targets.

    Losses of weight 0 are logged where all they need is at hand. A student without distillation token has no hard and soft.

    Args:
        targets: what the teacher says of a batch, see `stored_targets`, `live_targets`. aligner: from early tokens to the
            teacher's early map, see `models.dearkd.EarlyAligner`; needed for the early loss alone.

    Returns:
        A step for `training.fit` on `Batch`.
    Source: A Algorithm 1; B stage 1; C eq. 9, 10.
    """
    probed = has_probe(student)

    def step(batch: Batch, progress: float) -> dict[str, Tensor]:
        told = targets(batch)
        with early_tokens(student) if aligner is not None else nullcontext() as early:
            output, probe = outputs_and_probe(
                student, batch.images, probed and told.probe is not None
            )
        logits, distilled = output if isinstance(output, tuple) else (output, None)
        losses = {
            "kd": kd_loss(logits, told.logits, weights.temperature),
            "ce": label_loss(logits, batch),
        }
        if probe is not None:
            losses["patch"] = patch_probe_loss(probe, told.probe)
        if distilled is not None:
            losses["hard"] = hard_distillation_loss(distilled, told.logits)
            losses["soft"] = kd_loss(distilled, told.logits, weights.temperature)
        if aligner is not None:
            losses["early"] = F.mse_loss(
                aligner(early[0], told.early.shape[2:]).float(), told.early.float()
            )
        total = sum(weight * losses[name] for name, weight in weights.at(progress).items())
        return {"loss": total, **losses}

    return step
