"""Every named loss in one table: its label, its equation, what it needs, and the function that computes it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from dfkd_lib.losses import classification, detection, synthesis

# What a loss may need, and what that is called in a message.
NEEDS = {
    "teacher": "a teacher",
    "labels": "labels",
    "probe": "a transformer with a class token, as teacher and as student",
    "distillation token": "a student with a distillation token",
    "early features": "a CNN teacher whose early feature maps can be read, and a transformer student with blocks",
    "class probes": "class attention probes of the teacher, from real images",
    "batch norm": "a teacher with batch norm",
    "attention": "a transformer teacher",
    "student": "a student to compete with",
    "real images": "real images",
    "cross-attention": "detectors with cross-attention, as teacher and as student",
}


class StudentOutputs(NamedTuple):
    """What a student computes of a batch of B images.

    Args:
        logits: (B, K), of the class token.
        probe: attention probe (B, N) ≥ 0, or None.
        distilled: (B, K), logits of the distillation token, or None.
        early: (B, C, h, w), early features aligned to the teacher's early map, or None.
    """

    logits: Tensor
    probe: Tensor | None = None
    distilled: Tensor | None = None
    early: Tensor | None = None


@dataclass(frozen=True)
class Loss:
    """One named loss.

    Args:
        label: in tables and figures.
        help: one sentence for a control or a settings table.
        equation: where it comes from.
        needs: names of `NEEDS` that it cannot do without.
        compute: the function; of a student's losses (student outputs, teacher targets, batch, temperature) → scalar.
        weight: λ by default, ≥ 0.
    """

    label: str
    help: str
    equation: str
    needs: frozenset[str]
    compute: Callable[..., Tensor]
    weight: float = 0.0

    def missing(self, available: set[str]) -> str:
        """What the loss needs and is not available, in words; "" if it can be computed."""
        return "; ".join(NEEDS[need] for need in sorted(self.needs - available))


def _kd(student, teacher, batch, temperature: float) -> Tensor:
    return classification.kd_loss(student.logits, teacher.logits, temperature)


def _ce(student, teacher, batch, temperature: float) -> Tensor:
    return classification.label_loss(student.logits, batch)


def _patch(student, teacher, batch, temperature: float) -> Tensor:
    return classification.patch_probe_loss(student.probe, teacher.probe)


def _hard(student, teacher, batch, temperature: float) -> Tensor:
    return classification.hard_distillation_loss(student.distilled, teacher.logits)


def _soft(student, teacher, batch, temperature: float) -> Tensor:
    return classification.kd_loss(student.distilled, teacher.logits, temperature)


def _early(student, teacher, batch, temperature: float) -> Tensor:
    return F.mse_loss(student.early.float(), teacher.early.float())


def _loss(label, help, equation, needs, compute, weight=0.0) -> Loss:
    return Loss(label, help, equation, frozenset(needs), compute, weight)


# Students of classification: each computed from (StudentOutputs, teacher targets, batch, temperature).
LOSSES = {
    "kd": _loss(
        "KD", "distillation: the teacher's softened outputs", "A eq. 8", {"teacher"}, _kd, 1.0
    ),
    "ce": _loss(
        "CE",
        "cross entropy to the labels, mixed ones where images are mixed",
        "A eq. 9; C eq. 9",
        {"labels"},
        _ce,
        1.0,
    ),
    "patch": _loss(
        "patch",
        "patch probe: attention of the class token against the teacher's",
        "A eq. 10",
        {"teacher", "probe"},
        _patch,
        1.0,
    ),
    "hard": _loss(
        "hard label",
        "the teacher's arg-max label on the distillation token",
        "C eq. 10; B stage 1; DeiT",
        {"teacher", "distillation token"},
        _hard,
    ),
    "soft": _loss(
        "soft label",
        "the teacher's softened outputs on the distillation token",
        "DeiT; A eq. 8 on the distillation token",
        {"teacher", "distillation token"},
        _soft,
    ),
    "early": _loss(
        "early features",
        "mean squared error of aligned early features to a CNN teacher's",
        "B stage 1",
        {"teacher", "early features"},
        _early,
    ),
}

# Detectors: each computed from paired predictions, see the function.
DETECTION_LOSSES = {
    "classification": _loss(
        "classes",
        "binary cross entropy to the one-hot targets",
        "A eq. 11",
        {"labels"},
        detection.classification_loss,
        2.0,
    ),
    "boxes": _loss(
        "boxes", "Smooth L1 of the boxes", "A eq. 12, 13", {"labels"}, detection.box_loss, 100.0
    ),
    "giou": _loss(
        "GIoU",
        "1 − generalised IoU of the boxes",
        "Rezatofighi et al. 2019; DETR",
        {"labels"},
        detection.giou_loss,
        2.0,
    ),
    "distillation": _loss(
        "KD",
        "distillation: the paired teacher query's softened logits",
        "A eq. 14",
        {"teacher"},
        detection.distillation_loss,
        1.0,
    ),
    "box_distillation": _loss(
        "box KD",
        "boxes against the paired teacher query's, by its objectness",
        "ours",
        {"teacher"},
        detection.box_distillation_loss,
    ),
    "attention_distillation": _loss(
        "attention KD",
        "cross-attention against the paired teacher query's, by its objectness",
        "A eq. 10 for each object query",
        {"teacher", "cross-attention"},
        detection.attention_distillation_loss,
    ),
}

# Makers of images: each computed from images, or from what the teacher makes of them, see the function.
MAKER_LOSSES = {
    "attention": _loss(
        "attention consistency",
        "attention probes of made images against the class probes of the classes asked for",
        "A eq. 3-5",
        {"teacher", "attention", "class probes"},
        classification.attention_consistency_loss,
    ),
    "tv": _loss(
        "total variation",
        "differences of neighbouring pixels",
        "B (DeepInversion)",
        set(),
        synthesis.total_variation,
    ),
    "diversity": _loss(
        "diversity",
        "how alike images of a class are",
        "ours",
        {"labels"},
        synthesis.diversity_loss,
    ),
    "intra": _loss(
        "intra-divergence",
        "easy images of a class move apart, hard ones stay",
        "B (DF-DearKD)",
        {"teacher", "labels"},
        synthesis.intra_divergence_loss,
    ),
    "patch_entropy": _loss(
        "patch similarity",
        "minus the entropy of the similarities between an image's patches",
        "Li et al. 2022, eq. 4-7",
        {"teacher", "attention"},
        synthesis.patch_similarity_loss,
    ),
    "batch_norm": _loss(
        "batch norm",
        "statistics of each batch norm against those of the training images",
        "B (DeepInversion)",
        {"teacher", "batch norm"},
        synthesis.batch_norm_loss,
    ),
    "compete": _loss(
        "competition",
        "1 − disagreement of teacher and student",
        "Yin et al. 2020",
        {"teacher", "student"},
        synthesis.disagreement,
    ),
    "adversarial": _loss(
        "disagreement",
        "distance of the teacher's and the student's logits, which the generator raises",
        "Fang et al. 2019",
        {"teacher", "student"},
        synthesis.logit_distance,
    ),
}
