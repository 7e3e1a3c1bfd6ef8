"""What a notebook says of itself: headlines that name size and seeds, what it needs; bad metadata harms nothing."""

import ast
import json
import os
import shutil
import subprocess
import sys

import nbformat
import pytest

from dfkd_lib import presets
from dfkd_lib.core import REPOSITORY, Store
from dfkd_lib.pipeline import lab
from dfkd_lib.pipeline.here import definitions
from dfkd_lib.pipeline.plan import make_plan, notebook_files
from dfkd_lib.reporting.notebooks import (
    Headline,
    Notebook,
    headlines,
    headlines_of,
    notebook_table,
    read_notebook,
    read_notebooks,
)


def saved_names(path) -> list[str]:
    """The files of figures and tables that a notebook's cells name."""
    cells = nbformat.read(path, 4).cells
    calls = [
        node
        for cell in cells
        if cell.cell_type == "code"
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("rep.figure", "rep.table")
    ]
    return [one.args[1].value for one in calls if isinstance(one.args[1], ast.Constant)]


def test_no_notebook_writes_over_anothers_figure():
    """All of a run stand in one folder."""
    names = {path.stem: saved_names(path) for path in notebook_files().values()}
    assert sum(map(len, names.values())) > 60
    every = [name for one in names.values() for name in set(one)]
    assert sorted(every) == sorted(set(every))


SHARE = Headline("student_real_accuracy", "student", "A Figure 9", percent=True)


@pytest.mark.parametrize(
    "headline, value, text",
    [
        (SHARE, 0.97653, "97.65 %"),
        (SHARE, [0.97, 0.98], "97.00, 98.00 %"),
        (SHARE, [0.97, 0.98, 0.99], "98.00 ± 2.48 %"),
        (SHARE, [0.97], "97.00 %"),
        (Headline("n", "images"), 50000, "50,000"),
        (Headline("n", "distance"), 0.12345, "0.123"),
        (Headline("n", "features"), "cnn", "cnn"),
        (Headline("n", "flag"), True, "True"),
        (Headline("n", "nested"), [[1], [2]], "[[1], [2]]"),
    ],
)
def test_a_value_is_written_as_its_kind_and_its_seeds_allow(headline, value, text):
    """Of two seeds the values themselves: 98 ± 2.48 is 4.303 x 1/sqrt(3)."""
    assert headline.text(value) == text


def test_a_headline_names_size_and_seeds():
    wanted = Headline(
        "acc",
        "student, on {data}",
        percent=True,
        size="{model}, {gan.images} images, {epochs} epochs, {absent} x",
    )
    result = {
        "metrics": {"acc": [0.5, 0.6], "data": "whole frames"},
        "parameters": {"model": "vit", "epochs": 1},
        "settings": {"gan.images": [30000, 1, "help"]},
    }
    row = wanted.row(result)
    assert (row["size"], row["seeds"]) == ("vit, 30,000 images, 1 epoch", "2")
    assert row["label"] == "student, on whole frames"
    assert wanted.row({"metrics": {}}) is None


@pytest.mark.parametrize(
    "wanted, data, paper, reference",
    [
        (SHARE, "mnist", "97.75 %", "A Table 4"),
        (SHARE, "cifar10", "87.77 %", "A Table 5"),
        (SHARE, "/my/folder", "", "A Figure 9"),
        (Headline("frechet_vanilla", "Fréchet"), "mnist", "27 (Inception)", "A Table 2"),
        (Headline("titn_top1", "TITN", percent=True), "mnist", "99.56 %", "C Tables 3-6"),
        (Headline("titn_top1", "TITN", percent=True), "digits", "", ""),
    ],
)
def test_the_papers_number_stands_beside_its_own_data_alone(wanted, data, paper, reference):
    about = {"10_x": Notebook("10_x", "title", headline=(wanted,))}
    result = {"metrics": {wanted.metric: 0.5}, "settings": {"data.name": [data, "mnist"]}}
    (row,) = headlines({"10_x": result}, about)
    assert (row["paper"], row["reference"]) == (paper, reference) and row["notebook"] == "10_x"
    assert headlines({}, about) == []


def test_every_notebook_of_the_repository_says_what_it_is_about():
    known = read_notebooks()
    assert list(known) == [p.stem for p in sorted((REPOSITORY / "notebooks").glob("[0-9]*.ipynb"))]
    for name, notebook in known.items():
        assert notebook.title != name and notebook.shows
        assert set(notebook.needs) <= {"*", *known}
    assert list(notebook_table()["notebook"]) == list(known)


@pytest.mark.parametrize(
    "about",
    [None, {}, {"headline": [{"label": "no metric"}]}, {"headline": ["x"]}, {"headline": 5}, "x"],
)
def test_metadata_without_headlines_has_none_and_other_types_are_text(about):
    assert headlines_of({"dfkd": about}) == ()
    (row,) = headlines_of({"dfkd": {"headline": [{"metric": 5, "label": None, "new": 1}]}})
    assert (row.metric, row.label) == ("5", "None")


