"""The README of published results says what its files say, and which of them cannot be made again."""

import json
from pathlib import Path

import pytest

from dfkd_lib.core import WorkbenchError
from dfkd_lib.reporting.published import FOLDER, read_published, readme


def test_the_published_readme_is_as_its_files_say():
    stale = "stale: run `dfkd published` and commit reports/published/README.md"
    assert (FOLDER / "README.md").read_text() == readme(), stale


def run_of(accuracies: list[float], commit: str, dirty: bool = False, **more) -> dict:
    result = {
        "metrics": {"student_real_accuracy": accuracies, "deep": {"x": 1.23456}},
        "parameters": {"student_model": "vit", "real_images": 30000, "student_epochs": 1},
    }
    git = {"commit": commit, "dirty": dirty}
    provenance = {"git": git, "started": "2026-01-01", "command": "run it"}
    notebooks = {"30_classification_kd": result}
    return {"profile": "quick", "notebooks": notebooks, "provenance": provenance, **more}


def student_of(commit: str) -> dict:
    student = {"accuracy": 0.9775, "parameters": 2389514, "train_images": 50000, "history": [1]}
    return {"results": {"student of a maker": student}, "provenance": {"commit": commit}}


def write(folder: Path, **files: object) -> Path:
    for name, content in files.items():
        (folder / name).mkdir()
        (folder / name / "results.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def text(tmp_path):
    files = {
        "a": run_of([0.97, 0.98, 0.99], "abcdef0123456789"),
        "b": run_of([0.5, 0.6], "bbbbbbbbbbbb"),
        "d": student_of("dddddddddddd"),
        "f": {"rows": [{}], "provenance": {"commit": "ffffffffffff"}},
        "g": {"nothing": 1},
    }
    return readme(write(tmp_path, **files))


def test_headlines_stand_beside_the_papers_numbers(text):
    head = text.partition("## Headlines")[2].partition("## a/")[0]
    assert (
        "| student, real images | 98.00 ± 2.48 % | 3 | vit, 30,000 images, 1 epoch | 97.75 % | A Table 4 "
        "| [a](a/results.json), abcdef0 |" in head
    )
    assert "| student of a maker | 97.75 % | 1 | 2,389,514 parameters, 50,000 images |" in head
    assert head.count("| student") == 3


def test_every_file_has_its_metrics(text):
    parts = {part.split("/")[0]: part for part in text.split("\n## ")}
    assert "| 30_classification_kd | deep.x | 1.235 |" in parts["a"]
    assert "| 30_classification_kd | student_real_accuracy | 0.5, 0.6 (n = 2) |" in parts["b"]
    assert "accuracy | 0.9775 |" in parts["d"] and "history" not in parts["d"]
    assert "results.md" in parts["f"] and "g" not in parts


def fallen_back() -> dict:
    content = run_of([0.5], "bbbbbbbbbbbb")
    content["notebooks"]["30_classification_kd"]["metrics"]["fallback"] = "no weights"
    return content


@pytest.mark.parametrize(
    "content, words",
    [
        (run_of([0.5], "bbbbbbbbbbbb", dirty=True), "cannot be made again from one commit"),
        (run_of([0.7], "cccccccccccc", mixed_commits=True), "cannot be made again from one commit"),
        (student_of("eeeeeeeeeeee+"), "cannot be made again from one commit"),
        (fallen_back(), "something else"),
    ],
)
def test_what_no_commit_makes_again_or_nobody_asked_for_is_refused(tmp_path, content, words):
    with pytest.raises(WorkbenchError, match=words):
        readme(write(tmp_path, a=content))
    (tmp_path / "0.json").write_text("{")
    with pytest.raises(WorkbenchError, match=r"0\.json"):
        read_published(tmp_path)
