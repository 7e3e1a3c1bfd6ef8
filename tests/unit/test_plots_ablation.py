"""Figures of ablations: what the tables say is what is drawn, whatever is missing, and nothing is cut off or left open."""

import io
import math

import numpy as np
import pandas as pd
import pytest
from figures import apart, error_bars, inside, written
from matplotlib.collections import PathCollection
from matplotlib.colors import same_color
from matplotlib.text import Text

from dfkd_lib import plots
from dfkd_lib.ablation import summary
from dfkd_lib.plots import ablation, style

LONG = "source=inversion (ViT), student_model=vit_mnist_mini_patch7, costing $5 and $6"


def tidy(rows, **settings):
    """A table of cells from {row: [accuracy of each seed, None: diverged]}; settings: {name: [value of each row]}."""
    lines = []
    for i, (row, values) in enumerate(rows.items()):
        chosen = [values_of[i] for values_of in settings.values()]
        for seed, value in enumerate(values):
            measured = [math.nan] * 4
            if value is not None:
                measured = [value, value - 0.5, value + 0.5, value / 100 + 0.01 * seed]
            state = "diverged" if value is None else "finished"
            lines.append((row, seed, *chosen, *measured, state))
    columns = ["row", "seed", *settings, "accuracy (%)", "low", "high", "agreement", "state"]
    return pd.DataFrame(lines, columns=columns)


def accuracy(frame, baseline=None):
    return plots.ablation_accuracy(frame, summary(frame, baseline))


def test_accuracy_draws_points_means_and_intervals():
    rows = {"all": [90, 91, 92], "worse": [80, 81.2, 81.9], "near": [89, 92, 91.5]}
    figure = accuracy(tidy(rows))
    ax = figure.axes[0]
    scattered = [c.get_offsets() for c in ax.collections if isinstance(c, PathCollection)]
    points = np.concatenate(scattered)[:, 0]
    assert sorted(points.tolist()) == [80, 81.2, 81.9, 89, 90, 91, 91.5, 92, 92]
    means = error_bars(ax)
    assert [c[0].get_xdata()[0] for c in means] == pytest.approx([91, 81.03333, 90.83333])
    left, right = means[0][2][0].get_segments()[0][:, 0]
    half = 4.3027 / math.sqrt(3)
    assert (91 - left, right - 91) == pytest.approx((half, half), abs=1e-3)
    filled = [not same_color(c[0].get_markerfacecolor(), "white") for c in means]
    assert filled == [True, True, False]  # the baseline; different; not
    assert written(ax.get_yticklabels()) == list(rows)
    beside = ["baseline", "-9.97 [-10.35, -9.59]", "-0.17 [-2.75, +2.42]"]
    assert (
        written(ax.texts)[:3] == beside and "± 0.5 points of" in ax.get_xlabel() and inside(figure)
    )


def test_accuracy_shows_what_did_not_finish():
    frame = tidy({"all": [90, None, 92], "none": [None] * 3, "one": [91, None, None]})
    figure = accuracy(frame, "one")
    unfinished = ["2 of 3 seeds\n(1 diverged)", "0 of 3 seeds\n(3 diverged)"]
    last = "baseline\n1 of 3 seeds\n(2 diverged)"
    assert written(figure.axes[0].texts)[:3] == [f"-1.00\n{unfinished[0]}", unfinished[1], last]
    assert len(error_bars(figure.axes[0])) == 2 and inside(figure)


@pytest.mark.parametrize("rows, seeds", [(1, 1), (2, 1), (5, 2), (24, 10)])
def test_accuracy_holds_few_and_many_rows_with_long_names(rows, seeds):
    rng = np.random.default_rng(0)
    frame = tidy({f"{LONG} {i}": list(rng.normal(90, 1, seeds)) for i in range(rows)})
    figure = accuracy(frame)
    assert inside(figure) and apart(figure.axes[0].get_yticklabels())
    labels = written(figure.axes[0].get_yticklabels())
    assert len(labels) == rows and max(len(line) for line in labels[0].split("\n")) <= 33


