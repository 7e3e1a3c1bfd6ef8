"""Charts that notebooks share: lines over epochs (A Figures 13, 16, 17, 19), bars (Figure 15), confusion (Figure 12)."""

import textwrap
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.figure import Figure

from dfkd_lib.plots.ablation import history_panels
from dfkd_lib.plots.style import (
    SLANTED,
    color,
    epochs_below,
    legend_below,
    legend_under,
    log_ticks,
    mark,
    new_figure,
    spans_decades,
    squares,
    styled,
    whiskers,
    within_percent,
)

DASHES = ("-", "--", "-.", ":")
WHOLE = "{x:,.0f}"
MEAN = "mean of classes"  # its name among the curves of classes


@styled
def curves(
    series: dict[str, Sequence[float]],
    xlabel: str,
    ylabel: str,
    x: Sequence | None = None,
    bands: dict[str, dict] | None = None,
    zero: bool = False,
) -> Figure:
    """Lines over epochs (or `x`), each the mean over seeds.

    Args:
        series: {name: values}. xlabel, ylabel: of the axes; values in "(%)" stay between 0 and 100.
        bands: {name: {"low": (n,), "high": (n,)} of an interval, or {"seeds": (seeds, n)} of too few seeds for one}.
        zero: the axis begins at 0, or is logarithmic where values span decades.
    """
    figure, ax = new_figure()
    percent, bands = ylabel.endswith("(%)"), bands or {}
    for i, (name, values) in enumerate(series.items()):
        places = x if x is not None else np.arange(1, len(values) + 1)
        band = bands.get(name, {})
        seeds = band.get("seeds", ())
        label = f"{name} (n = {len(seeds)})" if seeds else name
        ax.plot(places, values, marker="o", markersize=4, label=label, color=color(i))
        for seed in seeds:
            ax.plot(places, seed, ls="none", marker="o", ms=3, alpha=0.5, color=color(i))
        if "low" in band:
            shade = {"color": color(i), "alpha": 0.15, "lw": 0}
            ax.fill_between(places, band["low"], band["high"], **shade)
    if x is None or all(isinstance(place, int) for place in x):
        epochs_below(ax)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if percent:
        within_percent(ax)
    if zero and spans_decades(np.concatenate([*series.values()])):
        ax.set_yscale("log")
        log_ticks(ax.yaxis)
    elif zero:
        ax.set_ylim(bottom=0)
    if len(series) > 1:
        legend_below(figure, 3)
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
            dots = {"marker": "o", "markersize": 3, "color": color(i)}
            ax.plot(*places, linestyle=dash, label=label, **dots)
    ax.set(ylabel=ylabel, ylim=(0, 1))
    epochs_below(ax)
    if len(histories) * len(measures) > 1:
        legend_below(figure)
    return figure


@styled
def precision_recall_plot(curves: dict[str, dict]) -> Figure:
    """Precision over recall, one panel a detector, one line a class, each with the area under it (AP at that IoU).

    Args:
        curves: {detector: {class: curve with recall (R,) and precision (R,) in [0, 1]}}, as
            `metrics.precision_recall_curves` gives them, with their mean.
    """
    size = 3.4 * len(curves) + 0.2, 4.8
    figure, axes = new_figure(1, len(curves), *size, squeeze=False, sharey=True)
    names = dict.fromkeys(name for found in curves.values() for name in found if name != MEAN)
    styles = {name: {"color": color(i), "ls": DASHES[i % 4]} for i, name in enumerate(names)}
    styles[MEAN] = {"color": "black", "linewidth": 2.4}
    for ax, (title, found) in zip(axes[0], curves.items(), strict=True):
        for name, style in styles.items():
            if name in found:
                curve = found[name]
                label = f"{name}, AP {float(np.mean(curve.precision)):.2f}"
                ax.plot(curve.recall, curve.precision, label=label, **style)
        ax.set(title=textwrap.fill(title, 34), xlabel="recall")
        ax.set(xlim=(0, 1), ylim=(0, 1.02), aspect="equal")
        if found:
            legend_under(ax)
        else:
            ax.text(0.5, 0.5, "no object to find", ha="center", va="center")
    axes[0, 0].set_ylabel("precision")
    return figure


def _grouped(
    ax, places: np.ndarray, series: dict[str, Sequence], text: Callable[[float | None], str]
) -> None:
    """Bars beside each other at each place, a colour a series, 0 where a value is None; `text` is written at their ends."""
    each = 0.82 / len(series)
    for i, (label, values) in enumerate(series.items()):
        at = places + (i - (len(series) - 1) / 2) * each
        heights = [value or 0 for value in values]
        drawn = ax.bar(at, heights, 0.93 * each, color=color(i), label=label)
        ax.bar_label(drawn, [text(value) for value in values], padding=2, fontsize=8)
    ax.grid(axis="x", visible=False)


