"""A step written by a user is checked at its first batch: what it returns, and that it leaves the batch as it was."""

import inspect
import sys
from collections.abc import Callable, Iterator
from functools import partial, wraps
from types import CodeType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from dfkd_lib.core import WorkbenchError

# What a step may ask for by name, beside modules of its own.
GIVEN = ("student", "batch", "teacher", "progress")
PLAYERS = ("discriminator", "generator")  # the optimizers of a GAN


def place_of(function: Callable) -> str:
    """Where a function is written: the cell and line of a notebook, or file and line; of a partial or a callable object
    where what it calls is, after the name of that."""
    name, code = _beneath(function)
    if code is None:
        return repr(function)[:200]
    plain = hasattr(function, "__code__") or hasattr(function, "__func__")
    named = "" if plain else f"{name}, "
    ipython = sys.modules.get("IPython")
    shell: Any = ipython.get_ipython() if ipython else None
    for number, source in enumerate(shell.user_ns.get("In", []) if shell else []):
        if shell.compile.get_code_name(source, source, number) == code.co_filename:
            return f"{named}cell [{number}], line {code.co_firstlineno}"
    return f"{named}{code.co_filename}, line {code.co_firstlineno}"


def _beneath(called: Any) -> tuple[str, CodeType | None]:
    """The name and code of the function that a call runs, of an object its class's name; None if that is not Python's."""
    while isinstance(called, partial):
        called = called.func
    called = inspect.unwrap(getattr(called, "__func__", called))
    if isinstance(called, partial):
        return _beneath(called)
    if hasattr(called, "__code__"):
        return called.__name__, called.__code__
    kind = type(called)
    call = getattr(kind, "forward" if isinstance(called, nn.Module) else "__call__")
    return kind.__name__, getattr(inspect.unwrap(call), "__code__", None)


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
        before = _copies({"batch": batch}) if first else {}
        returned = step(**arguments)
        if first:
            first = False
            fix = 'end it with return {"loss": total, "kd": kd, …}'
            _check_losses(step, returned, "returns", fix, "the student")
            _check_batch(step, before, {"batch": batch})
        return returned

    return run


def bound_updates(step: Callable, optimizers: tuple[str, ...] = PLAYERS) -> Callable:
    """The step of a GAN as its training calls it, (networks, parts of the batch, λ) → (optimizer's name, losses), each yielded.

    Raises:
        WorkbenchError: at the first batch, if it cannot be called so, yields nothing or changes the batch; at the first
            update of an optimizer, if there is none of that name, or for its losses as in `bound`.
    """
    seen: list[str] = []
    first = True

    def run(*given: Any) -> Iterator[tuple[str, dict[str, Tensor]]]:
        nonlocal first
        parts = _by_name(step, given) if first else {}
        before = _copies(parts)
        updates = step(*given)
        if first:
            _check_yields(step, updates)
        for update in updates:
            if not (type(update) is tuple and len(update) == 2 and update[0] in seen):
                _check_update(step, update, optimizers)
                seen.append(update[0])
            yield update
        if first:
            first = False
            if not seen:
                _refuse(step, "yields no update", _UPDATES, "nothing", _YIELD)
            _check_batch(step, before, parts)

    return run


def checks_step(fit: Callable) -> Callable:
    """A GAN's method that trains it, its step, if that is a caller's own, checked by `bound_updates`.

    Keys know such a method as the one that it wraps: what is refused or not decides no result.
    """

    @wraps(fit)
    def checked(settings: Any, *args: Any) -> Any:
        if settings._step:
            step, settings = settings._step, settings.replace()
            settings._step = bound_updates(step)
        return fit(settings, *args)

    return checked


_UPDATES = "updates, each yielded as (an optimizer's name, a dict of named losses)"
_YIELD = 'yield "generator", {"loss": total, …}'


