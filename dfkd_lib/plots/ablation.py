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
    MARKERS,
    SLANTED,
    epochs_below,
    legend_below,
    new_figure,
    squares,
    styled,
)

ACCURACY = "accuracy (%)"
SIGNIFICANT = 0.05  # a corrected p below it is a difference
# Not losses: what else stands in a line of a student's history.
NO_LOSS = {"epoch", "lr", "seconds", "images_per_second", "test_accuracy"}
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)))
PALETTE = (*COLORS[:-1], "#B8A800")  # yellow is too pale for lines on white: it is darkened
FIRST = {"test_accuracy": "test accuracy (%)", "loss": "loss, all parts"}
MOST_NAMED = 40  # classes that a heat map names each; of more it names some
MOST_NUMBERS = 12  # classes for which it writes the numbers
MOST_SEEDS = 8  # settings whose seeds are drawn too; of more they would only be grey
DIAMOND = {"marker": "D", "markersize": 6, "markeredgewidth": 1.4}
BASELINE = {"linewidth": 0.9, "linestyle": (0, (4, 3)), "color": "black"}
AGREEMENT = "agreement with the teacher (mean cosine of probes)"


def wrap(name: str, width: int = 30, most: int = 3) -> str:
    """A name on at most `most` lines of `width` letters."""
    lines = textwrap.wrap(str(name), width) or [""]
    if len(lines) > most:
        lines = [*lines[: most - 1], lines[most - 1][: width - 1] + "…"]
    return "\n".join(lines)


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
        tidy: of `ablation.tidy`. summary: of `ablation.summary`; its second column is the measure that is drawn.
    """
    measure, settings = summary.columns[1], summary.to_dict("records")
    names = [wrap(line["row"]) for line in settings]
    beside = [_beside(line, 2 if "%" in measure else 3) for line in settings]
    # Down the axis goes in inches, so that settings with long names or remarks get their room.
    lines = [max(map(_lines, texts)) for texts in zip(names, beside, strict=True)]
    tall = 0.16 * np.array(lines, float) + 0.18
    places = np.cumsum(tall) - tall / 2
    figure, ax = new_figure(width=7.2, height=tall.sum() + 1.7)
    if not settings:
        _nothing(ax, "no cells")
        return figure
    outside = {"xycoords": ax.get_yaxis_transform(), "fontsize": 8, "annotation_clip": False}
    shades = _shades(tidy)
    for place, line, text in zip(places, settings, beside, strict=True):
        shade = shades[line["row"]]["color"]
        cells = tidy.loc[tidy["row"] == line["row"], measure].dropna()
        # Just above the mean's line, which would hide them.
        ax.scatter(cells, np.full(len(cells), place - 0.09), s=16, color=shade, alpha=0.6, lw=0)
        if math.isfinite(line[measure]):
            _mean(ax, place, line, measure, shade)
        text = ax.annotate(text, (1.01, place), va="center", **outside)
        text.set_color(COLORS[1] if line["unfinished"] else "0.15")
    ax.annotate("difference [95 %]", (1.01, 0), va="bottom", style="italic", **outside)
    base = next(line[measure] for line in settings if not line["against"])
    if math.isfinite(base):
        ax.axvline(base, alpha=0.7, zorder=1, **BASELINE)
    if not any(math.isfinite(line[measure]) for line in settings):
        _nothing(ax, "no cell has finished")
    ax.set_yticks(places, names)
    ax.set(ylabel="", ylim=(tall.sum(), 0), xlabel=_xlabel(settings, measure))
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
    legend_below(figure, 2, _marks())
    return figure


def _mean(ax, place: float, line: dict, measure: str, shade: str) -> None:
    """The diamond of a setting's mean with its interval; filled where it differs from the baseline, or is it."""
    open_ = line["against"] and not line["p (Holm)"] < SIGNIFICANT
    half = line["± 95 %"] if math.isfinite(line["± 95 %"]) else None
    face = {"color": shade, "markerfacecolor": "white" if open_ else shade, "zorder": 3}
    ax.errorbar(line[measure], place, xerr=half, linestyle="none", capsize=3, **DIAMOND, **face)


def _beside(line: dict, digits: int) -> str:
    """What stands at the right of a setting: its difference, and how many seeds finished where not all did."""
    few = f"{line['seeds']} of {line['of']} seeds\n({line['unfinished']})"
    amount = f"{line['difference']:+.{digits}f}" if line["pairs"] else ""
    if math.isfinite(line["low"]):
        amount += f" [{line['low']:+.{digits}f}, {line['high']:+.{digits}f}]"
    first = amount if line["against"] else "baseline"
    return "\n".join(filter(None, [first, few if line["unfinished"] else ""]))


