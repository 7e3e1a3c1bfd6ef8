"""What is known of the machine and the embedded data."""

import gzip
import shutil

from dfkd_lib.core import environment
from dfkd_lib.core.artifacts import REPOSITORY


def test_the_embedded_mnist_is_the_original():
    table = environment.data_table()
    assert list(table[table["file"].str.startswith("mnist/")]["state"]) == ["sound"] * 4


def test_changed_cut_and_missing_files_are_told_apart_from_sound_ones(tmp_path):
    names = list(environment.MNIST_MD5)
    (tmp_path / "mnist").mkdir()
    for name in names[2:]:
        shutil.copy(REPOSITORY / "data" / "mnist" / name, tmp_path / "mnist" / name)
    whole = (tmp_path / "mnist" / names[2]).read_bytes()
    (tmp_path / "mnist" / names[2]).write_bytes(whole[:-100])
    (tmp_path / "mnist" / names[1]).write_bytes(gzip.compress(b"other labels"))
    states = [state.partition(":")[0] for state in environment.data_table(tmp_path)["state"]]
    assert states == ["missing", "changed", "changed", "sound"]


def test_a_machine_without_git_or_graphics_card_is_described_too(monkeypatch):
    monkeypatch.setattr(environment.shutil, "which", lambda name: None)
    known = environment.describe()
    assert known["git"] == {"commit": None, "dirty": None} and known["hardware"]["gpu"] is None
    assert known["hardware"]["cpu"] and known["hardware"]["cores"] >= 1
