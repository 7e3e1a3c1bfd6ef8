"""All notebooks of a profile, in the order their results flow, into one folder of reports."""

import json
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dfkd_lib import jobs, presets
from dfkd_lib.core import Store, WorkbenchError, provenance, save_json
from dfkd_lib.core.files import disk_error
from dfkd_lib.jobs import Job
from dfkd_lib.pipeline.estimate import Estimate, shipped_seconds
from dfkd_lib.pipeline.execute import (
    FAILED,
    INTERRUPTED,
    MEGABYTE,
    SKIPPED,
    STOPPED,
    SUCCEEDED,
    Outcome,
)
from dfkd_lib.pipeline.folder import prepare_folder
from dfkd_lib.pipeline.html import duration, memory, read_metrics
from dfkd_lib.pipeline.index import write_index
from dfkd_lib.pipeline.plan import Plan
from dfkd_lib.pipeline.task import Place, clear, code, do_task, missing_tasks, run_notebook
from dfkd_lib.pipeline.unchanged import needed, states, unchanged
from dfkd_lib.reporting.notebooks import read_notebooks
from dfkd_lib.reporting.results import seeds_text

MEMORY_GB = 2.0  # of a notebook that has not been run before
MEMORY_ROOM = 1.2  # over the peak of one that has
STOP_SECONDS = 15.0  # that what runs may take to end when a run is stopped


@dataclass
class Part(Job):
    """A job of a run: a notebook, the list of what it trains that is missing, or one of these tasks.

    Args:
        notebook: the one it belongs to. task: its name, of a task.
    """

    notebook: str = ""
    task: str = ""

    @property
    def whole(self) -> bool:
        """Whether it is the notebook itself."""
        return self.name == self.notebook


