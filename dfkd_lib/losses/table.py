"""Every named loss in one table: its label, its equation, its weight, the function that computes it, what it needs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import torch.nn.functional as F
from pydantic import Field, create_model, model_validator
from torch import Tensor

from dfkd_lib.core import Config
from dfkd_lib.losses import classification, detection, synthesis

# What a student's loss may need of teacher and student; `distill.check_losses` sees to it.
NEEDS = {
    "probe": "a transformer with a class token, as teacher and as student",
    "distillation token": "a student with a distillation token",
    "early features": "a CNN teacher whose early maps can be read (cnn_small, vgg16_bn), a student with blocks",
}


class StudentOutputs(NamedTuple):
    """What a student computes of a batch of B images.

    Args:
        logits: (B, K), of the class token.
        probe: attention probe (B, N) ≥ 0, (B, P, N) of P blocks, or None.
        distilled: (B, K), logits of the distillation token, or None.
        early: (B, C, h, w), early features aligned to the teacher's early map, or None.
        block_weights: of these blocks, or one for all.
    """

    logits: Tensor
    probe: Tensor | None = None
    distilled: Tensor | None = None
    early: Tensor | None = None
    block_weights: tuple[float, ...] = (1.0,)


@dataclass(frozen=True)
class Loss:
    """One named loss.

    Args:
        label: in tables and figures.
        help: a phrase for a control or a settings table.
        equation: where it comes from.
        compute: the function; of a student's losses (StudentOutputs, teacher targets, batch, temperature) → scalar.
        weight: λ by default, ≥ 0.
        needs: names of `NEEDS`.
    """

    label: str
    help: str
    equation: str
    compute: Callable[..., Tensor]
    weight: float = 0.0
    needs: tuple[str, ...] = ()


class Weights(Config):
    """The weight λ ≥ 0 of each loss of a table, not all 0; see `weights_of`."""

    losses: ClassVar[tuple[str, ...]] = ()
    rule: ClassVar[str] = "weights of losses, at least one above 0"

    @property
    def used(self) -> list[str]:
        """The losses that ever have a weight above 0."""
        return [name for name in self.losses if self[name]]

    @model_validator(mode="after")
    def _some_loss(self) -> Self:
        if not self.used:
            raise ValueError(self.rule)
        return self

    def total(self, named: dict[str, Tensor]) -> dict[str, Tensor]:
        """What a step returns: "loss", the weighted sum, and the named losses."""
        total: Any = sum(getattr(self, name) * loss for name, loss in named.items())
        return {"loss": total, **named}


def weights_of(table: dict[str, Loss], **weights: float) -> type[Weights]:
    """A base for a configuration: a field for each loss of a table, with its help, label and second name `<loss>_weight`.

    Args:
        weights: the losses wanted with their defaults; all of the table with its own by default.
    """
    weights = weights or {name: loss.weight for name, loss in table.items()}
    fields: dict[str, Any] = {}
    for name, default in weights.items():
        loss = table[name]
        help = f"λ of {loss.help} ({loss.equation})"
        fields[name] = (float, Field(default, ge=0, title=loss.label, description=help))
    made = create_model("LossWeights", __base__=Weights, __module__=__name__, **fields)
    made.losses, made.also = tuple(weights), {name: f"{name}_weight" for name in weights}
    return made


def _kd(student, teacher, batch, temperature: float) -> Tensor:
    return classification.kd_loss(student.logits, teacher.logits, temperature)


def _ce(student, teacher, batch, temperature: float) -> Tensor:
    return classification.label_loss(student.logits, batch)


def _patch(student, teacher, batch, temperature: float) -> Tensor:
    return classification.patch_probe_loss(student.probe, teacher.probe, student.block_weights)


def _patch_mse(student, teacher, batch, temperature: float) -> Tensor:
    return classification.patch_mse_loss(student.probe, teacher.probe, student.block_weights)


def _patch_kl(student, teacher, batch, temperature: float) -> Tensor:
    return classification.patch_kl_loss(student.probe, teacher.probe, student.block_weights)


def _hard(student, teacher, batch, temperature: float) -> Tensor:
    return classification.hard_distillation_loss(student.distilled, teacher.logits)


def _soft(student, teacher, batch, temperature: float) -> Tensor:
    return classification.kd_loss(student.distilled, teacher.logits, temperature)


def _early(student, teacher, batch, temperature: float) -> Tensor:
    return F.mse_loss(student.early.float(), teacher.early.float())


_TOKEN = ("distillation token",)

# Students of classification: each computed from (StudentOutputs, teacher targets, batch, temperature).
LOSSES = {
    "kd": Loss("KD", "the teacher's softened outputs", "A eq. 8", _kd, 1.0),
    "ce": Loss("CE", "the labels, mixed where images are mixed", "A eq. 9; C eq. 9", _ce, 1.0),
    "patch": Loss("patch", "the teacher's attention probe", "A eq. 10", _patch, 1.0, ("probe",)),
    "patch_mse": Loss(
        "patch MSE",
        "the teacher's attention probe, mean squared error",
        "A eq. 10 with another distance",
        _patch_mse,
        needs=("probe",),
    ),
    "patch_kl": Loss(
        "patch KL",
        "the teacher's attention probe, KL divergence",
        "A eq. 10 with another distance",
        _patch_kl,
        needs=("probe",),
    ),
    "hard": Loss(
        "hard label",
        "the teacher's label on a distillation token",
        "C eq. 10; B stage 1; DeiT",
        _hard,
        needs=_TOKEN,
    ),
    "soft": Loss(
        "soft label",
        "the teacher's softened outputs on a distillation token",
        "DeiT; A eq. 8",
        _soft,
        needs=_TOKEN,
    ),
    "early": Loss(
        "early features",
        "a CNN teacher's early features, mean squared error",
        "B stage 1",
        _early,
        needs=("early features",),
    ),
}


def loss_titles() -> dict[str, str]:
    """{name: title} of students' losses: label and first equation."""
    return {name: f"{one.label} ({one.equation.partition(';')[0]})" for name, one in LOSSES.items()}


