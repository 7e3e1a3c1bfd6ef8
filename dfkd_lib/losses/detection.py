"""Detection losses of the data-free KD paper (section 9, eq. 11-14), on predictions already paired with their targets.

Beside them stand the distillation of boxes and of cross-attention, which count by the teacher's objectness.

N, over which the paper takes the mean, is the number of objects here, as in DETR: weights then mean the same for any
number of queries. Dimensions before the batch, such as a decoder's layers, are kept: each has a loss of its own. Where
several processes part a batch among them, N is of all of it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_convert

from dfkd_lib.core.processes import shared_count

SMOOTH = 50.0  # Smooth L1 of coordinates in [0, 1] beside one GIoU: the terms' default weights have it so, 100 to 2


class TeacherTargets(NamedTuple):
    """The teacher's query that each student's query is paired with.

    Args:
        logits: (..., B, Q, K).
        boxes: (..., B, Q, 4) cxcywh in [0, 1].
        paired: bool (..., B, Q), whether there is one.
        objectness: (..., B, Q) in [0, 1], 0 where there is none; None where no loss counts by it.
        maps: its cross-attention (B, Q, h, w) for the last decoder layer; None where it is not distilled.
    """

    logits: Tensor
    boxes: Tensor
    paired: Tensor
    objectness: Tensor | None = None
    maps: Tensor | None = None


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross entropy with logits against the expanded, one-hot targets, summed, per object.

    Args:
        logits: (..., B, Q, K), K classes of which the last is "no object".
        labels: int64 (..., B, Q) in 0..K-1.

    Returns:
        (...), ≥ 0, as every loss here.

    Source: A eq. 11.
    """
    # Not one_hot, which looks at every label on the CPU to check it.
    own = labels[..., None] == torch.arange(logits.shape[-1], device=labels.device)
    each = F.binary_cross_entropy_with_logits(logits, own.to(logits.dtype), reduction="none")
    return each.sum((-3, -2, -1)) / _count(labels < logits.shape[-1] - 1)


def box_loss(boxes: Tensor, targets: Tensor, present: Tensor) -> Tensor:
    """Smooth L1 (transition at 1) of the pairs that hold an object, per object; 0 where there is none.

    Args:
        boxes, targets: (..., B, Q, 4) cxcywh in [0, 1].
        present: bool (..., B, Q), True where the pair holds an object.

    Returns:
        (...), ≥ 0.

    Source: A eq. 12, 13.
    """
    return _of_pairs(F.smooth_l1_loss(boxes, targets, reduction="none").sum(-1), present)


def giou_loss(boxes: Tensor, targets: Tensor, present: Tensor) -> Tensor:
    """1 - generalised IoU of the pairs that hold an object, per object, in [0, 2]; arguments as of `box_loss`.

    DETR adds it to a box loss because coordinates alone say little about how well boxes overlap.

    Source: Rezatofighi et al. 2019; not in the papers.
    """
    return _of_pairs(giou_apart(boxes, targets), present)


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, paired: Tensor | None = None
) -> Tensor:
    """KL(teacher ‖ student) of logits (..., B, Q, K) softened by the temperature T, times T², mean over queries.

    T² (Hinton et al. 2015; in the paper's eq. 8 but not in its eq. 14) keeps the gradient's size free of T. The paper
    names student and teacher P and Q the other way round in its expansion, but calls KLDivLoss(log student, teacher).

    Args:
        student_logits, teacher_logits: (..., B, Q, K).
        temperature: T > 0.
        paired: bool (..., B, Q), the queries that have a teacher's; None for all.

    Returns:
        (...), ≥ 0.

    Source: A eq. 14; Hinton et al. 2015.
    """
    log_student = F.log_softmax(student_logits / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher_logits / temperature, dim=-1)
    apart = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(-1)
    return temperature**2 * (apart.mean((-2, -1)) if paired is None else _of_pairs(apart, paired))


