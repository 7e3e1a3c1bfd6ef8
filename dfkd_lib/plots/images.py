"""Grids of images, and values over their patches."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from dfkd_lib.plots.style import COLORS, new_figure, plain, styled

HEAT = {"cmap": "magma", "vmin": 0, "interpolation": "nearest"}
NAMED = {"rotation": 0, "ha": "right", "va": "center", "fontsize": 9}  # a row, at its left


def to_display(image) -> np.ndarray:
    """One uint8 image (C, H, W) as matplotlib wants it: (H, W) for one channel, (H, W, 3) for three."""
    image = np.asarray(image)
    return image[0] if image.shape[0] == 1 else np.moveaxis(image, 0, -1)


def show(ax, image, title: str = "") -> None:
    """Draw one uint8 image (C, H, W) without ticks."""
    ax.imshow(to_display(image), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    plain(ax, title)


def as_grid(values) -> np.ndarray:
    """Values (N,) as their square patch grid (√N, √N); N that is no square becomes one row."""
    values = np.asarray(values, float)
    side = round(values.size**0.5)
    if values.ndim > 1:
        return values
    return values.reshape(side, side) if side * side == len(values) else values[None]


def heat(
    ax, values, title: str = "", top: float | None = None, bar: bool = False, cmap: str = "magma"
):
    """Draw values over a grid, (N,) or (rows, columns), dark for 0; `bar` adds the scale."""
    drawn = ax.imshow(as_grid(values), vmax=top, **{**HEAT, "cmap": cmap})
    plain(ax, title)
    if bar:
        ax.figure.colorbar(drawn, ax=ax, shrink=0.8)
    return drawn


def overlay(ax, values, shape: tuple[float, float], alpha: float = 0.6, **how) -> None:
    """Lay values over a grid over the upper left `shape` (height, width) of what is drawn of an image.

    `how`: of matplotlib's imshow, in place of `HEAT`.
    """
    height, width = shape
    place = (-0.5, width - 0.5, height - 0.5, -0.5)
    limits = ax.axis()
    ax.imshow(as_grid(values), alpha=alpha, extent=place, **{**HEAT, **how})
    ax.axis(limits)


@styled
def image_rows(rows: dict[str, Sequence], columns: Sequence[str] | None = None) -> Figure:
    """Rows of uint8 images (n, C, H, W) under each other, each row named at its left, columns named above."""
    count = max(len(images) for images in rows.values())
    size = 0.8 * count + 1.2, 0.85 * len(rows) + 0.3
    figure, axes = new_figure(len(rows), count, *size, squeeze=False)
    for ax_row, (name, images) in zip(axes, rows.items(), strict=True):
        for i, ax in enumerate(ax_row):
            if i < len(images):
                show(ax, images[i])
            else:
                ax.set_axis_off()
        ax_row[0].set_ylabel(name, **NAMED)
    for ax, name in zip(axes[0], columns or (), strict=False):
        ax.set_title(name, fontsize=9)
    return figure


@styled
def neighbours(made: Sequence, real: Sequence, distances: Sequence) -> Figure:
    """Each made image beside its nearest real ones, nearest first, with their distances: does it look like a copy?

    Args:
        made: uint8 (n, C, H, W). real: uint8 (n, k, C, H, W). distances: (n, k), of `metrics.nearest`.
    """
    count, k = np.shape(distances)
    figure, axes = new_figure(count, k + 1, 0.95 * k + 1.15, 1.12 * count + 0.35, squeeze=False)
    for i, row in enumerate(axes):
        show(row[0], made[i], "made" if i == 0 else "")
        row[0].spines[:].set(visible=True, color=COLORS[1], linewidth=2)
        for j, ax in enumerate(row[1:]):
            show(ax, real[i][j], f"real, {j + 1}." if i == 0 else "")
            ax.set_xlabel(f"{distances[i][j]:.3g}", fontsize=9, labelpad=2)
    return figure
