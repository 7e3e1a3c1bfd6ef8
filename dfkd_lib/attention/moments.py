"""Mean and spread in one pass, of all rows and by class."""

import torch
from torch import Tensor

from dfkd_lib.core import WorkbenchError


class Moments:
    """Mean and standard deviation of rows, in one pass and constant memory (Chan, Golub and LeVeque 1983)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros((), dtype=torch.double)

    def add(self, rows: Tensor) -> None:
        """Take in rows (n, ...)."""
        rows = rows.detach().double().cpu()
        n, new = len(rows), rows.mean(0)
        total = self.count + n
        self.squares = self.squares + ((rows - new) ** 2).sum(0)
        self.squares = self.squares + (new - self.mean) ** 2 * (self.count * n / total)
        self.mean = self.mean + (new - self.mean) * (n / total)
        self.count = total

    @property
    def std(self) -> Tensor:
        """Standard deviation (n - 1); NaN of one row."""
        if self.count == 1:
            return torch.full_like(self.mean, torch.nan)
        return (self.squares / (self.count - 1)).sqrt()


class ClassMoments:
    """`Moments` of each of K classes."""

    def __init__(self, num_classes: int):
        self.classes = [Moments() for _ in range(num_classes)]

    def add(self, rows: Tensor, labels: Tensor) -> None:
        """Take in rows (n, ...) with int64 labels (n,); WorkbenchError on a label out of range."""
        for k in labels.unique().tolist():
            if not 0 <= k < len(self.classes):
                raise self._error("a label is out of range", k)
            self.classes[k].add(rows[labels.to(rows.device) == k])

    def stacked(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and standard deviation, float32 (K, ...), and counts, int64 (K,); WorkbenchError if a class has no row."""
        empty = [k for k, moment in enumerate(self.classes) if not moment.count]
        if empty:
            raise self._error("some classes have no image", f"no image of class {empty}")
        return (
            torch.stack([moment.mean for moment in self.classes]).float(),
            torch.stack([moment.std for moment in self.classes]).float(),
            torch.tensor([moment.count for moment in self.classes]),
        )

    def _error(self, problem: str, got: object) -> WorkbenchError:
        return WorkbenchError(
            problem,
            expected=f"labels 0..{len(self.classes) - 1}, each used",
            got=got,
            fix="give images of every class, or the right number of classes",
        )
