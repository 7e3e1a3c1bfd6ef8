"""Presets and the doors to a configuration: each reads the same words, and refuses the same with a fix."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from dfkd_lib import ablation, pipeline, presets
from dfkd_lib.core import WorkbenchError
from dfkd_lib.core.config import Config
from dfkd_lib.models import create_model
from dfkd_lib.training import TeacherConfig, make_optimizer, read_shipped

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))


# Tests of the pipeline add a method of their own, in whichever process runs them.
OURS = [method for method, place in presets.METHODS.items() if "small_notebooks" not in place]


@pytest.mark.parametrize("method", presets.METHODS)
@pytest.mark.parametrize("preset", presets.PRESETS)
def test_every_preset_of_every_method_is_possible(method, preset):
    assert isinstance(presets.of_preset(method, preset), presets.config_class(method))


@pytest.mark.parametrize("data", presets.PROFILES)
@pytest.mark.parametrize("preset", presets.PRESETS)
def test_every_preset_of_a_data_set_is_possible(data, preset):
    """Of the methods that take images; its models take them, and what it names as shipped is there, with its classes."""
    for method in ("attention", "synthesis", "classification", "ablation", "early", "titn"):
        config = presets.of_preset(method, preset, data)
        teacher = getattr(config, "teacher", None)
        if not isinstance(teacher, TeacherConfig):
            continue
        side, channels, classes = {"mnist": (28, 1, 10)}.get(
            data, (32, 3, 100 if data == "cifar100" else 10)
        )
        for name in (teacher.model, config.student.model):
            with torch.device("meta"):
                create_model(name, num_classes=classes, img_size=side, in_chans=channels)
        shipped = [teacher.shipped] if teacher.source == "shipped" else []
        for name in filter(None, [*shipped, teacher.guide]):
            record = read_shipped(name)[1]
            assert len(record["classes"]) == classes and record["overrides"]["img_size"] == side
        if shipped:
            assert read_shipped(teacher.shipped)[1]["model"] == teacher.model


@pytest.mark.parametrize("method", sorted(set(OURS) - {"start", "summary"}))
def test_no_method_runs_at_its_papers_sizes_unasked(method):
    for preset in ("smoke", "quick", "night"):
        assert presets.differences(f"{preset}.{method}"), f"{preset} has no {method}"


@pytest.mark.parametrize("method", ["attention", "synthesis", "classification", "ablation"])
def test_the_paper_preset_trains_by_the_papers_tables(method):
    """Learning rate, betas and weight decay of A Table 1 (GAN) and Table 3 (student), as the optimizer has them."""
    config = presets.of_preset(method, "paper")
    tables = {"gan": (1e-4, (0.5, 0.999), {2e-5}), "student": (7.5e-4, (0.5, 0.999), {0.025, 0.0})}
    present = [name for name in tables if hasattr(config, name)]
    assert present, f"{method} has none of {list(tables)}"
    for name in present:
        optimizer = make_optimizer([torch.nn.Linear(2, 2)], getattr(config, name))
        groups = optimizer.param_groups
        decays = {group["weight_decay"] for group in groups}
        (rate,) = {group["lr"] for group in groups}
        (betas,) = {group["betas"] for group in groups}
        assert (rate, betas, decays) == tables[name], name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_parameter_of_a_notebook_is_listed_once(path):
    """One that is a setting of its method leaves the value to the preset, or has the value that every preset has."""
    declared = pipeline.read_notebook(path)
    for name, parameter in declared.parameters.items():
        if name in presets.NOT_SETTINGS:
            continue
        full = declared.setting(name)
        trees = [presets.of_preset(declared.method, preset) for preset in presets.PRESETS]
        values = {tree.settings()[full].default for tree in trees}
        assert parameter.default in ("", None) or values == {parameter.default}, name


def test_given_is_over_the_preset_and_overrides_are_over_both():
    config = presets.load("classification", "quick", "student.epochs=9 lam=0", data="", seeds="4,2")
    quick = presets.of_preset("classification", "quick")
    assert config.seeds == (4, 2) and config.student.epochs == 9 and config.gan.lam == 0
    assert config.data == quick.data and set(config.differences(quick)) == {
        "seeds",
        "student.epochs",
        "gan.lam",
    }


# What is meant, and what is refused, through every door alike.
MEANT = {
    "student.epochs=3": 3,
    "student_epochs=3": 3,
    "temperature=2": 2.0,
    "seeds=3": (3,),
    "student.compile=false": False,
    "gan.width=256": 256,
    "teacher=train": "train",
    "kd_weight=0.5": 0.5,
}
REFUSED = [
    "student.epochs=2.9",
    "student.epoch=3",
    "temprature=2",
    "temperature=0",
    "seeds=1,1",
    "student.compile=perhaps",
    "gan.lam=nan",
    "student.precision=fp16",
    "makers=diffusion",
]


def plan_of(setting: str):
    return pipeline.make_plan("smoke", only="30", settings=[f"30.{setting}"])


@pytest.mark.parametrize("word, value", MEANT.items())
def test_what_is_meant_is_taken_through_every_door(word, value, tmp_path):
    name, _, text = word.partition("=")
    parameters = plan_of(word).parameters["30_classification_kd"]
    for config in (
        presets.load("classification", "smoke", word),
        presets.load("classification", "smoke", **{name: text}),
        presets.of_parameters("classification", {"preset": "smoke", **parameters}),
    ):
        assert config.settings()[config.resolve(name)].default == value
    if name != "seeds":
        (tmp_path / "grid.yaml").write_text(yaml.safe_dump({"base": {name: value}}))
        (cell,) = ablation.read_grid(tmp_path / "grid.yaml")
        assert cell.config().settings()[cell.config().resolve(name)].default == value


@pytest.mark.parametrize("word", REFUSED)
def test_what_cannot_be_meant_is_refused_at_every_door(word):
    name, _, text = word.partition("=")
    doors = {
        "python": lambda: presets.load("classification", "smoke", **{name: text}),
        "overrides": lambda: presets.load("classification", "smoke", word),
        "set": lambda: plan_of(word),
    }
    if name not in ("seeds", "makers"):
        doors["grid"] = lambda: ablation.read_grid({"base": {name: text}})
    for door, go in doors.items():
        with pytest.raises(WorkbenchError) as caught:
            go()
        assert caught.value.fix and caught.value.expected, door


def test_a_parameter_that_stands_for_the_setting_takes_it():
    parameters = plan_of("weights.temperature=2").parameters["30_classification_kd"]
    assert parameters["temperature"] == 2.0 and parameters["overrides"] == ""


def test_what_papermill_injects_beyond_the_declared_counts(tmp_path):
    """`papermill -p student_epochs 3` of a notebook that declares no such parameter; a typo is refused in the notebook."""
    import nbformat

    cells = [
        nbformat.v4.new_code_cell(
            'preset = "smoke"\nseeds = ""', metadata={"tags": ["parameters"]}
        ),
        nbformat.v4.new_code_cell(
            "from dfkd_lib import presets\n"
            'config = presets.load("classification", preset, seeds=seeds)\n'
            "print(config.student.epochs, config.seeds, config.student.compile)"
        ),
    ]
    source, out = tmp_path / "a.ipynb", tmp_path / "b.ipynb"
    metadata = {"language_info": {"name": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), source)

    def papermill(*words):
        command = [sys.executable, "-m", "papermill", str(source), str(out), "-k", "python3"]
        done = subprocess.run([*command, *words], capture_output=True, text=True)
        found = json.loads(out.read_text())["cells"][-1]["outputs"]
        return done.returncode, "".join(text for o in found for text in o.get("text", []))

    code, text = papermill("-p", "student_epochs", "3", "-p", "seeds", "5")
    assert code == 0 and text.split() == ["3", "(5,)", "False"]
    lists = "makers: [pen strokes, vanilla GAN]\nstudent_patch_blocks: [-1]\nseeds: [7]"
    code, text = papermill("-y", lists)
    assert code == 0 and text.split()[1] == "(7,)"
    assert papermill("-p", "student_patch_blocks", "-1")[0] == 0
    assert papermill("-y", "makers: [pen stroks]")[0] != 0
    assert papermill("-p", "student_epoch", "3")[0] != 0
    assert papermill("-p", "seeds", "2.5")[0] != 0
    assert papermill("-p", "interactive", "false")[0] != 0


@pytest.mark.parametrize("preset, overrides", [(3, ""), (None, ""), ("quick", 5), ("quick", 0.5)])
def test_words_that_papermill_made_numbers_are_refused(preset, overrides):
    with pytest.raises(WorkbenchError):
        presets.load("classification", preset, overrides)


def test_an_unknown_preset_or_method_is_refused_with_the_nearest():
    with pytest.raises(WorkbenchError, match="did you mean 'quick'"):
        presets.load("classification", "quik")
    with pytest.raises(WorkbenchError, match="did you mean 'classification'"):
        presets.load("clasification")
    assert issubclass(presets.config_class("summary"), Config)
