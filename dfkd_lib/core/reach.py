"""Reading live objects for their fingerprint: whose code counts, what a name means, what a class or an object holds."""

import builtins
import contextlib
import hashlib
import importlib
import re
import sys
import sysconfig
from collections.abc import Callable
from enum import Enum
from functools import cache, cached_property, partial
from pathlib import Path
from types import FunctionType, MethodType

from dfkd_lib.core.source import Record, Sources, code_objects, digest, signature

LIBRARY = "dfkd_lib"
# What cannot change a result, and is not followed: where things are kept and how errors read (core), what is shown of a
# result (plots, reporting, widgets, pipeline, the tables of an ablation, the package's text), who computes it and when
# (jobs, presets, cli), and what a training prints, checks and saves beside its arithmetic.
NOT_FOLLOWED = tuple(
    f"{LIBRARY}.{name}."
    for name in (
        "core jobs presets cli plots reporting widgets pipeline ablation.table ablation.jobs deploy.package "
        "training.progress training.checkpoint training.check"
    ).split()
)
GENERATED = ("__create_fn__", "__dataclass", "_make_")  # qualified names of what dataclasses write
_known: dict[str, bool] = {}


def followed(module: str | None) -> bool:
    """Whether code of a module counts: the library's but for NOT_FOLLOWED, a notebook's, and modules of the user's own."""
    module = module or ""
    if module not in _known:
        top = module.split(".")[0]
        if top == LIBRARY:
            _known[module] = not f"{module}.".startswith(NOT_FOLLOWED)
        elif module == "__main__":
            return True
        elif top not in sys.modules:  # until it is imported
            return False
        else:
            file = getattr(sys.modules[top], "__file__", None)
            _known[module] = bool(file) and top not in sys.stdlib_module_names and _own(Path(file))
    return _known[module]


def _own(file: Path) -> bool:
    """Whether a module's file is none of Python's and of no installed library."""
    places = {file, file.resolve()}
    return not any(place.is_relative_to(folder) for place in places for folder in _installed())


@cache
def _installed() -> set[Path]:
    """The folders of Python's and the installed libraries' modules, also as links resolve them."""
    paths = sysconfig.get_paths()
    folders = {Path(paths[name]) for name in ("purelib", "platlib", "stdlib")}
    return {*folders, *(folder.resolve() for folder in folders)}


def look_up(function: FunctionType, name: str) -> tuple[object, bool]:
    """What a name means in a function, and whether its closure holds it; LookupError if nothing."""
    if name in function.__code__.co_freevars:
        cell = function.__closure__[function.__code__.co_freevars.index(name)]
        try:
            return cell.cell_contents, True
        except ValueError:  # not yet bound
            raise LookupError(name) from None
    if name in function.__globals__:
        return function.__globals__[name], False
    return getattr(builtins, name) if hasattr(builtins, name) else _missing(name), False


def _missing(name: str):
    raise LookupError(name)


def imported(root: str) -> object | None:
    """What `module:name` of an import inside a function stands for, where it is code that counts."""
    module, _, name = root.partition(":")
    if not followed(module):
        return None
    with contextlib.suppress(ImportError, AttributeError):
        loaded = importlib.import_module(module)
        return getattr(loaded, name) if name else loaded
    return None


def function_of(member: object) -> Callable | None:
    """The function inside a member of a class: itself, or a property's, a static or a class method's."""
    for kind, name in (
        (property, "fget"),
        (cached_property, "func"),
        ((staticmethod, classmethod, MethodType), "__func__"),
    ):
        if isinstance(member, kind):
            return getattr(member, name)
    is_function = isinstance(member, FunctionType) or (
        hasattr(member, "__wrapped__") and callable(member) and not isinstance(member, type)
    )
    return member if is_function else None


def generated(function: object) -> bool:
    code = getattr(function, "__code__", None)
    return code is not None and (
        code.co_qualname.startswith(GENERATED) or code.co_filename.startswith("<namedtuple")
    )


SOURCES = Sources()


def record_of(function: FunctionType) -> Record:
    code = function.__code__
    module = sys.modules.get(function.__module__)
    loader = getattr(getattr(module, "__spec__", None), "loader", None)
    record = SOURCES.record(code, loader)
    if record is not None:
        return record
    # Without a source (a function typed into `python -c`), the bytecode of this version of Python stands in for it.
    names = sorted(
        {name for one in code_objects(code) for name in (*one.co_names, *one.co_freevars)}
    )
    text = f"bytecode {sys.version_info[:2]} {signature(code)}"
    return Record(digest(text), [["", name] for name in names], [], True, 0, 0)


def validators(kind: type) -> set[str]:
    """The names of a configuration's checks, which refuse values and change none."""
    found = vars(kind).get("__pydantic_decorators__")
    return set() if found is None else {*found.field_validators, *found.model_validators}


def is_field(kind: type, name: str) -> bool:
    fields = (
        getattr(kind, "__pydantic_fields__", None) or {},
        getattr(kind, "__dataclass_fields__", {}),
    )
    return any(name in known for known in fields) or name in getattr(kind, "_fields", ())


def state_of(value: object) -> dict:
    if hasattr(type(value), "_fields") and isinstance(value, tuple):
        return value._asdict()
    slots = (name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()))
    return {
        **{name: getattr(value, name, None) for name in slots if name[:2] != "__"},
        **getattr(value, "__dict__", {}),
        **(getattr(value, "__pydantic_private__", None) or {}),
    }


def is_tensor(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def is_module(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def tensor_digest(value) -> str:
    content = value.detach().cpu().contiguous().flatten().view(sys.modules["torch"].uint8)
    head = f"{value.dtype} {tuple(value.shape)}".encode()
    return hashlib.blake2b(head + content.numpy().tobytes(), digest_size=8).hexdigest()


def frozen(value: object) -> bool:
    """Whether an object cannot change in place (what it holds apart): then it need not be read again."""
    if type(value) in (tuple, frozenset, partial, Path) or isinstance(value, (Enum, re.Pattern)):
        return True
    fixed = getattr(type(value), "model_config", {}).get("frozen")
    return bool(fixed or getattr(getattr(value, "__dataclass_params__", None), "frozen", False))
