"""Jobs recorded on disk, worked off through `Queue` by a process of its own: they outlive a closed tab and a kernel.

Each job is one small JSON file. Whoever opens the folder sees the same jobs. The working process holds a lock for as long
as it lives, so a dead one is noticed, and `wake` starts another.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
from filelock import Timeout

from dfkd_lib.core import REPOSITORY, WorkbenchError, save_json
from dfkd_lib.core.files import file_lock
from dfkd_lib.jobs.queue import Job, opened_queue

WAITING, RUNNING, FINISHED, FAILED, STOPPED = "queued", "running", "finished", "failed", "stopped"
LINGER_SECONDS = 60.0  # that a worker without a job stays: the next need not wait for its start
STOP_SECONDS = 5.0  # from asking a training to end to ending it by force
RESTART_SECONDS = 2.0  # a worker that cannot live is not started more often
START_SECONDS = 120.0  # that a worker may take to start on a busy machine


class SavedJobs:
    """The jobs of a folder.

    Args:
        folder: where they are recorded. command: Python's words for a process that calls `work` on this folder.
    """

    def __init__(self, folder: Path, command: Sequence[str]):
        self.folder, self.command = folder, command
        folder.mkdir(exist_ok=True)
        self._lock = file_lock(folder / "queue.lock")

    def submit(self, cell: dict, first: bool = False) -> str:
        """Record what to do, as JSON, after all that wait or before them; starts a worker. Returns the job's id."""
        with self._lock:
            jobs = self._records()
            orders = [job["order"] for job in jobs if job["state"] == WAITING]
            last = max([job["order"] for job in jobs], default=0)
            job = {
                "id": f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}",
                "cell": cell,
                "state": WAITING,
                "error": "",
                "key": None,
                "seconds": 0.0,
                "submitted": time.time(),
                "order": min(orders) - 1 if first and orders else last + 1,
            }
            self._save(job)
        self.wake()
        return job["id"]

    def all(self) -> list[dict]:
        """Every job, those that wait in the order in which they will run, after all others by age.

        Returns:
            [{"id", "cell", "state": "queued" | "running" | "finished" | "failed" | "stopped", "error", "key" of the artifact
            or None, "seconds", "progress": how far a running, failed or stopped job came, as `training.Progress` writes it,
            or None}].
        """
        jobs = sorted(
            self._records(),
            key=lambda job: (job["state"] == WAITING, job["order"], job["submitted"]),
        )
        for job in jobs:
            ended_early = job["state"] not in (WAITING, FINISHED)
            job["progress"] = _read(self._progress(job["id"])) if ended_early else None
            if job["state"] == RUNNING:
                job["seconds"] = _seconds(job)
        return jobs

    def stop(self, job_id: str) -> str:
        """Take a waiting job out, or end a running one now: its finished epochs stay, the same cell goes on there.

        Returns:
            The state in which it was found: one that had ended by itself is left as it is.
        """
        with self._lock:
            job = self._one(job_id)
            if job["state"] not in (WAITING, RUNNING):
                return job["state"]
            self._save(job | {"state": STOPPED})
            if job["state"] == RUNNING:  # under the lock, or it might have taken the next meanwhile
                _end(job)
        self.wake()
        return job["state"]

    def forget(self, job_id: str) -> None:
        """Drop the record of a job that neither waits nor runs; its artifacts stay."""
        with self._lock:
            if self._one(job_id)["state"] not in (WAITING, RUNNING):
                for path in self.folder.glob(f"{job_id}.*"):
                    path.unlink(missing_ok=True)

    def wake(self) -> None:
        """Start a worker if something waits and none is alive; note which job lost its worker."""
        _workers[:] = [worker for worker in _workers if worker.poll() is None]  # leaves no zombie
        jobs = self._records()
        if not any(job["state"] in (WAITING, RUNNING) for job in jobs) or self.working():
            return
        with self._lock:
            for job in self._records():
                if job["state"] == RUNNING and not _alive(job):
                    lost = (
                        "its process ended without a message (memory, or killed); "
                        "finished epochs are kept: run it again to go on"
                    )
                    self._save(job | {"state": FAILED, "error": lost, "seconds": _seconds(job)})
            if any(job["state"] == WAITING for job in self._records()):
                self._start_worker()

    def _start_worker(self) -> None:
        """Start a worker in a session of its own, unless one is starting: that takes seconds, and many may ask."""
        started = self.folder / "worker.started"
        last = _read(started) or {}
        age = time.time() - last.get("at", 0)
        # One that has lived longer and holds no lock is on its way out.
        if 0 <= age < RESTART_SECONDS or age < START_SECONDS and _alive(last):
            return
        with open(self.folder / "worker.log", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, *self.command],
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "DFKD_PROGRESS": "lines", "PYTHONUNBUFFERED": "1"},
            )
        _workers.append(process)
        save_json(started, {**_identity(process.pid), "at": time.time()})

    def working(self) -> bool:
        """Whether a worker process is alive."""
        lock = file_lock(self.folder / "worker.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False

    def work(self, function: Callable, *args, linger: float = LINGER_SECONDS) -> None:
        """Be the worker: run what waits, in order, until none has come for `linger` seconds; not if another is.

        Args:
            function: called as `function(tell, needs, *args, cell)`; returns (key, "") or (None, what was wrong).
        """
        lock = file_lock(self.folder / "worker.lock")
        try:
            lock.acquire(timeout=2)  # somebody may be asking whether it is held
        except Timeout:
            return
        with lock, opened_queue(1, None) as queue:
            idle = time.monotonic()
            while True:
                with self._lock:
                    job = self._take()
                    if job is None and time.monotonic() - idle > linger:
                        # Under the queue's lock: who submits after this finds no worker, and starts one.
                        lock.release(force=True)
                        return
                if job is None:
                    time.sleep(0.2)
                    continue
                os.environ["DFKD_PROGRESS_FILE"] = str(self._progress(job["id"]))
                queue.add(Job(job["id"], function, (*args, job["cell"])))
                for _, answer in queue:
                    failed = isinstance(answer, BaseException)
                    self._ended(job["id"], *((None, str(answer)) if failed else answer))
                idle = time.monotonic()

    def _take(self) -> dict | None:
        """The next job, now this process's; None if none waits. Under the queue's lock."""
        waiting = [job for job in self._records() if job["state"] == WAITING]
        if not waiting:
            return None
        job = min(waiting, key=lambda job: (job["order"], job["submitted"]))
        job |= {"state": RUNNING, **_identity(os.getpid()), "started": time.time()}
        self._save(job)
        return job

    def _ended(self, job_id: str, key: str | None, error: str) -> None:
        with self._lock:
            job = self._one(job_id)
            if job["state"] == RUNNING:  # not stopped meanwhile
                state = FAILED if error else FINISHED
                done = {"state": state, "key": key, "error": error, "seconds": _seconds(job)}
                self._save(job | done)
        if not error:  # of one that failed or was stopped it shows how far it came
            self._progress(job_id).unlink(missing_ok=True)

    def _progress(self, job_id: str) -> Path:
        return self.folder / f"{job_id}.progress"

    def _save(self, job: dict) -> None:
        save_json(self.folder / f"{job['id']}.json", job)

    def _one(self, job_id: str) -> dict:
        named = job_id.replace("-", "").isalnum()
        job = _read(self.folder / f"{job_id}.json") if named else None
        if job is None:
            raise WorkbenchError(
                "there is no such job", got=job_id, where=self.folder, fix="open the queue again"
            )
        return job

    def _records(self) -> list[dict]:
        return [job for path in self.folder.glob("*.json") if (job := _read(path)) is not None]


_workers: list[subprocess.Popen] = []


def _read(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None  # gone meanwhile


def _seconds(job: dict) -> float:
    """How long a job has run; a clock may be put back."""
    return max(0.0, round(time.time() - job.get("started", time.time()), 1))


def _identity(pid: int) -> dict:
    """A process by its number and its birth in seconds since the machine started, which no clock put back changes."""
    return {"pid": pid, "born": psutil.Process(pid).create_time() - psutil.boot_time()}


def _alive(job: dict) -> bool:
    """Whether the very process of a job still runs, not another of the same number."""
    with suppress(psutil.Error, TypeError):
        process = psutil.Process(job.get("pid"))
        same = abs(_identity(process.pid)["born"] - job.get("born")) < 1
        return same and process.status() != psutil.STATUS_ZOMBIE
    return False


def _end(job: dict) -> None:
    """Ask a job's worker to end, so that it can leave its store in order; by force if it does not."""
    if not _alive(job):
        return
    with suppress(psutil.Error):
        process = psutil.Process(job["pid"])
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(STOP_SECONDS)
