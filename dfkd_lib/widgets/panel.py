"""What the attention explorer draws of one image under one model."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Panel:
    """One image under one model.

    Args:
        title, prediction: what it is, and what the model predicts of it. image: uint8 (C, H, W). grid: (rows, columns).
        way: what weights are, as `Choice.weights` names it. cover: height and width that the grid covers from the upper left, as shares of the image.
        weights: float32 (R, N), the attention of each of R tokens on N patches, at the chosen block and head; (1, N) of
            the chosen token alone for rollout and gradient-weighted attention, of the predicted class for LeGrad.
        row: the chosen token's row. block, head: from 0; head -1 is the mean. blocks: how many there are.
        kind: of attention. kinds: those the model has. prefix: tokens before the patches among the rows.
        overview: float32 (blocks, heads, N), the chosen token's attention everywhere, 0 in blocks of other tokens or heads;
            None where weights are no attention.
        epoch, epochs: of weights while the model learned, which and how many; else None.
        tints, shares: red, green and blue (N, 3) in 0..255 of components, and the shares of the variance of each; else None.
        nearest: rows are patches of the first image, and what is marked here is the patch most like the chosen one.
        class_probe: (N,) of the image's class at this block, or None. query: the chosen detection's.
        boxes: float (n, 4) cxcywh in [0, 1], with queries (n,) and labels [n], of a detector; else None.
    """

    title: str
    prediction: str
    image: np.ndarray
    grid: tuple[int, int]
    weights: np.ndarray
    row: int
    block: int
    head: int
    blocks: int
    kind: str
    kinds: tuple[str, ...]
    prefix: int = 0
    cover: tuple[float, float] = (1.0, 1.0)
    way: str = "attention"
    nearest: bool = False
    epoch: int | None = None
    epochs: int | None = None
    tints: list[list[int]] | None = None
    shares: list[float] | None = None
    overview: np.ndarray | None = None
    class_probe: np.ndarray | None = None
    query: int | None = None
    boxes: np.ndarray | None = None
    queries: list[int] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)

    @property
    def probe(self) -> np.ndarray:
        """The chosen token's attention on the patches (N,)."""
        return self.weights[self.row]

    def place(self, patch: int) -> tuple[float, float]:
        """The centre of a patch, down and across, as shares of the image."""
        at = patch // self.grid[1], patch % self.grid[1]
        down, across = (
            (i + 0.5) / n * c for i, n, c in zip(at, self.grid, self.cover, strict=True)
        )
        return down, across

    def patch_at(self, place: tuple[float, float]) -> int:
        """The patch at a place, or next to it."""
        row, column = (
            min(int(x / c * n), n - 1) for x, n, c in zip(place, self.grid, self.cover, strict=True)
        )
        return row * self.grid[1] + column

    @property
    def agreement(self) -> float | None:
        """The cosine of the probe and the class probe in [0, 1], 0 of a head that is off; None without a class probe."""
        if self.class_probe is None:
            return None
        norms = np.linalg.norm(self.probe) * np.linalg.norm(self.class_probe)
        return float(self.probe @ self.class_probe / norms) if norms > 0 else 0.0
