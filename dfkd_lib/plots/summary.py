"""What stands behind the stages: real images and time."""

from collections.abc import Sequence

import matplotlib
import matplotlib.ticker
import numpy as np
from matplotlib.figure import Figure

from dfkd_lib.plots.style import COLORS, STYLE, new_figure


def real_images(stages: Sequence[str], itself: Sequence[int], behind: Sequence[int]) -> Figure:
    """Two bars a stage: real images it learned from itself, and those that what it was made from learned from."""
    with matplotlib.rc_context(STYLE):
        figure, ax = new_figure(width=7.2, height=1.2 + 0.46 * len(stages))
        places = np.arange(len(stages))
        for offset, counts, color, label in (
            (-0.2, itself, COLORS[0], "read by the stage itself"),
            (0.2, behind, COLORS[4], "read by what it was made from"),
        ):
            drawn = ax.barh(places + offset, counts, 0.38, color=color, label=label)
            ax.bar_label(drawn, [f"{count:,}" for count in counts], padding=3, fontsize=9)
        ax.set_yticks(places, stages)
        ax.invert_yaxis()
        ax.set(xlabel="real images learned from (evaluation left out)")
        ax.xaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:,.0f}"))
        ax.margins(x=0.14)
        ax.grid(axis="y", visible=False)
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def stage_seconds(stages: Sequence[str], seconds: Sequence[float]) -> Figure:
    """One bar a stage: the seconds that making all of its artifacts took."""
    with matplotlib.rc_context(STYLE):
        figure, ax = new_figure(width=7.2, height=1.0 + 0.3 * len(stages))
        drawn = ax.barh(stages, seconds, 0.6, color=COLORS[2])
        ax.bar_label(drawn, [f"{value:,.1f}" for value in seconds], padding=3, fontsize=9)
        ax.invert_yaxis()
        ax.set(xlabel="seconds of making, all artifacts of the stage")
        ax.margins(x=0.12)
        ax.grid(axis="y", visible=False)
    return figure
