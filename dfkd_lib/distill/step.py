"""The library's step of a student: named losses, weighted, maybe otherwise over training, and summed."""

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from types import CodeType
from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from dfkd_lib import attention, losses
from dfkd_lib.attention import LAST, outputs_and_probe
from dfkd_lib.core import Config, WorkbenchError, fingerprint
from dfkd_lib.distill.targets import Targets, early_tokens
from dfkd_lib.losses import LOSSES, Schedule, StudentOutputs, read_schedules, weights_of
from dfkd_lib.training import Batch, label_loss

SHOWN = ("kd", "ce", "patch")  # the losses of notebook 30's step


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


def known_step(
    step: Callable, weights: KDWeights, student: Config, say: Callable[[str], None] = print
) -> Callable | KDWeights:
    """The weights, for `kd_step`, in place of notebook 30's step as it stands, comments aside; else the step.

    So what notebook 30 trains as it stands, and what is trained by weights alone, have one key, and losses and schedules that
    the step does not show take effect.

    Args:
        weights: those that the step weighs its losses by.
        student: the `StudentConfig`, whose blocks the step matches.
        say: is told what the library's step adds to the one shown.

    Raises:
        WorkbenchError: if settings ask for losses or schedules that an edited step does not name.
    """
    own = _algorithm_1(weights, student.patch_blocks, student.block_weights)
    added = {f"{name}_weight": name for name in weights.used if name not in SHOWN}
    added |= {"schedules": "schedules"} if weights.schedules else {}
    if fingerprint(step).digest == fingerprint(own).digest:
        if added:
            more = ", ".join(f"{setting}={weights[name]}" for setting, name in added.items())
            say(f"Beyond the losses of the step shown, the library's step adds what is set: {more}")
        return weights
    named = _names(step)
    left = [setting for setting, name in added.items() if name not in named]
    if left and not named & {"curves", "record", "used"}:
        raise WorkbenchError(
            "the step was edited, and does without losses or schedules that are set",
            expected="a step that uses " + ", ".join(f"λ.{added[setting]}" for setting in left),
            got=", ".join(f"{setting}={weights[added[setting]]}" for setting in left),
            where="step",
            fix=f"compute them in the step, or leave {', '.join(left)} out; the step as it stood takes them by itself",
        )
    return step


def _names(step: Callable) -> set[str]:
    """The names that a step's code uses, and that of the functions beside it which it calls."""
    found, seen, waiting = set[str](), set[int](), [inspect.unwrap(step)]
    while waiting:
        function = waiting.pop()
        code = function if isinstance(function, CodeType) else getattr(function, "__code__", None)
        if code is None or id(code) in seen:
            continue
        seen.add(id(code))
        found |= {*code.co_names, *code.co_freevars}
        found |= {text for text in code.co_consts if isinstance(text, str)}
        waiting += [inner for inner in code.co_consts if isinstance(inner, CodeType)]
        for name in code.co_names:
            other = getattr(function, "__globals__", {}).get(name)
            if getattr(other, "__module__", None) == getattr(function, "__module__", ""):
                waiting.append(other)
    return found


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
