"""What a grid of students says: a line a cell, a line a row with its paired difference to a baseline, fidelity.

Rows are compared over the seeds that both have. An interval over seeds is over trainings of the student alone: teacher,
images and test images are the same throughout, so each accuracy also carries its own test sample's interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from dfkd_lib.ablation.grid import DEFAULTS, short_name
from dfkd_lib.core import WorkbenchError, one_of
from dfkd_lib.metrics import intervals
from dfkd_lib.models import display_name

if TYPE_CHECKING:
    from dfkd_lib.ablation.cells import Outcome

# Column and the metric behind it; all but the agreement are shares of the test images, shown in percent.
MEASURES = {
    "accuracy (%)": "accuracy",
    "top-5 (%)": "top5",
    "precision (%)": "precision",
    "recall (%)": "recall",
    "F1 (%)": "f1",
    "agreement": "agreement",
}
ACCURACY = "accuracy (%)"
MEASURED = (ACCURACY, "low", "high", *list(MEASURES)[1:], "± agreement")
WHOLE = ("images", "epochs", "parameters", "seconds")
SIGNIFICANT = 0.05  # a corrected p below it is a difference
UNFINISHED = ("diverged", "failed", "not run")
BY_CLASS = ["row", "seed", "class", "agreement", "half", "count"]
DIFFERENCE = ["difference", "low", "high", "p", "pairs"]


def tidy(outcomes: Iterable[Outcome]) -> pd.DataFrame:
    """One line a cell, in the order given; a cell given twice counts once (the finished one, else the last).

    Returns:
        columns row, seed, each setting in which the cells differ, "accuracy (%)", low, high (Wilson's 95 % interval of that
        accuracy over the test images, %), "top-5 (%)", "precision (%)", "recall (%)", "F1 (%)", agreement (-1..1),
        "± agreement" (half of its 95 % interval), images, epochs, parameters, seconds (of training), state ("finished" or
        one of `UNFINISHED`), error, key. What a cell does not have is NaN, or None in columns of whole numbers.

    Raises:
        WorkbenchError: if cells of one row differ in more than the seed.
    """
    cells = _once(outcomes)
    settings = _differing([outcome.cell.settings for outcome in cells])
    lines = [
        {
            "row": outcome.cell.name,
            "seed": int(outcome.cell.seed),
            **{name: values[place] for name, values in settings.items()},
            **_measured(outcome),
            "state": _state(outcome),
            "error": outcome.error or "",
            "key": outcome.artifact.key if outcome.artifact else "",
        }
        for place, outcome in enumerate(cells)
    ]
    columns = ["row", "seed", *settings, *MEASURED, *WHOLE, "state", "error", "key"]
    frame = pd.DataFrame(lines, columns=columns, dtype=object)
    # Whole numbers beside a failed cell's None would become floats, and print as 3e+04.
    whole = {name: frame[name] for name in WHOLE if frame[name].isna().any()}
    return frame.infer_objects().assign(**whole)


def _once(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Each cell once, the finished outcome where there is one."""
    known: dict[tuple, Outcome] = {}
    rows: dict[str, dict] = {}
    for outcome in outcomes:
        cell = outcome.cell
        if rows.setdefault(cell.name, cell.settings) != cell.settings:
            raise WorkbenchError(
                "cells of one row have different settings",
                got=f"'{cell.name}', seed {cell.seed}",
                expected="rows that differ in the seed alone",
                where="tidy",
                fix="name the rows apart",
            )
        if known.setdefault((cell.name, cell.seed), outcome).artifact is None:
            known[cell.name, cell.seed] = outcome
    return list(known.values())


def _differing(settings: Sequence[dict]) -> dict[str, list]:
    """{name: value in each cell} of the settings in which cells differ; what a cell does not name has its default."""
    names = dict.fromkeys(name for one in settings for name in one)
    found = {name: [one.get(name, DEFAULTS.get(name)) for one in settings] for name in names}
    # The setting "seed" is that of the images, not the student's, which has the column of that name.
    return {
        "images' seed" if name == "seed" else short_name(name): values
        for name, values in found.items()
        if any(value != values[0] for value in values)
    }