def _xlabel(settings: Sequence[dict], measure: str) -> str:
    """The axis' name, with what the test images leave open about one student's accuracy."""
    if measure == "agreement":
        return AGREEMENT
    halves = [line["± test"] for line in settings if math.isfinite(line.get("± test", math.nan))]
    sample = f"± {max(halves):.2g} by the choice of test images (95 %)" if halves else ""
    return f"test {measure}" + (f"\none student's: {sample}" if sample else "")


def _marks() -> list[Line2D]:
    seed = {"linestyle": "none", "marker": "o", "markersize": 4, "color": "0.35", "alpha": 0.6}
    mean = {**DIAMOND, "color": "0.35"}
    return [
        Line2D([], [], label="one seed", **seed),
        Line2D([], [], label="mean and 95 % interval over seeds", **mean),
        Line2D([], [], label="baseline's mean", **DIAMOND, **BASELINE),
        Line2D([], [], label="no difference to it (Holm)", markerfacecolor="white", **mean),
    ]


def styles(count: int) -> list[dict]:
    """Colour, dashes and marker of each of `count` series; no two of 32 alike in colour and either of the others."""
    colors = len(PALETTE)
    return [
        {
            "color": PALETTE[i % colors],
            "linestyle": DASHES[i // colors % len(DASHES)],
            "marker": MARKERS[(i + i // colors) % len(MARKERS)],
        }
        for i in range(count)
    ]


def _shades(tidy: pd.DataFrame) -> dict[str, dict]:
    """{setting: its style}, by its place among all settings of the grid."""
    settings = list(dict.fromkeys(tidy["row"]))
    return dict(zip(settings, styles(len(settings)), strict=True))


def _columns(names: Sequence[str], width: float) -> tuple[int, float]:
    """(columns, inches high) of a legend below a figure of that width in inches, evenly filled."""
    longest = max((len(line) for name in names for line in name.split("\n")), default=1)
    fit = max(1, min(len(names), int(width / (0.075 * longest + 0.6))))
    columns = math.ceil(len(names) / math.ceil(len(names) / fit)) if names else 1
    return columns, 0.2 * math.ceil(sum(map(_lines, names)) / columns) + 0.2


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
    down, width = math.ceil(len(titles) / across), max(5.0, 3.0 * across)
    names = [wrap(name, 36, 2) for name in histories]
    ncols, below = _columns(names, width)
    figure, axes = new_figure(down, across, width, 2.7 * down + below, squeeze=False)
    series = styles(len(histories))
    for ax in axes.flat[len(titles) :]:
        ax.set_axis_off()
    for ax, (key, title) in zip(axes.flat, titles.items(), strict=False):
        for name, style in zip(histories, series, strict=True):
            seeds = [run[key].dropna() for run in frames[name] if key in run]
            if seeds:
                _curve(ax, seeds, style, len(histories) <= MOST_SEEDS)
        ax.set(title=title, ylabel="")
        epochs_below(ax)
    if not any(frames.values()):
        _nothing(axes.flat[0], "no student has finished")
    lines = [
        Line2D([], [], **{**style, "marker": ""}, label=name, linewidth=1.5)
        for style, name, runs in zip(series, names, histories.values(), strict=True)
        if any(runs)
    ]
    legend_below(figure, ncols, lines)
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
        ValueError: if x or y is no column, or several settings share one square (another setting differs as well).
    """
    for name in (x, y):
        if name not in tidy:
            raise ValueError(f"no such column to draw: {name}; expected: {', '.join(tidy)}")
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
    if not means.size:
        _nothing(ax, "no cells")
        return figure
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
    settings = list(dict.fromkeys(cells["row"]))
    names = [wrap(setting, 34, 2) for setting in settings]
    width = 7.4 if len(settings) > 6 else 5.6
    ncols, below = _columns(names, width)
    figure, ax = new_figure(width=width, height=3.6 + below)
    if not settings:
        _nothing(ax, "no finished student has an agreement")
        return figure
    shades = _shades(tidy)
    for setting, name in zip(settings, names, strict=True):
        part, style = cells[cells["row"] == setting], shades[setting]
        white = {"markersize": 6.5, "markeredgecolor": "white", "markeredgewidth": 0.5}
        style = {**style, **white, "linestyle": "none", "alpha": 0.85}
        ax.plot(part["agreement"], part[ACCURACY], label=name, **style)
    ax.set(xlabel=AGREEMENT, ylabel=f"test {ACCURACY}")
    ax.set_title(_correlation(fidelity), fontsize=9, loc="left")
    ax.margins(0.08)
    legend_below(figure, ncols)
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
    tall = len(names) * (0.44 if any(_lines(name) > 1 for name in names) else 0.34)
    width = min(11.0, (0.46 if few else 0.24) * len(classes) + 3.6)
    figure, ax = new_figure(width=width, height=max(0.8, tall) + 1.0, grid=False)
    if not names:
        _nothing(ax, "no finished student has an agreement")
        return figure
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
