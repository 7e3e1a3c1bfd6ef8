"""The queue of cells on disk: in order, stopped in the middle of an epoch, gone on with to the same bits."""

import os
import signal
import time
from functools import partial

import psutil
import pytest
import torch
from ablation_cells import TINY
from cells import run_cell as notebook_cell
from filelock import FileLock

from dfkd_lib import core
from dfkd_lib.ablation import as_sent, find, make_cell, run_cell, saved_jobs, work
from dfkd_lib.core import Store, WorkbenchError
from dfkd_lib.jobs import saved

LONG = {**TINY, "student_images": 800, "real_images": 800, "student_epochs": 10, "batch_size": 2}


def cell(name, settings=TINY):
    return as_sent(make_cell(name, settings, 0))


@pytest.fixture
def one_thread(monkeypatch):
    """One thread here and in a worker: bits are equal only at equal threads, and small steps gain nothing from more."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def jobs(store, monkeypatch):
    """A queue whose worker is this process, when a test calls `work`."""
    queue = saved_jobs(store)
    monkeypatch.setattr(queue, "_start_worker", lambda: None)
    queue.work = partial(queue.work, work, str(store.root), linger=0.3)
    return queue


def states(jobs):
    return {job["cell"]["name"]: job["state"] for job in jobs.all()}


def until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_jobs_run_in_order_and_the_urgent_first(store):
    jobs, order = saved.SavedJobs(store.root / ".jobs", ["-c", ""]), []
    for name, first in (("a", False), ("b", False), ("c", True), ("d", True)):
        jobs.submit({"name": name}, first)
    assert [job["cell"]["name"] for job in jobs.all()] == ["d", "c", "a", "b"]
    jobs.stop(next(job["id"] for job in jobs.all() if job["cell"]["name"] == "c"))
    run = lambda tell, needs, own, cell: (order.append(own + cell["name"]) or "the key", "")  # noqa: E731
    jobs.work(run, "cell ", linger=0.3)
    assert order == ["cell d", "cell a", "cell b"]
    assert states(jobs) == {**dict.fromkeys("abd", "finished"), "c": "stopped"}
    assert all(job["key"] == "the key" for job in jobs.all() if job["state"] == "finished")


def test_a_job_that_fails_says_why_and_the_next_runs(jobs, store):
    changed = {**cell("other code"), "code": "of before the change"}
    jobs.submit(cell("diverges", {**TINY, "kd_weight": 1e300, "student_epochs": 4}))
    jobs.submit(cell("no token", {**TINY, "hard_weight": 1.0}))
    jobs.submit(changed)
    jobs.submit(cell("fine"))
    jobs.work()
    bad = dict.fromkeys(("diverges", "no token", "other code"), "failed")
    assert states(jobs) == {**bad, "fine": "finished"}
    errors = {job["cell"]["name"]: job["error"] for job in jobs.all()}
    assert errors["diverges"].startswith("diverged") and "other code" in errors["other code"]
    assert "distillation token" in errors["no token"]
    assert {jobs.stop(job["id"]) for job in jobs.all()} == {"failed", "finished"}
    assert states(jobs) == {**bad, "fine": "finished"}  # what has ended is left as it is
    (key,) = (job["key"] for job in jobs.all() if job["state"] == "finished")
    assert find(store, make_cell("fine", TINY, 0)).key == key
    assert saved_jobs(store).all() == jobs.all()  # another kernel sees the same


def test_records_can_be_dropped_but_not_of_what_waits_for_the_one_worker(jobs):
    job = jobs.submit(cell("a"))
    jobs.forget(job)
    with FileLock(jobs.folder / "worker.lock"):
        assert jobs.working()
        jobs.work()
        assert states(jobs) == {"a": "queued"}
    assert not jobs.working() and jobs.stop(job) == "queued"
    jobs.forget(job)
    assert jobs.all() == []
    for bad in (job, "../../etc", ""):
        with pytest.raises(WorkbenchError, match="no such job"):
            jobs.stop(bad)


def test_asking_often_starts_one_worker(store, monkeypatch):
    """A worker needs seconds to start, and the widget asks every second: there must not be one for every question."""
    jobs, started, real = saved_jobs(store), [], saved.subprocess.Popen

    def start(command, **options):
        started.append(real(["sleep", "30"], start_new_session=True))
        return started[-1]

    monkeypatch.setattr(saved.subprocess, "Popen", start)
    monkeypatch.setattr(saved, "RESTART_SECONDS", 0.0)
    jobs.submit(cell("a"))
    for _ in range(20):
        jobs.wake()
    assert len(started) == 1
    started[0].kill()
    started[0].wait()
    jobs.wake()
    assert len(started) == 2
    started[1].kill()


def test_a_step_of_ones_own_is_trained_by_a_worker_and_anybody_elses_is_not(
    store, tmp_path, monkeypatch
):
    """A real worker: the notebook finds what it has made by the same step; a step that is not signed is not read."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    text = """
def step(student, batch, teacher):
    return {"loss": (student(batch.images) - teacher(batch).logits).square().mean()}
"""
    step, jobs = notebook_cell(text, {"__name__": "__main__"})["step"], saved_jobs(store)
    own, foreign = make_cell("own", TINY, 0), make_cell("foreign", TINY, 1)
    jobs.submit(as_sent(foreign, core.as_sent(step)))
    jobs.submit(as_sent(own, core.signed(core.as_sent(step))))
    until(lambda: (jobs.wake(), {*states(jobs).values()} & {"queued", "running"})[1] == set())
    assert states(jobs) == {"own": "finished", "foreign": "failed"}
    assert "your signature" in jobs.all()[0]["error"]
    assert find(store, own, step).key == jobs.all()[1]["key"]


def test_stop_in_the_middle_of_an_epoch_loses_no_finished_one(store, tmp_path, one_thread):
    """A real worker: stopped, gone on with, to the very weights of an unbroken run; killed, and reported."""
    jobs, long, quiet = saved_jobs(store), make_cell("long", LONG, 0), Store(tmp_path / "whole")
    job = jobs.submit(as_sent(long))

    def running(part):
        jobs.wake()
        return next((job[part] for job in jobs.all() if job["state"] == "running"), None)

    def progress():
        return running("progress") or {}

    seen = {}

    def in_the_middle():
        seen.update(progress())
        return seen.get("epoch", 0) >= 3 and seen["step"] > 0

    until(in_the_middle)
    assert seen["epochs"] == 10 and "student_real" in seen["label"]
    assert seen["left"] > 0 and seen["losses"]["kd"] > 0
    assert [row["epoch"] for row in seen["history"]] == list(range(1, seen["epoch"]))
    assert "test_accuracy" in seen["history"][0]
    pid = running("pid")
    assert jobs.stop(job) == "running"
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert states(jobs) == {"long": "stopped"} and find(store, long) is None
    assert list(store.root.glob("student_real-*.partial/checkpoint/checkpoint.pt"))

    again = jobs.submit(as_sent(long))
    until(lambda: progress().get("epoch", 0) >= 3)
    assert progress()["history"][0] == seen["history"][0]  # from its checkpoint, not from the start
    os.kill(running("pid"), signal.SIGKILL)
    until(lambda: (jobs.wake(), jobs.all()[-1]["state"])[1] == "failed")
    assert "run it again to go on" in jobs.all()[-1]["error"] and jobs.all()[-1]["id"] == again

    one, two = (
        where.find(run_cell(where, long).metrics["student"]).path / "model.safetensors"
        for where in (store, quiet)
    )
    assert one.read_bytes() == two.read_bytes()
