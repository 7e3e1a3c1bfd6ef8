"""What a student is taught by: the weight of each loss, and how it changes over training."""

from functools import cached_property
from typing import Any, Self

from pydantic import Field, model_validator

from dfkd_lib.core import Config
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


def _weight(default: float, name: str, help: str) -> Any:
    return Field(
        default,
        ge=0,
        description=f"λ of {help}",
        title=LOSSES[name],
        json_schema_extra={"also": f"{name}_weight"},
    )


class KDWeights(Config):
    """λ of each loss (≥ 0, not all 0), the temperature T (> 0), and factors on the weights over training.

    `schedules` is "" or factors over training as `read_schedules` takes them: "kd: 1@0 0@1; patch: 0@0 1@0.5".
    Source: A eq. 8-10; C eq. 9, 10 and DeiT (distillation token); B stage 1 (early features).
    """

    kd: float = _weight(1.0, "kd", "the distillation loss (A eq. 8)")
    ce: float = _weight(1.0, "ce", "the cross entropy (A eq. 9)")
    patch: float = _weight(1.0, "patch", "the patch probe loss (A eq. 10)")
    temperature: float = Field(
        4.0,
        gt=0,
        le=1000,
        title="T",
        description="T of the distillation loss",
        json_schema_extra={"also": "temperature"},
    )
    hard: float = _weight(0.0, "hard", "the teacher's label on a distillation token (C eq. 10)")
    soft: float = _weight(0.0, "soft", "the teacher's softened output on a distillation token")
    early: float = _weight(0.0, "early", "early features of a CNN teacher (B stage 1)")
    schedules: str = Field("", description="factors on the weights over training: kd: 1@0 0@1; …")

    @model_validator(mode="after")
    def _some_loss(self) -> Self:
        if not any(map(self.uses, LOSSES)):
            raise ValueError(
                "λ ≥ 0 for each loss, at least one above 0"
                + (" and a schedule that is not 0 throughout" if self.schedules else "")
            )
        return self

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
        f"without {LOSSES[name]}": weights.replace(**{name: 0.0}) for name in used if len(used) > 1
    }
