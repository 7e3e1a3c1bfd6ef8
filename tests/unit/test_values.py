"""Values that name what is not there are refused in the plan, with the nearest right name; what a notebook adds is not."""

import pytest
from small_notebooks import OWN, write_notebooks

from dfkd_lib import pipeline, presets
from dfkd_lib.core import WorkbenchError
from dfkd_lib.pipeline.values import added_models, check_values

PARAMETERS = f'{OWN}overrides = ""'


@pytest.mark.parametrize(
    "setting, near",
    [
        ("35.baseline=without KDD", "'without KD'"),
        ("35.grid=/no/f.yaml", "check the path"),
        ("10.detector=detr_micro_scene", "'detr_micro_scenes'"),
        ("10.second=studnet", "'student'"),
        ("20.features=clasifier", "'classifier'"),
        ("20.student.model=vit_mnist_smal", "'vit_mnist_small'"),
        ("30.teacher.model=vit_mnist_techer", "'vit_mnist_teacher'"),
        ("30.teacher.shipped=vit_mnist", "'vit_mnist_small'"),
        ("30.data=cifra10", "'cifar10'"),
        ("30.data=/no/folder", "check the path"),
        ("00.name=cifra10", "'cifar10'"),
        ("40.data=scens", "'scenes'"),
        ("40.student.model=detr_resnet18_2x", "'detr_resnet18_2x2'"),
        ("50.student=dearkd_tny_32", "'dearkd_tiny_32'"),
        ("50.shares=a", "at most 1"),
        ("50.shares=0,2", "at most 1"),
        ("50.shares=1.5", "at most 1"),
        ("50.shares=0.5,0.5", "at most 1"),
    ],
)
def test_a_value_that_names_what_is_not_there_is_refused_in_the_plan(setting, near):
    with pytest.raises(WorkbenchError, match="notebook") as caught:
        pipeline.make_plan("quick", only=setting[:2], settings=[setting])
    assert near in caught.value.fix and caught.value.expected


@pytest.mark.parametrize(
    "setting",
    [
        "35.baseline=without KD",
        "20.features=vit_tiny_patch16_224.augreg_in21k",
        "10.model=facebook/dinov2-small",
        "10.detector=",
        "50.shares=0.5",
        "30.data=data",
    ],
)
def test_a_value_that_names_what_is_there_is_taken(setting):
    assert pipeline.make_plan("quick", only=setting[:2], settings=[setting]).parameters


@pytest.mark.parametrize(
    "code, added",
    [
        ("from dfkd_lib.models import MODELS\nMODELS['mine'] = (build, {})", {"mine"}),
        ('models.MODELS["mine"] = models.MODELS["titn_small"]', {"mine"}),
        ("print(models.MODELS['titn_small'])", set()),
        ("for name in sizes: MODELS[f'mine_{name}'] = (build, {})", None),
        ("models.MODELS.update(more)", None),
    ],
)
def test_models_that_a_notebook_adds_are_read_from_its_code(code, added):
    assert added_models([code]) == added


def test_a_model_that_a_notebook_or_its_module_adds_is_taken(tmp_path):
    cells = {"30_a": ["import my_models", "models.MODELS['mine'] = (build, {})"]}
    folder = write_notebooks(tmp_path / "own", cells, PARAMETERS, "classification")
    (folder / "my_models.py").write_text("from dfkd_lib import models\nmodels.MODELS['two'] = 1\n")
    for name in ("mine", "two"):
        settings = [f"30.student.model={name}"]
        assert pipeline.make_plan("quick", settings=settings, notebooks=folder)
    with pytest.raises(WorkbenchError, match="names no model") as caught:
        pipeline.make_plan("quick", settings=["30.student.model=mime"], notebooks=folder)
    assert "'mine'" in caught.value.fix


@pytest.mark.parametrize(
    "method, setting", [("synthesis", "features"), ("attention", "model"), ("ablation", "grid")]
)
def test_a_word_too_long_for_a_path_is_refused_as_any_other(method, setting):
    config = presets.of_parameters(method, {"preset": "smoke", setting: "y" * 5000})
    with pytest.raises(WorkbenchError, match="names no model|a grid cannot be read"):
        check_values(method, config, set())
