"""One notebook in one kernel of this interpreter, by papermill, watched from outside: its memory, and that it goes on."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import Engine, papermill_engines
from papermill.exceptions import PapermillExecutionError

from dfkd_lib.core import REPOSITORY
from dfkd_lib.core.files import is_full
from dfkd_lib.core.memory import RAN_OUT
from dfkd_lib.pipeline.plan import HUNG_MINUTES

MEGABYTE = 1e6
POLL_SECONDS = 0.5
STARTS = 3  # that a kernel may take
IDLE_SHARE = 0.01  # of one core: what a kernel that only waits uses stays well below
SUCCEEDED, FAILED, INTERRUPTED, SKIPPED = "succeeded", "failed", "interrupted", "skipped"
STOPPED = "stopped by hand; finished artifacts and the last checkpoint are kept"
LESS_MEMORY = "set a smaller batch size or fewer --jobs"
SAFE = "\n  safe: every finished artifact, and each training run up to its last finished epoch"


@dataclass
class Outcome:
    """How one notebook ended: its status, what went wrong (plain text), peak memory in MB and wall seconds."""

    status: str
    error: str | None
    peak_memory_mb: float = 0.0
    seconds: float = 0.0


def family(process: psutil.Process) -> list[psutil.Process]:
    """The descendants of a process, and itself."""
    return [*process.children(recursive=True), process]


def memory_of(process: psutil.Process) -> int:
    """The bytes that a process and its descendants hold."""
    held = 0
    with suppress(psutil.Error):
        for each in family(process):
            with suppress(psutil.Error):
                held += each.memory_info().rss
    return held


class ThisPython(KernelSpecManager):
    """Kernels of the running interpreter, whatever kernelspecs are or are not installed on the machine."""

    def get_kernel_spec(self, kernel_name):
        return KernelSpec(**get_kernel_dict())


class Client(PapermillNotebookClient):
    """Papermill's client with kernels of this interpreter."""

    def create_kernel_manager(self):
        self.km = AsyncKernelManager(
            kernel_name="python3", kernel_spec_manager=ThisPython(), transport_encryption="auto"
        )
        return self.km


