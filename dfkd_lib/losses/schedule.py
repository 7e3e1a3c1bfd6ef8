"""Weights that change over a training: a factor by points, straight lines between them."""

import math
from dataclasses import dataclass

from dfkd_lib.core import WorkbenchError

HOW = (
    "value@share points, as in 1@0 0@1 (falls from 1 to 0) or 1@0.6 0@0.6 (1, then 0 from 60 % on)"
)


@dataclass(frozen=True)
class Schedule:
    """A factor ≥ 0 over training: straight between its points, level before the first and after the last.

    Args:
        points: (share of training in [0, 1], value ≥ 0), shares never falling; two points at one share make a jump.
    """

    points: tuple[tuple[float, float], ...] = ((0.0, 1.0),)

    @classmethod
    def parse(cls, text: str) -> "Schedule":
        """The schedule written as `value@share value@share ...`; WorkbenchError on anything else."""
        try:
            pairs = [word.split("@") for word in text.split()]
            points = tuple((float(share), float(value)) for value, share in pairs)
        except ValueError:
            points = ()
        shares = [share for share, _ in points]
        if (
            not points
            or shares != sorted(shares)
            or not 0 <= shares[0] <= shares[-1] <= 1
            or not all(math.isfinite(value) and value >= 0 for _, value in points)
        ):
            raise WorkbenchError(
                "a schedule could not be read",
                expected=HOW,
                got=text,
                where="schedules",
                fix="values are ≥ 0, shares lie in 0..1 and never fall",
            )
        return cls(points)

    def __call__(self, progress: float) -> float:
        """The factor at a share of training in [0, 1]."""
        before, after = self.points[0], None
        for point in self.points:
            if point[0] > progress:
                after = point
                break
            before = point
        if after is None or progress < before[0]:
            return before[1]
        return before[1] + (after[1] - before[1]) * (progress - before[0]) / (after[0] - before[0])

    @property
    def largest(self) -> float:
        """The largest factor it ever takes."""
        return max(value for _, value in self.points)


def read_schedules(text: str, names: tuple[str, ...]) -> dict[str, Schedule]:
    """The schedules written as `name: points; name: points`; "" is none. WorkbenchError on an unknown or repeated name."""
    if not isinstance(text, str):
        raise WorkbenchError(
            "schedules are no text",
            expected="name: points; ...",
            got=text,
            where="schedules",
            fix=f"points are {HOW}",
        )
    found: dict[str, Schedule] = {}
    for part in filter(str.strip, text.split(";")):
        name, colon, points = part.partition(":")
        name = name.strip()
        if not colon or name not in names or name in found:
            raise WorkbenchError(
                "a schedule names no loss, or one twice",
                expected="name: points; ... with names of " + ", ".join(names),
                got=part.strip(),
                where="schedules",
                fix=f"points are {HOW}",
            )
        found[name] = Schedule.parse(points)
    return found
