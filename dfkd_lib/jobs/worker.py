"""In the process that runs a task: what it has, how it is stopped, and that trainings do not meet."""

import ctypes
import gc
import itertools
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass

import psutil

from dfkd_lib.core import WorkbenchError, processes

GIGABYTE = 1e9
PROCESS_BYTES = 2e9  # that a process of a small student takes, with its share of torch
# Variables of a process that is to see none.
NO_GPU = {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
Tell = Callable[[dict], None]


@dataclass(frozen=True)
class Needs:
    """What a task asks of the worker that runs it: threads, GB of memory, and whether a GPU of its own."""

    threads: int = 1
    memory: float = 0.0
    gpu: bool = False


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; Apple's is ["mps"]."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [card for card in named.split(",") if card.strip() not in ("", "-1")]
    driver = shutil.which("nvidia-smi") or any(
        map(os.path.exists, ("/proc/driver/nvidia", "/dev/kfd"))
    )
    if not driver and sys.platform != "darwin":
        return []
    import torch

    if torch.backends.mps.is_available():
        return ["mps"]
    # Asks the driver; starts nothing on the cards.
    return [str(place) for place in range(torch.cuda.device_count())]


def own_card() -> tuple[str, str] | None:
    """The machine, and the GPU that a task of this process uses: the first it sees."""
    cards = visible_gpus()
    return (socket.gethostname(), cards[0]) if cards else None


def most_processes() -> int:
    """Tasks at a time if nobody says: one for each GPU, or without one as many as cores, as far as memory goes."""
    room = int(psutil.virtual_memory().available / PROCESS_BYTES)
    return len(visible_gpus()) or max(1, min(processes.cores(), room))


def offer_plugin():
    """A plugin that has workers which offer nothing say what they have, so that tasks can ask for it."""
    from distributed import Status, WorkerPlugin

    class Offer(WorkerPlugin):
        async def setup(self, worker) -> None:
            have = worker.state.total_resources
            limit = worker.memory_manager.memory_limit
            cards = visible_gpus()
            # One GPU of several: no task would know which is its own.
            known = {
                "threads": worker.state.nthreads,
                "memory": (limit or psutil.virtual_memory().total) / GIGABYTE,
                **({"GPU": 1} if cards else {}),
            }
            missing = {part: value for part, value in known.items() if part not in have}
            if missing:
                await worker.set_resources(**missing)
                # The scheduler looks for room for waiting tasks only when a worker comes or goes on.
                worker.status = Status.paused
                worker.status = Status.running

    return Offer()


def own_plugin():
    """A plugin for workers that this run has started: no web pages, which would ask for no token, and deaf to Ctrl-C."""
    from distributed import WorkerPlugin

    class Own(WorkerPlugin):
        def setup(self, worker) -> None:
            worker.http_server.stop()  # the dashboard shows what they do
            # A terminal sends Ctrl-C to all: the run ends its tasks in order. (What is ignored kernels would inherit.)
            signal.signal(signal.SIGINT, lambda *_: None)

    return Own()


_stoppers: dict[int, tuple[str, Callable[[], None]]] = {}
_numbers = itertools.count()
_alone = threading.Lock()
_stopped: set[str] = set()


@contextmanager
def stopped_by(stop: Callable[[], None], run: str | None = None) -> Iterator[None]:
    """While this lasts, a run that is stopped calls `stop`, from another thread; one that has been calls it now."""
    number, run = next(_numbers), _current.get() if run is None else run
    _stoppers[number] = (run, stop)
    try:
        if run in _stopped:
            stop()
        yield
    finally:
        _stoppers.pop(number, None)


@contextmanager
def alone_in_process(threads: int) -> Iterator[None]:
    """Training in a worker's own process: one at a time, for the random state and the number of threads are the process's.

    A run that is stopped raises KeyboardInterrupt in it, as Ctrl-C would.
    """
    import torch

    thread = threading.get_ident()

    def interrupt() -> None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread), ctypes.py_object(KeyboardInterrupt)
        )

    with _alone:
        before = torch.get_num_threads()
        torch.set_num_threads(threads or before)
        try:
            with stopped_by(interrupt):
                yield
        finally:
            torch.set_num_threads(before)
            if torch.cuda.is_initialized():  # a notebook's kernel may be next on this card
                gc.collect()
                torch.cuda.empty_cache()


_current: ContextVar[str] = ContextVar("run", default="")  # whose job a thread does


def with_stop(run: str, function: Callable, tell: Tell, needs: Needs, args: tuple):
    """Do a job of a run, which `stopped_by` inside it then belongs to."""
    _current.set(run)
    return function(tell, needs, *args)


def stop_here(run: str) -> None:
    """End what this process does for a run, and begin nothing more for it."""
    _stopped.add(run)
    for _, (of, stop) in list(_stoppers.items()):
        if of == run:
            with suppress(Exception):
                stop()


def on_worker(run: str, name: str, function: Callable, needs: Needs, args: tuple):
    """Do a job on a Dask worker; what it tells goes to the run's topic."""
    from distributed import get_worker

    worker = get_worker()

    def tell(message: dict) -> None:
        worker.log_event(run, (name, message))

    place = {"where": socket.gethostname(), "worker": str(worker.name), "pid": os.getpid()}
    tell({"started": time.time(), **place})
    try:
        if run in _stopped:
            raise KeyboardInterrupt
        return with_stop(run, function, tell, needs, args)
    except KeyboardInterrupt:
        fix = "give the same command again to go on"
        raise WorkbenchError("stopped by hand", fix=fix) from None
