"""Tables of an ablation: pairs by seed, corrected p, unfinished cells counted, sentences that say what is detected."""

import math
from types import SimpleNamespace

import pandas as pd
import pytest
from ablation_cells import artifact
from scipy.stats import t

from dfkd_lib.ablation import Outcome, crossed, make_cell, read_grid, sizes, table
from dfkd_lib.core import WorkbenchError
from dfkd_lib.reporting.report import Report


def outcome(row, seed, accuracy=None, agreement=None, error="", classes=None, **settings):
    """A stand-in of one cell's outcome; without an accuracy it did not finish. Accuracy in percent, of 1000 test images."""
    cell = SimpleNamespace(name=row, seed=seed, settings={"source": "real", **settings})
    if accuracy is None:
        return Outcome(cell, None, error, False)
    history = [{"epoch": 1, "test_accuracy": accuracy / 100}] * 4
    key = f"ablation_cell-{row}-{seed}"
    return Outcome(cell, artifact(key, accuracy / 100, history, agreement, classes), "", True)


def grid(rows):
    """{row: [accuracy of seed 0, 1, ...]}, None: diverged."""
    return table.tidy(
        [
            outcome(row, seed, value, error="diverged: loss inf", kd_weight=i)
            for i, (row, values) in enumerate(rows.items())
            for seed, value in enumerate(values)
        ]
    )


def test_a_line_a_cell_with_the_settings_that_differ():
    cells = [
        outcome("all", 0, 50.0, 0.9, kd_weight=1.0, temperature=4.0),
        outcome("T", 0, 75.0, kd_weight=1.0, temperature=2.0),
    ]
    frame = table.tidy(cells)
    columns = (
        "row|seed|temperature|accuracy (%)|low|high|top-5 (%)|precision (%)|recall (%)|F1 (%)|agreement|± agreement|"
        "images|epochs|parameters|seconds|state|error|key"
    )
    assert "|".join(frame) == columns
    first, second = frame.to_dict("records")
    assert (first["accuracy (%)"], first["top-5 (%)"], second["temperature"]) == (50, 100, 2)
    # Wilson at one half of 1000: ± z sqrt(1/4000 + z²/4e6) / (1 + z²/1000).
    assert (first["low"], first["high"]) == pytest.approx((46.907, 53.093), abs=1e-3)
    assert (first["images"], first["epochs"], first["seconds"]) == (30_000, 4, 61)
    assert first["agreement"] == 0.9 and math.isnan(second["agreement"])
    assert first["key"] == "ablation_cell-all-0"


def test_a_setting_that_a_cell_does_not_name_has_its_default():
    cells = [
        make_cell("all", {}, 0),
        make_cell("real", {"source": "real"}, 0),
        make_cell("other", {"seed": 5, "temperature": 2.0, "kd_weight": 1.0}, 0),
    ]
    frame = table.tidy([Outcome(cell, None, "", False) for cell in cells])
    named = ["row", "seed", "source", "temperature", "images' seed"]
    assert set(frame.columns[:5]) == set(named) and "kd_weight" not in frame
    assert list(frame["source"]) == ["augmented GAN", "real", "augmented GAN"]
    assert list(frame["images' seed"]) == [0, 0, 5] and list(frame["temperature"]) == [4, 4, 2]
    assert list(frame["state"]) == ["not run"] * 3 and list(frame["seed"]) == [0] * 3


def test_cells_that_did_not_finish_keep_their_line():
    lost = outcome("a", 1, error="diverged: loss inf"), outcome("a", 2, error="killed")
    frame = table.tidy([outcome("a", 0, 90.0), *lost, outcome("a", 3)])
    assert list(frame["state"]) == ["finished", "diverged", "failed", "not run"]
    assert frame["error"][1] == "diverged: loss inf" and frame["accuracy (%)"].count() == 1
    assert isinstance(frame["images"][0], int) and frame["images"][0] == 30_000
    assert frame["images"][1] is None


