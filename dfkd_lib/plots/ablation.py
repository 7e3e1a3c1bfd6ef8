"""Figures of an ablation grid: accuracy by setting, curves over epochs, two settings against each other, fidelity."""

import math
import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy.stats
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dfkd_lib.plots.style import (
    COLORS,
    SLANTED,
    epochs_below,
    legend_below,
    new_figure,
    series_style,
    squares,
    styled,
)

ACCURACY = "accuracy (%)"
SIGNIFICANT = 0.05  # a corrected p below it is a difference
# Not losses: what else stands in a line of a student's history.
NO_LOSS = {"epoch", "lr", "seconds", "images_per_second", "test_accuracy"}
FIRST = {"test_accuracy": "test accuracy (%)", "loss": "loss, all parts"}
MOST_NAMED = 40  # classes that a heat map names each; of more it names some
MOST_NUMBERS = 12  # classes for which it writes the numbers
MOST_SEEDS = 8  # settings whose seeds are drawn too; of more they would only be grey
DIAMOND = {"marker": "D", "markersize": 6, "markeredgewidth": 1.4}
BASELINE = {"linewidth": 0.9, "linestyle": (0, (4, 3)), "color": "black"}
AGREEMENT = "agreement with the teacher (mean cosine of probes)"


def wrap(name: str, width: int = 30, most: int = 3) -> str:
    """A name on at most `most` lines of `width` letters."""
    return "\n".join(textwrap.wrap(str(name), width, max_lines=most, placeholder="…"))


def _nothing(ax, text: str) -> None:
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color="0.4")
    ax.set(xticks=[], yticks=[])


def _lines(text: str) -> int:
    return 1 + text.count("\n")


@styled
def ablation_accuracy(tidy: pd.DataFrame, summary: pd.DataFrame) -> Figure:
    """Each cell a point, each setting its mean and 95 % t interval over seeds, in the colour that it has in every figure of
    this grid; on the right the difference to the baseline.

    A filled diamond differs from the baseline by Holm's p < 0.05, an open one cannot be distinguished from it.

    Args:
        tidy: of `ablation.tidy`. summary: of `ablation.summary`.
    """
    settings, shades = summary.to_dict("records"), _shades(tidy)
    names, beside = [wrap(line["row"]) for line in settings], [_beside(line) for line in settings]
    # Down the axis goes in inches, so that settings with long names or remarks get their room.
    tall = np.array(
        [0.16 * max(map(_lines, texts)) + 0.18 for texts in zip(names, beside, strict=True)]
    )
    places = np.cumsum(tall) - tall / 2
    figure, ax = new_figure(width=7.2, height=tall.sum() + 1.7)
    if summary[ACCURACY].isna().all():
        _nothing(ax, "no cell has finished")
    outside = {"xycoords": ax.get_yaxis_transform(), "fontsize": 8, "annotation_clip": False}
    for place, line, text in zip(places, settings, beside, strict=True):
        shade, mean = shades[line["row"]]["color"], line[ACCURACY]
        cells = tidy.loc[tidy["row"] == line["row"], ACCURACY].dropna()
        # Just above the mean's line, which would hide them.
        ax.scatter(cells, np.full(len(cells), place - 0.09), s=16, color=shade, alpha=0.6, lw=0)
        if math.isfinite(mean):
            alike = line["against"] and not line["p (Holm)"] < SIGNIFICANT
            face = {"color": shade, "markerfacecolor": "white" if alike else shade, "zorder": 3}
            half = line["± 95 %"] if math.isfinite(line["± 95 %"]) else None
            ax.errorbar(mean, place, xerr=half, linestyle="none", capsize=3, **DIAMOND, **face)
            if not line["against"]:
                ax.axvline(mean, alpha=0.7, zorder=1, **BASELINE)
        text = ax.annotate(text, (1.01, place), va="center", **outside)
        text.set_color(COLORS[1] if line["unfinished"] else "0.15")
    ax.annotate("difference [95 %]", (1.01, 0), va="bottom", style="italic", **outside)
    ax.set_yticks(places, names)
    ax.set(ylabel="", ylim=(tall.sum() or 1, 0), xlabel=f"test {ACCURACY}{_sample(summary)}")
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
    legend_below(figure, 2, _marks())
    return figure


