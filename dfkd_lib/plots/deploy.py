"""Deployed models: what accuracy costs in time and in bytes."""

from collections.abc import Sequence

import matplotlib
import matplotlib.ticker
import numpy as np
from matplotlib.figure import Figure

from dfkd_lib.plots.style import COLORS, STYLE, new_figure

MARKERS = "osD^vP*X"


def trade_off(
    names: Sequence[str],
    score: Sequence[float],
    costs: dict[str, Sequence[float]],
    intervals: Sequence[tuple[float, float]] | None = None,
    ylabel: str = "test accuracy (%)",
) -> Figure:
    """A score against each cost, one panel a cost on a logarithmic axis; hollow marks, as some coincide.

    Args:
        names: of the models. score: in percent. costs: {axis label with unit: one positive value a model}.
        intervals: (low, high) in percent of each score.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(
            1, len(costs), width=4.2 * len(costs), height=4.2, sharey=True, squeeze=False
        )
        for ax, (label, values) in zip(axes[0], costs.items(), strict=True):
            for i, (name, value) in enumerate(zip(names, values, strict=True)):
                low, high = (score[i], score[i]) if intervals is None else intervals[i]
                whiskers = (
                    np.clip([[score[i] - low], [high - score[i]]], 0, None) if high > low else None
                )
                ax.errorbar(
                    value,
                    score[i],
                    yerr=whiskers,
                    fmt=MARKERS[i % len(MARKERS)],
                    markersize=9,
                    capsize=3,
                    elinewidth=1,
                    markerfacecolor="none",
                    markeredgewidth=2,
                    color=COLORS[i % len(COLORS)],
                    label=name if ax is axes[0][0] else None,
                )
            ax.set_xscale("log")
            ax.set(xlabel=label)
            ax.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
            ax.xaxis.set_major_formatter(
                matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:,.6g}")
            )
            ax.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
            ax.margins(x=0.15, y=0.12)
        axes[0][0].set_ylabel(ylabel)
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure
