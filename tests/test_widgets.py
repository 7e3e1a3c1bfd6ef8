"""Widgets: the static figure in batch, and controls that change the picture."""

import ipywidgets
import pytest
import torch

from dfkd_lib import widgets
from dfkd_lib.datasets import ImageSet
from dfkd_lib.distill import KDWeights
from dfkd_lib.models import create_model


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model("vit_mnist_smoke").eval()


@pytest.fixture(scope="module")
def images():
    pixels = torch.randint(0, 256, (6, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageSet(pixels, torch.tensor([0, 1, 2, 0, 1, 2]), tuple("0123456789"))


def find(box, description):
    if getattr(box, "description", None) == description:
        return box
    return next((f for child in getattr(box, "children", ()) if (f := find(child, description)) is not None), None)


@pytest.fixture
def drawn(monkeypatch):
    """What attention_figure is asked for, in order."""
    calls = []
    real = widgets.attention_figure

    def note(model, images, index, block=-1, head=None):
        calls.append((index, block, head))
        return real(model, images, index, block, head)
    monkeypatch.setattr(widgets, "attention_figure", note)
    return calls


def test_static_figures(model, images):
    assert widgets.attention_explorer(model, images, interactive=False)._repr_png_()[:4] == b"\x89PNG"
    chart = widgets.ablation_panel(None, KDWeights(), [("all", 0.9), ("without KD", 0.8)], interactive=False)
    assert [p.get_height() for p in chart.axes[0].patches] == pytest.approx([90, 80])


def test_the_explorer_follows_its_controls(model, images, drawn):
    box = widgets.attention_explorer(model, images)
    assert drawn[-1] == (0, 1, None)
    find(box, "class").value = 2
    find(box, "image").value = 1
    assert drawn[-1] == (5, 1, None)
    find(box, "block").value = 1
    find(box, "head").value = 1
    assert drawn[-1] == (5, 0, 1)


def test_an_empty_class_is_said_in_place(model, images, drawn):
    box = widgets.attention_explorer(model, images)
    find(box, "class").value = 9  # no image of it
    find(box, "class").value = 1
    assert drawn[-1] == (1, 1, None)


def test_the_ablation_panel_runs_what_the_sliders_say():
    asked = []

    def run(weights):
        asked.append(weights)
        return 0.5, []

    box = widgets.ablation_panel(run, KDWeights(1, 1, 1, 4), [("all", 0.9)])
    assert isinstance(box, ipywidgets.VBox)
    find(box, "patch").value = 2.5
    find(box, "Run").click()
    assert asked == [KDWeights(1, 1, 2.5, 4)]
    for name in ("kd", "ce", "patch"):
        find(box, name).value = 0
    find(box, "Run").click()  # impossible weights: said in place, the panel stays usable
    assert len(asked) == 1 and not find(box, "Run").disabled
