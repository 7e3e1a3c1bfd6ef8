"""The notebooks' code without kernels and pages, so that several processes train what they train, together."""

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from dfkd_lib.core import WorkbenchError, processes, remember
from dfkd_lib.pipeline.plan import Plan
from dfkd_lib.reporting.notebooks import read_notebook


def train(plan: Plan) -> None:
    """Execute the code cells of a plan's notebooks in this process, in order; what they train stays in the store.

    Under `accelerate launch` or torchrun every process does so, and each training takes them all. Reports go into a
    folder that is thrown away: the next `run` with the same parameters finds everything by its key and writes them.

    Raises:
        WorkbenchError: if a notebook that trains nothing was asked for by name. What a cell raises.
    """
    names = [name for name, path in plan.notebooks.items() if read_notebook(path).trains]
    if not names:
        raise WorkbenchError(
            "these notebooks train nothing",
            got=", ".join(plan.notebooks),
            where="--only",
            fix="name others; run then finds what was trained and writes the reports",
        )
    count = processes.count()
    with tempfile.TemporaryDirectory(prefix="dfkd-") as out, _quiet():
        print(f"{count} process" + "es" * (count > 1), flush=True)
        for place, name in enumerate(names, 1):
            start, values = time.perf_counter(), plan.parameters[name] | {"out_dir": out}
            if count > 1 and "jobs" in values:
                values["jobs"] = 1  # students one after another, each by all processes
            print(f"[{place}/{len(names)}] {name}", flush=True)
            space = _space()
            for where, cell in _code(plan.notebooks[name]):
                _execute(where, cell, space, values)
            print(f"[{place}/{len(names)}] {name}: {time.perf_counter() - start:.0f} s", flush=True)


@contextlib.contextmanager
def definitions(notebook: Path, values: dict) -> Iterator[dict]:
    """The names that a notebook defines in its first cell after the parameters, and in those marked "edit me".

    Args:
        values: of its parameters; reports go into a folder that is thrown away. A cell that needs what other cells make is
            left out.
    """
    space, cells = _space(), list(_code(notebook))
    last = next(i for i, (_, cell) in enumerate(cells) if _tagged(cell, "parameters")) + 1
    with tempfile.TemporaryDirectory(prefix="dfkd-") as out:
        for i, (place, cell) in enumerate(cells):
            if i <= last:
                _execute(place, cell, space, values | {"out_dir": out})
            elif _tagged(cell, "edit-me"):
                with contextlib.suppress(NameError):
                    _execute(place, cell, space, values)
        yield space


def _space() -> dict:
    return {"__name__": "__main__", "display": lambda *_, **__: None}


def _code(notebook: Path) -> Iterator[tuple[str, dict]]:
    """(a name for its code, cell) of each code cell."""
    import nbformat

    for number, cell in enumerate(nbformat.read(notebook, as_version=4).cells):
        if cell.cell_type == "code":
            yield f"{notebook.name}, cell {number}", cell


def _tagged(cell: dict, tag: str) -> bool:
    return tag in cell.metadata.get("tags", [])


def _execute(place: str, cell: dict, space: dict, values: dict) -> None:
    """Execute a cell in a namespace, which takes the values if these are the parameters."""
    exec(compile(cell.source, remember(place, cell.source), "exec"), space)
    if _tagged(cell, "parameters"):
        space |= values


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Figures are drawn for no screen and not shown; only the main process prints."""
    import IPython.display
    import matplotlib

    matplotlib.use("Agg")
    before, IPython.display.display = IPython.display.display, _space()["display"]
    try:
        with (
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(sys.stdout if processes.is_main() else nowhere),
        ):
            yield
    finally:
        IPython.display.display = before
