"""Losses of the classification students and of the probe-guided generator."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dfkd_lib.attention import resize_probe
from dfkd_lib.core import WorkbenchError


def same_shape(student: Tensor, teacher: Tensor, what: str) -> None:
    if student.shape != teacher.shape:
        raise WorkbenchError(
            f"{what} of student and teacher do not fit",
            expected=tuple(teacher.shape),
            got=tuple(student.shape),
            fix="give both the same classes and the same batch",
        )


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Distillation loss T²/N ΣΣ q log(q/p) of softened outputs (A eq. 8; Hinton et al. 2015).

    Args:
        student_logits, teacher_logits: (N, K). temperature: T > 0.

    Returns:
        A scalar, 0 if and only if the softened outputs agree.

    Raises:
        WorkbenchError: on T ≤ 0 or different shapes.
    """
    if not temperature > 0:
        raise WorkbenchError(
            "the temperature must be positive",
            expected="T > 0",
            got=temperature,
            where="kd_loss",
            fix="usual values are 1 to 8",
        )
    same_shape(student_logits, teacher_logits, "logits")
    log_p = F.log_softmax(student_logits.float() / temperature, dim=-1)
    log_q = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    return F.kl_div(log_p, log_q, log_target=True, reduction="batchmean") * temperature**2


def patch_probe_loss(student_probe: Tensor, teacher_probe: Tensor) -> Tensor:
    """Mean of 1 − cos(student's probe, teacher's probe) on the same images (A eq. 10's L_patch).

    Args:
        student_probe: (B, N). teacher_probe: (B, M); resized to the student's grid where M ≠ N. Both ≥ 0.

    Returns:
        A scalar in [0, 1].
    """
    target = resize_probe(teacher_probe.float(), student_probe.shape[-1])
    same_shape(student_probe, target, "probes")
    return (1 - F.cosine_similarity(student_probe.float(), target, dim=-1)).mean()


def attention_consistency_loss(probe: Tensor, class_probe: Tensor) -> Tensor:
    """Mean of 1 − cos(probe of a generated image, class probe of the class asked for) (A eq. 3, 4).

    Args:
        probe, class_probe: (B, N), row i of `class_probe` being the probe of image i's class. All ≥ 0.

    Returns:
        A scalar in [0, 1].
    """
    same_shape(probe, class_probe, "probes")
    return (1 - F.cosine_similarity(probe.float(), class_probe.float(), dim=-1)).mean()


def cutmix_loss(logits: Tensor, labels_a: Tensor, labels_b: Tensor, lam: float | Tensor) -> Tensor:
    """λ CE(logits, a) + (1 − λ) CE(logits, b) for images mixed of a (share λ) and b (C eq. 9; Yun et al. 2019).

    Args:
        logits: (B, K). labels_a, labels_b: int64 (B,). lam: λ in [0, 1], one number or one an image (B,).

    Returns:
        A scalar.
    """
    lam = torch.as_tensor(lam, dtype=torch.float32, device=logits.device)
    a = F.cross_entropy(logits.float(), labels_a, reduction="none")
    b = F.cross_entropy(logits.float(), labels_b, reduction="none")
    return (lam * a + (1 - lam) * b).mean()


def hard_distillation_loss(distillation_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross entropy of the distillation token's logits to the teacher's arg-max label (B stage 1, C eq. 10; DeiT).

    Args:
        distillation_logits, teacher_logits: (B, K).
    """
    same_shape(distillation_logits, teacher_logits, "logits")
    return F.cross_entropy(distillation_logits.float(), teacher_logits.argmax(-1))
