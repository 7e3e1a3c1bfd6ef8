"""The pipeline: every bad input is refused before a kernel starts, and whatever happens in one a report is left."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import browser
import nbformat
import psutil
import pytest
import small_notebooks
from bs4 import BeautifulSoup
from small_notebooks import write_notebooks

from dfkd_lib import pipeline
from dfkd_lib.core import WorkbenchError
from dfkd_lib.pipeline import html, unchanged
from dfkd_lib.pipeline.folder import prepare_folder
from dfkd_lib.pipeline.parameters import parse_cell

HOSTILE = "</td><script>alert(1)</script><img src=x onerror=alert(2)>&\"'"
SAVE = f"""\
import csv, json, pathlib
out = pathlib.Path(out_dir)
hostile = {HOSTILE!r}
(out / "figures/f.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 10 2"><path d="M0 0h9"/></svg>')
csv.writer(open(out / "tables/t.csv", "w")).writerows([["data set", "ours", "paper"], [hostile, "27.5", "23"]])
saved = dict(notebook="10_fine", metrics=dict(accuracy=0.97, name=hostile, epochs=epochs, interactive=interactive),
             figures=[dict(name="f", caption=hostile, paper="A Fig. 1"), dict(name="f", caption="unlisted", paper=None)],
             tables=[dict(name="t", caption=hostile, paper="A Table 2")], artifacts=[], peak_memory_mb=1, seconds=1,
             settings={{"student.epochs": [7, 3, "passes"], "seeds": [[4, 5], [4], ""]}})
json.dump(saved, open(out / "metrics/10_fine.json", "w"))"""
SHOW = """\
from IPython.display import HTML, Javascript, display
import matplotlib.pyplot as plt, pandas as pd
display(pd.DataFrame({hostile: [hostile]}), Javascript("alert(3)"), plt.plot([1, 2])[0].figure)
for epoch in range(20): print("epoch", epoch)"""
NOTEBOOKS = {
    "10_fine": [SAVE, SHOW],
    "20_gan_fid": ["before = 1", f"raise ValueError('boom ' + {HOSTILE!r})", "never = 1"],
    "30_classification_kd": ["1"],
    "40_killed": ["import os, signal", "os.kill(os.getpid(), signal.SIGKILL)"],
    "90_summary": ["print('summary')"],
}


STATUSES = dict(
    zip(NOTEBOOKS, ("succeeded", "failed", "skipped", "failed", "succeeded"), strict=True)
)


def statuses(results: dict) -> dict[str, str]:
    return {name: result["status"] for name, result in results["notebooks"].items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_notebooks(tmp_path_factory.mktemp("notebooks"), NOTEBOOKS)


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """One run of all the notebooks above, two at a time: (output folder, results, lines)."""
    out, lines = tmp_path_factory.mktemp("out"), []
    plan = pipeline.make_plan(
        "smoke", settings=["10.epochs=7"], out=str(out), jobs=2, notebooks=folder
    )

    def ended(name: str, result: dict) -> None:
        raise OSError(f"no tracker for {name}, {result['status']}")

    return out, pipeline.run(plan, lines.append, ended), lines


def plan_error(folder, **options) -> str:
    with pytest.raises(WorkbenchError) as caught:
        pipeline.make_plan(options.pop("profile", "smoke"), notebooks=folder, **options)
    return str(caught.value)


# ---- a grid of students by one command


def test_a_grid_runs_notebook_35_alone_with_that_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: {source: real}\nrows: {hot: {temperature: 8.0}}\n")
    plan = pipeline.make_plan("quick", grid=str(path), jobs=3)
    assert list(plan.notebooks) == ["35_ablation"]
    assert plan.out.name == "grid_mine" and plan.jobs == 3
    values = plan.parameters["35_ablation"]
    # The students are tasks of the run; the notebook finds them.
    assert values["grid"] == str(path) and values["jobs"] == 1
    out = tmp_path / "out"
    alone = pipeline.make_plan(
        "quick", grid=str(path), settings=["35.jobs=2"], jobs=1, out=str(out)
    )
    assert not alone.spread and alone.parameters["35_ablation"]["jobs"] == 2 and alone.out == out
    with pytest.raises(WorkbenchError, match="students are tasks of this run"):
        pipeline.make_plan("quick", grid=str(path), settings=["35.jobs=2"], jobs=2)


@pytest.mark.parametrize(
    "text, words",
    [
        ("rows: {hot: {temprature: 8.0}}", "did you mean 'weights.temperature'"),
        ("rows: [", "cannot be read"),
        ("base: {temperature: 0.0}", "temperature' is impossible"),
    ],
)
def test_a_bad_grid_is_refused_before_a_kernel_starts(tmp_path, text, words):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(WorkbenchError, match=words):
        pipeline.make_plan("quick", grid=str(path))
    with pytest.raises(WorkbenchError, match="cannot be read"):
        pipeline.make_plan("quick", grid=str(tmp_path / "absent.yaml"))
    path.write_text("rows: {hot: {temperature: 8.0}}")
    with pytest.raises(WorkbenchError, match="runs in notebook 35"):
        pipeline.make_plan("quick", only="30", grid=str(path))


# ---- refused before a kernel starts


@pytest.mark.parametrize(
    "setting, words",
    [
        ("10.epoch=1", ["10_fine", "'epoch'", "did you mean 'epochs'"]),
        ("11.epochs=1", ["notebook '11' is unknown", "10_fine"]),
        ("fien.epochs=1", ["unknown", "did you mean 10_fine"]),
        ("10.epochs=many", ["10_fine", "'epochs'", "expected: int 1..100", "'many' (str)"]),
        ("10.epochs=0", ["epochs' is impossible", "expected: int 1..100", "got: 0"]),
        ("10.overrides=width=0", ["width' is impossible"]),
        ("10.quiet=maybe", ["10_fine", "'quiet'", "expected: bool"]),
        ("10.part=nan", ["10_fine", "'part'", "finite"]),
        ("10.out_dir=x", ["set by the pipeline", "--out"]),
        ("epochs=1", ["notebook.parameter=value", "30.epochs=1"]),
        ("10.epochs", ["notebook.parameter=value"]),
    ],
)
def test_a_bad_setting_is_refused_by_name(folder, setting, words):
    message = plan_error(folder, settings=[setting])
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    "options, words",
    [
        ({"profile": "quik"}, ["'quik'", "smoke, quick, night, paper", "did you mean 'quick'"]),
        ({"only": "10,77"}, ["notebook '77' is unknown"]),
        ({"only": ""}, ["unknown"]),
        ({"only": "10", "settings": ["20.seed=1"]}, ["not to run"]),
        ({"jobs": 0}, ["--jobs", "got: 0"]),
        ({"threads": 0}, ["--threads", "got: 0"]),
        ({"hung": -1.0}, ["--hung", "got: -1"]),
        ({"scheduler": "tcp://127.0.0.1:8786", "jobs": 2}, ["exclude each other"]),
    ],
)
def test_a_bad_option_is_refused(folder, options, words):
    message = plan_error(folder, **options)
    assert all(word in message for word in words), message


def test_values_get_the_types_of_their_settings(folder):
    chosen = ["rate=1", "quiet=TRUE", "teacher=train", "seeds=3", "width=16", "epochs=1_0"]
    plan = pipeline.make_plan("smoke", settings=[f"10.{c}" for c in chosen], notebooks=folder)
    values = plan.parameters["10_fine"]
    wanted = {"rate": 1.0, "quiet": True, "teacher": "train", "seeds": "3", "epochs": 10}
    assert {name: values[name] for name in wanted} == wanted and isinstance(values["rate"], float)
    assert values["overrides"].split() == ["width=16"]
    assert values["interactive"] is False and values["preset"] == "smoke"
    assert os.path.isabs(values["out_dir"])


@pytest.mark.parametrize("source", ["x = [1, 2]", "x = None", "x = y = 1", "import os", "x += 1"])
def test_a_parameters_cell_holds_scalars_only(source):
    with pytest.raises(WorkbenchError, match="name = scalar"):
        parse_cell(source, "10_fine")


@pytest.mark.parametrize(
    "parameters, missing",
    [("epochs = 1", "artifacts_dir"), (small_notebooks.OWN + "epochs = 1", "overrides")],
)
def test_a_notebook_needs_the_pipelines_own_parameters_and_a_damaged_one_is_named(
    tmp_path, parameters, missing
):
    write_notebooks(tmp_path, {"10_bare": ["1"]}, parameters)
    assert f"no parameter '{missing}'" in plan_error(tmp_path)
    (tmp_path / "10_torn.ipynb").write_text('{"cells": [')
    assert "10_torn.ipynb" in plan_error(tmp_path, only="10_torn")


@pytest.mark.parametrize("place", ["below a file", "in /proc"])
def test_an_unwritable_folder_is_refused_before_a_kernel_starts(folder, tmp_path, place):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out" if place == "below a file" else Path("/proc/dfkd")
    plan = pipeline.make_plan("smoke", out=str(out), notebooks=folder)
    with pytest.raises(WorkbenchError, match="output folder cannot be written to"):
        pipeline.run(plan, pytest.fail)


# ---- what a run leaves


def test_every_notebook_has_its_status_and_who_is_told_cannot_stop_the_run(finished):
    _, results, lines = finished
    assert statuses(results) == STATUSES and pipeline.exit_code(results) == 1
    assert "builds on 20_gan_fid" in results["notebooks"]["30_classification_kd"]["error"]
    text = "\n".join(lines)
    for name, status in STATUSES.items():
        assert f"not logged: OSError: no tracker for {name}, {status}" in text
    assert "10_fine starts" in text and re.search(r"10_fine succeeded after .*peak memory", text)
    assert all(f"10_fine: epoch {epoch}" in text for epoch in range(20)) and "boom" in text


def test_results_hold_what_was_promised(finished):
    out, results, _ = finished
    saved = json.loads((out / "results.json").read_text())
    assert saved["notebooks"] == results["notebooks"] and saved["profile"] == "smoke"
    fine, provenance = saved["notebooks"]["10_fine"], saved["provenance"]
    assert fine["parameters"]["epochs"] == fine["metrics"]["epochs"] == 7
    assert fine["metrics"]["interactive"] is False and fine["settings"]["student.epochs"] == [7, 3]
    assert fine["peak_memory_mb"] > 30 and fine["seconds"] > 0
    assert provenance["seeds"]["10_fine"] == "4,5" and provenance["versions"]["papermill"]
    assert {"cpu", "cores", "memory_gib", "gpu"} <= set(provenance["hardware"])
    assert provenance["started"] and provenance["seconds"] > 0 and "commit" in provenance["git"]


def test_a_failing_notebook_leaves_its_report(finished):
    out, results, _ = finished
    error = results["notebooks"]["20_gan_fid"]["error"]
    assert error.startswith("ValueError: boom ") and "in cell: raise ValueError" in error
    page = (out / "20_gan_fid.html").read_text()
    assert 'href="#failing-cell"' in page and 'id="failing-cell"' in page
    assert page.index('id="failing-cell"') < page.index("boom") < page.index("never")
    assert 'href="20_gan_fid.html#failing-cell"' in (out / "index.html").read_text()
    executed = nbformat.read(out / "20_gan_fid.ipynb", as_version=4)
    assert [o.ename for cell in executed.cells for o in cell.get("outputs", [])] == ["ValueError"]


def test_a_killed_kernel_is_no_failing_cell(finished):
    out, results, _ = finished
    error = results["notebooks"]["40_killed"]["error"]
    assert "killed by signal 9" in error and "safe:" in error and "resume" in error
    page = (out / "40_killed.html").read_text()
    assert page.index('id="failing-cell"') < page.rindex("killed by signal 9")


def test_pages_need_neither_network_nor_script(finished):
    out, _, _ = finished
    pages = list(out.glob("*.html"))
    made = set(STATUSES) - {"30_classification_kd"} | {"index"}
    assert {page.stem for page in pages} == made
    for page in pages:
        text = page.read_text()
        assert "default-src 'none'" in text
        soup = BeautifulSoup(text, "html.parser")
        assert not soup.find_all(["script", "link", "iframe", "object", "embed"]), page
        assert all(tag["src"].startswith("data:") for tag in soup.find_all(src=True)), page
        assert not soup.find_all(srcset=True) and not soup.find_all(onerror=True)
        assert not re.search(r"url\(|@import", text)
    assert "data:image/png;base64," in (out / "10_fine.html").read_text()
    assert "<math" in (out / "10_fine.html").read_text()


def test_hostile_text_is_escaped_in_the_index_and_its_links_lead_somewhere(finished):
    out, _, _ = finished
    page = (out / "index.html").read_text()
    assert "<script" not in page and "<img src=x" not in page and "&lt;script&gt;alert(1)" in page
    figures = re.findall(r'<img src="data:image/svg', page)
    assert len(figures) == 1, "one figure has a place in the paper, the other none"
    assert "A Table 2" in page and "unlisted" not in page
    for target in re.findall(r'href="([^"#]+)', page):
        assert (out / target).exists(), target


def test_running_some_again_keeps_the_others_and_marks_them(finished, folder):
    out, _, _ = finished
    copy = out.parent / "again"
    shutil.copytree(out, copy)
    results = pipeline.run(
        pipeline.make_plan("smoke", only="90", out=str(copy), notebooks=folder), lambda line: None
    )
    assert list(results["notebooks"]) == ["90_summary"] and pipeline.exit_code(results) == 0
    saved = json.loads((copy / "results.json").read_text())["notebooks"]
    assert list(saved) == list(NOTEBOOKS) and saved["10_fine"]["metrics"]["accuracy"] == 0.97
    assert saved["10_fine"]["earlier"] and "earlier" not in saved["90_summary"]


def kept(out: Path, folder: Path, again: bool = False, **options) -> list[str]:
    """The notebooks whose pages a run keeps, by what is in results.json."""
    plan = pipeline.make_plan("smoke", out=str(out), notebooks=folder, again=again, **options)
    results = pipeline.run(plan, lambda line: None)
    assert pipeline.exit_code(results) == 0
    saved = json.loads((out / "results.json").read_text())["notebooks"]
    return [name for name, result in saved.items() if result.get("unchanged")]


def test_a_notebook_runs_again_only_if_something_has_changed(tmp_path):
    save = "import json, pathlib; name = '{0}'\nsaved = dict(notebook=name, metrics={{}}, artifacts=[])\n"
    save += "json.dump(saved, open(pathlib.Path(out_dir) / f'metrics/{{name}}.json', 'w'))"
    names = ("10_a", "20_gan_fid", "30_classification_kd", "90_summary")
    parameters = small_notebooks.PARAMETERS + "\nfolder = ''"
    folder, out = tmp_path / "notebooks", tmp_path / "out"
    cells = {name: [save.format(name)] for name in names}
    write_notebooks(folder, cells, parameters)
    common = {"artifacts": str(tmp_path / "store")}
    assert kept(out, folder, **common) == []
    made = (out / "10_a.html").stat().st_mtime_ns
    assert kept(out, folder, **common) == list(names)
    assert (out / "10_a.html").stat().st_mtime_ns == made
    assert kept(out, folder, again=True, **common) == []
    # What builds on a changed one runs too, the others do not.
    changed = {**common, "settings": ["20.epochs=4"]}
    assert kept(out, folder, **changed) == ["10_a"]
    cells["30_classification_kd"].append("more = 1")
    write_notebooks(folder, cells, parameters)
    assert kept(out, folder, **changed) == ["10_a", "20_gan_fid"]
    (out / "20_gan_fid.html").unlink()
    assert kept(out, folder, **changed) == ["10_a"]
    # Another run of what it summarises, with other parameters and back: its page is older than theirs.
    assert kept(out, folder, only="10_a", **common) == ["10_a"]
    assert kept(out, folder, only="10_a", again=True, **common) == []
    assert kept(out, folder, only="90", **common) == []
    assert kept(out, folder, **changed) == list(names)
    # Files that a parameter names may have changed.
    named = {**common, "settings": [*changed["settings"], f"10.folder={tmp_path}"]}
    for _ in range(2):
        assert kept(out, folder, **named) == ["20_gan_fid", "30_classification_kd"]


@pytest.mark.parametrize(
    "text, named",
    [
        ("mnist", False),
        ("student.epochs=3 gan.lam=0.1", False),
        ("x=1 " * 300, False),
        ("a\0b", False),
        ("student.epochs=3 data.name='my/data'", True),
        ("README.md", True),
    ],
)
def test_a_parameter_that_names_files_is_known(text, named):
    assert unchanged._names_files({"data": text, "out_dir": "/reports", "seed": 3}) == named


def test_two_runs_may_not_share_a_folder(folder, tmp_path):
    lock = prepare_folder(tmp_path)
    with pytest.raises(WorkbenchError, match="another run is writing"):
        prepare_folder(tmp_path)
    lock.release()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_ends_the_kernel_and_keeps_what_is_finished(tmp_path, number):
    sleepy = "import os, pathlib, time; pathlib.Path(out_dir, 'pid').write_text(str(os.getpid())); time.sleep(300)"
    notebooks = {"10_fine": ["1"], "20_sleepy": [sleepy], "90_summary": ["1"]}
    folder = write_notebooks(tmp_path / "n", notebooks, small_notebooks.OWN, method="")
    out = tmp_path / "out"
    # A shell's background jobs ignore SIGINT, and pass that on: the run under test must not.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from pathlib import Path; from dfkd_lib import pipeline as p; "
        f"plan = p.make_plan('smoke', jobs=2, out={str(out)!r}, notebooks=Path({str(folder)!r})); "
        "sys.exit(p.exit_code(p.run(plan)))"
    )
    words, cwd = [sys.executable, "-c", code], Path(__file__).parent.parent
    own = {"start_new_session": True, "text": True, "cwd": cwd}
    run = subprocess.Popen(words, stderr=subprocess.PIPE, **own)
    deadline = time.monotonic() + 120
    begun = [out / "pid", out / "results.json"]  # one notebook is busy, the other has ended
    while not all(path.exists() and path.read_text() for path in begun):
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    kernel = int((out / "pid").read_text())
    if to_all := number == signal.SIGTERM:  # a batch system tells all processes
        os.killpg(run.pid, number)
    else:
        run.send_signal(number)
    _, error = run.communicate(timeout=60)
    assert run.returncode == 130 and "give the same command again" in error, error
    assert "distributed" not in error, error
    assert not psutil.pid_exists(kernel) or psutil.Process(kernel).status() == psutil.STATUS_ZOMBIE
    ended = ["succeeded", "interrupted", "interrupted"]
    assert list(statuses(json.loads((out / "results.json").read_text())).values()) == ended
    assert to_all or (out / "20_sleepy.html").exists()  # by its worker


@pytest.mark.skipif(browser.CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [500, 1280])
@pytest.mark.parametrize("page", ["index", "10_fine", "20_gan_fid"])
def test_nothing_runs_off_the_edge_of_a_page(finished, tmp_path, width, page):
    from PIL import Image

    out, _, _ = finished
    picture = tmp_path / "page.png"
    words = ["--headless", "--hide-scrollbars", f"--user-data-dir={tmp_path / 'profile'}"]
    words += [f"--window-size={width},2000", f"--screenshot={picture}"]
    words.append((out / f"{page}.html").as_uri())
    command = [browser.CHROMIUM, *browser.CHROMIUM_ARGS, *words]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    image = Image.open(picture).convert("RGB")
    edge = image.crop((image.width - 6, 0, image.width, image.height))
    assert len(edge.getcolors()) == 1, "something is drawn in the margin"
    assert len(image.getcolors(1 << 24)) > 20, "the page is blank"


# ---- small parts


def test_durations_and_decimals_read_well():
    for seconds, text in (
        (0.4, "0 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (4320, "1 h 12 min"),
    ):
        assert html.duration(seconds) == text
    assert html.shorten("0.123456789") == "0.1235"
    for text in ("97.61", "1234567", "small", "27 ± 0.1234567"):
        assert html.shorten(text) == text


def test_formulas_become_mathml_and_what_the_converter_cannot_read_text():
    for tex in (r"\lambda_{KD} \sum_i q_i \log\frac{q_i}{p_i}", r"\text{s}(QK^\top)"):
        assert html.MathRenderer().inline_math(tex).startswith("<math")
    assert "<script" not in html.MathRenderer().inline_math(r"\frac{<script>")


@pytest.mark.parametrize(
    "texts, marked",
    [
        (["27.1 ± 0.3", "97.2 – 98.1", "1.5e-3", "12,345", "", "40 %"], 7),
        (["1.5", "ViT-3"], 0),
        (["none", "no", "e", "mnist/test 400"], 0),
    ],
)
def test_columns_of_numbers_are_marked(texts, marked):
    rows = "".join(f"<tr><td>a</td><td>{text}</td></tr>" for text in texts)
    head = "<thead><tr><th>who</th><th>%</th></tr></thead>"
    table = html.align_numbers(f"<table>{head}<tbody>{rows}</tbody></table>")
    assert table.count('class="number"') == marked and "<td>a</td>" in table


@pytest.mark.parametrize("deaths, ends", [(2, "succeeded"), (3, "failed")])
def test_a_kernel_that_dies_while_starting_is_started_again(
    deaths, ends, folder, tmp_path, monkeypatch
):
    """As when another program takes the port that was found free for it."""
    import papermill

    real, tried = papermill.execute_notebook, []

    def dying(*args, **words):
        tried.append(1)
        if len(tried) <= deaths:
            raise RuntimeError("Kernel died before replying to kernel_info")
        return real(*args, **words)

    monkeypatch.setattr(papermill, "execute_notebook", dying)
    folders = {"out": str(tmp_path / "out"), "artifacts": str(tmp_path / "store")}
    plan = pipeline.make_plan("smoke", only="10", notebooks=folder, **folders)
    lines = []
    result = pipeline.run(plan, lines.append)["notebooks"]["10_fine"]
    assert result["status"] == ends and sum("started again" in line for line in lines) == 2
    if ends == "failed":
        assert "while it was starting" in result["error"] and "fix" in result["error"]
