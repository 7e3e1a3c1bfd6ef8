"""Figures of an ablation grid: accuracy by row, curves over epochs, two parameters against each other, fidelity."""

import math
import re
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from dfkd_lib.core import WorkbenchError
from dfkd_lib.metrics.intervals import mean_interval
from dfkd_lib.plots.style import COLORS, STYLE, new_figure

ACCURACY = "accuracy (%)"
# Not losses: what else stands in a line of a student's history.
NO_LOSS = {"epoch", "lr", "seconds", "images_per_second", "test_accuracy"}
MARKERS, DASHES = "osD^vPX<", ("", (4, 1.5), (1, 1.2), (5, 1.2, 1, 1.2))
TITLES = {
    "test_accuracy": "test accuracy (%)",
    "loss": "loss, all parts",
    "kd": "KD loss",
    "ce": "cross entropy",
    "patch": "patch-probe loss",
}
MOST_NAMED = 40  # classes that a heat map names each; of more it names some
MOST_NUMBERS = 12  # classes for which it writes the numbers
MOST_BANDS = 8  # rows of which curves carry bands; of more they would only be grey


def _wrap(name: str, width: int = 30, most: int = 3) -> str:
    """A name on at most `most` lines of `width` letters, words broken only where they must, after = - or _; no formulas."""
    lines = [""]
    for word in re.findall(r"\S+\s*", str(name)):
        for part in (
            [word] if len(word.rstrip()) <= width else re.findall(r"[^=_-]+[=_-]*|[=_-]+", word)
        ):
            if len(lines[-1] + part.rstrip()) > width:
                lines.append("")
            while len(part.rstrip()) > width:  # nowhere to break it
                lines[-1], part = part[:width], part[width:]
                lines.append("")
            lines[-1] += part
    lines = [line.rstrip() for line in lines if line.strip()]
    if len(lines) > most:
        lines = [*lines[: most - 1], lines[most - 1][: width - 1] + "…"]
    return "\n".join(lines).replace("$", r"\$")


def _rows(frame) -> list[str]:
    return list(dict.fromkeys(frame["row"]))


def _nothing(ax, text: str) -> None:
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color="0.4")
    ax.set(xticks=[], yticks=[])


def _lines(text: str) -> int:
    return 1 + text.count("\n")


