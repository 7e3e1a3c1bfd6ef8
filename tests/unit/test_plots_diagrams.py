"""Diagrams of the methods: they name the layers and shapes of the code, no box covers another, nothing is cut off."""

import pytest
import torch
from figures import inside, written
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from dfkd_lib import models, plots
from dfkd_lib.models import layer_shapes

KD = {"KD": ("logits", "logits"), "CE": ("logits", "labels"), "patch": ("probe", "probe")}


def gan(width):
    labels = torch.zeros(2, dtype=torch.long)
    generator = layer_shapes(models.Generator(7, 3, 20, width), labels, torch.zeros(2, 20))
    images = torch.zeros(2, 3, 32, 32)
    discriminator = layer_shapes(models.Discriminator(7, 3), images, labels)
    teacher = layer_shapes(models.create_model("vit_mnist_small"), torch.zeros(2, 1, 28, 28))
    return plots.gan_diagram(generator, discriminator, teacher, (20,), (3, 32, 32), 7)


def distillation():
    outputs = [("logits", (10,)), ("probe", (49,)), ("unused", (3,))]
    return plots.distillation_diagram((1, 28, 28), "teacher", "student", outputs, outputs, KD)


def titn():
    heads = [("class head", (10,)), ("distillation head", (10,))]
    shapes = (16, 16, 12), (18, 192)
    return plots.titn_diagram((3, 32, 32), *shapes, 12, heads, ["CutMix", "hard label"])


@pytest.mark.parametrize("draw", [lambda: gan(64), lambda: gan(512), distillation, titn])
def test_no_box_covers_another_and_every_text_is_inside_its_box(draw):
    figure = draw()
    assert inside(figure)
    (ax,) = figure.axes
    boxes = [p.get_window_extent() for p in ax.patches if isinstance(p, FancyBboxPatch)]
    assert len(boxes) > 5
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    for box, text in zip(boxes, ax.texts, strict=False):
        words = text.get_window_extent()
        assert box.x0 <= words.x0 and words.x1 <= box.x1 and box.y0 <= words.y0


def test_the_gan_shows_the_layers_of_the_code():
    said = written(gan(64).axes[0].texts)
    assert "ConvTranspose2d 4×4, stride 2\n64 × 4 × 4" in said and "noise\n20" in said
    assert "ConvTranspose2d 4×4, stride 2\n3 × 32 × 32" in said and "Conv2d 4×4\n1 × 1 × 1" in said
    assert "class\n1 of 7" in said and sum("Block" in text for text in said) == 1


def test_each_loss_joins_what_it_compares():
    figure = distillation()
    arrows = [p for p in figure.axes[0].patches if isinstance(p, FancyArrowPatch)]
    # Two images, the outputs in use of both (2 + 2), two arrows a loss.
    assert len(arrows) == 2 + 4 + 2 * len(KD)
    assert not any("unused" in text for text in written(figure.axes[0].texts))


def test_titn_shows_pixels_and_tokens():
    said = written(titn().axes[0].texts)
    assert "pixel embedding\n16 × 16 × 12" in said and "distillation head\n10" in said
    assert any("12 × outer block" in text and "18 × 192" in text for text in said)


def test_the_shapes_of_a_model_leave_it_as_it_was():
    model = models.create_model("vit_mnist_smoke").train()
    found = layer_shapes(model, torch.zeros(2, 1, 28, 28))
    assert found[0][1] == (49, model.embed_dim)
    assert found[-1] == ("Linear", (10,))
    assert model.training
    assert not any(layer._forward_hooks for layer in model.modules())


def test_counts_by_class_are_the_bars():
    figure = plots.class_counts({"train": [10, 20, 30], "test": [1, 2, 3]}, ["a", "b", "c"])
    (ax,) = figure.axes
    assert [[bar.get_height() for bar in c] for c in ax.containers] == [[10, 20, 30], [1, 2, 3]]
    assert written(figure.legends[0].get_texts()) == ["train (60)", "test (6)"]
