"""Pages of notebooks and of two runs: what a reader sees first, what is folded, and how a page is made again."""

import json
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup

from dfkd_lib.cli import main
from dfkd_lib.core import WorkbenchError
from dfkd_lib.pipeline import html
from dfkd_lib.pipeline.compare import artifact_rows, write_comparison
from dfkd_lib.pipeline.index import write_index
from dfkd_lib.reporting.results import metrics_of

SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 90 20"><path d="M0 0h9"/></svg>'
CELL = (
    'preset = "quick"  # preset\nout_dir = "r"  # reports\nepochs = 3  # passes\nlr = 0.1  # rate'
)
EVIL = "<script>alert(1)</script>"


def figure(name: str, caption: str, kind: str = "figures") -> list:
    """The two outputs that `Report.figure` and `Report.table` leave in a cell."""
    pictured = {"figures": {"image/png": "AAAA"}, "tables": {"text/html": "<table></table>"}}
    note = {"kind": kind, "name": name, "caption": caption, "paper": "A Figure 1"}
    note["keys"] = ["gan-1", "student-2"]
    below = output({"text/markdown": f"*{caption}*"}, {"kind": "caption"})
    return [output(pictured[kind], note), below]


def output(data: dict, note: object) -> nbformat.NotebookNode:
    return nbformat.v4.new_output("display_data", data, metadata={"dfkd": note})


def cells_of(tag) -> list[str]:
    return [cell.get_text() for cell in tag.find_all("td")]


@pytest.fixture
def make_page(tmp_path, monkeypatch):
    """A function that writes an executed notebook and its report, and returns its page."""

    def make(values: dict, saved: dict | None = None, cells: list | None = None) -> BeautifulSoup:
        code = nbformat.v4.new_code_cell
        shown = code("rep.figure(f)", metadata={})
        shown.outputs = [*figure("f", "first"), *figure("t", "numbers", "tables")]
        shown.outputs += figure("g", "second")
        made = [
            nbformat.v4.new_markdown_cell("# A title\n\nOne paragraph.\n\n**Reads** all."),
            code(CELL, metadata={"tags": ["parameters"]}),
            code("epochs = 5", metadata={"tags": ["injected-parameters"]}),
            nbformat.v4.new_markdown_cell("## Students & teachers"),
            shown,
            code("def step(): ...", metadata={"tags": ["edit-me"]}),
        ]
        headline = {"metric": "acc", "label": "student", "percent": True, "size": "{epochs} epochs"}
        metadata = {"papermill": {"parameters": values}, "dfkd": {"headline": [headline]}}
        (tmp_path / "metrics").mkdir(exist_ok=True)
        (tmp_path / "figures").mkdir(exist_ok=True)
        (tmp_path / "figures" / "f.svg").write_text(SVG)
        report = {"notebook": "10_x", "metrics": {"acc": [0.5, 0.6, 0.7]}, **(saved or {})}
        (tmp_path / "metrics" / "10_x.json").write_text(json.dumps(report))
        notebook = nbformat.v4.new_notebook(cells=cells or made, metadata=metadata)
        nbformat.write(notebook, tmp_path / "10_x.ipynb")
        html.write_notebook_page(tmp_path / "10_x.ipynb", tmp_path / "10_x.html")
        return BeautifulSoup((tmp_path / "10_x.html").read_text(), "html.parser")

    return make


def test_a_page_opens_with_title_paragraph_and_headlines(make_page):
    page = make_page({"preset": "smoke", "epochs": 5})
    assert page.h1.get_text() == "A title" and page.title.get_text() == "A title"
    assert page.select_one(".summary").get_text(strip=True) == "One paragraph."
    card = page.select_one(".card").get_text(" ", strip=True)
    assert card == "student 60.00 ± 24.84 % n = 3 · 5 epochs"  # 4.303 x 10 / sqrt(3)
    links = {a["href"]: a.get_text() for a in page.select(".contents a")}
    assert list(links.values()) == ["Settings", "Students & teachers"]
    assert all(page.find(id=target.removeprefix("#")) for target in links)


