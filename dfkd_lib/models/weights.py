"""Weights into a model: they fit, they are numbers, and a record asks for nothing larger than its file holds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict
from torch import nn

from dfkd_lib.core import WorkbenchError, is_number, printable
from dfkd_lib.models.convert import command

# What torch.compile, FSDP and activation checkpointing put into names.
INSERTED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
REBUILD = "build the model the checkpoint was trained with"


def misfit(expected: object, got: object, where, fix: str = REBUILD) -> WorkbenchError:
    """The error on weights of another model."""
    what = "a checkpoint does not fit the model"
    return WorkbenchError(what, expected=expected, got=got, where=where, fix=fix)


def read_json(
    file: Path, fix: str = "name a folder with config.json and model.safetensors"
) -> dict:
    """What a JSON file beside weights holds."""
    try:
        if not isinstance(found := json.loads(file.read_bytes()), dict):
            raise ValueError("no JSON object")
        return found
    except (OSError, ValueError, RecursionError) as error:
        raise WorkbenchError(
            f"a model has no readable {file.name}",
            got=str(error)[:200],
            where=file,
            expected="a JSON object",
            fix=fix,
        ) from None


def load_weights(model: nn.Module, tensors: dict, where, fix: str = REBUILD) -> None:
    """Load weights of the model's own names and shapes.

    Weights that the model has no place for are refused with them: a deeper model would lose its last blocks in silence.
    `where` is the file, for the message.

    Raises:
        WorkbenchError: naming the first weights that do not fit, or are no finite numbers.
    """
    state = model.state_dict()
    if not tensors.keys() <= state.keys():
        tensors, _ = unwrapped(tensors, next(iter(state)), where)
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    unfit = [name for name, value in state.items() if shapes.get(name) != tuple(value.shape)]
    extra = [name for name in tensors if name not in state]
    if unfit or extra:
        expected = "; ".join(f"{name} {tuple(state[name].shape)}" for name in unfit[:3])
        got = "; ".join(str(shapes.get(name, "no such weight")) for name in unfit[:3])
        missing = sum(name not in tensors for name in unfit)
        counts = f"{len(unfit)} of {len(state)} weights do not fit, {missing} of them missing"
        unknown = f"; {len(extra)} unknown: {', '.join(extra[:3])}" if extra else ""
        found = f"{got or 'more'} ({counts}{unknown})"
        raise misfit(expected or "no other weights", found, where, fix)
    model.load_state_dict(as_numbers(tensors, state, where))


def as_numbers(tensors: dict, state: dict, where) -> dict:
    """The tensors in the types of `state`; WorkbenchError if one is of another kind (whole for float), or not finite."""
    made = {}
    for name, value in tensors.items():
        kind, floats = state[name].dtype, value.is_floating_point()
        made[name] = value.to(kind) if floats == kind.is_floating_point else None
        if made[name] is None or value.is_complex() or not torch.isfinite(made[name]).all():
            raise WorkbenchError(
                "a checkpoint holds weights that are not numbers",
                where=where,
                expected=f"finite values of {kind}",
                got=f"{name}: {'NaN or infinity' if floats else value.dtype}",
                fix="fetch it again, or take the last good one: its training has diverged",
            )
    return made


def unwrapped(tensors: dict, own: str, where) -> tuple[dict, list[str]]:
    """The tensors by the model's own names, without what compilers, wrappers and training loops put before them, and the
    names of those left out; WorkbenchError if several models are in the checkpoint.

    What stands before `own`, a weight that the model has under this very name, is taken off all; what does not begin so (a
    loss's weights, an optimizer's) is left out.
    """
    for name in INSERTED:  # also within a name, where one block alone was wrapped
        tensors = {key.replace(f"{name}.", ""): value for key, value in tensors.items()}
    found = [key.removesuffix(own) for key in tensors if f".{key}".endswith(f".{own}")]
    # conv1.weight is also the end of layer1.0.conv1.weight.
    outer = [one for one in found if not any(one != o and one.startswith(o) for o in found)]
    if len(outer) > 1:
        raise WorkbenchError(
            "a checkpoint holds several models",
            expected="weights of one",
            got=", ".join(one.rstrip(".") for one in outer),
            where=where,
            fix=f"{command(where, 'OUT', '--part', outer[0].rstrip('.'))} writes one of them",
        )
    prefix = outer[0] if outer else ""
    inside = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return inside, [k for k in tensors if not k.startswith(prefix)]


def check_sizes(sizes: dict, tensors: dict, where: Path) -> None:
    """Refuse what a record asks of an architecture before anything so large is built."""
    for key, value in sizes.items():
        # Every block has a weight of its own.
        most = len(tensors) if "depth" in key or "layers" in key else 65_536
        values = value if isinstance(value, (list, tuple)) else [value]
        numbers = [v for v in values if not isinstance(v, (str, bool, type(None)))]
        if not all(is_number(v, -1, most) for v in numbers):
            raise WorkbenchError(
                "a model's record asks for impossible sizes",
                expected=f"{key} up to {most}, or text",
                got=value,
                where=where,
                fix="correct that file",
            )


def built(build: Callable[[], nn.Module], tensors: dict, where: Path) -> nn.Module:
    """The architecture, unless it has many more weights than the file: none of them takes memory before that is known."""
    with torch.device("meta"):
        count = sum(p.numel() for p in build().parameters())
    there = sum(t.numel() for t in tensors.values())
    if count > 4 * there + 1_000_000:
        raise misfit(f"about {count} weights", f"{there} weights", where)
    return build()


def _class_name(name: str) -> str:
    if not name.strip() or not printable(name):
        raise ValueError("a class name without control characters")
    return name


class Record(BaseModel):
    """What a checkpoint is of, as the .json beside it has it: a name, keywords of that architecture, class names."""

    model_config = ConfigDict(strict=True)

    model: str
    overrides: dict[str, Any] = {}
    classes: list[Annotated[str, AfterValidator(_class_name)]] | None = None
