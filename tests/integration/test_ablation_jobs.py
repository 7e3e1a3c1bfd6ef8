"""The queue of cells: in order, stopped in the middle of an epoch, gone on with to the same bits, outliving its worker."""

import os
import signal
import time

import psutil
import pytest
import torch

from dfkd_lib import ablation, presets
from dfkd_lib.ablation import Jobs, find, make_cell, run_cell
from dfkd_lib.core import WorkbenchError
from dfkd_lib.core.artifacts import Store

TINY = ablation.base_of(
    presets.load(
        "ablation",
        "quick",
        "student.model=vit_mnist_smoke student.images=60 real_images=60 student.epochs=1 test_images=100",
    ),
    "real",
)
LONG = {**TINY, "student_images": 800, "real_images": 800, "student_epochs": 10, "batch_size": 4}


@pytest.fixture
def one_thread(monkeypatch):
    """One thread here and in a worker: bits are equal only at equal threads, and small steps gain nothing from more."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """A queue whose worker is this process, when a test says so."""
    queue = Jobs(Store(tmp_path / "store"))
    monkeypatch.setattr(queue, "_start_worker", lambda: None)
    return queue


def states(jobs):
    return {job["cell"]["name"]: job["state"] for job in jobs.all()}


def until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_jobs_run_in_order_and_the_urgent_first(jobs, monkeypatch):
    order = []
    monkeypatch.setattr(
        "dfkd_lib.ablation.jobs.run_cell", lambda store, cell: order.append(cell.name) or _Made()
    )
    for name, first in (("a", False), ("b", False), ("c", True), ("d", True)):
        jobs.submit(make_cell(name, TINY, 0), first)
    assert [job["cell"]["name"] for job in jobs.all()] == ["d", "c", "a", "b"]
    jobs.stop(next(job["id"] for job in jobs.all() if job["cell"]["name"] == "c"))
    jobs.work(linger=0.3)
    assert order == ["d", "a", "b"] and states(jobs) == {
        "a": "finished",
        "b": "finished",
        "c": "stopped",
        "d": "finished",
    }
    assert all(job["key"] == "the key" for job in jobs.all() if job["state"] == "finished")


class _Made:
    key = "the key"


def test_a_job_that_fails_says_why_and_the_next_runs(jobs):
    jobs.submit(make_cell("diverges", {**TINY, "kd_weight": 1e300, "student_epochs": 4}, 0))
    jobs.submit(make_cell("no token", {**TINY, "hard_weight": 1.0}, 0))
    jobs.submit(make_cell("fine", TINY, 0))
    jobs.work(linger=0.3)
    errors = {job["cell"]["name"]: job["error"] for job in jobs.all()}
    assert states(jobs) == {"diverges": "failed", "no token": "failed", "fine": "finished"}
    assert errors["diverges"].startswith("diverged") and "distillation token" in errors["no token"]
    cell = make_cell("fine", TINY, 0)
    assert {jobs.stop(job["id"]) for job in jobs.all()} == {"failed", "finished"} and len(
        set(states(jobs).values())
    ) == 2
    assert find(jobs.store, cell).key == next(
        job["key"] for job in jobs.all() if job["state"] == "finished"
    )
    assert Jobs(jobs.store).all() == jobs.all()  # another kernel sees the same


def test_records_can_be_dropped_but_not_of_what_waits(jobs):
    job = jobs.submit(make_cell("a", TINY, 0))
    jobs.forget(job)
    assert len(jobs.all()) == 1
    assert jobs.stop(job) == "queued"
    jobs.forget(job)
    assert jobs.all() == []
    for bad in (job, "../../etc", ""):
        with pytest.raises(WorkbenchError, match="no such job"):
            jobs.stop(bad)


def test_one_worker_at_a_time(jobs):
    from filelock import FileLock

    with FileLock(jobs.folder / "worker.lock"):
        assert jobs.working()
        jobs.submit(make_cell("a", TINY, 0))
        jobs.work(linger=0.1)
        assert states(jobs) == {"a": "queued"}
    assert not jobs.working()


def test_asking_often_starts_one_worker(tmp_path, monkeypatch):
    """A worker needs seconds to start, and the widget asks every second: there must not be one for every question."""
    from dfkd_lib.ablation import jobs as module

    jobs, started = Jobs(Store(tmp_path)), []
    real = module.subprocess.Popen

    def start(command, **options):
        started.append(real(["sleep", "30"], start_new_session=True))
        return started[-1]

    monkeypatch.setattr(module.subprocess, "Popen", start)
    monkeypatch.setattr(module, "RESTART_SECONDS", 0.0)
    jobs.submit(make_cell("a", TINY, 0))
    [jobs.wake() for _ in range(20)]
    assert len(started) == 1
    started[0].kill()
    started[0].wait()
    jobs.wake()
    assert len(started) == 2
    started[1].kill()


def test_stop_in_the_middle_of_an_epoch_loses_no_finished_one(tmp_path, one_thread):
    """A real worker: stopped, gone on with, to the very weights of an unbroken run; killed, and said so."""
    jobs, cell = Jobs(Store(tmp_path / "store")), make_cell("long", LONG, 0)
    job = jobs.submit(cell)

    def progress():
        jobs.wake()
        return next((j["progress"] for j in jobs.all() if j["state"] == "running"), None) or {}

    until(lambda: progress().get("epoch", 0) >= 3 and progress().get("step", 0) > 0)
    seen = progress()
    assert (
        seen["epochs"] == 10
        and "student_real" in seen["label"]
        and seen["left"] > 0
        and seen["losses"]["kd"] > 0
    )
    assert [row["epoch"] for row in seen["history"]] == list(
        range(1, seen["epoch"])
    ) and "test_accuracy" in seen["history"][0]
    pid = next(j["pid"] for j in jobs.all() if j["state"] == "running")
    assert jobs.stop(job) == "running"
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert states(jobs) == {"long": "stopped"} and find(jobs.store, cell) is None
    assert list(jobs.store.root.glob("student_real-*.partial/checkpoint/checkpoint.pt"))

    again = jobs.submit(cell)
    until(lambda: progress().get("epoch", 0) >= 3)
    assert progress()["history"][0] == seen["history"][0]  # from its checkpoint, not from the start
    os.kill(next(j["pid"] for j in jobs.all() if j["state"] == "running"), signal.SIGKILL)
    until(lambda: (jobs.wake(), jobs.all()[-1]["state"])[1] == "failed")
    assert "run it again to go on" in jobs.all()[-1]["error"] and jobs.all()[-1]["id"] == again

    broken = run_cell(jobs.store, cell)
    whole = run_cell(Store(tmp_path / "whole"), cell)
    one, two = (
        store.find(made.metrics["student"]).path / "model.safetensors"
        for store, made in ((jobs.store, broken), (Store(tmp_path / "whole"), whole))
    )
    assert one.read_bytes() == two.read_bytes()
