"""Fingerprints of code: which functions, classes and values decide what a function gives, as one digest and a table.

A function counts by its normalised source (`core.source`), and so does all that it reaches by name: functions, classes
with their bases, constants, closures, defaults. Where it stands (module, file, line) does not count.
"""

import hashlib
import inspect
from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from pathlib import Path
from threading import RLock
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

from dfkd_lib.core import reach
from dfkd_lib.core.config import Config
from dfkd_lib.core.errors import WorkbenchError
from dfkd_lib.core.graph import Walk, drop_changed, lines_of, wholes
from dfkd_lib.core.reach import CONTAINERS, PLAIN
from dfkd_lib.core.source import Record, digest, record_of

SHORT = 60  # characters of a value that the table shows as it is


class Registry(dict):
    """A table of entries by name, of which a result depends on the one it asks for: not followed as a whole.

    Whoever makes something from an entry names it: `store.get_or_make(..., code=[MODELS[name]])`.
    """


class Fingerprint(NamedTuple):
    """The identity of code.

    Args:
        digest: 16 hex digits of everything. lines: of the table, sorted: a qualified name, a tab, and the digest of its own
            source, or "= value".
    """

    digest: str
    lines: Sequence[str]

    @property
    def table(self) -> dict[str, str]:
        """{qualified name: digest or value}; others of one name are numbered."""
        table: dict[str, str] = {}
        for line in self.lines:
            label, _, text = line.partition("\t")
            number, name = 1, label
            while name in table:
                number += 1
                name = f"{label}#{number}"
            table[name] = text
        return table


def fingerprint(*things: object) -> Fingerprint:
    """The fingerprint of functions, lambdas, classes, partials, bound methods, callable objects and values.

    Raises:
        WorkbenchError: if one of them reaches an object without a value that could be compared (an open file, a
            generator), or its source has changed since it was loaded.
    """
    return _walked(lambda walk: [walk.token(thing, "", _FULL) for thing in things])[0]


def with_functions(thing: object) -> tuple[Fingerprint, list[FunctionType]]:
    """The fingerprint of one thing, and every function outside the library that counts in it."""
    return _walked(lambda walk: [walk.token(thing, "", _FULL)])


def stage_fingerprint(make: Callable, code: Sequence[object] = ()) -> Fingerprint:
    """The fingerprint of a stage: of `make`, whose own closure holds what settings and parents already name, and of `code`."""

    def begin(walk: _Walk) -> list[str]:
        of_make = isinstance(make, FunctionType)
        first = walk.function(make, stage=True) if of_make else walk.token(make, "make", _FULL)
        return [first, *(walk.token(thing, "code", _FULL) for thing in code)]

    return _walked(begin)[0]


# How values count: all of them, or else a refusal; only what is plain or callable, as in the library's own closures, whose
# tensors and models are parents of the stage; only what is callable, as in the closure of a stage's `make`, but all that is
# held by a callable of others than the library.
_FULL, _LIBRARY, _CODE = "full", "library", "code"


_reading = RLock()


def _walked(begin: "Callable[[_Walk], list[str]]") -> tuple[Fingerprint, list[FunctionType]]:
    with _reading:
        drop_changed()
        walk = _Walk()
        roots = begin(walk)
        fixed, own = walk.gathered()
        whole = (*roots, fixed, own)
        if whole not in wholes:
            lines = sorted(own | lines_of(fixed))
            text = "\n".join([*roots, *lines])
            wholes[whole] = Fingerprint(hashlib.sha256(text.encode()).hexdigest()[:16], lines)
        return wholes[whole], walk.functions