class Run:
    """One run in progress: hands in jobs as their turn comes, watches memory, writes results after each notebook."""

    def __init__(
        self,
        plan: Plan,
        log: Callable[[str], None] | None = None,
        ended: Callable[[str, dict], None] | None = None,
    ):
        self.plan, self.start = plan, time.perf_counter()
        self.about = read_notebooks(next(iter(plan.notebooks.values())).parent)
        self.earlier, self.took = earlier_run(plan)
        self.states = states(plan, self.about, self.earlier)
        known = plan, self.about, self.earlier, self.states
        self.kept = set() if plan.again else unchanged(*known)
        self.log = log or partial(print, file=sys.stderr, flush=True)
        self.ended = ended or (lambda name, result: None)
        self.queue: jobs.Queue | None = None
        self.place = Place()
        self.estimate = Estimate(shipped_seconds(plan.profile) | self.took)
        self.begun = 0
        self.results = {
            "profile": plan.profile,
            "notebooks": {},
            "provenance": {
                **provenance.describe(),
                "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
                "seconds": 0.0,
                "seeds": {n: p.get("seeds", p.get("seed")) for n, p in plan.parameters.items()},
                "command": plan.command,
            },
        }

    def _parts(self) -> Iterator[Part]:
        """What is to be done; what notebooks train is added when it is known what is missing."""
        plan = self.plan
        for name, path in plan.notebooks.items():
            if name in self.kept:
                continue
            wanted = needed(name, self.about) - self.kept
            others = [n for n in plan.notebooks if n in wanted]
            args = (path, plan.parameters[name], plan.out, plan.hung_minutes)
            part = self._part(name, name, run_notebook, *args)
            peak = float(self.earlier.get(name, {}).get("peak_memory_mb") or 0)
            part.memory = peak * MEGABYTE / 1e9 * MEMORY_ROOM or MEMORY_GB
            part.succeeded = lambda outcome: outcome.status == SUCCEEDED
            if "*" in self.about[name].needs:  # it waits for all others, and runs however they end
                part.after = others
            else:
                part.builds_on = tuple(others)
            if self.about[name].method in presets.TASKS and plan.spread:
                listing = self._part(name, f"{name}-tasks", missing_tasks, *args[:2])
                part.after.append(listing.name)
                yield listing
            yield part

    def _part(self, notebook: str, name: str, function: Callable, *args, task: str = "") -> Part:
        """A part of a notebook, with the run's place as its first argument."""
        return Part(
            name,
            function,
            (self.place, *args),
            memory=MEMORY_GB,
            gpu=self.about[notebook].gpu,
            threads=self.plan.threads,
            notebook=notebook,
            task=task,
        )

    def __call__(self) -> dict:
        """Run all; returns what `results.json` holds. Ctrl-C ends the kernels and keeps what is finished."""
        nothing = self.kept == self.plan.notebooks.keys()  # to run: no worker is needed
        place = (1, None) if nothing else (self.plan.jobs, self.plan.scheduler)
        options = (*place, self._receive, self.log)
        try:
            with stop_signals(self._interrupt):
                with jobs.opened_queue(*options) as self.queue:
                    try:
                        self._begin()
                        for part, answer in self.queue:
                            self._end(part, answer)
                    except KeyboardInterrupt:
                        self._stop(INTERRUPTED, STOPPED)
                    except jobs.SchedulerLost as error:
                        self._stop(FAILED, str(error))
                self._write(last=True)
        finally:
            for path in self.place.seen:
                path.unlink(missing_ok=True)
        return self.results

    def _interrupt(self) -> None:
        """What a signal does: once there is a queue, between two results, so that none is half written."""
        if self.queue is None:
            raise KeyboardInterrupt
        self.queue.interrupt()

    def _begin(self) -> None:
        """Queue all parts; leave files by which workers of a cluster elsewhere know the folders."""
        if dashboard := self.queue.cluster.dashboard:
            workers = len(self.queue.cluster.workers())
            self.log(f"{workers} workers; live state: {dashboard}")
        if self.plan.scheduler:
            folders = {Path(values["artifacts_dir"]) for values in self.plan.parameters.values()}
            mark = f".seen-{secrets.token_hex(8)}"
            seen = [folder / mark for folder in sorted({self.plan.out, *folders})]
            self.place = Place(tuple(seen), code())
            for path in seen:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
        for part in self._parts():
            self.queue.add(part)
        for name in filter(self.kept.__contains__, self.plan.notebooks):
            kept = {**self.earlier[name], "earlier": False, "unchanged": True}
            self.results["notebooks"][name] = kept
            self.results["provenance"]["seeds"][name] = seeds_text(kept)
            self.log(f"    {name}: nothing has changed since its page was made (see --again)")
            self._track(name, kept)

    def _receive(self, part: Part, message: dict) -> None:
        """What a running part reports, from another thread."""
        if "line" in message:
            self._line(part.name, message["line"])
        if "started" in message:
            place = f" on {message.get('where')}" if self.plan.scheduler else ""
            if part.whole:
                self.begun += 1
                to_run = len(self.plan.notebooks) - len(self.kept)
                self.log(f"[{self.begun}/{to_run}] {part.name} starts{place}")
            elif place and not part.again:
                self._line(part.notebook, f"{part.task or 'what is missing'} starts{place}")

    def _line(self, name: str, text: str) -> None:
        self.log(f"    {name}: {text}")

    def _end(self, part: Part, answer: object) -> None:
        """Take in what a part has returned, or its error."""
        first = str(answer).split("\n")[0]
        if part.whole:
            self._record(part, self._outcome(part, answer))
        elif isinstance(answer, BaseException | jobs.Later):
            what = part.task or "what is missing"
            if isinstance(answer, jobs.Later):
                first = f"another process is making {answer.because_of}"
            self._line(part.notebook, f"{what} is left to the notebook: {first}")
        elif part.task:
            jobs_left = self.queue.jobs.values()
            left = sum(bool(other.task) for other in jobs_left if other.notebook == part.notebook)
            self.estimate.ended(part.name, answer)
            more = f"{left} left to make{self._left()}"
            self._line(part.notebook, f"{part.task}: {duration(answer)} | {more}")
        else:
            self._add_tasks(part, answer)

    def _left(self) -> str:
        """How long the whole run will still take, in words; nothing while it is not known what there is to do."""
        parts = self.queue.jobs.values()
        listed = all(part.whole or part.task for part in parts)
        if self.results.get("stopped") or not parts or not listed:
            return ""
        now = time.perf_counter()
        running = {p.name: now - p.began for p in parts if p.name in self.queue.running and p.began}
        waiting = {p.name: {*p.builds_on, *p.after} for p in parts if p.name not in running}
        workers = self.plan.jobs if not self.plan.scheduler else len(self.queue.cluster.workers())
        left = self.estimate.left(waiting, running, workers)
        if left is None:
            return ""
        minutes = max(1, round(left / 60))
        about = f"{minutes} min" if minutes < 60 else duration(60 * minutes)
        return f" | about {about} of the run left"

    def _outcome(self, part: Part, answer: object) -> Outcome:
        """How a notebook ended; of one that never began nothing of an earlier run is left."""
        now = time.perf_counter()
        part.began = part.began or now  # its message may come later
        if isinstance(answer, Outcome):
            return answer
        if "threads" not in part.messages:
            clear(self.plan.out, part.name)
        if isinstance(answer, jobs.Skipped):
            why = f"skipped: it builds on {answer.because_of}, which did not succeed"
            return Outcome(SKIPPED, why)
        known = isinstance(answer, WorkbenchError)
        text = str(answer) if known else f"{type(answer).__name__}: {answer}"
        held = part.messages.get("held", 0) / MEGABYTE
        return Outcome(FAILED, text, held, now - part.began)

    def _add_tasks(self, listing: Part, missing: list[str]) -> None:
        """Put what a notebook trains and is missing before it."""
        notebook, (_, path, parameters) = listing.notebook, listing.args
        for task in missing:
            name = f"{notebook}: {task}"
            self.queue.add(self._part(notebook, name, do_task, path, parameters, task, task=task))
            self.queue.jobs[notebook].after.append(name)
        if missing:
            self._line(notebook, f"{len(missing)} to make: {', '.join(missing)}")

    def _record(self, part: Part, outcome: Outcome) -> None:
        name, messages = part.name, part.messages
        if outcome.status == SUCCEEDED:
            self.estimate.ended(name, outcome.seconds)
        saved = read_metrics(self.plan.out, name) if part.began else {}
        peak = max(outcome.peak_memory_mb, saved.get("peak_memory_mb") or 0)
        result = {
            "status": outcome.status,
            "seconds": round(outcome.seconds, 2),
            "parameters": self.plan.parameters[name],
            "state": self.states[name],
            "settings": {k: entry[:2] for k, entry in saved.get("settings", {}).items()},
            "metrics": saved.get("metrics", {}),
            "peak_memory_mb": round(peak, 1),
            "artifacts": [
                {k: a[k] for k in ("key", "seconds", "cached")} for a in saved.get("artifacts", [])
            ],
        }
        if "threads" in messages:
            result["threads"] = messages["threads"]
        if "machine" in messages:
            result["machine"] = {"host": messages.get("where"), **messages["machine"]}
        if outcome.error:
            result["error"] = outcome.error
        self.results["provenance"]["seeds"][name] = seeds_text(result)
        self.results["notebooks"][name] = result
        held = f", peak memory {memory(peak)}" if peak else ""
        self.log(
            f"    {name} {outcome.status} after {duration(outcome.seconds)}{held}{self._left()}"
        )
        if outcome.error:
            self.log("      " + outcome.error.replace("\n", "\n      "))
        self._write()
        self._track(name, result)

    def _track(self, name: str, result: dict) -> None:
        try:
            self.ended(name, result)
        except Exception as error:  # a tracker's whims must not stop the run
            self.log(f"      what it found was not logged: {type(error).__name__}: {error}")

    def _write(self, last: bool = False) -> None:
        """results.json and index.html as things stand, in the notebooks' order, earlier results marked as such.

        Raises:
            WorkbenchError: at the last time, if they cannot be written; before, the other notebooks are to go on.
        """
        waiting = self.plan.notebooks if not self.results.get("stopped") else ()
        notebooks = {
            name: result | {"earlier": True, "unchanged": False}
            for name, result in self.earlier.items()
            if name not in waiting
        } | self.results["notebooks"]
        self.results["provenance"]["seconds"] = round(time.perf_counter() - self.start, 2)
        took = self.took | self.estimate.took
        shown = self.results | {"notebooks": dict(sorted(notebooks.items())), "took": took}
        out = self.plan.out
        try:
            save_json(out / "results.json", shown)
            write_index(out, shown, self.about)
        except OSError as error:
            full = disk_error("the results of this run cannot be written to disk", error, out)
            if last:
                raise full from None
            self.log(str(full))

    def _stop(self, status: str, why: str) -> None:
        """End what runs, and note for every notebook without a result why; of one not begun an earlier result stays."""
        self.results["stopped"] = True
        self.log(
            "stopping: finished artifacts and the last checkpoints are kept; "
            "give the same command again to go on from there"
        )
        self.queue.cluster.stop()
        until = time.monotonic() + STOP_SECONDS
        for part in [part for part in self.queue.jobs.values() if part.whole]:
            future = self.queue.running.get(part.name)
            if not part.began and part.name in self.earlier and status == INTERRUPTED:
                continue
            text = why if part.began or status == FAILED else "not started: the run was stopped"
            outcome = Outcome(status, text)
            if future and part.began and (status == INTERRUPTED or future.done()):
                try:
                    outcome = future.result(timeout=max(0.1, until - time.monotonic()))
                except BaseException:  # cancelled, or too slow to end: the status stays
                    outcome.seconds = time.perf_counter() - part.began
            self._record(part, outcome)