def test_settings_are_what_differs_from_the_preset(make_page):
    page = make_page({"preset": "smoke", "epochs": 5, "out_dir": "r"})
    tables = page.select("article > .scroll > table")
    assert cells_of(tables[0].tbody) == ["epochs", "5", "3", "passes"]
    folded = page.select_one("article > details")
    assert "lr" in folded.get_text() and "open" not in folded.attrs
    assert "epochs = 3" not in page.get_text() and "epochs = 5" not in page.get_text()
    again = "dfkd run --profile smoke --only 10 --set 10.epochs=5 --out r"
    assert page.select_one(".command").get_text() == again
    assert "unchanged" in make_page({"preset": "smoke", "epochs": 3}).article.get_text()


def test_settings_of_a_configuration_stand_for_the_parameters_that_choose_them(make_page):
    settings = {
        "weights.kd": [0.2, 0.1, "rate", "lr"],
        "seeds": [[0, 1], [0, 1], "", ""],
        "epochs": [3, 3, "", ""],
    }
    page = make_page({"preset": "smoke", "epochs": 3, "lr": 0.2}, {"settings": settings})
    changed = page.select_one("article table").tbody
    assert cells_of(changed) == ["weights.kd", "0.2", "0.1", "rate"]
    assert "--set 10.lr=0.2" in page.select_one(".command").get_text()


def test_code_is_folded_and_figures_have_numbers_captions_and_keys(make_page):
    page = make_page({})
    captions = [c.b.get_text() for c in page.select("figcaption")]
    assert captions == ["Figure 1.", "Table 1.", "Figure 2."]
    folds = page.select("details.code")  # the last is to be edited
    assert ["open" in fold.attrs for fold in folds] == [False, True]
    keys = [c.details.get_text(" ", strip=True) for c in page.select("figcaption")]
    assert keys == ["2 artifacts gan-1 student-2"] * 3
    svg, png = page.select("figure.figure img")
    assert svg["src"].startswith("data:image/svg+xml")
    assert png["src"] == "data:image/png;base64,AAAA"
    assert page.get_text().count("first") == 1, "the caption below a figure is not repeated"


def test_hostile_notes_harm_nothing(make_page):
    cell = nbformat.v4.new_code_cell("1")
    notes = [
        {"kind": "figures", "name": "../secret", "caption": EVIL},
        {"kind": "figures", "name": "f", "caption": EVIL, "paper": [EVIL], "keys": EVIL},
        {"kind": "tables", "name": "t", "caption": 5, "keys": [EVIL, 7]},
        {"kind": EVIL},
        EVIL,
    ]
    cell.outputs = [output({"text/html": EVIL}, note) for note in notes]
    settings = {EVIL: [EVIL, "x", EVIL]}
    page = make_page({"preset": EVIL}, {"settings": settings}, [cell])
    assert not page.find("script") and len(page.select("figure")) == 2


def run_folder(folder: Path, metrics: dict, parameters: dict, artifacts: list) -> Path:
    """A run's folder with one notebook, one figure and these results."""
    for part in ("metrics", "figures"):
        (folder / part).mkdir(parents=True)
    (folder / "figures" / "f.svg").write_text(SVG)
    result = {"status": "succeeded", "seconds": 1, "parameters": parameters, "metrics": metrics}
    provenance = {
        "git": {"commit": folder.name, "dirty": True},
        "versions": {"torch": folder.name, "timm": "1"},
    }
    results = {"profile": "smoke", "notebooks": {"10_x": result}, "provenance": provenance}
    (folder / "results.json").write_text(json.dumps(results))
    saved = {"figures": [{"name": "f", "caption": EVIL}], "artifacts": artifacts}
    (folder / "metrics" / "10_x.json").write_text(json.dumps(saved))
    return folder


def artifacts(student: str, kd_loss: str) -> list[dict]:
    functions = {"teacher-1": {"fit": "1"}, student: {"kd_loss": kd_loss, "fit": "1"}}
    return [{"key": key, "code": {"functions": table}} for key, table in functions.items()]


@pytest.fixture
def two_runs(tmp_path):
    a = {"acc": [1.0, 2.0, 3.0], "same": 1, "two": [1.0, 2.0], "word": "old"}
    b = {"acc": [2.0, 4.0, 3.0], "same": 1, "two": [2.0, 3.0], "word": "new"}
    a["deep"], b["deep"] = {"x": [[1, 2], [3, 4]]}, {"x": [[1, 2], [3, 5]]}
    ours = {"lr": 0.1, "epochs": 3, "out_dir": "a", EVIL: EVIL}
    theirs = {"lr": 0.2, "epochs": 3, "out_dir": "b"}
    return (
        run_folder(tmp_path / "a", a, ours, artifacts("student-1", "1")),
        run_folder(tmp_path / "b", b, theirs, artifacts("student-2", "2")),
    )


