"""Figures of measures: what is given is what is drawn, nothing overlaps and nothing lies outside."""

import io

import numpy as np
import pandas as pd
import pytest
from figures import apart, error_bars, inside, written
from PIL import Image

from dfkd_lib import plots
from dfkd_lib.metrics.intervals import percent_interval
from dfkd_lib.plots.style import new_figure
from dfkd_lib.reporting.report import accuracies_by

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


def test_distances_by_class_are_the_tables():
    figure = plots.distance_by_class({"one": table(), "two": table(3)})
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
    figure = plots.neighbours(made, real, distances)
    for axes, image, near, row in zip(
        np.reshape(figure.axes, (2, 4)), made, real, distances, strict=True
    ):
        drawn = [ax.images[0].get_array() for ax in axes]
        assert all(map(np.array_equal, drawn, map(plots.to_display, [image, *near])))
        assert [float(ax.get_xlabel()) for ax in axes[1:]] == row.tolist()
        assert axes[0].get_xlabel() == ""
    assert inside(figure)


def test_an_axis_of_accuracy_stays_between_0_and_100_and_of_epochs_whole():
    means = {"a": [93.0, 99.4], "b": [90.0, 98.0]}
    low, high = zip(*map(percent_interval, means["a"], [2.0, 1.5]), strict=True)
    bands = {"a": {"low": low, "high": high}, "b": {"seeds": [[89.0, 97.0], [91.0, 99.0]]}}
    figure = plots.curves(means, "epoch", "test accuracy (%)", bands=bands)
    (ax,) = figure.axes
    (band,) = ax.collections
    high = band.get_paths()[0].vertices[:, 1].max()
    assert 99.4 < high < 100 and ax.get_ylim()[1] <= 100
    assert written(figure.legends[0].get_texts()) == ["a", "b (n = 2)"]
    seeds = [line.get_ydata().tolist() for line in ax.lines[2:]]
    assert seeds == bands["b"]["seeds"] and inside(figure)
    (ax,) = plots.curves({"a": [93.0]}, "epoch", "test accuracy (%)").axes
    low, high = ax.get_xlim()
    assert [t for t in ax.get_xticks() if low <= t <= high] == [1]
    assert ax.get_ylim()[1] <= 100


@pytest.mark.parametrize("values, scale", [([400, 90, 3], "log"), ([40, 9, 5], "linear")])
def test_values_that_span_decades_have_a_logarithmic_axis(values, scale):
    figure = plots.curves({"a": values}, "epoch", "Fréchet distance", zero=True)
    assert figure.axes[0].get_yscale() == scale and inside(figure)
    # An accuracy is never on one.
    assert plots.curves({"a": [5, 50, 99]}, "epoch", "(%)").axes[0].get_yscale() == "linear"


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_accuracies_of_few_seeds_are_points_and_their_number(seeds):
    rows = [
        {"model": m, "top-1": x + s} for m, x in (("ViT", 90), ("TITN", 97)) for s in range(seeds)
    ]
    figure = plots.accuracies(accuracies_by(pd.DataFrame(rows), "model", "top-1"), "top-1 (%)")
    (ax,) = figure.axes
    few = "" if seeds == 3 else f"\nn = {seeds}"
    assert written(ax.get_xticklabels()) == [f"ViT{few}", f"TITN{few}"]
    assert sorted(ax.lines[0].get_ydata()) == [90 + s for s in range(seeds)]
    lengths = [
        np.ptp(segment[:, 1]) for bar in error_bars(ax) for segment in bar[2][0].get_segments()
    ]
    assert all(length > 0 for length in lengths) == (seeds == 3) and ax.get_ylim()[1] <= 100
    assert inside(figure)


def test_real_images_of_none_and_of_many_are_told_apart():
    figure = plots.real_images(["teacher", "student"], [60_000, 0], [0, 60_000])
    (ax,) = figure.axes
    assert sorted(written(ax.texts)) == ["0", "0", "60,000", "60,000"]
    assert ax.get_xlim()[0] == 0 and ax.transData.transform((10_000, 0))[0] > 0 and inside(figure)


@pytest.mark.parametrize("width, inches", [("single", 3.5), ("double", 7.16)])
def test_a_figure_is_as_wide_and_its_text_as_large_as_asked(monkeypatch, width, inches):
    plain = plots.curves({"a": [1, 2], "b": [2, 3]}, "epoch", "loss")
    monkeypatch.setenv("DFKD_FIGURE_WIDTH", width)
    monkeypatch.setenv("DFKD_FONT_SIZE", "7")
    figure = plots.curves({"a": [1, 2], "b": [2, 3]}, "epoch", "loss")
    assert figure.get_size_inches()[0] == inches and inside(figure)

    def sizes(one):
        (ax,) = one.axes
        return np.array([ax.xaxis.label.get_size(), ax.get_xticklabels()[0].get_size()])

    assert np.allclose(sizes(figure), 0.7 * sizes(plain))


def test_a_row_too_narrow_for_a_column_of_text_is_stacked(monkeypatch):
    names, score, costs = ["a", "b"], [90.0, 95.0], {f"cost {i}": [1.0, 100.0] for i in range(3)}
    row = plots.trade_off(names, score, costs, None, "accuracy (%)")
    monkeypatch.setenv("DFKD_FIGURE_WIDTH", "single")
    stacked = plots.trade_off(names, score, costs, None, "accuracy (%)")
    for figure, along in ((row, 0), (stacked, 1)):
        starts = np.array([ax.get_position().bounds[:2] for ax in figure.axes])
        assert len(np.unique(starts[:, along].round(3))) == 3, "one beside, or below, another"
    assert [ax.get_ylabel() for ax in stacked.axes] == 3 * ["accuracy (%)"]
    assert stacked.get_size_inches()[0] == 3.5 and inside(stacked)


@pytest.mark.parametrize("name, value", [("FIGURE_WIDTH", "wide"), ("FONT_SIZE", "large")])
def test_a_width_or_size_that_is_none_is_refused(monkeypatch, name, value):
    monkeypatch.setenv(f"DFKD_{name}", value)
    with pytest.raises(ValueError, match="correct these variables"):
        plots.curves({"a": [1, 2]}, "epoch", "loss")


def test_a_dark_page_gets_dark_figures_with_pictures_as_they_are(monkeypatch):
    def png() -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(figure._repr_png_())).convert("RGB")).astype(int)

    def of_color(pixels, wanted) -> int:
        return int((np.abs(pixels - wanted).max(-1) < 3).sum())

    figure, (left, right) = new_figure(1, 2)
    left.plot([0, 1], [0, 1], color="#0072B2", linewidth=6)
    right.imshow(np.full((4, 4, 3), (200, 40, 90), np.uint8))
    light = png()
    monkeypatch.setenv("DFKD_THEME", "dark")
    dark = png()
    assert np.median(light, (0, 1)).min() == 255 and np.median(dark, (0, 1)).max() < 40
    assert of_color(dark, (200, 40, 90)) > 0.97 * of_color(light, (200, 40, 90)) > 1000
    blue = dark[np.argwhere(dark[..., 2] - dark[..., 0] > 100)[0][0]]
    assert not of_color(dark, (0, 114, 178)) and blue.max() > 200
    monkeypatch.setenv("DFKD_THEME", "night")
    with pytest.raises(ValueError, match="light or dark"):
        figure._repr_png_()
