"""Functions as normalised text: what of their source can change a result, and the names from outside that they use.

A function's text is its syntax tree without comments, docstrings, annotations, positions, layout, texts of errors and
printed messages. Names that it does not bind itself are taken out of it and listed, to be resolved where it is used.
What was read of a file is cached on disk beside Python's own cache of it, and holds as long as the file is unchanged.
"""

import ast
import hashlib
import importlib.util
import json
import linecache
import os
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple

from dfkd_lib.core.errors import WorkbenchError

RECHECK = 1.0  # seconds in which the files are not asked again whether they have changed
CLOCK = 2.0  # seconds by which the start of a process may be wrong
DROPPED = ("annotation", "returns", "type_comment", "kind", "type_params", "ctx", "type_ignores")
MESSAGES = ("print", "warn")  # a call of these as a statement shows something and returns nothing
# Names say what they are: elsewhere an ...Error may be a loss.
LIBRARY = f"{Path(__file__).parents[1]}{os.sep}"
FIELD = ("default", "default_factory")  # of pydantic's Field: help and ranges change no value


class Record(NamedTuple):
    """A function, normalised.

    Args:
        text: digest of its normalised source. names: each outer name with the attributes that follow it, as
            ["", "losses", "kd_loss"]; of a name imported inside, the first is "module:name".
        own: attributes used of its first parameter. whole: whether that parameter is used in any other way.
    """

    text: str
    names: list[list[str]]
    own: list[str]
    whole: bool


