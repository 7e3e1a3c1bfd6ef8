"""What a notebook leaves behind: files of every kind, JSON that can be read back, text that stays text."""

import json
import math
from datetime import date

import numpy as np
import pandas as pd
import pytest

from dfkd_lib import plots, presets
from dfkd_lib.core import WorkbenchError, resolve
from dfkd_lib.core.artifacts import Store
from dfkd_lib.reporting import report
from dfkd_lib.reporting.report import Report, accuracy_by_share, over, over_seeds

HOSTILE = "<script>alert(1)</script>&\"'_%$#"


@pytest.fixture
def shown(monkeypatch):
    things = []
    monkeypatch.setattr("IPython.display.display", lambda thing, metadata: things.append(thing))
    return things


def test_a_report_leaves_figures_tables_and_metrics(tmp_path, shown):
    rep = Report("10_x", tmp_path, profile="smoke")
    figure, ax = plots.new_figure()
    ax.plot([1, 2])
    rep.figure(figure, "fig01", "a caption", paper="A Fig. 1")
    table = pd.DataFrame({"name": ["a", HOSTILE], "value": [0.123456789, math.nan]})
    rep.table(table, "table01", "numbers")
    rep.metric("accuracy", np.float32(0.5))
    rep.metric("list", [np.int64(1), 2.0, math.inf])
    art = Store(tmp_path / "artifacts").get_or_make("stage", {"a": 1}, lambda work: {"m": 1})
    rep.artifact(art, art)
    rep.figure(figure, "fig02", "of all that was reported before")
    rep.figure(figure, "fig03", "of none", artifacts=[])
    saved = json.loads(rep.save().read_text())
    assert saved["metrics"] == {"accuracy": 0.5, "list": [1, 2.0, None]}
    assert saved["profile"] == "smoke" and saved["seconds"] >= 0 and saved["peak_memory_mb"] > 10
    assert [entry["keys"] for entry in saved["figures"]] == [[], [art.key], []]
    first = {"name": "fig01", "caption": "a caption", "paper": "A Fig. 1", "keys": []}
    assert saved["figures"][0] == first
    assert [(a["key"], a["cached"]) for a in saved["artifacts"]] == [(art.key, False)]
    assert figure._repr_png_().startswith(b"\x89PNG")  # shown as a picture
    for path in ("figures/fig01.svg", "figures/fig01.pdf", "tables/table01.tex"):
        assert (tmp_path / path).stat().st_size > 0
    assert pd.read_csv(tmp_path / "tables" / "table01.csv")["name"][1] == HOSTILE


def test_a_fallback_is_said_and_noted(tmp_path, shown):
    rep = Report("10_x", tmp_path)
    rep.fallback("", "")
    assert not shown and "fallback" not in rep.data["metrics"]
    rep.fallback("no weights", "", f"no {HOSTILE}")
    assert rep.data["metrics"]["fallback"] == f"no weights; no {HOSTILE}"
    (said,) = shown
    assert "color" in said.data and "<script>" not in said.data


def test_a_configuration_is_noted_beside_its_preset(tmp_path):
    """Notebook 50's method is known, so its preset stands beside it; another's is beside its class's defaults."""
    config = presets.load("early", "smoke", "passes=7")
    saved = json.loads(Report("50_early_kd", tmp_path, "smoke", config).save().read_text())
    assert saved["settings"]["passes"][:2] == [7, presets.load("early", "smoke")["passes"]]
    assert saved["settings"]["images"][:2] == [400, 400] and saved["settings"]["images"][2]
    photographs = presets.load("early", "smoke", data="cifar10")
    saved = json.loads(Report("50_early_kd", tmp_path, "smoke", photographs).save().read_text())
    value, before = saved["settings"]["patch_size"][:2]
    assert value == before == 8 != presets.load("early", "smoke")["patch_size"], (
        "its images' preset"
    )
    alone = json.loads(Report("99_mine", tmp_path, "smoke", config).save().read_text())
    assert alone["settings"]["images"][:2] == [400, type(config)()["images"]]
    assert json.loads(Report("10_x", tmp_path).save().read_text())["settings"] == {}