def _beside(line: dict) -> str:
    """What stands at the right of a setting: its difference, and how many seeds finished where not all did."""
    few = f"{line['seeds']} of {line['of']} seeds\n({line['unfinished']})"
    amount = f"{line['difference']:+.2f}" if line["pairs"] else ""
    if math.isfinite(line["low"]):
        amount += f" [{line['low']:+.2f}, {line['high']:+.2f}]"
    first = amount if line["against"] else "baseline"
    return "\n".join(filter(None, [first, few if line["unfinished"] else ""]))


def _sample(summary: pd.DataFrame) -> str:
    """What the test images leave open about one student's accuracy, in words; "" where nobody knows."""
    half = summary["± test"].max()
    if not math.isfinite(half):
        return ""
    return f"\n± {half:.2g} points of any student come from the choice of test images (95 %)"


def _marks() -> list[Line2D]:
    seed = {"linestyle": "none", "marker": "o", "markersize": 4, "color": "0.35", "alpha": 0.6}
    mean = {**DIAMOND, "color": "0.35"}
    return [
        Line2D([], [], label="one seed", **seed),
        Line2D([], [], label="mean and 95 % interval over seeds", **mean),
        Line2D([], [], label="baseline's mean", **DIAMOND, **BASELINE),
        Line2D(
            [], [], label="no difference to it detected (Holm)", markerfacecolor="white", **mean
        ),
    ]


def _shades(tidy: pd.DataFrame) -> dict[str, dict]:
    """{setting: its style}, by its place among all settings of the grid."""
    settings = list(dict.fromkeys(tidy["row"]))
    return {setting: series_style(i) for i, setting in enumerate(settings)}


def ablation_curves(
    histories: dict[str, Sequence[Sequence[dict]]], titles: dict[str, str] | None = None
) -> Figure:
    """Test accuracy and each loss over epochs: of each setting its seeds as thin lines, their mean as a bold one.

    Args:
        histories: {setting: [history of each seed]}, as `ablation.histories` gives them; "test_accuracy" is a share of 1.
        titles: {loss in a history: its title}, as `losses.loss_titles` gives them; others have their names.
    """
    epochs = [row for runs in histories.values() for run in runs for row in run]
    found = dict.fromkeys(key for row in epochs for key, value in row.items() if value)
    named = FIRST | (titles or {})
    keys = [key for key in named if key in found or key == "test_accuracy"]
    keys += [key for key in found if key not in named and key not in NO_LOSS]
    return history_panels(histories, {key: named.get(key, key) for key in keys})


@styled
def history_panels(
    histories: dict[str, Sequence[Sequence[dict]]], titles: dict[str, str]
) -> Figure:
    """Values over epochs, one panel each: of each name its histories as thin lines, their mean as a bold one.

    Args:
        histories: {name: histories of the training loop}. titles: {key in a history: panel title}.
    """
    frames = {
        name: [pd.DataFrame(run).set_index("epoch") for run in runs if run]
        for name, runs in histories.items()
    }
    across = min(3, len(titles))
    down = math.ceil(len(titles) / across)
    figure, axes = new_figure(down, across, max(5.0, 3.0 * across), 2.7 * down, squeeze=False)
    for ax in axes.flat[len(titles) :]:
        ax.set_axis_off()
    for ax, (key, title) in zip(axes.flat, titles.items(), strict=False):
        for i, runs in enumerate(frames.values()):
            seeds = [run[key].dropna() for run in runs if key in run]
            if seeds:
                _curve(ax, seeds, series_style(i), len(histories) <= MOST_SEEDS)
        ax.set(title=title, ylabel="")
        epochs_below(ax)
    if not any(frames.values()):
        _nothing(axes.flat[0], "no student has finished")
    lines = [
        Line2D([], [], **{**series_style(i), "marker": ""}, label=wrap(name, 36, 2), linewidth=1.5)
        for i, (name, runs) in enumerate(histories.items())
        if any(runs)
    ]
    legend_below(figure, len(lines), lines, grow=True)
    return figure


