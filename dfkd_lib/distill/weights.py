"""What a student is taught by: the weight of each loss, and how it changes over training."""

from dataclasses import dataclass, replace
from functools import cached_property

from dfkd_lib.core import WorkbenchError, is_number
from dfkd_lib.losses import Schedule, read_schedules

# Field -> its name in tables.
LOSSES = {
    "kd": "KD",
    "ce": "CE",
    "patch": "patch",
    "hard": "hard label",
    "soft": "soft label",
    "early": "early features",
}


@dataclass(frozen=True)
class KDWeights:
    """λ of each loss (≥ 0, not all 0), the temperature T (> 0), and factors on the weights over training.

    Args:
        kd: softened teacher outputs on the class token (A eq. 8). ce: cross entropy to the labels, mixed ones under CutMix
            or MixUp (A eq. 9; C eq. 9). patch: attention probes (A eq. 10).
        hard, soft: the teacher's arg-max label (C eq. 10; DeiT), or its softened outputs, on the distillation token.
        early: mean squared error of aligned early features to a CNN teacher's (B stage 1).
        schedules: "" or factors over training as `read_schedules` takes them: "kd: 1@0 0@1; patch: 0@0 1@0.5".
    """

    kd: float = 1.0
    ce: float = 1.0
    patch: float = 1.0
    temperature: float = 4.0
    hard: float = 0.0
    soft: float = 0.0
    early: float = 0.0
    schedules: str = ""

    def __post_init__(self):
        weights = {name: getattr(self, name) for name in LOSSES}
        if not all(is_number(value, 0) for value in weights.values()) or not any(
            map(self.uses, LOSSES)
        ):
            raise WorkbenchError(
                "the loss weights are impossible",
                expected="λ ≥ 0, at least one above 0",
                got=", ".join(f"{LOSSES[name]} {value}" for name, value in weights.items()),
                where="KDWeights",
                fix="give at least one component a positive weight"
                + (", and a schedule that is not 0 throughout" if self.schedules else ""),
            )
        if not is_number(self.temperature) or self.temperature <= 0:
            raise WorkbenchError(
                "the temperature must be positive",
                expected="T > 0",
                got=self.temperature,
                where="KDWeights",
                fix="usual values are 1 to 8",
            )

    @cached_property
    def _schedules(self) -> dict[str, Schedule]:
        return read_schedules(self.schedules, tuple(LOSSES))

    def uses(self, name: str) -> bool:
        """Whether that loss ever has a weight above 0."""
        return getattr(self, name) > 0 and (
            name not in self._schedules or self._schedules[name].largest > 0
        )

    def at(self, progress: float) -> dict[str, float]:
        """The weight of each loss in use at a share of training in [0, 1]."""
        return {
            name: getattr(self, name)
            * (self._schedules[name](progress) if name in self._schedules else 1.0)
            for name in LOSSES
            if self.uses(name)
        }


def drop_one(weights: KDWeights) -> dict[str, KDWeights]:
    """The one-component-out ablation: {"all": …, "without KD": …, "without CE": …, "without patch": …, …}.

    A loss that is not in use, or that is the only one, has no row.
    """
    used = [name for name in LOSSES if weights.uses(name)]
    return {"all": weights} | {
        f"without {LOSSES[name]}": replace(weights, **{name: 0.0}) for name in used if len(used) > 1
    }
