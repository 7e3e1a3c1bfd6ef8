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

from dfkd_lib.core.artifacts import REPOSITORY
from dfkd_lib.core.files import is_full
from dfkd_lib.core.memory import RAN_OUT

MEGABYTE = 1e6
POLL_SECONDS = 0.5
HUNG_MINUTES = (
    30.0  # without a sign of life: far more than a slow download or a full disk queue takes
)
STARTS = 3  # that a kernel may take
LESS_MEMORY = "set a smaller batch size or fewer --jobs"
IDLE_SHARE = 0.01  # of one core: what a kernel that only waits uses stays well below
SUCCEEDED, FAILED, INTERRUPTED, SKIPPED = "succeeded", "failed", "interrupted", "skipped"


@dataclass
class Outcome:
    """How one notebook ended: its status, what went wrong (plain text), wall seconds and peak memory in MB."""

    status: str
    error: str | None
    seconds: float
    peak_memory_mb: float


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
            extra_arguments=[
                "--log-level=50"
            ],  # its own remarks; what notebooks print is passed on
            resources={"metadata": {"path": str(REPOSITORY)}},
            stdout_file=watch,
            stderr_file=watch,
            on_cell_execute=lambda cell, cell_index: watch.cell(
                client, cell_index, len(nb_man.nb.cells)
            ),
        )
        client.execute(**({"env": environment} if environment else {}))


papermill_engines.register("watched", WatchedEngine)


