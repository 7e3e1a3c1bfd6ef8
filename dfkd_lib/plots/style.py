"""One look for every figure: readable at print size, colour-blind-safe, nothing cut off."""

import functools
import io
import os
from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from PIL import Image

# Okabe and Ito's palette, distinct under every common kind of colour blindness.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
LINES = (*COLORS[:-1], "#B8A800")  # yellow is too pale for lines on white: it is darkened
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)))
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
    "text.parse_math": False,  # a class may be called $5
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "lines.linewidth": 1.8,
}
# Inches of a column, and of a page of two columns, as IEEE has them.
WIDTHS = {"single": 3.5, "double": 7.16}
LEAST = 1.8  # inches of one of several axes side by side; narrower ones stand below one another
SLANTED = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}


class NotebookFigure(Figure):
    """A matplotlib figure that a notebook shows as a PNG without any backend having been chosen."""

    def savefig(self, *args, **kwargs) -> None:
        """As matplotlib's; fonts are chosen when a file is written: TrueType ones in PDFs, text as text in SVGs."""
        with matplotlib.rc_context(STYLE):
            super().savefig(*args, **kwargs)

    def _repr_png_(self) -> bytes:
        buffer, theme = io.BytesIO(), os.environ.get("DFKD_THEME", "light")
        if theme not in ("light", "dark"):
            raise ValueError(
                f"DFKD_THEME is to be light or dark, not {theme!r}: correct or unset it"
            )
        if theme == "dark":
            return _darkened(self)
        self.savefig(buffer, format="png", bbox_inches="tight", dpi=STYLE["figure.dpi"])
        return buffer.getvalue()


def _darkened(figure: Figure) -> bytes:
    """The figure as a PNG for a dark page: light and dark change places, hues stay, and pictures are left as they are."""
    dpi, buffer = STYLE["figure.dpi"], io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.draw_without_rendering()  # lays it out
    around = figure.get_tightbbox().padded(0.1)
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches=around)
    pixels = np.asarray(Image.open(buffer).convert("RGB")) / 255
    # Lightness is the mean of the largest and the least; by its opposite, and no page is quite black.
    both = pixels.max(-1, keepdims=True) + pixels.min(-1, keepdims=True)
    dark = 0.08 + 0.92 * (pixels + 1 - both)
    for ax in figure.axes:
        if ax.images or any(isinstance(one, QuadMesh) for one in ax.collections):
            box = ax.get_window_extent().extents.reshape(2, 2) / figure.dpi - around.min
            (left, low), (right, high) = (dpi * box).round().astype(int)
            kept = slice(max(0, len(dark) - high), len(dark) - low), slice(max(0, left), right)
            dark[kept] = pixels[kept]
    buffer = io.BytesIO()
    Image.fromarray((255 * dark.clip(0, 1)).round().astype(np.uint8)).save(buffer, format="png")
    return buffer.getvalue()


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """A drawing function inside the house style, whatever the caller's own settings are, its text as large as `asked`."""

    @functools.wraps(draw)
    def inside(*args, **kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            figure = draw(*args, **kwargs)
            for ax in getattr(figure, "stacked", ()):
                if not ax.get_ylabel():  # its own was beside it, on an axis that both share
                    ax.set_ylabel(figure.stacked[0].get_ylabel())
            times = asked()[1] / STYLE["font.size"]
            return figure if times == 1 else _enlarged(figure, times)

    return inside


def _enlarged(figure: Figure, times: float) -> Figure:
    """The figure with all text so many times as large."""
    for text in figure.findobj(Text):
        text.set_fontsize(times * text.get_fontsize())
    for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)):
        for label in axis.get_ticklabels()[:1]:  # of ticks that are still to come
            axis.set_tick_params(labelsize=label.get_fontsize())
    return figure


def asked() -> tuple[float | None, float]:
    """(width in inches, or None for each figure's own; size of text in points) of DFKD_FIGURE_WIDTH and DFKD_FONT_SIZE.

    Raises:
        ValueError: on another width than single or double, or a size that is no number from 4 to 24.
    """
    width, size = (os.environ.get(f"DFKD_{name}", "") for name in ("FIGURE_WIDTH", "FONT_SIZE"))
    usual = 8.0 if width else STYLE["font.size"]
    try:
        inches, points = WIDTHS[width] if width else None, float(size or usual)
        if 4 <= points <= 24:
            return inches, points
    except (KeyError, ValueError):
        pass
    raise ValueError(
        "DFKD_FIGURE_WIDTH is to be single or double, DFKD_FONT_SIZE from 4 to 24 points, "
        f"not {width!r} and {size!r}: correct these variables, or unset them"
    )