def own_loss(loss: Tensor) -> Tensor:
    """The loss that a detector's network computes of itself (`models.Detections.own`), as one of a step's: scalar → (1,)."""
    return loss[None]


def objectness(logits: Tensor) -> Tensor:
    """Probability of the best class times that of not being "no object", the last: logits (..., K) → (...) in [0, 1]."""
    chance = logits.sigmoid()
    return chance[..., :-1].amax(-1) * (1 - chance[..., -1])


def box_distillation_loss(boxes: Tensor, teacher_boxes: Tensor, weights: Tensor) -> Tensor:
    """SMOOTH · Smooth L1 + (1 - generalised IoU) towards the paired teacher query's box, per object of the teacher's.

    Args:
        boxes, teacher_boxes: (..., B, Q, 4) cxcywh in [0, 1].
        weights: (..., B, Q), the teacher's `objectness`, 0 where a query has no pair.

    Returns:
        (...), ≥ 0.
    """
    smooth = F.smooth_l1_loss(boxes, teacher_boxes, reduction="none").sum(-1)
    return _weighted(SMOOTH * smooth + giou_apart(boxes, teacher_boxes), weights)


def attention_distillation_loss(maps: Tensor, teacher_maps: Tensor, weights: Tensor) -> Tensor:
    """1 - cos(student's, teacher's cross-attention) of paired queries, per object of the teacher's.

    The classification students' patch loss (A eq. 10), for each object query instead of the class token.

    Args:
        maps: (B, Q, h, w) ≥ 0, a query's attention over the encoder's tokens.
        teacher_maps: (B, Q, h', w') ≥ 0, brought to the student's grid.
        weights: (B, Q), as in `box_distillation_loss`.

    Returns:
        A scalar in [0, 1].
    """
    target = resize_maps(teacher_maps.float(), maps.shape[-2:])
    alike = F.cosine_similarity(maps.float().flatten(-2), target.flatten(-2), dim=-1)
    return _weighted(1 - alike, weights)


def feature_distillation_loss(features: Tensor, teacher_features: Tensor) -> Tensor:
    """Squared difference of what the backbones give the encoders, over the variance of the teacher's within a channel.

    Args:
        features, teacher_features: (B, D, h, w).

    Returns:
        A scalar ≥ 0; 1 for the mean of each channel.

    Source: after FitNets (Romero et al. 2015).
    """
    target = teacher_features.float()
    spread = target.var((0, 2, 3), correction=0).mean().clamp(min=1e-12)
    return F.mse_loss(features.float(), target) / spread


def query_logit_loss(
    logits: Tensor, teacher_logits: Tensor, weights: Tensor, temperature: float
) -> Tensor:
    """T² Σ_k KL(σ(t_k / T) ‖ σ(s_k / T)), of the same query put to both, per object of the teacher's.

    Each class by itself, as `classification_loss` trains it.

    Args:
        logits, teacher_logits: (..., B, Q, K).
        weights: (..., B, Q), the teacher's `objectness`.
        temperature: T > 0.

    Returns:
        (...), ≥ 0.

    Source: after KD-DETR (Wang et al. 2024); Hinton et al. 2015 for T.
    """
    soft, target = logits / temperature, teacher_logits / temperature
    chance = target.sigmoid()
    cross, own = (
        F.binary_cross_entropy_with_logits(one, chance, reduction="none") for one in (soft, target)
    )
    return temperature**2 * _weighted((cross - own).sum(-1), weights)


def query_box_loss(boxes: Tensor, teacher_boxes: Tensor, weights: Tensor) -> Tensor:
    """5 · L1 + 2 · (1 - generalised IoU), DETR's box loss, of the same query put to both, per object of the teacher's.

    Arguments and result as of `box_distillation_loss`.

    Source: after KD-DETR (Wang et al. 2024).
    """
    apart = (boxes - teacher_boxes).abs().sum(-1)
    return _weighted(5 * apart + 2 * giou_apart(boxes, teacher_boxes), weights)


