"""Notebooks that need not run again, because nothing that their pages depend on has changed since these were made."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from dfkd_lib import presets
from dfkd_lib.core import REPOSITORY, ArtifactError, Store, provenance
from dfkd_lib.core import resolve as resolve_path
from dfkd_lib.pipeline.known import library_state
from dfkd_lib.pipeline.modules import imported_state
from dfkd_lib.pipeline.plan import Plan
from dfkd_lib.reporting.notebooks import Notebook

DRAWN = ("DFKD_FIGURE_WIDTH", "DFKD_FONT_SIZE")
KINDS = (("figures", "svg"), ("figures", "pdf"), ("tables", "csv"), ("tables", "tex"))
FOLDERS = ("out_dir", "artifacts_dir")  # what is in them is looked at artifact by artifact


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
    """A hash for each notebook of all that its page depends on: the notebook, its parameters, the modules of one's own that
    it imports, the data folder it names, the library, the versions of others, this machine, and the states of the notebooks
    it builds on; "" of one that imports what reading does not find, which always runs."""
    drawn = sorted((k, v) for k, v in os.environ.items() if k in DRAWN)
    common = repr((library_state(), provenance.versions(), provenance.hardware(), drawn))
    found: dict[str, str] = {}

    def state(name: str) -> str:
        if name not in plan.notebooks:
            return earlier.get(name, {}).get("state", "")
        if name not in found:
            values, path = plan.parameters[name], plan.notebooks[name]
            imported = imported_state(_code(path), path.parent)
            parts = [common, _written(path), repr(sorted(values.items())), repr(imported)]
            parts.append(repr(_data(about[name].method, values)))
            parts += map(state, sorted(needed(name, about)))
            whole = hashlib.sha256("\n".join(parts).encode()).hexdigest()
            found[name] = "" if imported is None else whole
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
    values = plan.parameters[name]
    if result.get("status") != "succeeded" or _names_files(values):
        return False
    if not state or result.get("state") != state:
        return False
    store = Store(values["artifacts_dir"])
    try:
        made = (out / f"{name}.html").stat().st_mtime_ns
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


def _code(notebook: Path) -> list[str]:
    """The sources of a notebook's code cells."""
    cells = json.loads(notebook.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def _data(method: str, values: Mapping[str, object]) -> list[tuple[str, int, int]]:
    """(path, bytes, time of the last change) of the files of the set below data/ that a notebook's configuration names."""
    if not method:
        return []
    settings = presets.of_parameters(method, values).flat()
    # Notebook 00's configuration is that of its data.
    name = settings.get("data.name", settings.get("name") if "background" in settings else None)
    folder = resolve_path("data") / str(name)
    if not name or not os.path.isdir(folder):
        return []
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]


def _names_files(values: Mapping[str, object]) -> bool:
    """Whether a parameter names files or folders, which may have changed since: then the notebook always runs."""
    texts = [text for name, text in values.items() if name not in FOLDERS and isinstance(text, str)]
    words = {word for text in texts for word in re.split(r"[\s='\"]+", text) if word}
    return any("/" in word or os.path.exists(REPOSITORY / word) for word in words)