def save_as_run(path):
    """Save a notebook as JupyterLab does once it has run."""
    notebook = nbformat.read(path, 4)
    for count, cell in enumerate(cell for cell in notebook.cells if cell.cell_type == "code"):
        shown = nbformat.v4.new_output("execute_result", {"text/plain": "1"}, execution_count=count)
        cell |= {"execution_count": count, "outputs": [shown]}
        cell.metadata["execution"] = {"iopub.status.busy": "2026-01-01T00:00:00.000000Z"}
    language = {"name": "python", "version": "3.12.1", "file_extension": ".py"}
    language |= {"mimetype": "text/x-python", "nbconvert_exporter": "python"}
    language |= {"codemirror_mode": {"name": "ipython"}, "pygments_lexer": "ipython3"}
    notebook.metadata["language_info"] = language
    state = {"application/vnd.jupyter.widget-state+json": {"state": {}}}
    notebook.metadata["widgets"] = state
    nbformat.write(notebook, path)
    lab.refresh(os_path=str(path))


def test_running_the_notebooks_leaves_git_clean(tmp_path):
    """As JupyterLab saves them once they have run, with the filter that `make lab` sets; an edit is a change."""

    def call(*words, **more):
        done = subprocess.run(
            words, cwd=tmp_path, check=True, capture_output=True, text=True, **more
        )
        return done.stdout.strip()

    (tmp_path / "notebooks").mkdir()
    for name in ("00_start_here", "40_detection_kd"):
        shutil.copy(REPOSITORY / "notebooks" / f"{name}.ipynb", tmp_path / "notebooks")
    shutil.copyfile(REPOSITORY / ".gitattributes", tmp_path / ".gitattributes")
    make = ("make", "-f", REPOSITORY / "Makefile", f"RUN={sys.executable}")
    # In `make test` this make is not its child, and does not say where it works.
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    strip = call(*make, "--eval=strip: ; @echo '$(STRIP)'", "strip", env=env)
    call("git", "init", "-q")
    call("git", "config", "filter.notebooks.clean", strip)
    call("git", "add", ".")
    author = ("-c", "user.name=a", "-c", "user.email=a@b")
    call("git", *author, "commit", "-qm", "notebooks")
    files = sorted((tmp_path / "notebooks").glob("*.ipynb"))
    stored = call("git", "show", f"HEAD:notebooks/{files[0].name}")
    assert stored == files[0].read_text().strip()
    for path in files:
        save_as_run(path)
    assert call("git", "status", "--porcelain") == ""
    files[0].write_text(files[0].read_text().replace('preset = \\"quick', 'preset = \\"smoke'))
    (tmp_path / "notebooks" / "new.ipynb").write_text(files[0].read_text())
    for path in (files[0], tmp_path / "notebooks" / "new.ipynb"):
        lab.refresh(os_path=str(path))
    changed = f"M notebooks/{files[0].name}\n?? notebooks/new.ipynb"
    assert call("git", "status", "--porcelain") == changed


def test_a_notebook_that_cannot_be_read_has_its_name(tmp_path):
    path = tmp_path / "10_x.ipynb"
    assert read_notebook(path) == Notebook("10_x", "10_x")
    for text in ("{", json.dumps({"cells": [], "metadata": {}})):
        path.write_text(text)
        assert read_notebook(path) == Notebook("10_x", "10_x")


@pytest.mark.parametrize("method", presets.TASKS)
def test_a_notebooks_own_cells_say_what_it_trains(method, tmp_path):
    """As tasks by name, from its first cell and those to edit: nothing is trained for the list."""
    (path,) = [
        path for name, path in notebook_files().items() if read_notebook(path).method == method
    ]
    parameters = make_plan("smoke", only=path.stem, artifacts=str(tmp_path)).parameters[path.stem]
    with definitions(path, parameters) as names:
        tasks = presets.tasks(method)(names)
    assert tasks and all(map(callable, tasks.values()))
    assert Store(tmp_path).keys() == []


def test_a_maker_and_a_student_of_the_notebooks_own_are_tasks(tmp_path):
    for name, line, task in (
        ("20_gan_fid", 'makers["mine"] = makers["class probes"]', "mine: images and student"),
        ("60_titn", 'students["mine"] = students["TITN"]', "mine, seed 1"),
    ):
        notebook = nbformat.read(REPOSITORY / "notebooks" / f"{name}.ipynb", 4)
        edited = [c for c in notebook.cells if "edit-me" in c.metadata.get("tags", [])]
        edited[-1].source += f"\n{line}"
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")
        plan = make_plan("smoke", artifacts=str(tmp_path / "store"), notebooks=tmp_path, only=name)
        with definitions(plan.notebooks[name], plan.parameters[name]) as names:
            assert task in presets.tasks(read_notebook(plan.notebooks[name]).method)(names)
