"""Attention probes and maps beside their images (A Figures 1-4), and their statistics: spread, profile, agreement."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dfkd_lib.plots.images import NAMED, heat, overlay, show
from dfkd_lib.plots.style import (
    color,
    legend_below,
    legend_under,
    mark,
    new_figure,
    squares,
    styled,
)

MOST_EPOCHS = 9  # that `attention_by_epoch` draws


@styled
def image_map_probe(images, maps, probes, names: Sequence[str]) -> Figure:
    """A Figure 1: each image, its attention map, its probe over the patch grid, and the probe laid over the image.

    Args:
        images: uint8 (n, C, H, W). maps: (n, T, T), heads averaged. probes: (n, N). names: n titles.
    """
    figure, axes = new_figure(len(images), 4, 8.2, 2.05 * len(images) + 0.2, squeeze=False)
    for row, image, attention, probe, name in zip(axes, images, maps, probes, names, strict=True):
        show(row[0], image, f"image: {name}")
        heat(row[1], attention, "attention map (query × key)", bar=True)
        heat(row[2], probe, "attention probe", bar=True)
        show(row[3], image, "probe on the image")
        overlay(row[3], probe, np.shape(image)[1:])
    return figure


@styled
def probe_pipeline(images, probes, class_probe, name: str) -> Figure:
    """A Figure 2: the probes (n, N) of one class's images (n, C, H, W), and their mean, the class probe (N,)."""
    count = len(images)
    figure, axes = new_figure(2, count + 1, 1.15 * (count + 1), 2.7, squeeze=False)
    for i in range(count):
        show(axes[0, i], images[i])
        heat(axes[1, i], probes[i])
    axes[0, -1].set_axis_off()
    axes[0, -1].text(0.5, 0.5, "mean over\nthe class", ha="center", va="center", fontsize=10)
    heat(axes[1, -1], class_probe, "class probe")
    axes[0, 0].set_ylabel(f"class {name}", fontsize=9)
    axes[1, 0].set_ylabel("probes", fontsize=9)
    return figure