def earlier_run(plan: Plan) -> tuple[dict[str, dict], dict[str, float]]:
    """(the notebooks' results, seconds by part) that another run of this profile left in the folder; {} without any."""
    try:
        saved = json.loads((plan.out / "results.json").read_text())
        found = saved["notebooks"], saved["took"]
        return found if saved["profile"] == plan.profile else ({}, {})
    except (OSError, ValueError, KeyError, TypeError):
        return {}, {}


@contextmanager
def stop_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Have SIGINT and SIGTERM call `stop`, once: a second does not disturb the stopping. In another thread: nothing."""
    handlers = {}

    def stop_once(number, frame):
        for each in handlers:
            signal.signal(each, signal.SIG_IGN)
        stop()

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                handlers[number] = signal.signal(number, stop_once)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def run(
    plan: Plan,
    log: Callable[[str], None] | None = None,
    ended: Callable[[str, dict], None] | None = None,
) -> dict:
    """Run a plan; returns the results.

    Args:
        log: gets each line of progress; stderr by default. ended: gets each notebook and its result, once it has ended.
    """
    lock = prepare_folder(plan.out)
    try:
        for folder in {values["artifacts_dir"] for values in plan.parameters.values()}:
            Store(folder).tidy()  # raises before a kernel starts if it cannot be written to
        return Run(plan, log, ended)()
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
