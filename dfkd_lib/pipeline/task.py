"""The tasks of a run, as they are done on whichever worker gets them."""

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from dfkd_lib import __version__, jobs
from dfkd_lib.core import WorkbenchError, processes, provenance
from dfkd_lib.core.artifacts import Store
from dfkd_lib.pipeline.execute import FAILED, Outcome, Watch, execute


@dataclass(frozen=True)
class Place:
    """What a worker must have: files that are seen by who sees the folders of a run, and its code; neither if it is here."""

    seen: tuple[Path, ...] = ()
    code: tuple = ()


@dataclass(frozen=True)
class Task:
    """One notebook to run.

    Args:
        name: of the notebook. notebook: its file. parameters: all that it declares. out: folder of the reports.
        hung_minutes: see `Watch`.
    """

    name: str
    notebook: Path
    parameters: dict
    out: Path
    hung_minutes: float


def code() -> tuple:
    """What must be the same wherever a run's tasks are done: the library's version and the commit."""
    return __version__, provenance.code()["commit"]


def run_notebook(tell: jobs.Tell, needs: jobs.Needs, place: Place, task: Task) -> Outcome:
    """Run a notebook in a kernel of its own and write its page; tells lines, the share of cells done and the memory held."""
    from dfkd_lib.pipeline import html

    start = time.perf_counter()
    check_place(place)
    clear(task.out, task.name)
    tell({"threads": needs.threads or int(os.environ.get("OMP_NUM_THREADS") or processes.cores())})
    if place.seen:
        tell({"machine": provenance.hardware()})
    stopped, output = threading.Event(), task.out / f"{task.name}.ipynb"
    watch = Watch(tell, task.hung_minutes, lambda: over(place))

    def stop() -> None:
        stopped.set()
        watch.kill()

    with jobs.stopped_by(stop):
        outcome = execute(
            task.notebook, task.parameters, output, watch, stopped, kernel_environment(needs)
        )
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
        outcome.error = "\n".join(
            filter(None, [outcome.error, f"its page could not be written: {error!r}"])
        )
    outcome.seconds = time.perf_counter() - start
    return outcome


def kernel_environment(needs: jobs.Needs) -> dict[str, str]:
    """The variables of a kernel: lines instead of bars, its threads, and no GPU unless its task asked for one."""
    chosen = {"DFKD_PROGRESS": "lines", "JUPYTER_PLATFORM_DIRS": "1", "PYTHONUNBUFFERED": "1"}
    if needs.threads:
        # All three: torch follows MKL's, which Dask's nannies set to one.
        chosen |= dict.fromkeys(
            ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(needs.threads)
        )
        if not needs.gpu:
            chosen |= jobs.NO_GPU
    return {**os.environ, **chosen}


def check_place(place: Place) -> None:
    """Raise unless this worker sees the folders of the run and has its code: results of two codes are not one result."""
    for path in place.seen:
        if not path.exists():
            raise WorkbenchError(
                "a worker does not see the folder of this run",
                expected="one that all machines share",
                got=f"no {path.name} on {provenance.host()}",
                where=path.parent,
                fix="give --out and --artifacts on a shared disk, by the same path on all machines",
            )
    if place.code and place.code != code():
        raise WorkbenchError(
            "a worker has other code than this run",
            expected="version {}, commit {}".format(*place.code),
            got="version {}, commit {}".format(*code()),
            where=provenance.host(),
            fix="start workers from the same checkout, and start them again after a change",
        )


def over(place: Place) -> bool:
    """Whether the run is: nobody waits for its tasks, and the next one into the same folder has taken its mark away."""
    for path in place.seen:
        try:
            path.stat()
        except FileNotFoundError:
            return True
        except OSError:  # a disk elsewhere that stumbles says nothing
            continue
    return False


def clear(out: Path, name: str) -> None:
    """Nothing of an earlier run of a notebook may be taken for this one's."""
    for path in (f"{name}.html", f"{name}.ipynb", f"metrics/{name}.json"):
        (out / path).unlink(missing_ok=True)


def shared_parts(tell: jobs.Tell, needs: jobs.Needs, place: Place, parameters: dict) -> list[dict]:
    """Make what the students of an ablation share; returns those that are to be trained."""
    from dfkd_lib import ablation, presets

    check_place(place)
    config = presets.of_parameters("ablation", parameters)
    cells = [cell.as_dict() for cell in ablation.cells_of(config)]
    return ablation.prepare(tell, needs, parameters["artifacts_dir"], cells)


def train_cell(
    tell: jobs.Tell, needs: jobs.Needs, place: Place, artifacts: str, cell: dict
) -> tuple[str | None, str]:
    """Train one student of an ablation; its key and how it does, or None and what happened."""
    from dfkd_lib import ablation

    check_place(place)
    key, error = ablation.work(tell, needs, artifacts, cell)
    return key, error or f"{100 * Store(artifacts).find(key).metrics['accuracy']:.2f} %"
