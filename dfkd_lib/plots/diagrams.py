"""Diagrams of the methods from the code's own layers and shapes: GAN (A Figure 5), distillation (A Figures 9, 14), TITN."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch

from dfkd_lib.plots.style import COLORS, NotebookFigure, legend_below, styled

Layers = Sequence[tuple[str, Sequence[int]]]  # (name, shape of its output without the batch)
# Role, as the legend names it -> (face, edge).
ROLES = {
    "data": ("white", "0.35"),
    "trained": ("#D6E9F5", COLORS[0]),
    "frozen": ("#E9E9E9", "0.35"),
    "loss": ("#FBE3D2", COLORS[1]),
}
LETTER, LINE, GAP = 0.078, 0.17, (0.75, 0.34)  # inches: of text, and between boxes across and down


class Box(NamedTuple):
    """A box of a diagram: text of one or more lines, place on a grid (fractions lie between), and a key of `ROLES`."""

    text: str
    column: float
    row: float
    role: str = "data"


def shape_text(shape: Sequence[int]) -> str:
    """A shape in words: 1 × 32 × 32."""
    return " × ".join(str(int(n)) for n in shape) or "1"


def _centres(boxes: dict[str, Box], sizes: dict[str, tuple], axis: int) -> dict[str, float]:
    """The middle of each box in inches along one axis: each column as wide, each row as high as its largest box."""
    places = {name: box[1 + axis] for name, box in boxes.items()}
    whole = np.unique(np.floor(list(places.values())))
    room = [max((sizes[n][axis] for n, p in places.items() if p == w), default=0.4) for w in whole]
    middles = np.cumsum(np.add(room, GAP[axis])) - np.divide(room, 2)
    return {name: float(np.interp(place, whole, middles)) for name, place in places.items()}


@styled
def _draw(
    boxes: dict[str, Box], arrows: Sequence[tuple[str, str] | tuple[str, str, str]]
) -> Figure:
    """Boxes on a grid, arrows between them.

    Args:
        boxes: {name: Box}. arrows: (from, to) or (from, to, label), names of boxes.
    """
    sizes = {}
    for name, box in boxes.items():
        lines = box.text.split("\n")
        sizes[name] = LETTER * max(map(len, lines)) + 0.2, LINE * len(lines) + 0.14
    x, y = (_centres(boxes, sizes, axis) for axis in (0, 1))
    middles = np.array([(x[name], y[name]) for name in boxes])
    halves = np.array(list(sizes.values())) / 2
    left, top = (middles - halves).min(0) - 0.1
    right, bottom = (middles + halves).max(0) + 0.1
    figure = NotebookFigure(figsize=(right - left, bottom - top + 0.35), layout="constrained")
    ax = figure.subplots()
    ax.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
    ax.set_axis_off()
    drawn = {}
    for name, box in boxes.items():
        face, edge = ROLES[box.role]
        (w, h), corner = sizes[name], "round,pad=0,rounding_size=0.06"
        drawn[name] = FancyBboxPatch((x[name] - w / 2, y[name] - h / 2), w, h, boxstyle=corner)
        dashed = (0, (3, 2)) if box.role == "frozen" else "-"
        drawn[name].set(facecolor=face, edgecolor=edge, linewidth=1.2, linestyle=dashed)
        ax.add_patch(drawn[name])
        ax.text(x[name], y[name], box.text, ha="center", va="center", fontsize=8.5)
    for start, end, *label in arrows:
        ends = (x[start], y[start]), (x[end], y[end])
        style = {"arrowstyle": "-|>", "mutation_scale": 9, "color": "0.3", "linewidth": 1.1}
        clip = {"patchA": drawn[start], "patchB": drawn[end], "shrinkA": 0, "shrinkB": 1}
        ax.add_patch(FancyArrowPatch(*ends, **style, **clip, zorder=0.5))
        if label:
            middle = np.mean(ends, axis=0)
            white = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
            ax.text(*middle, label[0], fontsize=7.5, ha="center", va="center", bbox=white)
    used = {box.role for box in boxes.values()}
    patches = [Patch(fc=fc, ec=ec, label=role) for role, (fc, ec) in ROLES.items() if role in used]
    legend_below(figure, len(used), patches)
    return figure


def _stack(
    boxes: dict, arrows: list, name: str, layers: Layers, column: float, role: str, start: float = 1
) -> tuple[str, str]:
    """Add layers below each other, joined by arrows; the names of the first and the last."""
    names = [f"{name} {i}" for i in range(len(layers))]
    for i, (text, shape) in enumerate(layers):
        boxes[names[i]] = Box(f"{text}\n{shape_text(shape)}", column, start + i, role)
    arrows += zip(names[:-1], names[1:], strict=True)
    return names[0], names[-1]


def gan_diagram(
    generator: Layers,
    discriminator: Layers,
    teacher: Layers,
    noise: Sequence[int],
    image: Sequence[int],
    classes: int,
) -> Figure:
    """A Figure 5: generator and discriminator of the augmented GAN, and the frozen teacher whose attention it follows.

    Args:
        generator, discriminator, teacher: (layer, shape of its output) from first to last, as `models.layer_shapes` gives
            them. noise, image: shapes. classes: how many.
    """
    boxes: dict[str, Box] = {}
    arrows: list = []
    middle, low = 1 + len(generator), 1 + len(generator) + max(len(discriminator), len(teacher))
    first, last = _stack(boxes, arrows, "generator", generator, 1, "trained")
    d_first, d_last = _stack(boxes, arrows, "critic", discriminator, 0, "trained", middle)
    t_first, t_last = _stack(boxes, arrows, "teacher", teacher, 2, "frozen", middle)
    boxes |= {
        "noise": Box(f"noise\n{shape_text(noise)}", 1, 0),
        "class": Box(f"class\n1 of {classes}", 2, 0),
        "real": Box(f"real image and its class\n{shape_text(image)}", 0, middle - 1),
        "image": Box(f"generated image, class\n{shape_text(image)}", 1, middle),
        "adversarial": Box("adversarial loss\nL_D, L_adv", 0, low, "loss"),
        "attention": Box("attention loss (eq. 4)\nλ (1 − cos)", 2, low, "loss"),
        "probe": Box("attention probe\nof the class (eq. 2)", 1, low, "frozen"),
    }
    arrows += [("noise", first), ("class", first), (last, "image"), ("real", d_first)]
    arrows += [("image", d_first), ("image", t_first), (d_last, "adversarial")]
    arrows += [(t_last, "attention", "attention probe"), ("probe", "attention")]
    return _draw(boxes, arrows)


def distillation_diagram(
    image: Sequence[int],
    teacher: str,
    student: str,
    teacher_outputs: Layers,
    student_outputs: Layers,
    losses: dict[str, tuple[str, str]],
    labels: str = "labels",
) -> Figure:
    """A Figures 9 and 14: what teacher and student give for one image, and the losses between these and the labels.

    Args:
        image: shape. teacher, student: text of each, such as its name and parameters. teacher_outputs, student_outputs:
            (name, shape) of each output. losses: {text: (student's output, teacher's output or "labels")}, a column each.
        labels: text for what the data set itself gives.
    """
    columns = {text: i + 1 for i, text in enumerate(losses)}
    boxes = {text: Box(text, column, 2, "loss") for text, column in columns.items()}
    arrows: list = []

    def column_of(side: int, name: str) -> float:
        """The middle of all losses that use an output; NaN without any."""
        used = [columns[text] for text, pair in losses.items() if pair[side] == name]
        return float(np.mean(used)) if used else np.nan

    for side, who, text, outputs, role, row, step in (
        (1, "teacher", teacher, teacher_outputs, "frozen", 0, 1),
        (0, "student", student, student_outputs, "trained", 4, -1),
    ):
        places = {name: column_of(side, name) for name, _ in outputs}
        boxes[who] = Box(text, float(np.nanmean(list(places.values()))), row, role)
        boxes[f"image {who}"] = Box(f"image\n{shape_text(image)}", 0, row)
        arrows.append((f"image {who}", who))
        for name, shape in outputs:
            if np.isfinite(places[name]):
                output = f"{name}\n{shape_text(shape)}"
                boxes[f"{who} {name}"] = Box(output, places[name], row + step, role)
                arrows.append((who, f"{who} {name}"))
    if np.isfinite(column_of(1, "labels")):
        boxes["labels"] = Box(labels, column_of(1, "labels"), 1)
    for text, (ours, target) in losses.items():
        arrows.append((f"student {ours}", text))
        arrows.append(("labels" if target == "labels" else f"teacher {target}", text))
    return _draw(boxes, arrows)


def titn_diagram(
    image: Sequence[int],
    pixels: Sequence[int],
    patches: Sequence[int],
    depth: int,
    outputs: Layers,
    losses: Sequence[str],
) -> Figure:
    """TITN: inner blocks over the pixels of each patch, outer blocks over the patches, one loss a special token.

    Args:
        image: (C, H, W). pixels: (patches, pixels a patch, width) of the inner tokens. patches: (tokens, width) of the outer
            ones, class and distillation token included. depth: pairs of blocks. outputs: (head, shape) of each head.
        losses: one text a head, same order.
    """
    inner, outer, flat = shape_text(pixels), shape_text(patches), int(pixels[1]) * int(pixels[2])
    start = "patch embedding, class and\ndistillation token, position"
    over = {
        "inner": f"{depth} × inner block: attention,\nMLP over a patch's pixels\n{inner}",
        "outer": f"{depth} × outer block: attention,\nMLP over all tokens\n{outer}",
    }
    boxes = {
        "image": Box(f"image\n{shape_text(image)}", 0, 0.5),
        "pixels": Box(f"pixel embedding\n{inner}", 1, 0, "trained"),
        "patches": Box(f"{start}\n{outer}", 1, 1, "trained"),
        "inner": Box(over["inner"], 2, 0, "trained"),
        "outer": Box(over["outer"], 2, 1, "trained"),
    }
    arrows: list = [("image", "pixels"), ("image", "patches"), ("pixels", "inner")]
    added = f"each: flatten {flat} → {int(patches[1])}, add"
    arrows += [("patches", "outer"), ("inner", "outer", added)]
    for row, ((name, shape), loss) in enumerate(zip(outputs, losses, strict=True)):
        boxes[name] = Box(f"{name}\n{shape_text(shape)}", 3, row, "trained")
        boxes[loss] = Box(loss, 4, row, "loss")
        arrows += [("outer", name), (name, loss)]
    return _draw(boxes, arrows)