@pytest.mark.parametrize(
    "seeds, text",
    [
        ((3,), "seed 3"),
        ((0, 1), "mean over seeds 0,1"),
        ((0, 1, 2), "mean and 95 % interval over seeds 0,1,2"),
    ],
)
def test_a_caption_promises_no_interval_of_two_seeds(seeds, text):
    runs = [[{"epoch": 1, "acc": 0.1 * seed}] for seed in seeds]
    means, bands = over_seeds({"a": runs}, "acc", 100)
    assert over(seeds) == text and len(means["a"]) == 1
    # Two seeds are shown themselves, as [seed][epoch].
    expected = {1: set(), 2: {"seeds"}, 3: {"low", "high"}}
    assert set(bands.get("a", ())) == expected[len(seeds)]
    if len(seeds) == 2:
        assert bands["a"]["seeds"] == [[0], [10]]
    if len(seeds) == 3:  # its half width of 24.8 is more than the mean of 10
        assert 0 < bands["a"]["low"][0] < 10 < bands["a"]["high"][0] < 100


def test_text_of_a_table_stays_text(tmp_path, shown):
    rep = Report("10_x", tmp_path)
    rep.table(pd.DataFrame({HOSTILE: [HOSTILE, 1.5, None]}), "table", "caption")
    html = next(thing for thing in shown if hasattr(thing, "to_html")).to_html()
    assert "<script>alert" not in html and html.count("&lt;script&gt;") == 2 and "1.5" in html


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """The folder of the lab, of these tests alone, with an earlier day; no kernel of `dfkd run`."""
    monkeypatch.setattr(report, "LAB", str(tmp_path / "lab"))
    monkeypatch.delenv(report.BATCH, raising=False)
    (tmp_path / "lab" / "2020-01-02").mkdir(parents=True)
    (tmp_path / "lab" / "2020-01-01").mkdir()
    return tmp_path / "lab"


def test_work_by_hand_has_a_folder_a_day_and_carries_its_parameters(lab):
    config, before = presets.load("early", "smoke", "passes=7 seeds=3,4"), date.today()
    rep = Report("50_early_kd", "", "smoke", config)
    assert rep.out in {lab / str(day) for day in (before, date.today())}
    earlier = [lab / "2020-01-02", lab / "2020-01-01"]
    assert rep.places == [rep.out, *earlier, resolve("reports/smoke")]
    rep.save()
    parameters = json.loads((rep.out / "50_early_kd.yaml").read_text())
    assert parameters == {"preset": "smoke", "overrides": "seeds=3,4 passes=7"}
    assert presets.load("early", **parameters) == config


def test_work_by_hand_takes_no_batch_runs_folder_and_no_unwritable_one(lab, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkbenchError, match="report folder cannot be written to"):
        Report("10_x", tmp_path / "file" / "out")
    rep = Report("10_x", tmp_path)
    assert rep.places == [tmp_path] and not list(rep.save().parent.parent.glob("*.yaml"))
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(WorkbenchError, match="holds the results of dfkd run"):
        Report("10_x", tmp_path)
    Report("10_x", "")
    monkeypatch.setenv(report.BATCH, "1")
    Report("10_x", tmp_path)


def test_the_share_table_pairs_by_seed():
    class Run:
        def __init__(self, accuracy):
            self.metrics = {"accuracy": accuracy}

    def table_of(ours, baseline):
        runs = {"DearKD": [[[Run(x)] for x in ours]], "plain": [[[Run(x)] for x in baseline]]}
        return accuracy_by_share(runs, [0.25], 400)

    means, bands, table = table_of([0.5, 0.7, 0.6], [0.4, 0.5, 0.6])
    assert means == {"DearKD": [pytest.approx(60)], "plain": [pytest.approx(50)]}
    assert table.loc[0, "difference"] == pytest.approx(10) and table.loc[0, "images"] == 100
    half = 4.3027 * 10 / 3**0.5  # Student's t of two degrees of freedom, differences 10, 20, 0
    assert table.loc[0, "low"] == pytest.approx(10 - half, abs=1e-2)
    # Of 50 ± half the logit's ends: both as far from 50.
    ends = bands["plain"]["low"][0], bands["plain"]["high"][0]
    assert ends == (
        pytest.approx(50 - 50 * math.tanh(half / 50), abs=1e-2),
        pytest.approx(100 - ends[0]),
    )
    assert table.loc[0, "result"] == "no difference"
    assert table_of([0.5, 0.6, 0.7], [0.4, 0.501, 0.6])[2].loc[0, "result"] == "DearKD better"
    assert table_of([0.4, 0.501, 0.6], [0.5, 0.6, 0.7])[2].loc[0, "result"] == "plain better"
    _, bands, two = table_of([0.5, 0.7], [0.4, 0.5])  # two seeds have no interval
    assert two.loc[0, "result"] == "n = 2" and math.isnan(two.loc[0, "low"])
    assert bands == {"DearKD": {"seeds": [[50], [70]]}, "plain": {"seeds": [[40], [50]]}}
