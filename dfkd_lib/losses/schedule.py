"""Weights that change over a training: a factor by points, straight lines between them."""

from dataclasses import dataclass

import numpy as np

from dfkd_lib.core import WorkbenchError

HOW = (
    "value@share points, as in 1@0 0@1 (falls from 1 to 0) or 1@0.6 0@0.6 (1, then 0 from 60 % on)"
)


def _unreadable(what: str, expected: str, got: object) -> WorkbenchError:
    fix = f"write {HOW}; values are ≥ 0, shares lie in 0..1 and never fall"
    return WorkbenchError(what, expected=expected, got=got, where="schedules", fix=fix)


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
            pairs = [point.split("@") for point in text.split()]
            points = tuple((float(share), float(value)) for value, share in pairs)
        except ValueError:
            points = ()
        shares = [share for share, _ in points]
        in_order = points and shares == sorted(shares) and 0 <= shares[0] <= shares[-1] <= 1
        if not in_order or not all(0 <= value < np.inf for _, value in points):
            raise _unreadable("a schedule could not be read", HOW, text)
        return cls(points)

    def __call__(self, progress: float) -> float:
        """The factor at a share of training in [0, 1]."""
        return float(np.interp(progress, *np.transpose(self.points)))

    def times(self, weight: float) -> "Schedule":
        """The schedule of a weight that this one is the factor of."""
        return Schedule(tuple((share, weight * value) for share, value in self.points))

    @property
    def largest(self) -> float:
        """The largest factor it ever takes."""
        return max(value for _, value in self.points)


def read_schedules(text: str, names: tuple[str, ...]) -> dict[str, Schedule]:
    """The schedules written as `name: points; name: points`; "" is none. WorkbenchError on an unknown or repeated name."""
    found: dict[str, Schedule] = {}
    for part in filter(str.strip, text.split(";")):
        name, colon, points = part.partition(":")
        name = name.strip()
        if not colon or name not in names or name in found:
            expected = "name: points; ... with names of " + ", ".join(names)
            raise _unreadable("a schedule names no loss, or one twice", expected, part.strip())
        found[name] = Schedule.parse(points)
    return found
