"""Scenes with boxes and names: one detector or several, real or drawn (A Figure 18), where a detection looks."""

import textwrap
from collections import Counter
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from dfkd_lib.plots.images import overlay, show
from dfkd_lib.plots.style import color, legend_below, new_figure, place, styled

SIDE = 2.5  # of a scene, in inches
MOST_COLUMNS = 4  # of scenes beside each other, or of detectors
SCALES = ("#00e5ff", "#ff2fd0", "#ffe14d", "#7cff6b")  # of sampling points, the finest scale first
DOTTED = {"linestyle": (0, (1, 1.3)), "linewidth": 1.6}


def ink(shade: str) -> str:
    """Black or white, whichever is read on this colour."""
    return "black" if np.dot(to_rgb(shade), (0.299, 0.587, 0.114)) > 0.55 else "white"


def corners(box: np.ndarray, shape: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, top, width, height in pixels of a box cxcywh in [0, 1]."""
    height, width = shape
    x, y, w, h = (np.asarray(box, float) * (width, height, width, height)).tolist()
    return x - w / 2 - 0.5, y - h / 2 - 0.5, w, h


def _outline(ax, box: np.ndarray, shape: tuple[int, int], edge: str, linewidth: float, **style):
    """Draw a box with a white edge; returns its patch."""
    x, y, w, h = corners(box, shape)
    # A small box is not drowned by its own line.
    thick = min(linewidth, max(0.8, min(w, h) * 72 * SIDE / max(shape) / 9))
    halo = withStroke(linewidth=thick + min(1.4, thick), foreground="white", alpha=0.75)
    drawn = Rectangle((x, y), w, h, fill=False, edgecolor=edge, linewidth=thick, **style)
    drawn.set_path_effects([halo])
    return ax.add_patch(drawn)


def _name_boxes(figure: Figure, named: Sequence[tuple]) -> None:
    """Put each (text, patch of its box) beside its box, off other boxes and names, now that nothing else is to be drawn."""
    figure.draw_without_rendering()
    gap = 2 * figure.dpi / 72
    taken = {
        ax: [(*box.get_window_extent().extents, 0.3) for box in ax.patches] for ax in figure.axes
    }
    for text, patch in named:
        name, box = text.get_window_extent(), patch.get_window_extent()
        # Above and below the box, in it, at its sides.
        within = (box.y1 - name.height, box.y0)
        ends = (box.y1 + gap, box.y0 - name.height - gap, *within)
        spots = [(x, y) for x in (box.x0, box.x1 - name.width) for y in ends]
        spots += [(x, y) for y in within for x in (box.x1 + gap, box.x0 - name.width - gap)]
        place(text, spots, taken[text.axes])


def draw_scene(
    ax,
    image: np.ndarray,
    true: dict,
    found: dict,
    classes: Sequence[str],
    look: tuple | None = None,
    named_classes: bool = True,
) -> list[tuple]:
    """Draw one scene: dotted what is there (or was asked for), solid and named what is found, over it where it looks.

    Args:
        image: uint8 (3, H, W). true, found: dicts of boxes (n, 4) cxcywh in [0, 1] and labels (n,), found with scores
            too unless it is the truth itself, which is drawn solid then. look: (weights (rows, columns) or None, box (4,)
            of the detection that looks there, points (n, 4) or None: x, y as shares of the image, weight, scale from 0, the finest).
        named_classes: False writes scores alone, where colours say the class.

    Returns:
        [(text, patch of the box that it names)], for `_name_boxes`.
    """
    shape = image.shape[1:]
    show(ax, image)
    if look is not None and look[0] is not None:
        overlay(ax, look[0], shape)
    if found is not true:
        for box, label in zip(true["boxes"], true["labels"], strict=True):
            _outline(ax, box, shape, color(label), **DOTTED)
    named, scores = [], found.get("scores", [None] * len(found["boxes"]))
    for box, label, score in zip(found["boxes"], found["labels"], scores, strict=True):
        chosen, shade = look is not None and np.allclose(look[1], box), color(label)
        outline = _outline(ax, box, shape, shade, 3.0 if chosen else 1.8)
        if score is not None:
            name = classes[int(label)] if int(label) < len(classes) else str(int(label))
            text = f"{name} {score:.2f}" if named_classes else f"{score:.2f}"
            text = ax.text(0, 0, text, fontsize=8, color=ink(shade))
            text.set_bbox({"facecolor": shade, "edgecolor": "none", "pad": 1.0, "alpha": 0.92})
            text.set_in_layout(False)
            named.append((text, outline))
    if look is not None and look[0] is None:
        _draw_points(ax, look[2], shape)
    ax.set(xlim=(-0.5, shape[1] - 0.5), ylim=(shape[0] - 0.5, -0.5))
    return named


def _draw_points(ax, points: np.ndarray, shape: tuple[int, int]) -> None:
    """Points (n, 4) in a scene: colour is the scale, area the weight."""
    x, y, weights, scales = np.asarray(points, float).T
    order = weights.argsort()
    ax.scatter(
        (x * shape[1] - 0.5)[order],
        (y * shape[0] - 0.5)[order],
        s=(3 + 60 * weights / max(weights.max(), 1e-12))[order],
        c=[SCALES[int(scale) % len(SCALES)] for scale in scales[order]],
        edgecolors="black",
        linewidths=0.5,
        alpha=0.85,
        zorder=4,
    )


def _finish(
    figure: Figure, named: Sequence[tuple], classes: Sequence[str], ncols: int, dotted: str
) -> Figure:
    """The classes' colours and what dotted boxes are as a legend, and the names at their boxes."""
    lines = [Line2D([], [], color=color(k), lw=2.5, label=name) for k, name in enumerate(classes)]
    lines += [Line2D([], [], color="gray", label=dotted, **DOTTED)] if dotted else []
    legend_below(figure, ncols, lines)
    _name_boxes(figure, named)
    return figure


def _grid(rows: dict[str, tuple], classes: Sequence[str], side: float, dotted: str) -> Figure:
    """One row of scenes a name: {name: (images, truth, found)}; colours say the classes, scores stand at the boxes."""
    columns = max(len(images) for images, _, _ in rows.values())
    size = side * columns + 0.5, (side + 0.05) * len(rows) + 0.4
    figure, axes = new_figure(len(rows), columns, *size, grid=False, squeeze=False)
    named = []
    for ax_row, (name, scenes) in zip(axes, rows.items(), strict=True):
        ax_row[0].set_ylabel(textwrap.fill(name, 18))
        for ax, image, true, found in zip(ax_row, *scenes, strict=False):
            named += draw_scene(ax, image, true, found, classes, None, False)
        for ax in ax_row[len(scenes[0]) :]:
            ax.set_axis_off()
    return _finish(figure, named, classes, len(classes) + 1, dotted)


@styled
def detection_grid(
    images: np.ndarray,
    truth: Sequence[dict],
    found: dict[str, Sequence[dict]],
    classes: Sequence[str],
) -> Figure:
    """A Figure 18: one column a scene, one row a detector; detections solid with names, true boxes dotted.

    Args:
        images: uint8 (N, 3, H, W). truth: N dicts with "boxes" (n, 4) cxcywh in [0, 1] and "labels" (n,).
        found: {detector: N such dicts, with "scores" (n,) unless they are true boxes}. classes: names.
    """
    scored = any("scores" in scene for scenes in found.values() for scene in scenes)
    rows = {name: (images, truth if scored else scenes, scenes) for name, scenes in found.items()}
    return _grid(rows, classes, 1.7, "true box" if scored else "")


@styled
def drawn_scenes(makers: dict[str, dict], classes: Sequence[str]) -> Figure:
    """One row a maker, one column a layout: dotted what was asked for, solid what the teacher finds.

    Args:
        makers: {maker: {"images": uint8 (n, 3, H, W), "truth": n dicts of boxes (m, 4) and labels (m,), "found": n dicts of
            boxes, labels and scores}}. classes: names.
    """
    rows = {name: (m["images"], m["truth"], m["found"]) for name, m in makers.items()}
    return _grid(rows, classes, 0.72 * SIDE, "asked for")


def _listed(true: dict, classes: Sequence[str]) -> str:
    """The objects of a scene in words: "2 × bird, plane"."""
    counts = Counter(classes[int(label)] for label in true["labels"])
    each = [f"{count} × {name}" if count > 1 else name for name, count in counts.items()]
    return ", ".join(each) or "no object"


@styled
def detection_compare(
    images: np.ndarray,
    truth: Sequence[dict],
    found: dict[str, Sequence[dict]],
    classes: Sequence[str],
    looks: dict[str, Sequence] | None = None,
    titles: Sequence[str] | None = None,
) -> Figure:
    """A Figure 18: the same scenes under each detector; solid what it finds, dotted what is there.

    Args:
        images: uint8 (N, 3, H, W). truth: N dicts with "boxes" (n, 4) cxcywh in [0, 1] and "labels" (n,).
        found: {detector: N such dicts, with "scores" (n,)}, as `detection.detections` gives them. classes: names.
        looks: {detector: N of `look` as `draw_scene` takes it, or None}. titles: over each scene; default: what is there.
    """
    names, one = list(found), len(images) == 1
    columns = min(MOST_COLUMNS, len(names) if one else len(images))
    rows = -(-len(names) // columns) if one else -(-len(images) // columns) * len(names)
    tall = SIDE * images.shape[2] / images.shape[3] + 0.3
    size = SIDE * columns + 0.5, tall * rows + 0.6
    figure, axes = new_figure(rows, columns, *size, grid=False, squeeze=False)
    titles, named = titles or [_listed(true, classes) for true in truth], []
    for ax in axes.flat:
        ax.set_axis_off()
    for i, j in np.ndindex(len(images), len(names)):
        # One scene: detectors beside each other. Several: below each other, scenes beside each other.
        down, across = divmod(j, columns) if one else divmod(i, columns)
        ax, name = axes[down if one else down * len(names) + j, across], names[j]
        ax.set_axis_on()
        look = looks[name][i] if looks and looks.get(name) else None
        named += draw_scene(ax, images[i], truth[i], found[name][i], classes, look)
        if one:
            ax.set_title(textwrap.fill(name, 34), fontsize=9)
        elif across == 0:
            ax.set_ylabel(textwrap.fill(name, 24))
        if not one and j == 0:
            ax.set_title(textwrap.shorten(titles[i], 42, placeholder="…"), fontsize=9)
    if one:
        figure.suptitle(titles[0], fontsize=10)
    return _finish(figure, named, classes, 2 * columns + 1, "true box")
