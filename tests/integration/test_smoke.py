"""Every notebook at smoke size through the real pipeline, twice: what they found, and that the second run makes nothing."""

import json
import math

import pytest

from dfkd_lib import pipeline
from dfkd_lib.distill import MAKERS
from dfkd_lib.jobs import Needs
from dfkd_lib.pipeline.task import Place, do_task

pytestmark = pytest.mark.slow
NOTEBOOKS = tuple(pipeline.notebook_files())

SHARE = (0.0, 1.0)
# What each notebook must have measured, and between which values: (notebook, metric, low, high).
MEASURED = [
    ("00_start_here", "data_files_sound", 4, 4),
    ("00_start_here", "train_images", 60000, 60000),
    ("00_start_here", "teacher_accuracy", 0.95, 1.0),  # shipped: trained in full
    ("10_attention_probes", "teacher_accuracy", *SHARE),
    ("10_attention_probes", "attention_on_patches", *SHARE),
    (
        "10_attention_probes",
        "class_probe_images",
        300,
        math.inf,
    ),
    ("20_gan_fid", "frechet_vanilla", 0.0, math.inf),
    ("20_gan_fid", "frechet_augmented", 0.0, math.inf),
    *[("20_gan_fid", f"student of {maker}", *SHARE) for maker in MAKERS],
    *[("20_gan_fid", f"frechet of {maker}", 0.0, math.inf) for maker in MAKERS],
    ("30_classification_kd", "teacher_real_accuracy", *SHARE),
    ("30_classification_kd", "student_real_accuracy", *SHARE),
    ("30_classification_kd", "student_synthetic_accuracy", *SHARE),
    ("35_ablation", "cells", 8, 8),
    ("35_ablation", "finished", 8, 8),
    ("40_detection_kd", "teacher_AP50", *SHARE),
    ("40_detection_kd", "student_train_AP50", *SHARE),
    ("40_detection_kd", "student_synthetic_AP50", *SHARE),
    ("50_early_kd", "teacher_accuracy", *SHARE),
    ("60_titn", "vit_top1", *SHARE),
    ("60_titn", "titn_top1", *SHARE),
    ("70_deploy", "student_fp32_accuracy", *SHARE),
    ("70_deploy", "student_int8_accuracy", *SHARE),
    ("70_deploy", "student_onnx_max_difference", 0.0, 1e-3),
    ("70_deploy", "int8_times_smaller_than_teacher", 0.5, 1000.0),
    ("90_summary", "notebooks", len(NOTEBOOKS) - 1, len(NOTEBOOKS) - 1),
    ("90_summary", "artifacts", 15, math.inf),
    ("90_summary", "data_free_stages", 1, math.inf),
]


def run(folder, name: str, jobs: int) -> dict:
    plan = pipeline.make_plan(
        "smoke", out=str(folder / name), artifacts=str(folder / "artifacts"), jobs=jobs
    )
    return pipeline.run(plan, print)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """(folder, results of a run two notebooks at a time, results of a run one by one that shares its artifacts)."""
    folder = tmp_path_factory.mktemp("smoke")
    return folder, run(folder, "first", 2), run(folder, "second", 1)


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_every_notebook_succeeds(smoke, notebook):
    for results in smoke[1:]:
        result = results["notebooks"][notebook]
        assert result["status"] == "succeeded", result.get("error")
        assert result["metrics"] and result["parameters"]["preset"] == "smoke"
        assert 0 < result["peak_memory_mb"] < 4000
    assert pipeline.exit_code(results) == 0


@pytest.mark.parametrize("notebook, metric, low, high", MEASURED)
def test_what_was_measured_is_plausible(smoke, notebook, metric, low, high):
    values = smoke[1]["notebooks"][notebook]["metrics"][metric]
    for value in values if isinstance(values, list) else [values]:
        assert low <= value <= high


def test_no_number_of_a_report_is_missing(smoke):
    """A metric that could not be computed is kept as None: there must be none but intervals of single values."""
    for notebook, result in smoke[1]["notebooks"].items():
        assert not [name for name, value in result["metrics"].items() if value is None], notebook


