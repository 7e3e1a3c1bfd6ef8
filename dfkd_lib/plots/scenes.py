"""The same scenes under several detectors (A Figure 18): boxes with names and scores, where a detection looks."""

import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.textpath import TextPath

from dfkd_lib.plots.images import show
from dfkd_lib.plots.style import COLORS, STYLE, new_figure

SIDE = 2.5  # of a scene, in inches
FONT = 8


def class_color(label: int) -> str:
    """The colour of a class, the same in every figure."""
    return COLORS[int(label) % len(COLORS)]


def ink(color: str) -> str:
    """Black or white, whichever is read on this colour."""
    return "black" if np.dot(to_rgb(color), (0.299, 0.587, 0.114)) > 0.55 else "white"


def _corners(box: np.ndarray, shape: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, top, width, height in pixels of a box cxcywh in [0, 1]."""
    height, width = shape
    x, y, w, h = (np.asarray(box, float) * (width, height, width, height)).tolist()
    return x - w / 2 - 0.5, y - h / 2 - 0.5, w, h


def _outline(ax, box: np.ndarray, shape: tuple[int, int], color: str, **style) -> None:
    x, y, w, h = _corners(box, shape)
    # A small box is not drowned by its own line.
    style["linewidth"] = min(style["linewidth"], max(0.8, min(w, h) * 72 * SIDE / max(shape) / 9))
    halo = [
        withStroke(
            linewidth=style["linewidth"] + min(1.4, style["linewidth"]),
            foreground="white",
            alpha=0.75,
        )
    ]
    ax.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor=color, path_effects=halo, **style))


def _place(
    box, text: str, shape: tuple[int, int], unit: float, taken: list[tuple]
) -> tuple[float, float]:
    """Left and top of a label beside its box: inside the scene, and off boxes and other labels where there is room.

    Args:
        unit: pixels of the scene to a point of print. taken: (left, top, right, bottom, weight) to stay off; gets the label.
    """
    wide, high = (TextPath((0, 0), text, FONT).get_extents().x1 + 3) * unit, (FONT + 4) * unit
    x, y, w, h = _corners(box, shape)
    gap = 2 * unit
    tried = [
        (x + dx, top)
        for dx in (0, w - wide)
        for top in (y - high - gap, y + h + gap, y, y + h - high)
    ]
    tried += [(left, top) for top in (y, y + h - high) for left in (x + w + gap, x - wide - gap)]
    inside = [
        (min(max(left, -0.5), shape[1] - 0.5 - wide), min(max(top, -0.5), shape[0] - 0.5 - high))
        for left, top in tried
    ]

    def cost(place: int) -> float:
        # What it would hide, other names above all; the first places are the likeliest to be looked at.
        left, top = inside[place]
        return 0.02 * place * wide * high + sum(
            weight
            * max(0, min(left + wide, right) - max(left, x))
            * max(0, min(top + high, bottom) - max(top, y))
            for x, y, right, bottom, weight in taken
        )

    left, top = inside[min(range(len(inside)), key=cost)]
    taken.append((left, top, left + wide, top + high, 3.0))
    return left, top


def draw_scene(
    ax,
    image: np.ndarray,
    true: dict,
    found: dict,
    classes: Sequence[str],
    look: tuple | None = None,
) -> None:
    """Draw one scene: dotted what is there (or was asked for), solid and named what is found, over it where it looks.

    Args:
        image: uint8 (3, H, W). true, found: dicts of boxes (n, 4) cxcywh in [0, 1] and labels (n,), found with scores too.
        look: (weights (rows, columns), box (4,) of the detection that looks there).
    """
    shape = image.shape[1:]
    show(ax, image)
    if look is not None:
        weights, _ = look
        ax.imshow(
            weights,
            cmap="magma",
            vmin=0,
            alpha=0.6,
            interpolation="nearest",
            extent=(-0.5, shape[1] - 0.5, shape[0] - 0.5, -0.5),
        )
    for box, label in zip(true["boxes"], true["labels"], strict=True):
        _outline(ax, box, shape, class_color(label), linestyle=(0, (1, 1.3)), linewidth=1.6)
    for box, label in zip(found["boxes"], found["labels"], strict=True):
        chosen = look is not None and np.allclose(look[1], box)
        _outline(ax, box, shape, class_color(label), linewidth=3.0 if chosen else 1.8)
    _name(ax, found, true, classes, shape)
    ax.set(xticks=[], yticks=[], xlim=(-0.5, shape[1] - 0.5), ylim=(shape[0] - 0.5, -0.5))
    ax.spines[:].set_visible(False)


class _Names(Artist):
    """Names beside their boxes, placed as the axes are drawn: only then is the size of a letter known."""

    def __init__(self, boxes: Sequence, others: Sequence, texts: Sequence, shape: tuple[int, int]):
        super().__init__()
        self.boxes, self.others, self.texts, self.shape = boxes, others, texts, shape
        self.set_in_layout(False)
        self.set_zorder(-1)  # before the names themselves

    def draw(self, renderer) -> None:
        unit = (
            self.shape[1]
            * self.axes.figure.dpi
            / (72 * self.axes.get_window_extent(renderer).width)
        )
        corners = [_corners(box, self.shape) for box in [*self.boxes, *self.others]]
        taken = [(x, y, x + w, y + h, 0.3) for x, y, w, h in corners]
        for box, text in zip(self.boxes, self.texts, strict=True):
            left, top = _place(box, text.get_text(), self.shape, unit, taken)
            text.set_position((left + 1.5 * unit, top + 2 * unit))


def _name(ax, found: dict, true: dict, classes: Sequence[str], shape: tuple[int, int]) -> None:
    """The name and score of each detection."""
    texts, scores = [], found.get("scores", [None] * len(found["boxes"]))
    for label, score in zip(found["labels"], scores, strict=True):
        color, name = (
            class_color(label),
            classes[int(label)] if int(label) < len(classes) else str(int(label)),
        )
        texts.append(
            ax.text(
                0,
                0,
                name if score is None else f"{name} {score:.2f}",
                fontsize=FONT,
                ha="left",
                va="top",
                color=ink(color),
                in_layout=False,
                bbox={"facecolor": color, "edgecolor": "none", "pad": 1.0, "alpha": 0.92},
            )
        )
    ax.add_artist(_Names(found["boxes"], true["boxes"], texts, shape))


def _said(true: dict, classes: Sequence[str]) -> str:
    names = [classes[int(label)] for label in true["labels"]]
    counted = [
        f"{names.count(name)} × {name}" if names.count(name) > 1 else name
        for name in dict.fromkeys(names)
    ]
    return ", ".join(counted) or "no object"


def detection_compare(
    images: np.ndarray,
    truth: Sequence[dict],
    found: dict[str, Sequence[dict]],
    classes: Sequence[str],
    looks: dict[str, Sequence] | None = None,
    columns: int = 4,
    titles: Sequence[str] | None = None,
) -> Figure:
    """A Figure 18: the same scenes under each detector; solid what it finds, dotted what is there.

    Args:
        images: uint8 (N, 3, H, W). truth: N dicts with "boxes" (n, 4) cxcywh in [0, 1] and "labels" (n,).
        found: {detector: N such dicts, with "scores" (n,)}, as `detection.detections` gives them. classes: names.
        looks: {detector: N of (weights (rows, columns), box (4,) of the detection that looks there), or None}.
        columns: scenes beside each other; of a single scene, detectors. titles: over each scene; default: what is there.
    """
    names, one = list(found), len(images) == 1
    columns = min(columns, len(names) if one else len(images))
    rows = -(-len(names) // columns) if one else -(-len(images) // columns) * len(names)
    ratio = images.shape[2] / images.shape[3]
    titles = titles or [_said(true, classes) for true in truth]
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(
            rows,
            columns,
            SIDE * columns + 0.5,
            (SIDE * ratio + 0.3) * rows + 0.6,
            grid=False,
            squeeze=False,
        )
        for ax in axes.flat:
            ax.set_axis_off()
        for i, j in np.ndindex(len(images), len(names)):
            # One scene: detectors beside each other. Several: below each other, scenes beside each other.
            row, column = (
                divmod(j, columns) if one else (i // columns * len(names) + j, i % columns)
            )
            ax, name = axes[row, column], names[j]
            ax.set_axis_on()
            look = looks[name][i] if looks and looks.get(name) else None
            draw_scene(ax, np.asarray(images[i]), truth[i], found[name][i], classes, look)
            if one:
                ax.set_title(textwrap.fill(name, 34), fontsize=9)
            elif column == 0:
                ax.set_ylabel(textwrap.fill(name, 24))
            if not one and j == 0:
                ax.set_title(textwrap.shorten(titles[i], 42, placeholder="…"), fontsize=9)
        if one:
            figure.suptitle(titles[0], fontsize=10)
        handles = [
            Line2D([], [], color=class_color(k), linewidth=2.5, label=name)
            for k, name in enumerate(classes)
        ]
        handles += [
            Line2D([], [], color="gray", linewidth=1.6, linestyle=(0, (1, 1.3)), label="true box")
        ]
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=min(len(handles), 2 * columns + 1),
            frameon=False,
        )
    return figure
