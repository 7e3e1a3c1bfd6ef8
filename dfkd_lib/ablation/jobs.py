"""A queue of cells on disk, worked off by a process of its own: it outlives a closed tab and a restarted kernel.

Each job is one small JSON file beside the artifacts. Whoever looks at the folder sees the same queue; a worker process
holds a lock for as long as it lives, so a dead one is noticed, and `wake` starts another.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
from filelock import Timeout

from dfkd_lib.ablation.cells import describe, run_cell
from dfkd_lib.ablation.grid import Cell
from dfkd_lib.core import WorkbenchError
from dfkd_lib.core.artifacts import REPOSITORY, Store, save_json
from dfkd_lib.core.files import file_lock

WAITING, RUNNING, FINISHED, FAILED, STOPPED = "queued", "running", "finished", "failed", "stopped"
LINGER_SECONDS = (
    60.0  # a worker with nothing to do stays so long: the next job need not wait for its start
)
STOP_SECONDS = 5.0  # from asking a training to end to ending it by force
RESTART_SECONDS = 2.0  # a worker that cannot live is not started more often
START_SECONDS = 120.0  # that a worker may take to start on a busy machine


class Jobs:
    """The queue of a store.

    Args:
        store: where the artifacts go; the queue lies in its folder `.jobs`.
    """

    def __init__(self, store: Store):
        self.store, self.folder = store, store.root / ".jobs"
        self.folder.mkdir(exist_ok=True)
        self._queue = file_lock(self.folder / "queue.lock")

    def submit(self, cell: Cell, first: bool = False) -> str:
        """Queue a cell, at the end or before all that wait; starts a worker. Returns the job's id."""
        with self._queue:
            jobs = self._records()
            orders = [job["order"] for job in jobs if job["state"] == WAITING]
            last = max([job["order"] for job in jobs], default=0)
            name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
            job = {
                "id": name,
                "cell": cell.as_dict(),
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
            far = job["state"] not in (WAITING, FINISHED)
            job["progress"] = self._read(self.folder / f"{job['id']}.progress") if far else None
            if job["state"] == RUNNING and "started" in job:
                job["seconds"] = self._seconds(job)
        return jobs

    def stop(self, job_id: str) -> str:
        """Take a waiting job out, or end a running one now: its finished epochs are kept, the same cell goes on there.

        Returns:
            The state in which it was found: one that had ended by itself is left as it is.
        """
        with self._queue:
            job = self._one(job_id)
            if job["state"] not in (WAITING, RUNNING):
                return job["state"]
            self._save(job | {"state": STOPPED})
            if job["state"] == RUNNING:
                _end(
                    job.get("pid"), job.get("born")
                )  # under the lock, or it might have taken the next job meanwhile
        self.wake()
        return job["state"]

    def forget(self, job_id: str) -> None:
        """Drop the record of a job that neither waits nor runs; its artifacts stay."""
        with self._queue:
            if self._one(job_id)["state"] not in (WAITING, RUNNING):
                for path in self.folder.glob(f"{job_id}.*"):
                    path.unlink(missing_ok=True)

    def wake(self) -> None:
        """Start a worker if something waits and none is alive; say so of a job whose worker has died."""
        _reap()
        jobs = self._records()
        if not any(job["state"] in (WAITING, RUNNING) for job in jobs) or self.working():
            return
        with self._queue:
            for job in self._records():
                if job["state"] == RUNNING and not _alive(job.get("pid"), job.get("born")):
                    self._save(
                        job
                        | {
                            "state": FAILED,
                            "error": "its process ended without a word (memory, or killed); "
                            "finished epochs are kept: run it again to go on",
                            "seconds": self._seconds(job),
                        }
                    )
            if any(job["state"] == WAITING for job in self._records()):
                self._start_worker()

    def _start_worker(self) -> None:
        """Start a worker process in a session of its own, unless one is starting: that takes seconds, and many may ask."""
        started = self.folder / "worker.started"
        last = self._read(started) or {}
        age = time.time() - last.get("at", 0)
        # One that has lived longer and holds no lock is on its way out.
        if (
            0 <= age < RESTART_SECONDS
            or age < START_SECONDS
            and _alive(last.get("pid"), last.get("born"))
        ):
            return
        with open(self.folder / "worker.log", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dfkd_lib.ablation", str(self.store.root)],
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "DFKD_PROGRESS": "lines", "PYTHONUNBUFFERED": "1"},
            )
        _children.append(process)
        save_json(started, {"pid": process.pid, "born": _born(process.pid), "at": time.time()})

    def working(self) -> bool:
        """Whether a worker process is alive."""
        lock = file_lock(self.folder / "worker.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False

    def work(self, linger: float = LINGER_SECONDS) -> None:
        """Be the worker: run what waits, in order, until none has come for `linger` seconds; not if another is."""
        lock = file_lock(self.folder / "worker.lock")
        try:
            lock.acquire(timeout=2)  # somebody may be looking at it
        except Timeout:
            return
        with lock:
            idle = time.monotonic()
            while True:
                with self._queue:
                    job = self._take()
                    if job is None and time.monotonic() - idle > linger:
                        # Under the queue's lock: who queues a job after this finds no worker, and starts one.
                        lock.release(force=True)
                        return
                if job is None:
                    time.sleep(0.2)
                    continue
                self._run(job)
                idle = time.monotonic()

    def _take(self) -> dict | None:
        """The next job, now this process's; None if none waits. Under the queue's lock."""
        waiting = [job for job in self._records() if job["state"] == WAITING]
        if not waiting:
            return None
        job = min(waiting, key=lambda job: (job["order"], job["submitted"]))
        job |= {
            "state": RUNNING,
            "pid": os.getpid(),
            "born": _born(os.getpid()),
            "started": time.time(),
        }
        self._save(job)
        return job

    def _run(self, job: dict) -> None:
        progress = self.folder / f"{job['id']}.progress"
        os.environ["DFKD_PROGRESS_FILE"] = str(progress)
        try:
            done = {"state": FINISHED, "key": run_cell(self.store, Cell.of(job["cell"])).key}
        except (
            Exception
        ) as error:  # also a fault of ours: it must not take the rest of the queue with it
            done = {"state": FAILED, "error": describe(error)}
        with self._queue:
            now = self._one(job["id"])
            if now["state"] == RUNNING:  # not stopped meanwhile
                self._save(now | done | {"seconds": self._seconds(now)})
        if done["state"] == FINISHED:
            progress.unlink(
                missing_ok=True
            )  # of one that failed or was stopped it tells how far it came

    def _seconds(self, job: dict) -> float:
        return max(
            0.0, round(time.time() - job.get("started", time.time()), 1)
        )  # a clock may be put back

    def _save(self, job: dict) -> None:
        save_json(
            self.folder / f"{job['id']}.json", {k: v for k, v in job.items() if k != "progress"}
        )

    def _one(self, job_id: str) -> dict:
        job = (
            self._read(self.folder / f"{job_id}.json")
            if job_id.replace("-", "").isalnum()
            else None
        )
        if job is None:
            raise WorkbenchError(
                "there is no such job",
                got=job_id,
                where=self.folder,
                fix="look at the queue again",
            )
        return job

    def _records(self) -> list[dict]:
        return [job for path in self.folder.glob("*.json") if (job := self._read(path)) is not None]

    @staticmethod
    def _read(path: Path) -> dict | None:
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError):
            return None  # gone meanwhile


_children: list[subprocess.Popen] = []


def _reap() -> None:
    """Take note of workers of this process that have ended, so that they leave no zombie."""
    _children[:] = [child for child in _children if child.poll() is None]


def _born(pid: int) -> float:
    """When a process was born, in seconds since the machine started: a clock that is put back does not change it."""
    return psutil.Process(pid).create_time() - psutil.boot_time()


def _alive(pid: int | None, born: float | None) -> bool:
    """Whether the very process that had this number when it was born at that time still runs."""
    _reap()
    with suppress(psutil.Error, TypeError):
        process = psutil.Process(pid)
        return abs(_born(pid) - born) < 1 and process.status() != psutil.STATUS_ZOMBIE
    return False


def _end(pid: int | None, born: float | None) -> None:
    """Ask a worker to end, so that it can leave its store in order; by force if it does not."""
    if not _alive(pid, born):
        return
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(STOP_SECONDS)
