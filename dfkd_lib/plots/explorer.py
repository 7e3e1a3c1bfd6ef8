"""The attention explorer's view as a figure: what it shows for a choice, one row a panel."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dfkd_lib.plots.images import show
from dfkd_lib.plots.style import COLORS, STYLE, new_figure


def _heat(figure, ax, values: np.ndarray, title: str) -> None:
    drawn = ax.imshow(values, cmap="magma", vmin=0, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    ax.set_title(title, fontsize=9)
    figure.colorbar(drawn, ax=ax, shrink=0.8)


def _image(ax, panel) -> None:
    """The image with the weights laid over it, the token's patch or the detections outlined."""
    height, width = panel.image.shape[1:]
    show(ax, panel.image)
    ax.imshow(
        panel.probe.reshape(panel.grid),
        cmap="magma",
        vmin=0,
        alpha=0.55,
        interpolation="nearest",
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
    )
    patch = panel.row - panel.prefix
    if panel.boxes is None and patch >= 0:
        rows, columns = panel.grid
        x, y = patch % columns * width / columns, patch // columns * height / rows
        ax.add_patch(
            Rectangle(
                (x - 0.5, y - 0.5),
                width / columns,
                height / rows,
                fill=False,
                edgecolor=COLORS[5],
                lw=1.8,
            )
        )
    for box, query, label in zip(
        panel.boxes if panel.boxes is not None else (), panel.queries, panel.labels, strict=True
    ):
        x, y, w, h = (box * (width, height, width, height)).tolist()
        chosen = query == panel.query
        ax.add_patch(
            Rectangle(
                (x - w / 2 - 0.5, y - h / 2 - 0.5),
                w,
                h,
                fill=False,
                lw=2.2 if chosen else 1.1,
                edgecolor=COLORS[5] if chosen else "white",
            )
        )
        if chosen:
            ax.annotate(
                label,
                (max(x - w / 2, 0), max(y - h / 2, 0)),
                xytext=(1, 2),
                textcoords="offset points",
                fontsize=8,
                color="white",
                bbox={"facecolor": COLORS[0], "edgecolor": "none", "pad": 1},
            )
    ax.set_title(f"{panel.title}\n{panel.said}", fontsize=9)


def _overview(figure, ax, panel) -> None:
    """The token's attention in every block (row) and head (column), each map by its own maximum."""
    blocks, heads, _ = panel.overview.shape
    rows, columns = panel.grid
    tiles = panel.overview / np.maximum(panel.overview.max(-1, keepdims=True), 1e-12)
    tiles = np.pad(
        tiles.reshape(blocks, heads, rows, columns),
        ((0, 0), (0, 0), (0, 1), (0, 1)),
        constant_values=np.nan,
    )
    ax.imshow(
        tiles.transpose(0, 2, 1, 3).reshape(blocks * (rows + 1), heads * (columns + 1)),
        cmap="magma",
        vmin=0,
        vmax=1,
        interpolation="nearest",
    )
    ax.set(xlabel="head", ylabel="block")
    ax.set_xticks(
        np.arange(heads) * (columns + 1) + columns / 2 - 0.5, range(1, heads + 1), fontsize=8
    )
    ax.set_yticks(np.arange(blocks) * (rows + 1) + rows / 2 - 0.5, range(1, blocks + 1), fontsize=8)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title("every block and head", fontsize=9)
    first, wide = (panel.head, 1) if panel.head >= 0 else (0, heads)
    ax.add_patch(
        Rectangle(
            (first * (columns + 1) - 0.5, panel.block * (rows + 1) - 0.5),
            wide * (columns + 1) - 1,
            rows,
            fill=False,
            edgecolor=COLORS[5],
            lw=1.6,
        )
    )


def attention_panels(panels: Sequence) -> Figure:
    """The attention explorer's view: each panel's image and weights, class probe, and every block and head.

    Args:
        panels: `dfkd_lib.widgets.Panel`s, each one image under one model.
    """
    columns = (
        2
        + any(p.class_probe is not None for p in panels)
        + any(p.overview is not None for p in panels)
    )
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(
            len(panels), columns, 2.7 * columns, 2.9 * len(panels), grid=False, squeeze=False
        )
        for ax_row, panel in zip(axes, panels, strict=True):
            for ax in ax_row:
                ax.set_axis_off()
            places = iter(ax_row)

            def place(places=places):
                ax = next(places)
                ax.set_axis_on()
                return ax

            _image(place(), panel)
            what = f"block {panel.block + 1} of {panel.blocks}, " + (
                f"head {panel.head + 1}" if panel.head >= 0 else "mean of heads"
            )
            _heat(
                figure,
                place(),
                panel.probe.reshape(panel.grid),
                what if panel.overview is not None else "all blocks",
            )
            if panel.class_probe is not None:
                _heat(
                    figure,
                    place(),
                    panel.class_probe.reshape(panel.grid),
                    f"class probe, cosine {panel.agreement:.3f}",
                )
            if panel.overview is not None:
                _overview(figure, place(), panel)
    return figure
