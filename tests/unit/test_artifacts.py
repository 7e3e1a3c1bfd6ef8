"""Artifacts: cached by content, whole or not there, checked, resumed after a SIGKILL to the same bits."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch

from dfkd_lib.core import WorkbenchError, artifacts
from dfkd_lib.core.artifacts import (
    ArtifactError,
    BeingMade,
    NotMade,
    Store,
    only_finding,
    without_waiting,
)
from dfkd_lib.core.files import file_lock
from dfkd_lib.pipeline.folder import prepare_folder


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def write(value):
    def make(work):
        (work / "value.txt").write_text(str(value))
        return {"value": value}

    return make


def test_second_request_makes_nothing(store):
    first = store.get_or_make("stage", {"a": 1}, write(1))
    again = store.get_or_make("stage", {"a": 1}, write(2))
    assert not first.cached and again.cached
    assert again.metrics == {"value": 1} and (again.path / "value.txt").read_text() == "1"


def test_key_depends_on_stage_settings_and_parents(store):
    parent = store.get_or_make("parent", {}, write(0))
    other = store.get_or_make("parent", {"x": 1}, write(0))
    key = artifacts.content_key
    keys = {key("s", {}), key("t", {}), key("s", {"a": 1}), key("s", {"a": 2})}
    assert len(keys | {key("s", {}, [parent]), key("s", {}, [other])}) == 6
    assert key("s", {"a": 1, "b": 2}) == key("s", {"b": 2, "a": 1})


@pytest.mark.parametrize("bad", [{"x": float("nan")}, {"x": object()}])
def test_settings_that_cannot_be_a_key(bad):
    with pytest.raises(WorkbenchError, match="cannot be a key"):
        artifacts.content_key("s", bad)


def test_a_failed_make_leaves_no_artifact(store):
    def fail(work):
        (work / "half.txt").write_text("half")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        store.get_or_make("stage", {}, fail)
    assert store.keys() == []
    assert not store.get_or_make("stage", {}, write(2)).cached


def test_what_another_process_makes_is_not_waited_for_where_nobody_wants_to(store):
    with only_finding(), pytest.raises(NotMade) as missing:
        store.get_or_make("stage", {}, write(1))
    lock = file_lock(store.root / ".locks" / f"{missing.value.got}.lock")
    with lock, without_waiting(), pytest.raises(BeingMade, match="another process"):
        store.get_or_make("stage", {}, write(1))
    with without_waiting():
        assert not store.get_or_make("stage", {}, write(1)).cached
    with lock, without_waiting():  # of what is there nobody needs the lock
        assert store.get_or_make("stage", {}, write(1)).cached


def test_changed_bytes_are_named_set_aside_and_made_anew(store, capsys):
    made = store.get_or_make("stage", {}, write(1))
    (made.path / "value.txt").write_text("2")
    with pytest.raises(ArtifactError, match="value.txt") as caught:
        store.find(made.key)
    assert "made anew" in str(caught.value)
    with pytest.raises(NotMade), only_finding():
        store.get_or_make("stage", {}, write(1))
    assert [bad is not None for _, bad in store.verify()] == [True]
    again = store.get_or_make("stage", {}, write(1))
    assert not again.cached
    assert (again.path / "value.txt").read_text() == "1"
    assert store.verify() == [(made.key, None)]
    assert (store.root / ".damaged" / made.key / "value.txt").read_text() == "2", (
        "nothing is deleted"
    )
    assert "value.txt" in capsys.readouterr().out
    (made.path / "value.txt").write_text("3")
    store.get_or_make("stage", {}, write(1))
    assert store.set_aside() == [made.key, made.key + "+"]
    (made.path / "value.txt").unlink()
    with pytest.raises(ArtifactError, match="no such file"):
        store.find(made.key)
    assert (store.root / ".damaged" / made.key / "value.txt").read_text() == "2"


@pytest.mark.parametrize("text", ["", "{", "{}", "[]"])
def test_a_damaged_manifest_is_an_error(store, text):
    made = store.get_or_make("stage", {}, write(1))
    (made.path / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match="manifest"):
        store.find(made.key)


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkbenchError, match="cannot be written"):
        Store(tmp_path / "file" / "store")


def test_damaged_checkpoint(tmp_path):
    path = tmp_path / "x.safetensors"
    artifacts.save_tensors(path, {"a": torch.ones(3)})
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(WorkbenchError, match="cannot be read"):
        artifacts.load_tensors(path)
    with pytest.raises(WorkbenchError, match="missing"):
        artifacts.load_tensors(tmp_path / "none.safetensors")


TRAIN = """
    import sys, time, torch
    from pathlib import Path
    from torch import nn
    from dfkd_lib import training
    from dfkd_lib.core import artifacts

    def make(work):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 32), nn.Dropout(0.2), nn.ReLU(), nn.BatchNorm1d(32), nn.Linear(32, 2))
        x = torch.randn(256, 8, generator=torch.Generator().manual_seed(1))
        y = (x[:, 0] > 0).long()

        def step(batch, progress):
            return {"loss": nn.functional.cross_entropy(model(batch[0]), batch[1])}

        def after(epoch):
            print("epoch", epoch, flush=True)
            time.sleep(float(sys.argv[2]))
            return {}

        config = training.TrainConfig(epochs=12, batch_size=32, lr=1e-2, weight_decay=0.01, seed=3)
        training.fit({"model": model}, step, training.TensorBatches((x, y), 32), config, evaluate=after,
                     checkpoint=work / "checkpoint")
        artifacts.save_tensors(work / "model.safetensors", model.state_dict())
        return {}

    print(artifacts.Store(sys.argv[1]).get_or_make("toy", {}, make).path, flush=True)