def new_figure(
    rows: int = 1,
    columns: int = 1,
    width: float = 6.4,
    height: float = 3.6,
    grid: bool = True,
    **options,
):
    """(Figure, axes) in the house style; width and height in inches, of the whole figure, unless `asked` for others.

    A row of axes that would be too narrow is stacked instead. The figure belongs to no pyplot state, so that thousands can be drawn without leaking memory.
    """
    # Text shrinks less than the width does, so the height does too; what that leaves between pictures is pressed out.
    wanted = asked()[0] or width
    stack = rows == 1 and columns > 1 and wanted < width and wanted / columns < LEAST
    if stack:
        height = columns * min(height, 0.7 * wanted) * (width / wanted) ** 0.5
    layout = "constrained" if wanted == width else "compressed"
    size = wanted, height * (wanted / width) ** 0.5
    with matplotlib.rc_context(STYLE):
        figure = NotebookFigure(figsize=size, layout=layout)
        axes = figure.subplots(*((columns, rows) if stack else (rows, columns)), **options)
        for ax in np.ravel(axes):
            ax.grid(grid)
    if stack:
        figure.stacked, axes = np.ravel(axes), axes.T
    return figure, axes


def series_style(i: int) -> dict:
    """Colour, dashes and marker of the i-th of many series; no two of 32 alike in colour and either of the others."""
    times, place = divmod(i, len(LINES))
    marker = MARKERS[(i + times) % len(MARKERS)]
    return {"color": LINES[place], "linestyle": DASHES[times % len(DASHES)], "marker": marker}


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


def legend_below(
    figure: Figure, ncols: int = 2, handles: Sequence | None = None, grow: bool = False
) -> None:
    """The legend below all axes, of the handles given or of all that have a label, on as many columns as fit, evenly filled.

    `grow` makes the figure higher by it.
    """
    every = [h for ax in figure.axes for h in ax.get_legend_handles_labels()[0]]
    entries = every if handles is None else handles
    for fit in range(min(ncols, len(entries)), 0, -1):
        columns = -(-len(entries) // -(-len(entries) // fit))
        drawn = figure.legend(handles=entries, loc="outside lower center", ncols=columns)
        extent = drawn.get_window_extent()
        if fit == 1 or extent.width <= figure.bbox.width:
            break
        drawn.remove()
    if grow and entries:
        figure.set_figheight(figure.get_figheight() + extent.height / figure.dpi)


def legend_under(ax, **options) -> None:
    """The legend of one of several axes, below it."""
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), **options)


def within_percent(ax, least: float = 2.0) -> None:
    """A vertical axis of percent: nothing outside 0 to 100, and at least so many points high, so that noise looks like it."""
    low, high = ax.get_ylim()
    middle, half = (low + high) / 2, max(high - low, least) / 2
    middle = min(max(middle, half), 100 - half) if half < 50 else 50
    ax.set_ylim(max(0, middle - half), min(100, middle + half))


def spans_decades(values) -> bool:
    """Whether values are all above 0 and the largest at least ten times the least: on a linear axis most would be one."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    return bool(values.size and values.min() > 0 and values.max() >= 10 * values.min())


def log_ticks(axis) -> None:
    """Ticks of a logarithmic axis written as plain numbers: at 1, 2 and 5, over more than three decades at 1 alone."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1,) if high > 1000 * low > 0 else (1, 2, 5)))
    axis.set_major_formatter(lambda value, _: f"{value:,.6g}")
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
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    low, high = ax.dataLim.intervalx
    if low == high:
        ax.set_xlim(low - 0.5, high + 0.5)


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


def place(text, spots: Sequence[tuple], taken: list[tuple]) -> None:
    """Move a text to the spot in its axes where it hides least; the first spots are preferred.

    Args:
        spots: (left, bottom) in pixels of the drawn figure; those outside are moved in. taken: (left, bottom, right, top,
            weight) of what not to hide; gets the text's own.
    """
    box, inside = text.get_window_extent(), text.axes.get_window_extent()
    spots = np.clip(spots, inside.min, inside.max - box.size).tolist()

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
