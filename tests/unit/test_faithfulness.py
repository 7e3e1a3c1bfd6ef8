"""Insertion and deletion against models whose answer is known by hand."""

import pytest
import torch
from torch import nn

from dfkd_lib import attention, plots
from dfkd_lib.core import WorkbenchError
from dfkd_lib.models import create_model


class Sum(nn.Module):
    """Two logits: the weighted sum of an image's four quarters, and 0; the first class's odds are e to that sum."""

    def __init__(self, weights):
        super().__init__()
        self.weights = torch.tensor(weights)

    def forward(self, images):
        quarters = nn.functional.avg_pool2d(images, 4).flatten(1)
        own = (quarters * self.weights).sum(1)
        return torch.stack([own, torch.zeros_like(own)], 1)


WEIGHTS = [4.0, 2.0, 1.0, 0.0]


def curves_by_hand(order):
    """Probabilities while the quarters of an image of ones go, and come, in that order."""
    gone = [torch.sigmoid(torch.tensor(sum(WEIGHTS[i] for i in order[n:]))) for n in range(5)]
    come = [torch.sigmoid(torch.tensor(sum(WEIGHTS[i] for i in order[:n]))) for n in range(5)]
    return torch.stack(gone), torch.stack(come)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]])
def test_curves_and_areas_are_those_computed_by_hand(order):
    maps = torch.zeros(2, 4)
    maps[:, order] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    found = attention.insertion_deletion(
        Sum(WEIGHTS), torch.ones(2, 1, 8, 8), maps, 0, steps=4, blank=0.0, batch_size=1
    )
    gone, come = curves_by_hand(order)
    for curve, wanted in ((found.deletion, gone), (found.insertion, come)):
        torch.testing.assert_close(curve, wanted.expand(2, -1))
    area = (gone[:-1] + gone[1:]).sum() / 8  # trapezoids of width 1/4
    torch.testing.assert_close(found.deletion_area, area.expand(2))
    assert found.shares.tolist() == [0, 0.25, 0.5, 0.75, 1]


def test_the_predicted_class_is_followed_and_the_ends_are_the_images_themselves():
    torch.manual_seed(0)
    model, images = create_model("vit_mnist_smoke").eval(), torch.randn(3, 1, 28, 28)
    with torch.no_grad():
        whole = model(images).softmax(1)
    maps = attention.attention_probe(model, images)
    found = attention.insertion_deletion(model, images, maps, steps=3)
    top = whole.max(1).values
    torch.testing.assert_close(found.deletion[:, 0], top, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.insertion[:, -1], top, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.deletion[:, -1], found.insertion[:, 0])
    other = attention.insertion_deletion(model, images, maps, torch.tensor([3, 1, 4]), steps=1)
    picked = whole[torch.arange(3), torch.tensor([3, 1, 4])]
    torch.testing.assert_close(other.deletion[:, 0], picked, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "maps, how",
    [(torch.ones(2, 4), {}), (torch.ones(1, 2, 2), {}), (torch.ones(1, 4), {"steps": 0})],
)
def test_maps_that_do_not_fit_are_refused(maps, how):
    with pytest.raises(WorkbenchError, match="cannot be followed"):
        attention.insertion_deletion(Sum(WEIGHTS), torch.ones(1, 1, 8, 8), maps, **how)


def test_the_curves_are_drawn_with_their_areas():
    found = attention.insertion_deletion(
        Sum(WEIGHTS), torch.ones(3, 1, 8, 8), torch.rand(3, 4), 0, 4, 0.0
    )
    figure = plots.insertion_deletion({"probe": found, "random": found})
    left, right = figure.axes
    assert left.get_xlabel() == "share of patches taken away" and len(left.lines) == 2
    area = found.deletion_area.mean().item()
    assert f"probe, {area:.3f}" in [text.get_text() for text in left.get_legend().get_texts()]
    assert right.get_ylim() == (0.0, 1.0)
