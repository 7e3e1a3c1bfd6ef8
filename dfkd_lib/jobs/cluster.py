"""Where jobs run: in a thread of this process, or on the workers of a Dask cluster.

Jobs are whole notebooks and what they train, minutes to hours each. They meet in folders that all machines see:
artifacts by key, reports by name. A job whose worker is lost is run again by Dask, and goes on from its last checkpoint.
"""

import itertools
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from dfkd_lib.core import WorkbenchError
from dfkd_lib.jobs.worker import Needs, on_worker, own_card, stop_here, with_stop

WORKER_SECONDS = 600  # that a cluster which starts workers on demand may take for the first
ONE_EACH = "one worker for each GPU"
ANSWER_SECONDS = 10  # that all workers together may take: one that hangs must not hold up the rest


class WorkerLost(WorkbenchError):
    """A job's worker has died, more often than a job is tried again."""


class SchedulerLost(WorkbenchError):
    """The Dask scheduler no longer answers."""

    def __init__(self, got: object = None):
        super().__init__(
            "the Dask scheduler is gone, and with it what ran on its workers",
            got=got,
            fix="start it again and give the same command: finished artifacts and the last checkpoints are kept",
        )

    def __reduce__(self):
        return type(self), (self.got,)


@dataclass(frozen=True)
class Worker:
    """What one worker offers; `slots` is how many tasks Dask thinks it can run at a time."""

    address: str
    threads: float
    memory: float
    gpus: float
    slots: int = 1


class Inline:
    """One task at a time in a thread of this process: what there is without a cluster."""

    dashboard = None
    alone = True

    def __init__(self, receive: Callable[[str, dict], None]):
        self.receive, self.run = receive, f"dfkd-{secrets.token_hex(4)}"
        self._pool = ThreadPoolExecutor(1)

    def needs(self, memory: float = 0.0, gpu: bool = True, threads: int | None = None) -> Needs:
        """The whole of this process, its GPUs too: threads 0 stands for as many as it has."""
        return Needs(threads or 0, memory, True)

    def free(self, running: int) -> bool:
        """Whether one more task may be handed in."""
        return running < 1

    def submit(self, name: str, function: Callable, *args, needs: Needs) -> Future:
        """Run `function(tell, needs, *args)`; what it tells is received under `name`."""
        tell = partial(self.receive, name)

        def job():
            tell({"started": time.time()})
            return with_stop(self.run, function, tell, needs, args)

        return self._pool.submit(job)

    def answers(self) -> bool:
        return True

    def stop(self) -> None:
        """End what runs."""
        stop_here(self.run)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