def _measured(outcome: Outcome) -> dict:
    """The numbers of one cell by column; NaN or None where it has none."""
    if outcome.artifact is None:
        return dict.fromkeys(MEASURED, math.nan) | dict.fromkeys(WHOLE)
    metrics = outcome.artifact.metrics
    total = metrics["test_images"]
    low, high = intervals.accuracy_interval(round(metrics["accuracy"] * total), total)
    return {
        **{c: _number(metrics[name], 100 if "%" in c else 1) for c, name in MEASURES.items()},
        "low": 100 * low,
        "high": 100 * high,
        "± agreement": _number(metrics["agreement_half"]),
        "images": metrics["train_images"],
        "epochs": len(outcome.artifact.json("history.json")),
        "parameters": metrics["parameters"],
        "seconds": round(metrics["seconds"]),
    }


def _number(value: float | None, times: float = 1) -> float:
    return math.nan if value is None else times * value


def _state(outcome: Outcome) -> str:
    if outcome.artifact is not None:
        return "finished"
    if not outcome.error:
        return "not run"
    return "diverged" if outcome.error.lower().startswith("diverged") else "failed"


def summary(
    tidy: pd.DataFrame, baseline: str | None = None, measure: str = ACCURACY
) -> pd.DataFrame:
    """One line a row: its mean over seeds, and its paired difference to the baseline over the seeds that both finished.

    Args:
        tidy: of `tidy`. baseline: the row to compare with; None: the first. measure: a key of `MEASURES`.

    Returns:
        columns row, the measure's mean, "± 95 %" (half of its t interval over seeds, NaN for fewer than three), "± test" (half of
        the test sample's interval of one accuracy, mean over seeds; accuracy only), seeds (finished), of (asked),
        unfinished (text), against (the baseline; "" in its own line), difference (row minus baseline), low, high (its t
        interval, not corrected), pairs (seeds behind it), p (paired t), "p (Holm)" (corrected over all lines that have a p).
        One pair: neither interval nor p. Pairs that all differ by one amount likewise: there is no spread to test against.

    Raises:
        WorkbenchError: for a baseline or measure that is not there.
    """
    values = _values(tidy, measure)
    baseline = next(iter(values), None) if baseline is None else baseline
    if values:
        one_of("baseline", baseline, values)
    lines = []
    for row, of_seed in values.items():
        cells, own = tidy[tidy["row"] == row], row == baseline
        known = list(of_seed.values())
        mean, half = intervals.shown_interval(known) if known else (math.nan, math.nan)
        states = cells["state"].value_counts()
        unfinished = [f"{states[state]} {state}" for state in UNFINISHED if state in states]
        line = {
            "row": row,
            measure: mean,
            "± 95 %": half,
            "± test": float((cells["high"] - cells["low"]).mean() / 2),
            "seeds": len(of_seed),
            "of": len(cells),
            "unfinished": ", ".join(unfinished),
            "against": "" if own else baseline,
        }
        lines.append(line | _difference({} if own else values[baseline], of_seed))
    columns = ["row", measure, "± 95 %", "± test", "seeds", "of", "unfinished", "against"]
    if measure != ACCURACY:
        columns.remove("± test")
    return _corrected(lines, columns)


def _corrected(lines: list[dict], columns: list[str]) -> pd.DataFrame:
    """A table of these columns and of differences, with p corrected over all lines that have one."""
    frame = pd.DataFrame(lines, columns=[*columns, "difference", "low", "high", "pairs", "p"])
    return frame.assign(**{"p (Holm)": intervals.holm(frame["p"])})


def _values(tidy: pd.DataFrame, measure: str) -> dict[str, dict[int, float]]:
    """{row: {seed: value}} of the finished cells that have one, rows in their order, also those that have none."""
    one_of("measure", measure, MEASURES)
    found: dict[str, dict[int, float]] = {row: {} for row in tidy["row"]}
    for row, seed, value in zip(tidy["row"], tidy["seed"], tidy[measure], strict=True):
        if math.isfinite(value):
            found[row][seed] = value
    return found


def _difference(a: dict[int, float], b: dict[int, float]) -> dict:
    """b − a over their common seeds, as `intervals.paired_difference`; NaN without any, no interval without spread."""
    common = [seed for seed in b if seed in a]
    if not common:
        return dict.fromkeys(DIFFERENCE, math.nan) | {"pairs": 0}
    found = intervals.paired_difference([a[seed] for seed in common], [b[seed] for seed in common])
    return found if math.isfinite(found["p"]) else found | {"low": math.nan, "high": math.nan}


