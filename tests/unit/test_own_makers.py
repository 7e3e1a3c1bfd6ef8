"""Makers of one's own: what one lacks, takes or returns otherwise than `Maker` says is refused, with what to write."""

from dataclasses import dataclass

import pytest
import torch

from dfkd_lib import synthesis
from dfkd_lib.core import Store, WorkbenchError
from dfkd_lib.synthesis import Given, make_images


@dataclass(frozen=True)
class Black:
    """A maker of black images."""

    sees = ()
    budget = "nothing"
    shard = 5
    asked = []  # noqa: RUF012

    def train(self, store, given):
        self.asked.append("train")

    def drawing(self, trained, given):
        return lambda labels, seed: torch.zeros(len(labels), *given.shape, dtype=torch.uint8)

    def parents(self, given):
        return [given.teacher]

    def as_dict(self):
        return {}


@pytest.fixture
def given(tiny):
    _, images, teacher = tiny
    return Given(teacher, images.classes, images.shape)


def refused(tmp_path, maker, given, what: str) -> WorkbenchError:
    with pytest.raises(WorkbenchError, match=what) as caught:
        make_images(Store(tmp_path), maker, given, 10)
    assert caught.value.fix and caught.value.expected
    return caught.value


def test_a_whole_maker_makes_images(tmp_path, given):
    images, made = make_images(Store(tmp_path), Black(), given, 10)
    assert len(images) == 10 and not images.images.any() and not made.cached


@pytest.mark.parametrize(
    "names", ["sees", "budget", "shard as_dict", "train", "drawing", "parents"]
)
def test_what_a_maker_lacks_is_named(tmp_path, given, names):
    held = {name: value for name, value in vars(Black).items() if name not in names.split()}
    held = {name: held[name] for name in held if name[:2] != "__"}
    error = refused(tmp_path, type("Mine", (), held)(), given, "not complete")
    assert error.got == f"no {', '.join(names.split())}" and error.where == "Mine"


def test_a_class_is_no_maker(tmp_path, given):
    assert refused(tmp_path, Black, given, "not its class").fix == "call it: Black()"


def no_seed(self, trained, given):
    return lambda labels: None


def nothing(self, *_):
    return None


def one_too_few(self, given):
    """What is missing is `trained` or `store`."""


@pytest.mark.parametrize(
    "name, wrong, what, got",
    [
        ("train", one_too_few, "cannot be called", "too many positional arguments"),
        ("drawing", one_too_few, "cannot be called", "too many positional arguments"),
        ("as_dict", one_too_few, "cannot be called", "missing a required argument: 'given'"),
        ("parents", ["teacher"], "cannot be called", "list, which is no function"),
        ("train", lambda *_: torch.nn.Linear(1, 1), "returns something else", "Linear"),
        ("parents", nothing, "returns something else", "NoneType"),
        ("as_dict", nothing, "returns something else", "NoneType"),
        ("drawing", nothing, "nothing to draw with", "NoneType"),
        ("drawing", no_seed, "nothing to draw with", "too many positional arguments"),
        ("shard", 0, "so many images at a time", "0"),
        ("shard", None, "so many images at a time", "None"),
    ],
)
def test_a_method_that_takes_or_returns_something_else_is_named(
    tmp_path, given, name, wrong, what, got
):
    Black.asked.clear()
    maker = type("Mine", (Black,), {name: wrong})()
    error = refused(tmp_path, maker, given, what)
    assert error.where == f"Mine.{name}" and got in error.got
    assert bool(Black.asked) == (name != "train" and wrong in (nothing, no_seed)), "refused first"


def test_an_error_of_the_drawing_itself_stays_as_it_is(tmp_path, given):
    def drawing(self, trained, given):
        return lambda labels, seed: len(seed)

    with pytest.raises(TypeError, match="has no len"):
        make_images(Store(tmp_path), type("Mine", (Black,), {"drawing": drawing})(), given, 10)


def test_the_librarys_makers_are_whole():
    from dfkd_lib.synthesis.check import check_maker

    kinds = "CGAN GuidedGenerator Inversion ContrastiveInversion FastGenerator PenStrokes".split()
    for kind in kinds:
        check_maker(getattr(synthesis, kind)())
