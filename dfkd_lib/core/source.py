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
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple

from dfkd_lib.core.errors import WorkbenchError

RECHECK = 1.0  # seconds in which the files are not asked again whether they have changed
DROPPED = ("annotation", "returns", "type_comment", "kind", "type_params", "ctx", "type_ignores")
MESSAGES = ("print", "warn")  # a call of these as a statement shows something and returns nothing
FIELD = ("default", "default_factory")  # of pydantic's Field: help and ranges change no value
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


class Record(NamedTuple):
    """A function, normalised.

    Args:
        text: digest of its normalised source. names: each outer name with the attributes that follow it, as
            ["", "losses", "kd_loss"]; of a name imported inside, the first is "module:name".
        own: attributes used of its first parameter. whole: whether that parameter is used in any other way.
        signature: checksum of its bytecode. line: its first line.
    """

    text: str
    names: list[list[str]]
    own: list[str]
    whole: bool
    signature: int
    line: int


def digest(texts: Sequence[str]) -> str:
    """12 hex digits of the SHA-256 of these texts."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]


class Normaliser:
    """The normalised text of one function, and the outer names it uses, in order of appearance.

    Args:
        function: its syntax tree.
    """

    def __init__(self, function: Any):
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
        shows = isinstance(value, ast.Call) and last_name(value.func) in MESSAGES
        return "" if shows or isinstance(value, ast.Constant) else self._plain(node)

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
        if name.endswith("Error"):
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


def read_text(text: str, cell: bool = False) -> dict[str, list[Record]]:
    """{qualified name: records} of every function of a source text; SyntaxError if it is none.

    Args:
        cell: whether it is a notebook's, whose kernel compiles statement by statement: Python calls `module.function` by
            other bytecode where it has not seen the import.
    """
    tree = ast.parse(text)
    own = [node for node in tree.body if any(isinstance(n, FUNCTIONS) for n in ast.walk(node))]
    units = [tree, *(ast.Module([node], []) for node in own if cell)]
    places: dict[tuple[int, str], list[CodeType]] = {}
    for unit in units:
        # As a notebook's cell is compiled, which may await at its top.
        whole = compile(unit, "", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        for code in code_objects(whole):
            places.setdefault((code.co_firstlineno, code.co_name), []).append(code)
    found: dict[str, list[Record]] = {}
    for node in ast.walk(tree):
        if not isinstance(node, FUNCTIONS):
            continue
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        codes = places.get((first, getattr(node, "name", "<lambda>")), [])
        if isinstance(node, ast.Lambda):
            codes = [code for code in codes if _is_of(code, node.body)]
        if not codes:
            continue
        read = Normaliser(node)
        for code in codes:
            record = Record(
                digest([read.text]), read.names, read.own, read.whole, signature(code), first
            )
            found.setdefault(code.co_qualname, []).append(record)
    return found


def _is_of(code: CodeType, body: ast.expr) -> bool:
    """Whether a lambda's code is that of this body: several may stand in one line, or inside one another.

    Its first instruction begins where the body does and its last ends there; a single one need not span it, as a method's
    call over several lines begins in the line of the method's name.
    """
    begins: list[tuple[int, int]] = []
    ends: list[tuple[int, int]] = []
    for line, last, column, right in code.co_positions():
        if line and last and right and column is not None:  # others stand for no source: RESUME
            begins.append((line, column))
            ends.append((last, right))
    begin, end = min(begins, default=None), max(ends, default=None)
    return begin == (body.lineno, body.col_offset) and end == (body.end_lineno, body.end_col_offset)


def remember(name: str, text: str) -> str:
    """Register the source of a notebook's cell, as a kernel does, so that its functions have one; returns `name`."""
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
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
        _codes[id(code)] = (code, _find(function))
    return _codes[id(code)][1]


def _find(function: FunctionType) -> Record:
    code = function.__code__
    wanted = signature(code)
    for anew in (False, True):
        records = _read(code.co_filename, anew)
        if records is None:
            return _of_bytecode(code)
        known = [Record(*one) for one in records.get(code.co_qualname, [])]
        for record in known:
            if record.signature == wanted:
                return record
    loader = getattr(
        getattr(sys.modules.get(function.__module__), "__spec__", None), "loader", None
    )
    if loader is not None and type(loader).__name__ not in ("SourceFileLoader", "zipimporter"):
        for record in known:  # pytest rewrites asserts: the bytecode is not that of the source
            if record.line == code.co_firstlineno:
                return record
    raise WorkbenchError(
        "code has changed since it was loaded, so that what it makes would get a wrong key",
        got=code.co_qualname,
        where=code.co_filename,
        fix="restart the kernel (or the process), which loads it as it is now",
    )


def _of_bytecode(code: CodeType) -> Record:
    names = {name for one in code_objects(code) for name in (*one.co_names, *one.co_freevars)}
    text = f"bytecode {sys.version_info[:2]} {signature(code)}"
    return Record(digest([text]), [["", name] for name in sorted(names)], [], True, 0, 0)


def _state(name: str) -> list[int] | None:
    """What tells a file from its next version; None of a notebook's cell, which has none."""
    try:
        found = os.stat(name)
    except OSError:
        return None
    return [found.st_mtime_ns, found.st_size]


def _read(name: str, anew: bool) -> dict | None:
    """The records of a file or cell; None if there is no source."""
    if name not in _files or anew:
        state = _state(name)
        records = None
        with suppress(OSError, SyntaxError, ValueError):
            if state is not None:
                records = _read_file(name, state)
            else:
                text = "".join(linecache.getlines(name))
                records = read_text(text, cell=True) if text else None
        _files[name] = (state, records)
    return _files[name][1]


def _read_file(name: str, state: list[int]) -> dict:
    """The records of a file, from the cache on disk where that is of this state of it."""
    by = [*state, *_STATE]
    cache = importlib.util.cache_from_source(name).removesuffix("pyc") + "json"
    with suppress(OSError, ValueError, KeyError, TypeError), open(cache, "rb") as file:
        saved = json.load(file)
        if saved["by"] == by:
            return saved["records"]
    records = read_text(Path(name).read_text())
    temporary = f"{cache}.{os.getpid()}.tmp"
    with suppress(OSError):  # whoever cannot write it does without
        os.makedirs(os.path.dirname(cache), exist_ok=True)
        Path(temporary).write_text(json.dumps({"by": by, "records": records}))
        os.replace(temporary, cache)
    return records


_STATE = _state(__file__) or []
