"""All notebooks of a profile, in the order their results flow, into one folder of reports."""

import json
import queue
import secrets
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from dfkd_lib import jobs
from dfkd_lib.core import WorkbenchError, environment
from dfkd_lib.core.artifacts import Store, save_json
from dfkd_lib.core.files import disk_error
from dfkd_lib.pipeline.execute import (
    FAILED,
    INTERRUPTED,
    MEGABYTE,
    POLL_SECONDS,
    SKIPPED,
    SUCCEEDED,
    Outcome,
)
from dfkd_lib.pipeline.folder import prepare_folder
from dfkd_lib.pipeline.plan import ABLATION, Plan
from dfkd_lib.pipeline.progress import Progress
from dfkd_lib.pipeline.task import Place, Task, clear, code, run_notebook, shared_parts, train_cell
from dfkd_lib.reporting.notebooks import read_notebooks
from dfkd_lib.reporting.published import read_published
from dfkd_lib.reporting.results import seeds_text

MEMORY_GB, MEMORY_ROOM = (
    2.0,
    1.2,
)  # of a notebook that has not been run before; over the peak of one that has
STOP_SECONDS = 15.0  # that what runs may take to end when a run is stopped


@dataclass
class Unit:
    """A task of a run: a notebook, what an ablation's students share, or one of these students.

    Args:
        name: what it is called. notebook: the one it belongs to. function, args: see `fanout`. memory: GB. told: the last
            of each thing that it told. before: further units that it waits for. began: when it first began. lost: how often
            the worker that was to run it died before.
    """

    name: str
    notebook: str
    function: Callable
    args: tuple
    memory: float
    before: list[str] = field(default_factory=list)
    told: dict = field(default_factory=dict)
    began: float | None = None
    lost: int = 0