# Detectors: each computed from paired predictions, see the function.
DETECTION_LOSSES = {
    "classification": Loss("classes", "classes", "A eq. 11", detection.classification_loss, 2.0),
    "boxes": Loss("boxes", "Smooth L1 of the boxes", "A eq. 12, 13", detection.box_loss, 100.0),
    "giou": Loss(
        "GIoU",
        "1 − generalised IoU of the boxes",
        "Rezatofighi et al. 2019; DETR",
        detection.giou_loss,
    ),
    "distillation": Loss(
        "KD",
        "the paired teacher query's softened logits",
        "A eq. 14",
        detection.distillation_loss,
        1.0,
    ),
    "box_distillation": Loss(
        "box KD", "the paired teacher query's box", "ours", detection.box_distillation_loss
    ),
    "attention_distillation": Loss(
        "attention KD",
        "the paired teacher query's cross-attention",
        "A eq. 10 for each object query",
        detection.attention_distillation_loss,
    ),
    "feature_distillation": Loss(
        "feature KD",
        "the teacher's projected backbone features",
        "after FitNets",
        detection.feature_distillation_loss,
    ),
    "query_logits": Loss(
        "query KD",
        "the teacher's logits at its queries, put to both",
        "after KD-DETR",
        detection.query_logit_loss,
    ),
    "query_boxes": Loss(
        "query boxes",
        "the teacher's boxes at these queries",
        "after KD-DETR",
        detection.query_box_loss,
    ),
    "query_features": Loss(
        "query features",
        "the teacher's decoder features at these queries",
        "after D³ETR",
        detection.query_feature_loss,
    ),
    "query_attention": Loss(
        "query attention",
        "the teacher's cross-attention at these queries, layer by layer",
        "A eq. 10 for each query; after D³ETR",
        detection.attention_distillation_loss,
    ),
    "own": Loss(
        "its own",
        "the losses that D-FINE, DEIMv2, RT-DETR and RF-DETR bring along",
        "transformers: matching, boxes, denoising, all layers",
        detection.own_loss,
        1.0,
    ),
}

# Makers of images without real ones: their steps call `compute`, or build their term from it; defaults of the weights are
# each maker's own.
MAKER_LOSSES = {
    "ce": Loss(
        "CE", "the cross entropy to the class asked for", "B (DeepInversion)", F.cross_entropy
    ),
    "attention": Loss(
        "attention consistency",
        "the consistency with class probes",
        "A eq. 4",
        classification.attention_consistency_loss,
    ),
    "tv": Loss(
        "total variation", "total variation", "B (DeepInversion)", synthesis.total_variation
    ),
    "ink": Loss("ink", "an image's ink, mean of (x − background)² / 4", "ours", synthesis.ink),
    "blank": Loss("blank", "what the ink falls short of `least`", "ours", synthesis.ink),
    "l2": Loss("l2", "the mean of (x − background)² / 4", "B (DeepInversion)", synthesis.ink),
    "diversity": Loss(
        "diversity", "how alike images of a class are", "ours", synthesis.diversity_loss
    ),
    "intra": Loss(
        "intra-divergence", "intra-divergence", "B (DF-DearKD)", synthesis.intra_divergence_loss
    ),
    "patch_entropy": Loss(
        "patch similarity",
        "minus the entropy of patch similarities",
        "Li et al. 2022, eq. 4-7",
        synthesis.patch_similarity_loss,
    ),
    "batch_norm": Loss(
        "batch norm", "batch-norm statistics", "B (DeepInversion)", synthesis.batch_norm_loss
    ),
    "contrast": Loss(
        "contrast",
        "finding an image's views among other images, those made before included",
        "Fang et al. 2021",
        synthesis.contrastive_loss,
    ),
    "compete": Loss(
        "competition",
        "1 − disagreement of teacher and student",
        "Yin et al. 2020",
        synthesis.disagreement,
    ),
    "decision_adversarial": Loss(
        "decisions",
        "minus the divergence of a student where it agrees with the teacher on the class",
        "Fang et al. 2021, 2022",
        synthesis.decision_adversarial_loss,
    ),
    "adversarial": Loss(
        "disagreement",
        "minus the disagreement of teacher and student",
        "Fang et al. 2019",
        synthesis.logit_distance,
    ),
}
