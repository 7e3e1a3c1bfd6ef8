"""What a student learns by: the weight of each loss of `LOSSES`, and how it changes over training."""

from typing import ClassVar

from pydantic import Field

from dfkd_lib.losses import LOSSES, Schedule, read_schedules, weights_of


class KDWeights(weights_of(LOSSES)):
    """λ of each loss (≥ 0, not all 0), the temperature T (> 0), and factors on the weights over training.

    `schedules` is "" or factors over training as `read_schedules` takes them: "kd: 1@0 0@1; patch: 0@0 1@0.5".
    """

    rule: ClassVar[str] = "weights, at least one above 0 and with no schedule that is 0 throughout"

    temperature: float = Field(
        4.0,
        gt=0,
        le=1000,
        title="T",
        description="T of the distillation loss",
        json_schema_extra={"also": "temperature"},
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