class Run:
    """One run in progress: hands in tasks as their turn comes, watches memory, writes results after each notebook."""

    def __init__(self, plan: Plan, say: Callable[[str], None] | None = None):
        self.plan, self.start = plan, time.perf_counter()
        self.about = read_notebooks(next(iter(plan.notebooks.values())).parent)
        self.earlier = self._results_in(plan.out)  # kept for the notebooks that are not run now
        self.progress = Progress(list(plan.notebooks), self._expected("seconds"), say)
        self.tasks: jobs.Inline | jobs.Cluster | None = None
        self.place = Place()
        self.units, self.ended = self._units(), queue.SimpleQueue()
        self.running: dict[str, object] = {}
        self.workers: dict[str, dict] = {}  # of a cluster elsewhere
        self.stopped = threading.Event()
        self.peak = 0
        self.results = {
            "profile": plan.profile,
            "notebooks": {},
            "peak_memory_mb": 0.0,
            "provenance": {
                **environment.describe(),
                "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
                "seconds": 0.0,
                "seeds": {n: p.get("seeds", p.get("seed")) for n, p in plan.parameters.items()},
                "command": plan.command,
            },
        }

    def _units(self) -> dict[str, Unit]:
        """What is to be done, by name, in order; an ablation's students are added when it is known which are missing."""
        peaks, units = self._expected("peak_memory_mb"), {}
        for name in self.plan.notebooks:
            memory = peaks.get(name, 0) * MEGABYTE / 1e9 * MEMORY_ROOM or MEMORY_GB
            unit = Unit(name, name, run_notebook, (), memory)
            if name == ABLATION and self.plan.spread:
                shared = f"{ABLATION}-shared"
                units[shared] = Unit(
                    shared, name, shared_parts, (self.plan.parameters[name],), MEMORY_GB
                )
                unit.before.append(shared)
            units[name] = unit
        return units

    def _results_in(self, folder: Path) -> dict:
        """The notebooks' results of this profile that another run left in a folder, or {}."""
        try:
            saved = json.loads((folder / "results.json").read_text())
            return saved["notebooks"] if saved["profile"] == self.plan.profile else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _expected(self, what: str) -> dict[str, float]:
        """{notebook: seconds or megabytes} as published for this profile, or as of the last run into this folder."""
        known: dict[str, dict] = {}
        for file in sorted(read_published(), key=lambda file: file.started):
            known |= file.notebooks if file.content.get("profile") == self.plan.profile else {}
        return {name: float(one.get(what) or 0) for name, one in (known | self.earlier).items()}

    def __call__(self) -> dict:
        """Run all; returns what `results.json` holds. Ctrl-C ends the kernels and keeps what is finished."""
        sampler = threading.Thread(target=self._sample, daemon=True)
        sampler.start()
        previous = on_stop(interrupt) if in_main_thread() else {}
        try:
            with jobs.opened(
                self.plan.jobs, self.plan.scheduler, self._hear, self.progress.note
            ) as self.tasks:
                if previous:  # from here on heard between two results, so that none is half written
                    on_stop(lambda: self.ended.put((None, None)))
                try:
                    self._begin()
                    self._schedule()
                except KeyboardInterrupt:
                    self._stop(
                        INTERRUPTED,
                        "stopped by hand; finished artifacts and the last checkpoint are kept",
                    )
                except jobs.SchedulerLost as error:
                    self._stop(FAILED, str(error))
                except BaseException:
                    self.tasks.stop()
                    raise
            self._write(last=True)
        finally:
            self.stopped.set()
            sampler.join()
            self.progress.close()
            for path in self.place.seen:
                path.unlink(missing_ok=True)
            for number, handler in previous.items():
                signal.signal(number, handler)
        return self.results

    def _begin(self) -> None:
        """Say where it runs; leave files by which workers of a cluster elsewhere know the folders."""
        if self.tasks.dashboard:
            self.progress.note(
                f"{len(self.tasks.workers())} workers; live state: {self.tasks.dashboard}"
            )
        if self.plan.scheduler:
            folders = {
                self.plan.out,
                *(Path(p["artifacts_dir"]) for p in self.plan.parameters.values()),
            }
            self.place = Place(
                tuple(folder / f".seen-{secrets.token_hex(8)}" for folder in sorted(folders)),
                code(),
            )
            for path in self.place.seen:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()

    def _note_workers(self) -> None:
        """Keep what the workers have that take part; more may have come."""
        for worker in self.tasks.workers() if self.plan.scheduler else ():
            self.workers[worker.address] = {
                "threads": worker.threads,
                "memory_gb": worker.memory,
                "gpus": worker.gpus,
            }
        self.results["provenance"] |= (
            {"workers": list(self.workers.values())} if self.workers else {}
        )

    def _schedule(self) -> None:
        while self.units:
            for unit in list(self.units.values()):
                blocked = unit.name not in self.running and self._blocked_by(unit)
                if blocked not in (None, False, "wait"):
                    self._skip(unit, blocked)
                elif blocked is None and not self.tasks.free(len(self.running)):
                    break
                elif blocked is None:
                    self._hand_in(unit)
            if self.running:
                try:
                    name, future = self.ended.get(timeout=jobs.LOOK_SECONDS)
                except queue.Empty:
                    if not self.tasks.answers():
                        raise jobs.SchedulerLost.now() from None
                    continue
                if name is None:
                    raise KeyboardInterrupt
                self._end(self.units[name], future)
                del self.running[name]

    def _blocked_by(self, unit: Unit) -> str | None:
        """ "wait", or the name of a failed notebook that the unit builds on, or None if it may start."""
        name, results, needs = (
            unit.notebook,
            self.results["notebooks"],
            self.about[unit.notebook].needs,
        )
        every = "*" in needs  # it waits for all others, and runs however they end
        before = [n for n in self.plan.notebooks if n in needs or every and n != name]
        if any(n not in results for n in before) or any(n in self.units for n in unit.before):
            return "wait"
        bad = [n for n in before if results[n]["status"] != SUCCEEDED]
        return bad[0] if bad and not every else None

    def _skip(self, unit: Unit, blocked: str) -> None:
        del self.units[unit.name]
        if unit.name == unit.notebook:
            clear(self.plan.out, unit.name)
            why = f"skipped: it builds on {blocked}, which did not succeed"
            self._record(unit, Outcome(SKIPPED, why, 0.0, 0.0))

    def _hand_in(self, unit: Unit) -> None:
        plan, args = self.plan, unit.args
        if unit.name == unit.notebook:
            args = (
                Task(
                    unit.name,
                    plan.notebooks[unit.name],
                    plan.parameters[unit.name],
                    plan.out,
                    plan.hung_minutes,
                ),
            )
        needs = self.tasks.needs(unit.memory, self.about[unit.notebook].gpu, plan.threads)
        future = self.tasks.submit(unit.name, unit.function, self.place, *args, needs=needs)
        self.running[unit.name] = future
        future.add_done_callback(lambda future: self.ended.put((unit.name, future)))

    def _hear(self, name: str, message: dict) -> None:
        """What a running task tells, from another thread."""
        unit = self.units.get(name)
        if unit is None:
            return
        if "line" in message:
            self.progress.line(name, message["line"])
        if "started" in message:
            self._begun(unit, message.get("where"))
        unit.told.update(message)

    def _begun(self, unit: Unit, where: str | None) -> None:
        """Say that a task runs; on which machine, where there are several."""
        if "started" in unit.told:
            self.progress.note(
                f"    {unit.name}: its worker was lost; it runs again on {where}, from its checkpoint"
            )
            return
        unit.began, place = time.perf_counter(), f" on {where}" if self.plan.scheduler else ""
        if unit.name == unit.notebook:
            self.progress.started(unit.name, unit.told, place)
        elif place:
            self.progress.line(
                unit.notebook, f"{unit.name.removeprefix(f'{ABLATION}-')} starts{place}"
            )

    def _end(self, unit: Unit, future) -> None:
        """Take in what a task has answered; it leaves the units only when all is written."""
        try:
            answer = future.result()
        except BaseException as error:
            answer = jobs.failed(error)
            if isinstance(answer, jobs.SchedulerLost):
                raise answer from None
            if isinstance(answer, jobs.WorkerLost) and "started" not in unit.told:
                unit.lost += 1
                if unit.lost < jobs.LOST_TIMES:  # it may only have waited there
                    self.progress.note(
                        f"    {unit.name}: its worker was lost before it began; it is handed in again"
                    )
                    return
        failed = isinstance(answer, BaseException)
        self._note_workers()
        if unit.name == unit.notebook:
            if not failed:
                unit.began = (
                    unit.began or time.perf_counter()
                )  # what it told of that may come later
            elif "threads" not in unit.told:  # it was refused, or never began
                clear(self.plan.out, unit.name)
            self._record(unit, self._failure(unit, answer) if failed else answer)
        elif unit.function is shared_parts:
            if failed:
                told = str(answer).split("\n")[0]
                self.progress.line(
                    ABLATION,
                    f"what its students share could not be made, so it makes all itself: {told}",
                )
            self._add_cells(unit, [] if failed else answer)
        else:
            told = str(answer if failed else answer[1]).split("\n")[0]
            left = self._cells_left() - 1
            self.progress.line(
                ABLATION, f"{unit.name.partition('-cell-')[2]}: {told} | {left} left to train"
            )
        del self.units[unit.name]

    @staticmethod
    def _failure(unit: Unit, error: BaseException) -> Outcome:
        told = (
            str(error) if isinstance(error, WorkbenchError) else f"{type(error).__name__}: {error}"
        )
        now = time.perf_counter()
        return Outcome(FAILED, told, now - (unit.began or now), unit.told.get("held", 0) / MEGABYTE)

    def _add_cells(self, shared: Unit, cells: list[dict]) -> None:
        """Put the students that are missing before their notebook."""
        notebook = self.units.pop(shared.notebook)
        artifacts = self.plan.parameters[ABLATION]["artifacts_dir"]
        for cell in cells:
            name = f"{ABLATION}-cell-{cell['name']}, seed {cell['seed']}"
            self.units[name] = Unit(name, ABLATION, train_cell, (artifacts, cell), MEMORY_GB)
            notebook.before.append(name)
        self.units[notebook.name] = notebook
        if cells:
            self.progress.line(ABLATION, f"{len(cells)} students to train")

    def _cells_left(self) -> int:
        return sum(unit.function is train_cell for unit in self.units.values())

    def _record(self, unit: Unit, outcome: Outcome) -> None:
        from dfkd_lib.pipeline.html import read_metrics

        name = unit.name
        saved = read_metrics(self.plan.out, name) if unit.began else {}
        result = {
            "status": outcome.status,
            "seconds": round(outcome.seconds, 2),
            "parameters": self.plan.parameters[name],
            "settings": {k: entry[:2] for k, entry in saved.get("settings", {}).items()},
            "metrics": saved.get("metrics", {}),
            "peak_memory_mb": round(
                max(outcome.peak_memory_mb, saved.get("peak_memory_mb") or 0), 1
            ),
            "artifacts": [
                {k: a[k] for k in ("key", "seconds", "cached")} for a in saved.get("artifacts", [])
            ],
        }
        if "threads" in unit.told:
            result["threads"] = unit.told["threads"]
        if "machine" in unit.told:
            result["machine"] = {"host": unit.told.get("where"), **unit.told["machine"]}
        if outcome.error:
            result["error"] = outcome.error
        self.results["provenance"]["seeds"][name] = seeds_text(result)
        self.results["notebooks"][name] = result
        self.progress.ended(name, outcome)
        self._write()

    def _write(self, last: bool = False) -> None:
        """results.json and index.html as things stand, in the notebooks' order, earlier results marked as such.

        Raises:
            WorkbenchError: at the last time, if they cannot be written; before, the other notebooks are to go on.
        """
        from dfkd_lib.pipeline.index import write_index

        waiting = self.plan.notebooks if not self.results.get("stopped") else ()
        kept = {
            name: result | {"earlier": True}
            for name, result in self.earlier.items()
            if name not in waiting
        }
        everything = kept | self.results["notebooks"]
        self.results["peak_memory_mb"] = round(self.peak / MEGABYTE, 1)
        self.results["provenance"]["seconds"] = round(time.perf_counter() - self.start, 2)
        shown = self.results | {
            "notebooks": {name: everything[name] for name in sorted(everything)}
        }
        try:
            save_json(self.plan.out / "results.json", shown)
            write_index(self.plan.out, shown, self.about)
        except OSError as error:
            told = disk_error(
                "the results of this run cannot be written to disk", error, self.plan.out
            )
            if last:
                raise told from None
            self.progress.note(str(told))

    def _sample(self) -> None:
        """Watch the memory of all processes of the run on this machine until it ends."""
        own = psutil.Process()
        while not self.stopped.wait(POLL_SECONDS):
            held = 0
            for process in (own, *own.children(recursive=True)):
                try:
                    held += process.memory_info().rss
                except psutil.Error:
                    continue
            self.peak = max(self.peak, held)
            self.progress.refresh()

    def _stop(self, status: str, why: str) -> None:
        """End what runs, and say of every notebook that has no result why; of one not begun an earlier result is kept."""
        self.stopped.set()
        self.results["stopped"] = True
        self.progress.note(
            "stopping: finished artifacts and the last checkpoints are kept; "
            "give the same command again to go on from there"
        )
        self.tasks.stop()
        until = time.monotonic() + STOP_SECONDS
        for unit in [unit for unit in self.units.values() if unit.name == unit.notebook]:
            future = self.running.get(unit.name)
            if not unit.began and unit.name in self.earlier and status == INTERRUPTED:
                continue
            told = why if unit.began or status == FAILED else "not started: the run was stopped"
            outcome = Outcome(status, told, 0.0, 0.0)
            if future and unit.began and (status == INTERRUPTED or future.done()):
                try:
                    outcome = future.result(timeout=max(0.1, until - time.monotonic()))
                except (
                    BaseException
                ):  # cancelled, or too slow to end: what it is called does not depend on it
                    outcome.seconds = time.perf_counter() - unit.began
            self._record(unit, outcome)