def digest(texts: Sequence[str]) -> str:
    """12 hex digits of the SHA-256 of these texts."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]


class Normaliser:
    """The normalised text of one function, and the outer names it uses, in order of appearance.

    Args:
        function: its syntax tree. library: whether it is the library's.
    """

    def __init__(self, function: Any, library: bool):
        self.library = library
        self.scopes: list[tuple[bool, dict]] = []  # whether it is a class's; names bound in it
        self.names: list[list[str]] = []
        self.own: list[str] = []
        self.whole = False
        arguments = function.args
        first = [*arguments.posonlyargs, *arguments.args][:1]
        self.first = first[0].arg if first else None
        decorators = self.write(getattr(function, "decorator_list", []))
        self.text = decorators + self._function(function)

    def write(self, node: object) -> str:
        """A node, or a list of nodes, as text; "" for what is dropped."""
        if isinstance(node, list):
            return "[" + ",".join(filter(None, map(self.write, node))) + "]"
        if not isinstance(node, ast.AST):
            return repr(node)
        written = getattr(self, f"_{type(node).__name__}", self._plain)
        return written(node)

    def _plain(self, node: ast.AST) -> str:
        parts = (
            f"{name}={self.write(value)}"
            for name, value in ast.iter_fields(node)
            if name not in DROPPED and value is not None and value != []
        )
        return f"{type(node).__name__}({','.join(parts)})"

    def _Expr(self, node: ast.Expr) -> str:
        value = node.value
        shows = isinstance(value, ast.Call) and self._shows(value.func)
        return "" if shows or isinstance(value, ast.Constant) else self._plain(node)

    def _shows(self, called: ast.AST) -> bool:
        if self.library:
            return last_name(called) in MESSAGES
        return ast.unparse(called) in ("print", "warnings.warn")

    def _AnnAssign(self, node: ast.AnnAssign) -> str:
        if node.value is None:
            return ""
        return f"Assign(targets={self.write([node.target])},value={self.write(node.value)})"

    def _Raise(self, node: ast.Raise) -> str:
        raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        return f"Raise({'' if raised is None else last_name(raised)})"

    def _Assert(self, node: ast.Assert) -> str:
        return f"Assert({self.write(node.test)})"

    def _Call(self, node: ast.Call) -> str:
        name = last_name(node.func)
        if self.library and name.endswith("Error"):
            return f"Call({name})"
        if name != "Field":
            return self._plain(node)
        chosen = [keyword for keyword in node.keywords if keyword.arg in FIELD]
        return f"Call({self.write(node.func)},{self.write(node.args)},{self.write(chosen)})"

    def _Import(self, node: ast.AST) -> str:
        return ""  # the names it binds are resolved where they are used

    _ImportFrom = _Import

    def _Name(self, node: ast.Name) -> str:
        return self._chain(node.id, [], node)

    def _Attribute(self, node: ast.Attribute) -> str:
        attributes, root = [node.attr], node.value
        while isinstance(root, ast.Attribute):
            attributes.insert(0, root.attr)
            root = root.value
        if not isinstance(root, ast.Name):
            return self._plain(node)
        return self._chain(root.id, attributes, node)

    def _chain(self, name: str, attributes: list[str], node: ast.AST) -> str:
        place, imported = self._find(name)
        if place is None or imported:
            if place is None and isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                return name
            chain = [imported, *attributes] if imported else ["", name, *attributes]
            if chain not in self.names:
                self.names.append(chain)
            return f"<{self.names.index(chain)}>"
        if place == 0 and name == self.first:
            self.whole |= not attributes
            self.own += [attributes[0]] if attributes and attributes[0] not in self.own else []
        return ".".join([name, *attributes])

    def _find(self, name: str) -> tuple[int | None, str | None]:
        """The scope that binds a name, None if it comes from outside; and what is imported under it there."""
        for place in reversed(range(len(self.scopes))):
            of_class, names = self.scopes[place]
            if name in names and not (of_class and place < len(self.scopes) - 1):
                return place, names[name]
        return None, None

    def _FunctionDef(self, node: Any) -> str:
        inputs = [*node.args.defaults, *filter(None, node.args.kw_defaults)]
        outer = self.write([*getattr(node, "decorator_list", []), *inputs])
        return f"{getattr(node, 'name', '')}{outer}{self._function(node)}"

    _AsyncFunctionDef = _Lambda = _FunctionDef

    def _function(self, node: Any) -> str:
        arguments = node.args
        kinds = {
            "/": arguments.posonlyargs,
            "": arguments.args,
            "*": [arguments.vararg] if arguments.vararg else [],
            "=": arguments.kwonlyargs,
            "**": [arguments.kwarg] if arguments.kwarg else [],
        }
        heads = [f"{kind}{argument.arg}" for kind, many in kinds.items() for argument in many]
        body = node.body if isinstance(node.body, list) else [node.body]
        names = dict.fromkeys(argument.arg for many in kinds.values() for argument in many)
        self.scopes.append((False, {**names, **bound(body)}))
        written = self.write(body)
        self.scopes.pop()
        kind = "Async" if isinstance(node, ast.AsyncFunctionDef) else "Function"
        return f"{kind}({','.join(heads)}){written}"

    def _ClassDef(self, node: ast.ClassDef) -> str:
        outer = self.write([*node.decorator_list, *node.bases, *node.keywords])
        self.scopes.append((True, bound(node.body)))
        body = self.write(node.body)
        self.scopes.pop()
        return f"Class({node.name},{outer},{body})"

    def _comprehension(self, node: Any) -> str:
        outer = self.write(node.generators[0].iter)  # evaluated outside
        targets = [generator.target for generator in node.generators]
        self.scopes.append((False, bound(targets)))
        parts = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        written = self.write(parts)
        for place, generator in enumerate(node.generators):
            source = self.write(generator.iter) if place else ""
            written += f"{self.write(generator.target)}{source}{self.write(generator.ifs)}"
        self.scopes.pop()
        return f"{type(node).__name__}({outer}{written})"

    _ListComp = _SetComp = _DictComp = _GeneratorExp = _comprehension


def last_name(node: ast.AST) -> str:
    """`f` of the expressions `f` and `a.b.f`; "" of any other."""
    return getattr(node, "attr", getattr(node, "id", ""))


def bound(nodes: list) -> dict[str, str | None]:
    """The names that statements bind in their own scope, with what is imported under them ("module:name"), if anything."""
    found: dict[str, str | None] = {}
    outer: set[str] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        match node:
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
                found.setdefault(name)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                found.setdefault(node.name)
                continue
            case ast.Lambda():
                continue
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                inner = (n.target for n in ast.walk(node) if isinstance(n, ast.NamedExpr))
                found.update(dict.fromkeys(target.id for target in inner))
                continue
            case ast.Import(names=aliases):
                for alias in aliases:
                    name = alias.asname or alias.name.partition(".")[0]
                    found[name] = f"{alias.name if alias.asname else name}:"
            case ast.ImportFrom(module=module, names=aliases):
                for alias in aliases:
                    found[alias.asname or alias.name] = f"{module}:{alias.name}"
            case ast.Global(names=names) | ast.Nonlocal(names=names):
                outer.update(names)
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)):
                found.setdefault(name)
            case ast.MatchStar(name=str(name)) | ast.MatchMapping(rest=str(name)):
                found.setdefault(name)
        waiting.extend(ast.iter_child_nodes(node))
    return {name: imported for name, imported in found.items() if name not in outer}


def signature(code: CodeType) -> int:
    """A checksum of what a function does, whatever its docstring and its lines."""
    documented = code.co_name != "<lambda>" and code.co_consts and type(code.co_consts[0]) is str
    constants = [
        signature(one)
        if isinstance(one, CodeType)
        else sorted(map(repr, one))
        if isinstance(one, frozenset)
        else one
        for one in code.co_consts[1 if documented else 0 :]
    ]
    text = repr((code.co_names, code.co_varnames, constants))
    return zlib.crc32(text.encode(), zlib.crc32(code.co_code))


def code_objects(code: CodeType) -> Iterator[CodeType]:
    """A code object and all those inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from code_objects(constant)


def read_text(text: str, library: bool = False) -> dict[str, Record]:
    """{place: record} of every function of a source text, the library's or another's; SyntaxError if it is none."""
    found = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Lambda):
            body = node.body
            ends = (body.lineno, body.col_offset), (body.end_lineno, body.end_col_offset)
            place = f"{ends[0]} {ends[1]}"
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            place = f"{node.name} {first}"
        else:
            continue
        read = Normaliser(node, library)
        found[place] = Record(digest([read.text]), read.names, read.own, read.whole)
    return found


