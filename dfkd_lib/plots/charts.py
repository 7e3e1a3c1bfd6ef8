"""Charts that notebooks share: lines over epochs (A Figures 13, 16, 17, 19), bars (Figure 15), confusion (Figure 12)."""

import textwrap
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from dfkd_lib.plots.ablation import history_panels
from dfkd_lib.plots.style import (
    SLANTED,
    color,
    epochs_below,
    legend_below,
    new_figure,
    squares,
    styled,
)

DASHES = ("-", "--", "-.", ":")


@styled
def curves(
    series: dict[str, Sequence[float]],
    xlabel: str,
    ylabel: str,
    x: Sequence | None = None,
    bands: dict[str, Sequence[float]] | None = None,
    zero: bool = False,
) -> Figure:
    """Lines over epochs (or `x`): {name: values}; `bands` adds ± half widths of the same lengths around a name's line."""
    figure, ax = new_figure()
    for name, values in series.items():
        places = x if x is not None else np.arange(1, len(values) + 1)
        (line,) = ax.plot(places, values, marker="o", markersize=4, label=name)
        half = (bands or {}).get(name)
        if half is not None:
            values, half = np.asarray(values, float), np.nan_to_num(np.asarray(half, float))
            band = values - half, values + half
            ax.fill_between(places, *band, color=line.get_color(), alpha=0.15, lw=0)
    if x is None or all(isinstance(place, int) for place in x):
        epochs_below(ax)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if zero:
        ax.set_ylim(bottom=0)
    if len(series) > 1:
        ax.legend()
    return figure


def loss_components(histories: dict[str, list[dict]], names: dict[str, str]) -> Figure:
    """A Figure 13: one panel a loss component, its mean over each epoch, one line a run.

    Args:
        histories: {run: history of the training loop}. names: {key in the history: panel title}.
    """
    return history_panels({run: [history] for run, history in histories.items()}, names)


@styled
def measure_curves(
    histories: dict[str, list[dict]], measures: dict[str, str], ylabel: str
) -> Figure:
    """A Figures 16, 17, 19: measures in [0, 1] on the test scenes after each epoch.

    Args:
        histories: {detector: history of the training loop}, a colour each. measures: {key in the history: label}, a line
            style each.
    """
    figure, ax = new_figure()
    for i, (name, history) in enumerate(histories.items()):
        for dash, (key, label) in zip(DASHES, measures.items(), strict=False):
            label = f"{name}, {label}" if len(histories) > 1 else label
            rows = [row for row in history if key in row]
            places = [row["epoch"] for row in rows], [row[key] for row in rows]
            mark = {"marker": "o", "markersize": 3, "color": color(i)}
            ax.plot(*places, linestyle=dash, label=label, **mark)
    ax.set(ylabel=ylabel, ylim=(0, 1))
    epochs_below(ax)
    if len(histories) * len(measures) > 1:
        ax.legend()
    return figure


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
    styles = {name: {"color": color(i), "ls": DASHES[i % 4]} for i, name in enumerate(names)}
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


def _grouped(
    ax,
    places: np.ndarray,
    series: dict[str, Sequence],
    text: Callable[[float | None], str],
    across: bool = False,
    **style,
) -> None:
    """Bars beside each other at each place, a colour a series, 0 where a value is None; `text` is written at their ends."""
    each = 0.82 / len(series)
    draw, axis = (ax.barh, "y") if across else (ax.bar, "x")
    for i, (label, values) in enumerate(series.items()):
        at = places + (i - (len(series) - 1) / 2) * each
        colored = {"color": color(i), "label": label, **style}
        drawn = draw(at, [value or 0 for value in values], 0.93 * each, **colored)
        ax.bar_label(drawn, [text(value) for value in values], padding=2, fontsize=8)
    ax.grid(axis=axis, visible=False)


def _one_in_thousands(axis) -> None:
    axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


@styled
def bars(
    names: Sequence[str],
    values: Sequence[float],
    ylabel: str,
    halves: Sequence[float] | None = None,
) -> Figure:
    """One bar a name with its value written above it, and ± half widths as whiskers where given (NaN: none)."""
    figure, ax = new_figure(width=max(4.8, 1.3 * len(names)))
    places = np.arange(len(names))
    whiskers = {}
    if halves is not None:
        ends = {"capsize": 4, "ecolor": "black", "error_kw": {"elinewidth": 1.5}}
        whiskers = {"yerr": np.nan_to_num(np.asarray(halves, float)), **ends}
    _grouped(ax, places, {"": values}, "{:.1f}".format, color=list(map(color, places)), **whiskers)
    ax.set_xticks(places, names)
    ax.set(ylabel=ylabel)
    ax.margins(y=0.15)
    return figure


