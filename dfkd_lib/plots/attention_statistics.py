"""Statistics of attention: spread of class probes, distance and diversity by block, agreement, explanations."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from dfkd_lib.plots.attention import as_grid
from dfkd_lib.plots.images import show
from dfkd_lib.plots.style import COLORS, STYLE, new_figure


def _tile(ax, values, top: float | None = None, title: str = ""):
    drawn = ax.imshow(as_grid(values), cmap="magma", vmin=0, vmax=top, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    if title:
        ax.set_title(title, fontsize=9)
    return drawn


def class_probe_spread(mean, std, classes: Sequence[str]) -> Figure:
    """The class probes' means (K, N) above the standard deviations (K, N) over each class's images, each on one scale."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(
            2, len(classes), max(5.0, 0.92 * len(classes) + 1.4), 2.7, grid=False, squeeze=False
        )
        named = ((mean, "mean", classes), (std, "standard\ndeviation", [""] * len(classes)))
        for row, (values, name, titles) in zip(axes, named, strict=True):
            values = np.asarray(values, float)
            for ax, tile, title in zip(row, values, titles, strict=True):
                drawn = _tile(ax, tile, float(np.nanmax(values)), str(title))
            row[0].set_ylabel(name, fontsize=9)
            figure.colorbar(drawn, ax=list(row), shrink=0.8)
    return figure


def explanations(images, rows: dict[str, np.ndarray], names: Sequence[str]) -> Figure:
    """Images (n, C, H, W) above what each method says of them: {method: (n, N)}, each tile by its own maximum."""
    with matplotlib.rc_context(STYLE):
        count = len(images)
        figure, axes = new_figure(
            1 + len(rows),
            count,
            1.35 * count + 1.6,
            1.4 * (1 + len(rows)) + 0.2,
            grid=False,
            squeeze=False,
        )
        for ax, image, name in zip(axes[0], images, names, strict=True):
            show(ax, image, name)
        for row, (method, values) in zip(axes[1:], rows.items(), strict=True):
            for ax, tile in zip(row, np.asarray(values, float), strict=True):
                _tile(ax, tile)
            row[0].set_ylabel(method, rotation=0, ha="right", va="center", fontsize=9)
    return figure


def attention_profile(models: dict) -> Figure:
    """Attention distance and entropy of every head, and head diversity, by block.

    Args:
        models: {name: `attention.AttentionStatistics`}; a dot is a head, a line the mean of a block's heads.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(1, 3, 9.6, 3.1)
        for color, (name, found) in zip(COLORS, models.items(), strict=False):
            for ax, values in zip(
                axes, (found.distance, found.entropy, found.diversity[:, None]), strict=True
            ):
                values = np.asarray(values, float)
                blocks = np.arange(1, len(values) + 1)
                ax.plot(
                    blocks,
                    values.mean(1),
                    color=color,
                    label=name,
                    marker="o" if values.shape[1] == 1 else "",
                    markersize=4,
                )
                if values.shape[1] > 1:
                    ax.scatter(
                        np.repeat(blocks, values.shape[1]),
                        values.ravel(),
                        color=color,
                        s=16,
                        alpha=0.6,
                        lw=0,
                    )
                ax.xaxis.get_major_locator().set_params(integer=True)
        for ax, label in zip(
            axes,
            ("attention distance (pixels)", "entropy (nats)", "head diversity (nats)"),
            strict=True,
        ):
            ax.set(xlabel="block", ylabel=label)
            ax.set_ylim(bottom=0)
        if len(models) > 1:
            axes[0].legend(frameon=False)
    return figure


def agreement_by_class(found, measures: Sequence[str], classes: Sequence[str]) -> Figure:
    """One panel a measure: its mean for each class with the 95 % interval over images.

    Args:
        found: `attention.Agreement`. measures: names of its rows. classes: names, K of them.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(
            1, len(measures), 3.2 * len(measures), 0.24 * len(classes) + 1.5, squeeze=False
        )
        places = np.arange(len(classes))
        for ax, name, mean, half in zip(
            axes[0], measures, np.asarray(found.mean), np.asarray(found.half), strict=True
        ):
            ax.errorbar(
                mean, places, xerr=np.nan_to_num(half), fmt="o", markersize=4, capsize=2.5, lw=1.2
            )
            ax.set_yticks(places, classes)
            ax.invert_yaxis()
            ax.set_xlabel(name)
            # Agreement is read against none at all: 0 belongs to the axis.
            ax.set_xlim(min(0.0, float(np.nanmin(mean - np.nan_to_num(half))) * 1.1), None)
            ax.margins(x=0.08)
        axes[0, 0].set_ylabel("class")
    return figure
