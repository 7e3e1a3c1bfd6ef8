"""Detections in their scenes and their measures over training (A Figures 16-19)."""

import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from dfkd_lib.plots.classification import confusion
from dfkd_lib.plots.style import COLORS, STYLE, new_figure


def _draw_boxes(ax, found: dict, shape: tuple[int, int], **style) -> None:
    height, width = shape
    for box, label in zip(np.asarray(found["boxes"]), np.asarray(found["labels"]), strict=True):
        x, y, w, h = (box * (width, height, width, height)).tolist()
        ax.add_patch(
            Rectangle(
                (x - w / 2 - 0.5, y - h / 2 - 0.5),
                w,
                h,
                fill=False,
                edgecolor=COLORS[int(label) % len(COLORS)],
                **style,
            )
        )


def _write_scores(ax, found: dict, shape: tuple[int, int]) -> None:
    """Each score at a corner of its box, inside the image."""
    height, width = shape
    for box, label, score in zip(found["boxes"], found["labels"], found["scores"], strict=True):
        left, top = max(box[0] - box[2] / 2, 0) * width, (box[1] - box[3] / 2) * height
        right = left > 0.72 * width
        ax.text(
            (box[0] + box[2] / 2) * width if right else left,
            max(top, 0.09 * height),
            f"{score:.2f}",
            fontsize=9,
            ha="right" if right else "left",
            va="bottom",
            color="white",
            bbox={
                "facecolor": COLORS[int(label) % len(COLORS)],
                "edgecolor": "none",
                "pad": 0.8,
                "alpha": 0.85,
            },
        )


def detection_grid(
    images: np.ndarray,
    truth: Sequence[dict],
    found: dict[str, Sequence[dict]],
    classes: Sequence[str],
) -> Figure:
    """A Figure 18: one column a scene, one row a detector; detections solid with their scores, true boxes dotted.

    Args:
        images: uint8 (N, 3, H, W). truth: N dicts with "boxes" (n, 4) cxcywh in [0, 1] and "labels" (n,).
        found: {detector: N such dicts, with "scores" (n,) unless they are true boxes}. classes: names, told by colour.
    """
    with matplotlib.rc_context(STYLE):
        columns = len(images)
        figure, axes = new_figure(
            len(found),
            columns,
            1.7 * columns + 0.4,
            1.75 * len(found) + 0.3,
            grid=False,
            squeeze=False,
        )
        for row, (name, scenes) in zip(axes, found.items(), strict=True):
            for ax, image, true, scene in zip(row, images, truth, scenes, strict=True):
                shape = image.shape[1:]
                ax.imshow(np.asarray(image).transpose(1, 2, 0), interpolation="nearest")
                if "scores" in scene:
                    _draw_boxes(ax, true, shape, linestyle=":", linewidth=1.2)
                    _write_scores(ax, scene, shape)
                _draw_boxes(ax, scene, shape, linewidth=1.7)
                ax.set(
                    xticks=[], yticks=[], xlim=(-0.5, shape[1] - 0.5), ylim=(shape[0] - 0.5, -0.5)
                )
                ax.spines[:].set_visible(False)
            row[0].set_ylabel(textwrap.fill(name, 18))
        handles = [
            Line2D([], [], color=COLORS[k % len(COLORS)], linewidth=2, label=c)
            for k, c in enumerate(classes)
        ]
        figure.legend(
            handles=handles, loc="outside lower center", ncols=len(classes), frameon=False
        )
    return figure


def measure_curves(
    histories: dict[str, list[dict]], measures: dict[str, str], ylabel: str, title: str = ""
) -> Figure:
    """A Figures 16, 17, 19: measures in [0, 1] on the test scenes after each epoch.

    Args:
        histories: {detector: history of the training loop}; colour tells detectors apart.
        measures: {key in the history: words for the legend}; line style tells measures apart.
    """
    with matplotlib.rc_context(STYLE):
        figure, ax = new_figure()
        for i, (name, history) in enumerate(histories.items()):
            for style, (key, words) in zip(("-", "--", ":"), measures.items(), strict=False):
                ax.plot(
                    [row["epoch"] for row in history],
                    [row[key] for row in history],
                    style,
                    color=COLORS[i],
                    label=f"{name}, {words}" if len(histories) > 1 else words,
                    marker="o",
                    markersize=3,
                )
        ax.set(xlabel="epoch", ylabel=ylabel, title=title, ylim=(0, 1))
        ax.xaxis.get_major_locator().set_params(integer=True)
        if len(histories) * len(measures) > 1:
            ax.legend(frameon=False)
    return figure


