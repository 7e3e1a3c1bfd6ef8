"""Detections in their scenes and their measures over training (A Figures 16-19)."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dfkd_lib.plots.style import COLORS, STYLE, new_figure


def _draw_boxes(ax, found: dict, names: Sequence[str], shape: tuple[int, int], **style) -> None:
    height, width = shape
    scores = found.get("scores")
    for i, (box, label) in enumerate(zip(np.asarray(found["boxes"]), np.asarray(found["labels"]), strict=True)):
        x, y, w, h = (box * (width, height, width, height)).tolist()
        color = COLORS[int(label) % len(COLORS)]
        ax.add_patch(Rectangle((x - w / 2, y - h / 2), w, h, fill=False, edgecolor=color, **style))
        if scores is not None:
            ax.text(x - w / 2, max(y - h / 2, 0), f"{names[int(label)]} {scores[i]:.2f}", fontsize=6.5, color="white",
                    va="bottom" if y - h / 2 > height * 0.1 else "top",
                    bbox={"facecolor": color, "edgecolor": "none", "pad": 0.6})


def detection_grid(images: np.ndarray, truth: Sequence[dict], found: dict[str, Sequence[dict]],
                   classes: Sequence[str]) -> Figure:
    """A Figure 18: one column a scene, one row a detector; detections solid with class and score, true boxes dotted.

    Args:
        images: uint8 (N, 3, H, W). truth: N dicts with "boxes" (n, 4) cxcywh in [0, 1] and "labels" (n,).
        found: {detector: N such dicts with "scores" (n,)}. classes: names.
    """
    with matplotlib.rc_context(STYLE):
        columns = len(images)
        figure, axes = new_figure(len(found), columns, 1.65 * columns + 0.3, 1.75 * len(found), grid=False, squeeze=False)
        for row, (name, scenes) in zip(axes, found.items(), strict=True):
            for ax, image, true, scene in zip(row, images, truth, scenes, strict=True):
                ax.imshow(np.asarray(image).transpose(1, 2, 0), interpolation="nearest")
                _draw_boxes(ax, true, classes, image.shape[1:], linestyle=":", linewidth=1.0)
                _draw_boxes(ax, scene, classes, image.shape[1:], linewidth=1.6)
                ax.set(xticks=[], yticks=[], xlim=(-0.5, image.shape[2] - 0.5), ylim=(image.shape[1] - 0.5, -0.5))
            row[0].set_ylabel(name)
    return figure


def measure_curves(histories: dict[str, list[dict]], measures: dict[str, str], ylabel: str, title: str = "") -> Figure:
    """A Figures 16, 17, 19: measures in [0, 1] on the test scenes after each epoch.

    Args:
        histories: {detector: history of the training loop}; colour tells detectors apart.
        measures: {key in the history: words for the legend}; line style tells measures apart.
    """
    with matplotlib.rc_context(STYLE):
        figure, ax = new_figure()
        for i, (name, history) in enumerate(histories.items()):
            for style, (key, words) in zip(("-", "--", ":"), measures.items(), strict=False):
                ax.plot([row["epoch"] for row in history], [row[key] for row in history], style, color=COLORS[i],
                        label=f"{name}, {words}" if len(histories) > 1 else words, marker="o", markersize=3)
        ax.set(xlabel="epoch", ylabel=ylabel, title=title, ylim=(0, 1))
        ax.xaxis.get_major_locator().set_params(integer=True)
        if len(histories) * len(measures) > 1:
            ax.legend(frameon=False, fontsize=8)
    return figure
