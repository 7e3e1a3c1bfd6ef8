"""Weights into a model: they fit, they are numbers, and a record asks for nothing larger than its file holds."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from dfkd_lib.core import WorkbenchError, is_number, printable


def load_weights(
    model: nn.Module,
    tensors: dict,
    where,
    fix: str = "build the model the checkpoint was trained with",
) -> None:
    """Load weights of the model's own names and shapes.

    Weights that the model has no place for are refused with them: a deeper model would lose its last blocks in silence.

    Args:
        model: takes the weights.
        tensors: by name, with the prefix of a wrapper or without.
        where: the file, for the message.
        fix: for the message.

    Raises:
        WorkbenchError: naming the first weights that do not fit, or are no finite numbers.
    """
    state = model.state_dict()
    if not any(name in state for name in tensors):
        tensors = unwrapped(tensors)
    unfit = [
        name
        for name, value in state.items()
        if name not in tensors or tensors[name].shape != value.shape
    ]
    extra = [name for name in tensors if name not in state]
    if unfit or extra:
        missing = sum(name not in tensors for name in unfit)
        expected = "; ".join(f"{name} {tuple(state[name].shape)}" for name in unfit[:3])
        got = "; ".join(
            str(tuple(tensors[n].shape)) if n in tensors else "no such weight" for n in unfit[:3]
        )
        unknown = f"; {len(extra)} unknown: {', '.join(extra[:3])}" if extra else ""
        raise WorkbenchError(
            "a checkpoint does not fit the model",
            expected=expected or "no other weights",
            where=where,
            got=f"{got or 'more'} ({len(unfit)} of {len(state)} weights do not fit, {missing} of them "
            f"missing{unknown})",
            fix=fix,
        )
    model.load_state_dict(as_numbers(tensors, state, where))


def as_numbers(tensors: dict, state: dict, where) -> dict:
    """The tensors in the types of `state`; WorkbenchError if one is of another kind (whole for float), or not finite."""
    made = {}
    for name, value in tensors.items():
        made[name] = (
            value.to(state[name].dtype)
            if value.is_floating_point() == state[name].is_floating_point()
            else None
        )
        if made[name] is None or value.is_complex() or not torch.isfinite(made[name]).all():
            raise WorkbenchError(
                "a checkpoint holds weights that are not numbers",
                where=where,
                expected=f"finite values of {state[name].dtype}",
                got=f"{name}: {'NaN or infinity' if value.is_floating_point() else value.dtype}",
                fix="fetch it again, or take the last good one: its training has diverged",
            )
    return made


def unwrapped(tensors: dict) -> dict:
    """The tensors without the prefix of a wrapper that the checkpoint was saved from, if all share one."""
    for prefix in ("module.", "_orig_mod.", "model."):
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def check_sizes(sizes: dict, tensors: dict, where: Path) -> None:
    """Refuse what a record asks of an architecture before anything so large is built."""
    for key, value in sizes.items():
        # Every block has a weight of its own.
        most = len(tensors) if "depth" in key or "layers" in key else 65_536
        values = value if isinstance(value, (list, tuple)) else [value]
        if any(
            not isinstance(v, (str, bool, type(None))) and not is_number(v, -1, most)
            for v in values
        ):
            raise WorkbenchError(
                "a model's record asks for impossible sizes",
                expected=f"{key} up to {most}, or text",
                got=value,
                where=where,
                fix="correct that file",
            )


def check_fits(build: Callable[[], nn.Module], tensors: dict, where: Path) -> None:
    """Refuse an architecture of many more weights than the file has, before memory is taken for them."""
    try:
        with torch.device("meta"):
            count = sum(p.numel() for p in build().parameters())
    except (
        RuntimeError,
        NotImplementedError,
    ):  # an architecture that cannot be built without numbers
        return
    there = sum(t.numel() for t in tensors.values())
    if count > 4 * there + 1_000_000:
        raise WorkbenchError(
            "a checkpoint does not fit the model",
            expected=f"about {count} weights",
            got=f"{there} weights",
            where=where,
            fix="build the model the checkpoint was trained with",
        )


def checked_record(about) -> dict:
    """A record beside a checkpoint, if it is one; ValueError, TypeError or KeyError if it is not."""
    overrides, classes = about.get("overrides", {}), about.get("classes")
    if not isinstance(about["model"], str) or not isinstance(overrides, dict):
        raise TypeError('"model" is a name, "overrides" are settings by name')
    if classes is not None and not (
        isinstance(classes, list)
        and all(isinstance(n, str) and n.strip() and printable(n) for n in classes)
    ):
        raise ValueError('"classes" are names without control characters')
    return about