def test_a_cell_given_twice_counts_once_and_a_row_is_one_setting():
    killed = outcome("a", 0, error="killed")
    frame = table.tidy([killed, outcome("a", 0, 90.0), killed])
    assert len(frame) == 1 and frame["state"][0] == "finished"
    with pytest.raises(WorkbenchError, match="different settings"):
        table.tidy([outcome("a", 0, 90.0, temperature=1.0), outcome("a", 1, 90.0, temperature=2.0)])


def test_summary_is_the_paired_t_interval():
    told = table.summary(grid({"all": [90, 95, 80], "more": [91, 97, 83]})).set_index("row")
    half = t.ppf(0.975, 2) / math.sqrt(3)  # differences 1, 2, 3: mean 2, deviation 1
    more = told.loc["more"]
    assert more[["difference", "low", "high"]].tolist() == pytest.approx([2, 2 - half, 2 + half])
    assert more["p"] == pytest.approx(2 * t.sf(2 * math.sqrt(3), 2)) and more["pairs"] == 3
    # 90 95 80: deviations 5/3, 20/3, -25/3 → variance 175/3.
    assert told.loc["all", "accuracy (%)"] == pytest.approx(265 / 3)
    assert told.loc["all", "± 95 %"] == pytest.approx(
        t.ppf(0.975, 2) * math.sqrt(175 / 3) / math.sqrt(3)
    )
    assert math.isnan(told.loc["all", "difference"]) and told.loc["all", "against"] == ""


def test_only_seeds_that_both_rows_have_are_paired():
    told = table.summary(grid({"all": [90, 91, None], "b": [80, 83, 99]})).set_index("row")
    assert told.loc["b", "difference"] == pytest.approx(-9) and told.loc["b", "pairs"] == 2
    assert told.loc["b", "accuracy (%)"] == pytest.approx(262 / 3)
    assert told.loc["all", ["seeds", "of", "unfinished"]].tolist() == [2, 3, "1 diverged"]


def test_holm_over_the_rows_that_have_a_p():
    rows = {"all": [90, 91, 92], "b": [80, 82, 81], "c": [90, 91, 92], "d": [89, 91, 93.5]}
    told = table.summary(grid(rows | {"e": [70, None, None]}), baseline="all").set_index("row")
    p = told["p"]
    assert set(p.dropna().index) == {"b", "d"}
    assert told.loc["b", "p (Holm)"] == pytest.approx(2 * p["b"])
    assert told.loc["d", "p (Holm)"] == pytest.approx(p["d"])
    assert math.isnan(told.loc["e", "p (Holm)"])
    assert told.loc["e", "difference"] == pytest.approx(-20) and math.isnan(told.loc["e", "low"])
    assert told.loc["c", "difference"] == 0 and math.isnan(told.loc["c", "p"])


def test_the_baseline_may_be_any_row_and_must_be_one():
    frame = grid({"all": [90, 91], "without KD": [80, 82]})
    told = table.summary(frame, "without KD").set_index("row")
    assert told.loc["all", "difference"] == pytest.approx(9.5)
    assert told.loc["without KD", "against"] == ""
    with pytest.raises(WorkbenchError, match="did you mean 'without KD'"):
        table.summary(frame, "without kd")
    with pytest.raises(WorkbenchError, match="measure"):
        table.summary(frame, measure="seconds")


def test_another_measure():
    values = {"all": (0.9, 0.8), "b": (0.7, 0.5)}
    cells = [(row, *one) for row in values for one in enumerate(values[row])]
    frame = table.tidy(
        [outcome(row, seed, 90.0, value, kd_weight=row) for row, seed, value in cells]
    )
    told = table.summary(frame, measure="agreement")
    assert told.columns[1] == "agreement" and "± test" not in told
    assert told["difference"][1] == pytest.approx(-0.25)
    assert table.verdicts(told)[0].startswith("b: no difference is detected (-0.250 of agreement [")


