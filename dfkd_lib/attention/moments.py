"""Mean and spread in one pass."""

import torch
from torch import Tensor


class Moments:
    """Mean and standard deviation of rows, in one pass and constant memory (Chan, Golub and LeVeque 1983)."""

    def __init__(self):
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def add(self, rows: Tensor) -> None:
        """Take in rows (n, ...)."""
        rows = rows.detach().double().cpu()
        n, new = len(rows), rows.mean(0)
        total = self.count + n
        self.squares = (
            self.squares
            + ((rows - new) ** 2).sum(0)
            + (new - self.mean) ** 2 * (self.count * n / total)
        )
        self.mean = self.mean + (new - self.mean) * (n / total)
        self.count = total

    @property
    def std(self) -> Tensor:
        """Standard deviation (n - 1); NaN of one row."""
        return (
            (self.squares / (self.count - 1)).sqrt()
            if self.count > 1
            else torch.full_like(self.mean, torch.nan)
        )
