"""Configurations: every door reads the same names, types and ranges, and refuses with the nearest right one."""

from typing import ClassVar, Literal

import pytest
from pydantic import Field

from dfkd_lib import presets
from dfkd_lib.core.config import Config, Seeds, parse_overrides
from dfkd_lib.core.errors import WorkbenchError
from dfkd_lib.distill.study import ClassificationConfig


class Student(Config):
    epochs: int = Field(5, ge=1, le=100, description="passes over the images")
    lr: float = Field(1e-3, gt=0, le=1, description="peak learning rate")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="arithmetic")


class Gan(Config):
    also: ClassVar[dict[str, str]] = {"lam": "attention_weight"}

    epochs: int = Field(4, ge=1, description="passes")
    lam: float = Field(1.0, ge=0, description="weight of the attention loss")
    clip: float | None = Field(None, gt=0, description="largest gradient norm")


class Root(Config):
    data: str = Field("mnist", description="data set")
    flag: bool = Field(False, description="whether")
    seeds: Seeds = Field((0, 1), description="seeds of the repeats")
    student: Student = Student()
    gan: Gan = Gan()


def test_text_is_read_as_the_type_of_its_setting():
    cfg = Root().override(
        "student.epochs=3 flag=false seeds=3 lam=0 precision=bf16 clip=none data='a b'"
    )
    assert (cfg.student.epochs, cfg.flag, cfg.seeds, cfg.gan.lam) == (3, False, (3,), 0.0)
    assert (cfg.student.precision, cfg.gan.clip, cfg.data) == ("bf16", None, "a b")
    assert Root(seeds="2,1").seeds == Root(seeds=[2, 1]).seeds == (2, 1)
    assert Root().student.epochs == 5, "the original is as it was"


@pytest.mark.parametrize("text", ["0.4,0.9", "(0.4, 0.9)", "[0.4,0.9]", "0.4, 0.9,"])
def test_tuples_are_written_with_commas_in_brackets_or_not(text):
    from dfkd_lib.training import TrainConfig

    config = TrainConfig(epochs=1, batch_size=1, lr=0.1).override({"betas": text})
    assert config.betas == (0.4, 0.9)
    for bad in ("a,b", "1", "0.1,0.2,0.3", "0.5,2", ""):
        with pytest.raises(WorkbenchError, match="betas"):
            config.override({"betas": bad})


@pytest.mark.parametrize(
    "words, expected",
    [
        ("student.epochs=2.9", "2.9"),
        ("student.epochs=0", "1..100"),
        ("student.epochs=true", "int"),
        ("student.lr=nan", "lr"),
        ("student.lr=-1", "lr"),
        ("flag=maybe", "bool"),
        ("precision=fp16", "did you mean"),
        ("seeds=1,1", "different"),
        ("seeds=", "seeds"),
        ("student.epoch=3", "did you mean 'student.epochs'"),
        ("studnt_epochs=3", "did you mean 'student.epochs'"),
        ("attention_wieght=3", "did you mean 'attention_weight'"),
        ("epochs=3", "student.epochs, gan.epochs"),
        ("epochs", "name=value"),
        ("flag=1 flag=0", "each name once"),
        ("data='open", "quotes"),
        ("student=3", "no setting 'student'"),
    ],
)
def test_what_cannot_be_meant_is_refused(words, expected):
    with pytest.raises(WorkbenchError) as caught:
        Root().override(words)
    assert expected in str(caught.value) and caught.value.fix, str(caught.value)


def test_python_is_a_door_too():
    for wrong in (
        {"epochs": 2.9},
        {"epochs": True},
        {"epochs": "x"},
        {"epoch": 3},
        {"lr": float("inf")},
    ):
        with pytest.raises(WorkbenchError):
            Student(**wrong)
    assert Student(lr=1).lr == 1.0
    with pytest.raises(WorkbenchError, match="did you mean 'student'"):
        Root(studant=Student())
    with pytest.raises(WorkbenchError, match="control"):
        Root(data="a\x1bb")
    with pytest.raises(Exception, match="frozen"):
        Root().data = "x"


def test_a_name_may_be_its_last_part_or_written_with_underscores():
    root = Root()
    assert root.resolve("lam") == "gan.lam" and root.resolve("student_epochs") == "student.epochs"
    assert parse_overrides("a=1 b.c='x y'") == {"a": "1", "b.c": "x y"}


def test_settings_tell_range_help_and_choices():
    found = Root().settings()
    assert list(found)[:3] == ["data", "flag", "seeds"] and "gan.clip" in found
    epochs = found["student.epochs"]
    assert (epochs.low, epochs.high, epochs.kind, epochs.default) == (1, 100, int, 5)
    assert epochs.help == "passes over the images" and epochs.rule == "1..100"
    assert found["student.precision"].choices == ("fp32", "bf16")
    changed = Root().override("gan.lam=0.5")
    assert changed.differences(Root()) == {"gan.lam": (0.5, 1.0)}
    assert Root(**changed) == changed and changed.as_dict()["seeds"] == [0, 1]


@pytest.mark.parametrize(
    "changes, words, near",
    [
        ({"makers": "pen stroks"}, ["'makers' is impossible", "got: 'pen stroks'"], "pen strokes"),
        ({"schedules": "kdd: 1@0"}, ["got: kdd: 1@0"], "write"),
        ({"student.epochs": 0}, ["'student.epochs' is impossible", "1..100000"], ""),
        ({"student.lr": 0}, ["'student.lr' is impossible", ">0..1"], ""),
        ({"weights.kd": 0, "weights.ce": 0, "weights.patch": 0}, ["got: kd=0, ce=0, patch=0"], ""),
    ],
)
def test_a_refusal_names_the_setting_its_value_and_the_nearest_name(changes, words, near):
    with pytest.raises(WorkbenchError) as caught:
        ClassificationConfig().override(changes)
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert len(text) < 700 and near in (caught.value.fix or "")


def test_lists_and_single_values_are_taken_as_text_is():
    config = ClassificationConfig()
    asked = {"makers": ["pen strokes", "vanilla GAN"], "patch_blocks": -1, "seeds": 3}
    found = config.override(asked)
    text = config.override("'makers=pen strokes,vanilla GAN' patch_blocks=-1 seeds=3")
    assert found == text and found.student.patch_blocks == (-1,)


def test_none_is_the_value_of_a_setting_that_can_be_none():
    assert presets.load("classification", student_grad_clip=None).student.grad_clip is None
    default = presets.load("classification")
    assert presets.load("classification", student_epochs=None, data=None) == default
