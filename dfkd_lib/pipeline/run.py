"""All notebooks of a profile, in the order their results flow, into one folder of reports."""

import json
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from dfkd_lib import environment
from dfkd_lib.artifacts import REPOSITORY, resolve as resolve_path, save_json
from dfkd_lib.errors import WorkbenchError
from dfkd_lib.pipeline import parameters as declared
from dfkd_lib.pipeline.execute import FAILED, INTERRUPTED, MEGABYTE, SKIPPED, SUCCEEDED, Outcome, Watch, execute
from dfkd_lib.pipeline.progress import Progress
from dfkd_lib.profiles import PROFILES
from dfkd_lib.summary import headlines

# A notebook waits for those it names; if one of them fails it is skipped. The summary waits for all and always runs.
NEEDS = {"30_classification_kd": ("20_gan_fid",), "35_ablation": ("20_gan_fid",),
         "70_deploy": ("30_classification_kd", "40_detection_kd")}
LAST = "90_summary"
ABLATION = "35_ablation"
POLL_SECONDS = 0.5


@dataclass
class Plan:
    """A run, checked: what to run with which parameters, and where everything goes."""

    profile: str
    notebooks: dict[str, Path]
    parameters: dict[str, dict]
    out: Path
    jobs: int
    command: str


def notebook_files(folder: Path | None = None) -> dict[str, Path]:
    """The notebooks `NN_name.ipynb` of a folder (the repository's by default), by name, in order."""
    folder = folder or REPOSITORY / "notebooks"
    found = {path.stem: path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    if not found:
        raise WorkbenchError("there are no notebooks", where=folder, expected="files named NN_name.ipynb",
                             mend="run from a checkout of the whole repository")
    return found


def make_plan(profile: str, only: str | None = None, settings: list[str] | tuple[str, ...] = (), out: str | None = None,
              jobs: int | None = None, artifacts: str = "data/artifacts", notebooks: Path | None = None,
              scheduler: str | None = None, grid: str | None = None) -> Plan:
    """Check everything that can be checked before a kernel starts.

    Args:
        profile: "smoke", "quick" or "paper". only: comma-separated notebook prefixes. settings: words such as
            "10.epochs=3". out, artifacts: folders, relative to the repository root. jobs: notebooks at a time, 1 by default.
        notebooks: another folder of notebooks. grid: a YAML file of rows and seeds: notebook 35 alone, unless `only` says
            otherwise, into reports/grid_<name of the file>, its students `jobs` at a time (default: as many as cores).

    Raises:
        WorkbenchError: naming the notebook, the parameter, what was expected and the nearest right name.
    """
    if scheduler:
        raise WorkbenchError("running on a scheduler is not there yet", got=f"--scheduler {scheduler}",
                             mend="leave it out; --jobs N runs N notebooks at a time on this machine")
    if profile not in PROFILES:
        near = declared.nearest(profile, PROFILES)
        raise WorkbenchError(f"there is no profile '{profile}'", expected="one of " + ", ".join(PROFILES), got=profile,
                             mend=f"did you mean '{near}'?" if near else None)
    if jobs is not None and jobs < 1:
        raise WorkbenchError("--jobs must be a positive number of notebooks", expected="1..", got=jobs)
    files = notebook_files(notebooks)
    if grid is not None:
        path = Path(grid).expanduser().resolve()
        only, out = only or ABLATION, out or f"reports/grid_{path.stem}"
        # One notebook, with all the cores, whose students run so many at a time.
        settings, jobs = [f"{ABLATION}.grid={path}", f"{ABLATION}.jobs={jobs or 0}", *settings], 1
    jobs = 1 if jobs is None else jobs
    names = list(files)
    if only:
        chosen = {declared.find_notebook(word.strip(), names) for word in only.split(",")}
        if grid is not None and ABLATION not in chosen:
            raise WorkbenchError("a grid runs in notebook 35", expected=f"--only with {ABLATION}, or none",
                                 got=f"--only {only}", mend="leave --only out")
        names = [name for name in names if name in chosen]
    known = {name: declared.read_notebook(files[name]) for name in files}
    values = declared.resolve(known, PROFILES[profile], list(settings))
    if grid is not None:
        from dfkd_lib import ablation  # imports torch: only where it is needed

        ablation.read_grid(path, ablation.base_of(values[ABLATION]))
    folder = resolve_path(out or f"reports/{profile}")
    for name in names:
        values[name] |= {"profile": profile, "out_dir": str(folder), "artifacts_dir": str(resolve_path(artifacts)),
                         "interactive": False}
        for own in declared.OWN:
            declared.find_parameter(own, known[name], name)
    return Plan(profile, {name: files[name] for name in names}, {name: values[name] for name in names}, folder, jobs,
                shlex.join(["python", "-m", "dfkd_lib", *sys.argv[1:]]))


def prepare_folder(out: Path) -> FileLock:
    """Make the output folder and lock it; WorkbenchError if it cannot be written or another run is using it."""
    try:
        for folder in (out, out / "metrics", out / "figures", out / "tables"):
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".probe-{os.getpid()}"
            probe.write_bytes(b"0" * 4096)
            probe.unlink()
        lock = FileLock(out / ".lock")
        lock.acquire(timeout=0)
        return lock
    except Timeout:
        raise WorkbenchError("another run is writing to this output folder", where=out,
                             mend="wait for it, or give another folder with --out") from None
    except OSError as error:
        raise WorkbenchError("the output folder cannot be written to", where=out, got=error,
                             mend="give another folder with --out, or free this one") from None


class Run:
    """One run in progress: starts notebooks as their turn comes, watches memory, writes results after each."""

    def __init__(self, plan: Plan, say: Callable[[str], None] | None = None):
        self.plan, self.start = plan, time.perf_counter()
        self.earlier = self._results_in(plan.out)  # kept for the notebooks that are not run now
        self.progress = Progress(list(plan.notebooks), self._expected_seconds(), say)
        self.watches: dict[str, Watch] = {}
        self.running: dict[Future, str] = {}
        self.stopped = threading.Event()
        self.peak, self.metrics = 0, {}
        self.results = {"profile": plan.profile, "notebooks": {}, "peak_memory_mb": 0.0, "provenance": {
            **environment.describe(), "started": time.strftime("%Y-%m-%d %H:%M:%S %z"), "seconds": 0.0,
            "seeds": {n: p.get("seeds", p.get("seed")) for n, p in plan.parameters.items()}, "command": plan.command}}

    def _results_in(self, folder: Path) -> dict:
        """The notebooks' results of this profile that another run left in a folder, or {}."""
        try:
            saved = json.loads((folder / "results.json").read_text())
            return saved["notebooks"] if saved["profile"] == self.plan.profile else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _expected_seconds(self) -> dict[str, float]:
        published = self._results_in(REPOSITORY / "reports" / "published" / self.plan.profile)
        return {name: float(result.get("seconds") or 0) for name, result in (published | self.earlier).items()}

    def __call__(self) -> dict:
        """Run all; returns what `results.json` holds. Ctrl-C ends the kernels and keeps what is finished."""
        sampler = threading.Thread(target=self._sample, daemon=True)
        sampler.start()
        previous = signal.signal(signal.SIGTERM, signal.default_int_handler) if in_main_thread() else None
        try:
            with ThreadPoolExecutor(self.plan.jobs) as pool:
                try:
                    self._schedule(pool)
                except KeyboardInterrupt:
                    self._stop()
        finally:
            if previous is not None:
                signal.signal(signal.SIGTERM, previous)
            self.stopped.set()
            sampler.join()
            self.progress.close()
        self._write()
        return self.results

    def _waiting(self) -> list[str]:
        return [name for name in self.plan.notebooks if name not in self.results["notebooks"]]

    def _schedule(self, pool: ThreadPoolExecutor) -> None:
        running = self.running
        while running or self._waiting():
            for name in self._waiting():
                if name in running.values() or len(running) >= self.plan.jobs:
                    continue
                blocked = self._blocked_by(name, list(running.values()))
                if blocked == "wait":
                    continue
                if blocked:
                    why = f"skipped: it builds on {blocked}, which did not succeed"
                    self._record(name, Outcome(SKIPPED, why, 0.0, 0.0))
                    continue
                self._clear(name)
                self.watches[name] = Watch(lambda line, name=name: self.progress.line(name, line))
                self.progress.started(name, self.watches[name])
                running[pool.submit(self._execute, name)] = name
            if running:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    self._record(running.pop(future), future.result())

    def _blocked_by(self, name: str, running: list[str]) -> str | None:
        """"wait", or the name of a failed notebook that `name` builds on, or None if it may start."""
        before = [n for n in self.plan.notebooks if n != LAST] if name == LAST else NEEDS.get(name, ())
        before = [n for n in before if n in self.plan.notebooks]
        if any(n in running or n not in self.results["notebooks"] for n in before):
            return "wait"
        bad = [n for n in before if self.results["notebooks"][n]["status"] != SUCCEEDED]
        return bad[0] if bad and name != LAST else None

    def _clear(self, name: str) -> None:
        """Nothing of an earlier run of a notebook may be taken for this one's."""
        for path in (f"{name}.html", f"{name}.ipynb", f"metrics/{name}.json"):
            (self.plan.out / path).unlink(missing_ok=True)

    def _execute(self, name: str) -> Outcome:
        from dfkd_lib.pipeline import html

        start, watch = time.perf_counter(), self.watches[name]
        output = self.plan.out / f"{name}.ipynb"
        outcome = execute(self.plan.notebooks[name], self.plan.parameters[name], output, watch, self.stopped)
        try:
            if outcome.error:
                html.mark_failure(output, outcome.error, watch.index)
            html.write_notebook_page(output, output.with_suffix(".html"))
        except Exception as error:  # whatever stops one page from being written must not stop the run
            outcome.status = FAILED
            outcome.error = "\n".join(filter(None, [outcome.error, f"its page could not be written: {error!r}"]))
        outcome.seconds = time.perf_counter() - start
        return outcome

    def _record(self, name: str, outcome: Outcome) -> None:
        from dfkd_lib.pipeline.html import read_metrics

        self.metrics[name] = saved = read_metrics(self.plan.out, name) if outcome.status != SKIPPED else {}
        result = {"status": outcome.status, "seconds": round(outcome.seconds, 2),
                  "parameters": self.plan.parameters[name], "metrics": saved.get("metrics", {}),
                  "peak_memory_mb": round(max(outcome.peak_memory_mb, saved.get("peak_memory_mb") or 0), 1),
                  "artifacts": [{k: a[k] for k in ("key", "seconds", "cached")} for a in saved.get("artifacts", [])]}
        if outcome.error:
            result["error"] = outcome.error
        self.results["notebooks"][name] = result
        self.progress.ended(name, outcome)
        self._write()

    def _write(self) -> None:
        """results.json and index.html as things stand, in the notebooks' order, earlier results marked as such."""
        from dfkd_lib.pipeline.html import write_index

        kept = {name: result | {"earlier": True} for name, result in self.earlier.items()
                if name not in self.plan.notebooks}
        everything = kept | self.results["notebooks"]
        self.results["peak_memory_mb"] = round(self.peak / MEGABYTE, 1)
        self.results["provenance"]["seconds"] = round(time.perf_counter() - self.start, 2)
        shown = self.results | {"notebooks": {name: everything[name] for name in sorted(everything)}}
        save_json(self.plan.out / "results.json", shown)
        write_index(self.plan.out, shown, headlines(shown["notebooks"]))

    def _sample(self) -> None:
        """Watch the memory of the kernels and of the whole run until it ends."""
        own = psutil.Process()
        while not self.stopped.wait(POLL_SECONDS):
            kernels = [watch.measure() for name, watch in list(self.watches.items())
                       if name not in self.results["notebooks"]]
            self.peak = max(self.peak, own.memory_info().rss + sum(kernels))
            self.progress.refresh()

    def _stop(self) -> None:
        self.stopped.set()
        self.progress.note("stopping: finished artifacts and the last checkpoints are kept; "
                           "give the same command again to go on from there")
        for watch in self.watches.values():
            watch.kill()
        for future, name in self.running.items():
            self._record(name, future.result())
        for name in self._waiting():
            self._record(name, Outcome(INTERRUPTED, "not started: the run was stopped", 0.0, 0.0))


def in_main_thread() -> bool:
    """Whether this is the thread that may set signal handlers."""
    return threading.current_thread() is threading.main_thread()


def run(plan: Plan, say: Callable[[str], None] | None = None) -> dict:
    """Run a plan; returns the results. Kernels share the cores when several run at a time."""
    lock = prepare_folder(plan.out)
    shared = {"DFKD_PROGRESS": "lines", "JUPYTER_PLATFORM_DIRS": "1", "PYTHONUNBUFFERED": "1"}
    if plan.jobs > 1:
        shared["OMP_NUM_THREADS"] = str(max(1, environment.cores() // plan.jobs))
    before = {name: os.environ.get(name) for name in shared}
    os.environ.update(shared)
    try:
        return Run(plan, say)()
    finally:
        lock.release()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def exit_code(results: dict) -> int:
    """0 if every notebook of this run succeeded, 130 if it was stopped by hand, else 1."""
    statuses = {result["status"] for result in results["notebooks"].values() if not result.get("earlier")}
    if INTERRUPTED in statuses:
        return 130
    return 0 if statuses <= {SUCCEEDED} else 1
