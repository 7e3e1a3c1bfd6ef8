"""Detection losses of the data-free KD paper (section 9, eq. 11-14), on predictions already paired with their targets.

N, over which the paper takes the mean, is the number of objects here, as in DETR: weights then mean the same for any
number of queries.
"""

import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou_loss


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Eq. 11: binary cross entropy with logits against the expanded, one-hot targets, summed, per object.

    Args:
        logits: (B, Q, K), K classes of which the last is "no object". labels: int64 (B, Q) in 0..K-1.
    """
    targets = F.one_hot(labels, logits.shape[-1]).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / _objects(logits, labels)


def box_loss(boxes: Tensor, targets: Tensor, present: Tensor) -> Tensor:
    """Eq. 12, 13: Smooth L1 (transition at 1) of the pairs that hold an object, per object; 0 where there is none.

    Args:
        boxes, targets: (B, Q, 4) in [0, 1]. present: bool (B, Q), True where the pair holds an object.
    """
    return F.smooth_l1_loss(boxes[present], targets[present], reduction="sum") / present.sum().clamp(min=1)


def giou_loss(boxes: Tensor, targets: Tensor, present: Tensor) -> Tensor:
    """1 - generalised IoU of the pairs that hold an object, per object (Rezatofighi et al. 2019); not in the paper.

    DETR adds it to a box loss because coordinates alone say little about how well boxes overlap.

    Args:
        boxes, targets: (B, Q, 4), centre x, centre y, width, height in [0, 1]. present: bool (B, Q).
    """
    corners = [box_convert(b[present], "cxcywh", "xyxy") for b in (boxes, targets)]
    return generalized_box_iou_loss(*corners, reduction="sum") / present.sum().clamp(min=1)


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Eq. 14: KL(teacher ‖ student) of logits (B, Q, K) softened by the temperature T, times T², mean over queries.

    T² (Hinton et al. 2015; in the paper's eq. 8 but not in its eq. 14) keeps the gradient's size free of T. The paper
    names student and teacher P and Q the other way round in its expansion, but calls KLDivLoss(log student, teacher).
    """
    log_student = F.log_softmax(student_logits / temperature, dim=-1).flatten(0, 1)
    log_teacher = F.log_softmax(teacher_logits / temperature, dim=-1).flatten(0, 1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def detection_losses(logits: Tensor, boxes: Tensor, target_labels: Tensor, target_boxes: Tensor,
                     teacher_logits: Tensor | None = None, temperature: float = 2.0) -> dict[str, Tensor]:
    """Every named loss of paired predictions, unweighted (eq. 11-14, and GIoU, which the paper does not use).

    Args:
        logits: (B, Q, K), the last of K "no object". boxes: (B, Q, 4) cxcywh in [0, 1].
        target_labels: int64 (B, Q) in 0..K-1. target_boxes: (B, Q, 4), read only where there is an object.
        teacher_logits: (B, Q, K), those of the teacher's query paired with each of the student's, or None.

    Returns:
        {"classification", "boxes", "giou"} and, with a teacher, "distillation": scalars ≥ 0.
    """
    present = target_labels < logits.shape[-1] - 1
    losses = {"classification": classification_loss(logits, target_labels),
              "boxes": box_loss(boxes, target_boxes, present), "giou": giou_loss(boxes, target_boxes, present)}
    if teacher_logits is not None:
        losses["distillation"] = distillation_loss(logits, teacher_logits, temperature)
    return losses


def _objects(logits: Tensor, labels: Tensor) -> Tensor:
    return (labels < logits.shape[-1] - 1).sum().clamp(min=1)
