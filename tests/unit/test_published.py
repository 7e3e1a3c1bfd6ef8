"""The README of published results says what its files say, and which of them cannot be made again."""

import json
from pathlib import Path

import pytest

from dfkd_lib.core import WorkbenchError
from dfkd_lib.reporting.published import FOLDER, read_published, readme


def test_the_published_readme_is_as_its_files_say():
    stale = "stale: run `dfkd published` and commit reports/published/README.md"
    assert (FOLDER / "README.md").read_text() == readme(), stale


def write(folder: Path, name: str, **content) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))


def run_of(accuracies: list[float], commit: str, dirty: bool = False, **more) -> dict:
    result = {
        "metrics": {"student_real_accuracy": accuracies, "deep": {"x": 1.23456}},
        "parameters": {"student_model": "vit", "real_images": 30000, "student_epochs": 1},
    }
    provenance = {
        "git": {"commit": commit, "dirty": dirty},
        "started": "2026-01-01",
        "command": "run it",
    }
    return {
        "profile": "quick",
        "notebooks": {"30_classification_kd": result},
        "provenance": provenance,
        **more,
    }


@pytest.fixture
def text(tmp_path):
    write(tmp_path, "a/results.json", **run_of([0.97, 0.98, 0.99], "abcdef0123456789"))
    write(tmp_path, "b/results.json", **run_of([0.5, 0.6], "bbbbbbbbbbbb", dirty=True))
    write(tmp_path, "c/results.json", **run_of([0.7], "cccccccccccc", mixed_commits=True))
    student = {"accuracy": 0.9775, "parameters": 2389514, "train_images": 50000, "history": [1]}
    write(
        tmp_path,
        "d/full.json",
        results={"student of a maker": student},
        provenance={"commit": "dddddddddddd"},
    )
    write(
        tmp_path,
        "e/full.json",
        results={"student of e": student},
        provenance={"commit": "eeeeeeeeeeee+"},
    )
    write(tmp_path, "f/bench.json", rows=[{}], provenance={"commit": "ffffffffffff"})
    write(tmp_path, "g/settings.json", nothing=1)
    return readme(tmp_path)


def test_headlines_are_of_results_that_can_be_made_again(text):
    head = text.partition("## Headlines")[2].partition("## a/")[0]
    assert (
        "| student, real images | 98.00 ± 2.48 % | 3 | vit, 30,000 images, 1 epoch | 97.75 % | A Table 4 "
        "| [a](a/results.json), abcdef0 |" in head
    )
    assert "| student of a maker | 97.75 % | 1 | 2,389,514 parameters, 50,000 images |" in head
    assert head.count("| student") == 2, "none of a dirty tree or of mixed commits"


def test_every_file_has_its_metrics_and_what_is_wrong_with_it(text):
    parts = {part.split("\n")[0]: part for part in text.split("\n## ")}
    assert "Of uncommitted changes" in parts["b/results.json"]
    assert "Of several commits" in parts["c/results.json"]
    assert "Of uncommitted changes" in parts["e/full.json"]
    assert "cannot be made again" not in parts["a/results.json"] + parts["d/full.json"]
    assert "| 30_classification_kd | deep.x | 1.235 |" in parts["a/results.json"]
    assert (
        "| 30_classification_kd | student_real_accuracy | 0.5, 0.6 (n = 2) |"
        in parts["b/results.json"]
    )
    assert "accuracy | 0.9775 |" in parts["d/full.json"] and "history" not in parts["d/full.json"]
    assert "bench.md" in parts["f/bench.json"] and "g/settings.json" not in parts


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(WorkbenchError, match=r"x\.json"):
        read_published(tmp_path)
