"""Figures of measures: what is given is what is drawn, nothing overlaps and nothing lies outside."""

import numpy as np
import pandas as pd
import pytest
from figures import apart, error_bars, inside, written

from dfkd_lib import plots

CLASSES = ["all", "a", "b", "c"]


def table(scale=1.0):
    distance = np.array([1.0, 2.0, np.nan, 4.0]) * scale
    shares = {"precision": 0.9, "recall": 0.8, "density": 1.3, "coverage": 0.7}
    return pd.DataFrame(
        {
            "class": CLASSES,
            "Fréchet distance": distance,
            "low": distance * 0.5,
            "high": distance * 1.5,
            **{name: share / scale for name, share in shares.items()},
        }
    )


def points_of(marks):
    return [(float(mark.get_xdata()[0]), float(mark.get_ydata()[0])) for mark in marks]


@pytest.mark.parametrize("log", [False, True])
def test_distances_by_class_are_the_tables(log):
    figure = plots.distance_by_class({"one": table(), "two": table(3)}, log=log)
    (ax,) = figure.axes
    first, second = error_bars(ax)
    assert np.allclose(second[0].get_ydata(), table(3)["Fréchet distance"], equal_nan=True)
    lengths = [segment[:, 1] for segment in first[2][0].get_segments() if len(segment)]
    assert [0.5, 1.5] in np.round(lengths, 6).tolist() and [2, 6] in np.round(lengths, 6).tolist()
    assert (first[0].get_xdata() < second[0].get_xdata()).all()
    assert written(ax.get_xticklabels()) == CLASSES
    assert written(figure.legends[0].get_texts()) == ["one", "two"] and inside(figure)


def test_fidelity_and_diversity_of_all_images():
    figure = plots.fidelity_diversity({"one": table(), "two": table(2)})
    left, right = figure.axes
    assert np.allclose(points_of(left.lines), [(0.8, 0.9), (0.4, 0.45)])
    assert np.allclose(points_of(right.lines), [(0.7, 1.3), (0.35, 0.65)])
    assert right.get_ylim()[1] >= 1.3 and left.get_xlim() == (0, 1.03) and inside(figure)


def test_accuracy_against_distance_names_every_point_once_without_overlap():
    distance, accuracy = np.array([1, 1.1, 1.2, 20, 20.5, 60]), [97, 96.8, 96.9, 80, 80.2, 12]
    sides = {"low": distance * 0.8, "high": distance * 1.1}
    makers = [f"maker number {i}" for i in range(6)]
    frame = pd.DataFrame({"maker": makers, "Fréchet distance": distance, **sides})
    figure = plots.accuracy_against_distance(frame.assign(accuracy=accuracy))
    (ax,) = figure.axes
    assert sorted(written(ax.texts)) == makers and inside(figure) and apart(ax.texts)
    drawn = points_of(mark[0] for mark in error_bars(ax))
    assert np.allclose(drawn, np.stack([distance, accuracy], axis=1))
    assert np.allclose(error_bars(ax)[5][2][0].get_segments()[0][:, 0], [48, 66])


@pytest.mark.parametrize("channels", [1, 3])
def test_neighbours_stand_beside_the_made_image_with_their_distances(channels):
    rng = np.random.default_rng(0)
    size = channels, 8, 8
    made, real = (rng.integers(0, 256, (*n, *size), dtype=np.uint8) for n in ((2,), (2, 3)))
    distances = np.array([[0.5, 1.25, 2], [3, 4, 5]])
    figure = plots.neighbours(made, real, distances, titles=["seven", "two"])
    for axes, image, near, row in zip(
        np.reshape(figure.axes, (2, 4)), made, real, distances, strict=True
    ):
        drawn = [ax.images[0].get_array() for ax in axes]
        assert all(map(np.array_equal, drawn, map(plots.to_display, [image, *near])))
        assert [float(ax.get_xlabel()) for ax in axes[1:]] == row.tolist()
        assert axes[0].get_xlabel() == ""
    assert [ax.get_ylabel() for ax in figure.axes[::4]] == ["seven", "two"] and inside(figure)