class Watch:
    """What a running notebook shows: its kernel's process, its memory, the cells done and the lines it prints.

    Args:
        tell: gets {"line": text}, and while it runs {"done": share of the cells, "held": bytes}.
        hung_minutes: a kernel that for so long used (almost) no processor time and printed nothing is ended; 0: never.
        over: says that nobody waits for this notebook any more: its kernel is ended, and `left` is true.
    """

    def __init__(
        self,
        tell: Callable[[dict], None],
        hung_minutes: float = HUNG_MINUTES,
        over: Callable[[], bool] = lambda: False,
    ):
        self.tell, self.process, self.started, self.peak, self.held = tell, None, None, 0, 0
        self.index, self.done, self._rest, self._killed, self.no_memory = 0, 0.0, "", False, False
        self.hung_minutes, self.hung, self._quiet, self._used = hung_minutes, False, 0.0, 0.0
        self.over, self.left = over, False

    def cell(self, client, index: int, count: int) -> None:
        self.index, self.done, self._quiet = index, index / max(count, 1), 0.0
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
            # With no memory left a kernel may not even be able to say so in its answer, but it prints it.
            self.no_memory |= RAN_OUT.search(line) is not None
            if line.strip():
                self.tell({"line": line})

    def flush(self) -> None:
        """Nothing is held back but an unfinished line."""

    def follow(self, ended: threading.Event) -> None:
        """Measure until `ended`; end a kernel that hangs, also one that was stopped and cannot be interrupted."""
        last = time.monotonic()
        while not ended.wait(POLL_SECONDS):
            used, now = self.measure(), time.monotonic()
            self.tell({"done": self.done, "held": self.held})
            # Not the clock alone: after this process itself was stopped for an hour the kernel has not hung for an hour.
            self._quiet += min(now - last, 2 * POLL_SECONDS)
            if self.process is None or abs(used - self._used) > max(1.0, IDLE_SHARE * self._quiet):
                self._quiet, self._used = 0.0, used
            if self.hung_minutes and self._quiet >= 60 * self.hung_minutes:
                self.hung = True
                self.kill()
            if self.over():
                self.left = True
                self.kill()
            last = now

    def measure(self) -> float:
        """Note the bytes that the kernel and its children hold now; returns the processor seconds they have used."""
        now, used = 0, 0.0
        with suppress(psutil.Error):
            for process in (
                [self.process, *self.process.children(recursive=True)] if self.process else []
            ):
                now += process.memory_info().rss
                used += sum(process.cpu_times()[:4])  # with those of its children that have ended
            self.peak = max(self.peak, now, self._high_water() if now else 0)
        self.held = now
        return used

    def _high_water(self) -> int:
        """The kernel's own peak as Linux counts it, which polling may miss; 0 elsewhere."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
            return next(
                int(line.split()[1]) * 1024
                for line in status.splitlines()
                if line.startswith("VmHWM")
            )
        except (OSError, StopIteration):
            return 0

    def kill(self) -> None:
        """End the kernel and its children at once (artifacts and checkpoints are written atomically)."""
        self._killed = True
        if self.process is None:
            return
        with suppress(psutil.Error):
            for process in [*self.process.children(recursive=True), self.process]:
                process.kill()

    @property
    def signal(self) -> int | None:
        """The number of the signal that ended the kernel, or None."""
        code = self.started.poll() if self.started else None
        return -code if code is not None and code < 0 else None


def execute(
    notebook: Path,
    parameters: dict,
    output: Path,
    watch: Watch,
    stopped: threading.Event,
    environment: dict[str, str] | None = None,
) -> Outcome:
    """Run a notebook with these parameters and save it, executed, at `output`, however it ends.

    Args:
        watch: what it shows meanwhile. stopped: set by who ended the kernel on purpose. environment: the kernel's variables.
    """
    start, status, error = time.perf_counter(), SUCCEEDED, None
    ended = threading.Event()
    threading.Thread(target=watch.follow, args=(ended,), daemon=True).start()
    try:
        _start(notebook, parameters, output, watch, stopped, environment)
    except PapermillExecutionError as failure:
        status, error = (
            FAILED,
            f"{failure.ename}: {failure.evalue}\n  in cell: {failure.source.strip()[:200]}",
        )
        error += fix(failure.ename, failure.evalue, watch)
    except DeadKernelError:
        status, error = FAILED, dead_kernel(watch)
    except Exception as failure:  # a notebook must never take the others down with it
        status, error = (
            FAILED,
            dead_kernel(watch) if _unborn(failure) else f"{type(failure).__name__}: {failure}",
        )
        error += fix(type(failure).__name__, str(failure), watch)
    finally:
        ended.set()
    if stopped.is_set() and status == FAILED:
        status, error = (
            INTERRUPTED,
            "stopped by hand; finished artifacts and the last checkpoint are kept",
        )
    return Outcome(status, error, time.perf_counter() - start, watch.peak / MEGABYTE)


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
            if not (left and _unborn(failure)) or stopped.is_set():
                raise
            watch.write("its kernel died while it was starting, and is started again\n")


def _unborn(failure: Exception) -> bool:
    """Whether a kernel has died while starting, which has no error class of its own."""
    return "Kernel died" in str(failure) and not isinstance(failure, DeadKernelError)


def fix(name: str, text: str, watch: Watch) -> str:
    """What to do about an error of the machine, not of the notebook, that no part of the library has put into words."""
    if "fix:" in text:
        return ""
    if is_full(text):
        return (
            "\n  fix: the disk takes no more: free room on it, or choose --out and --artifacts on another; then give "
            "the same command again: finished artifacts and epochs are kept"
        )
    if watch.no_memory or RAN_OUT.search(f"{name} {text}"):
        return (
            f"\n  memory ran out in the notebook's kernel\n  got: at most {watch.peak / MEGABYTE:,.0f} MB in it, of "
            f"{psutil.virtual_memory().total / MEGABYTE:,.0f} MB\n  fix: {LESS_MEMORY}"
        )
    return ""


def dead_kernel(watch: Watch) -> str:
    """What to tell a user whose kernel vanished: how, how much memory it held, what is safe, how to go on."""
    memory = psutil.virtual_memory()
    if watch.hung:
        return (
            f"the notebook's kernel hung and was ended: for {watch.hung_minutes:g} min it used no processor time and "
            "printed nothing\n  safe: every finished artifact, and each training run up to its last finished epoch\n"
            "  fix: look at the cell where it stopped; if it waits for something slow, allow more with --hung MINUTES"
        )
    if watch.process is None:
        return (
            f"the notebook's kernel died while it was starting, {STARTS} times; it may have printed why, above\n"
            f"  fix: give the same command again; if memory was short, {LESS_MEMORY}"
        )
    how = f"killed by signal {watch.signal}" if watch.signal else "gone without a word"
    likely = " (usually the system ran out of memory)" if watch.signal == 9 else ""
    return (
        f"the notebook's kernel died: it was {how}{likely}\n"
        f"  got: at most {watch.peak / MEGABYTE:,.0f} MB in the kernel, of {memory.total / MEGABYTE:,.0f} MB\n"
        "  safe: every finished artifact, and each training run up to its last finished epoch\n"
        f"  fix: give the same command again to resume from there; if memory was short, {LESS_MEMORY}"
    )