"""


def run_training(folder, pause, kill_after=None):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(TRAIN), str(folder), str(pause)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "DFKD_PROGRESS": "none"},
    )
    lines = []
    for line in process.stdout:
        lines.append(line.strip())
        if kill_after and line.startswith(f"epoch {kill_after}"):
            time.sleep(pause / 2)
            process.send_signal(signal.SIGKILL)
    return process.wait(), lines


def test_a_killed_run_resumes_to_the_same_bits(tmp_path):
    code, lines = run_training(tmp_path / "whole", 0)
    assert code == 0 and lines[0] == "epoch 1"
    code, _ = run_training(tmp_path / "killed", 1.0, kill_after=3)
    assert code == -signal.SIGKILL
    assert Store(tmp_path / "killed").keys() == []
    code, resumed = run_training(tmp_path / "killed", 0)
    assert code == 0
    assert 1 < int(resumed[0].split()[1]) <= 6, "it started again from nothing"
    whole, again = (
        next(p.glob("toy-*/model.safetensors")).read_bytes()
        for p in (tmp_path / "whole", tmp_path / "killed")
    )
    assert whole == again
    manifest = json.loads(next((tmp_path / "killed").glob("toy-*/manifest.json")).read_text())
    assert list(manifest["files"]) == ["model.safetensors"], (
        "the checkpoint of a finished artifact is dropped"
    )


def test_a_disk_without_locks_is_refused(tmp_path, monkeypatch):
    import errno
    import fcntl

    def absent(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", absent)
    with pytest.raises(WorkbenchError, match="no file locks") as told:
        Store(tmp_path)
    assert "flock" in str(told.value) and "fix" in str(told.value)
    with pytest.raises(WorkbenchError, match="no file locks"):
        prepare_folder(tmp_path / "out")


def test_what_another_machine_has_made_is_taken_though_the_disk_told_late(tmp_path, monkeypatch):
    """A network disk may say for a while that a name is not there, having been asked before it was."""
    store, find, asked = Store(tmp_path), Store.find, []
    first = store.get_or_make("stage", {"a": 1}, write(1))

    def late(self, key):
        asked.append(key)
        return None if len(asked) < 3 else find(self, key)

    monkeypatch.setattr(Store, "find", late)
    found = store.get_or_make("stage", {"a": 1}, write(1))
    assert found.key == first.key and found.cached and store.unfinished() == []