class Cluster:
    """Jobs on Dask: as many at a time as its workers have room for.

    Args:
        client: a connected `distributed.Client`. receive: called with (name, message) for what jobs tell, from another
            thread. limit: jobs at a time at most; None: as many as the workers that there are have room for.
    """

    alone = False

    def __init__(
        self, client, receive: Callable[[str, dict], None], limit: int | None, dashboard: str | None
    ):
        self.client, self.limit, self.dashboard = client, limit, dashboard
        self.run = f"dfkd-{secrets.token_hex(4)}"
        self._order, self._threads = itertools.count(), None
        self._last: list[Worker] = []
        self._asked: Needs | None = None
        self._cards: dict[str, tuple] = {}
        client.subscribe_topic(self.run, lambda event: receive(*event[1]))

    def workers(self) -> list[Worker]:
        """The workers whose offer is known: of our own at once, of others when our plugin has asked them."""
        known = self.client.scheduler_info(n_workers=-1)["workers"]
        found = []
        for address, info in known.items():
            offer = info.get("resources") or {}
            if "threads" in offer:
                parts = offer["threads"], offer.get("memory", 0.0), offer.get("GPU", 0.0)
                found.append(Worker(address, *parts, info["nthreads"]))
        return found

    def wait_for_workers(self, note: Callable[[str], None]) -> None:
        """Return when there is a worker; WorkbenchError if none comes."""
        start, noted = time.monotonic(), False
        while not (found := self.workers()):
            spent = time.monotonic() - start
            if spent > 2 and not noted:
                note("the cluster has no workers yet: waiting for the first")
                noted = True
            if spent > WORKER_SECONDS:
                raise WorkbenchError(
                    "no worker has come",
                    where=self.client.scheduler.address,
                    expected="one at least",
                    got=f"none after {WORKER_SECONDS} s",
                    fix="start workers: dask worker ADDRESS, or cluster.scale(n) with dask-jobqueue",
                )
            time.sleep(0.2)
        self._last = found

    def needs(self, memory: float = 0.0, gpu: bool = True, threads: int | None = None) -> Needs:
        """What a job asks for, as some worker has it: threads (default: all of the worker that has fewest), a GPU if it can
        use one and any worker offers one, and memory, or all that the largest of these workers has.

        Raises:
            WorkbenchError: if no worker has so many threads, with a GPU where there are any; if one offers several GPUs, or
                two use the same.
        """
        # Between two workers of an unsteady cluster there may be none.
        workers = self._last = self.workers() or self._last
        _check_offers(workers)
        if self.limit is None:  # workers of our own have a card each
            self._check_cards(workers)
        if self._threads is None:  # once: another number of threads is another last bit
            self._threads = int(min(worker.threads for worker in workers))
        threads, gpu = threads or self._threads, gpu and any(worker.gpus for worker in workers)
        able = [worker for worker in workers if worker.gpus or not gpu]
        most = max(worker.threads for worker in able)
        if threads > most:
            raise WorkbenchError(
                "no worker has so many threads" + " and a GPU" * gpu,
                expected=f"at most {most:g}",
                got=threads,
                where="--threads",
                fix="ask for fewer, or start workers with more",
            )
        most = max(worker.memory for worker in able if worker.threads >= threads)
        self._asked = Needs(threads, min(memory, most), gpu)
        return self._asked

    def _check_cards(self, workers: list[Worker]) -> None:
        """Raise if two workers of a machine would use the same card."""
        new = [one.address for one in workers if one.gpus and one.address not in self._cards]
        if new:
            cards = briefly(lambda: self.client.run(own_card, workers=new, on_error="ignore"))
            self._cards |= cards or {}
        users: dict[tuple, str] = {}
        for worker in workers:
            card = worker.gpus and self._cards.get(worker.address)
            if card and users.setdefault(card, worker.address) != worker.address:
                raise WorkbenchError(
                    "two workers use the same GPU",
                    expected=ONE_EACH,
                    got="{}, GPU {}".format(*card),
                    where=f"{users[card]}, {worker.address}",
                    fix="start each with CUDA_VISIBLE_DEVICES set to a GPU of its own, as dask-cuda does",
                )

    def free(self, running: int) -> bool:
        """Whether one more task may be handed in while so many have not ended.

        Dask gives a task to a worker at once, and moves it later only from one that holds more than its slots: on workers
        of several slots a task which cannot begin now would wait there while workers that come later have nothing to do.
        """
        if self.limit is not None:
            return running < self.limit
        workers = self.workers() or self._last
        room = max(1, sum(map(self._room, workers)))
        return running < room or all(worker.slots == 1 for worker in workers)

    def _room(self, worker: Worker) -> int:
        """How many tasks like the last one fit a worker."""
        if (asked := self._asked) is None:
            return 1
        shares = [worker.threads / asked.threads]
        shares += [worker.gpus] if asked.gpu else []
        shares += [worker.memory / asked.memory] if asked.memory else []
        return int(min(shares))

    def submit(self, name: str, function: Callable, *args, needs: Needs):
        """Run `function(tell, needs, *args)` on a worker; what it tells is received under `name`."""
        asked = {"threads": needs.threads, "memory": needs.memory, "GPU": float(needs.gpu)}
        return self.client.submit(
            on_worker,
            self.run,
            name,
            function,
            needs,
            args,
            pure=False,
            key=f"{name}-{secrets.token_hex(8)}",
            priority=-next(self._order),
            resources={part: value for part, value in asked.items() if value},
        )

    def answers(self) -> bool:
        """Whether the scheduler is still there."""
        return self.client.status == "running"

    def stop(self) -> None:
        """End what runs on every worker; what waits does not begin there."""
        briefly(lambda: self.client.run(stop_here, self.run, on_error="ignore"))

    def close(self) -> None:
        with suppress(Exception):
            self.client.unsubscribe_topic(self.run)


def briefly(ask: Callable):
    """What a call answers that asks all workers; None if it fails, as when the scheduler is gone, or one hangs."""
    found = []

    def work() -> None:
        with suppress(Exception):
            found.append(ask())

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    return found[0] if found else None


def _check_offers(workers: list[Worker]) -> None:
    several = next((worker for worker in workers if worker.gpus > 1), None)
    if several:
        raise WorkbenchError(
            "a worker offers several GPUs, and its jobs would not know which is whose",
            expected=ONE_EACH,
            got=f"GPU={several.gpus:g}",
            where=several.address,
            fix="start one worker for each, with CUDA_VISIBLE_DEVICES set (or dask-cuda), and GPU=1",
        )


def failed(error: BaseException) -> BaseException:
    """What became of a job, as an error that says what to do: a worker lost too often, a scheduler gone."""
    from distributed import KilledWorker
    from distributed.client import FutureCancelledError

    if isinstance(error, KilledWorker):
        return WorkerLost(
            "the worker of this task died, more than once",
            got=str(error).split("\n")[0][:300],
            expected="a worker that lives",
            fix="most likely memory ran out: give fewer --jobs, a smaller batch_size, or workers with more memory; "
            "finished epochs are kept and resumed",
        )
    if isinstance(error, (FutureCancelledError, CancelledError)):
        return SchedulerLost(str(error)[:200])
    # The scheduler reads jobs too, and wraps what it fails at.
    wrapped = isinstance(error, RuntimeError) and "deserializ" in str(error)
    if isinstance(error, ImportError) or wrapped:
        return WorkbenchError(
            "a worker or the scheduler cannot run this library",
            got=error.__cause__ or error,
            expected="one installation for all machines",
            fix="start scheduler and workers with the interpreter of this .venv, from this repository",
        )
    return error
