"""Pen strokes: where ink falls, how large drawings are, and which of them a teacher's answers pick."""

import math

import pytest
import torch

from dfkd_lib.synthesis import PenStrokes
from dfkd_lib.synthesis.strokes import Drawing, painted, picked, random_drawing


def test_ink_lies_within_the_pens_radius_of_the_points_that_are_drawn():
    """A dot in the middle of a pixel, another that is not drawn: by hand, a pixel being 1/4 of the image's unit."""
    points = torch.tensor([[[0.125, -0.375], [0.875, 0.875]]])  # in column 4, row 2 of 8
    dot = Drawing(points, torch.tensor([[True, False]]), torch.full((1, 1, 1), 0.25))
    ink = painted(dot, 8)[0]
    # Radius and edge are 0.25 + 1.26 / 8: at distance d there is (0.4075 - d) * 4 ink, at most 1.
    assert ink[2, 4] == 1 and ink[2, 3] == pytest.approx((0.4075 - 0.25) * 4, abs=1e-4)
    assert ink[1, 3] == pytest.approx((0.4075 - 0.25 * math.sqrt(2)) * 4, abs=1e-4)
    assert ink[2, 2] == 0 and ink[7, 7] == 0 and int((ink > 0).sum()) == 9


@pytest.mark.parametrize("paths", [1, 3])
def test_drawings_fill_between_half_and_four_fifths_of_the_image(paths):
    drawing = random_drawing(64, paths, torch.Generator().manual_seed(0))
    used = drawing.drawn.float().mean(1) * paths
    assert used.min() == 1 and used.max() == paths
    for points, drawn in zip(drawing.points, drawing.drawn, strict=True):
        sides = points[drawn].amax(0) - points[drawn].amin(0)
        assert 1.0 - 1e-5 <= sides.max() <= 1.6 + 1e-5


@pytest.mark.parametrize("background,full", [(-1.0, 1.0), (0.0, 1.0), (0.5, -1.0)])
def test_ink_is_far_from_the_ground(background, full):
    maker = PenStrokes(background=background)
    images = maker.painted(random_drawing(8, 1, torch.Generator().manual_seed(0)), 3, 16)
    assert images.shape == (8, 3, 16, 16) and torch.equal(images[:, 0], images[:, 2])
    assert (images == background).any() and (images == full).any()


def test_drawings_are_picked_by_class_the_higher_logits_more_often():
    """300 candidates of class 0, two of class 1, none of class 2; logits of class 0 in rising order."""
    logits = torch.zeros(302, 3)
    logits[:300, 0] = torch.linspace(1, 5, 300)
    logits[300:, 1] = 2.0
    logits[7, 2] = 0.9  # the most like class 2, though it is a 0
    labels = torch.tensor([0, 1, 2] * 2 + [0] * 98)
    rows = picked(logits, labels, torch.Generator().manual_seed(0))
    zeros = rows[labels == 0]
    assert len(zeros.unique()) == 100 and zeros.max() < 300
    assert sorted(rows[labels == 1].tolist()) == [300, 301]
    assert 7 in rows[labels == 2].tolist()
    # Weights 0.15 + rank^2: of the upper half 0.367 of 0.483, less what drawing without replacement takes away.
    assert 60 <= int((zeros >= 150).sum()) <= 85
