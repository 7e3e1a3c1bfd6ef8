"""Fingerprints of code: which functions, classes and values decide what a function gives, as one digest and a table.

A function counts by its normalised source (`core.source`), and so does all that it reaches by name: functions, classes
with their bases, constants, closures, defaults. Where it stands (module, file, line) does not count.
"""

import hashlib
import inspect
from collections.abc import Callable
from enum import Enum
from functools import cached_property, partial
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import NamedTuple

from dfkd_lib.core.errors import WorkbenchError
from dfkd_lib.core.reach import (
    LIBRARY,
    SOURCES,
    followed,
    frozen,
    function_of,
    generated,
    imported,
    is_field,
    is_module,
    is_tensor,
    look_up,
    record_of,
    state_of,
    tensor_digest,
    validators,
)
from dfkd_lib.core.source import Record, digest

PLAIN = (type(None), bool, int, float, complex, str, bytes)
SHORT = 60  # characters of a value that the table shows as it is


class Registry(dict):
    """A table of entries by name, of which a result depends on the one it asks for: not followed as a whole.

    Whoever makes something from an entry names it: `store.get_or_make(..., code=[MODELS[name]])`.
    """


class Fingerprint(NamedTuple):
    """The identity of code.

    Args:
        digest: 16 hex digits of everything. table: {qualified name: digest of its own source, or "= value"}.
    """

    digest: str
    table: dict[str, str]


def fingerprint(*things: object) -> Fingerprint:
    """The fingerprint of functions, lambdas, classes, partials, bound methods, callable objects and values.

    Raises:
        WorkbenchError: if one of them reaches an object without a value that could be compared (an open file, a
            generator), or its source has changed since it was loaded.
    """
    return _walked(lambda walk: [walk.token(thing, "", _FULL) for thing in things])


def stage_fingerprint(make: Callable, code: tuple | list = ()) -> Fingerprint:
    """The fingerprint of a stage: of `make`, whose own closure holds what settings and parents already name, and of `code`."""
    return _walked(
        lambda walk: [walk.stage(make), *(walk.token(thing, "code", _FULL) for thing in code)]
    )


def forget() -> None:
    """Drop what this process has read of code, as if it had just begun; caches on disk stay."""
    _reads.clear()
    SOURCES.forget()


# How values count: all of them, or else a refusal; only what is plain or callable, as in the library's own closures, whose
# tensors and models are parents of the stage; only what is callable, as in the closure of a stage's `make`.
_FULL, _LIBRARY, _CODE = "full", "library", "code"


def _walked(begin: Callable) -> Fingerprint:
    walk = _Walk()
    SOURCES.begin()
    roots = begin(walk)
    walk.finish()
    text = "\n".join([*roots, *sorted(f"{name} {own}" for name, own in walk.table.items())])
    whole = "\n".join([text, *sorted(walk.edges)])
    return Fingerprint(hashlib.sha256(whole.encode()).hexdigest()[:16], walk.table)


class _Read(NamedTuple):
    """What reading a function or class came to, and what must still be so for it to hold at the next walk.

    Args:
        steps: calls of `_Walk` by name, with their arguments. checks: (namespace, name, the object it stood for).
        file, records: its source, and what was read of it. alive: keeps its ids from being given to something else.
    """

    steps: list[tuple]
    checks: list[tuple]
    file: str
    records: object
    alive: tuple

    def holds(self) -> bool:
        same = all(space.get(name, _ABSENT) is value for space, name, value in self.checks)
        return same and SOURCES.read(self.file) is self.records


_ABSENT = object()
_reads: dict[tuple, _Read] = {}


