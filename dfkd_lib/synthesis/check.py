"""A maker of one's own is checked before anything is trained for it: what it has, takes and returns."""

import inspect
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from dfkd_lib.core import Artifact, WorkbenchError

HELD = ("sees", "budget", "shard")
# The methods of a maker with what they are called with, and what they return; `drawing` is looked at when it is called.
CALLED = {
    "train": (("store", "given"), Artifact | None, "an artifact or None"),
    "drawing": (("trained", "given"), object, ""),
    "parents": (("given",), list | tuple, "a list of artifacts"),
    "as_dict": ((), dict, "a dict"),
}
DRAWS = "a function of labels and a seed, which returns uint8 images (N, C, S, S)"


def _refuse(maker: Any, method: str, what: str, expected: str, got: object, fix: str) -> NoReturn:
    kind = maker if isinstance(maker, type) else type(maker)
    where = f"{kind.__name__}.{method}".rstrip(".")
    raise WorkbenchError(what, expected=expected, got=got, where=where, fix=fix)


def check_maker(maker: Any) -> None:
    """Refuse what is no `Maker`: a class, what lacks something of it, or has a method that takes something else."""
    if isinstance(maker, type):
        fix = f"call it: {maker.__name__}()"
        _refuse(maker, "", "a maker is an object, not its class", "an object", "a class", fix)
    wanted = (*HELD, *CALLED)
    missing = ", ".join(name for name in wanted if not hasattr(maker, name))
    if missing:
        fix = "add what is missing; the guide has an example (A maker of your own)"
        _refuse(maker, "", "this maker is not complete", ", ".join(wanted), f"no {missing}", fix)
    for name, (arguments, *_) in CALLED.items():
        expected = f"def {name}({', '.join(('self', *arguments))})"
        if got := _unlike(getattr(maker, name), arguments):
            what = "a method of this maker cannot be called"
            _refuse(maker, name, what, expected, got, f"write {expected}: …")
    if not isinstance(maker.shard, int) or maker.shard < 1:
        what, fix = "a maker draws so many images at a time", "set it to 500, say"
        _refuse(maker, "shard", what, "a whole number, at least 1", repr(maker.shard), fix)


def _unlike(called: Any, arguments: tuple[str, ...]) -> str:
    """Why something cannot be called with so many arguments; empty if it can, or where Python does not know."""
    if not callable(called):
        return f"{type(called).__name__}, which is no function"
    try:
        signature = inspect.signature(called)
    except ValueError:  # of a function that is not Python's
        return ""
    try:
        signature.bind(*arguments)
    except TypeError as error:
        return f"one of {signature}: {error}"
    return ""


def returned(maker: Any, method: str, value: Any) -> Any:
    """What a method of a maker has returned, if it is of the kind that `Maker` names."""
    _, kind, expected = CALLED[method]
    if not isinstance(value, kind):
        what, got = "a method of this maker returns something else", type(value).__name__
        _refuse(maker, method, what, expected, got, f"end it with return {expected}")
    return value


def check_drawing(maker: Any, error: TypeError, caller: Callable) -> None:
    """Refuse what `drawing` has returned, if the error is of its call, in the local `draw` of `caller`, and not of its own."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if frames[-1].f_code is not caller.__code__ or "draw" not in frames[-1].f_locals:
        return
    if got := _unlike(frames[-1].f_locals["draw"], ("labels", "seed")):
        fix = "end it with return draw, where def draw(labels, seed): …"
        _refuse(maker, "drawing", "drawing gives nothing to draw with", DRAWS, got, fix)