class WatchedEngine(Engine):
    """Papermill's own engine, but for a `Watch` that learns the kernel's process and sees each cell start."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, watch=None, environment=None, **_):
        client = Client(
            nb_man,
            kernel_name=kernel_name,
            timeout=None,
            startup_timeout=120,
            coalesce_streams=True,
            # Its own remarks; what notebooks print is passed on.
            extra_arguments=["--log-level=50"],
            resources={"metadata": {"path": str(REPOSITORY)}},
            stdout_file=watch,
            stderr_file=watch,
            on_cell_execute=lambda cell, cell_index: watch.cell(client, cell_index),
        )
        client.execute(**({"env": environment} if environment else {}))


papermill_engines.register("watched", WatchedEngine)


class Watch:
    """What a running notebook shows: its kernel's process, its memory, the cell at work and the lines it prints.

    Args:
        report: gets {"line": text}, and while it runs {"held": bytes}.
        hung_minutes: a kernel that for so long used (almost) no processor time and printed nothing is ended; 0: never.
        over: whether nobody waits for this notebook any more: then its kernel is ended, and `left` is true.
    """

    def __init__(
        self,
        report: Callable[[dict], None],
        hung_minutes: float = HUNG_MINUTES,
        over: Callable[[], bool] = lambda: False,
    ):
        self.report, self.hung_minutes, self.over = report, hung_minutes, over
        self.started, self.process, self.peak, self.held = None, None, 0, 0
        self.index = 0
        self.hung, self.left, self.no_memory, self._killed = False, False, False, False
        self._rest, self._quiet, self._used = "", 0.0, 0.0

    def cell(self, client, index: int) -> None:
        """A cell starts."""
        self.index, self._quiet = index, 0.0
        if self.process is None:
            self.started = client.km.provisioner.process
            self.process = psutil.Process(self.started.pid)
        self.measure()
        if self._killed:  # the run was stopped while this kernel was still starting
            self.kill()

    def write(self, text: str) -> None:
        """Pass on whole lines; of a line redrawn with carriage returns only its last state."""
        self._quiet = 0.0
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            line = line.rstrip("\r").rpartition("\r")[2]
            # With no memory left a kernel may not be able to put it into its answer, but it prints it.
            self.no_memory |= RAN_OUT.search(line) is not None
            if line.strip():
                self.report({"line": line})

    def flush(self) -> None:
        """Nothing is held back but an unfinished line."""

    def follow(self, ended: threading.Event) -> None:
        """Measure until `ended`; end a kernel that hangs, also one that was stopped and cannot be interrupted."""
        last = time.monotonic()
        while not ended.wait(POLL_SECONDS):
            used, now = self.measure(), time.monotonic()
            self.report({"held": self.held})
            # Not the clock alone: after this process itself was stopped for an hour the kernel has not hung for an hour.
            self._quiet += min(now - last, 2 * POLL_SECONDS)
            last = now
            if self.process is None or abs(used - self._used) > max(1.0, IDLE_SHARE * self._quiet):
                self._quiet, self._used = 0.0, used
            self.hung |= 0 < 60 * self.hung_minutes <= self._quiet
            self.left |= self.over()
            if self.hung or self.left:
                self.kill()

    def measure(self) -> float:
        """Note the bytes that the kernel and its children hold now; returns the processor seconds they have used."""
        used = 0.0
        if self.process is not None:
            self.held = memory_of(self.process)
            self.peak = max(self.peak, self.held)
            with suppress(psutil.Error):
                for process in family(self.process):  # with those of its children that have ended
                    used += sum(process.cpu_times()[:4])
        return used

    def kill(self) -> None:
        """End the kernel and its children at once (artifacts and checkpoints are written atomically)."""
        self._killed = True
        if self.process is not None:
            with suppress(psutil.Error):
                for process in family(self.process):
                    process.kill()

    @property
    def signal(self) -> int | None:
        """The number of the signal that ended the kernel, or None."""
        code = self.started.poll() if self.started else None
        return -code if code is not None and code < 0 else None

    @property
    def memory(self) -> str:
        """A line on the memory that the kernel held at most."""
        total = psutil.virtual_memory().total / MEGABYTE
        return f"\n  got: at most {self.peak / MEGABYTE:,.0f} MB in it, of {total:,.0f} MB"


def execute(
    notebook: Path,
    parameters: dict,
    output: Path,
    watch: Watch,
    stopped: threading.Event,
    environment: dict[str, str],
) -> Outcome:
    """Run a notebook with these parameters and save it, executed, at `output`, however it ends.

    Args:
        watch: what it shows meanwhile. stopped: set by who ended the kernel on purpose. environment: the kernel's variables.
    """
    status, error = FAILED, None
    ended = threading.Event()
    threading.Thread(target=watch.follow, args=(ended,), daemon=True).start()
    try:
        _start(notebook, parameters, output, watch, stopped, environment)
        status = SUCCEEDED
    except PapermillExecutionError as failure:
        cell = failure.source.strip()[:200]
        error = f"{failure.ename}: {failure.evalue}\n  in cell: {cell}"
        error += fix(failure.ename, failure.evalue, watch)
    except Exception as failure:  # a notebook must never take the others down with it
        dead = isinstance(failure, DeadKernelError) or _died_unborn(failure)
        error = dead_kernel(watch) if dead else f"{type(failure).__name__}: {failure}"
        error += fix(type(failure).__name__, error, watch)
    finally:
        ended.set()
    if stopped.is_set() and status == FAILED:
        status, error = INTERRUPTED, STOPPED
    return Outcome(status, error, watch.peak / MEGABYTE)


def _start(notebook, parameters, output, watch, stopped, environment) -> None:
    """Execute a notebook; a kernel that dies before its first cell, as when another program takes its port, starts again."""
    from papermill import execute_notebook

    for left in reversed(range(STARTS)):
        try:
            execute_notebook(
                notebook,
                output,
                parameters=parameters,
                engine_name="watched",
                kernel_name="python3",
                language="python",
                progress_bar=False,
                watch=watch,
                environment=environment,
            )
            return
        except Exception as failure:
            if not (left and _died_unborn(failure)) or stopped.is_set():
                raise
            watch.write("its kernel died while it was starting, and is started again\n")


def _died_unborn(failure: Exception) -> bool:
    """Whether a kernel has died while starting, which has no error class of its own."""
    return "Kernel died" in str(failure) and not isinstance(failure, DeadKernelError)


def fix(name: str, text: str, watch: Watch) -> str:
    """What to do about an error of the machine, not of the notebook, for which no part of the library has a fix."""
    if "fix:" in text:
        return ""
    if is_full(text):
        return (
            "\n  fix: the disk takes no more: free room on it, or choose --out and --artifacts on another; then give "
            "the same command again: finished artifacts and epochs are kept"
        )
    if watch.no_memory or RAN_OUT.search(f"{name} {text}"):
        return f"\n  memory ran out in the notebook's kernel{watch.memory}\n  fix: {LESS_MEMORY}"
    return ""


def dead_kernel(watch: Watch) -> str:
    """The message about a kernel that vanished: how, how much memory it held, what is safe, how to go on."""
    again = f"give the same command again to resume from there; if memory was short, {LESS_MEMORY}"
    if watch.hung:
        how = f"hung and was ended: for {watch.hung_minutes:g} min it used no processor time and printed nothing"
        again = "look at the cell where it stopped; if it waits for something slow, allow more with --hung MINUTES"
    elif watch.process is None:
        how = f"died while it was starting, {STARTS} times; it may have printed why, above"
    else:
        likely = " (usually the system ran out of memory)" if watch.signal == 9 else ""
        ended = f"killed by signal {watch.signal}" if watch.signal else "gone without a message"
        how = f"died: it was {ended}{likely}{watch.memory}"
    return f"the notebook's kernel {how}{SAFE}\n  fix: {again}"