def test_two_runs_are_compared_on_one_page(two_runs, tmp_path, capsys):
    a, b = two_runs
    assert main(["compare", str(a), str(b), "--out", str(tmp_path / "out")]) == 0
    page = BeautifulSoup((tmp_path / "out" / "compare.html").read_text(), "html.parser")
    rows = [cells_of(row) for row in page.select("tbody tr")]
    for row in (
        ["version of torch", "a", "b"],
        ["10_x", "lr", "0.1", "0.2"],
        ["10_x", EVIL, EVIL, "–"],
        ["10_x", "student", "0", "student-1", "student-2", "kd_loss"],
        # Paired: differences 1, 2, 0: mean 1, half width 4.303 / sqrt(3), t = sqrt(3), p of two degrees of freedom.
        ["10_x", "acc", "2 ± 2.484", "3 ± 2.484", "+1 [-1.48, +3.48]", "0.23"],
        ["10_x", "two", "1, 2 (n = 2)", "2, 3 (n = 2)", "+1", ""],
        ["10_x", "deep.x[1]", "3, 4 (n = 2)", "3, 5 (n = 2)", "+0.5", ""],
        ["10_x", "word", "old", "new", "", ""],
    ):
        assert row in rows
    assert not {"epochs", "out_dir", "same"} & {row[1] for row in rows}
    text = page.get_text()
    assert "2 metrics are equal" in text and "version of timm" not in text
    assert len(page.select(".pair figure")) == 2 and not page.find("script")
    assert "--out" in page.select_one(".command").get_text()
    same = write_comparison(a, a, None, "").read_text()
    assert "No parameter differs" in same and "No metric differs" in same
    assert "same artifacts" in same


def test_code_that_a_run_did_not_record_is_not_said_to_differ():
    recorded = [{"key": "student-1", "code": {"functions": {"kd_loss": "a", "step": "b"}}}]
    row = ("student", "0", "student-1", "student-2")
    assert artifact_rows(recorded, [{"key": "student-2"}]) == [(*row, "not recorded")]
    other = [{"key": "student-2", "code": {"functions": {"kd_loss": "c", "step": "b"}}}]
    assert artifact_rows(recorded, other) == [(*row, "kd_loss")]
    alone = ("student", "0", "student-1", "", "kd_loss, step")
    assert artifact_rows(recorded, []) == [alone]


def test_what_is_shown_in_place_of_something_else_is_said_in_red(make_page, two_runs):
    text = f"{EVIL} was missing"
    pages = [make_page({"preset": "smoke"}, {"metrics": {"acc": [0.5], "fallback": text}})]
    file = two_runs[1] / "results.json"
    results = json.loads(file.read_text())
    results["notebooks"]["10_x"]["metrics"]["fallback"] = text
    results["notebooks"]["10_x"]["peak_memory_mb"] = 1
    file.write_text(json.dumps(results))
    page = write_comparison(*two_runs, None, "").read_text()
    pages.append(BeautifulSoup(page, "html.parser"))
    hardware = {"cpu": "", "cores": 1, "memory_gib": 1, "system": "", "gpu": ""}
    known = {"seeds": {}, "started": "", "seconds": 1, "command": ""}
    results["provenance"] |= {"hardware": hardware, **known}
    page = write_index(two_runs[1], results, {}).read_text()
    pages.append(BeautifulSoup(page, "html.parser"))
    for page in pages:
        (banner,) = page.select("header .fallback")
        assert banner.get_text().endswith(f"10_x: {text}") and not page.find("script")
    assert not make_page({"preset": "smoke"}).select(".fallback")


@pytest.mark.parametrize(
    "content", [None, "{", "[]", '{"notebooks": []}', '{"notebooks": {"10_x": 5}}']
)
def test_what_is_no_run_is_refused(two_runs, content, capsys):
    path = two_runs[1] / "results.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(WorkbenchError, match="no folder of a run"):
        write_comparison(*two_runs, None, "")
    assert main(["compare", *map(str, two_runs)]) == 2 and "fix" in capsys.readouterr().err


def test_lists_that_are_no_repeats_are_text():
    found = dict(metrics_of({"seeds": [0, 1], "acc": [0.5, None], "flag": True, "n": 3}))
    assert found == {"seeds": "0, 1", "acc": "0.5, None", "flag": "True", "n": [3.0]}