def test_the_second_run_makes_nothing(smoke):
    _, first, second = smoke
    made = [
        a["key"]
        for result in second["notebooks"].values()
        for a in result["artifacts"]
        if not a["cached"]
    ]
    assert not made
    assert any(
        not a["cached"] for result in first["notebooks"].values() for a in result["artifacts"]
    )


# What the tasks of the queue make, and notebooks only find; what else they make is a matter of seconds.
TRAINED = ("student", "cgan", "guided", "inversion", "teacher", "scene_gan", "detection", "titn")
TRAINED += ("dearkd", "plain_vit", "measures", "scene_measures", "ablation_cell")


@pytest.mark.parametrize("notebook", ["10", "20", "30", "35", "40", "50", "60"])
def test_tasks_make_what_a_notebook_trains(smoke, notebook):
    """By the same keys: the notebook's own steps, makers and students are theirs."""
    (result,) = [r for name, r in smoke[1]["notebooks"].items() if name.startswith(notebook)]
    made = [a["key"] for a in result["artifacts"] if not a["cached"]]
    assert not [key for key in made if key.startswith(TRAINED)]
    assert any(a["key"].startswith(TRAINED) for a in result["artifacts"])


def test_the_second_run_finds_the_same(smoke):
    _, first, second = smoke
    for name in NOTEBOOKS:
        keys = [
            [a["key"] for a in results["notebooks"][name]["artifacts"]]
            for results in (first, second)
        ]
        assert keys[0] == keys[1], name
    for name in ("20_gan_fid", "30_classification_kd", "35_ablation"):
        assert first["notebooks"][name]["metrics"] == second["notebooks"][name]["metrics"]


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_every_report_is_whole(smoke, notebook):
    out = smoke[0] / "first"
    saved = json.loads((out / "metrics" / f"{notebook}.json").read_text())
    for kind, suffixes in (("figures", ("svg", "pdf")), ("tables", ("csv", "tex"))):
        for entry in saved[kind]:
            assert entry["caption"]
            for suffix in suffixes:
                assert (out / kind / f"{entry['name']}.{suffix}").stat().st_size > 0
    page = (out / f"{notebook}.html").read_text()
    assert "<script" not in page and "Traceback" not in page
    assert page.count("data:image/svg+xml;base64,") == len(saved["figures"])
    assert "&lt;Figure size" not in page, "a figure was shown as text"


def test_the_index_shows_the_papers_figures_beside_ours(smoke):
    out = smoke[0] / "first"
    page = (out / "index.html").read_text()
    shown = [
        entry
        for path in (out / "metrics").glob("*.json")
        for entry in json.loads(path.read_text())["figures"]
        if entry["paper"]
    ]
    assert page.count("data:image/svg+xml;base64,") == len(shown) >= 10
    for name in NOTEBOOKS:
        assert f'id="{name}"' in page and f'href="{name}.html"' in page


def test_makers_2_and_3_read_no_real_image_and_a_summary_says_what_lies_behind(smoke):
    saved = json.loads((smoke[0] / "first" / "metrics" / "20_gan_fid.json").read_text())
    by_stage = {}
    for artifact in saved["artifacts"]:
        by_stage.setdefault(artifact["stage"], []).append(artifact["ledger"])
    assert len(by_stage["guided_generator"]) == 3 and not any(by_stage["guided_generator"])
    assert not any(by_stage["synthetic"]) and all(by_stage["cgan"])
    table = (smoke[0] / "first" / "tables" / "makers.csv").read_text()
    assert all(f"{maker}," in table for maker in MAKERS)


def test_students_on_synthetic_images_are_held_to_it(smoke):
    out = smoke[0] / "first"
    for path in (out / "metrics").glob("*.json"):
        for artifact in json.loads(path.read_text())["artifacts"]:
            if artifact["stage"] == "student_synthetic":
                assert {row["purpose"] for row in artifact["ledger"]} == {"evaluation"}


def test_a_task_reports_a_line_an_epoch(tmp_path):
    plan = pipeline.make_plan("smoke", only="60", artifacts=str(tmp_path), out=str(tmp_path))
    (name, path), heard = *plan.notebooks.items(), []
    own = (path, plan.parameters[name], "ViT, seed 0")
    assert do_task(heard.append, Needs(1), Place(), *own) > 0
    assert sum("titn vit_small_28 epoch 1/1" in message["line"] for message in heard) == 1
