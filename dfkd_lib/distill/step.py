"""The library's step of a student: named losses, weighted, maybe otherwise over training, and summed."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from dfkd_lib import attention, losses
from dfkd_lib.attention import LAST, outputs_and_probe
from dfkd_lib.core import Config, fingerprint
from dfkd_lib.distill.targets import Targets, early_tokens
from dfkd_lib.losses import LOSSES, Schedule, StudentOutputs, read_schedules, weights_of
from dfkd_lib.training import Batch, label_loss


class KDWeights(weights_of(LOSSES)):
    """λ of each loss (≥ 0, not all 0), the temperature T (> 0), and factors on the weights over training.

    `schedules` is "" or factors over training as `read_schedules` takes them: "kd: 1@0 0@1; patch: 0@0 1@0.5".
    """

    rule: ClassVar[str] = "weights, at least one above 0 and with no schedule that is 0 throughout"
    also: ClassVar[dict[str, str]] = {"temperature": "temperature"}

    temperature: float = Field(
        4.0, gt=0, le=1000, title="T", description="T of the distillation loss"
    )
    schedules: str = Field("", description="factors on the weights over training: kd: 1@0 0@1; …")

    @property
    def curves(self) -> dict[str, Schedule]:
        """The weight over training of each loss that ever has one above 0."""
        factors = read_schedules(self.schedules, self.losses)
        every = {name: factors.get(name, Schedule()).times(self[name]) for name in self.losses}
        return {name: curve for name, curve in every.items() if curve.largest > 0}

    @property
    def used(self) -> list[str]:
        """The losses that ever have a weight above 0."""
        return list(self.curves)

    @property
    def needs(self) -> set[str]:
        """What these losses need, out of `losses.NEEDS`."""
        return {need for name in self.used for need in LOSSES[name].needs}

    def record(self) -> dict:
        """The settings that count: a loss that is not in use is none of them."""
        names = [*self.used, "temperature", "schedules"]
        return {name: self[name] for name in names}


def drop_one(weights: KDWeights) -> dict[str, KDWeights]:
    """The one-component-out ablation: {"all": …, "without KD": …, "without CE": …, "without patch": …, …}.

    A loss that is not in use, or that is the only one, has no setting.
    """
    used = weights.used if len(weights.used) > 1 else []
    left = {f"without {LOSSES[name].label}": weights.replace(**{name: 0.0}) for name in used}
    return {"all": weights, **left}


def kd_step(
    weights: KDWeights, blocks: tuple[int, ...] = LAST, block_weights: tuple[float, ...] = (1.0,)
) -> Callable:
    """The weighted sum of the losses that `weights` uses, against a teacher's targets, as a step for `train`.

    The student's probes are those of `blocks`, whose patch losses `block_weights` weighs (or one of them all).
    Early features need an `aligner` beside the student (`models.dearkd.EarlyAligner`).
    Source: A Algorithm 1; B stage 1; C eq. 9, 10.
    """
    curves, temperature, probed = weights.curves, weights.temperature, "probe" in weights.needs
    # Only the losses in use are part of the step, and so of the student's key.
    compute = {name: LOSSES[name].compute for name in curves}

    def step(
        student: nn.Module,
        batch: Batch,
        teacher: Callable[[Batch], Targets],
        progress: float = 0.0,
        aligner: nn.Module | None = None,
    ) -> dict[str, Tensor]:
        target = teacher(batch)
        with early_tokens(student) if aligner else nullcontext() as early:
            output, probe = outputs_and_probe(student, batch.images, probed, blocks=blocks)
        logits, distilled = output if isinstance(output, tuple) else (output, None)
        aligned = aligner(early[0], target.early.shape[2:]) if aligner else None
        found = StudentOutputs(logits, probe, distilled, aligned, block_weights)
        losses = {name: of(found, target, batch, temperature) for name, of in compute.items()}
        total = sum(curves[name](progress) * loss for name, loss in losses.items())
        return {"loss": total, **losses}

    return step


def known_step(step: Callable, weights: KDWeights, student: Config) -> Callable | KDWeights:
    """The weights, for `kd_step`, in place of a step that is theirs written out, comments aside; else the step.

    So what notebook 30 trains as it stands, and what is trained by weights alone, have one key.

    Args:
        student: the `StudentConfig`, whose blocks the step matches.
    """
    plain = weights.used == ["kd", "ce", "patch"] and not weights.schedules
    own = _algorithm_1(weights, student.patch_blocks, student.block_weights)
    return weights if plain and fingerprint(step).digest == fingerprint(own).digest else step


def _algorithm_1(λ: KDWeights, blocks: tuple, block_weights: tuple) -> Callable:
    """The step of notebook 30."""

    def step(student, batch, teacher):
        target = teacher(batch)
        logits, probe = attention.outputs_and_probe(student, batch.images, blocks=blocks)
        kd = losses.kd_loss(logits, target.logits, λ.temperature)
        ce = label_loss(logits, batch)
        patch = losses.patch_probe_loss(probe, target.probe, block_weights)
        loss = λ.kd * kd + λ.ce * ce + λ.patch * patch
        return {"loss": loss, "kd": kd, "ce": ce, "patch": patch}

    step.__qualname__ = step.__name__  # as in a notebook's cell: the name is part of a fingerprint
    return step