def test_pairwise_has_every_pair_once():
    frame = table.pairwise(grid({"a": [90, 91, 92], "b": [80, 82, 81], "c": [70, 74, 71]}))
    pairs = list(zip(frame["row"], frame["against"], strict=True))
    assert pairs == [("b", "a"), ("c", "a"), ("c", "b")]
    assert frame["difference"].tolist() == pytest.approx([-10, -58 / 3, -28 / 3])
    smallest = frame["p"].idxmin()
    assert frame["p (Holm)"][smallest] == pytest.approx(3 * frame["p"][smallest])


def test_pairs_that_differ_are_said():
    frame = table.pairwise(grid({"a": [90, 91, 92], "b": [80, 81.2, 81.9], "c": [80.1, 81, 82]}))
    said = table.pairs_verdict(frame)
    assert said.startswith(
        "Of 3 pairs of rows that can be tested, b against a (-9.97 points, Holm p"
    )
    assert "; c against a (-9.97 points" in said and said.endswith("differ beyond chance.")
    assert table.pairs_verdict(frame[2:]).endswith(
        "that can be tested, none differs beyond chance."
    )
    assert "No pair" in table.pairs_verdict(table.pairwise(grid({"a": [90], "b": [80]})))


@pytest.mark.parametrize(
    "pearson, p, text",
    [
        (
            0.73,
            0.083,
            "Over 12 students of 4 rows no relation is detected (Pearson's r 0.73 [0.10, 0.90], p = 0.083).",
        ),
        (0.73, 0.01, "the more alike, the more accurate"),
        (-0.73, 0.01, "the less alike, the more accurate"),
        (math.nan, math.nan, "4 rows are too few to tell"),
    ],
)
def test_whether_looking_alike_and_knowing_more_go_together_is_said(pearson, p, text):
    found = {"pearson": pearson, "low": 0.1, "high": 0.9, "p": p, "cells": 12, "rows": 4}
    assert text in table.fidelity_verdict(found)


def test_verdicts_say_what_is_detected():
    rows = {
        "all": [90, 91, 92, None],
        "worse": [80, 81.2, 81.9, 80],
        "same": [90, 91, 92, 9],
        "shifted": [91, 92, 93, 1],
        "noise": [89, 92, 91.5, 3],
        "one": [85, None, None, None],
        "none": [None] * 4,
        "apart": [None, None, None, 90],
    }
    expected = [
        "all (the baseline): 3 of 4 seeds finished, 1 diverged.",
        "worse: worse, -9.97 points [-10.35, -9.59], Holm p = 0.00016, 3 seeds.",
        "same: equal in each of 3 seeds, so no difference is detected.",
        "shifted: +1.00 points in each of 3 seeds; without spread there is nothing to test against, so no difference is "
        "detected.",
        "noise: no difference is detected (-0.17 points [-2.75, +2.42], Holm p = 0.81, 3 seeds).",
        "one: -5.00 points from one seed; no interval, so no difference is detected; 1 of 4 seeds finished, 3 diverged.",
        "none: nothing to compare; 0 of 4 seeds finished, 4 diverged.",
        "apart: no seed in common with 'all', so nothing to compare; 1 of 4 seeds finished, 3 diverged.",
    ]
    assert table.verdicts(table.summary(grid(rows))) == expected


def test_correction_can_take_a_verdict_back():
    rows = {"all": [90, 91, 92], "a": [89, 89.7, 91.1]}
    more = rows | {f"n{i}": [90 + i, 91, 92.1] for i in range(1, 5)}
    alone, among = (table.verdicts(table.summary(grid(one)))[0] for one in (rows, more))
    assert alone.startswith("a: worse, -1.07 points") and "detected after correction" in among