@styled
def accuracies(models: dict[str, dict], ylabel: str) -> Figure:
    """Every run's accuracy a point, each model's mean a diamond with its interval; how many there are where none is given.

    Args:
        models: {name: {"seeds": accuracies in percent, "low" and "high": ends of the interval of their mean, or NaN}}.
    """
    figure, ax = new_figure(width=max(4.8, 1.2 * len(models)))
    few = {}
    for i, (name, found) in enumerate(models.items()):
        values, mean = found["seeds"], float(np.mean(found["seeds"]))
        few[name] = "" if np.isfinite(found["low"]) else f"\nn = {len(values)}"
        ax.plot(
            [i - 0.12] * len(values), values, ls="none", marker="o", ms=4, alpha=0.5, color=color(i)
        )
        sides = whiskers([mean], [found["low"]], [found["high"]])
        ax.errorbar([i], [mean], sides, fmt="D", ms=6, capsize=4, elinewidth=1.5, color=color(i))
        ax.annotate(f"{mean:.1f}", (i, mean), (8, 0), textcoords="offset points", va="center")
    ax.set_xticks(range(len(models)), [textwrap.fill(name, 12) + few[name] for name in models])
    ax.set(xlim=(-0.5, len(models) - 0.3), ylabel=ylabel)
    ax.margins(y=0.15)
    within_percent(ax)
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
    width = max(6.4, 0.42 * len(groups) * (len(measures) + 1) + 1)
    figure, ax = new_figure(width=width, height=3.4)
    order = np.arange(len(groups))
    places = order + 0.35 * (order > 0) + 0.35 * (order > len(sizes))
    series = {}
    for name, found in measures.items():
        of_class = [found["per_class"][label]["AP"] for label in first["per_class"]]
        series[name] = [found["AP"], *(found[f"AP_{size}"] for size in sizes), *of_class]
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
    ax.yaxis.set_major_formatter(WHOLE)
    ax.margins(x=0.02, y=0.12)
    legend_below(figure, len(splits))
    return figure


@styled
def real_images(stages: Sequence[str], itself: Sequence[int], behind: Sequence[int]) -> Figure:
    """Two bars a stage: real images it learned from itself, and those that what it was made from learned from."""
    named = {"read by the stage itself": itself, "read by what it was made from": behind}
    figure, ax = new_figure(width=7.2, height=1.2 + 0.36 * len(stages))
    least = min((n for counts in named.values() for n in counts if n), default=1)
    for i, (label, counts) in enumerate(named.items()):
        places = np.arange(len(stages)) + (i - 0.5) * 0.36
        ax.hlines(places, 0, counts, color=color(i), lw=1.2, alpha=0.5)
        ax.plot(counts, places, ls="none", label=label, clip_on=False, ms=6, **mark(i))
        for count, place in zip(counts, places, strict=True):
            at = {"xytext": (7, 0), "textcoords": "offset points", "va": "center", "fontsize": 8}
            ax.annotate(f"{count:,}", (count, place), color=color(i), **at)
    # Logarithmic, but for 0, which most data-free stages are to be at.
    decades = 10 ** np.arange(int(np.log10(least)), np.log10(max([*itself, *behind, 1])) + 1)
    ax.set_xscale("symlog", linthresh=decades[0], linscale=0.5)
    ax.set_xticks([0, *decades])
    ax.set_yticks(range(len(stages)), stages)
    ax.invert_yaxis()
    ax.margins(x=0.1)
    ax.set_xlim(left=0)
    ax.xaxis.set_major_formatter(WHOLE)
    ax.set(xlabel="real images learned from (evaluation left out; logarithmic)")
    ax.grid(axis="y", visible=False)
    legend_below(figure)
    return figure


@styled
def stage_seconds(stages: Sequence[str], seconds: Sequence[float]) -> Figure:
    """One bar a stage: the seconds that making all of its artifacts took."""
    figure, ax = new_figure(width=7.2, height=1.2 + 0.3 * len(stages))
    ax.bar_label(ax.barh(stages, seconds, 0.76), fmt="{:,.1f}", padding=2, fontsize=8)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.xaxis.set_major_formatter(WHOLE)
    ax.margins(x=0.14)
    ax.set(xlabel="seconds of making, all artifacts of the stage")
    return figure


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
