"""A step written by a user is checked at its first batch: what it returns, and that it leaves the batch as it was."""

import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dfkd_lib.core import WorkbenchError

# What a step may ask for by name, beside modules of its own.
GIVEN = ("student", "batch", "teacher", "progress")


def place_of(function: Callable) -> str:
    """Where a function is written: the cell and line of a notebook, or file and line."""
    function = inspect.unwrap(getattr(function, "__func__", function))
    code = getattr(function, "__code__", None)
    if code is None:
        return repr(function)[:200]
    ipython = sys.modules.get("IPython")
    shell: Any = ipython.get_ipython() if ipython else None
    for number, source in enumerate(shell.user_ns.get("In", []) if shell else []):
        name = shell.compile.get_code_name(source, source, number)
        if f"def {function.__name__}" in source and name == code.co_filename:
            return f"cell [{number}], line {code.co_firstlineno}"
    return f"{code.co_filename}, line {code.co_firstlineno}"


def bound(
    step: Callable, student: Any, teacher: Callable | None, modules: dict | None = None
) -> Callable:
    """The step as the training loop calls it, (batch, progress) → losses.

    Raises:
        WorkbenchError: at the first batch, if it returns no dict with "loss", something that is no scalar tensor, a loss
            without gradient or names that are no text, or changes the batch.
    """
    wanted = inspect.signature(step).parameters
    first = True

    def run(batch: Any, progress: float) -> dict[str, Tensor]:
        nonlocal first
        values = dict(zip(GIVEN, (student, batch, teacher, progress), strict=True))
        known = {**values, **(modules or {})}
        arguments = {name: known[name] for name in wanted if name in known}
        before = [p.clone() if isinstance(p, Tensor) else p for p in batch] if first else []
        returned = step(**arguments)
        if first:
            first = False
            _check(step, returned, before, batch)
        return returned

    return run


def _check(step: Callable, returned: Any, before: list, batch: Any) -> None:
    """Refuse what a step has returned, or done to its batch, if the training loop cannot use it."""

    def refuse(what: str, expected: str, got: object, fix: str) -> None:
        where = place_of(step)
        raise WorkbenchError(f"the step {what}", expected=expected, got=got, where=where, fix=fix)

    if not isinstance(returned, dict) or "loss" not in returned:
        refuse(
            "returns no loss",
            'a dict of named losses with "loss", the one to minimise',
            list(returned) if isinstance(returned, dict) else type(returned).__name__,
            'end it with return {"loss": total, "kd": kd, …}',
        )
    for name, value in returned.items():
        if not isinstance(value, Tensor) or value.numel() != 1 or not isinstance(name, str):
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            what, expected = "returns something else than a number", "scalar tensors by name"
            refuse(what, expected, f"{name!r}: {shape}", "take its .mean()")
    if not returned["loss"].requires_grad:
        refuse(
            "returns a loss without gradient",
            "a loss computed from the student's output",
            "a constant",
            "no .detach(), .item() or torch.no_grad() between the student and the loss",
        )
    for name, was, part in zip(batch._fields, before, batch, strict=True):
        if isinstance(was, Tensor) and not torch.equal(was, part):
            fix = "work on a copy: images = batch.images.clone()"
            refuse("changes its batch", f"batch.{name} as it was", "other values", fix)