def pairwise(tidy: pd.DataFrame) -> pd.DataFrame:
    """All pairs of rows: row minus against over common seeds, its t interval (not corrected), p, Holm's p over all pairs.

    Returns:
        columns row, against, difference, low, high, pairs, p, "p (Holm)"; NaN as in `summary`.
    """
    values = _values(tidy, ACCURACY)
    lines = [
        {"row": row, "against": against} | _difference(values[against], values[row])
        for i, row in enumerate(values)
        for against in list(values)[:i]
    ]
    return _corrected(lines, ["row", "against"])


def verdicts(summary: pd.DataFrame) -> list[str]:
    """One sentence for each row but the baseline: whether it differs from it beyond chance, and from how many seeds.

    It differs where the p corrected by Holm is below 0.05. An unfinished baseline gets a sentence of its own.

    Args:
        summary: of `summary`.
    """
    unit, digits = (" points", 2) if "%" in summary.columns[1] else (" of agreement", 3)
    return [
        _sentence(line, unit, digits)
        for line in summary.to_dict("records")
        if line["against"] or line["unfinished"]
    ]


def _sentence(line: dict, unit: str, digits: int) -> str:
    row, pairs, unfinished = line["row"], line["pairs"], line["unfinished"]
    ended = f"{line['seeds']} of {line['of']} seeds finished, {unfinished}" if unfinished else ""
    if not line["against"]:
        return f"{row} (the baseline): {ended}."
    amount = f"{line['difference']:+.{digits}f}{unit}"
    if not line["seeds"]:
        found = "nothing to compare" + ("" if ended else ", no seed has a value")
    elif not pairs:
        found = f"no seed in common with '{line['against']}', so nothing to compare"
    elif pairs == 1:
        found = f"{amount} from one seed; no interval, so no difference is detected"
    elif not math.isfinite(line["p"]) and abs(line["difference"]) < 1e-9:
        found = f"equal in each of {pairs} seeds, so no difference is detected"
    elif not math.isfinite(line["p"]):
        found = (
            f"{amount} in each of {pairs} seeds; without spread there is nothing to test against, so no "
            "difference is detected"
        )
    else:
        span = f"[{line['low']:+.{digits}f}, {line['high']:+.{digits}f}]"
        span = f"{amount} {span}, Holm p {_p(line['p (Holm)'])}, {pairs} seeds"
        if line["p (Holm)"] < SIGNIFICANT:
            found = f"{'better' if line['difference'] > 0 else 'worse'}, {span}"
        else:
            corrected = " after correction" if line["p"] < SIGNIFICANT else ""
            found = f"no difference is detected{corrected} ({span})"
    return f"{row}: {'; '.join(filter(None, [found, ended]))}."


def pairs_verdict(pairs: pd.DataFrame) -> str:
    """One sentence: which pairs of rows differ beyond chance, where p corrected by Holm is below 0.05.

    Args:
        pairs: of `pairwise`.
    """
    tested = pairs["p (Holm)"].notna().sum()
    far = [
        f"{line['row']} against {line['against']} ({line['difference']:+.2f} points, Holm p {_p(line['p (Holm)'])})"
        for line in pairs.to_dict("records")
        if line["p (Holm)"] < SIGNIFICANT
    ]
    if not tested:
        return "No pair of rows can be tested: that takes two seeds of either, which differ."
    return f"Of {tested} pairs of rows that can be tested, {'; '.join(far) or 'none'} differ{'s' * (len(far) < 2)} beyond chance."


def fidelity_verdict(found: dict) -> str:
    """One sentence: whether students that look where the teacher looks are more accurate, as far as this grid shows.

    Args:
        found: of `fidelity`.
    """
    if not math.isfinite(found["p"]):
        return f"{found['rows']} rows are too few to tell: three are needed."
    span = f"Pearson's r {found['pearson']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
    answer = "no relation is detected"
    if found["p"] < SIGNIFICANT:
        answer = f"the {'more' if found['pearson'] > 0 else 'less'} alike, the more accurate"
    return f"Over {found['cells']} students of {found['rows']} rows {answer} ({span}, p {_p(found['p'])})."


