"""The first contact: a typo is answered with the nearest right word, before torch is imported."""

import json
import subprocess
import sys

import pytest

from dfkd_lib import cli, presets
from dfkd_lib.pipeline import known

# What takes seconds to import.
HEAVY = ("torch", "pandas", "papermill", "nbformat", "nbconvert", "matplotlib")


def run(*words):
    """(exit code, what was printed, heavy modules imported) of a command in a process of its own."""
    code = (
        "import sys; from dfkd_lib import cli; code = cli.main(sys.argv[1:]);"
        f"print(code, *[name for name in {HEAVY} if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *shown, (exit_code, *imported) = [line.split() for line in done.stdout.splitlines()]
    return int(exit_code), "\n".join(map(" ".join, shown)) + done.stderr, imported


@pytest.mark.parametrize(
    "words, fix",
    [
        (["rum"], "did you mean 'run'?"),
        (["comapre", "a", "b"], "did you mean 'compare'?"),
        (["run", "--onyl", "30"], "did you mean '--only'?"),
        (["run", "--profile", "quik"], "did you mean 'quick'?"),
        (["run", "--only", "30_clasification_kd"], "did you mean 30_classification_kd?"),
        (["run", "--set", "tim.seed=1"], "did you mean 60_titn?"),
        (["run", "--set", "30.temprature=2"], "did you mean 'temperature'?"),
        (["run", "--set", "30.student.epoch=2"], "did you mean 'student.epochs'?"),
        (["train", "--set", "30.out_dir=x"], "use --out"),
        (["list", "atention"], "did you mean 10_attention_probes?"),
    ],
)
def test_a_typo_is_answered_before_torch_is_imported(words, fix):
    known.known("classification")  # as any run leaves it on disk
    code, shown, imported = run(*words)
    assert code == 2 and fix in shown and not imported


def test_a_pipe_that_is_closed_is_no_error_to_report():
    command = f"{sys.executable} -m dfkd_lib list 30 | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("30_classification_kd") and not done.stderr


def test_listing_a_notebook_imports_nothing_large():
    known.known("classification")
    code, shown, imported = run("list", "30")
    assert code == 0 and not imported
    assert "temperature = 4.0 T of the distillation loss" in shown and "student.epochs = " in shown


@pytest.mark.parametrize("method", presets.METHODS)
def test_the_settings_kept_on_disk_are_those_of_the_classes(method):
    found, config = known.known(method), presets.of_preset(method, "smoke")
    assert found.names == presets.config_class(method)().names()
    values = {name: setting["values"]["smoke"] for name, setting in found.settings.items()}
    assert values == {name: repr(value) for name, value in config.flat().items()}


@pytest.mark.parametrize("kept", ["", "{}", "[]", '{"state": "new"}', '{"state": "old"}'])
def test_what_is_kept_of_other_code_or_damaged_is_made_anew(tmp_path, monkeypatch, kept):
    monkeypatch.setattr(known, "KEPT", tmp_path / "kept.json")
    monkeypatch.setattr(known, "library_state", lambda: "new")
    monkeypatch.setattr(presets, "METHODS", {"start": presets.METHODS["start"]})
    known.KEPT.write_text(kept)
    known._every.cache_clear()
    assert known.known("start").settings
    assert json.loads(known.KEPT.read_text())["state"] == "new"
    known._every.cache_clear()


def test_every_option_of_a_verb_is_known():
    for verb in cli.VERBS:
        with pytest.raises(SystemExit) as left:
            cli.main([verb, "--help"])
        assert left.value.code == 0


def test_another_broken_pipe_is_not_taken_for_a_reader_that_left(monkeypatch):
    def broken(**_):
        raise BrokenPipeError("a worker's")

    monkeypatch.setitem(cli.VERBS, "list", (broken, cli.VERBS["list"][1]))
    with pytest.raises(BrokenPipeError, match="worker"):
        cli.main(["list"])