def _curve(ax, seeds: Sequence[pd.Series], style: dict, each: bool) -> None:
    """One value by epoch: the mean over seeds, and where there are several each of them; a point where there is one epoch."""
    scale = 100 if seeds[0].name == "test_accuracy" else 1
    mean = scale * pd.concat(seeds).astype(float).groupby(level=0).mean()
    single = {"marker": "o", "markersize": 4} if len(mean) == 1 else {"marker": ""}
    for seed in seeds if each and len(seeds) > 1 else ():
        ax.plot(seed.index, scale * seed, **{**style, **single}, linewidth=0.7, alpha=0.5)
    ax.plot(mean.index, mean, **{**style, **single}, linewidth=2.0)


@styled
def ablation_grid(tidy: pd.DataFrame, x: str, y: str) -> Figure:
    """Two settings against each other: mean of each cell over seeds, ± half of its 95 % t interval; darker is more.

    Where seeds did not finish the square gives their count; a combination that was not asked for stays empty.

    Args:
        tidy: of `ablation.tidy`. x, y: columns of settings, numbers in their order, other values as they come.

    Raises:
        ValueError: if several settings share one square (another setting differs as well).
    """
    across, down = _steps(tidy[x]), _steps(tidy[y])[::-1]
    means = np.full((len(down), len(across)), np.nan)
    texts = np.full(means.shape, "", object)
    for i, j in np.ndindex(means.shape):
        cells = tidy[(tidy[x] == across[j]) & (tidy[y] == down[i])]
        if cells["row"].nunique() > 1:
            several = ", ".join(cells["row"].unique())
            raise ValueError(f"several settings fall into one square of {x} and {y}: {several}")
        means[i, j], texts[i, j] = _square(cells)
    size = max(4.0, 0.95 * len(across) + 2.2), max(2.4, 0.62 * len(down) + 1.1)
    figure, ax = new_figure(1, 1, *size, grid=False)
    _heat(ax, means, texts, f"test {ACCURACY}")
    ax.set_xticks(range(len(across)), [wrap(_shown(v), 14) for v in across])
    ax.set_yticks(range(len(down)), [wrap(_shown(v), 18) for v in down])
    ax.set(xlabel=x, ylabel=y)
    return figure


def _shown(value) -> str:
    return f"{value:g}" if isinstance(value, (float, np.floating)) else str(value)


def _steps(values: pd.Series) -> list:
    found = list(dict.fromkeys(values.dropna()))
    return sorted(found) if pd.api.types.is_numeric_dtype(values.dropna()) else found


def _square(cells: pd.DataFrame) -> tuple[float, str]:
    """(mean, text) of one combination; NaN where no seed finished."""
    values = cells[ACCURACY].dropna()
    few = f"{len(values)} of {len(cells)}" if len(values) < len(cells) else ""
    if not len(values):
        return math.nan, f"{few}\n{cells['state'].iloc[0]}" if few else "–"
    half = scipy.stats.t.ppf(0.975, max(1, len(values) - 1)) * values.sem()
    spread = f"± {half:.1f}" if math.isfinite(half) else ""
    return values.mean(), "\n".join(filter(None, [f"{values.mean():.1f}", spread, few]))