def _p(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"= {value:.2g}"


def short_table(summary: pd.DataFrame) -> pd.DataFrame:
    """The columns of a summary to read first, as text narrow enough for a page: mean, seeds, difference, corrected p.

    Args:
        summary: of `summary`.
    """
    measure = summary.columns[1]
    digits = 2 if "%" in measure else 3

    def shown(line: dict) -> tuple[str, ...]:
        mean, seeds, difference, p = "–", str(line["seeds"]), "–", "–"
        if line["seeds"]:
            half = f" ± {line['± 95 %']:.{digits}f}" if math.isfinite(line["± 95 %"]) else ""
            mean = f"{line[measure]:.{digits}f}{half}"
        if line["seeds"] < line["of"]:
            why = f" ({line['unfinished']})" if line["unfinished"] else ""
            seeds = f"{line['seeds']} of {line['of']}{why}"
        if not line["against"]:
            difference = "baseline"
        elif line["pairs"]:
            difference = f"{line['difference']:+.{digits}f}"
        if math.isfinite(line["low"]):
            difference += f" [{line['low']:+.{digits}f}, {line['high']:+.{digits}f}]"
        if math.isfinite(line["p (Holm)"]):
            p = _p(line["p (Holm)"]).removeprefix("= ")
        return line["row"], mean, seeds, difference, p

    columns = ["row", measure, "seeds", "difference [95 %]", "p (Holm)"]
    return pd.DataFrame(map(shown, summary.to_dict("records")), columns=columns)


def by_class(outcomes: Iterable[Outcome]) -> pd.DataFrame:
    """The agreement of teacher and student in each class, a line a cell and class; cells without it are left out.

    Returns:
        columns row, seed, class, agreement (mean cosine of both probes over the class's test images, -1..1), half (of its
        95 % interval over images), count (images).
    """
    lines: list[tuple] = []
    for cell, artifact, _, _ in outcomes:
        if artifact is not None and (found := artifact.json("agreement.json")):
            parts = (found[part] for part in ("classes", "cosine", "half", "count"))
            lines += [(cell.name, int(cell.seed), *line) for line in zip(*parts, strict=True)]
    frame = pd.DataFrame(lines, columns=BY_CLASS)
    return frame.drop_duplicates(["row", "seed", "class"], ignore_index=True)


def histories(outcomes: Iterable[Outcome]) -> dict[str, list[list[dict]]]:
    """{row: [the student's history for each finished seed]}, every row, as `plots.ablation_curves` takes it."""
    found: dict[str, list] = {}
    for outcome in outcomes:
        runs = found.setdefault(outcome.cell.name, [])
        if outcome.artifact is not None:
            runs.append(outcome.artifact.json("history.json"))
    return found


def fidelity(tidy: pd.DataFrame) -> dict:
    """Does a student that looks where its teacher looks also classify better: correlation of agreement and accuracy.

    Over all finished cells that have an agreement; seeds of a row are one cluster, see `intervals.correlation`.

    Returns:
        {"pearson", "low", "high" (95 %, rows resampled), "spearman", "p" (of rows, by putting them in other orders),
        "cells", "rows"}; NaN but for the counts with fewer than three rows. With three rows p cannot be below 1/6, with four
        not below 1/24.
    """
    cells = tidy.dropna(subset=[ACCURACY, "agreement"])
    found = intervals.correlation(cells["agreement"], cells[ACCURACY], list(cells["row"]))
    return {name: found[name] for name in ("pearson", "low", "high", "spearman", "p")} | {
        "cells": found["count"],
        "rows": found["clusters"],
    }


def sizes(outcomes: Sequence[Outcome]) -> str:
    """What the students of a grid are and learned from, in words, with a range where cells differ."""
    finished = [o.artifact.metrics for o in outcomes if o.artifact is not None]
    configs = [outcome.cell.config() for outcome in outcomes]

    def span(values) -> str:
        low, high = min(values, default=0), max(values, default=0)
        return f"{low:,}" if low == high else f"{low:,} to {high:,}"

    models = " and ".join(sorted({display_name(config.student.model) for config in configs}))
    sources = " and ".join(sorted({config.source for config in configs}))
    epochs = span([c.student.epochs for c in configs])
    return (
        f"{models}, {span([m['train_images'] for m in finished])} images of {sources}, "
        f"{epochs} epoch{'s' * (epochs != '1')}, "
        f"{span([m['test_images'] for m in finished])} test images"
    )


def crossed(tidy: pd.DataFrame) -> list[tuple[str, str]]:
    """The one pair of settings that a grid crosses, [] if its rows differ in fewer, in more, or in no product of two."""
    names = list(tidy.columns[2 : tidy.columns.get_loc(ACCURACY)])
    if len(names) != 2 or min(tidy[name].nunique() for name in names) < 2:
        return []
    product = tidy[names[0]].nunique() * tidy[names[1]].nunique()
    whole = tidy["row"].nunique() == len(tidy[names].drop_duplicates()) == product
    return [(names[0], names[1])] if whole else []
