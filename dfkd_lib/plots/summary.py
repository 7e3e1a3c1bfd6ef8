"""What stands behind the stages: real images, time, and the data set by class (A Figure 15)."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from dfkd_lib.plots.style import COLORS, SLANTED, color, legend_below, new_figure, styled


@styled
def real_images(stages: Sequence[str], itself: Sequence[int], behind: Sequence[int]) -> Figure:
    """Two bars a stage: real images it learned from itself, and those that what it was made from learned from."""
    figure, ax = new_figure(width=7.2, height=1.2 + 0.46 * len(stages))
    places = np.arange(len(stages))
    named = (
        (-0.2, itself, COLORS[0], "read by the stage itself"),
        (0.2, behind, COLORS[4], "read by what it was made from"),
    )
    for offset, counts, shade, label in named:
        drawn = ax.barh(places + offset, counts, 0.38, color=shade, label=label)
        ax.bar_label(drawn, [f"{count:,}" for count in counts], padding=3, fontsize=9)
    ax.set_yticks(places, stages)
    ax.invert_yaxis()
    ax.set(xlabel="real images learned from (evaluation left out)")
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.margins(x=0.14)
    ax.grid(axis="y", visible=False)
    legend_below(figure)
    return figure


@styled
def stage_seconds(stages: Sequence[str], seconds: Sequence[float]) -> Figure:
    """One bar a stage: the seconds that making all of its artifacts took."""
    figure, ax = new_figure(width=7.2, height=1.0 + 0.3 * len(stages))
    drawn = ax.barh(stages, seconds, 0.6, color=COLORS[2])
    ax.bar_label(drawn, [f"{value:,.1f}" for value in seconds], padding=3, fontsize=9)
    ax.invert_yaxis()
    ax.set(xlabel="seconds of making, all artifacts of the stage")
    ax.margins(x=0.12)
    ax.grid(axis="y", visible=False)
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
    wide, places = 0.82 / len(splits), np.arange(len(classes))
    for i, (split, counts) in enumerate(splits.items()):
        offset = (i - (len(splits) - 1) / 2) * wide
        label = f"{split} ({int(np.sum(counts)):,})"
        drawn = ax.bar(places + offset, counts, 0.94 * wide, color=color(i), label=label)
        if len(classes) <= 20:
            ax.bar_label(drawn, [f"{count:,}" for count in counts], padding=2, fontsize=7)
    step = -(-len(classes) // 40)
    slanted = SLANTED if max(map(len, classes)) > 6 or len(classes) > 20 else {}
    ax.set_xticks(places[::step], classes[::step], **slanted)
    ax.set(xlabel="class", ylabel=what)
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.margins(x=0.02, y=0.12)
    ax.grid(axis="x", visible=False)
    legend_below(figure, len(splits))
    return figure