class _Walk:
    """One walk through code: what has been reached, what waits, and the table."""

    def __init__(self) -> None:
        self.table: dict[str, str] = {}
        self.edges: set[str] = set()
        self.seen: set[tuple] = set()
        self.waiting: list[tuple] = []
        self.inside: list[int] = []
        self.steps: list[tuple] = []
        self.checks: list[tuple] = []
        self.passing = False  # whether something has been read that may change in place

    def finish(self) -> None:
        for key, file, alive, read in self.waiting:  # which grows meanwhile
            known = _reads.get(key)
            if known is not None and known.holds():
                for name, *arguments in known.steps:
                    getattr(self, name)(*arguments)
                continue
            self.steps, self.checks, self.passing = [], [], False
            read()
            if not self.passing:
                records = SOURCES.read(file)
                _reads[key] = _Read(self.steps, self.checks, file, records, alive)
            self.steps = []

    def note(self, label: str, text: str) -> str:
        """Put a text under a label that no other text has."""
        self.steps.append(("note", label, text))
        number, name = 1, label
        while self.table.setdefault(name, text) != text:
            number += 1
            name = f"{label}#{number}"
        return name

    def stage(self, make: Callable) -> str:
        if isinstance(make, FunctionType):
            return self.function(make, None, _CODE)
        return self.token(make, "make", _FULL)

    # Values

    def token(self, value: object, where: str, mode: str) -> str:
        """A value as text; what it holds of code is queued. "" in the modes that skip it."""
        if isinstance(value, PLAIN):
            return "" if mode == _CODE else repr(value)
        if isinstance(value, FunctionType) or hasattr(value, "__wrapped__"):
            return self.function(value, None, _mode_of(value))
        if isinstance(value, (property, cached_property, staticmethod, classmethod)):
            return self.token(function_of(value), where, mode)
        if isinstance(value, MethodType):
            owner = value.__self__ if isinstance(value.__self__, type) else type(value.__self__)
            state = (
                "" if isinstance(value.__self__, type) else self.token(value.__self__, where, mode)
            )
            return f"{self.function(value.__func__, owner, _mode_of(value))}{state}"
        if isinstance(value, type):
            return self.kind(value)
        if isinstance(value, ModuleType):
            return value.__name__ if not followed(value.__name__) else ""
        if isinstance(value, BuiltinFunctionType):
            return f"{value.__module__}.{value.__qualname__}"
        if isinstance(value, Registry):
            return "registry"
        if id(value) in self.inside:
            return "itself"
        self.inside.append(id(value))
        try:
            return self.compound(value, where, mode)
        finally:
            self.inside.pop()

    def compound(self, value: object, where: str, mode: str) -> str:
        """The token of a container or an object."""
        if isinstance(value, partial):
            parts = [value.func, value.args, value.keywords]
            return f"partial{[self.token(part, where, mode) for part in parts]}"
        self.passing |= type(value) in (list, set, dict)
        if mode == _CODE and type(value) in (list, tuple, set, frozenset, dict):
            held = value.values() if isinstance(value, dict) else value
            return " ".join(filter(None, (self.token(one, where, mode) for one in held)))
        if type(value) in (list, tuple):
            return f"{type(value).__name__}{[self.token(one, where, mode) for one in value]}"
        if type(value) in (set, frozenset):
            return f"set{sorted(self.token(one, where, mode) for one in value)}"
        if type(value) is dict:
            items = [[self.token(part, where, mode) for part in pair] for pair in value.items()]
            return f"dict{items}"
        own = getattr(type(value), "fingerprint", None)
        if own is not None:  # a set of images, an artifact
            return "" if mode == _CODE else str(value.fingerprint)
        if isinstance(value, Enum):
            return f"{type(value).__qualname__}.{value.name}"
        return self.object(value, where, mode)

    def object(self, value: object, where: str, mode: str) -> str:
        """The token of an object: its class, and its state in the modes that read it."""
        name = type(value).__qualname__
        holds_tensors = is_tensor(value) or is_module(value)
        if holds_tensors and mode != _FULL:
            return "" if mode == _CODE else name
        if isinstance(value, Path):
            return "" if mode == _CODE else str(value)
        self.passing |= mode == _FULL and not frozen(value)
        ours = followed(type(value).__module__)
        if not ours and type(value).__module__.startswith(LIBRARY):
            return ""
        if ours:
            name = self.kind(type(value), built=False)
        if is_tensor(value):
            return f"{name}{tensor_digest(value)}"
        if is_module(value):
            tensors = [(key, tensor_digest(one)) for key, one in value.state_dict().items()]
            return f"{name}{value!r}{tensors}{value.training}"
        if ours or hasattr(value, "__pydantic_private__"):
            self.passing |= not frozen(value)
            return f"{name}{self.token(tuple(state_of(value).items()), where, mode)}"
        if mode != _FULL:
            return "" if mode == _CODE else name
        try:
            reduced = value.__reduce_ex__(4)
        except Exception:
            reduced = None
        if reduced is None:
            raise WorkbenchError(
                "code uses an object that cannot be part of a key",
                got=f"{name} in {where}",
                expected="numbers, text, functions, classes, tensors, models, or containers of them",
                fix="make it inside the function, or take it as an argument",
            )
        if isinstance(reduced, str):
            return f"{type(value).__module__}.{reduced}"
        parts = [list(part) if hasattr(part, "__next__") else part for part in reduced[1:]]
        return f"{name}{self.token(parts, where, mode)}"

    # Functions and classes

    def function(self, value: object, owner: type | None, mode: str) -> str:
        """The token of a function, which is queued; its module's name if it is another library's."""
        function = value
        while hasattr(function, "__wrapped__") and not _own_wrapper(function):
            function = function.__wrapped__
        if not isinstance(function, FunctionType):
            return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"
        if not followed(function.__module__):
            ours = (function.__module__ or "").startswith(LIBRARY)
            return "" if ours else f"{function.__module__}.{function.__qualname__}"
        name = function.__qualname__
        alive = (function.__code__, function.__defaults__, function.__kwdefaults__)
        # Functions without a closure are one if their code is: a lambda is another object each time.
        which = function if function.__closure__ else function.__globals__
        key = (id(which), id(owner), mode, *map(id, alive))
        self.enter(key, record_of(function), (function, owner, *alive), mode)
        return name

    def enter(self, key: tuple, record: Record, alive: tuple, mode: str) -> None:
        """Queue a function, unless it has been reached before."""
        self.steps.append(("enter", key, record, alive, mode))
        if key in self.seen:
            return
        self.seen.add(key)
        function, owner = alive[:2]
        self.edges.add(f"{function.__qualname__}:{record.text}")
        read = partial(self.read, function, owner, mode, record)
        self.waiting.append((key, function.__code__.co_filename, alive, read))

    def read(self, function: FunctionType, owner: type | None, mode: str, record: Record) -> None:
        """Enter a function in the table, and queue what it reaches."""
        name = function.__qualname__
        defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).items())
        self.passing |= bool(set(function.__code__.co_freevars) - {"__class__"})
        parts = [record.text, self.token(defaults, name, _mode_of(function))]
        parts += [self.name(function, chain, mode) for chain in record.names]
        if owner is not None:
            self.members(owner, record, function)
        self.note(name, digest("\n".join(parts)))

    def name(self, function: FunctionType, chain: list[str], mode: str) -> str:
        """The token of a name that a function uses, with the attributes behind it."""
        root, *attributes = chain
        where = f"{function.__qualname__}: {'.'.join(attributes)}"
        if root:
            found, closed = imported(root), False
            if found is None:
                return ".".join([root.replace(":", "."), *attributes])
        else:
            name, *attributes = attributes
            try:
                self.checks.append(
                    (function.__globals__, name, function.__globals__.get(name, _ABSENT))
                )
                found, closed = look_up(function, name)
            except LookupError:
                return f"undefined {name}"
        # A stage's settings hold what its closure does; what stands in a module does not stand in them.
        how = mode if closed else _mode_of(function)
        if mode == _CODE and not closed and not isinstance(found, (*PLAIN, ModuleType)):
            how = _LIBRARY
        return self.attribute(found, attributes, where, how)

    def attribute(self, found: object, attributes: list[str], where: str, mode: str) -> str:
        """The token of `found.a.b.c`, without evaluating properties."""
        rest = list(attributes)
        while rest:
            if isinstance(found, ModuleType):
                if not followed(found.__name__):
                    ours = found.__name__.startswith(LIBRARY)
                    return "" if ours else ".".join([found.__name__, *rest])
                name = rest.pop(0)
                if not hasattr(found, name):
                    return f"undefined {name}"
                self.checks.append((vars(found), name, getattr(found, name)))
                found = getattr(found, name)
                continue
            kind = found if isinstance(found, type) else type(found)
            if not followed(kind.__module__) or is_module(found):
                break
            member = self.member(kind, rest[0], None)
            function = function_of(member)
            if function is not None:
                state = "" if kind is found else self.state(found, where, mode)
                return f"{self.function(function, kind, _mode_of(function))}{state}"
            values = {} if kind is found else state_of(found)
            if rest[0] in values:
                self.passing |= not frozen(found)
                found = values[rest.pop(0)]
            elif isinstance(member, (*PLAIN, tuple, list, dict)):
                rest.pop(0)
                found = member
            else:
                break
        value = ".".join([self.token(found, where, mode), *rest])
        if isinstance(found, PLAIN) and mode != _CODE:
            self.note(where, f"= {value}" if len(value) <= SHORT else f"= {digest(value)}")
            return "value"
        return value

    def state(self, value: object, where: str, mode: str) -> str:
        """What an object holds; without its class, of which the method in use is reached by name."""
        if mode == _CODE or not hasattr(type(value), "fingerprint"):
            return self.token(tuple(state_of(value).items()), where, mode)
        return str(value.fingerprint)

    def members(self, owner: type, record: Record, function: FunctionType) -> None:
        """Queue the methods and class values that a method uses of its own object or class."""
        if record.whole:
            self.kind(owner, built=False)
        for name in record.own:
            member = self.member(owner, name, ...)
            inner = function_of(member)
            if inner is not None:
                self.function(inner, owner, _mode_of(inner))
            elif isinstance(member, (*PLAIN, tuple)) and not is_field(owner, name):
                self.attribute(member, [], f"{owner.__qualname__}.{name}", _mode_of(function))
        if ["", "super"] in record.names:
            for base in owner.__bases__:
                self.kind(base, built=False)

    def kind(self, kind: type, built: bool = True) -> str:
        """The token of a class, which is queued whole: methods, class values, bases; defaults of fields where it is built."""
        if not followed(kind.__module__):
            return (
                ""
                if kind.__module__.startswith(LIBRARY)
                else f"{kind.__module__}.{kind.__qualname__}"
            )
        if issubclass(kind, BaseException):
            return kind.__qualname__
        self.steps.append(("kind", kind, built))
        for part in (True, False) if built else (False,):
            if (id(kind), part) not in self.seen:
                self.seen.add((id(kind), part))
                read = partial(self.read_defaults if part else self.read_class, kind)
                self.waiting.append(((id(kind), part), "", (kind,), read))
        return kind.__qualname__

    def member(self, kind: type, name: str, default: object) -> object:
        """What a class or its bases hold under a name, unevaluated."""
        for one in kind.__mro__:
            self.checks.append((vars(one), name, vars(one).get(name, _ABSENT)))
            if name in vars(one):
                break
        return inspect.getattr_static(kind, name, default)

    def read_class(self, kind: type) -> None:
        name, mode = kind.__qualname__, _LIBRARY
        bases = [self.kind(base, built=False) for base in kind.__bases__ if base is not object]
        parts = [f"bases {bases}", repr(getattr(kind, "__dataclass_params__", ""))]
        if issubclass(kind, Enum):
            parts.append(repr([(one.name, one.value) for one in kind]))
        checks = validators(kind)
        self.checks += [(vars(kind), member, value) for member, value in vars(kind).items()]
        for member, value in vars(kind).items():
            function = function_of(value)
            if member in checks or member == "__repr__" or is_field(kind, member):
                continue
            if function is not None:
                if not generated(inspect.unwrap(function)):
                    parts.append(f"{member} {self.function(function, kind, _mode_of(function))}")
            elif not member.startswith(("__", "_abc", "model_")) and not issubclass(kind, Enum):
                parts.append(f"{member} {self.token(value, f'{name}.{member}', mode)}")
        self.note(f"class {name}", digest("\n".join(parts)))

    def read_defaults(self, kind: type) -> None:
        name = kind.__qualname__
        values = {}
        for field, one in (getattr(kind, "__pydantic_fields__", None) or {}).items():
            values[field] = (repr(one.default), one.default_factory)
        for field, one in getattr(kind, "__dataclass_fields__", {}).items():
            values[field] = (one.default, one.default_factory)
        values |= (
            {"": (kind._fields, kind._field_defaults)} if hasattr(kind, "_field_defaults") else {}
        )
        if values:
            text = "\n".join(f"{k} {self.token(v, name, _LIBRARY)}" for k, v in values.items())
            self.note(f"class {name}: defaults", digest(text))


def _own_wrapper(function: object) -> bool:
    """Whether what wraps a function is code that counts, unlike `torch.no_grad` and `functools.cache`."""
    return isinstance(function, FunctionType) and followed(function.__globals__.get("__name__"))


def _mode_of(function: object) -> str:
    module = getattr(function, "__module__", None) or ""
    return _LIBRARY if module.split(".")[0] == LIBRARY else _FULL
