"""One look for every figure: readable at print size, colour-blind-safe, nothing cut off."""

import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart under every common kind of colour blindness.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "legend.fontsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.prop_cycle": matplotlib.cycler(color=COLORS),
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "lines.linewidth": 1.8,
}


class NotebookFigure(Figure):
    """A matplotlib figure that a notebook shows as a PNG without any backend having been chosen."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", bbox_inches="tight", dpi=STYLE["figure.dpi"])
        return buffer.getvalue()


def new_figure(
    rows: int = 1,
    columns: int = 1,
    width: float = 6.4,
    height: float = 3.6,
    grid: bool = True,
    **options,
):
    """(Figure, axes) in the house style; width and height in inches, of the whole figure.

    The figure belongs to no pyplot state, so that thousands can be drawn without leaking memory.
    """
    with matplotlib.rc_context(STYLE):
        figure = NotebookFigure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(rows, columns, **options)
        for ax in np.ravel(axes):
            ax.grid(grid)
    return figure, axes


def curves(
    series: dict[str, Sequence[float]],
    xlabel: str,
    ylabel: str,
    title: str = "",
    x: Sequence | None = None,
    bands: dict[str, Sequence[float]] | None = None,
    marker: str = "o",
    zero: bool = False,
) -> Figure:
    """Lines over epochs (or `x`): {name: values}; `bands` adds ± half widths of the same lengths around a name's line."""
    with matplotlib.rc_context(STYLE):
        figure, ax = new_figure()
        for name, values in series.items():
            places = x if x is not None else np.arange(1, len(values) + 1)
            (line,) = ax.plot(places, values, marker=marker, markersize=4, label=name)
            half = (bands or {}).get(name)
            if half is not None:
                values, half = np.asarray(values, float), np.nan_to_num(np.asarray(half, float))
                ax.fill_between(
                    places, values - half, values + half, color=line.get_color(), alpha=0.15, lw=0
                )
        ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
        if zero:
            ax.set_ylim(bottom=0)
        if x is None or all(isinstance(place, int) for place in x):
            ax.xaxis.get_major_locator().set_params(integer=True)
        if len(series) > 1:
            ax.legend(frameon=False)
    return figure


def bars(
    names: Sequence[str],
    values: Sequence[float],
    ylabel: str,
    halves: Sequence[float] | None = None,
    title: str = "",
    text: str = "{:.1f}",
    low: float | None = None,
) -> Figure:
    """One bar a name with its value written above it, and ± half widths as whiskers where given (NaN: none)."""
    with matplotlib.rc_context(STYLE):
        figure, ax = new_figure(width=max(4.8, 1.3 * len(names)))
        halves = np.nan_to_num(
            np.zeros(len(values)) if halves is None else np.asarray(halves, float)
        )
        drawn = ax.bar(
            range(len(names)),
            values,
            yerr=halves if halves.any() else None,
            capsize=4,
            width=0.6,
            color=[COLORS[i % len(COLORS)] for i in range(len(names))],
        )
        for bar, value, half in zip(drawn, values, halves, strict=True):
            ax.annotate(
                text.format(value),
                (bar.get_x() + bar.get_width() / 2, value + half),
                ha="center",
                va="bottom",
                xytext=(0, 2),
                textcoords="offset points",
                fontsize=9,
            )
        ax.set_xticks(range(len(names)), names)
        ax.set(ylabel=ylabel, title=title)
        ax.grid(axis="x", visible=False)
        ax.margins(y=0.15)
        if low is not None:
            ax.set_ylim(bottom=low)
    return figure
