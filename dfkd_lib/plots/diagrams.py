"""Diagrams of distillation from the code's own shapes (A Figures 9, 14)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch

from dfkd_lib.plots.style import COLORS, NotebookFigure, legend_below, styled

Layers = Sequence[tuple[str, Sequence[int]]]  # (name, shape of its output without the batch)
# Role -> (face, edge, its words in the legend).
ROLES = {
    "data": ("white", "0.35", "data"),
    "trained": ("#D6E9F5", COLORS[0], "trained"),
    "frozen": ("#E9E9E9", "0.35", "frozen"),
    "loss": ("#FBE3D2", COLORS[1], "loss"),
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
    whole = sorted({float(np.floor(p)) for p in places.values()})
    room = {
        w: max((sizes[n][axis] for n, p in places.items() if p == w), default=0.4) for w in whole
    }
    ends = np.cumsum([room[w] + GAP[axis] for w in whole])
    middles = ends - np.array([room[w] for w in whole]) / 2
    return {name: float(np.interp(place, whole, middles)) for name, place in places.items()}


def _draw(boxes: dict[str, Box], arrows: Sequence[tuple[str, str]]) -> Figure:
    """Boxes on a grid, arrows (from, to) between them."""
    lines = {name: box.text.split("\n") for name, box in boxes.items()}
    sizes = {
        name: (LETTER * max(map(len, text)) + 0.2, LINE * len(text) + 0.14)
        for name, text in lines.items()
    }
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
        face, edge, _ = ROLES[box.role]
        (w, h), corner = sizes[name], "round,pad=0,rounding_size=0.06"
        drawn[name] = FancyBboxPatch((x[name] - w / 2, y[name] - h / 2), w, h, boxstyle=corner)
        dashed = (0, (3, 2)) if box.role == "frozen" else "-"
        drawn[name].set(facecolor=face, edgecolor=edge, linewidth=1.2, linestyle=dashed)
        ax.add_patch(drawn[name])
        ax.text(x[name], y[name], box.text, ha="center", va="center", fontsize=8.5)
    style = {"arrowstyle": "-|>", "mutation_scale": 9, "color": "0.3", "linewidth": 1.1}
    for start, end in arrows:
        ends = (x[start], y[start]), (x[end], y[end])
        clip = {"patchA": drawn[start], "patchB": drawn[end], "shrinkA": 0, "shrinkB": 1}
        ax.add_patch(FancyArrowPatch(*ends, **style, **clip, zorder=0.5))
    used = [role for role in ROLES if any(box.role == role for box in boxes.values())]
    patches = [Patch(fc=ROLES[role][0], ec=ROLES[role][1], label=ROLES[role][2]) for role in used]
    legend_below(figure, len(used), patches)
    return figure


@styled
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
