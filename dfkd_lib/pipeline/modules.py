"""The user's own modules that a notebook imports, found by reading: neither the standard library nor what is installed."""

import ast
import importlib.util
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from dfkd_lib.core import INSTALLED, REPOSITORY, file_hash

CODE = (".py", ".so", ".pyd")
# Ways to code that no import names.
HIDDEN = re.compile(
    r"sys\.path|\b(import_module|__import__|spec_from_file_location|runpy)\b|%run\b"
)


def imported_state(sources: Iterable[str], beside: Path) -> tuple | None:
    """(file, hash) of each own module that code imports, and of those that these import; None if reading does not show all.

    Args:
        sources: of a notebook's code cells. beside: its folder.
    """
    sources = list(sources)
    read = _read(sources, beside)
    if any(HIDDEN.search(source) for source in (*sources, *read.values())):
        return None
    return tuple(sorted((str(path), file_hash(path)) for path in read))


def all_code(sources: Iterable[str], beside: Path) -> list[str]:
    """The code of a notebook's cells and of the modules of one's own that it imports, and these."""
    sources = list(sources)
    return [*sources, *_read(sources, beside).values()]


def _read(sources: list[str], beside: Path) -> dict[Path, str]:
    """{file: its text, "" of compiled code} of the modules of one's own that code imports, and these."""
    roots, read, waiting = _roots(beside), dict[Path, str](), list(sources)
    while waiting:
        for name in _imports(waiting.pop()):
            for path in _files(name, roots):
                if path not in read:
                    text = path.read_text(errors="replace") if path.suffix == ".py" else ""
                    read[path] = text
                    waiting.append(text)
    return read


def _roots(beside: Path) -> list[Path]:
    """The folders that a notebook's kernel imports from, but those of the standard library and of installed packages."""
    standard = Path(sysconfig.get_path("stdlib")).resolve()
    places = (Path(place).resolve() for place in (REPOSITORY, beside, *sys.path))
    return [
        place
        for place in dict.fromkeys(places)
        if place.is_dir() and not place.is_relative_to(standard) and not INSTALLED & {*place.parts}
    ]


def _imports(source: str) -> set[str]:
    """The first parts of the names that a piece of code imports, IPython's own lines aside."""
    lines = [re.sub(r"^(\s*)[%!].*", r"\1pass", line) for line in source.split("\n")]
    try:
        tree = ast.parse("\n".join(lines))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {*re.findall(r"^\s*(?:import|from)\s+(\w+)", source, re.MULTILINE)}
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])  # a relative one is of the same package
    return found - sys.stdlib_module_names - {"dfkd_lib"}


def _files(name: str, roots: list[Path]) -> Iterator[Path]:
    """The files of a module or package of that name, in whichever of the folders it is, or where an editable install has it."""
    found = {root / name for root in roots}
    with suppress(ImportError, ValueError, AttributeError):
        spec = importlib.util.find_spec(name)
        places = filter(None, [*(spec.submodule_search_locations or ()), spec.origin])
        whole = [path for path in (Path(place).resolve() for place in places) if path.exists()]
        if any(INSTALLED & {*path.parts} for path in whole):  # goes before a folder of that name
            found = {place for place in found if (place / "__init__.py").exists()}
        else:
            found |= {path if path.is_dir() else path.with_suffix("") for path in whole}
    for place in found:
        beside = place.parent.glob(f"{name}.*") if place.parent.is_dir() else ()
        inside = place.rglob("*") if place.is_dir() else ()
        for path in (*beside, *inside):
            if path.suffix in CODE and path.is_file():
                yield path.resolve()