def _heat(ax, values: np.ndarray, texts: np.ndarray | None, label: str) -> None:
    """A heat map of what is known, with `texts` on it and white lines between its squares."""
    known = values[np.isfinite(values)]
    low, high = (known.min(), known.max()) if known.size else (0.0, 1.0)
    # Room below the least value: its square is still a shade, and not the colour of none.
    drawn = squares(ax, values, low - (0.15 * (high - low) or 0.5), high, texts)
    if values.shape[1] <= MOST_NAMED:
        for axis, count in ((ax.xaxis, values.shape[1]), (ax.yaxis, values.shape[0])):
            axis.set_ticks(np.arange(1, count) - 0.5, minor=True)
        ax.grid(which="minor", color="white", linewidth=0.8, alpha=1)
    ax.tick_params(which="both", length=0)
    ax.spines[:].set_visible(False)
    if known.size:
        ax.figure.colorbar(drawn, ax=ax, label=label, shrink=0.9, aspect=25)


@styled
def fidelity_scatter(tidy: pd.DataFrame, fidelity: dict) -> Figure:
    """Test accuracy against agreement of the students' attention with the teacher's; each cell a point, a mark a setting.

    Args:
        tidy: of `ablation.tidy`; cells without an agreement are left out. fidelity: of `ablation.fidelity`, for the title.
    """
    cells = tidy.dropna(subset=[ACCURACY, "agreement"])
    settings, shades = list(dict.fromkeys(cells["row"])), _shades(tidy)
    figure, ax = new_figure(width=7.4 if len(settings) > 6 else 5.6)
    white = {"markersize": 6.5, "markeredgecolor": "white", "markeredgewidth": 0.5}
    for setting in settings:
        part = cells[cells["row"] == setting]
        style = {**shades[setting], **white, "linestyle": "none", "alpha": 0.85}
        ax.plot(part["agreement"], part[ACCURACY], label=wrap(setting, 34, 2), **style)
    ax.set(xlabel=AGREEMENT, ylabel=f"test {ACCURACY}")
    ax.set_title(_correlation(fidelity), fontsize=9, loc="left")
    ax.margins(0.08)
    legend_below(figure, len(settings), grow=True)
    return figure


def _correlation(found: dict) -> str:
    """A title that gives the correlation and what it rests on."""
    cells, settings = found["cells"], found["rows"]
    count = f"{cells} student{'s' * (cells != 1)} of {settings} setting{'s' * (settings != 1)}"
    if not math.isfinite(found["pearson"]):
        return f"too few for a correlation: {count}"
    return (
        f"Pearson {found['pearson']:.2f} [{found['low']:.2f}, {found['high']:.2f}], "
        f"Spearman {found['spearman']:.2f}, p = {found['p']:.2g}\n"
        f"{count}; 95 % interval and p over settings"
    )


@styled
def fidelity_by_class(by_class: pd.DataFrame) -> Figure:
    """Settings × classes: mean agreement (over seeds) of the students' attention with the teacher's; darker is more alike.

    Args:
        by_class: of `ablation.by_class`.
    """
    means = by_class.pivot_table("agreement", "row", "class", "mean", dropna=False, sort=False)
    means = means.reindex(columns=list(dict.fromkeys(by_class["class"])))
    classes, names = list(means.columns), [wrap(setting, 34, 2) for setting in means.index]
    few, step = len(classes) <= MOST_NUMBERS, math.ceil(len(classes) / MOST_NAMED) or 1
    tall = len(names) * (0.44 if max(map(_lines, names)) > 1 else 0.34)
    width = min(11.0, (0.46 if few else 0.24) * len(classes) + 3.6)
    figure, ax = new_figure(width=width, height=max(0.8, tall) + 1.0, grid=False)
    values = means.to_numpy(float)
    texts = [[f"{v:.2f}" if math.isfinite(v) else "–" for v in line] for line in values]
    texts = np.array(texts, object) if few else None
    _heat(ax, values, texts, "mean cosine\nof probes")
    slanted = {} if max(map(len, classes)) < 4 else SLANTED
    short = [wrap(name, 20, 1) for name in classes[::step]]
    ax.set_xticks(range(0, len(classes), step), short, **slanted)
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel="class", ylabel="")
    return figure
