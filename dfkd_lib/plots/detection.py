"""Measures of detectors: precision over recall, average precision by size and class."""

import textwrap

import numpy as np
from matplotlib.figure import Figure

from dfkd_lib.plots.style import color, new_figure, styled


@styled
def precision_recall_plot(curves: dict[str, dict], mean: str = "mean of classes") -> Figure:
    """Precision over recall, one panel a detector, one line a class, each with the area under it (AP at that IoU).

    Args:
        curves: {detector: {class: curve with recall (R,) and precision (R,) in [0, 1]}}, as
            `metrics.precision_recall_curves` gives them. mean: the name among them that is drawn in black.
    """
    size = 3.9 * len(curves) + 0.2, 3.9
    figure, axes = new_figure(1, len(curves), *size, squeeze=False, sharey=True)
    names = dict.fromkeys(name for found in curves.values() for name in found if name != mean)
    dashes = ("-", "--", "-.", ":")
    styles = {name: {"color": color(i), "ls": dashes[i % 4]} for i, name in enumerate(names)}
    styles[mean] = {"color": "black", "linewidth": 2.4}
    for ax, (title, found) in zip(axes[0], curves.items(), strict=True):
        for name, style in styles.items():
            if name in found:
                curve = found[name]
                label = f"{name} {float(np.mean(curve.precision)):.2f}"
                ax.plot(curve.recall, curve.precision, label=label, **style)
        ax.set(title=textwrap.fill(title, 34), xlabel="recall")
        ax.set(xlim=(0, 1), ylim=(0, 1.02), aspect="equal")
        if found:
            ax.legend(frameon=True, framealpha=0.85, edgecolor="none", title="AP", alignment="left")
        else:
            ax.text(0.5, 0.5, "no object to find", ha="center", va="center")
    axes[0, 0].set_ylabel("precision")
    return figure


@styled
def average_precision_bars(measures: dict[str, dict], title: str = "") -> Figure:
    """COCO's AP of each detector: of all objects, by size and by class; a dash where there is no such object.

    Args:
        measures: {detector: as `metrics.average_precision` gives them}; sizes are drawn if it holds "AP_small" etc.
    """
    first = next(iter(measures.values()))
    sizes = [size for size in ("small", "medium", "large") if f"AP_{size}" in first]
    groups = ["all", *sizes, *first["per_class"]]
    width = max(6.4, 0.42 * len(groups) * (len(measures) + 1) + 1)
    figure, ax = new_figure(width=width, height=3.4)
    wide, order = 0.8 / len(measures), np.arange(len(groups))
    places = order + 0.35 * (order > 0) + 0.35 * (order > len(sizes))
    for i, (name, found) in enumerate(measures.items()):
        values = [found["AP"], *(found[f"AP_{size}"] for size in sizes)]
        values += [found["per_class"][label]["AP"] for label in first["per_class"]]
        x = places + (i - (len(measures) - 1) / 2) * wide
        drawn = ax.bar(x, [v or 0 for v in values], 0.92 * wide, color=color(i), label=name)
        written = ["–" if value is None else f"{value:.2f}".lstrip("0") for value in values]
        ax.bar_label(drawn, written, padding=2, fontsize=8)
    ax.set_xticks(places, groups)
    ax.set(ylabel="average precision (AP)", title=title, ylim=(0, 1))
    ax.grid(axis="x", visible=False)
    if len(measures) > 1:
        figure.legend(loc="outside upper center", ncols=min(2, len(measures)))
    return figure