@styled
def class_probe_grid(class_probes, classes: Sequence[str], columns: int = 5) -> Figure:
    """A Figures 3, 4: the class attention probes (K, N) over the patch grid, one colour scale for all classes."""
    rows = -(-len(classes) // columns)
    figure, axes = new_figure(rows, columns, 1.55 * columns + 0.8, 1.75 * rows, squeeze=False)
    top = float(np.max(np.asarray(class_probes)))
    for ax in axes.flat[len(classes) :]:
        ax.set_axis_off()
    for ax, probe, name in zip(axes.flat, class_probes, classes, strict=False):
        drawn = heat(ax, probe, str(name), top)
    figure.colorbar(drawn, ax=axes, shrink=0.8, label="attention of the class token")
    return figure


@styled
def class_probe_spread(mean, std, classes: Sequence[str]) -> Figure:
    """The class probes' means (K, N) above the standard deviations (K, N) over each class's images, each on one scale."""
    width = max(5.0, 0.92 * len(classes) + 1.4)
    figure, axes = new_figure(2, len(classes), width, 2.7, squeeze=False)
    named = ((mean, "mean", classes), (std, "standard\ndeviation", [""] * len(classes)))
    for row, (values, name, titles) in zip(axes, named, strict=True):
        values = np.asarray(values, float)
        for ax, tile, title in zip(row, values, titles, strict=True):
            drawn = heat(ax, tile, str(title), float(np.nanmax(values)))
        row[0].set_ylabel(name, fontsize=9)
        figure.colorbar(drawn, ax=list(row), shrink=0.8)
    return figure


@styled
def explanations(images, rows: dict[str, np.ndarray], names: Sequence[str]) -> Figure:
    """Images (n, C, H, W) above what each method says of them: {method: (n, N)}, each tile by its own maximum."""
    count, tall = len(images), 1 + len(rows)
    figure, axes = new_figure(tall, count, 1.35 * count + 1.6, 1.4 * tall + 0.2, squeeze=False)
    for ax, image, name in zip(axes[0], images, names, strict=True):
        show(ax, image, name)
    for row, (method, values) in zip(axes[1:], rows.items(), strict=True):
        for ax, tile in zip(row, np.asarray(values, float), strict=True):
            heat(ax, tile)
        row[0].set_ylabel(method, **NAMED)
    return figure


@styled
def attention_by_epoch(images, probes) -> Figure:
    """Images, each with its probes while a network learned: before training, then after epochs evenly chosen up to the last.

    Args:
        images: uint8 (n, C, H, W). probes: (epochs + 1, n, N), from before training; all of a row on one scale.
    """
    probes = np.asarray(probes, float)
    epochs = np.unique(np.linspace(0, len(probes) - 1, MOST_EPOCHS).round().astype(int))
    size = 0.95 * (len(epochs) + 1) + 1.2, 1.0 * len(images) + 0.4
    figure, axes = new_figure(len(images), len(epochs) + 1, *size, squeeze=False)
    for i, row in enumerate(axes):
        show(row[0], images[i])
        for ax, epoch in zip(row[1:], epochs, strict=True):
            title = f"epoch {epoch}" if epoch else "before"
            drawn = heat(ax, probes[epoch, i], "" if i else title, probes[:, i].max())
        figure.colorbar(drawn, ax=list(row), shrink=0.8)
    return figure


@styled
def insertion_deletion(found: dict) -> Figure:
    """Mean curves of deletion and of insertion over images, their mean areas in the legends.

    Args:
        found: {map: `attention.Faithfulness`}.
    """
    figure, axes = new_figure(1, 2, 8.2, 4.4)
    parts = ("deletion", "taken away"), ("insertion", "put in")
    for ax, (part, what) in zip(axes, parts, strict=True):
        for i, (name, curves) in enumerate(found.items()):
            area = float(np.mean(np.asarray(getattr(curves, f"{part}_area"))))
            values = np.asarray(getattr(curves, part)).mean(0)
            ax.plot(np.asarray(curves.shares), values, label=f"{name}, {area:.3f}", **mark(i))
        ax.set(xlabel=f"share of patches {what}", ylabel="probability of the class")
        ax.set(xlim=(0, 1), ylim=(0, 1))
        legend_under(ax, title="mean area")
    return figure


@styled
def attention_profile(models: dict) -> Figure:
    """Attention distance and entropy of every head, and head diversity, by block.

    Args:
        models: {name: `attention.AttentionStatistics`}; a dot is a head, a line the mean of a block's heads.
    """
    figure, axes = new_figure(1, 3, 9.6, 3.1)
    labels = "attention distance (pixels)", "entropy (nats)", "head diversity (nats)"
    for i, (name, found) in enumerate(models.items()):
        measured = found.distance, found.entropy, found.diversity[:, None]
        for ax, values in zip(axes, measured, strict=True):
            values = np.asarray(values, float)
            blocks, heads = np.arange(1, len(values) + 1), values.shape[1]
            mean = {"marker": "o" if heads == 1 else "", "markersize": 4}
            ax.plot(blocks, values.mean(1), color=color(i), label=name, **mean)
            if heads > 1:
                places = np.repeat(blocks, heads), values.ravel()
                ax.scatter(*places, color=color(i), s=16, alpha=0.6, lw=0)
    for ax, label in zip(axes, labels, strict=True):
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set(xlabel="block", ylabel=label)
        ax.set_ylim(0, 1.05 * ax.dataLim.y1)
    if len(models) > 1:
        legend_below(figure, len(models), axes[0].lines)
    return figure


@styled
def agreement_by_class(found, measures: Sequence[str], classes: Sequence[str]) -> Figure:
    """One panel a measure: its mean for each class with the 95 % interval over images, dashed the mean of all classes.

    Args:
        found: `attention.Agreement`. measures: names of its rows. classes: names, K of them.
    """
    size = 3.2 * len(measures), 0.24 * len(classes) + 1.5
    figure, axes = new_figure(1, len(measures), *size, squeeze=False, sharey=True)
    places = np.arange(len(classes))
    means, halves = np.asarray(found.mean), np.nan_to_num(np.asarray(found.half))
    for ax, name, mean, half in zip(axes[0], measures, means, halves, strict=True):
        ax.errorbar(mean, places, xerr=half, fmt="o", markersize=4, capsize=2.5, lw=1.2)
        over_all = float(np.nanmean(mean))
        ax.axvline(over_all, color="0.4", lw=1, ls="--", zorder=1)
        ax.set_title(f"mean {over_all:.3f}", fontsize=9)
        ax.set_xlabel(name)
        ax.margins(x=0.08)
    axes[0, 0].set_yticks(places, classes)
    axes[0, 0].invert_yaxis()
    axes[0, 0].set_ylabel("class")
    return figure


@styled
def head_ablation(found) -> Figure:
    """What a classifier's accuracy loses without each head, and without all heads of a block, in percentage points.

    Args:
        found: `attention.HeadAblation`.
    """
    lost = 100 * (found.whole - np.column_stack([found.heads, found.blocks]))
    blocks, columns = lost.shape
    figure, ax = new_figure(width=0.62 * columns + 2.4, height=0.36 * blocks + 1.3, grid=False)
    texts = np.array([f"{x:.1f}" if np.isfinite(x) else "" for x in lost.ravel()])
    texts = texts.reshape(lost.shape)
    drawn = squares(ax, lost, min(0.0, np.nanmin(lost)), max(1.0, np.nanmax(lost)), texts)
    ax.set_xticks(range(columns), [*range(1, columns), "all"])
    ax.set_yticks(range(blocks), range(1, blocks + 1))
    ax.set(xlabel="head taken away", ylabel="block")
    ax.axvline(columns - 1.5, color="white", lw=4)
    figure.colorbar(drawn, ax=ax, label="accuracy lost (points)")
    return figure


@styled
def patch_colours(images, colours, grid: tuple[int, int], names: Sequence[str]) -> Figure:
    """Images (n, C, H, W) above their patches (n, N, 3) as colours, red, green and blue from 0 to 1, on a grid."""
    count = len(images)
    figure, axes = new_figure(2, count, 1.35 * count + 1.2, 3.0, squeeze=False)
    for column, image, own, name in zip(axes.T, images, np.asarray(colours), names, strict=True):
        show(column[0], image, name)
        heat(column[1], own.reshape(*grid, 3))
    axes[1, 0].set_ylabel("first three\ncomponents", **NAMED)
    return figure


@styled
def nearest_patches(first, second, found, chosen: Sequence[int], grid: tuple[int, int]) -> Figure:
    """Patches of an image (C, H, W) and their nearest in a second one, framed alike; dashed where it is nearer to another.

    Args:
        found: `attention.NearestPatches` of the first image's patches in the second. chosen: patches of the first.
        grid: (rows, columns) of both.
    """
    figure, axes = new_figure(1, 2, 5.6, 3.1)
    places = {"image": list(chosen), "nearest in another": [int(found.place[i]) for i in chosen]}
    for ax, image, (title, patches) in zip(axes, (first, second), places.items(), strict=True):
        show(ax, image, title)
        tall, wide = (side / n for side, n in zip(np.shape(image)[1:], grid, strict=True))
        for number, patch in enumerate(patches):
            corner = patch % grid[1] * wide - 0.5, patch // grid[1] * tall - 0.5
            dashes = "-" if found.mutual[chosen[number]] else (0, (2, 1))
            for edge, lw, style in (("white", 3.2, "-"), (color(number), 2, dashes)):
                how = {"fill": False, "edgecolor": edge, "lw": lw, "ls": style}
                ax.add_patch(Rectangle(corner, wide, tall, **how))
            middle = corner[0] + wide / 2, corner[1] + tall / 2
            text = ax.text(*middle, str(number + 1), ha="center", va="center", fontsize=8)
            text.set_bbox({"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.6})
    return figure
