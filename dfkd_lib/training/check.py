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


def check_step(step: Callable, run: Callable[[], Any], batch: Any) -> dict[str, Tensor]:
    """What a step returns for its first batch, once it is what the training loop can use.

    Args:
        step: the function as its author wrote it, for the place in the error.
        run: calls it on the batch.
        batch: tensors in a named tuple, which the step may read but not change.

    Raises:
        WorkbenchError: if it returns no dict with "loss", something that is no scalar tensor, a loss without gradient or
            names that are no text; if it changes the batch.
    """
    before = [part.clone() if isinstance(part, Tensor) else part for part in batch]
    returned = run()
    fault = _fault(returned, before, batch)
    if fault:
        what, expected, got, fix = fault
        where = place_of(step)
        raise WorkbenchError(f"the step {what}", expected=expected, got=got, where=where, fix=fix)
    return returned


def _fault(returned: Any, before: list, batch: Any) -> tuple[str, str, object, str] | None:
    """What is wrong with what a step did: what it does, what was expected, what was found, the fix."""
    if not isinstance(returned, dict) or "loss" not in returned:
        return (
            "returns no loss",
            'a dict of named losses with "loss", the one to minimise',
            list(returned) if isinstance(returned, dict) else type(returned).__name__,
            'end it with return {"loss": total, "kd": kd, …}',
        )
    for name, value in returned.items():
        if not isinstance(value, Tensor) or value.numel() != 1 or not isinstance(name, str):
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            return (
                "returns something else than a number",
                "scalar tensors by name",
                f"{name!r}: {shape}",
                "take its .mean()",
            )
    if not returned["loss"].requires_grad:
        return (
            "returns a loss without gradient",
            "a loss computed from the student's output",
            "a constant",
            "no .detach(), .item() or torch.no_grad() between the student and the loss",
        )
    names = getattr(batch, "_fields", range(len(before)))
    for name, was, part in zip(names, before, batch, strict=True):
        if isinstance(was, Tensor) and not torch.equal(was, part):
            return (
                "changes its batch",
                f"batch.{name} as it was",
                "other values",
                "work on a copy: images = batch.images.clone()",
            )
    return None


def bound(
    step: Callable, student: Any, teacher: Callable | None, modules: dict | None = None
) -> Callable:
    """The step as the training loop calls it, (batch, progress) → losses; checked at its first batch."""
    wanted = inspect.signature(step).parameters
    first = True

    def run(batch: Any, progress: float) -> dict[str, Tensor]:
        nonlocal first
        values = dict(zip(GIVEN, (student, batch, teacher, progress), strict=True))
        known = {**values, **(modules or {})}
        arguments = {name: known[name] for name in wanted if name in known}
        if first:
            first = False
            return check_step(step, lambda: step(**arguments), batch)
        return step(**arguments)

    return run