def precision_recall_plot(curves: dict[str, dict], mean: str = "mean of classes") -> Figure:
    """Precision over recall, one panel a detector, one line a class, each with the area under it (AP at that IoU).

    Args:
        curves: {detector: {class: curve with recall (R,) and precision (R,) in [0, 1]}}, as
            `detection.precision_recall_curves` gives them. mean: the name among them that is drawn in black.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(
            1, len(curves), 3.9 * len(curves) + 0.2, 3.9, squeeze=False, sharey=True
        )
        names = [
            name
            for name in dict.fromkeys(name for found in curves.values() for name in found)
            if name != mean
        ]
        for ax, (title, found) in zip(axes[0], curves.items(), strict=True):
            for i, name in [*enumerate(names), (6, mean)]:
                if name not in found:
                    continue
                style = (
                    {"color": "black", "linewidth": 2.4}
                    if name == mean
                    else {
                        "color": COLORS[i % len(COLORS)],
                        "linestyle": ("-", "--", "-.", ":")[i % 4],
                    }
                )
                area = float(np.mean(found[name].precision))
                ax.plot(
                    found[name].recall, found[name].precision, label=f"{name} {area:.2f}", **style
                )
            ax.set(
                title=textwrap.fill(title, 34),
                xlabel="recall",
                xlim=(0, 1),
                ylim=(0, 1.02),
                aspect="equal",
            )
            if found:
                ax.legend(
                    frameon=True,
                    framealpha=0.85,
                    edgecolor="none",
                    loc="best",
                    title="AP",
                    alignment="left",
                )
            else:
                ax.text(0.5, 0.5, "no object to find", ha="center", va="center")
        axes[0, 0].set_ylabel("precision")
    return figure


def detection_confusion(matrices: dict[str, np.ndarray], classes: Sequence[str]) -> Figure:
    """What objects are taken for: {detector: counts (K + 1, K + 1)} as `detection.confusion` gives them."""
    return confusion(matrices, [*classes, "background"], [*classes, "missed"])


def average_precision_bars(measures: dict[str, dict], title: str = "") -> Figure:
    """COCO's AP of each detector: of all objects, by size and by class; a dash where there is no such object.

    Args:
        measures: {detector: as `detection.average_precision` gives them}; sizes are drawn if it holds "AP_small" etc.
    """
    first = next(iter(measures.values()))
    sizes = [size for size in ("small", "medium", "large") if f"AP_{size}" in first]
    groups = {
        "all": lambda m: m["AP"],
        **{size: (lambda m, k=f"AP_{size}": m[k]) for size in sizes},
        **{name: (lambda m, k=name: m["per_class"][k]["AP"]) for name in first["per_class"]},
    }
    with matplotlib.rc_context(STYLE):
        wide = 0.8 / len(measures)
        figure, ax = new_figure(
            width=max(6.4, 0.42 * len(groups) * (len(measures) + 1) + 1), height=3.4
        )
        places = (
            np.arange(len(groups))
            + 0.35 * (np.arange(len(groups)) > 0)
            + 0.35 * (np.arange(len(groups)) > len(sizes))
        )
        for i, (name, measure) in enumerate(measures.items()):
            x = places + (i - (len(measures) - 1) / 2) * wide
            values = [value(measure) for value in groups.values()]
            ax.bar(
                x, [v or 0 for v in values], 0.92 * wide, color=COLORS[i % len(COLORS)], label=name
            )
            for place, value in zip(x, values, strict=True):
                ax.text(
                    place,
                    (value or 0) + 0.01,
                    "–" if value is None else f"{value:.2f}".lstrip("0"),
                    ha="center",
                    va="bottom",
                    fontsize=8,
                )
        ax.set_xticks(places, groups)
        ax.set(ylabel="average precision (AP)", title=title, ylim=(0, 1))
        ax.grid(axis="x", visible=False)
        if len(measures) > 1:
            figure.legend(loc="outside upper center", ncols=min(2, len(measures)), frameon=False)
    return figure
