"""What the pipeline adds to a notebook's own compute: kernel, papermill and page; and how papermill by hand compares.

A notebook's own compute is its code cells as one script in a bare Python process: the interpreter's start and every import
count as its own, also torch's. The pipeline's own start (its imports, once a run) is a row of its own. All ways find the
trained things that the notebook needs already made.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from unittest.mock import patch

import nbformat

from bench.rows import Effort, Row, compared, quartiles, seconds, take_turns
from dfkd_lib.core.artifacts import REPOSITORY
from dfkd_lib.core.code import Fingerprint, forget, stage_fingerprint
from dfkd_lib.pipeline import make_plan, train

NOTEBOOK, PROFILE, SECONDS = "00_start_here", "smoke", 110
ASKED = "<= 6 s"
SETTING = f"{NOTEBOOK}, {PROFILE}"


def bare(notebook: Path, parameters: dict, folder: Path) -> list[str]:
    """The command that runs a notebook's code cells as a script (written to `folder`), with these parameters set."""
    cells = [
        cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"
    ]
    after = 1 + next(
        i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", ())
    )
    given = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    parts = [cell.source for cell in cells]
    script = folder / "bare.py"
    script.write_text(
        "import matplotlib\nmatplotlib.use('agg')\n"
        + "\n".join([*parts[:after], given, *parts[after:]])
    )
    return [sys.executable, str(script)]


def run(*commands: list[str]) -> None:
    """Run commands one after another from the repository's root; CalledProcessError, with what it said, if one fails."""
    for command in commands:
        done = subprocess.run(
            command, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, command, done.stdout[-2000:])


def stages(out: Path, name: str) -> dict[str, float]:
    """Seconds of a notebook that our pipeline has run: "kernel" (until its first cell runs), "cells", "page" (with all else
    after the last cell) and "all", by its results.json and papermill's own marks."""
    whole = json.loads((out / "results.json").read_text())["notebooks"][name]["seconds"]
    node = nbformat.read(out / f"{name}.ipynb", as_version=4)
    marks = [
        cell.metadata.papermill
        for cell in node.cells
        if cell.metadata.get("papermill", {}).get("start_time")
    ]
    start, first, last = (
        datetime.fromisoformat(text)
        for text in (node.metadata.papermill.start_time, marks[0].start_time, marks[-1].end_time)
    )
    kernel, cells = (first - start).total_seconds(), (last - first).total_seconds()
    return {"kernel": kernel, "cells": cells, "page": whole - kernel - cells, "all": whole}


def ways(
    folder: Path, name: str = NOTEBOOK, profile: str = PROFILE
) -> dict[str, Callable[[], None]]:
    """Our pipeline, the bare process, and papermill and nbconvert by hand, each with a folder of its own."""
    # The pipeline says which parameters a profile has; the others get the same.
    ours = [
        sys.executable,
        "-m",
        "dfkd_lib",
        "run",
        "--profile",
        profile,
        "--only",
        name,
        "--out",
        str(folder / "ours"),
    ]
    run(ours)
    found = json.loads((folder / "ours" / "results.json").read_text())["notebooks"][name][
        "parameters"
    ]
    notebook, by_hand, alone = (
        REPOSITORY / "notebooks" / f"{name}.ipynb",
        folder / "by_hand",
        folder / "alone",
    )
    for made in (by_hand, alone):
        made.mkdir()
    given = folder / "parameters.yaml"
    given.write_text(json.dumps(found | {"out_dir": str(by_hand)}))  # JSON is YAML
    executed = by_hand / f"{name}.ipynb"
    papermill = [
        sys.executable,
        "-m",
        "papermill",
        str(notebook),
        str(executed),
        "-k",
        "python3",
        "--no-progress-bar",
        "-f",
        str(given),
    ]
    page = [
        sys.executable,
        "-m",
        "nbconvert",
        "--to",
        "html",
        "--log-level",
        "ERROR",
        str(executed),
    ]
    script = bare(notebook, found | {"out_dir": str(alone)}, folder)
    return {
        "ours": lambda: run(ours),
        "bare": lambda: run(script),
        "by hand": lambda: run(papermill, page),
    }


def rows(effort: Effort) -> Iterator[Row]:
    """Seconds of overhead a notebook and where they go; the whole command beside papermill and nbconvert by hand."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        work, found = ways(folder), []

        def ours() -> None:
            command = seconds(work["ours"])
            found.append(stages(folder / "ours", NOTEBOOK) | {"command": command})

        rounds = take_turns(work | {"ours": ours}, SECONDS * effort.seconds, effort.rounds)
        yield from rows_of(rounds, found)
        yield row_of_keys(keys_of(folder / "artifacts"), effort)


def keys_of(artifacts: Path, profile: str = PROFILE) -> list[tuple]:
    """What each key of a whole report is computed from, (make, code), by making all that its notebooks train."""
    found, fingerprint = [], stage_fingerprint

    def noted(make: Callable, code: Sequence = ()) -> Fingerprint:
        found.append((make, code))
        return fingerprint(make, code)

    with patch("dfkd_lib.core.artifacts.stage_fingerprint", noted):
        train(make_plan(profile, artifacts=str(artifacts)))
    return found


def row_of_keys(keys: list[tuple], effort: Effort) -> Row:
    """Milliseconds that the code in all these keys costs a process, which has read no source yet."""

    def all_of_them() -> None:
        forget()
        for make, code in keys:
            stage_fingerprint(make, code)

    low, middle, high = quartiles(
        [1e3 * seconds(all_of_them) for _ in range(max(3, effort.rounds))]
    )
    note = f"25-75 %: {low:.0f}-{high:.0f}; sources from the cache on disk"
    what, setting = "code of all keys of a report", f"{PROFILE}, {len(keys)} keys"
    return Row(
        "pipeline", what, setting, "", middle, None, "ms", None, effort.rounds, "<= 50 ms", note
    )


def rows_of(rounds: list[dict[str, float]], found: list[dict[str, float]]) -> list[Row]:
    """The rows of the ways' seconds in rounds and of our `stages` ("command": the whole command) in each."""

    def row(
        what: str,
        values: list[float],
        peer: str = "",
        theirs: float | None = None,
        asked: str = "",
        note: str = "",
    ) -> Row:
        low, middle, high = quartiles(values)
        note = f"25-75 %: {low:.1f}-{high:.1f}" + f"; {note}" * bool(note)
        return Row(
            "pipeline", what, SETTING, peer, middle, theirs, "s", None, len(values), asked, note
        )

    alone = [each["bare"] for each in rounds]
    over = [each["all"] - own for each, own in zip(found, alone, strict=True)]
    return [
        row(
            "overhead a notebook",
            over,
            "the cells in a bare process",
            quartiles(alone)[1],
            ASKED,
            "notebook's seconds in the pipeline less those of the bare process, imports of torch in both",
        ),
        row("of it: kernel start to first cell", [each["kernel"] for each in found]),
        row("of it: page and the rest after the cells", [each["page"] for each in found]),
        row(
            "of it: cells, less the bare process",
            [each["cells"] - own for each, own in zip(found, alone, strict=True)],
        ),
        row(
            "the command's own start and end, once a run",
            [each["command"] - each["all"] for each in found],
        ),
        compared(
            rounds,
            "ours",
            "by hand",
            "pipeline",
            "whole command, one notebook",
            SETTING,
            "s",
            1,
            name="papermill + nbconvert by hand",
        ),
    ]
