"""Attention probes and maps beside their images (A Figures 1-4)."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from dfkd_lib.plots.images import heat, overlay, show, to_display
from dfkd_lib.plots.style import new_figure, styled


@styled
def image_map_probe(images, maps, probes, names: Sequence[str]) -> Figure:
    """A Figure 1: each image, its attention map, its probe over the patch grid, and the probe laid over the image.

    Args:
        images: uint8 (n, C, H, W). maps: (n, T, T), heads averaged. probes: (n, N). names: n titles.
    """
    figure, axes = new_figure(len(images), 4, 8.2, 2.05 * len(images) + 0.2, squeeze=False)
    for row, image, attention, probe, name in zip(axes, images, maps, probes, names, strict=True):
        show(row[0], image, f"image: {name}")
        heat(row[1], attention, "attention map (query × key)", bar=True)
        heat(row[2], probe, "attention probe", bar=True)
        show(row[3], image, "probe on the image")
        overlay(row[3], probe, np.shape(image)[1:])
    return figure


@styled
def probe_pipeline(images, probes, class_probe, name: str) -> Figure:
    """A Figure 2: the probes (n, N) of one class's images (n, C, H, W), and their mean, the class probe (N,)."""
    count = len(images)
    figure, axes = new_figure(2, count + 1, 1.15 * (count + 1), 2.7, squeeze=False)
    for i in range(count):
        show(axes[0, i], images[i])
        heat(axes[1, i], probes[i])
    axes[0, -1].set_axis_off()
    axes[0, -1].text(0.5, 0.5, "mean over\nthe class", ha="center", va="center", fontsize=10)
    heat(axes[1, -1], class_probe, "class probe")
    axes[0, 0].set_ylabel(f"class {name}", fontsize=9)
    axes[1, 0].set_ylabel("probes", fontsize=9)
    return figure


@styled
def class_probe_grid(
    class_probes, classes: Sequence[str], mean_images=None, columns: int = 5
) -> Figure:
    """A Figures 3, 4: the class attention probes (K, N) over the patch grid, one colour scale for all classes.

    Args:
        mean_images: uint8 (K, C, H, W), drawn faintly over each probe where given.
    """
    rows = -(-len(classes) // columns)
    figure, axes = new_figure(rows, columns, 1.55 * columns + 0.8, 1.75 * rows, squeeze=False)
    top = float(np.max(np.asarray(class_probes)))
    for ax in axes.flat[len(classes) :]:
        ax.set_axis_off()
    for i, (ax, probe, name) in enumerate(zip(axes.flat, class_probes, classes, strict=False)):
        drawn = heat(ax, probe, str(name), top)
        if mean_images is not None:
            faint = to_display(mean_images[i])
            ax.imshow(faint, cmap="gray", alpha=0.3, extent=drawn.get_extent())
    figure.colorbar(drawn, ax=axes, shrink=0.8, label="attention of the class token")
    return figure