def ablation_accuracy(tidy, baseline: str | None = None, measure: str = ACCURACY) -> Figure:
    """Each cell a point, each row its mean and 95 % t interval over seeds; on the right the difference to the baseline.

    A filled diamond differs from the baseline by Holm's p < 0.05, an open one is not told from it.

    Args:
        tidy: of `ablation.tidy`. baseline: a row; None: the first. measure: a column, see `ablation.summary`.
    """
    import seaborn

    from dfkd_lib.ablation import table  # late: the room of the grids brings all of training

    told = table.summary(tidy, baseline, measure).to_dict("records")
    names = [_wrap(line["row"]) for line in told]
    beside = [_beside(line, 2 if "%" in measure else 3) for line in told]
    # Down the axis goes in inches, so that rows with long names or remarks get their room.
    tall = [
        max(0.34, 0.16 * _lines(name) + 0.1, 0.14 * _lines(text) + 0.1)
        for name, text in zip(names, beside, strict=True)
    ]
    places = dict(
        zip([line["row"] for line in told], np.cumsum(tall) - np.array(tall) / 2, strict=True)
    )
    with matplotlib.rc_context(STYLE):
        figure, ax = new_figure(width=7.2, height=sum(tall) + 1.7)
        if not told:
            _nothing(ax, "no cells")
            return figure
        cells = tidy.dropna(subset=[measure])
        if len(cells):
            # Just above the mean's line, which would hide them.
            seaborn.stripplot(
                x=cells[measure],
                y=cells["row"].map(places) - 0.09,
                orient="h",
                native_scale=True,
                ax=ax,
                size=4,
                color="0.35",
                alpha=0.6,
                jitter=False,
                legend=False,
            )
        for place, line, text in zip(places.values(), told, beside, strict=True):
            _mean(ax, place, line, measure, line["p (Holm)"] < table.TOLD)
            ax.annotate(
                text,
                (1.01, place),
                xycoords=ax.get_yaxis_transform(),
                va="center",
                fontsize=8,
                color=COLORS[1] if line["unfinished"] else "0.15",
                annotation_clip=False,
            )
        ax.annotate(
            "difference [95 %]",
            (1.01, 1),
            (0, 3),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=8,
            style="italic",
            annotation_clip=False,
        )
        _base(ax, told, measure)
        ax.set_yticks(list(places.values()), names)
        ax.set(ylabel="", ylim=(sum(tall), 0), xlabel=_xlabel(told, measure))
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="y", visible=False)
        figure.legend(handles=_marks(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def _mean(ax, place: int, line: dict, measure: str, told: bool) -> None:
    mean, half, color = line[measure], line["± 95 %"], COLORS[0] if line["against"] else "black"
    if math.isfinite(mean):
        ax.errorbar(
            mean,
            place,
            xerr=half if math.isfinite(half) else None,
            fmt="D",
            markersize=6,
            capsize=3,
            color=color,
            markerfacecolor=color if told or not line["against"] else "white",
            elinewidth=1.5,
            markeredgewidth=1.4,
            zorder=3,
        )


def _beside(line: dict, digits: int) -> str:
    """What stands at the right of a row: its difference, and how many seeds finished where not all did."""
    few = (
        f"{line['seeds']} of {line['of']} seeds\n({line['unfinished']})"
        if line["unfinished"]
        else ""
    )
    if not line["against"]:
        return "\n".join(filter(None, ["baseline", few]))
    amount = f"{line['difference']:+.{digits}f}" if line["pairs"] else ""
    if math.isfinite(line["low"]):
        amount += f" [{line['low']:+.{digits}f}, {line['high']:+.{digits}f}]"
    return "\n".join(filter(None, [amount, few]))


def _base(ax, told: Sequence[dict], measure: str) -> None:
    """A dashed line through all rows at the baseline's mean."""
    mean = next(line[measure] for line in told if not line["against"])
    if math.isfinite(mean):
        ax.axvline(mean, color="black", linewidth=0.9, linestyle=(0, (4, 3)), alpha=0.7, zorder=1)
    if not any(math.isfinite(line[measure]) for line in told):
        _nothing(ax, "no cell has finished")


def _xlabel(told: Sequence[dict], measure: str) -> str:
    """The axis' name, with what the test images leave open about one student's accuracy."""
    if measure != ACCURACY:
        return (
            "agreement with the teacher (mean cosine of probes)"
            if measure == "agreement"
            else f"test {measure}"
        )
    halves = [line["± test"] for line in told if math.isfinite(line["± test"])]
    sample = (
        f"\none student's: ± {max(halves):.2g} by the choice of test images (95 %)"
        if halves
        else ""
    )
    return f"test {measure}{sample}"


def _marks() -> list:
    line = matplotlib.lines.Line2D
    diamond = {"marker": "D", "markersize": 6, "markeredgewidth": 1.4}
    return [
        line(
            [],
            [],
            linestyle="none",
            marker="o",
            color="0.35",
            alpha=0.6,
            markersize=4,
            label="one seed",
        ),
        line(
            [],
            [],
            color=COLORS[0],
            linewidth=1.5,
            label="mean and 95 % interval over seeds",
            **diamond,
        ),
        line(
            [],
            [],
            color="black",
            linewidth=0.9,
            linestyle=(0, (4, 3)),
            label="baseline's mean",
            **diamond,
        ),
        line(
            [],
            [],
            color=COLORS[0],
            linewidth=1.5,
            markerfacecolor="white",
            label="not told from the baseline (Holm)",
            **diamond,
        ),
    ]


def _styles(names: Sequence[str]) -> tuple[dict, dict, dict]:
    """{name: colour}, {name: dashes}, {name: marker}; no two of 32 names alike."""
    count = len(COLORS)
    # Yellow is the last of the palette, too pale for lines on white: it is darkened.
    palette = (*COLORS[:-1], "#B8A800")
    return (
        {name: palette[i % count] for i, name in enumerate(names)},
        {name: DASHES[i // count % len(DASHES)] for i, name in enumerate(names)},
        {name: MARKERS[(i + i // count) % len(MARKERS)] for i, name in enumerate(names)},
    )


def _columns(names: Sequence[str], width: float) -> int:
    """Columns of a legend below a figure of that width in inches, evenly filled."""
    longest = max((len(line) for name in names for line in name.split("\n")), default=1)
    fit = max(1, min(len(names), int(width / (0.075 * longest + 0.6))))
    return math.ceil(len(names) / math.ceil(len(names) / fit)) if names else 1


def ablation_curves(histories: dict[str, Sequence[Sequence[dict]]]) -> Figure:
    """Test accuracy and each loss over epochs: a line a row, the mean of its seeds; the band holds all of them.

    Args:
        histories: {row: [history of each seed]}, as `ablation.histories` gives them; "test_accuracy" is a share of 1.
    """
    import pandas as pd
    import seaborn

    lines = [
        {"row": row, "seed": seed} | epoch
        for row, runs in histories.items()
        for seed, run in enumerate(runs)
        for epoch in run
    ]
    frame = pd.DataFrame(lines, columns=None if lines else ["row", "seed", "epoch"])
    found = [
        key
        for key in frame.columns
        if key not in NO_LOSS | {"row", "seed"} and frame[key].notna().any()
    ]
    keys = [
        key for key in TITLES if key in [*found, *frame.columns.intersection(["test_accuracy"])]
    ]
    keys += [key for key in found if key not in keys]
    with matplotlib.rc_context(STYLE):
        across = min(3, max(1, len(keys)))
        down = max(1, math.ceil(len(keys) / across))
        names = [_wrap(row, 36, 2) for row in histories]
        width, lines = max(5.0, 3.0 * across), sum(map(_lines, names))
        spare = across * down > len(keys) > 0 and lines <= 9
        ncols = 1 if spare else _columns(names, width)
        figure, axes = new_figure(
            down,
            across,
            width=width,
            squeeze=False,
            height=2.7 * down + (0 if spare else 0.2 * math.ceil(lines / ncols) + 0.2),
        )
        colors, dashes, _ = _styles(list(histories))
        for ax in axes.flat[len(keys) :]:
            ax.set_axis_off()
        for ax, key in zip(axes.flat, keys, strict=False):
            scale = 100 if key == "test_accuracy" else 1
            told = frame.assign(value=frame[key].astype(float) * scale).dropna(subset=["value"])
            seaborn.lineplot(
                told,
                x="epoch",
                y="value",
                hue="row",
                style="row",
                hue_order=list(histories),
                palette=colors,
                style_order=list(histories),
                dashes=dashes,
                legend=False,
                ax=ax,
                linewidth=1.5,
                errorbar=("pi", 100) if len(histories) <= MOST_BANDS else None,
                **(
                    {"err_kws": {"alpha": 0.15, "linewidth": 0}}
                    if len(histories) <= MOST_BANDS
                    else {}
                ),
            )
            _single(ax, told, colors)
            ax.set(
                title=TITLES.get(key, key),
                xlabel="epoch",
                ylabel="mean over the epoch" if scale == 1 else "",
            )
            ax.xaxis.get_major_locator().set_params(integer=True)
        if not keys:
            _nothing(axes.flat[0], "no student has finished")
        handles = [
            matplotlib.lines.Line2D(
                [],
                [],
                color=colors[row],
                label=name,
                linewidth=1.5,
                linestyle=(0, dashes[row]) if dashes[row] else "-",
            )
            for row, name in zip(histories, names, strict=True)
        ]
        if spare:
            axes.flat[len(keys)].legend(handles=handles, loc="upper left", frameon=False)
        elif handles:
            figure.legend(handles=handles, loc="outside lower center", ncols=ncols, frameon=False)
    return figure


def _single(ax, told, colors: dict) -> None:
    """A point for rows that have a single epoch, of which no line can be drawn."""
    for row, part in told.groupby("row", sort=False):
        if part["epoch"].nunique() == 1:
            ax.plot(
                part["epoch"].iloc[0], part["value"].mean(), "o", color=colors[row], markersize=4
            )


def ablation_grid(tidy, x: str, y: str, measure: str = ACCURACY) -> Figure:
    """Two settings against each other: mean of each cell over seeds, ± half of its 95 % t interval; darker is more.

    Where seeds did not finish the square says how many did; a combination that was not asked for stays empty.

    Args:
        tidy: of `ablation.tidy`. x, y: columns of settings, numbers in their order, other values as they come.
        measure: a column, see `ablation.summary`.

    Raises:
        WorkbenchError: if x or y is no column, or several rows share one square (another setting differs as well).
    """
    import seaborn

    for name in (x, y, measure):
        if name not in tidy:
            raise WorkbenchError(
                "no such column to draw",
                expected=", ".join(tidy.columns),
                got=name,
                where="ablation_grid",
                fix="choose settings in which the cells differ",
            )
    across, down = _steps(tidy[x]), _steps(tidy[y])[::-1]
    means, texts = (
        np.full((len(down), len(across)), np.nan),
        np.full((len(down), len(across)), "", object),
    )
    for i, j in np.ndindex(means.shape):
        cells = tidy[(tidy[x] == across[j]) & (tidy[y] == down[i])]
        if cells["row"].nunique() > 1:
            raise WorkbenchError(
                "several rows fall into one square",
                got=", ".join(_rows(cells)),
                where="ablation_grid",
                expected=f"rows that differ in {x} and {y} alone",
                fix="draw a part of the table",
            )
        means[i, j], texts[i, j] = _square(cells, measure)
    with matplotlib.rc_context(STYLE):
        figure, ax = new_figure(
            width=max(4.0, 0.95 * len(across) + 2.2),
            height=max(2.4, 0.62 * len(down) + 1.1),
            grid=False,
        )
        if not means.size:
            _nothing(ax, "no cells")
            return figure
        _heat(seaborn, ax, means, texts, f"test {measure}" if "%" in measure else measure)
        ax.set_xticks(
            np.arange(len(across)) + 0.5,
            [_wrap(f"{v:g}" if _number(v) else v, 14) for v in across],
            rotation=0,
        )
        ax.set_yticks(
            np.arange(len(down)) + 0.5,
            [_wrap(f"{v:g}" if _number(v) else v, 18) for v in down],
            rotation=0,
        )
        ax.set(xlabel=x, ylabel=y)
        ax.tick_params(length=0)
    return figure


def _number(value) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _steps(values) -> list:
    found = list(dict.fromkeys(values.dropna()))
    return sorted(found) if all(map(_number, found)) else found


def _square(cells, measure: str) -> tuple[float, str]:
    """(mean, text) of one combination; NaN where no seed finished."""
    values, digits = cells[measure].dropna().tolist(), 1 if "%" in measure else 2
    few = f"{len(values)} of {len(cells)}" if len(values) < len(cells) else ""
    if not values:
        return math.nan, few and f"{few}\n{cells['state'].iloc[0]}"
    mean, half = mean_interval(values)
    return mean, "\n".join(
        filter(
            None, [f"{mean:.{digits}f}", f"± {half:.{digits}f}" if math.isfinite(half) else "", few]
        )
    )


def _heat(
    seaborn, ax, values: np.ndarray, texts: np.ndarray | None, label: str, size: float = 8
) -> None:
    """A heat map with what has no value in grey; `texts` also stand there."""
    known = values[np.isfinite(values)]
    low, high = (known.min(), known.max()) if known.size else (0.0, 1.0)
    ax.set_facecolor("0.94")
    # Room below the least value: its square is still a shade, and not the colour of none.
    low -= 0.15 * (high - low) or 0.5
    seaborn.heatmap(
        values,
        mask=~np.isfinite(values),
        ax=ax,
        cmap="Blues",
        vmin=low,
        vmax=high,
        cbar=bool(known.size),
        linewidths=0.8 if values.shape[1] <= MOST_NAMED else 0,
        linecolor="white",
        annot=texts,
        fmt="",
        annot_kws={"size": size},
        xticklabels=False,
        yticklabels=False,
        cbar_kws={"label": label, "shrink": 0.9, "aspect": 25} if known.size else None,
    )
    if texts is not None:
        for i, j in zip(*np.nonzero(~np.isfinite(values)), strict=True):
            ax.text(
                j + 0.5,
                i + 0.5,
                texts[i, j] or "–",
                ha="center",
                va="center",
                fontsize=size,
                color="0.4",
            )


def fidelity_scatter(tidy, fidelity: dict) -> Figure:
    """Test accuracy against agreement of the students' attention with the teacher's; each cell a point, a mark a row.

    Args:
        tidy: of `ablation.tidy`; cells without an agreement are left out. fidelity: of `ablation.fidelity`, for the title.
    """
    import seaborn

    told = tidy.dropna(subset=[ACCURACY, "agreement"])
    rows = _rows(told)
    names = [_wrap(row, 34, 2) for row in rows]
    with matplotlib.rc_context(STYLE):
        aside = 6 < len(rows) <= 14
        width, tall = 7.4 if len(rows) > 6 else 5.6, 0.2 * sum(map(_lines, names))
        ncols = 1 if aside else _columns(names, width)
        figure, ax = new_figure(
            width=width, height=max(3.8, tall + 0.5) if aside else 3.9 + tall / ncols
        )
        if not rows:
            _nothing(ax, "no finished student has an agreement")
            return figure
        colors, _, marks = _styles(rows)
        seaborn.scatterplot(
            told,
            x="agreement",
            y=ACCURACY,
            hue="row",
            style="row",
            hue_order=rows,
            style_order=rows,
            palette=colors,
            markers=marks,
            s=42,
            alpha=0.85,
            edgecolor="white",
            linewidth=0.5,
            legend=False,
            ax=ax,
        )
        ax.set(
            xlabel="agreement with the teacher (mean cosine of probes)", ylabel=f"test {ACCURACY}"
        )
        ax.set_title(_correlation(fidelity), fontsize=9, loc="left")
        ax.margins(0.08)
        handles = [
            matplotlib.lines.Line2D(
                [],
                [],
                linestyle="none",
                marker=marks[row],
                color=colors[row],
                markersize=6.5,
                markeredgecolor="white",
                markeredgewidth=0.5,
                label=name,
            )
            for row, name in zip(rows, names, strict=True)
        ]
        figure.legend(
            handles=handles,
            loc="outside right upper" if aside else "outside lower center",
            frameon=False,
            ncols=ncols,
        )
    return figure


def _correlation(found: dict) -> str:
    """A title that says the correlation and what it rests on."""
    cells, rows = found["cells"], found["rows"]
    count = f"{cells} student{'s' * (cells != 1)} in {rows} row{'s' * (rows != 1)}"
    if not math.isfinite(found["pearson"]):
        return f"no correlation can be told: {count}"
    return (
        f"Pearson {found['pearson']:.2f} [{found['low']:.2f}, {found['high']:.2f}], Spearman {found['spearman']:.2f}, "
        f"p = {found['p']:.2g}\n{count}; 95 % interval and p over rows"
    )


def fidelity_by_class(by_class) -> Figure:
    """Rows × classes: the mean agreement (over seeds) of the students' attention with the teacher's; darker is more alike.

    Args:
        by_class: of `ablation.by_class`.
    """
    import seaborn

    rows, classes = _rows(by_class), list(dict.fromkeys(by_class["class"]))
    with matplotlib.rc_context(STYLE):
        names = [_wrap(row, 34, 2) for row in rows]
        few = len(classes) <= MOST_NUMBERS
        width = min(11.0, (0.46 if few else 0.24) * len(classes) + 3.6)
        tall = len(rows) * (0.44 if any(map(lambda name: _lines(name) > 1, names)) else 0.34)
        figure, ax = new_figure(width=width, height=max(0.8, tall) + 1.0, grid=False)
        if not rows:
            _nothing(ax, "no finished student has an agreement")
            return figure
        means = by_class.groupby(["row", "class"], sort=False)["agreement"].mean().unstack()
        values = means.reindex(index=rows, columns=classes).to_numpy(float)
        texts = (
            np.vectorize(lambda v: f"{v:.2f}" if math.isfinite(v) else "", otypes=[object])(values)
            if few
            else None
        )
        _heat(seaborn, ax, values, texts, "mean cosine\nof probes")
        step = math.ceil(len(classes) / MOST_NAMED)
        slanted = (
            {}
            if max(map(len, classes)) < 4
            else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        )
        ax.set_xticks(
            np.arange(0, len(classes), step) + 0.5,
            [_wrap(name, 20, 1) for name in classes[::step]],
            **slanted,
        )
        ax.set_yticks(np.arange(len(rows)) + 0.5, names, rotation=0)
        ax.tick_params(length=0)
        ax.set(xlabel="class", ylabel="")
    return figure