def test_the_short_table_and_the_report_print_no_objects(tmp_path, capsys):
    frame = grid({"all": [90, 91], "b_1": [80, None], "c": [None, None]})
    short = table.short_table(table.summary(frame))
    assert short.values.tolist() == [
        ["all", "90.50", "2", "baseline", "–"],
        ["b_1", "80.00", "1 of 2 (1 diverged)", "-10.00", "–"],
        ["c", "–", "0 of 2 (2 diverged)", "–", "–"],
    ]
    report = Report("t", tmp_path)
    pairs, whole = table.pairwise(frame), table.summary(frame)
    shown = {"tidy": frame, "summary": whole, "short": short, "pairs": pairs}
    for name, one in shown.items():
        report.table(one, name, name)
        text = (tmp_path / "tables" / f"{name}.tex").read_text()
        assert not any(bad in text for bad in ("nan", "NA", "None", "e+", "object"))
    assert "30000" in (tmp_path / "tables" / "tidy.tex").read_text()


def test_agreement_by_class():
    halves = {"cosine": [0.9, None], "half": [0.01, None], "count": [980, 0]}
    classes = {"classes": ["0", "1"], **halves}
    frame = table.by_class(
        [outcome("a", 1, 90.0, 0.9, classes=classes), outcome("b", 1, 90.0), outcome("c", 1)]
    )
    assert list(frame) == ["row", "seed", "class", "agreement", "half", "count"]
    assert frame.iloc[0].tolist() == ["a", 1, "0", 0.9, 0.01, 980]
    assert math.isnan(frame["agreement"][1]) and len(frame) == 2
    assert list(table.by_class([])) == list(frame)


def test_histories_of_finished_seeds_by_row():
    ended = outcome("a", 0, 90.0), outcome("a", 1), outcome("a", 2, 91.0), outcome("b", 0)
    found = {row: list(map(len, runs)) for row, runs in table.histories(ended).items()}
    assert found == {"a": [4, 4], "b": []}


def test_fidelity_is_the_correlation_with_rows_as_clusters():
    cells = [
        outcome(f"r{i}", seed, 50.0 + 10 * i, 0.5 + 0.1 * i + 0.0001 * seed, kd_weight=i)
        for i in range(4)
        for seed in range(3)
    ]
    found = table.fidelity(table.tidy([*cells, outcome("r9", 0, 1.0, None), outcome("r9", 1)]))
    assert found["pearson"] == pytest.approx(1, abs=1e-5)
    assert found["spearman"] == pytest.approx(0.9487, abs=0.1)
    assert (found["cells"], found["rows"]) == (12, 4) and found["p"] == pytest.approx(2 / 24)
    assert found["low"] > 0.999
    few = table.fidelity(table.tidy(cells[:6]))
    assert (few["cells"], few["rows"]) == (6, 2)
    assert all(math.isnan(few[name]) for name in ("pearson", "low", "high", "spearman", "p"))


def test_nothing_at_all_is_an_empty_table():
    frame = table.tidy([])
    assert frame.empty and "accuracy (%)" in frame
    whole = table.summary(frame)
    for made in (whole, table.pairwise(frame), table.short_table(whole)):
        assert isinstance(made, pd.DataFrame) and made.empty and "row" in made
    assert table.verdicts(whole) == [] and table.fidelity(frame)["cells"] == 0


def test_sizes_have_a_range_where_cells_differ_and_a_product_of_two_is_seen():
    grid = {"student_epochs": [1, 3], "temperature": [2.0, 8.0]}
    cells = read_grid({"base": {"source": "real"}, "grid": grid})
    made = artifact("key", 0.5, train_images=600, test_images=100)
    outcomes = [Outcome(cell, made, "", False) for cell in cells]
    described = "DeiT xtiny, patch 4, 28 px, 600 images of real, 1 to 3 epochs, 100 test images"
    assert sizes(outcomes) == described
    (pair,) = crossed(table.tidy(outcomes))
    assert set(pair) == {"student.epochs", "temperature"}
    assert crossed(table.tidy(outcomes[:3])) == [] and crossed(table.tidy(outcomes[:2])) == []
