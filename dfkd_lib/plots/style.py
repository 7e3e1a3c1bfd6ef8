"""One look for every figure: readable at print size, colour-blind-safe, nothing cut off."""

import functools
import io
from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

# Okabe and Ito's palette, distinct under every common kind of colour blindness.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = "osD^vP*X"
STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "legend.fontsize": 9,
    "legend.frameon": False,
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
SLANTED = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}


class NotebookFigure(Figure):
    """A matplotlib figure that a notebook shows as a PNG without any backend having been chosen."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", bbox_inches="tight", dpi=STYLE["figure.dpi"])
        return buffer.getvalue()


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """A drawing function inside the house style, whatever the caller's own settings are."""

    @functools.wraps(draw)
    def inside(*args, **kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return inside


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


def color(i: int) -> str:
    """The i-th colour, round and round: of a class or a series, the same in every figure."""
    return COLORS[int(i) % len(COLORS)]


def mark(i: int) -> dict:
    """Colour and marker of the i-th series."""
    return {"color": color(i), "marker": MARKERS[i % len(MARKERS)]}


def hollow(i: int) -> dict:
    """A hollow mark of the i-th series: coinciding ones can all be seen."""
    return {"markersize": 9, "markerfacecolor": "none", "markeredgewidth": 2, **mark(i)}


def whiskers(values, low, high) -> np.ndarray:
    """(2, n) lengths below and above, 0 where an interval is missing, for matplotlib's error bars."""
    values, low, high = (np.asarray(v, float) for v in (values, low, high))
    return np.nan_to_num(np.clip([values - low, high - values], 0, None))


def legend_below(figure: Figure, ncols: int = 2, handles: Sequence | None = None) -> None:
    """The legend below all axes, of the handles given or of all that have a label."""
    more = {} if handles is None else {"handles": handles}
    figure.legend(loc="outside lower center", ncols=ncols, **more)


def log_ticks(axis) -> None:
    """Ticks of a logarithmic axis at 1, 2 and 5, written as plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_formatter(NullFormatter())


def plain(ax, title: str = "") -> None:
    """No ticks, grid and frame: for what is a picture and no diagram."""
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)
    if title:
        ax.set_title(title, fontsize=9)


def epochs_below(ax) -> None:
    """Whole numbers of epochs along the horizontal axis."""
    ax.set_xlabel("epoch")
    ax.xaxis.get_major_locator().set_params(integer=True)


@styled
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
    figure, ax = new_figure()
    for name, values in series.items():
        places = x if x is not None else np.arange(1, len(values) + 1)
        (line,) = ax.plot(places, values, marker=marker, markersize=4, label=name)
        half = (bands or {}).get(name)
        if half is not None:
            values, half = np.asarray(values, float), np.nan_to_num(np.asarray(half, float))
            band = values - half, values + half
            ax.fill_between(places, *band, color=line.get_color(), alpha=0.15, lw=0)
    if x is None or all(isinstance(place, int) for place in x):
        epochs_below(ax)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    if zero:
        ax.set_ylim(bottom=0)
    if len(series) > 1:
        ax.legend()
    return figure


@styled
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
    figure, ax = new_figure(width=max(4.8, 1.3 * len(names)))
    places = np.arange(len(names))
    halves = np.nan_to_num(np.zeros(len(values)) if halves is None else np.asarray(halves, float))
    ax.bar(places, values, 0.6, color=[color(i) for i in places])
    if halves.any():
        ax.errorbar(places, values, halves, fmt="none", capsize=4, ecolor="black", elinewidth=1.5)
    for place, value, half in zip(places, values, halves, strict=True):
        above = {"xytext": (0, 2), "textcoords": "offset points", "ha": "center", "va": "bottom"}
        ax.annotate(text.format(value), (place, value + half), fontsize=9, **above)
    ax.set_xticks(places, names)
    ax.set(ylabel=ylabel, title=title)
    ax.grid(axis="x", visible=False)
    ax.margins(y=0.15)
    if low is not None:
        ax.set_ylim(bottom=low)
    return figure
