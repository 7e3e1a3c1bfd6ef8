"""Pickled checkpoints become safetensors by the command that the refusal of them names, and none of their code runs."""

import argparse
import os
from collections import OrderedDict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from fixes import run_fix

from dfkd_lib.core import WorkbenchError
from dfkd_lib.models import convert, load_model

NAME = "vit_tiny_patch16_224"


class Settings(dict):
    """As Lightning saves hyperparameters."""


class Evil:
    def __init__(self, what):
        self.what = what

    def __reduce__(self):
        return self.what, ("import sys; sys.exit('its code was run')",)


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return timm.create_model(NAME, num_classes=3, depth=1).state_dict()


MOMENTS = {"state": {0: {"exp_avg": torch.zeros(2), "step": torch.tensor(1.0)}}}
AROUND = {
    "torch": lambda s: OrderedDict(s),
    "deit": lambda s: {"model": s, "optimizer": MOMENTS, "epoch": 3},
    "timm": lambda s: {"state_dict": s, "args": argparse.Namespace(lr=1, out=Path("x"))},
    "lightning": lambda s: {
        "state_dict": {f"model.{k}": v for k, v in s.items()},
        "hyper_parameters": Settings(lr=1, net=Settings(), scheduler=partial(print)),
        "optimizer_states": [MOMENTS],
        "best": np.float64(0.5),
    },
    "eval": lambda s: {"model": s, "callback": Evil(eval)},
    "module": lambda s: {"model": s, "optimizer": torch.nn.Linear(2, 2)},
}


@pytest.mark.parametrize("kind", AROUND)
def test_the_advice_for_a_pickle_works(tmp_path, state, kind):
    file = tmp_path / "my model.pth"
    torch.save(AROUND[kind](state), file)
    with pytest.raises(WorkbenchError, match="safetensors only") as caught:
        load_model(NAME, file)
    run_fix(caught.value)
    (tmp_path / "my model.json").write_text(f'{{"model": "{NAME}", "overrides": {{"depth": 1}}}}')
    loaded = load_model(NAME, file.with_suffix(".safetensors"))
    assert torch.equal(loaded.model.head.weight, state["head.weight"])


def test_the_advice_for_a_folder_with_a_pickle_works(tmp_path, state):
    torch.save(dict(state), tmp_path / "pytorch_model.bin")
    torch.save({"step": 1}, tmp_path / "optimizer.pt")  # as a trainer leaves it
    (tmp_path / "config.json").write_text(
        f'{{"architecture": "{NAME}", "num_classes": 3, "model_args": {{"depth": 1}}}}'
    )
    with pytest.raises(WorkbenchError, match="safetensors only") as caught:
        load_model(str(tmp_path))
    run_fix(caught.value)
    assert load_model(str(tmp_path)).model.num_classes == 3


def test_of_several_models_one_is_named(tmp_path, state):
    file = tmp_path / "m.pth"
    torch.save({"state_dict": state, "ema": {k: v + 1 for k, v in state.items()}}, file)
    with pytest.raises(WorkbenchError, match="(?s)several models.*state_dict, ema") as caught:
        convert(file)
    run_fix(caught.value)
    with pytest.raises(WorkbenchError, match="is there already") as caught:
        convert(file, part="ema")
    run_fix(caught.value, OUT=f"{tmp_path}/ema.safetensors --part ema")
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {
        "m.safetensors",
        "ema.safetensors",
    }


def test_tied_weights_and_unknown_parts(tmp_path):
    weight = torch.ones(2, 2)
    torch.save({"a": weight, "b": weight}, tmp_path / "tied.pt")
    convert(tmp_path / "tied.pt")
    with pytest.raises(WorkbenchError, match="(?s)one of their names.*a, b"):
        convert(tmp_path / "tied.pt", tmp_path / "other.safetensors", part="nope")


@pytest.mark.parametrize(
    "content, words",
    [
        ({"epoch": 1}, "no weights"),
        (torch.nn.Linear(2, 2), "no weights"),
        ({"model": {"a": torch.ones(2)}, "x": Evil(os.system)}, "without running its code"),
        (b"no pickle", "without running its code"),
        (None, "is missing"),
    ],
)
def test_what_cannot_be_converted(tmp_path, content, words):
    file = tmp_path / "m.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(WorkbenchError, match=words):
        convert(file)
