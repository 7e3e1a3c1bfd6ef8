"""A notebook's own function as text that another process can execute: with the functions, classes and values it uses."""

import ast
import inspect
import itertools
import linecache
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, ModuleType

from dfkd_lib.core.code import PLAIN, fingerprint
from dfkd_lib.core.config import Config
from dfkd_lib.core.errors import WorkbenchError
from dfkd_lib.core.reach import function_of, record_of
from dfkd_lib.core.source import remember

STEP = "step"  # the name under which the text leaves its function
_numbers = itertools.count(1)


def source_of(step: Callable) -> str:
    """The text that makes this function elsewhere: `from_source` of it has the same fingerprint, so the same keys.

    Raises:
        WorkbenchError: if it needs what text cannot carry: values in a closure, tensors, models, open files, a source that
            is nowhere to be found.
    """
    carried = _Carried()
    expression = carried.expression(step, "the step")
    text = "\n".join(
        ["from __future__ import annotations", *carried.lines, f"{STEP} = {expression}", ""]
    )
    if fingerprint(from_source(text)) != fingerprint(step):
        raise _refusal("the step", "what it makes elsewhere would have another key")
    return text


def from_source(text: str) -> Callable:
    """The function that `source_of` has written as text."""
    names: dict = {"__name__": "__main__"}
    exec(compile(text, remember(f"<carried {next(_numbers)}>", text), "exec"), names)
    return names[STEP]


def _refusal(where: str, why: str) -> WorkbenchError:
    return WorkbenchError(
        "this step cannot be sent to another process",
        got=why,
        where=where,
        expected="a function at the top of a cell or a module, that uses functions, classes, numbers and text",
        fix="write it so, or run in this process alone (jobs=1)",
    )


class _Carried:
    """Lines of text, in the order in which they must be executed, and what they define."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.names: dict[str, object] = {}

    def define(self, name: str, value: object) -> None:
        """Lines after which a name stands for a value."""
        if name in self.names:
            if self.names[name] is not value:
                raise _refusal(name, "two different things have this name")
            return
        self.names[name] = value
        if isinstance(value, ModuleType):
            self.lines.append(f"import {value.__name__} as {name}")
            return
        expression = self.expression(value, name)
        if expression != name:
            self.lines.append(f"{name} = {expression}")

    def expression(self, value: object, where: str) -> str:
        """Text that gives the value, after the lines so far."""
        if isinstance(value, PLAIN):
            return repr(value)
        if isinstance(value, (list, tuple, set)) and type(value) in (list, tuple, set) and value:
            ends = {list: "[]", tuple: "()", set: "{}"}[type(value)]
            return ends[0] + "".join(f"{self.expression(v, where)}, " for v in value) + ends[1]
        if type(value) in (list, tuple, set):
            return f"{type(value).__name__}()"
        if type(value) is dict:
            pairs = (
                f"{self.expression(k, where)}: {self.expression(v, where)}"
                for k, v in value.items()
            )
            return "{" + ", ".join(pairs) + "}"
        if isinstance(value, (FunctionType, type)) or hasattr(value, "__wrapped__"):
            return self.code(value, where)
        if isinstance(value, Config):
            return f"{self.code(type(value), where)}(**{self.expression(dict(value), where)})"
        raise _refusal(where, f"{type(value).__name__}: not a value that text can hold")

    def code(self, value: object, where: str) -> str:
        """The name of a function or class, imported or defined by its source."""
        module, name = value.__module__, value.__qualname__
        if module != "__main__" and name.isidentifier():
            if getattr(sys.modules.get(module), name, None) is value:
                line = f"from {module} import {name}"
                if self.names.setdefault(name, value) is not value:
                    raise _refusal(where, f"two different things are called {name}")
                self.lines += [] if line in self.lines else [line]
                return name
        function = inspect.unwrap(value)
        if getattr(getattr(function, "__code__", None), "co_freevars", ()):
            held = ", ".join(function.__code__.co_freevars)
            raise _refusal(where, f"values in its closure: {held}")
        node, text = _definition(function, where)
        self.names.setdefault(name, value)
        for outer, one in _uses(value, node).items():
            if outer != name:
                self.define(outer, one)
        if isinstance(node, ast.Lambda):
            return f"({ast.get_source_segment(text, node)})"
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        lines = text.splitlines()[first - 1 : node.end_lineno]
        source = textwrap.dedent("\n".join(lines))
        self.lines += [] if source in self.lines else [source]
        return name


def _definition(value: object, where: str) -> tuple[ast.AST, str]:
    """The syntax tree of a function or class, and the text it stands in."""
    functions = (
        [value] if isinstance(value, FunctionType) else map(function_of, vars(value).values())
    )
    codes = [one.__code__ for one in functions if isinstance(one, FunctionType)]
    places = [code.co_filename for code in codes] or list(linecache.cache)
    for place in places:
        entry = linecache.cache.get(place)
        path = Path(place)
        text = "".join(entry[2]) if entry and len(entry) > 2 else ""
        text = text or (path.read_text() if path.is_file() else "")
        for node in ast.walk(ast.parse(text)) if text and place in _parsed(text, place) else ():
            if getattr(node, "name", "<lambda>") != value.__name__:
                continue
            kinds = (ast.ClassDef,) if isinstance(value, type) else (ast.FunctionDef, ast.Lambda)
            decorated = [d.lineno for d in getattr(node, "decorator_list", [])]
            if isinstance(node, kinds) and (
                isinstance(value, type)
                or min([node.lineno, *decorated]) == value.__code__.co_firstlineno
            ):
                return node, text
    raise _refusal(where, "its source is nowhere to be found")


def _parsed(text: str, place: str) -> tuple[str, ...]:
    """The place, if its text is Python."""
    try:
        ast.parse(text)
    except SyntaxError:
        return ()
    return (place,)


def _uses(value: object, node: ast.AST) -> dict[str, object]:
    """{name: value} of what a definition takes from its module."""
    functions = [value] if not isinstance(value, type) else map(function_of, vars(value).values())
    functions = [inspect.unwrap(one) for one in functions if one is not None]
    known = {name: one for f in functions for name, one in getattr(f, "__globals__", {}).items()}
    names = {
        chain[1]
        for f in functions
        if f.__module__ == "__main__"
        for chain in record_of(f).names
        if not chain[0]
    }
    outside = [*getattr(node, "decorator_list", []), *getattr(node, "bases", [])]
    if not isinstance(node, ast.ClassDef):
        outside += [*node.args.defaults, *filter(None, node.args.kw_defaults)]
    else:  # values and annotations of its body, which are evaluated when it is defined
        outside += [one for one in node.body if isinstance(one, (ast.Assign, ast.AnnAssign))]
    names |= {n.id for part in outside for n in ast.walk(part) if isinstance(n, ast.Name)}
    return {name: known[name] for name in sorted(names) if name in known}
