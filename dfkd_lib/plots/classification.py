"""Confusion matrices and loss components (A Figures 12, 13)."""

import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from dfkd_lib.plots.style import COLORS, STYLE, new_figure


def confusion(
    matrices: dict[str, np.ndarray], classes: Sequence[str], predicted: Sequence[str] | None = None
) -> Figure:
    """A Figure 12: {title: (K, K) counts}, rows true, columns predicted; shades are the share of the true class.

    Args:
        classes: names of the K rows, and of the columns unless these have names of their own: predicted.
    """
    with matplotlib.rc_context(STYLE):
        side = max(3.4, 0.42 * len(classes))
        figure, axes = new_figure(
            1, len(matrices), side * len(matrices) + 0.6, side + 0.5, grid=False, squeeze=False
        )
        for ax, (title, counts) in zip(axes[0], matrices.items(), strict=True):
            counts = np.asarray(counts)
            share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
            drawn = ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
            names = predicted or classes
            ax.set_xticks(range(len(names)), names, rotation=0 if max(map(len, names)) < 4 else 60)
            ax.set_yticks(range(len(classes)), classes)
            ax.set(
                title=textwrap.fill(title, round(8 * side)),
                xlabel="predicted class",
                ylabel="true class",
            )
            if len(classes) <= 12:
                for i, j in np.ndindex(counts.shape):
                    if counts[i, j]:
                        ax.text(
                            j,
                            i,
                            int(counts[i, j]),
                            ha="center",
                            va="center",
                            fontsize=7 if len(classes) > 6 else 10,
                            color="white" if share[i, j] > 0.5 else "black",
                        )
        figure.colorbar(drawn, ax=axes, label="share of the true class", shrink=0.85)
    return figure


def loss_components(histories: dict[str, list[dict]], names: dict[str, str]) -> Figure:
    """A Figure 13: one panel a loss component over epochs, one line a run.

    Args:
        histories: {run: history of the training loop}. names: {key in the history: panel title}.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(1, len(names), 3.1 * len(names), 3.2, squeeze=False)
        for ax, (key, title) in zip(axes[0], names.items(), strict=True):
            for i, (run, history) in enumerate(histories.items()):
                rows = [row for row in history if key in row]  # a run may do without a loss
                ax.plot(
                    [row["epoch"] for row in rows],
                    [row[key] for row in rows],
                    marker="o",
                    markersize=3,
                    color=COLORS[i % len(COLORS)],
                    label=run,
                )
            ax.set(title=title, xlabel="epoch", ylabel="mean over the epoch")
            ax.set_ylim(bottom=0)
            ax.xaxis.get_major_locator().set_params(integer=True)
        figure.legend(
            *axes[0, 0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=2,
            frameon=False,
        )
    return figure
