"""The attention explorer's view as a figure: what it shows for a choice, one row a panel."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dfkd_lib.plots.images import heat, overlay, show
from dfkd_lib.plots.scenes import corners
from dfkd_lib.plots.style import COLORS, new_figure, styled

# What weights are, by `Panel.way`; others are relevance through all blocks.
WHAT = {
    "attention": "attention of a patch",
    "similarity": "cosine of features",
    "learning": "attention of a patch",
}


def _frame(ax, x: float, y: float, w: float, h: float, edge: str = COLORS[5], lw: float = 1.8):
    ax.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor=edge, lw=lw))


def _drawn(panel) -> np.ndarray:
    """What is drawn over the patches: weights (rows, columns), or colours (rows, columns, 3)."""
    if panel.tints is None:
        return panel.probe.reshape(panel.grid)
    return np.asarray(panel.tints).reshape(*panel.grid, 3) / 255


def _image(ax, panel, covering: float, **how) -> None:
    """The image with the weights laid over it, the token's patch or the detections outlined."""
    height, width = panel.image.shape[1:]
    show(ax, panel.image, f"{panel.title}\n{panel.prediction}")
    covered = height * panel.cover[0], width * panel.cover[1]
    overlay(ax, _drawn(panel), covered, covering, **how)
    if panel.boxes is None:
        patch = int(panel.probe.argmax()) if panel.nearest else panel.row - panel.prefix
        rows, columns = panel.grid
        w, h = covered[1] / columns, covered[0] / rows
        if patch >= 0:
            _frame(ax, patch % columns * w - 0.5, patch // columns * h - 0.5, w, h)
        return
    for box, query, label in zip(panel.boxes, panel.queries, panel.labels, strict=True):
        x, y, w, h = corners(box, (height, width))
        chosen = query == panel.query
        _frame(ax, x, y, w, h, COLORS[5] if chosen else "white", 2.2 if chosen else 1.1)
        if chosen:
            place = (max(x, 0), max(y, 0))
            offset = {"xytext": (1, 2), "textcoords": "offset points"}
            text = ax.annotate(label, place, fontsize=8, color="white", **offset)
            text.set_bbox({"facecolor": COLORS[0], "edgecolor": "none", "pad": 1})


def _overview(ax, panel, cmap: str) -> None:
    """The token's attention in every block (row) and head (column), each map by its own maximum."""
    blocks, heads, _ = panel.overview.shape
    tall, wide = panel.grid[0] + 1, panel.grid[1] + 1  # of a tile, with a gap
    tiles = panel.overview / np.maximum(panel.overview.max(-1, keepdims=True), 1e-12)
    tiles = tiles.reshape(blocks, heads, *panel.grid)
    tiles = np.pad(tiles, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=np.nan)
    tiles = tiles.transpose(0, 2, 1, 3).reshape(blocks * tall, heads * wide)
    heat(ax, tiles, "every block and head", 1, cmap=cmap)
    ax.set(xlabel="head", ylabel="block")
    ax.set_xticks(np.arange(heads) * wide + wide / 2 - 1, range(1, heads + 1), fontsize=8)
    ax.set_yticks(np.arange(blocks) * tall + tall / 2 - 1, range(1, blocks + 1), fontsize=8)
    ax.tick_params(length=0)
    first, count = (panel.head, 1) if panel.head >= 0 else (0, heads)
    _frame(ax, first * wide - 0.5, panel.block * tall - 0.5, count * wide - 1, tall - 1, lw=1.6)


@styled
def attention_panels(
    panels: Sequence, covering: float = 0.55, colours: str = "magma", one_scale: bool = False
) -> Figure:
    """The attention explorer's view: each panel's image and weights, class probe, and every block and head.

    Args:
        panels: `dfkd_lib.widgets.Panel`s, each one image under one model. covering: how much weights hide the image, 0..1.
        colours: matplotlib's name of the colour map. one_scale: a colour is the same weight on equal areas in all panels.
    """
    with_probe = any(panel.class_probe is not None for panel in panels)
    columns = 2 + with_probe + any(panel.overview is not None for panel in panels)
    size = 2.7 * columns, 2.9 * len(panels)
    figure, axes = new_figure(len(panels), columns, *size, grid=False, squeeze=False)
    # A panel of fewer patches has more weight on each: weights are compared with an even share.
    most = max(panel.probe.max() * panel.probe.size for panel in panels)
    for (first, second, *others), panel in zip(axes, panels, strict=True):
        top = most / panel.probe.size if one_scale else None
        _image(first, panel, covering, cmap=colours, vmax=top)
        drawn = heat(second, _drawn(panel), _title(panel), top, False, colours)
        if panel.tints is None:
            figure.colorbar(drawn, ax=second, shrink=0.8, label=WHAT.get(panel.way, "relevance"))
        if panel.class_probe is not None:
            title = f"class probe, cosine {panel.agreement:.3f}"
            heat(others.pop(0), panel.class_probe.reshape(panel.grid), title, top, True, colours)
        if panel.overview is not None:
            _overview(others.pop(0), panel, colours)
        for ax in others:
            ax.set_axis_off()
    return figure


def _title(panel) -> str:
    """Whose weights these are."""
    if panel.epoch is not None:
        return f"last block, after epoch {panel.epoch} of {panel.epochs}"
    if panel.tints is not None:
        shares = " + ".join(f"{100 * share:.0f}" for share in panel.shares)
        return f"components, {shares} % of the variance"
    if panel.way not in WHAT:
        return "all blocks"
    head = f"head {panel.head + 1}" if panel.head >= 0 else "mean of heads"
    block = f"block {panel.block + 1} of {panel.blocks}"
    return f"{block}, {head}" if panel.way == "attention" else block
