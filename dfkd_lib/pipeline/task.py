"""The tasks of a run, as they are done on whichever worker gets them."""

import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from dfkd_lib import __version__, jobs, presets
from dfkd_lib.core import (
    BeingMade,
    NotMade,
    WorkbenchError,
    only_finding,
    processes,
    provenance,
    without_waiting,
)
from dfkd_lib.pipeline import html
from dfkd_lib.pipeline.execute import FAILED, Outcome, Watch, execute
from dfkd_lib.pipeline.here import definitions
from dfkd_lib.reporting.notebooks import read_notebook
from dfkd_lib.reporting.report import BATCH

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # Dask's nannies set MKL's


@dataclass(frozen=True)
class Place:
    """What a worker must have: files that only who sees the folders of a run sees, and its code; nothing if it is here."""

    seen: tuple[Path, ...] = ()
    code: tuple = ()

    def check(self) -> None:
        """Raise unless this worker sees the folders of the run and has its code: results of two codes are not one result."""
        for path in self.seen:
            if not path.exists():
                raise WorkbenchError(
                    "a worker does not see the folder of this run",
                    expected="one that all machines share",
                    got=f"no {path.name} on {provenance.host()}",
                    where=path.parent,
                    fix="give --out and --artifacts on a shared disk, by the same path on all machines",
                )
        if self.code and self.code != code():
            raise WorkbenchError(
                "a worker has other code than this run",
                expected="version {}, commit {}".format(*self.code),
                got="version {}, commit {}".format(*code()),
                where=provenance.host(),
                fix="start workers from the same checkout, and start them again after a change",
            )

    def is_over(self) -> bool:
        """Whether the run has ended: the next one into the same folder has taken its mark away."""
        for path in self.seen:
            try:
                path.stat()
            except FileNotFoundError:
                return True
            except OSError:  # a disk elsewhere that stumbles proves nothing
                continue
        return False


def code() -> tuple:
    """What must be the same wherever a run's tasks are done: the library's version and the commit."""
    return __version__, provenance.code()["commit"]


def run_notebook(
    report: jobs.Tell,
    needs: jobs.Needs,
    place: Place,
    notebook: Path,
    parameters: dict,
    out: Path,
    hung_minutes: float,
) -> Outcome:
    """Run a notebook in a kernel of its own and write its page; reports its lines and the memory held.

    Args:
        parameters: all that it declares. out: folder of the reports. hung_minutes: see `Watch`.
    """
    start = time.perf_counter()
    place.check()
    clear(out, notebook.stem)
    threads = needs.threads or int(os.environ.get("OMP_NUM_THREADS") or processes.cores())
    report({"threads": threads})
    if place.seen:
        report({"machine": provenance.hardware()})
    stopped, output = threading.Event(), out / notebook.name
    watch = Watch(report, hung_minutes, place.is_over)

    def stop() -> None:
        stopped.set()
        watch.kill()

    environment = kernel_environment(needs)
    with jobs.stopped_by(stop):
        outcome = execute(notebook, parameters, output, watch, stopped, environment)
    if watch.left:  # what there is now is another run's
        raise WorkbenchError(
            "the run of this notebook has ended without it", where=output, fix="start it again"
        )
    try:
        if outcome.error:
            html.mark_failure(output, outcome.error, watch.index)
        html.write_notebook_page(output, output.with_suffix(".html"))
    except Exception as error:  # whatever stops one page from being written must not stop the run
        outcome.status = FAILED
        problem = f"its page could not be written: {error!r}"
        outcome.error = f"{outcome.error}\n{problem}" if outcome.error else problem
    outcome.seconds = time.perf_counter() - start
    return outcome


def kernel_environment(needs: jobs.Needs) -> dict[str, str]:
    """The variables of a kernel: lines instead of bars, its threads, and no GPU unless its task asked for one."""
    chosen = {"DFKD_PROGRESS": "lines", "JUPYTER_PLATFORM_DIRS": "1", "PYTHONUNBUFFERED": "1"}
    chosen[BATCH] = "1"
    if needs.threads:
        chosen |= dict.fromkeys(THREADS, str(needs.threads))
        if not needs.gpu:
            chosen |= jobs.NO_GPU
    return {**os.environ, **chosen}


def clear(out: Path, name: str) -> None:
    """Remove what an earlier run of a notebook left, so that it is not taken for this one's."""
    for path in (f"{name}.html", f"{name}.ipynb", f"metrics/{name}.json"):
        (out / path).unlink(missing_ok=True)


def missing_tasks(
    report: jobs.Tell, needs: jobs.Needs, place: Place, notebook: Path, parameters: dict
) -> list[str]:
    """The names of what a notebook trains and nobody has made yet, see `distill.tasks`."""
    place.check()
    missing = []
    with (
        jobs.alone_in_process(needs.threads),
        _tasks(notebook, parameters) as tasks,
        only_finding(),
    ):
        for name, make in tasks.items():
            try:
                make()
            except NotMade:
                missing.append(name)
            except Exception:  # the notebook will say what stands in its way
                continue
    return missing


def do_task(
    report: jobs.Tell, needs: jobs.Needs, place: Place, notebook: Path, parameters: dict, name: str
) -> float | jobs.Later:
    """Make one of a notebook's tasks; returns the seconds it took, or that another process is making a part of it."""
    place.check()
    start = time.perf_counter()
    with jobs.alone_in_process(needs.threads), _tasks(notebook, parameters) as tasks:
        try:
            with without_waiting(), printing(report):
                tasks[name]()
        except BeingMade as error:
            return jobs.Later(str(error.got))
    return time.perf_counter() - start


class _Lines(io.TextIOBase):
    """Text whose whole lines are reported."""

    def __init__(self, report: jobs.Tell):
        self.report, self.rest = report, ""

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in filter(str.strip, lines):
            self.report({"line": line})
        return len(text)


@contextmanager
def printing(report: jobs.Tell) -> Iterator[None]:
    """Report what is printed, a line an epoch among it, from here on: a process does one task after another."""
    os.environ["DFKD_PROGRESS"] = "lines"
    with redirect_stdout(_Lines(report)):
        yield


@contextmanager
def _tasks(notebook: Path, parameters: dict) -> Iterator[dict[str, Callable[[], object]]]:
    """What a notebook trains with these parameters, by name."""
    with definitions(notebook, parameters) as names:
        yield presets.tasks(read_notebook(notebook).method)(names)