def query_feature_loss(features: Tensor, teacher_features: Tensor, weights: Tensor) -> Tensor:
    """1 - cos(student's, teacher's decoder features) of the same query put to both, per object of the teacher's.

    Args:
        features, teacher_features: (..., B, Q, D), the student's mapped to the teacher's width.
        weights: (..., B, Q), the teacher's `objectness`.

    Returns:
        (...), in [0, 2].

    Source: after D³ETR (Chen et al. 2022).
    """
    alike = F.cosine_similarity(features.float(), teacher_features.float(), dim=-1)
    return _weighted(1 - alike, weights)


def resize_maps(maps: Tensor, grid: Sequence[int]) -> Tensor:
    """Attention maps (B, Q, h, w) on another grid, bilinear, the sum of each kept."""
    if maps.shape[-2:] == tuple(grid):
        return maps
    resized = F.interpolate(maps, tuple(grid), mode="bilinear", align_corners=False)
    before, after = (m.sum((-2, -1), keepdim=True) for m in (maps, resized))
    return resized * before / after.clamp(min=1e-12)


def detection_losses(
    logits: Tensor,
    boxes: Tensor,
    target_labels: Tensor,
    target_boxes: Tensor,
    teacher: TeacherTargets | None = None,
    temperature: float = 2.0,
) -> dict[str, Tensor]:
    """Every named loss of paired predictions, unweighted (eq. 11-14, and GIoU, which the paper does not use).

    Args:
        logits: (..., B, Q, K), the last of K "no object".
        boxes: (..., B, Q, 4) cxcywh in [0, 1].
        target_labels: int64 (..., B, Q) in 0..K-1.
        target_boxes: (..., B, Q, 4) cxcywh, read only where there is an object.
        teacher: its paired queries, or None.
        temperature: T > 0 of the distillation.

    Returns:
        {"classification", "boxes", "giou"} and, with a teacher, "distillation": (...) each.
    """
    present = target_labels < logits.shape[-1] - 1
    losses = {
        "classification": classification_loss(logits, target_labels),
        "boxes": box_loss(boxes, target_boxes, present),
        "giou": giou_loss(boxes, target_boxes, present),
    }
    if teacher is not None:
        softened = logits, teacher.logits, temperature, teacher.paired
        losses["distillation"] = distillation_loss(*softened)
    return losses


def giou_apart(boxes: Tensor, targets: Tensor) -> Tensor:
    """1 - generalised IoU of boxes (..., 4) cxcywh that broadcast: (...). torchvision's own loss picks out the pairs that
    overlap, and so waits for the device at each call."""
    corners = (box_convert(b, "cxcywh", "xyxy").split(2, -1) for b in (boxes, targets))
    (low, high), (low_target, high_target) = corners
    inside = torch.minimum(high, high_target) - torch.maximum(low, low_target)
    shared = inside.clamp(min=0).prod(-1)
    union = (high - low).prod(-1) + (high_target - low_target).prod(-1) - shared
    hull = (torch.maximum(high, high_target) - torch.minimum(low, low_target)).prod(-1)
    return 1 - shared / (union + 1e-7) + (hull - union) / (hull + 1e-7)


def _count(pairs: Tensor) -> Tensor:
    """The sum over (..., B, Q) of a batch, at least 1."""
    return torch.as_tensor(shared_count(pairs.sum((-2, -1))))


def _of_pairs(values: Tensor, pairs: Tensor) -> Tensor:
    """Mean of values (..., B, Q) over the wanted pairs; 0 if there is none."""
    return torch.where(pairs, values, 0.0).sum((-2, -1)) / _count(pairs)


def _weighted(values: Tensor, weights: Tensor) -> Tensor:
    """Sum of values (..., B, Q) by their weights, over the weights' sum where that is one object or more."""
    return (weights * values).sum((-2, -1)) / _count(weights)
