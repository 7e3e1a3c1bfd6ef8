"""Notebooks that need not run again, because nothing that their pages depend on has changed since these were made."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

from dfkd_lib.core import REPOSITORY, ArtifactError, Store, file_hash, home, provenance
from dfkd_lib.pipeline.plan import Plan
from dfkd_lib.reporting.notebooks import Notebook

LIBRARY = REPOSITORY / "dfkd_lib"
DRAWN = ("DFKD_FIGURE_WIDTH", "DFKD_FONT_SIZE")
FOLDERS = (
    "out_dir",
    "artifacts_dir",
)  # of a run: what is in them is looked at artifact by artifact


def unchanged(plan: Plan, about: Mapping[str, Notebook], earlier: Mapping[str, dict]) -> set[str]:
    """The notebooks of a plan whose earlier results still hold: they succeeded, their pages and all that they were made from
    are there and sound, and so it is with those they build on.

    Args:
        about: what each is about. earlier: the results in the plan's folder, each with the "state" it was made in.
    """
    now = states(plan, about, earlier)
    kept = {name for name in plan.notebooks if _holds(plan, name, earlier.get(name, {}), now[name])}
    while lost := {name for name in kept if _needed(name, plan, about) - kept}:
        kept -= lost
    return kept


def states(
    plan: Plan, about: Mapping[str, Notebook], earlier: Mapping[str, dict]
) -> dict[str, str]:
    """A hash for each notebook of all that its page depends on: the notebook, its parameters, the files that these name, the
    library, the versions of others, this machine, and the states of the notebooks it builds on."""
    drawn = sorted((k, v) for k, v in os.environ.items() if k in DRAWN)
    common = repr((_library(), provenance.versions(), provenance.hardware(), drawn))
    found: dict[str, str] = {}

    def state(name: str) -> str:
        if name not in plan.notebooks:
            return earlier.get(name, {}).get("state", "")
        if name not in found:
            values = plan.parameters[name]
            parts = [common, _written(plan.notebooks[name]), repr(sorted(values.items()))]
            parts += [_contents(value) for key, value in values.items() if key not in FOLDERS]
            parts += map(state, sorted(_needed(name, plan, about) | {*about[name].needs} - {"*"}))
            found[name] = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        return found[name]

    return {name: state(name) for name in plan.notebooks}


def _needed(name: str, plan: Plan, about: Mapping[str, Notebook]) -> set[str]:
    """The notebooks of the plan that a notebook builds on."""
    wanted = about[name].needs
    return {n for n in plan.notebooks if n != name and ("*" in wanted or n in wanted)}


def _holds(plan: Plan, name: str, result: Mapping, state: str) -> bool:
    if result.get("status") != "succeeded" or result.get("state") != state:
        return False
    page, saved = plan.out / f"{name}.html", plan.out / "metrics" / f"{name}.json"
    store = Store(plan.parameters[name]["artifacts_dir"])
    try:
        return (
            page.is_file()
            and saved.is_file()
            and all(store.find(a["key"]) for a in result["artifacts"])
        )
    except ArtifactError:  # the notebook sets it aside, and makes it anew
        return False


def _written(notebook: Path) -> str:
    """What stands in a notebook, without outputs and numbers of cells."""
    read = json.loads(notebook.read_text())
    cells = [(c["cell_type"], c["source"], c["metadata"].get("tags")) for c in read["cells"]]
    return repr((read["metadata"].get("dfkd"), cells))


@cache
def _library() -> str:
    """A hash of the library's files, and of the models that come with it."""
    files = [*LIBRARY.rglob("*"), *(REPOSITORY / "data").glob("teachers/*")]
    own = sorted(path for path in files if path.is_file() and path.suffix != ".pyc")
    return repr([(str(path), file_hash(path)) for path in own if path.parent.name != "__pycache__"])


def _contents(value: object) -> str:
    """What stands behind a parameter that names a file or a folder: names, sizes and times of change; "" of another."""
    if not (isinstance(value, str) and value):
        return ""
    words = {value, *value.replace("=", " ").split()}  # a list of settings may name one too
    return repr([row for word in sorted(words) for row in _files(home(word))])


def _files(path: Path) -> Iterator[tuple]:
    if path.is_file() or path.is_dir() and path.resolve() not in (REPOSITORY, Path.cwd()):
        for each in [path] if path.is_file() else sorted(path.rglob("*")):
            with suppress(OSError):  # a link to nothing
                about = each.stat()
                yield str(each), about.st_size, about.st_mtime_ns
