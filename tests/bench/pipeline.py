"""What the pipeline adds to a notebook's own compute, and how papermill and nbconvert by hand compare.

A notebook's own compute is its code cells as one script in a bare Python process: the interpreter's start and every import
count as its own, also torch's. All ways find the trained things that the notebook needs already made.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch

import nbformat

from bench.comparison import Comparison, Pair, Ways, figure
from dfkd_lib.core import REPOSITORY
from dfkd_lib.core.code import Fingerprint, stage_fingerprint
from dfkd_lib.core.graph import forget
from dfkd_lib.pipeline import make_plan, train

NOTEBOOK, PROFILE = "00_start_here", "smoke"
OVERHEAD, COMMAND, BY_HAND = "overhead a notebook", "dfkd run", "papermill + nbconvert by hand"
KEYS = "code of all keys of a report"
PYTHON = (sys.executable, "-m")


def bare(notebook: Path, parameters: dict, folder: Path) -> list[str]:
    """The command that runs a notebook's code cells as a script (written to `folder`), with these parameters set."""
    parts = ["import matplotlib", "matplotlib.use('agg')"]
    for cell in nbformat.read(notebook, as_version=4).cells:
        if cell.cell_type == "code":
            parts.append(cell.source)
            if "parameters" in cell.metadata.get("tags", ()):
                parts += [f"{name} = {value!r}" for name, value in parameters.items()]
    script = folder / "bare.py"
    script.write_text("\n".join(parts))
    return [sys.executable, str(script)]


def run(*commands: list[str]) -> None:
    """Run commands one after another from the repository's root.

    Raises:
        CalledProcessError: with its output, if one fails.
    """
    for command in commands:
        done = subprocess.run(
            command, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, command, done.stdout[-2000:])


def result(out: Path, name: str) -> dict:
    """What results.json says of a notebook."""
    return json.loads((out / "results.json").read_text())["notebooks"][name]


def commands(folder: Path, name: str, profile: str) -> dict[str, Callable[[], None]]:
    """The pipeline, the bare process, and papermill and nbconvert by hand, each with a folder of its own."""
    ours = [*PYTHON, "dfkd_lib", "run", "--profile", profile, "--only", name]
    ours += ["--out", str(folder / "ours")]
    run(ours)  # says which parameters a profile has: the others get the same
    parameters = result(folder / "ours", name)["parameters"]
    notebook = REPOSITORY / "notebooks" / f"{name}.ipynb"
    by_hand = folder / "by_hand"
    alone = folder / "alone"
    for made in (by_hand, alone):
        made.mkdir()
    given, executed = folder / "parameters.yaml", by_hand / f"{name}.ipynb"
    given.write_text(json.dumps(parameters | {"out_dir": str(by_hand)}))  # JSON is YAML
    papermill = [*PYTHON, "papermill", str(notebook), str(executed), "-k", "python3"]
    papermill += ["--no-progress-bar", "-f", str(given)]
    page = [*PYTHON, "nbconvert", "--to", "html", "--log-level", "ERROR", str(executed)]
    script = bare(notebook, parameters | {"out_dir": str(alone)}, folder)
    return {
        COMMAND: partial(run, ours),
        BY_HAND: partial(run, papermill, page),
        "bare": partial(run, script),
    }


@contextmanager
def ways(name: str = NOTEBOOK, profile: str = PROFILE) -> Iterator[Ways]:
    """The whole command, papermill by hand, and the pipeline's seconds for the notebook less those of a bare process."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        known = commands(folder, name, profile)

        def overhead() -> float:
            known[COMMAND]()
            return result(folder / "ours", name)["seconds"] - figure(known["bare"])

        yield Ways({OVERHEAD: overhead, COMMAND: known[COMMAND], BY_HAND: known[BY_HAND]})


def keys_of(artifacts: Path, profile: str) -> list[tuple]:
    """What each key of a whole report is computed from, (make, code), by making all that its notebooks train."""
    found, fingerprint = [], stage_fingerprint

    def noted(make: Callable, code: Sequence = ()) -> Fingerprint:
        found.append((make, code))
        return fingerprint(make, code)

    with patch("dfkd_lib.core.artifacts.stage_fingerprint", noted):
        train(make_plan(profile, artifacts=str(artifacts)))
    return found


@contextmanager
def keys(profile: str = PROFILE) -> Iterator[Ways]:
    """The code in all keys of a report, for a process that has read no source yet, but finds it in the cache on disk."""
    with tempfile.TemporaryDirectory() as scratch:
        known = keys_of(Path(scratch) / "artifacts", profile)

    def all_of_them() -> None:
        forget()
        for make, code in known:
            stage_fingerprint(make, code)

    yield Ways({KEYS: all_of_them}, f"{len(known)} keys")


COMPARISONS = (
    Comparison("pipeline", PROFILE, keys, (Pair(KEYS, None, "<= 50 ms"),), seconds=5, least=3),
    Comparison(
        "pipeline",
        f"{NOTEBOOK}, {PROFILE}",
        ways,
        (Pair(OVERHEAD, None, "<= 6 s"), Pair(COMMAND, BY_HAND)),
        unit="s",
        per=1,
        seconds=110,
        most=5,
        warm=False,
    ),
)
