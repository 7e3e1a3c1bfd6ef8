"""What a page depends on beside the library: the user's own modules, and the folder of a named data set."""

import pytest
from small_notebooks import write_notebooks

from dfkd_lib import pipeline
from dfkd_lib.pipeline import unchanged
from dfkd_lib.pipeline.modules import imported_state
from dfkd_lib.reporting.notebooks import read_notebooks

OWN = "import torch, os, my_losses\nfrom my_package.part import two\n%matplotlib inline\n"


@pytest.fixture
def modules(tmp_path, monkeypatch):
    folder = tmp_path / "own"
    (folder / "my_package").mkdir(parents=True)
    (folder / "my_losses.py").write_text("import my_helper\n")
    (folder / "my_helper.py").write_text("one = 1\n")
    (folder / "my_package" / "part.py").write_text("two = 2\n")
    (folder / "other.py").write_text("three = 3\n")
    monkeypatch.syspath_prepend(folder)
    return folder


def state_of(folder, **options) -> str:
    plan = pipeline.make_plan("smoke", notebooks=folder, out=str(folder.parent), **options)
    return unchanged.states(plan, read_notebooks(folder), {})["10_a"]


@pytest.mark.parametrize("name", ["my_losses.py", "my_helper.py", "my_package/part.py"])
def test_a_page_depends_on_modules_that_its_notebook_imports(modules, tmp_path, name):
    folder = write_notebooks(tmp_path / "notebooks", {"10_a": [OWN]})
    before = state_of(folder)
    (modules / "other.py").write_text("three = 4\n")
    assert before and state_of(folder) == before
    (modules / name).write_text("one = two = 5\n")
    assert state_of(folder) != before


def test_a_module_beside_a_notebook_counts(tmp_path):
    folder = write_notebooks(tmp_path / "notebooks", {"10_a": ["import beside_it"]})
    (folder / "beside_it.py").write_text("one = 1\n")
    before = state_of(folder)
    (folder / "beside_it.py").write_text("one = 2\n")
    assert state_of(folder) != before


def test_what_is_installed_is_not_read(tmp_path):
    assert imported_state(["import torch, numpy.linalg, json\nimport dfkd_lib"], tmp_path) == ()


@pytest.mark.parametrize("line", ["import sys; sys.path.append('x')", "%run own.py"])
def test_a_notebook_that_imports_by_other_ways_always_runs(tmp_path, line):
    folder = write_notebooks(tmp_path / "notebooks", {"10_a": [line]})
    assert state_of(folder) == ""


def test_a_page_depends_on_the_files_of_a_named_set(tmp_path, monkeypatch):
    folder = write_notebooks(tmp_path / "notebooks", {"10_a": ["1"]}, method="classification")
    monkeypatch.setattr(unchanged, "resolve_path", lambda name: tmp_path / name)
    (tmp_path / "data" / "cifar10").mkdir(parents=True)
    options = {"settings": ["10.data.name=cifar10"]}
    before, of_mnist = state_of(folder, **options), state_of(folder)
    (tmp_path / "data" / "cifar10" / "data_batch_1.bin").write_bytes(b"0")
    assert state_of(folder, **options) != before and state_of(folder) == of_mnist
