"""Grids of images."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from dfkd_lib.plots.style import STYLE, new_figure


def to_display(image) -> np.ndarray:
    """One uint8 image (C, H, W) as matplotlib wants it: (H, W) for one channel, (H, W, 3) for three."""
    image = np.asarray(image)
    return image[0] if image.shape[0] == 1 else np.moveaxis(image, 0, -1)


def show(ax, image, title: str = "") -> None:
    """Draw one uint8 image (C, H, W) without ticks."""
    ax.imshow(to_display(image), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    ax.set_xticks([]), ax.set_yticks([])
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    if title:
        ax.set_title(title, fontsize=9)


def image_rows(rows: dict[str, Sequence], columns: Sequence[str] | None = None) -> Figure:
    """Rows of uint8 images (n, C, H, W) under each other, each row named at its left, columns named above."""
    with matplotlib.rc_context(STYLE):
        count = max(len(images) for images in rows.values())
        figure, axes = new_figure(
            len(rows), count, 0.8 * count + 1.2, 0.85 * len(rows) + 0.3, squeeze=False
        )
        for ax_row, (name, images) in zip(axes, rows.items(), strict=True):
            for i, ax in enumerate(ax_row):
                if i < len(images):
                    show(ax, images[i])
                else:
                    ax.set_axis_off()
            ax_row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        for ax, name in zip(axes[0], columns or (), strict=False):
            ax.set_title(name, fontsize=9)
    return figure
