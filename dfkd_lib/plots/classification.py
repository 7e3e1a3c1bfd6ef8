"""Confusion matrices, and losses and measures over epochs (A Figures 12, 13, 16, 17, 19)."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from dfkd_lib.plots.style import color, epochs_below, legend_below, new_figure, styled


@styled
def confusion(
    matrices: dict[str, np.ndarray], classes: Sequence[str], predicted: Sequence[str] | None = None
) -> Figure:
    """A Figure 12: {title: (K, K) counts}, rows true, columns predicted; shades are the share of the true class.

    Args:
        classes: names of the K rows, and of the columns unless these have names of their own: predicted.
    """
    side, names = max(3.4, 0.42 * len(classes)), predicted or classes
    size = side * len(matrices) + 0.6, side + 0.5
    figure, axes = new_figure(1, len(matrices), *size, grid=False, squeeze=False)
    for ax, (title, counts) in zip(axes[0], matrices.items(), strict=True):
        counts = np.asarray(counts)
        share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        drawn = ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
        ax.set_xticks(range(len(names)), names, rotation=0 if max(map(len, names)) < 4 else 60)
        ax.set_yticks(range(len(classes)), classes)
        title = textwrap.fill(title, round(8 * side))
        ax.set(title=title, xlabel="predicted class", ylabel="true class")
        for i, j in np.argwhere(counts) if len(classes) <= 12 else ():
            ink = "white" if share[i, j] > 0.5 else "black"
            text = ax.text(j, i, int(counts[i, j]), ha="center", va="center", color=ink)
            text.set_fontsize(7 if len(classes) > 6 else 10)
    figure.colorbar(drawn, ax=axes, label="share of the true class", shrink=0.85)
    return figure


def detection_confusion(matrices: dict[str, np.ndarray], classes: Sequence[str]) -> Figure:
    """What objects are taken for: {detector: counts (K + 1, K + 1)} as `metrics.confusion` gives them."""
    return confusion(matrices, [*classes, "background"], [*classes, "missed"])


@styled
def loss_components(histories: dict[str, list[dict]], names: dict[str, str]) -> Figure:
    """A Figure 13: one panel a loss component over epochs, one line a run.

    Args:
        histories: {run: history of the training loop}. names: {key in the history: panel title}.
    """
    figure, axes = new_figure(1, len(names), 3.1 * len(names), 3.2, squeeze=False)
    for ax, (key, title) in zip(axes[0], names.items(), strict=True):
        for i, (run, history) in enumerate(histories.items()):
            _line(ax, history, key, color=color(i), label=run if ax is axes[0, 0] else None)
        ax.set(title=title, ylabel="mean over the epoch")
        ax.set_ylim(bottom=0)
        epochs_below(ax)
    legend_below(figure)
    return figure


@styled
def measure_curves(
    histories: dict[str, list[dict]], measures: dict[str, str], ylabel: str, title: str = ""
) -> Figure:
    """A Figures 16, 17, 19: measures in [0, 1] on the test scenes after each epoch.

    Args:
        histories: {detector: history of the training loop}; colour distinguishes detectors.
        measures: {key in the history: words for the legend}; line style distinguishes measures.
    """
    figure, ax = new_figure()
    for i, (name, history) in enumerate(histories.items()):
        for dash, (key, words) in zip(("-", "--", ":"), measures.items(), strict=False):
            label = f"{name}, {words}" if len(histories) > 1 else words
            _line(ax, history, key, linestyle=dash, color=color(i), label=label)
    ax.set(ylabel=ylabel, title=title, ylim=(0, 1))
    epochs_below(ax)
    if len(histories) * len(measures) > 1:
        ax.legend()
    return figure


def _line(ax, history: list[dict], key: str, **style) -> None:
    """One value of a history over epochs, where it has it: a run may do without a loss."""
    rows = [row for row in history if key in row]
    places = [row["epoch"] for row in rows], [row[key] for row in rows]
    ax.plot(*places, marker="o", markersize=3, **style)
