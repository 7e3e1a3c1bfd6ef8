"""How fast we are beside others, and how cost grows with the work."""

import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from dfkd_lib.plots.style import COLORS, STYLE, new_figure


def ratios(
    labels: Sequence[str],
    peers: Sequence[str],
    groups: Sequence[str],
    values: Sequence[tuple[float, float, float]],
    about: str = "",
) -> Figure:
    """A dot a line at the median ratio with a bar over its quartiles, log axis, a line at 1; a colour for each group.

    Args:
        labels, peers, groups: of each line, as long as `values`: (low, median, high), > 0. about: written below.
    """
    names = list(dict.fromkeys(groups))
    with matplotlib.rc_context(STYLE):
        figure, ax = new_figure(width=11.5, height=1.6 + 0.24 * len(values))
        places = np.arange(len(values), 0, -1) - 1
        for place, group, (low, middle, high) in zip(places, groups, values, strict=True):
            color = COLORS[names.index(group) % (len(COLORS) - 1)]
            ax.plot(
                [low, high], [place, place], color=color, lw=3, alpha=0.5, solid_capstyle="round"
            )
            ax.plot([middle], [place], "o", color=color, markersize=6)
            ax.annotate(
                f"{middle:.2f}" if middle < 10 else f"{middle:.0f}",
                (max(high, middle), place),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                bbox={"fc": "white", "ec": "none", "pad": 0.5},
            )
        ax.axvline(1, color="black", lw=1)
        ax.set_xscale("log")
        # Room for the figures beside the dots.
        ax.set_xlim(
            min(0.5, 0.8 * min(v[0] for v in values)), max(2.0, 2.6 * max(v[2] for v in values))
        )
        ax.xaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_yticks(
            places,
            [
                f"{group}: {label}  |  {peer}"
                for group, label, peer in zip(groups, labels, peers, strict=True)
            ],
            fontsize=8,
        )
        ax.set_ylim(-0.7, len(values) - 0.3)
        ax.set_xlabel("times as fast as the peer")
        if about:
            figure.supxlabel(about, fontsize=7, x=0.01, ha="left")
    return figure


def growth_lines(
    series: Sequence[tuple[str, str, Sequence[float], Sequence[float], float, float]],
) -> Figure:
    """Lines on two logarithmic axes, one panel a measure, beside a dashed line of the slope that is expected.

    Args:
        series: (panel, name, works, values, slope, expected) each; works and values > 0, shown relative to the first.
    """
    panels = list(dict.fromkeys(row[0] for row in series))
    columns = min(3, len(panels))
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(
            -(-len(panels) // columns),
            columns,
            width=4.4 * columns,
            height=4.6 * -(-len(panels) // columns),
            squeeze=False,
        )
        for ax in axes.flat[len(panels) :]:
            ax.set_visible(False)
        for panel, ax in zip(panels, axes.flat, strict=False):
            rows = [row for row in series if row[0] == panel]
            for i, (_, name, works, values, slope, expected) in enumerate(rows):
                works, values = (
                    np.asarray(works, float) / works[0],
                    np.asarray(values, float) / values[0],
                )
                ax.plot(
                    works,
                    values,
                    "o-",
                    color=COLORS[i % len(COLORS)],
                    markersize=4,
                    label=textwrap.fill(f"{name}: {slope:.2f} ({expected:g})", 50),
                )
                ax.plot(
                    works, works**expected, "--", color=COLORS[i % len(COLORS)], lw=0.8, alpha=0.6
                )
            ax.set(xscale="log", yscale="log", xlabel="work, times the least", title=panel)
            for axis in (ax.xaxis, ax.yaxis):
                axis.set_major_locator(LogLocator(2, numticks=9))
                axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
                axis.set_minor_formatter(NullFormatter())
            low, high = ax.get_ylim()
            ax.set_ylim(
                min(low, 0.45), max(high, 2.2)
            )  # what hardly grows has two ticks too, and does not look steep
            ax.legend(
                frameon=False,
                title="slope (expected, dashed)",
                fontsize=8,
                title_fontsize=8,
                loc="upper center",
                bbox_to_anchor=(0.5, -0.16),
            )
        for ax in axes[:, 0]:
            ax.set_ylabel("time, times the least")
    return figure