def on_stop(stop: Callable[[], None]) -> dict:
    """Have SIGINT and SIGTERM call `stop`, once: a second does not disturb the stopping; returns the handlers so far."""
    numbers = [
        n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN
    ]

    def heard(number, frame):
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        stop()

    return {number: signal.signal(number, heard) for number in numbers}


def interrupt() -> None:
    """What Ctrl-C does by itself."""
    raise KeyboardInterrupt


def in_main_thread() -> bool:
    """Whether this is the thread that may set signal handlers."""
    return threading.current_thread() is threading.main_thread()


def run(plan: Plan, say: Callable[[str], None] | None = None) -> dict:
    """Run a plan; returns the results."""
    lock = prepare_folder(plan.out)
    try:
        for folder in {values["artifacts_dir"] for values in plan.parameters.values()}:
            Store(folder).tidy()  # says at once, before a kernel starts, if it cannot be written to
        return Run(plan, say)()
    finally:
        lock.release()


def exit_code(results: dict) -> int:
    """0 if every notebook of this run succeeded, 130 if it was stopped by hand, else 1."""
    statuses = {
        result["status"] for result in results["notebooks"].values() if not result.get("earlier")
    }
    if INTERRUPTED in statuses or results.get("stopped") and FAILED not in statuses:
        return 130
    return 0 if statuses <= {SUCCEEDED} else 1