class _Walk(Walk):
    """A walk that reads functions, classes and values; `functions` are those outside the library."""

    def __init__(self) -> None:
        super().__init__()
        self.functions: list[FunctionType] = []

    # Values

    def token(self, value: Any, where: str, mode: str) -> str:
        """A value as text; what it holds of code is reached. "" in the modes that skip it."""
        kind = type(value)
        if kind in PLAIN or isinstance(value, PLAIN):  # what there is most of comes first
            return "" if mode == _CODE else repr(value)
        if kind is FunctionType:
            return self.function(value)
        if kind in CONTAINERS:
            return self.within(value, where, mode)
        if isinstance(value, type):
            return self.kind(value)
        if isinstance(value, BuiltinFunctionType):
            return f"{value.__module__}.{value.__qualname__}"
        if isinstance(value, MethodType):
            own = value.__self__
            if isinstance(own, type):
                return self.function(value.__func__, own)
            mode = _whole(mode, type(own))
            return self.function(value.__func__, type(own)) + self.token(own, where, mode)
        function = reach.function_of(value)
        if function is not None:
            return self.function(function)
        if isinstance(value, ModuleType):
            return value.__name__ if not reach.followed(value.__name__) else ""
        if isinstance(value, Registry):
            return "registry"
        return self.within(value, where, mode)

    def within(self, value: Any, where: str, mode: str) -> str:
        """The token of what may hold itself."""
        if id(value) in self.inside:
            return "itself"
        self.inside.append(id(value))
        try:
            return self.compound(value, where, mode)
        finally:
            self.inside.pop()

    def compound(self, value: Any, where: str, mode: str) -> str:
        """The token of a container or an object."""
        kind = type(value)
        if kind is dict:
            self.space(value, value.keys(), value.values())
        elif kind in (list, set):
            self.space(value, value)
        if isinstance(value, partial):
            mode = _whole(mode, value.func)
            parts = [value.func, value.args, value.keywords]
            return f"partial{[self.token(part, where, mode) for part in parts]}"
        if kind in CONTAINERS and mode == _CODE:
            parts = [*value, *value.values()] if kind is dict else value
            code = [one for one in parts if not isinstance(one, PLAIN)]
            return "".join([self.token(one, where, mode) for one in code])
        if kind is dict:
            items = [[self.token(part, where, mode) for part in pair] for pair in value.items()]
            return f"dict{items}"
        if kind in CONTAINERS:
            tokens = [self.token(one, where, mode) for one in value]
            if kind in (set, frozenset):
                return f"set{sorted(tokens)}"
            return f"{kind.__name__}{tokens}"
        if hasattr(kind, "fingerprint"):  # a set of images, an artifact
            return "" if mode == _CODE else str(value.fingerprint)
        if isinstance(value, Enum):
            return f"{kind.__qualname__}.{value.name}"
        if reach.is_tensor(value) or reach.is_module(value):
            return self.tensors(value, where, mode)
        return self.instance(value, where, mode)

    def tensors(self, value: Any, where: str, mode: str) -> str:
        """The token of a tensor, or of a model: its class, weights, and what else its modules hold."""
        if mode != _FULL:
            return "" if mode == _CODE else type(value).__qualname__
        self.node.fixed = False
        name = self.kind(type(value), built=False)
        if reach.is_tensor(value):
            return f"{name}{reach.tensor_digest(value)}"
        tensors = [(key, reach.tensor_digest(one)) for key, one in value.state_dict().items()]
        held = [reach.plain_state(module) for module in value.modules()]
        return f"{name}{value!r}{tensors}{self.token(held, where, mode)}"

    def instance(self, value: Any, where: str, mode: str) -> str:
        """The token of any other object: its class, and its state in the modes that read it."""
        kind = type(value)
        mode = _whole(mode, kind) if callable(value) else mode
        if isinstance(value, Path):
            return "" if mode == _CODE else str(value)
        if reach.followed(kind.__module__) or hasattr(value, "__pydantic_private__"):
            return self.kind(kind, built=False) + self.state(value, where, mode)
        if mode == _CODE or reach.in_library(kind.__module__):
            return ""
        if mode == _LIBRARY:
            return kind.__qualname__
        self.node.fixed &= reach.frozen(value)
        try:
            reduced = value.__reduce_ex__(4)
        except Exception:
            raise WorkbenchError(
                "code uses an object that cannot be part of a key",
                got=f"{kind.__qualname__} in {where}",
                expected="numbers, text, functions, classes, tensors, models, or containers of them",
                fix="make it inside the function, or take it as an argument",
            ) from None
        if isinstance(reduced, str):
            return f"{kind.__module__}.{reduced}"
        parts = [list(part) if hasattr(part, "__next__") else part for part in reduced[1:]]
        return f"{kind.__qualname__}{self.token(parts, where, mode)}"

    # Functions and classes

    def function(self, function: Any, owner: type | None = None, stage: bool = False) -> str:
        """The token of a function, which is reached; its full name if it is another library's."""
        while hasattr(function, "__wrapped__") and not _own_wrapper(function):
            function = function.__wrapped__
        module, name = getattr(function, "__module__", ""), getattr(function, "__qualname__", "")
        if not isinstance(function, FunctionType):
            return f"{module}.{name}"
        if not reach.followed(module):
            return reach.outside(module, name)
        # Functions without a closure are one if their code is: a lambda is another object each time.
        parts = (owner, function.__code__, function.__defaults__, function.__kwdefaults__)
        which = function if function.__closure__ else function.__globals__
        key = (stage, id(which), *map(id, parts))
        if key not in self.node.reached:
            self.node.reached[key] = partial(
                _Walk.read_function, function=function, parts=parts, stage=stage
            )
        return name

    def read_function(self, function: FunctionType, parts: tuple, stage: bool) -> None:
        """A function as a node; `parts` are its owner, and what its key needs kept alive."""
        node = self.node
        read = partial(_Walk.read_code, function=function, parts=parts, stage=stage)
        if not _closed_over(function):
            read(self)
            tokens = node.tokens
        else:  # all but what the closure holds is read once for all functions of this code
            key = ("code", stage, id(function.__globals__), *map(id, parts))
            node.fixed, node.reached[key] = False, read
            tokens = list(self.read(key, read).tokens)
            self.node = node
            for place, chain in enumerate(record_of(function).names, 2):
                if tokens[place] is None:
                    tokens[place] = self.name(function, chain, _mode(function), stage)
        node.lines.add(f"{function.__qualname__}\t{digest(tokens)}")

    def read_code(self, function: FunctionType, parts: tuple, stage: bool) -> None:
        """All that a function uses but what its closure holds, as a node."""
        record, mode, held = record_of(function), _mode(function), _closed_over(function)
        self.node.alive = parts
        if mode == _FULL:
            self.node.fixed = False
            self.functions.append(function)
        self.space(function.__globals__, function.__globals__.values())
        defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).items())
        given = self.token(defaults, function.__qualname__, mode) if defaults else "tuple[]"
        self.node.tokens = [record.text, given]
        for chain in record.names:
            closed = not chain[0] and chain[1] in held
            self.node.tokens.append(None if closed else self.name(function, chain, mode, stage))
        if parts[0] is not None:
            self.members(parts[0], record, mode)

    def name(self, function: FunctionType, chain: list[str], mode: str, stage: bool) -> str:
        """The token of a name that a function uses, with the attributes behind it."""
        root, *attributes = chain
        if root:
            found = reach.imported(root)
            if found is None:
                return ".".join([root.replace(":", "."), *attributes])
        else:
            try:
                found, closed = reach.look_up(function, attributes.pop(0))
            except LookupError:
                return f"undefined {chain[1]}"
            kind = type(found)
            if kind is FunctionType and not attributes:  # what there is most of comes first
                return self.function(found)
            if kind is ModuleType and attributes and not reach.followed(found.__name__):
                return reach.outside(found.__name__, *attributes)
            if stage and closed:  # a stage's settings hold what its closure does
                mode = _CODE
            elif stage and not isinstance(found, (*PLAIN, ModuleType)):
                mode = _LIBRARY
        where = f"{function.__qualname__}: {'.'.join(chain[1:])}"
        return self.attribute(found, attributes, where, mode)

    def attribute(self, found: Any, attributes: list[str], where: str, mode: str) -> str:
        """The token of `found.a.b.c`, without evaluating properties; `attributes` is used up."""
        while attributes:
            if isinstance(found, ModuleType):
                if not reach.followed(found.__name__):
                    return reach.outside(found.__name__, *attributes)
                space, name = vars(found), attributes.pop(0)
                self.space(space, space.values())
                if name not in space and not hasattr(found, name):
                    return f"undefined {name}"
                found = getattr(found, name)
                continue
            kind = found if isinstance(found, type) else type(found)
            if not reach.followed(kind.__module__) or reach.is_module(found):
                break
            values = {} if kind is found else reach.state_of(found)
            if attributes[0] in values:
                self.node.fixed &= reach.frozen(found)
                found = values[attributes.pop(0)]
                continue
            member = self.member(kind, attributes[0], None)
            function = reach.function_of(member)
            if function is not None:
                state = "" if kind is found else self.state(found, where, mode)
                return self.function(function, kind) + state
            if not isinstance(member, (*PLAIN, tuple, list, dict)):
                break
            attributes.pop(0)
            found = member
        value = self.token(found, where, mode)
        if attributes:
            value = ".".join([value, *attributes])
        if mode != _CODE and isinstance(found, PLAIN):
            shown = value if len(value) <= SHORT else digest([value])
            self.node.lines.add(f"{where}\t= {shown}")
            return "value"
        return value

    def state(self, value: Any, where: str, mode: str) -> str:
        """What an object holds; without its class, of which the method in use is reached by name."""
        self.node.fixed &= reach.frozen(value)
        if mode == _CODE and isinstance(value, Config):
            # Plain values, which settings hold, but for a step of the caller's.
            steps = (value.__pydantic_private__ or {}).values()
            return "".join(self.token(one, where, mode) for one in steps)
        if mode != _CODE and hasattr(type(value), "fingerprint"):
            return str(value.fingerprint)
        held = [
            f"{name}={self.token(one, where, mode)}" for name, one in reach.state_of(value).items()
        ]
        return str(held)

    def members(self, owner: type, record: Record, mode: str) -> None:
        """Reach the methods and class values that a method uses of its own object or class."""
        if record.whole:
            self.kind(owner, built=False)
        for name in record.own:
            member = self.member(owner, name, ...)
            inner = reach.function_of(member)
            if inner is not None:
                self.function(inner, owner)
            elif isinstance(member, (*PLAIN, tuple)) and name not in reach.fields_of(owner):
                self.attribute(member, [], f"{owner.__qualname__}.{name}", mode)
        if ["", "super"] in record.names:
            for base in owner.__bases__:
                self.kind(base, built=False)

    def kind(self, kind: type, built: bool = True) -> str:
        """The token of a class, which is reached whole: methods, class values, bases; defaults of fields where it is built."""
        name = kind.__qualname__
        if not reach.followed(kind.__module__):
            return reach.outside(kind.__module__, name)
        if not issubclass(kind, BaseException):
            for read in (_Walk.read_defaults, _Walk.read_class) if built else (_Walk.read_class,):
                self.node.reached.setdefault((id(kind), read), partial(read, kind=kind))
        return name

    def member(self, kind: type, name: str, default: object) -> Any:
        """What a class or its bases hold under a name, unevaluated."""
        for one in kind.__mro__:
            if reach.followed(one.__module__):
                self.space(one, vars(one).values())
            if name in vars(one):
                return vars(one)[name]
        return default

    def read_class(self, kind: type) -> None:
        """A class as a node: bases, methods and class values."""
        self.node.fixed &= reach.in_library(kind.__module__)
        self.space(kind, vars(kind).values())
        name = kind.__qualname__
        bases = [self.kind(base, built=False) for base in kind.__bases__ if base is not object]
        parts = [f"bases {bases}", repr(getattr(kind, "__dataclass_params__", ""))]
        choices = issubclass(kind, Enum)
        if choices:
            parts.append(
                repr([(one.name, one.value) for one in vars(kind)["_member_map_"].values()])
            )
        fields = {"__repr__", *reach.fields_of(kind)}
        for member, value in sorted(vars(kind).items()):
            if member in fields:
                continue
            function = reach.function_of(value)
            if function is not None:
                if not reach.generated(inspect.unwrap(function)):
                    parts.append(f"{member} {self.function(function, kind)}")
            elif not member.startswith(("__", "_abc", "_field", "model_")) and not choices:
                parts.append(f"{member} {self.token(value, f'{name}.{member}', _LIBRARY)}")
        self.node.lines.add(f"class {name}\t{digest(parts)}")

    def read_defaults(self, kind: type) -> None:
        """The defaults of a class's fields as a node."""
        self.node.fixed &= reach.in_library(kind.__module__)
        label = f"class {kind.__qualname__}: defaults"
        values: dict[str, tuple] = {}
        for name, one in (getattr(kind, "__pydantic_fields__", None) or {}).items():
            values[name] = (repr(one.default), one.default_factory)
        for name, one in getattr(kind, "__dataclass_fields__", {}).items():
            values[name] = (one.default, one.default_factory)
        if hasattr(kind, "_field_defaults"):
            values[""] = (getattr(kind, "_fields", ()), *kind._field_defaults.items())
        if values:
            texts = [f"{k} {self.token(v, label, _LIBRARY)}" for k, v in values.items()]
            self.node.lines.add(f"{label}\t{digest(texts)}")


def _whole(mode: str, thing: Any) -> str:
    """How what a callable holds counts in a mode: whole, where it is no code of the library's."""
    foreign = reach.followed(thing.__module__) and not reach.in_library(thing.__module__)
    return _FULL if mode == _CODE and foreign else mode


def _closed_over(function: FunctionType) -> set[str]:
    """The names that a function's closure holds, but for the class that `super` means."""
    return {*function.__code__.co_freevars} - {"__class__"}


def _mode(function: FunctionType) -> str:
    """How the values count that a function uses."""
    return _LIBRARY if reach.in_library(function.__module__) else _FULL


def _own_wrapper(function: object) -> bool:
    """Whether what wraps a function is code that counts, unlike `torch.no_grad` and `functools.cache`."""
    return isinstance(function, FunctionType) and reach.followed(
        function.__globals__.get("__name__")
    )
