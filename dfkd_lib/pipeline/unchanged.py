"""Notebooks that need not run again, because nothing that their pages depend on has changed since these were made."""

import hashlib
import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

from dfkd_lib.core import (
    REPOSITORY,
    ArtifactError,
    Store,
    WorkbenchError,
    file_hash,
    provenance,
    resolve,
)
from dfkd_lib.pipeline.plan import Plan
from dfkd_lib.reporting.notebooks import Notebook

LIBRARY = REPOSITORY / "dfkd_lib"
DRAWN = ("DFKD_FIGURE_WIDTH", "DFKD_FONT_SIZE")
KINDS = (("figures", "svg"), ("figures", "pdf"), ("tables", "csv"), ("tables", "tex"))
FOLDERS = (
    "out_dir",
    "artifacts_dir",
)  # of a run: what is in them is looked at artifact by artifact


def unchanged(
    plan: Plan, about: Mapping[str, Notebook], earlier: Mapping[str, dict], now: Mapping[str, str]
) -> set[str]:
    """The notebooks of a plan whose earlier results still hold: they succeeded, their pages and all that they were made from
    are there and sound, no older than the results of the notebooks they build on, and these hold too.

    Args:
        about: what each is about. earlier: the results in the plan's folder, each with the "state" it was made in.
        now: see `states`.
    """
    kept = {name for name in plan.notebooks if _holds(plan, name, about, earlier, now[name])}
    while lost := {n for n in kept if (needed(n, about) & plan.notebooks.keys()) - kept}:
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
            parts += map(state, sorted(needed(name, about)))
            found[name] = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        return found[name]

    return {name: state(name) for name in plan.notebooks}


def needed(name: str, about: Mapping[str, Notebook]) -> set[str]:
    """The notebooks that a notebook builds on."""
    wanted = about[name].needs
    return {n for n in about if n != name and ("*" in wanted or n in wanted)}


def _holds(
    plan: Plan,
    name: str,
    about: Mapping[str, Notebook],
    earlier: Mapping[str, dict],
    state: str,
) -> bool:
    result, out = earlier.get(name, {}), plan.out
    if result.get("status") != "succeeded" or result.get("state") != state:
        return False
    page = out / f"{name}.html"
    store = Store(plan.parameters[name]["artifacts_dir"])
    try:
        made = page.stat().st_mtime_ns
        saved = json.loads((out / "metrics" / f"{name}.json").read_text())
        builds_on = [out / "metrics" / f"{other}.json" for other in needed(name, about)]
        newer = [path for path in builds_on if path.exists() and path.stat().st_mtime_ns > made]
        files = [
            out / kind / f"{entry['name']}.{suffix}"
            for kind, suffix in KINDS
            for entry in saved.get(kind, ())
        ]
        found = all(path.is_file() for path in files)
        # What took the place of something that was missing may be there by now.
        whole = found and not newer and "fallback" not in result.get("metrics", {})
        return whole and all(store.find(artifact["key"]) for artifact in result["artifacts"])
    except (OSError, ValueError, KeyError, ArtifactError):  # the notebook makes it anew
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
    """What stands behind the files and folders that a parameter names: names, sizes and times of change; "" of another."""
    if not (isinstance(value, str) and value):
        return ""
    words = _words(value) | {value}
    for word in sorted(words):
        if word.endswith((".yaml", ".yml")):  # a grid names data too
            with suppress(OSError, UnicodeDecodeError, WorkbenchError):
                words |= set(re.split(r"[\s,:\[\]{}'\"]+", resolve(word).read_text()))
    return repr([row for word in sorted(words - {""}) for row in _files(word)])


def _words(text: str) -> set[str]:
    """The words of a list of settings, "name=value name=value", quoted as in a shell."""
    try:
        parts = shlex.split(text)
    except ValueError:
        return set()
    return {word for part in parts for word in part.split("=", 1)}


def _files(word: str) -> Iterator[tuple]:
    """(name, size, time of change) of the file, or of all files of the folder, linked ones too, of that name."""
    try:
        path = resolve(word)
    except WorkbenchError:
        return
    if os.path.isfile(path):
        folders: Iterable = [(path.parent, [], [path.name])]
    elif os.path.isdir(path) and not REPOSITORY.is_relative_to(path.resolve()):
        folders = os.walk(path, followlinks=True)
    else:
        return
    seen = set()
    for folder, inner, names in folders:
        inner[:] = [n for n in inner if os.path.realpath(os.path.join(folder, n)) not in seen]
        seen |= {os.path.realpath(os.path.join(folder, name)) for name in inner}
        for name in sorted(names):
            with suppress(OSError):  # a link to nothing
                about = os.stat(os.path.join(folder, name))
                yield os.path.join(folder, name), about.st_size, about.st_mtime_ns
