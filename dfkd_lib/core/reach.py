"""Reading live objects for their fingerprint: whose code counts, what a name means, what a class or an object holds."""

import builtins
import contextlib
import hashlib
import importlib
import re
import sys
from collections.abc import Callable
from enum import Enum
from functools import cache, cached_property, partial
from itertools import chain
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

LIBRARY = "dfkd_lib"
# What cannot change a result, and is not followed: where things are kept and how errors read (core), what is shown of a
# result (plots, reporting, widgets, pipeline, the tables of an ablation, the package's text), who computes it and when
# (jobs, presets, cli), and what a training prints, checks and saves beside its arithmetic.
NOT_FOLLOWED = tuple(
    f"{LIBRARY}.{name}."
    for name in (
        "core jobs presets cli plots reporting widgets pipeline ablation.table deploy.package "
        "training.progress training.checkpoint training.check"
    ).split()
)
INSTALLED = {"site-packages", "dist-packages"}  # folders of other people's code
GENERATED = ("__create_fn__", "__dataclass", "_make_")  # qualified names of what dataclasses write
PLAIN = (str, int, float, type(None), bool, complex, bytes)
CONTAINERS = (dict, list, tuple, set, frozenset)
_known: dict[str, bool] = {}


def followed(module: str | None) -> bool:
    """Whether code of a module counts: the library's but for NOT_FOLLOWED, a notebook's, and modules of the user's own."""
    module = module or ""
    if module not in _known:
        top = module.split(".")[0]
        if in_library(module):
            _known[module] = not f"{module}.".startswith(NOT_FOLLOWED)
        elif module == "__main__":
            return True
        elif top not in sys.modules:  # until it is imported
            return False
        else:
            file = getattr(sys.modules[top], "__file__", None)
            own = file is not None and top not in sys.stdlib_module_names
            _known[module] = own and not INSTALLED & set(Path(str(file)).parts)
    return _known[module]


@cache
def in_library(module: str | None) -> bool:
    """Whether a module is the library's."""
    return (module or "").partition(".")[0] == LIBRARY


def outside(module: str | None, *names: str) -> str:
    """The name of what is not followed: another library's in full, none of the library's own."""
    return "" if in_library(module) else ".".join([str(module), *names])


def look_up(function: FunctionType, name: str) -> tuple[Any, bool]:
    """What a name means in a function, and whether its closure holds it; LookupError if nothing."""
    free = function.__code__.co_freevars
    if name in free:
        try:
            return (function.__closure__ or ())[free.index(name)].cell_contents, True
        except ValueError:  # not yet bound
            raise LookupError(name) from None
    if name in function.__globals__:
        return function.__globals__[name], False
    if hasattr(builtins, name):
        return getattr(builtins, name), False
    raise LookupError(name)


def imported(root: str) -> Any:
    """What `module:name` of an import inside a function stands for; None where it is no code that counts."""
    module, _, name = root.partition(":")
    if followed(module):
        with contextlib.suppress(ImportError, AttributeError):
            loaded = importlib.import_module(module)
            return getattr(loaded, name) if name else loaded
    return None


def function_of(member: Any) -> Callable | None:
    """The function inside a member of a class: itself, or a property's, a static or a class method's."""
    match member:
        case property():
            return member.fget
        case cached_property():
            return member.func
        case staticmethod() | classmethod() | MethodType():
            return member.__func__
        case FunctionType():
            return member
    wraps = hasattr(member, "__wrapped__") and callable(member) and not isinstance(member, type)
    return member if wraps else None


def generated(function: object) -> bool:
    """Whether a function was written by `dataclass` or `namedtuple`."""
    code = getattr(function, "__code__", None)
    return code is not None and (
        code.co_qualname.startswith(GENERATED) or code.co_filename.startswith("<namedtuple")
    )


def fields_of(kind: type) -> set[str]:
    """The names of a class that are fields of its objects."""
    fields = (getattr(kind, f"__{by}_fields__", None) or () for by in ("pydantic", "dataclass"))
    return {*getattr(kind, "_fields", ()), *chain.from_iterable(fields)}


def state_of(value: Any) -> dict:
    """What an object holds, by name."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return value._asdict()
    held, private = getattr(value, "__dict__", {}), getattr(value, "__pydantic_private__", None)
    slots = _slots(type(value).__mro__)
    if not slots and not private:
        return held
    return {**{name: getattr(value, name, None) for name in slots}, **held, **(private or {})}


def plain_state(module: Any) -> dict:
    """What a torch module holds itself of plain values, functions, and containers of these, by name: a temperature that its
    `repr` does not show."""
    return {name: one for name, one in vars(module).items() if name[0] != "_" and _plain(one)}


def _plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(map(_plain, (*value, *value.values())))
    if isinstance(value, CONTAINERS):
        return all(map(_plain, value))
    return isinstance(value, (*PLAIN, FunctionType, partial, type))


@cache
def _slots(bases: tuple[type, ...]) -> list[str]:
    slots = chain.from_iterable(getattr(one, "__slots__", ()) for one in bases)
    return [name for name in slots if name[:2] != "__"]


def is_tensor(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def is_module(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def tensor_digest(value: Any) -> str:
    content = value.detach().cpu().contiguous().flatten().view(sys.modules["torch"].uint8)
    head = f"{value.dtype} {tuple(value.shape)}".encode()
    return hashlib.blake2b(head + content.numpy().tobytes(), digest_size=8).hexdigest()


def frozen(value: object) -> bool:
    """Whether an object cannot change in place (what it holds apart): then it need not be read again."""
    if type(value) in (tuple, frozenset, partial, Path) or isinstance(value, (Enum, re.Pattern)):
        return True
    fixed = getattr(type(value), "model_config", {}).get("frozen")
    return bool(fixed or getattr(getattr(value, "__dataclass_params__", None), "frozen", False))
