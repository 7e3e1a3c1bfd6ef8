"""Scenes drawn for layouts, one maker below the other, and what a teacher finds in them."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dfkd_lib.plots.scenes import SIDE, class_color, draw_scene
from dfkd_lib.plots.style import STYLE, new_figure


def drawn_scenes(makers: dict[str, dict], classes: Sequence[str]) -> Figure:
    """One row a maker, one column a layout: dotted what was asked for, solid what the teacher finds.

    Args:
        makers: {maker: {"images": uint8 (n, 3, H, W), "truth": n dicts of boxes (m, 4) and labels (m,), "found": n dicts of
            boxes, labels and scores}}. classes: names.
    """
    with matplotlib.rc_context(STYLE):
        columns = max(len(rows["images"]) for rows in makers.values())
        size = 0.72 * SIDE
        figure, axes = new_figure(
            len(makers),
            columns,
            size * columns + 0.5,
            (size + 0.05) * len(makers) + 0.4,
            grid=False,
            squeeze=False,
        )
        for ax_row, (name, rows) in zip(axes, makers.items(), strict=True):
            ax_row[0].set_ylabel(name)
            for ax, image, true, found in zip(
                ax_row, rows["images"], rows["truth"], rows["found"], strict=False
            ):
                draw_scene(ax, np.asarray(image), true, found, classes)
        handles = [
            Line2D([], [], color=class_color(k), linewidth=2.5, label=name)
            for k, name in enumerate(classes)
        ]
        handles += [
            Line2D([], [], color="gray", linewidth=1.6, linestyle=(0, (1, 1.3)), label="asked for")
        ]
        figure.legend(
            handles=handles, loc="outside lower center", ncols=len(handles), frameon=False
        )
    return figure
