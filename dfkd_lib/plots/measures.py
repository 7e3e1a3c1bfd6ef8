"""Measures beside each other: distances, fidelity against diversity, accuracy, what a deployed model costs."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from dfkd_lib.plots.style import (
    SLANTED,
    color,
    hollow,
    legend_below,
    log_ticks,
    mark,
    new_figure,
    place,
    spans_decades,
    styled,
    whiskers,
    within_percent,
)


@styled
def distance_by_class(tables: dict) -> Figure:
    """Fréchet distances with their intervals, all images first, then class by class; what was not measured stays empty.

    Args:
        tables: {maker: DataFrame of `metrics.Measures.table`}, all with the same classes.
    """
    names = [str(name) for name in next(iter(tables.values()))["class"]]
    figure, ax = new_figure(width=max(5.2, 0.15 * len(names) * (len(tables) + 1) + 1.4), height=3.8)
    bar = {"linestyle": "none", "markersize": 5, "capsize": 2.5, "elinewidth": 1.1}
    for i, (maker, table) in enumerate(tables.items()):
        places = np.arange(len(names)) + (i - (len(tables) - 1) / 2) * 0.7 / len(tables)
        values = table["Fréchet distance"].to_numpy(float)
        sides = whiskers(values, table["low"], table["high"])
        ax.errorbar(places, values, yerr=sides, label=maker, **bar, **mark(i))
    ax.axvline(0.5, color="0.6", linewidth=0.8)
    ax.set_xticks(range(len(names)), names, **({} if max(map(len, names)) < 5 else SLANTED))
    ax.set_xlim(-0.6, len(names) - 0.4)
    ax.grid(axis="x", visible=False)
    ax.set(xlabel="class", ylabel="Fréchet distance")
    ax.set_yscale("log")  # makers are far apart
    log_ticks(ax.yaxis)
    if len(tables) > 1:
        legend_below(figure, 3)
    return figure


@styled
def fidelity_diversity(tables: dict) -> Figure:
    """Precision against recall and density against coverage of all images, one mark a maker; up and right is better.

    Args:
        tables: {maker: DataFrame of `metrics.Measures.table`}, of which the first row counts.
    """
    figure, axes = new_figure(1, 2, width=7.6, height=4.2)
    for ax, x, y in ((axes[0], "recall", "precision"), (axes[1], "coverage", "density")):
        for i, (maker, table) in enumerate(tables.items()):
            point, label = table.iloc[0], maker if ax is axes[0] else None
            ax.plot(point[x], point[y], ls="none", label=label, clip_on=False, **hollow(i))
        ax.set(xlabel=f"{x} (diversity)", ylabel=f"{y} (fidelity)", xlim=(0, 1.03))
        ax.set_ylim(0, max(1.03, ax.get_ylim()[1]))
    legend_below(figure, 3)
    return figure


@styled
def accuracy_against_distance(table) -> Figure:
    """Students' accuracies against the Fréchet distances of their training images, each named, with both intervals.

    Args:
        table: DataFrame with the columns "maker", "Fréchet distance", "low", "high" and "accuracy" (percent); where they
            are there, also "accuracy low" and "accuracy high".
    """
    figure, ax = new_figure(width=6.4, height=4.2)
    x, y = table["Fréchet distance"].to_numpy(float), table["accuracy"].to_numpy(float)
    sides = whiskers(x, table["low"], table["high"])
    ends = [table.get(f"accuracy {end}", table["accuracy"]) for end in ("low", "high")]
    heights = whiskers(y, *ends)
    for i in range(len(x)):
        errors = {"xerr": sides[:, i, None], "yerr": heights[:, i, None]}
        ax.errorbar(x[i], y[i], capsize=3, elinewidth=1.1, **errors, **hollow(i))
    ax.set_xlabel("Fréchet distance (lower is nearer to the real images)")
    ax.set_ylabel("student's test accuracy (%)")
    ax.margins(x=0.12, y=0.18)
    if spans_decades(x):
        ax.set_xscale("log")
        log_ticks(ax.xaxis)
    else:
        ax.set_xlim(left=max(0, ax.get_xlim()[0]))
    within_percent(ax)
    _name_points(ax, x, y, list(table["maker"]))
    return figure


def _name_points(ax, x: np.ndarray, y: np.ndarray, names: Sequence[str]) -> None:
    """Name each point beside it, towards the axes' middle, off the other names."""
    ax.figure.draw_without_rendering()  # the layout is to be what it will be
    unit, inside = ax.figure.dpi / 72, ax.get_window_extent()
    at = ax.transData.transform(np.stack([x, y], 1))
    # Neither are the marks to be hidden.
    taken = [(*(point - 6 * unit), *(point + 6 * unit), 1.0) for point in at]
    for i in np.argsort(y):
        text = ax.text(x[i], y[i], names[i], fontsize=9, color=color(i))
        text.set_in_layout(False)
        (right, up), size = at[i], text.get_window_extent()
        lefts = [right + 8 * unit, right - 8 * unit - size.width]
        lefts.sort(reverse=bool(right < inside.x0 + inside.width / 2))
        tried = [(s, up + d * unit) for d in (-4, 8, -16, 22, -30, 36, -44, 50) for s in lefts]
        place(text, tried, taken)


@styled
def trade_off(
    names: Sequence[str],
    score: Sequence[float],
    costs: dict[str, Sequence[float]],
    intervals: Sequence[tuple[float, float]] | None,
    ylabel: str,
) -> Figure:
    """A score against each cost, one panel a cost on a logarithmic axis; hollow marks, as some coincide.

    Args:
        names: of the models. score: in percent. costs: {axis label with unit: one positive value a model}.
        intervals: (low, high) in percent of each score, or None.
    """
    size = 4.2 * len(costs), 4.2
    figure, axes = new_figure(1, len(costs), *size, sharey=True, squeeze=False)
    ends = np.stack([score, score], 1) if intervals is None else np.asarray(intervals, float)
    sides = whiskers(score, ends[:, 0], ends[:, 1])
    for ax, (label, values) in zip(axes[0], costs.items(), strict=True):
        for i, (name, value) in enumerate(zip(names, values, strict=True)):
            bar = {"yerr": sides[:, i, None] if sides[:, i].any() else None, "capsize": 3}
            named = {"label": name if ax is axes[0][0] else None, "linestyle": "none"}
            ax.errorbar(value, score[i], elinewidth=1, clip_on=False, **bar, **named, **hollow(i))
        ax.set_xscale("log")
        ax.set(xlabel=label)
        log_ticks(ax.xaxis)
        ax.margins(x=0.15, y=0.12)
    axes[0][0].set_ylabel(ylabel)
    if "(%)" in ylabel:
        within_percent(axes[0][0])
    legend_below(figure)
    return figure