def place_of(code: CodeType) -> str:
    """Where a function stands in its source: its name and first line; of a lambda the ends of its body.

    Several lambdas may stand in one line, or inside one another. The first instruction of one begins where its body does
    and the last ends there; a single one need not span it, as a method's call over several lines begins in the line of the
    method's name.
    """
    if code.co_name != "<lambda>":
        return f"{code.co_name} {code.co_firstlineno}"
    spans = [
        ((line, column), (last, right))
        for line, last, column, right in code.co_positions()
        if line and last and right and column is not None  # others stand for no source: RESUME
    ]
    begin = min((begin for begin, _ in spans), default=None)
    return f"{begin} {max((end for _, end in spans), default=None)}"


def remember(name: str, text: str) -> str:
    """Register the source of a notebook's cell, as a kernel does, so that its functions have one; returns `name`."""
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    _files.pop(name, None)
    return name


_files: dict[str, tuple[list[int] | None, dict | None]] = {}  # state on disk, records
_codes: dict[int, tuple[CodeType, Record]] = {}  # by id of the code, which is kept alive
_checked = 0.0


def forget() -> None:
    """Begin with nothing read."""
    _files.clear()
    _codes.clear()


def changed() -> bool:
    """Whether a file has changed since it was read, which is noticed within a second: then all are read again."""
    global _checked
    if time.monotonic() - _checked < RECHECK:
        return False
    _checked = time.monotonic()
    if all(_state(name) in (None, state) for name, (state, _) in _files.items()):
        return False
    forget()
    return True


def record_of(function: FunctionType) -> Record:
    """The record of a function; of its bytecode where it has no source (typed into `python -c`).

    Raises:
        WorkbenchError: if the source has changed since the function was loaded.
    """
    code = function.__code__
    if id(code) not in _codes:
        _codes[id(code)] = (code, _find(code, function.__module__))
    return _codes[id(code)][1]


def _find(code: CodeType, module: str) -> Record:
    name, state = code.co_filename, _state(code.co_filename)
    if name not in _files or _files[name][0] != state:
        _files[name] = (state, _records(name, state))
    records = _files[name][1]
    if records is None:
        return _of_bytecode(code)
    place: str | None = place_of(code)
    # pytest rewrites asserts: the bytecode is not that of the source.
    loader = type(getattr(sys.modules.get(module), "__loader__", None)).__name__
    if state and state[-1] > _began() and loader != "AssertionRewritingHook":
        # It may have been loaded as it was before.
        place = _places(name, state[-1]).get((code.co_qualname, signature(code)))
    if place not in records:
        raise WorkbenchError(
            "code has changed since it was loaded, so that what it makes would get a wrong key",
            got=code.co_qualname,
            where=name,
            fix="restart the kernel (or the process), which loads it as it is now",
        )
    return Record(*records[place])


@cache
def _places(name: str, changed: int) -> dict[tuple[str, int], str]:
    """Where each function stands in a file as it is now, by its name and what it does."""
    now = compile(Path(name).read_text(), name, "exec", dont_inherit=True)
    return {(one.co_qualname, signature(one)): place_of(one) for one in code_objects(now)}


@cache
def _began() -> int:
    """When this process began, in nanoseconds: no file that has not changed since can be another than was loaded."""
    import psutil

    return int((psutil.Process().create_time() - CLOCK) * 1e9)


def _of_bytecode(code: CodeType) -> Record:
    names = {name for one in code_objects(code) for name in (*one.co_names, *one.co_freevars)}
    text = f"bytecode {sys.version_info[:2]} {signature(code)}"
    return Record(digest([text]), [["", name] for name in sorted(names)], [], True)


def _state(name: str) -> list[int] | None:
    """What tells a file from its next version, last when it changed; None of a notebook's cell, which has none."""
    try:
        found = os.stat(name)
    except OSError:
        return None
    return [found.st_mtime_ns, found.st_size, found.st_ctime_ns]


def _records(name: str, state: list[int] | None) -> dict | None:
    """The records of a cell, or of a file, from the cache on disk where that is of this state of it; None without source."""
    by = [*(state or ()), *_STATE]
    kept = importlib.util.cache_from_source(name).removesuffix("pyc") + "json"
    records = None
    with suppress(OSError, SyntaxError, ValueError):
        if state is None:
            text = "".join(linecache.getlines(name))
            return read_text(text) if text else None
        with suppress(OSError, ValueError, KeyError, TypeError), open(kept, "rb") as file:
            saved = json.load(file)
            if saved["by"] == by:
                return saved["records"]
        records = read_text(Path(name).read_text(), name.startswith(LIBRARY))
        os.makedirs(os.path.dirname(kept), exist_ok=True)
        temporary = f"{kept}.{os.getpid()}.tmp"
        Path(temporary).write_text(json.dumps({"by": by, "records": records}))
        os.replace(temporary, kept)
    return records


_STATE = _state(__file__) or []
