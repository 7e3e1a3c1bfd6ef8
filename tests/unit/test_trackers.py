"""What a run sends to a tracker, by stand-ins for the trackers' libraries."""

import base64
import io
import json
import os
import sys
import tomllib
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

import pytest
from PIL import Image

from dfkd_lib import cli
from dfkd_lib.core import REPOSITORY, WorkbenchError
from dfkd_lib.reporting import trackers

KEY = "student_synthetic-0123456789abcdef"
HISTORY = [
    {"epoch": 1, "kd": 0.5, "test_accuracy": 0.1},
    {"epoch": 2, "kd": 0.25, "test_accuracy": 0.2},
]


@pytest.fixture
def ended(tmp_path):
    """The folder of a run whose notebook has ended, and its result."""
    (tmp_path / "store" / KEY).mkdir(parents=True)
    (tmp_path / "store" / KEY / "history.json").write_text(json.dumps(HISTORY))
    png = io.BytesIO()
    Image.new("RGBA", (4, 3), (255, 0, 0, 255)).save(png, "PNG")
    shown = {
        "metadata": {"dfkd": {"kind": "figures", "name": "curves"}},
        "data": {"image/png": base64.b64encode(png.getvalue()).decode()},
    }
    table = {"metadata": {"dfkd": {"kind": "tables", "name": "rows"}}, "data": {"text/html": ""}}
    notebook = {"cells": [{"outputs": [shown, table]}, {"source": "text"}]}
    (tmp_path / "30_x.ipynb").write_text(json.dumps(notebook))
    result = {
        "status": "succeeded",
        "parameters": {"preset": "smoke", "seeds": "", "artifacts_dir": str(tmp_path / "store")},
        "settings": {"seeds": [[0, 1], [0]], "temperature": [2.0, 4.0]},
        "metrics": {"share": 0.5, "accuracy": [0.25, 0.75], "data": "mnist"},
        "artifacts": [{"key": KEY}, {"key": "synthetic-0123456789abcdef"}],
    }
    return tmp_path, result


CONFIG = {"preset": "smoke", "seeds": [0, 1], "temperature": 2.0, "data": "mnist"}


@pytest.mark.parametrize("name, mode", [("wandb", None), ("wandb", "online"), ("trackio", None)])
def test_a_notebook_is_one_run_of_wandb_or_trackio(monkeypatch, ended, name, mode):
    """Online only where the user says so."""
    out, result = ended
    logged, options, library = [], {}, ModuleType(name)
    run = SimpleNamespace(log=logged.append, finish=lambda: logged.append("finished"))
    library.init = lambda **given: options.update(given) or run
    library.Image = lambda picture: picture
    monkeypatch.setitem(sys.modules, name, library)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if mode:
        monkeypatch.setenv("WANDB_MODE", mode)
    trackers.track(name, out, "30_x", result)
    assert os.environ["WANDB_MODE"] == (mode or "offline")
    assert options["config"].items() >= {**CONFIG, "status": "succeeded"}.items()
    assert options["name"] == f"{out.name}/30_x"
    assert (options.get("dir") == str(out)) == (name == "wandb")
    assert logged[:2] == [{f"{KEY}/{k}": v for k, v in row.items()} for row in HISTORY]
    assert {"metrics/share": 0.5} in logged
    assert {"metrics/accuracy/0": 0.25, "metrics/accuracy/1": 0.75} in logged
    assert logged[-2]["figures/curves"].size == (4, 3) and logged[-1] == "finished"


def test_tensorboard_gets_event_files_in_the_run_folder(monkeypatch, ended):
    out, result = ended
    library = ModuleType("torch.utils.tensorboard")
    library.SummaryWriter = MagicMock()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", library)
    trackers.track("tensorboard", out, "30_x", result)
    (folder,), writer = library.SummaryWriter.call_args.args, library.SummaryWriter.return_value
    assert folder.startswith(str(out / "tensorboard" / "30_x-"))
    name, text = writer.add_text.call_args.args
    assert name == "parameters" and "    temperature = 2.0\n" in text
    writer.add_scalar.assert_any_call(f"{KEY}/kd", 0.25, 2)
    writer.add_scalar.assert_any_call("metrics/accuracy/1", 0.75)
    name, picture = writer.add_image.call_args.args
    assert name == "figures/curves" and picture.shape == (3, 4, 3)
    writer.close.assert_called_once_with()


def test_a_missing_library_is_refused_before_anything_runs(monkeypatch, capsys):
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    monkeypatch.setattr("dfkd_lib.pipeline.make_plan", pytest.fail)
    for name in trackers.TRACKERS:
        assert cli.main(["run", "--log", name]) == 2
        assert f"fix: run .venv/bin/pip install -e '.[{name}]'" in capsys.readouterr().err
    with pytest.raises(WorkbenchError, match="did you mean 'tensorboard'"):
        trackers.check_tracker("tensorbord")
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert set(trackers.TRACKERS) <= set(extras["optional-dependencies"])