@styled
def average_precision_bars(measures: dict[str, dict]) -> Figure:
    """COCO's AP of each detector: of all objects, by size and by class; a dash where there is no such object.

    Args:
        measures: {detector: as `metrics.average_precision` gives them}; sizes are drawn if it holds "AP_small" etc.
    """
    first = next(iter(measures.values()))
    sizes = [size for size in ("small", "medium", "large") if f"AP_{size}" in first]
    groups = ["all", *sizes, *first["per_class"]]
    figure, ax = new_figure(
        width=max(6.4, 0.42 * len(groups) * (len(measures) + 1) + 1), height=3.4
    )
    order = np.arange(len(groups))
    places = order + 0.35 * (order > 0) + 0.35 * (order > len(sizes))
    series = {
        name: [
            found["AP"],
            *(found[f"AP_{size}"] for size in sizes),
            *(found["per_class"][label]["AP"] for label in first["per_class"]),
        ]
        for name, found in measures.items()
    }
    _grouped(ax, places, series, lambda v: "–" if v is None else f"{v:.2f}".lstrip("0"))
    ax.set_xticks(places, groups)
    ax.set(ylabel="average precision (AP)", ylim=(0, 1))
    if len(measures) > 1:
        figure.legend(loc="outside upper center", ncols=min(2, len(measures)))
    return figure


@styled
def class_counts(
    splits: dict[str, Sequence[int]], classes: Sequence[str], what: str = "images"
) -> Figure:
    """A Figure 15: the data set by class, one bar a class and split with its count.

    Args:
        splits: {split: counts (K,)}. classes: K names. what: is counted, for the axis.
    """
    width = max(4.8, 0.42 * len(classes) * (len(splits) + 0.8) + 1)
    figure, ax = new_figure(width=min(width, 14), height=3.4)
    named = {f"{split} ({int(np.sum(counts)):,})": counts for split, counts in splits.items()}
    written = "{:,}" if len(classes) <= 20 else ""
    _grouped(ax, np.arange(len(classes)), named, written.format)
    step = -(-len(classes) // 40)
    slanted = SLANTED if max(map(len, classes)) > 6 or len(classes) > 20 else {}
    ax.set_xticks(range(0, len(classes), step), classes[::step], **slanted)
    ax.set(xlabel="class", ylabel=what)
    _one_in_thousands(ax.yaxis)
    ax.margins(x=0.02, y=0.12)
    legend_below(figure, len(splits))
    return figure


@styled
def real_images(stages: Sequence[str], itself: Sequence[int], behind: Sequence[int]) -> Figure:
    """Two bars a stage: real images it learned from itself, and those that what it was made from learned from."""
    named = {"read by the stage itself": itself, "read by what it was made from": behind}
    figure, ax = _stages(stages, named, "{:,}".format, 0.46)
    ax.set(xlabel="real images learned from (evaluation left out)")
    legend_below(figure)
    return figure


@styled
def stage_seconds(stages: Sequence[str], seconds: Sequence[float]) -> Figure:
    """One bar a stage: the seconds that making all of its artifacts took."""
    figure, ax = _stages(stages, {"": seconds}, "{:,.1f}".format, 0.3)
    ax.set(xlabel="seconds of making, all artifacts of the stage")
    return figure


def _stages(stages: Sequence[str], series: dict, text: Callable, tall: float) -> tuple:
    """(Figure, axes) of bars that run across, one group a stage, `tall` inches each."""
    figure, ax = new_figure(width=7.2, height=1.2 + tall * len(stages))
    _grouped(ax, np.arange(len(stages)), series, text, across=True)
    ax.set_yticks(range(len(stages)), stages)
    ax.invert_yaxis()
    _one_in_thousands(ax.xaxis)
    ax.margins(x=0.14)
    return figure, ax


@styled
def confusion(
    matrices: dict[str, np.ndarray], classes: Sequence[str], predicted: Sequence[str] | None = None
) -> Figure:
    """A Figure 12: {title: (K, K) counts}, rows true, columns predicted; shades are the share of the true class.

    Args:
        classes: names of the K rows, and of the columns unless these have names of their own: predicted.
    """
    side, names = max(3.4, 0.42 * len(classes)), predicted or classes
    size = side * len(matrices) + 0.6, side + 0.5
    figure, axes = new_figure(1, len(matrices), *size, grid=False, squeeze=False)
    for ax, (title, counts) in zip(axes[0], matrices.items(), strict=True):
        counts = np.asarray(counts)
        share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        texts = np.where(counts == 0, "", counts.astype(str)) if len(classes) <= 12 else None
        drawn = squares(ax, share, 0, 1, texts, 7 if len(classes) > 6 else 10)
        ax.set_xticks(range(len(names)), names, rotation=0 if max(map(len, names)) < 4 else 60)
        ax.set_yticks(range(len(classes)), classes)
        title = textwrap.fill(title, round(8 * side))
        ax.set(title=title, xlabel="predicted class", ylabel="true class", aspect="equal")
    figure.colorbar(drawn, ax=axes, label="share of the true class", shrink=0.85)
    return figure


def detection_confusion(matrices: dict[str, np.ndarray], classes: Sequence[str]) -> Figure:
    """What objects are taken for: {detector: counts (K + 1, K + 1)} as `metrics.confusion` gives them."""
    return confusion(matrices, [*classes, "background"], [*classes, "missed"])