def history(epochs=3, offset=0.0, **losses):
    other = {"lr": 0.1, "seconds": 1.0, "images_per_second": 9.0}
    return [
        {"epoch": e, **other, "test_accuracy": (50 + 10 * e + offset) / 100}
        | {name: value / e for name, value in losses.items()}
        for e in range(1, epochs + 1)
    ]


def test_curves_are_thin_seeds_and_a_bold_mean():
    seeds = [history(offset=-2, kd=1, ce=2), history(offset=4, kd=3, ce=2)]
    histories = {"all": seeds, "without KD": [history(ce=5)]}
    figure = plots.ablation_curves(histories, {"kd": "KD loss", "ce": "cross entropy"})
    panels = {ax.get_title(): ax for ax in figure.axes if ax.get_title()}
    assert list(panels) == ["test accuracy (%)", "KD loss", "cross entropy"]
    thin, bold = (
        [
            [line.get_ydata().tolist() for line in ax.lines if (line.get_linewidth() > 1) == wide]
            for ax in panels.values()
        ]
        for wide in (False, True)
    )
    assert np.allclose(bold[0], [[61, 71, 81], [60, 70, 80]])
    assert np.allclose(bold[1], [[2, 1, 2 / 3]]) and np.allclose(bold[2][1], [5, 2.5, 5 / 3])
    assert np.allclose(thin[0], [[58, 68, 78], [64, 74, 84]]) and len(thin[2]) == 2
    shades = [line.get_color() for line in panels["test accuracy (%)"].lines]
    assert shades == [*3 * [shades[0]], shades[-1]] and shades[0] != shades[-1]
    assert written(figure.legends[0].get_texts()) == ["all", "without KD"] and inside(figure)


def test_a_setting_has_one_colour_in_every_figure():
    """Also where another has no finished student or no agreement, and the baseline is not the first."""
    frame = tidy({"all": [90, 91], "lost": [None, None], "none": [85, 86], "last": [80, 81]})
    frame.loc[frame["row"] == "none", "agreement"] = None
    histories = {row: [history()] * (row != "lost") for row in ("all", "lost", "none", "last")}
    curves = plots.ablation_curves(histories)
    lines = curves.legends[0].get_lines()
    shades = {line.get_label(): line.get_color() for line in lines}
    assert list(shades) == ["all", "none", "last"]
    means = {c[0].get_color() for c in error_bars(accuracy(frame, "none").axes[0])}
    assert means == set(shades.values())
    scatter = plots.fidelity_scatter(frame, MEASURED | {"cells": 4, "rows": 2}).axes[0]
    marks = {line.get_label(): line.get_color() for line in scatter.lines}
    assert marks == {name: shades[name] for name in ("all", "last")}


def test_curves_of_one_epoch_are_points_and_missing_losses_no_panel():
    figure = plots.ablation_curves({"all": [history(1, loss=2.0)], "b": [history(4, loss=1.0)]})
    ax = figure.axes[1]
    assert ax.get_title() == "loss, all parts"
    assert [(2.0, "o")] == [
        (line.get_ydata()[0], line.get_marker()) for line in ax.lines if line.get_marker() == "o"
    ]
    assert inside(figure)


def test_curves_tell_24_long_rows_apart():
    names = [f"{LONG} {i}" for i in range(24)]
    series = [style.series_style(i) for i in range(24)]
    for other in ("linestyle", "marker"):
        assert len({(one["color"], one[other]) for one in series}) == 24
    figure = plots.ablation_curves({name: [history(kd=1 + i)] for i, name in enumerate(names)})
    drawn = [line.get_color() for line in figure.legends[0].get_lines()]
    assert drawn == [one["color"] for one in series] and inside(figure)
    assert inside(plots.ablation_curves({}))


def test_a_grid_of_two_parameters():
    settings = {"temperature": [4.0, 1.0, 10.0], "kd_weight": [0.5, 0.5, 2]}
    frame = tidy({"a": [90, 92], "b": [80, None], "c": [None, None]}, **settings)
    figure = plots.ablation_grid(frame, "temperature", "kd_weight")
    ax, bar = figure.axes
    assert written(ax.get_xticklabels()) == ["1", "4", "10"]  # as numbers, not as text
    assert written(ax.get_yticklabels()) == ["2", "0.5"]  # up is more
    drawn = np.ma.filled(ax.images[0].get_array(), np.nan)
    assert np.allclose(drawn, [[np.nan] * 3, [80, 91, np.nan]], equal_nan=True)
    texts = {text.get_position(): text.get_text() for text in ax.texts}
    known = {(0, 1): "80.0\n1 of 2", (1, 1): "91.0\n± 12.7", (2, 0): "0 of 2\ndiverged"}
    assert texts == known | dict.fromkeys([(0, 0), (1, 0), (2, 1)], "–")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("temperature", "kd_weight")
    assert bar.get_ylabel() == "test accuracy (%)" and inside(figure)


