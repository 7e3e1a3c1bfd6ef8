"""The diagram of distillation: no box covers another, nothing is cut off."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from dfkd_lib import plots

KD = {"KD": ("logits", "logits"), "CE": ("logits", "labels"), "patch": ("probe", "probe")}


def distillation():
    outputs = [("logits", (10,)), ("probe", (49,)), ("unused", (3,))]
    return plots.distillation_diagram((1, 28, 28), "teacher", "student", outputs, outputs, KD)


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_no_box_covers_another_and_every_text_is_inside_its_box():
    figure = distillation()
    FigureCanvasAgg(figure).draw()
    (ax,) = figure.axes
    boxes = [p.get_window_extent() for p in ax.patches if isinstance(p, FancyBboxPatch)]
    assert len(boxes) > 5
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    for box, text in zip(boxes, ax.texts, strict=False):
        words = text.get_window_extent()
        assert box.x0 <= words.x0 and words.x1 <= box.x1 and box.y0 <= words.y0
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert drawn.x0 > -0.03 and drawn.x1 < width + 0.03 and drawn.y1 < height + 0.03


def test_each_loss_joins_what_it_compares():
    figure = distillation()
    arrows = [p for p in figure.axes[0].patches if isinstance(p, FancyArrowPatch)]
    # Two images, the outputs in use of both (2 + 2), two arrows a loss.
    assert len(arrows) == 2 + 4 + 2 * len(KD) and not any(
        "unused" in text for text in texts(figure)
    )


def test_counts_by_class_are_the_bars():
    figure = plots.class_counts({"train": [10, 20, 30], "test": [1, 2, 3]}, ["a", "b", "c"])
    (ax,) = figure.axes
    assert [[bar.get_height() for bar in c] for c in ax.containers] == [[10, 20, 30], [1, 2, 3]]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["train (60)", "test (6)"]
