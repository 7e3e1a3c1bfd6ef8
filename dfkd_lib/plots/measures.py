"""Measures of synthetic images beside each other: distances, fidelity against diversity, accuracy, nearest real images."""

from collections.abc import Sequence

import matplotlib
import matplotlib.ticker
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dfkd_lib.plots.images import show
from dfkd_lib.plots.style import COLORS, STYLE, new_figure

MARKERS = "osD^vP*X"


def _mark(i: int) -> dict:
    return {"color": COLORS[i % len(COLORS)], "marker": MARKERS[i % len(MARKERS)]}


def _whiskers(values, low, high) -> np.ndarray:
    """(2, n) lengths below and above, 0 where an interval is missing, for matplotlib's error bars."""
    values, low, high = (np.asarray(v, float) for v in (values, low, high))
    return np.nan_to_num(np.clip([values - low, high - values], 0, None))


def distance_by_class(tables: dict, log: bool = False) -> Figure:
    """Fréchet distances with their intervals, all images first, then class by class; what was not measured stays empty.

    Args:
        tables: {maker: DataFrame of `metrics.Measures.table`}, all with the same classes. log: a logarithmic axis, for makers
            far apart.
    """
    with matplotlib.rc_context(STYLE):
        names = [str(name) for name in next(iter(tables.values()))["class"]]
        figure, ax = new_figure(
            width=max(5.2, 0.15 * len(names) * (len(tables) + 1) + 1.4), height=3.8
        )
        for i, (maker, table) in enumerate(tables.items()):
            places = np.arange(len(names)) + (i - (len(tables) - 1) / 2) * 0.7 / len(tables)
            values = table["Fréchet distance"].to_numpy(float)
            ax.errorbar(
                places,
                values,
                yerr=_whiskers(values, table["low"], table["high"]),
                linestyle="none",
                markersize=5,
                capsize=2.5,
                elinewidth=1.1,
                label=maker,
                **_mark(i),
            )
        ax.axvline(0.5, color="0.6", linewidth=0.8)
        slanted = (
            {}
            if max(map(len, names)) < 5
            else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        )
        ax.set_xticks(range(len(names)), names, **slanted)
        ax.set_xlim(-0.6, len(names) - 0.4)
        ax.grid(axis="x", visible=False)
        ax.set(xlabel="class", ylabel="Fréchet distance")
        if log:
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter(
                matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:,.4g}")
            )
            ax.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        else:
            ax.set_ylim(bottom=0)
        if len(tables) > 1:
            figure.legend(loc="outside lower center", ncols=min(3, len(tables)), frameon=False)
    return figure


def fidelity_diversity(tables: dict) -> Figure:
    """Precision against recall and density against coverage of all images, one mark a maker; up and right is better.

    Args:
        tables: {maker: DataFrame of `metrics.Measures.table`}, of which the first row counts.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(1, 2, width=7.6, height=4.2)
        for ax, x, y in ((axes[0], "recall", "precision"), (axes[1], "coverage", "density")):
            for i, (maker, table) in enumerate(tables.items()):
                ax.plot(
                    table[x].iloc[0],
                    table[y].iloc[0],
                    linestyle="none",
                    markersize=9,
                    markerfacecolor="none",
                    markeredgewidth=2,
                    label=maker if ax is axes[0] else None,
                    clip_on=False,
                    **_mark(i),
                )
            ax.set(xlabel=f"{x} (diversity)", ylabel=f"{y} (fidelity)")
            ax.set_xlim(0, 1.03)
            ax.set_ylim(0, max(1.03, ax.get_ylim()[1]))
        figure.legend(loc="outside lower center", ncols=min(3, len(tables)), frameon=False)
    return figure


def accuracy_against_distance(table) -> Figure:
    """Students' accuracies against the Fréchet distances of what they were taught on, each named, with both intervals.

    Args:
        table: DataFrame with the columns "maker", "Fréchet distance", "low", "high" and "accuracy" (percent); where they
            are there, also "accuracy low" and "accuracy high".
    """
    with matplotlib.rc_context(STYLE):
        figure, ax = new_figure(width=6.4, height=4.2)
        x, y = table["Fréchet distance"].to_numpy(float), table["accuracy"].to_numpy(float)
        sides = _whiskers(x, table["low"], table["high"])
        heights = (
            _whiskers(y, table["accuracy low"], table["accuracy high"])
            if "accuracy low" in table
            else np.zeros((2, len(y)))
        )
        for i in range(len(table["maker"])):
            ax.errorbar(
                x[i],
                y[i],
                xerr=sides[:, i, None],
                yerr=heights[:, i, None],
                markersize=8,
                capsize=3,
                elinewidth=1.1,
                markerfacecolor="none",
                markeredgewidth=2,
                **_mark(i),
            )
        ax.set(
            xlabel="Fréchet distance (lower is nearer to the real images)",
            ylabel="student's test accuracy (%)",
        )
        ax.margins(x=0.12, y=0.18)
        ax.set_xlim(left=max(0, ax.get_xlim()[0]))
        ax.set_ylim(max(0, ax.get_ylim()[0]), min(102, ax.get_ylim()[1]))
        _names(ax, x, y, list(table["maker"]))
    return figure


def _names(ax, x: np.ndarray, y: np.ndarray, names: Sequence[str]) -> None:
    """Name each point above it, towards the axes' middle; where names would meet, the later one goes higher or below."""
    middle, taken = np.mean(ax.get_xlim()), []
    ax.figure.draw_without_rendering()  # the layout is to be what it will be
    renderer = FigureCanvasAgg(ax.figure).get_renderer()
    for i in np.argsort(y):
        right = x[i] > middle
        for offset in (6, -14, 20, -28, 34, -42, 48):
            text = ax.annotate(
                names[i],
                (x[i], y[i]),
                xytext=(-6 if right else 6, offset),
                textcoords="offset points",
                ha="right" if right else "left",
                fontsize=9,
                color=COLORS[i % len(COLORS)],
            )
            box = text.get_window_extent(renderer)
            if not any(box.overlaps(other) for other in taken):
                break
            text.remove()
        else:
            ax.add_artist(text)
        taken.append(box)


def neighbours(
    made: Sequence, real: Sequence, distances: Sequence, titles: Sequence[str] | None = None
) -> Figure:
    """Each made image beside its nearest real ones, nearest first, with their distances: does it look like a copy?

    Args:
        made: uint8 (n, C, H, W). real: uint8 (n, k, C, H, W). distances: (n, k), of `metrics.nearest`. titles: n names.
    """
    with matplotlib.rc_context(STYLE):
        count, k = np.shape(distances)
        figure, axes = new_figure(
            count,
            k + 1,
            0.95 * (k + 1) + (1.2 if titles is not None else 0.2),
            1.12 * count + 0.35,
            squeeze=False,
        )
        for i, row in enumerate(axes):
            show(row[0], made[i], "made" if i == 0 else "")
            for spine in row[0].spines.values():
                spine.set(visible=True, color=COLORS[1], linewidth=2)
            for j, ax in enumerate(row[1:]):
                show(ax, real[i][j], f"real, {j + 1}." if i == 0 else "")
                ax.set_xlabel(f"{distances[i][j]:.3g}", fontsize=9, labelpad=2)
            if titles is not None:
                row[0].set_ylabel(titles[i], rotation=0, ha="right", va="center", fontsize=9)
    return figure