def test_a_grid_averages_no_different_rows():
    frame = tidy({"a": [90], "b": [80]}, x=[1, 1], y=[2, 2], z=[1, 2])
    with pytest.raises(ValueError, match="several settings"):
        plots.ablation_grid(frame, "x", "y")


MEASURED = {"pearson": 0.8, "low": 0.25, "high": 0.95, "spearman": 0.7, "p": 0.012}


@pytest.mark.parametrize("rows", [1, 4, 10, 24])
def test_fidelity_is_one_point_a_cell(rows):
    frame = tidy({f"{LONG} {i}": [80 + i, None, 81 + i] for i in range(rows)})
    figure = plots.fidelity_scatter(frame, MEASURED | {"cells": 2 * rows, "rows": rows})
    ax = figure.axes[0]
    points = np.concatenate([line.get_xydata() for line in ax.lines])
    cells = frame.dropna()[["agreement", "accuracy (%)"]].to_numpy()
    assert np.allclose(np.sort(points, axis=0), np.sort(cells, axis=0))
    assert ax.get_title("left").startswith("Pearson 0.80 [0.25, 0.95], Spearman 0.70, p = 0.012\n")
    marks = {(line.get_marker(), line.get_color()) for line in figure.legends[0].get_lines()}
    assert len(marks) == rows and inside(figure)


def test_fidelity_of_too_little_is_no_correlation():
    found = dict.fromkeys(MEASURED, math.nan) | {"cells": 1, "rows": 1}
    figure = plots.fidelity_scatter(tidy({"a": [90]}), found)
    assert figure.axes[0].get_title("left") == "too few for a correlation: 1 student of 1 setting"
    assert inside(figure)


BY_CLASS = ["row", "seed", "class", "agreement", "half", "count"]


@pytest.mark.parametrize("rows, classes", [(1, 2), (4, 10), (24, 100)])
def test_agreement_by_class_is_the_mean_over_seeds(rows, classes):
    lines = [
        (f"{LONG} {row}", seed, f"class {c}", 0.5 + 0.004 * c + 0.1 * seed, 0.01, 9)
        for row in range(rows)
        for seed in (0, 1)
        for c in range(classes)
    ]
    frame = pd.DataFrame(lines, columns=BY_CLASS)
    frame.loc[frame["class"] == "class 1", "agreement"] = np.nan
    figure = plots.fidelity_by_class(frame)
    ax, bar = figure.axes
    expected = np.tile(0.55 + 0.004 * np.arange(classes), (rows, 1))
    expected[:, 1] = np.nan
    drawn = np.ma.filled(ax.images[0].get_array(), np.nan)
    assert np.allclose(drawn, expected, equal_nan=True)
    assert len(ax.texts) == (rows * classes if classes <= 12 else 0)
    assert inside(figure) and apart(ax.get_yticklabels())
    assert bar.get_ylabel() == "mean cosine\nof probes"


def test_long_names_are_wrapped_and_cut_and_are_no_formulas():
    assert ablation.wrap("temperature=2, weight=0.5, x", 16) == "temperature=2,\nweight=0.5, x"
    assert ablation.wrap("aaaa " * 8, 16, 2) == "aaaa aaaa aaaa\naaaa aaaa aaaa…"


def test_a_class_may_be_called_5_dollars():
    names = ("$5", "a$b$c", r"$\frac$")
    figure = plots.confusion({"$1$": np.eye(3, dtype=int)}, names)
    figure.savefig(io.BytesIO())
    assert not any(text.get_parse_math() for text in figure.findobj(Text))
    assert figure.axes[0].get_title() == "$1$"
