"""Growth: slopes of known power laws, every case at tiny sizes; costs on paper by hand; the pipeline's rows."""

import json
import math

import nbformat
import pytest
import torch
from bench import costs, growth, pipeline
from bench.growth import CASES, Growth, slope

from dfkd_lib import cli as command


@pytest.mark.parametrize("power", [0, 0.5, 1, 2])
def test_the_slope_of_a_power_law_is_its_exponent(power):
    assert slope((3, 12, 48), [7 * work**power for work in (3, 12, 48)]) == pytest.approx(power)
    assert math.isnan(slope((1, 4), (0, 2)))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0].__name__)
def test_every_case_works_at_a_tiny_size(monkeypatch, case):
    monkeypatch.setenv("DFKD_PROGRESS", "none")
    size = {"images": 64, "tokens": 4, "classes": 3, "seeds": 2}[case[1]]
    case[0](size)()


def test_a_point_is_measured_apart():
    found = growth.point_apart("seeds_table", 4)
    assert found["seconds"] > 0 and found["megabytes"] >= 0


def test_growth_is_saved_with_slopes_and_one_that_breaks_off_is_named(
    monkeypatch, tmp_path, capsys
):
    def measured(name, size):
        if name == "classes_probes":
            raise RuntimeError("no luck")
        return {"seconds": 2.0 * size, "megabytes": 0.5 * size**2}

    monkeypatch.setattr(
        growth, "measure", lambda case, real=growth.measure: real(case, measured=measured)
    )
    more = Growth("workers", "cells of an ablation", (1, 2), (8.0, 4.0), (), (-1, 0))
    assert growth.run("images,classes", tmp_path, [lambda: [more]]) == 1
    rows = {row["what"]: row for row in json.loads((tmp_path / "growth.json").read_text())["rows"]}
    assert len(rows) == 6 and rows["cells of an ablation"]["slopes"] == [pytest.approx(-1), None]
    (broken,) = [row for row in rows.values() if row["failed"]]
    assert "no luck" in broken["note"] and all(
        row["slopes"] == pytest.approx([1, 2]) for row in rows.values() if row["of"] == "images"
    )
    text = capsys.readouterr().out
    assert (
        "1.00 (1)" in text
        and "-1.00 (-1)" in text
        and (tmp_path / "growth.png").stat().st_size > 5000
    )
    assert command.main(["bench", "--growth", "--only", "nothing"]) == 2


def test_a_layer_is_counted_as_its_product():
    layer = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 4, 5))
    found = costs.counted(layer, 4)
    assert found == (2 * 48 * 5, 48 * 5 + 5, 2 * (48 + 5))


def test_a_vision_transformer_is_counted_with_its_attention():
    import timm

    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=2, num_heads=3, num_classes=5
    )
    tokens, width = 5, 24
    block = tokens * 12 * width**2 + 2 * tokens**2 * width
    assert costs.counted(model, 32).flops == 2 * (4 * 768 * width + 2 * block + width * 5)


def test_costs_are_arithmetic():
    machine = costs.Machine(
        peak=100, use=0.5, kept=((1, 1), (8, 0.5), (64, 0.25)), gpu_bytes=1000, host_bytes=2000
    )
    student, teacher = costs.Model(10, 7, 3), costs.Model(20, 11, 0)
    stage = costs.training("t", student, 100, 2, 4, 5, teacher)
    assert (
        stage.flops == 2 * 100 * (30 + 20)
        and stage.gpu == 16 * 7 + 4 * 3 + 4 * 11
        and stage.host == 500
    )
    assert [stage.seconds(machine, gpus) for gpus in costs.GPUS] == [200, 50, 12.5]
    assert [stage.host_bytes(machine, gpus) for gpus in costs.GPUS] == [500, 4000, 4000]
    assert (
        stage.disk == 4 * 7
        and costs.training("t", student, 100, 2, 4, 5, kept=9.0, made=True).disk == 4 * 7 + 500
    )
    kept = costs.targets(teacher, 100, 9, 5)
    assert (
        kept.disk == 2 * 9 * 100
        and kept.seconds(machine, 64) == 100 * 20 / 50
        and kept.host_bytes(machine, 8) == 500
    )
    assert costs.frechet(student, 10, 4, 5, 3.0).seconds(machine, 8) == 2 * 10 * 10 / 50 + 3
    assert costs.breaks([stage, kept], machine) == [(2.0, "host memory of t")]
    text = costs.table([stage, costs.evaluation(student, 3, 5, None)], machine)
    assert "| t | 3.3 min | 50.0 s | 12.5 s |" in text and "not measured" in text


def test_the_costs_are_printed(monkeypatch, capsys):
    monkeypatch.setattr(costs, "counted", lambda model, side: costs.Model(1e9, 10**6, 1e6))
    monkeypatch.setattr(costs, "create_detector", lambda name, classes: None)
    assert command.main(["bench", "--costs"]) == 0
    text = capsys.readouterr().out
    assert "No GPU was measured" in text and "64 GPUs" in text and text.count("Breaks first") == 2


def test_the_pipelines_overhead_is_told_in_parts():
    rounds = [{"ours": 20.0, "bare": 10.0, "by hand": 30.0}] * 2
    stages = [{"kernel": 2.0, "cells": 11.0, "page": 1.5, "all": 14.5, "command": 20.0}] * 2
    rows = {row.what: row for row in pipeline.rows_of(rounds, stages)}
    assert [row.ours for row in rows.values()] == [4.5, 2, 1.5, 1, 5.5, 20]
    assert rows["whole command, one notebook"].ratio == (1.5, 1.5, 1.5)
    assert (
        rows["overhead a notebook"].asked == "<= 6 s" and rows["overhead a notebook"].theirs == 10
    )


def test_a_notebook_runs_as_a_bare_script_with_the_parameters_given(tmp_path):
    node = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell("# text"),
            nbformat.v4.new_code_cell("a = 1\nb = 'x'", metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell("print(a, b)\nassert a == 2"),
        ]
    )
    nbformat.write(node, tmp_path / "n.ipynb")
    script = pipeline.bare(tmp_path / "n.ipynb", {"a": 2}, tmp_path)
    pipeline.run(script)
    with pytest.raises(Exception, match="non-zero"):
        pipeline.run(pipeline.bare(tmp_path / "n.ipynb", {"a": 3}, tmp_path))


def test_the_stages_of_a_notebook_are_read_from_its_marks(tmp_path):
    cell = nbformat.v4.new_code_cell(
        "1",
        metadata={
            "papermill": {
                "start_time": "2020-01-01T00:00:02+00:00",
                "end_time": "2020-01-01T00:00:05+00:00",
            }
        },
    )
    node = nbformat.v4.new_notebook(
        cells=[cell], metadata={"papermill": {"start_time": "2020-01-01T00:00:00+00:00"}}
    )
    nbformat.write(node, tmp_path / "n.ipynb")
    (tmp_path / "results.json").write_text(json.dumps({"notebooks": {"n": {"seconds": 6.5}}}))
    assert pipeline.stages(tmp_path, "n") == {"kernel": 2, "cells": 3, "page": 1.5, "all": 6.5}
