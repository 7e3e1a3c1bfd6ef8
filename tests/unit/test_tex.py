"""LaTeX of tables and of a paper's folder: every character escaped, numbers aligned, compiled where a TeX is installed."""

import json
import math
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from dfkd_lib import plots
from dfkd_lib.core import WorkbenchError
from dfkd_lib.reporting import tex
from dfkd_lib.reporting.report import Report

HOSTILE = (
    r"a_b & 50 % #1 {x} ~y^2 \input{/etc/passwd} $z$ <i> ± λ → − × ² ≥ – Fréchet “q” 10⁻³ 日本 ✓"
)
TABLE = pd.DataFrame(
    {
        HOSTILE: [HOSTILE, "", "line\n\nbreak"],
        "accuracy (%)": [97.4812, 9.5, math.nan],
        "n": [3, 12, 5],
        "small": [1e-9, 1.0, 3.0],
    }
)


def written(tmp_path, table, **how):
    report = Report("10_x", tmp_path)
    report.table(table, "table", "caption 5 % of λ_2", **how)
    report.save()
    return (tmp_path / "tables" / "table.tex").read_text()


def compiled(folder, name):
    """The PDF of a file in a folder, by the TeX that is installed."""
    program = shutil.which("pdflatex")
    if program is None:
        pytest.skip("no TeX is installed")
    words = [program, "-interaction=nonstopmode", "-halt-on-error", name]
    done = subprocess.run(words, cwd=folder, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stdout.decode("latin1")[-2000:]
    return (folder / name).with_suffix(".pdf").read_bytes()


def test_no_character_is_left_that_latex_would_read_otherwise(tmp_path):
    text = written(tmp_path, TABLE)
    assert text.isascii() and "/etc/passwd" in text and r"\input" not in text
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0]
    left = re.sub(r"\\\\|\\[A-Za-z]+|\\['\"`^~#$%&_{}]", "", body)
    assert not re.search(r"[#$%~\\]", left) and left.count("&") == 3 * 3
    assert r"\begin{tabular}{lrrr}" in text and r"\toprule" in text
    assert text.count("{") == text.count("}") + text.count(r"{\{}") - text.count(r"{\}}")


@pytest.mark.parametrize(
    "values, shown",
    [
        ([0.5, 0.25], ["0.5000", "0.2500"]),
        ([97.4812, 9.5, math.nan], ["97.48", "9.50", "–"]),
        ([1e-9, 1.0, 3.0], ["1e-09", "1", "3"]),  # many decades apart: each has its own
        ([1234.5, 2.0], ["1234", "2"]),
        ([0.0, 0.0], ["0.000", "0.000"]),
        ([-3.0, 2.5], ["-3.000", "2.500"]),
        (["97.5 ± 0.2", None], ["97.5 ± 0.2", "–"]),
        ([math.inf, 1.0], ["–", "1.000"]),
        ([np.int64(3), np.int64(40)], [3, 40]),
        ([np.float32(0.5), np.float64(2)], ["0.500", "2.000"]),
    ],
)
def test_cells(values, shown):
    assert tex.cells(pd.DataFrame({"a": values}), 4)["a"].tolist() == shown


def test_the_best_stands_in_bold_and_alone_only_where_there_is_one(tmp_path, monkeypatch):
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda thing, **_: shown.append(thing))
    table = pd.DataFrame({"a": [0.1, 0.3, 0.3], "b": [2.0, 1.0, 3.0], "c": [1, 1, 1]})
    text = written(tmp_path, table, best={"a": "max", "b": "min", "c": "max"})
    assert re.findall(r"\\textbf{([^}]*)}", text) == ["0.3000", "1.000", "0.3000"]
    html = shown[0].to_html()
    assert html.count("font-weight: bold") >= 1
    for best in ({"z": "max"}, {"a": "most"}):
        with pytest.raises(WorkbenchError, match="there is no"):
            written(tmp_path, table, best=best)


@pytest.fixture
def run(tmp_path):
    """A folder as runs leave it: two figures, one beside a paper's, and a table."""
    report = Report("10_x", tmp_path / "run")
    figure, axes = plots.new_figure()
    axes.plot([1, 2], label="λ = 0.1 ± 2")
    axes.set_title("Fréchet")
    axes.legend()
    report.figure(figure, "curve", "50 % of λ", paper="A Figure 10")
    report.figure(figure, "own", "no paper's")
    report.table(TABLE, "scores", HOSTILE, paper="A Table 4")
    report.save()
    return tmp_path / "run"


def test_figures_hold_truetype_fonts_and_text(run):
    """Whatever the settings are when a file is written: submission systems refuse Type 3."""
    content = (run / "figures" / "curve.pdf").read_bytes()
    assert b"/FontFile2" in content and b"/Type3" not in content
    assert "λ = 0.1 ± 2" in (run / "figures" / "curve.svg").read_text()


def test_a_papers_folder_has_its_numbers_and_compiles(run, tmp_path):
    readme = tex.collect(run, tmp_path / "figures")
    names = {path.name for path in readme.parent.iterdir()}
    assert names == {"README.tex", "A_Figure_10.pdf", "own.pdf", "A_Table_4.tex"}
    text = readme.read_text()
    # A page each: LaTeX holds back no more than some tens of figures.
    assert text.count(r"\clearpage") == 2
    assert text.isascii() and r"\input{A_Table_4}" in text and "{A_Figure_10.pdf}" in text
    assert compiled(readme.parent, "README.tex").startswith(b"%PDF")


def test_two_of_one_number_have_names_of_their_own(run, tmp_path):
    page = run / "metrics" / "10_x.json"
    content = json.loads(page.read_text())
    content["figures"][1]["paper"] = "A Figure 10"
    page.write_text(json.dumps(content))
    folder = tex.collect(run, tmp_path / "out", ["curve", "own"]).parent
    assert {p.name for p in folder.glob("*.pdf")} == {"A_Figure_10.pdf", "A_Figure_10_own.pdf"}


def test_what_is_not_there_is_refused(run, tmp_path):
    with pytest.raises(WorkbenchError, match="(?s)'cruve'.*did you mean 'curve'"):
        tex.collect(run, tmp_path / "out", ["cruve"])
    with pytest.raises(WorkbenchError, match="no run in this folder"):
        tex.collect(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()
