"""One queue of jobs, for notebooks and for cells of a grid: in the order of their needs, handed in again when lost."""

import queue
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from dfkd_lib.jobs.cluster import Cluster, Inline, SchedulerLost, WorkerLost, failed
from dfkd_lib.jobs.start import opened

WAKE_SECONDS = 5.0  # between questions whether the cluster is still there, and has more workers
# That a job may lose its worker before it has begun: others may have killed that one.
LOST_TIMES = 3
LATER_SECONDS = 30.0
_AGAIN, _BEGUN, _INTERRUPT = object(), object(), object()


@dataclass
class Job:
    """One piece of work, and how far it is.

    Args:
        name: of its own in a queue. function, args: called as `function(tell, needs, *args)` where it runs.
        builds_on: jobs that must have succeeded before it starts, else it is skipped.
        after: jobs that must only have ended.
        memory, gpu, threads: see `Cluster.needs`.
        succeeded: of what the function returned, whether that is a success.
        messages: the last of each thing that it reported. began: when it first began, None before.
        again, starts: how often it has answered `Later`, and how often it has said that it begins.
        lost: how often its worker was lost before it began.
        ends_before: how many jobs of the queue had ended when it was handed in.
        not_before: when one that answered `Later` is handed in again, though no other has ended since.
    """

    name: str
    function: Callable
    args: tuple = ()
    builds_on: tuple[str, ...] = ()
    after: list[str] = field(default_factory=list)
    memory: float = 0.0
    gpu: bool = True
    threads: int | None = None
    succeeded: Callable[[object], bool] = lambda answer: True
    messages: dict = field(default_factory=dict)
    began: float | None = None
    again: int = 0
    starts: int = 0
    lost: int = 0
    ends_before: int = -1
    not_before: float = 0.0


class Later(NamedTuple):
    """The answer of a job that another one stands in the way of: it is handed in again when any other has ended, or after
    `LATER_SECONDS`, as what it waits for may be a part of the other's work."""

    because_of: str


class Skipped(NamedTuple):
    """The answer of a job that was not run, because a job it builds on did not succeed."""

    because_of: str


class Queue:
    """Jobs that have not ended, over a cluster; iterating runs them.

    Args:
        hear: called with (job, message) for what a running job reports, from another thread.
        note: called with a line about a job that lost its worker.
    """

    def __init__(self, hear: Callable[[Job, dict], None], note: Callable[[str], None]):
        self.hear, self.note = hear, note
        self.cluster: Inline | Cluster | None = None
        self.jobs: dict[str, Job] = {}
        self.running: dict[str, object] = {}  # futures
        self._ended: queue.SimpleQueue = queue.SimpleQueue()
        self._succeeded: dict[str, bool] = {}
        self._ends = 0  # of jobs

    def add(self, job: Job) -> None:
        self.jobs[job.name] = job

    def interrupt(self) -> None:
        """Have the iteration raise KeyboardInterrupt between two answers; for a signal's handler."""
        self._ended.put(_INTERRUPT)

    def __iter__(self) -> Iterator[tuple[Job, object]]:
        """(job, answer) as jobs end: what the function returned, an error, or `Skipped`.

        Raises:
            SchedulerLost: if the cluster's scheduler is gone. WorkbenchError: if no worker can have what a job needs.
        """
        while self.jobs:
            for job in [job for job in self.jobs.values() if job.name not in self.running]:
                ready, missing = self._ready(job)
                if missing:
                    self._succeeded[self.jobs.pop(job.name).name] = False
                    yield job, Skipped(missing)
                elif ready and not self.cluster.free(len(self.running)):
                    break
                elif ready:
                    self._hand_in(job)
            if self.running and (name := self._wait()):
                job = self.jobs[name]
                answer = self._answer(job, self.running.pop(name))
                if isinstance(answer, Later) and (self.running or job.ends_before < self._ends):
                    job.again, job.not_before = job.again + 1, time.monotonic() + LATER_SECONDS
                elif answer is not _AGAIN:
                    del self.jobs[name]
                    self._ends += 1
                    good = not isinstance(answer, BaseException) and job.succeeded(answer)
                    self._succeeded[name] = good
                    yield job, answer

    def _ready(self, job: Job) -> tuple[bool, str]:
        """(whether all it waits for has ended, the first it builds on that did not succeed or "")."""
        waits = [name for name in (*job.builds_on, *job.after) if name not in self._succeeded]
        failed = [name for name in job.builds_on if not self._succeeded.get(name, True)]
        now = job.ends_before < self._ends or job.not_before < time.monotonic()
        return not waits and now, failed[0] if failed and not waits else ""

    def _hand_in(self, job: Job) -> None:
        needs = self.cluster.needs(job.memory, job.gpu, job.threads)
        future = self.cluster.submit(job.name, job.function, *job.args, needs=needs)
        self.running[job.name] = future
        job.ends_before = self._ends
        future.add_done_callback(lambda future: self._ended.put(job.name))

    def _wait(self) -> str | None:
        """The name of a job that has ended; None after a while, and when one has begun."""
        with suppress(queue.Empty):
            name = self._ended.get(timeout=WAKE_SECONDS)
            if name is _INTERRUPT:
                raise KeyboardInterrupt
            if name is not _BEGUN:
                return name
        if not self.cluster.answers():
            raise SchedulerLost()
        return None

    def _answer(self, job: Job, future) -> object:
        """What a job has returned, its error, or `_AGAIN`: it may only have waited at a worker that another job killed."""
        try:
            return future.result()
        except BaseException as error:
            answer = failed(error)
        if isinstance(answer, SchedulerLost):
            raise answer from None
        if isinstance(answer, WorkerLost) and job.starts <= job.again:
            job.lost += 1
            if job.lost < LOST_TIMES:
                self.note(f"{job.name}: its worker was lost before it began; it is handed in again")
                return _AGAIN
        return answer

    def receive(self, name: str, message: dict) -> None:
        """Take in what a running job reports."""
        job = self.jobs.get(name)
        if job is None:
            return
        job.starts += "started" in message
        if "started" in message and job.starts > job.again + 1:
            where = message.get("where")
            self.note(f"{name}: its worker was lost; it runs again on {where}, from its checkpoint")
            job.messages.update(message)
            return
        if "started" in message:
            job.began = time.perf_counter()
            self._ended.put(_BEGUN)
        job.messages.update(message)
        self.hear(job, message)


@contextmanager
def opened_queue(
    jobs: int,
    scheduler: str | None,
    hear: Callable[[Job, dict], None] = lambda job, message: None,
    note: Callable[[str], None] = print,
) -> Iterator[Queue]:
    """A queue over what `opened` opens; whatever is raised in the body ends what runs.

    Args:
        hear, note: see `Queue`; `note` also gets what the cluster has to say.
    """
    made = Queue(hear, note)
    with opened(jobs, scheduler, made.receive, note) as made.cluster:
        try:
            yield made
        except BaseException:
            made.cluster.stop()
            raise