def _refuse(step: Callable, what: str, expected: str, got: object, fix: str) -> NoReturn:
    where = place_of(step)
    raise WorkbenchError(f"the step {what}", expected=expected, got=got, where=where, fix=fix)


def _by_name(step: Callable, given: tuple) -> dict[str, Any]:
    """What a step is given, by the names that it takes it under."""
    try:
        signature = inspect.signature(step)
    except ValueError:  # of a function that is not Python's
        return {f"argument {number}": one for number, one in enumerate(given, 1)}
    try:
        return dict(signature.bind(*given).arguments)
    except TypeError as error:
        expected = f"a function of {len(given)}: the networks, the parts of the batch, λ"
        fix = "let it take what the step of the notebook takes"
        _refuse(step, "cannot be called as a GAN's", expected, f"{signature}: {error}", fix)


def _check_yields(step: Callable, returned: Any) -> None:
    """Refuse what a step of a GAN has returned unless it is an iterator, or a list, of updates."""
    if not isinstance(returned, (Iterator, list)):
        got, what = type(returned).__name__, "returns what it should yield"
        _refuse(step, what, _UPDATES, got, f"{_YIELD} in place of return")


def _check_update(step: Callable, update: Any, optimizers: tuple[str, ...]) -> None:
    """Refuse what a step of a GAN has yielded, if no optimizer can use it."""
    if not isinstance(update, tuple) or len(update) != 2:
        shape = f" of {len(update)}" if isinstance(update, tuple) else ""
        what = "yields something else than an update"
        _refuse(step, what, _UPDATES, f"{type(update).__name__}{shape}", _YIELD)
    name, losses = update
    if name not in optimizers:
        known = " or ".join(map(repr, optimizers))
        fix = f"{_YIELD}, or another of these names"
        _refuse(step, "yields losses for an unknown optimizer", known, repr(name), fix)
    fix = f'yield "{name}", {{"loss": total, …}}'
    _check_losses(step, losses, "yields", fix, f"the {name}")


def _check_losses(step: Callable, losses: Any, gives: str, fix: str, learner: str) -> None:
    """Refuse losses that the training loop cannot use."""
    if not isinstance(losses, dict) or "loss" not in losses:
        expected = 'a dict of named losses with "loss", the one to minimise'
        got = list(losses) if isinstance(losses, dict) else type(losses).__name__
        _refuse(step, f"{gives} no loss", expected, got, fix)
    for name, value in losses.items():
        if not isinstance(value, Tensor) or value.ndim or not isinstance(name, str):
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            what, expected = f"{gives} something else than a number", "scalar tensors by name"
            _refuse(step, what, expected, f"{name!r}: {shape}", "take its .mean()")
    if not losses["loss"].requires_grad:
        _refuse(
            step,
            f"{gives} a loss without gradient",
            f"a loss computed from the output of {learner}",
            "a constant",
            f"no .detach(), .item() or torch.no_grad() between {learner} and the loss",
        )


def _tensors(name: str, part: Any) -> Iterator[tuple[str, Tensor]]:
    """A tensor by its name, or those that a tuple holds."""
    if isinstance(part, Tensor):
        yield name, part
    elif isinstance(part, tuple):
        fields = [f".{field}" for field in getattr(part, "_fields", ())]
        for number, one in enumerate(part):
            yield from _tensors(name + (fields[number] if fields else f"[{number}]"), one)


def _copies(parts: dict[str, Any]) -> dict[str, Tensor]:
    every = (pair for part in parts.items() for pair in _tensors(*part))
    return {name: tensor.clone() for name, tensor in every}


def _check_batch(step: Callable, before: dict[str, Tensor], parts: dict[str, Any]) -> None:
    """Refuse a step that has changed what it was given."""
    for name, tensor in (pair for part in parts.items() for pair in _tensors(*part)):
        if not torch.equal(before[name], tensor):
            fix = f"work on a copy: {name.rpartition('.')[2]} = {name}.clone()"
            _refuse(step, "changes its batch", f"{name} as it was", "other values", fix)
