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
    figure.legend(handles=handles, loc="outside lower center", ncols=ncols)


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


def squares(ax, values: np.ndarray, low: float, high: float, texts=None, size: float = 8):
    """Draw values as shades of squares, what has no value in grey; `texts` of the same shape stand on them."""
    drawn = ax.imshow(values, cmap="Blues", vmin=low, vmax=high, aspect="auto")
    ax.set_facecolor("0.94")
    for i, j in np.ndindex(values.shape) if texts is not None else ():
        known = np.isfinite(values[i, j])
        dark = known and values[i, j] > low + 0.6 * (high - low)
        shade = "white" if dark else "black" if known else "0.4"
        ax.text(j, i, texts[i, j], ha="center", va="center", fontsize=size, color=shade)
    return drawn


def place(text, spots: Sequence[tuple], taken: list[tuple], renderer) -> None:
    """Move a text to the spot where it hides least; the first spots are preferred.

    Args:
        spots: (left, bottom) in pixels of the drawn figure. taken: (left, bottom, right, top, weight) of what not to hide;
            gets the text's own.
    """
    box = text.get_window_extent(renderer)

    def cost(i: int) -> float:
        left, bottom = spots[i]
        overlaps = (
            weight
            * max(0, min(left + box.width, right) - max(left, x))
            * max(0, min(bottom + box.height, top) - max(bottom, y))
            for x, y, right, top, weight in taken
        )
        return 0.02 * i * box.width * box.height + sum(overlaps)

    left, bottom = spots[min(range(len(spots)), key=cost)]
    taken.append((left, bottom, left + box.width, bottom + box.height, 3.0))
    text.set(ha="left", va="bottom")
    text.set_position(text.axes.transData.inverted().transform((left, bottom)))
