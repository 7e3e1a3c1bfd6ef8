"""Losses of the classification students and of the probe-guided generator."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dfkd_lib.attention import resize_probe
from dfkd_lib.core import WorkbenchError


def same_shape(student: Tensor, teacher: Tensor, what: str) -> None:
    """WorkbenchError unless what student and teacher give has one shape."""
    if student.shape != teacher.shape:
        raise WorkbenchError(
            f"{what} of student and teacher do not fit",
            expected=tuple(teacher.shape),
            got=tuple(student.shape),
            fix="give both the same classes and the same batch",
        )


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Distillation loss T²/N ΣΣ q log(q/p) of softened outputs.

    Args:
        student_logits, teacher_logits: (N, K).
        temperature: T > 0, usually 1 to 8.

    Returns:
        A scalar, 0 if and only if the softened outputs agree.

    Raises:
        WorkbenchError: on T ≤ 0 or different shapes.

    Source: A eq. 8; Hinton et al. 2015.
    """
    if not temperature > 0:
        raise WorkbenchError(
            "the temperature must be positive", expected="T > 0", got=temperature, where="kd_loss"
        )
    same_shape(student_logits, teacher_logits, "logits")
    log_p = F.log_softmax(student_logits.float() / temperature, dim=-1)
    log_q = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    return F.kl_div(log_p, log_q, log_target=True, reduction="batchmean") * temperature**2


def patch_probe_loss(
    student_probe: Tensor, teacher_probe: Tensor, weights: Sequence[float] = (1.0,)
) -> Tensor:
    """Mean of 1 − cos(student's probe, teacher's probe) on the same images, layer by layer where several blocks are matched.

    Args:
        student_probe: (B, N) ≥ 0, or (B, P, N) of P blocks.
        teacher_probe: (B, M) or (B, P, M) ≥ 0, resized to the student's grid where M ≠ N.
        weights: w_p ≥ 0 of each block, or one for all: the loss is Σ w_p L_p / Σ w_p.

    Returns:
        A scalar in [0, 1].

    Source: A eq. 10, L_patch.
    """
    student, teacher = _on_one_grid(student_probe, teacher_probe)
    return _over_blocks(1 - F.cosine_similarity(student, teacher, dim=-1), weights)


def _on_one_grid(student_probe: Tensor, teacher_probe: Tensor) -> tuple[Tensor, Tensor]:
    """Both probes on the student's grid, float32."""
    target = resize_probe(teacher_probe.float(), student_probe.shape[-1])
    same_shape(student_probe, target, "probes")
    return student_probe.float(), target


def _shares(student_probe: Tensor, teacher_probe: Tensor) -> tuple[Tensor, Tensor]:
    """Both probes on the student's grid, each with sum 1."""
    pair = (one.clamp_min(1e-12) for one in _on_one_grid(student_probe, teacher_probe))
    student, teacher = (one / one.sum(-1, keepdim=True) for one in pair)
    return student, teacher


def _over_blocks(losses: Tensor, weights: Sequence[float]) -> Tensor:
    """The mean over images of losses (B,); of (B, P) their mean over blocks by weights."""
    if losses.ndim == 1:
        return losses.mean()
    shares = torch.tensor(weights, device=losses.device).expand(losses.shape[1])
    return losses.mean(0) @ shares / shares.sum()


def patch_mse_loss(
    student_probe: Tensor, teacher_probe: Tensor, weights: Sequence[float] = (1.0,)
) -> Tensor:
    """Mean squared difference of the probes' shares, in units of an even share (1/N); arguments as of `patch_probe_loss`."""
    student, teacher = _shares(student_probe, teacher_probe)
    apart = (student.shape[-1] * (student - teacher)).square().mean(-1)
    return _over_blocks(apart, weights)


def patch_kl_loss(
    student_probe: Tensor, teacher_probe: Tensor, weights: Sequence[float] = (1.0,)
) -> Tensor:
    """Mean of KL(teacher's probe ‖ student's), as distributions over patches; arguments as of `patch_probe_loss`."""
    student, teacher = _shares(student_probe, teacher_probe)
    return _over_blocks(F.kl_div(student.log(), teacher, reduction="none").sum(-1), weights)


def attention_consistency_loss(probe: Tensor, class_probe: Tensor) -> Tensor:
    """Mean of 1 − cos(probe of a generated image, class probe of the class asked for).

    Args:
        probe: (B, N) ≥ 0.
        class_probe: (B, N) ≥ 0, row i being the probe of image i's class.

    Returns:
        A scalar in [0, 1].

    Source: A eq. 3, 4.
    """
    same_shape(probe, class_probe, "probes")
    return (1 - F.cosine_similarity(probe.float(), class_probe.float(), dim=-1)).mean()


def label_loss(logits: Tensor, batch) -> Tensor:
    """Cross entropy to the labels of a batch, mixed ones where its images are mixed.

    Args:
        logits: (B, K).
        batch: a `training.Batch`.

    Returns:
        A scalar.

    Source: A eq. 9; C eq. 9.
    """
    if batch.others is None:
        return F.cross_entropy(logits.float(), batch.labels)
    return cutmix_loss(logits, batch.labels, batch.others, batch.share)


def cutmix_loss(logits: Tensor, labels_a: Tensor, labels_b: Tensor, lam: float | Tensor) -> Tensor:
    """λ CE(logits, a) + (1 − λ) CE(logits, b) for images mixed of a (share λ) and b.

    Args:
        logits: (B, K).
        labels_a, labels_b: int64 (B,).
        lam: λ in [0, 1], one number or one an image (B,).

    Returns:
        A scalar.

    Source: C eq. 9; Yun et al. 2019.
    """
    lam = torch.as_tensor(lam, dtype=torch.float32, device=logits.device)
    a = F.cross_entropy(logits.float(), labels_a, reduction="none")
    b = F.cross_entropy(logits.float(), labels_b, reduction="none")
    return (lam * a + (1 - lam) * b).mean()


def hard_distillation_loss(distillation_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross entropy of the distillation token's logits to the teacher's arg-max label.

    Args:
        distillation_logits, teacher_logits: (B, K).

    Returns:
        A scalar.

    Source: C eq. 10; B stage 1; DeiT.
    """
    same_shape(distillation_logits, teacher_logits, "logits")
    return F.cross_entropy(distillation_logits.float(), teacher_logits.argmax(-1))
