"""What is known of code and machine, and of the embedded data."""

import gzip
import shutil
import subprocess

import pytest

from dfkd_lib.core import REPOSITORY, provenance
from dfkd_lib.datasets import embedded, embedded_table


def test_the_embedded_mnist_is_the_original():
    table = embedded_table()
    assert list(table[table["file"].str.startswith("mnist/")]["state"]) == ["sound"] * 4
    assert (table["bytes"] > 1000).all() and table["file"].str.startswith("teachers/").any()


def test_changed_cut_and_missing_files_are_told_apart_from_sound_ones(tmp_path):
    names = list(embedded.MNIST_MD5)
    (tmp_path / "mnist").mkdir()
    for name in names[2:]:
        shutil.copy(REPOSITORY / "data" / "mnist" / name, tmp_path / "mnist" / name)
    whole = (tmp_path / "mnist" / names[2]).read_bytes()
    (tmp_path / "mnist" / names[2]).write_bytes(whole[:-100])
    (tmp_path / "mnist" / names[1]).write_bytes(gzip.compress(b"other labels"))
    states = [state.partition(":")[0] for state in embedded_table(tmp_path)["state"]]
    assert states == ["missing", "changed", "changed", "sound"]


@pytest.fixture
def asked_anew():
    """What a process remembers of its code is asked for again, here and after the test."""
    provenance.code.cache_clear()
    yield
    provenance.code.cache_clear()


def test_a_machine_without_git_or_graphics_card_is_described_too(monkeypatch, asked_anew):
    monkeypatch.setattr(provenance.shutil, "which", lambda name: None)
    known = provenance.describe()
    assert known["git"] == {"commit": None, "dirty": None} and known["hardware"]["gpu"] is None
    assert known["hardware"]["cpu"] and known["hardware"]["cores"] >= 1
    assert provenance.commit() == "unknown"


def test_a_changed_tree_is_told_from_a_clean_one(monkeypatch, tmp_path, asked_anew):
    def git(*words: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ["git", *who, *words]
        return subprocess.run(
            command, cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    git("init")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-m", "one")
    monkeypatch.setattr(provenance, "REPOSITORY", tmp_path)
    head = git("rev-parse", "HEAD").strip()
    assert provenance.code() == {"commit": head, "dirty": False}
    assert provenance.commit() == head[:12]
    (tmp_path / "file").write_text("two")
    assert provenance.commit() == head[:12]  # what this process loaded is what it found at first
    provenance.code.cache_clear()
    assert provenance.commit() == f"{head[:12]}+"


def test_versions_are_those_of_what_is_installed():
    import torch

    found = provenance.versions(("torch", "no-such-library"))
    assert set(found) == {"python", "torch"} and torch.__version__.startswith(found["torch"])
    table = provenance.provenance_table()
    assert {"commit", "cpu", "memory (GiB)", "torch"} <= set(table["what"])
