"""Attention probes and maps beside their images (A Figures 1-4)."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from dfkd_lib.plots.images import show, to_display
from dfkd_lib.plots.style import STYLE, new_figure


def as_grid(probe) -> np.ndarray:
    """A probe (N,) as its square patch grid (√N, √N); N that is no square becomes one row."""
    probe = np.asarray(probe, float)
    side = round(len(probe) ** 0.5)
    return probe.reshape(side, side) if side * side == len(probe) else probe[None]


def _heat(ax, values: np.ndarray, title: str, top: float | None = None):
    drawn = ax.imshow(values, cmap="magma", vmin=0, vmax=top, interpolation="nearest")
    ax.set_xticks([]), ax.set_yticks([])
    ax.grid(False)
    ax.spines[:].set_visible(False)
    if title:
        ax.set_title(title, fontsize=9)
    return drawn


def overlay(ax, image, probe, title: str = "") -> None:
    """A probe (N,) laid over its uint8 image (C, H, W)."""
    show(ax, image, title)
    height, width = np.asarray(image).shape[1:]
    ax.imshow(
        as_grid(probe), cmap="magma", alpha=0.6, extent=(-0.5, width - 0.5, height - 0.5, -0.5)
    )


def image_map_probe(images, maps, probes, names: Sequence[str]) -> Figure:
    """A Figure 1: each image, its attention map, its probe over the patch grid, and the probe laid over the image.

    Args:
        images: uint8 (n, C, H, W). maps: (n, T, T), heads averaged. probes: (n, N). names: n titles.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(len(images), 4, 8.2, 2.05 * len(images) + 0.2, squeeze=False)
        for row, image, attention, probe, name in zip(
            axes, images, maps, probes, names, strict=True
        ):
            show(row[0], image, f"image: {name}")
            drawn = _heat(row[1], np.asarray(attention, float), "attention map (query × key)")
            figure.colorbar(drawn, ax=row[1], shrink=0.8)
            drawn = _heat(row[2], as_grid(probe), "attention probe")
            figure.colorbar(drawn, ax=row[2], shrink=0.8)
            overlay(row[3], image, probe, "probe on the image")
    return figure


def probe_pipeline(images, probes, class_probe, name: str) -> Figure:
    """A Figure 2: the probes (n, N) of one class's images (n, C, H, W), and their mean, the class probe (N,)."""
    with matplotlib.rc_context(STYLE):
        count = len(images)
        figure, axes = new_figure(2, count + 1, 1.15 * (count + 1), 2.7, squeeze=False)
        for i in range(count):
            show(axes[0, i], images[i])
            _heat(axes[1, i], as_grid(probes[i]), "")
        axes[0, -1].set_axis_off()
        axes[0, -1].text(0.5, 0.5, "mean over\nthe class", ha="center", va="center", fontsize=10)
        _heat(axes[1, -1], as_grid(class_probe), "class probe")
        axes[0, 0].set_ylabel(f"class {name}", fontsize=9)
        axes[1, 0].set_ylabel("probes", fontsize=9)
    return figure


def class_probe_grid(
    class_probes, classes: Sequence[str], mean_images=None, columns: int = 5
) -> Figure:
    """A Figures 3, 4: the class attention probes (K, N) over the patch grid, one colour scale for all classes.

    Args:
        mean_images: uint8 (K, C, H, W), drawn faintly below each probe where given.
    """
    with matplotlib.rc_context(STYLE):
        rows = -(-len(classes) // columns)
        figure, axes = new_figure(rows, columns, 1.55 * columns + 0.8, 1.75 * rows, squeeze=False)
        top = float(np.max(np.asarray(class_probes)))
        drawn = None
        for ax in axes.flat:
            ax.set_axis_off()
        for ax, probe, name, i in zip(
            axes.flat, class_probes, classes, range(len(classes)), strict=False
        ):
            ax.set_axis_on()
            drawn = _heat(ax, as_grid(probe), str(name), top)
            if mean_images is not None:
                height, width = np.asarray(mean_images[i]).shape[1:]
                side = as_grid(probe).shape
                ax.imshow(
                    to_display(mean_images[i]),
                    cmap="gray",
                    alpha=0.3,
                    extent=(-0.5, side[1] - 0.5, side[0] - 0.5, -0.5),
                )
        figure.colorbar(drawn, ax=axes, shrink=0.8, label="attention of the class token")
    return figure
