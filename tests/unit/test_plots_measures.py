"""Figures of measures: what is given is what is drawn, nothing overlaps and nothing lies outside."""

import matplotlib.container
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from dfkd_lib import plots

CLASSES = ["all", "a", "b", "c"]


def table(scale=1.0):
    distance = np.array([1.0, 2.0, np.nan, 4.0]) * scale
    return pd.DataFrame(
        {
            "class": CLASSES,
            "Fréchet distance": distance,
            "low": distance * 0.5,
            "high": distance * 1.5,
            "precision": 0.9 / scale,
            "recall": 0.8 / scale,
            "density": 1.3 / scale,
            "coverage": 0.7 / scale,
        }
    )


def bars_of(ax):
    return [c for c in ax.containers if isinstance(c, matplotlib.container.ErrorbarContainer)]


def inside(figure):
    """Whether everything that is drawn, text above all, lies within the figure."""
    figure.draw_without_rendering()
    drawn, (width, height) = (
        figure.get_tightbbox(FigureCanvasAgg(figure).get_renderer()),
        figure.get_size_inches(),
    )
    return (
        drawn.x0 > -0.02
        and drawn.y0 > -0.02
        and drawn.x1 < width + 0.02
        and drawn.y1 < height + 0.02
    )


@pytest.mark.parametrize("log", [False, True])
def test_distances_by_class_are_the_tables(log):
    figure = plots.distance_by_class({"one": table(), "two": table(3)}, log=log)
    (ax,) = figure.axes
    first, second = bars_of(ax)
    assert np.allclose(second[0].get_ydata(), table(3)["Fréchet distance"], equal_nan=True)
    lengths = [segment[:, 1] for segment in first[2][0].get_segments() if len(segment)]
    assert [0.5, 1.5] in np.round(lengths, 6).tolist() and [2, 6] in np.round(lengths, 6).tolist()
    assert (first[0].get_xdata() < second[0].get_xdata()).all()
    assert [t.get_text() for t in ax.get_xticklabels()] == CLASSES
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["one", "two"]
    assert inside(figure)


def test_fidelity_and_diversity_of_all_images():
    figure = plots.fidelity_diversity({"one": table(), "two": table(2)})
    left, right = figure.axes
    points = [
        [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in ax.lines]
        for ax in (left, right)
    ]
    assert np.allclose(points, [[(0.8, 0.9), (0.4, 0.45)], [(0.7, 1.3), (0.35, 0.65)]])
    assert right.get_ylim()[1] >= 1.3 and left.get_xlim() == (0, 1.03) and inside(figure)


def test_accuracy_against_distance_names_every_point_once_without_overlap():
    makers = [f"maker number {i}" for i in range(6)]
    distance = np.array([1, 1.1, 1.2, 20, 20.5, 60])
    frame = pd.DataFrame(
        {
            "maker": makers,
            "Fréchet distance": distance,
            "low": distance * 0.8,
            "high": distance * 1.1,
            "accuracy": [97, 96.8, 96.9, 80, 80.2, 12],
        }
    )
    figure = plots.accuracy_against_distance(frame)
    (ax,) = figure.axes
    assert sorted(t.get_text() for t in ax.texts) == makers
    figure.draw_without_rendering()
    boxes = [t.get_window_extent(FigureCanvasAgg(figure).get_renderer()) for t in ax.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    points = [(float(c[0].get_xdata()[0]), float(c[0].get_ydata()[0])) for c in bars_of(ax)]
    assert np.allclose(points, np.stack([distance, frame["accuracy"]], axis=1)) and inside(figure)
    ends = bars_of(ax)[5][2][0].get_segments()[0][:, 0]
    assert np.allclose(ends, [48, 66])


@pytest.mark.parametrize("channels", [1, 3])
def test_neighbours_stand_beside_the_made_image_with_their_distances(channels):
    rng = np.random.default_rng(0)
    made, real = (
        rng.integers(0, 256, (*n, channels, 8, 8), dtype=np.uint8) for n in ((2,), (2, 3))
    )
    distances = np.array([[0.5, 1.25, 2], [3, 4, 5]])
    figure = plots.neighbours(made, real, distances, titles=["seven", "two"])
    axes = np.reshape(figure.axes, (2, 4))
    for i in range(2):
        assert np.array_equal(axes[i, 0].images[0].get_array(), plots.to_display(made[i]))
        assert axes[i, 0].get_ylabel() == ["seven", "two"][i] and axes[i, 0].get_xlabel() == ""
        for j in range(3):
            assert np.array_equal(
                axes[i, j + 1].images[0].get_array(), plots.to_display(real[i][j])
            )
            assert float(axes[i, j + 1].get_xlabel()) == distances[i, j]
    assert inside(figure)
