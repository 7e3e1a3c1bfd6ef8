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

SHARE, POSITIVE = (0.0, 1.0), (0.0, math.inf)
# What each notebook must have measured, and between which values: {notebook: {metric: (low, high)}}.
MEASURED = {
    "00_start_here": {
        "data_files_sound": (4, 4),
        "train_images": (60000, 60000),
        "teacher_accuracy": (0.95, 1.0),  # shipped: trained in full
    },
    "10_attention_probes": {
        **dict.fromkeys(("teacher_accuracy", "attention_on_patches"), SHARE),
        "class_probe_images": (300, math.inf),
    },
    "20_gan_fid": {
        **dict.fromkeys(("frechet_vanilla", "frechet_augmented"), POSITIVE),
        **{f"student of {maker}": SHARE for maker in MAKERS},
        **{f"frechet of {maker}": POSITIVE for maker in MAKERS},
    },
    "30_classification_kd": {
        f"{who}_accuracy": SHARE for who in ("teacher_real", "student_real", "student_synthetic")
    },
    "35_ablation": {"cells": (8, 8), "finished": (8, 8)},
    "40_detection_kd": {
        f"{who}_AP50": SHARE for who in ("teacher", "student_train", "student_synthetic")
    },
    "50_early_kd": {"teacher_accuracy": SHARE},
    "60_titn": {"vit_top1": SHARE, "titn_top1": SHARE},
    "70_deploy": {
        **dict.fromkeys(("student_fp32_accuracy", "student_int8_accuracy"), SHARE),
        "student_onnx_max_difference": (0.0, 1e-3),
        "int8_times_smaller_than_teacher": (0.5, 1000.0),
    },
    "90_summary": {
        "notebooks": (len(NOTEBOOKS) - 1, len(NOTEBOOKS) - 1),
        "artifacts": (15, math.inf),
        "data_free_stages": (1, math.inf),
    },
}


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
def test_every_notebook_succeeds_with_plausible_numbers_and_the_second_time_makes_nothing(
    smoke, notebook
):
    first, second = (results["notebooks"][notebook] for results in smoke[1:])
    for result in (first, second):
        assert result["status"] == "succeeded", result.get("error")
        assert result["metrics"] and result["parameters"]["preset"] == "smoke"
        assert 0 < result["peak_memory_mb"] < 4000
    for metric, (low, high) in MEASURED[notebook].items():
        values = first["metrics"][metric]
        for value in values if isinstance(values, list) else [values]:
            assert low <= value <= high, metric
    # A metric that could not be computed is kept as None: there must be none but intervals of single values.
    assert None not in first["metrics"].values()
    assert all(a["cached"] for a in second["artifacts"])
    assert [a["key"] for a in first["artifacts"]] == [a["key"] for a in second["artifacts"]]
    if notebook in ("20_gan_fid", "30_classification_kd", "35_ablation"):
        assert first["metrics"] == second["metrics"]
    assert pipeline.exit_code(smoke[1]) == pipeline.exit_code(smoke[2]) == 0


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


def test_what_learns_from_no_real_image_is_held_to_it(smoke):
    """Makers 2 and 3 read none, students on synthetic images only to be measured; a summary says what lies behind."""
    out, by_stage = smoke[0] / "first", {}
    saved = json.loads((out / "metrics" / "20_gan_fid.json").read_text())
    for artifact in saved["artifacts"]:
        by_stage.setdefault(artifact["stage"], []).append(artifact["ledger"])
    assert len(by_stage["guided_generator"]) == 3 and not any(by_stage["guided_generator"])
    assert not any(by_stage["synthetic"]) and all(by_stage["cgan"])
    table = (out / "tables" / "makers.csv").read_text()
    assert all(f"{maker}," in table for maker in MAKERS)
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
