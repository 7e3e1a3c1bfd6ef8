"""Fan-out on Dask: real worker processes, one of them killed, a scheduler that vanishes, and no GPU shared by accident."""

import contextlib
import gc
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from types import SimpleNamespace

import faults
import psutil
import pytest
import torch
from fanout_tasks import for_ever, here
from small_notebooks import OWN, write_notebooks

from dfkd_lib import ablation, jobs, pipeline
from dfkd_lib.core import WorkbenchError, processes
from dfkd_lib.core.artifacts import Store
from dfkd_lib.jobs import Needs, cluster, queue, start, worker
from dfkd_lib.jobs.cluster import Worker
from dfkd_lib.pipeline import task
from dfkd_lib.pipeline.folder import prepare_folder

TINY = {
    "source": "real",
    "teacher": "shipped",
    "student_model": "vit_mnist_smoke",
    "student_epochs": 6,
    "student_images": 300,
    "test_images": 100,
    "real_images": 300,
}
WAIT = 120  # seconds that anything here may take on a busy machine


def until(holds, what: str, seconds: float = WAIT) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.05)


def status(url: str) -> int:
    try:
        return urllib.request.urlopen(url, timeout=10).status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.fixture(scope="module")
def two():
    """A cluster of two processes here, and what its tasks have told."""
    heard = []
    with jobs.opened(2, None, lambda name, message: heard.append((name, message))) as tasks:
        yield tasks, heard


# ---- a cluster of processes on this machine


def test_tasks_run_in_processes_of_their_own_with_their_share(two):
    tasks, heard = two
    futures = [tasks.submit(f"task {i}", here, 1.0, needs=tasks.needs()) for i in range(2)]
    first, second = (future.result(timeout=WAIT) for future in futures)
    assert len({first["pid"], second["pid"], os.getpid()}) == 3
    assert first["threads"] == second["threads"] == str(max(1, processes.cores() // 2))
    hello = {"line": "hello"}
    until(lambda: ("task 0", hello) in heard and ("task 1", hello) in heard, "both lines")


PATHS = "/ /status /sitemap.json /json/counts.json /metrics /info/main/workers.html /health".split()


def test_it_listens_on_loopback_alone_and_not_without_a_secret(two):
    tasks, _ = two
    own = psutil.Process()
    sockets = [
        (process.pid, connection.laddr)
        for process in (own, *own.children(recursive=True))
        for connection in process.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len({pid for pid, _ in sockets}) >= 3
    assert {address.ip for _, address in sockets} == {"127.0.0.1"}
    assert status(tasks.dashboard) == 200
    answers = set()
    for _, address in sockets:
        for path in PATHS:
            try:
                answers.add(status(f"http://127.0.0.1:{address.port}{path}"))
            except OSError:
                answers.add("not spoken")  # the TLS doors
    assert answers == {404, "not spoken"}


def test_nobody_without_the_certificate_gives_it_work(two):
    from distributed import Client

    tasks, _ = two
    address = tasks.client.scheduler.address
    assert address.startswith("tls://127.0.0.1:")
    for place in (address, address.replace("tls", "tcp")):
        with pytest.raises((OSError, TypeError, ValueError)):
            Client(place, timeout=3, set_as_default=False)
        gc.collect()  # now: while the next client starts, this one's end would wait for it, and it for that


def test_a_stopped_training_ends_in_order_and_nothing_of_its_run_begins(two, tmp_path):
    tasks, heard = two
    heard.clear()
    future = tasks.submit("endless", for_ever, str(tmp_path / "mark"), needs=tasks.needs())
    until(lambda: ("endless", {"line": "training"}) in heard, "the training")
    run = tasks.run
    tasks.stop()
    with pytest.raises(WorkbenchError, match="stopped by hand"):
        future.result(timeout=WAIT)
    assert (tmp_path / "mark").read_text() == "left in order"
    with pytest.raises(WorkbenchError, match="stopped by hand"):
        tasks.submit("late", here, needs=tasks.needs()).result(timeout=WAIT)
    tasks.run = f"{run}-next"  # for the tests after this one


def test_a_kernel_has_the_threads_that_its_task_asked_for(monkeypatch):
    monkeypatch.setenv("MKL_NUM_THREADS", "1")  # as Dask's nannies set it, and torch follows it
    for threads in (1, 2):
        code = "import torch; print(torch.get_num_threads())"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=task.kernel_environment(Needs(threads)),
            capture_output=True,
        )
        assert int(done.stdout) == threads


def test_more_threads_than_any_worker_has_are_refused(two):
    with pytest.raises(WorkbenchError, match="so many threads"):
        two[0].needs(threads=4096)


# ---- GPUs


def test_a_gpu_is_never_shared(monkeypatch):
    monkeypatch.setattr(start, "visible_gpus", lambda: ["0"])
    with jobs.opened(2, None, lambda *_: None) as tasks:
        assert sorted(worker.gpus for worker in tasks.workers()) == [0, 1]
        wants, idle = tasks.needs(gpu=True), tasks.needs(gpu=False)
        assert wants.gpu and not idle.gpu
        with_gpu = [tasks.submit(f"gpu {i}", here, 0.3, needs=wants) for i in range(3)]
        without = [tasks.submit(f"cpu {i}", here, 0.1, needs=idle) for i in range(2)]
        ran = sorted((future.result(timeout=WAIT) for future in with_gpu), key=lambda r: r["start"])
        assert {(one["visible"], one["pid"]) for one in ran} == {("0", ran[0]["pid"])}
        assert all(first["end"] <= second["start"] for first, second in zip(ran, ran[1:]))
        assert {future.result(timeout=WAIT)["visible"] for future in without} <= {"0", ""}
    # A notebook that did not ask for a GPU sees none, on whichever worker it runs.
    assert task.kernel_environment(idle)["CUDA_VISIBLE_DEVICES"] == ""


# ---- an ablation, one of whose two workers is killed


CHECKPOINTS = "student*.partial/checkpoint/checkpoint.pt"


def test_a_killed_workers_student_is_trained_on_to_the_same_bits(tmp_path):
    two = [{"name": "a"}, {"name": "b", "temperature": 2.0}]
    cells = ablation.read_grid(two, {**TINY, "student_epochs": 20}, seeds=[0])
    store, quiet = Store(tmp_path / "killed"), Store(tmp_path / "undisturbed")
    killed, before = [], torch.get_num_threads()

    def kill() -> None:
        """Kill one worker as soon as a student of it has a checkpoint."""
        until(lambda: [*store.root.glob(CHECKPOINTS)], "a checkpoint")
        children = psutil.Process().children(recursive=True)
        workers = []
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                workers += [child] * ("--multiprocessing-fork" in child.cmdline())
        killed.append(max(workers, key=lambda process: process.cpu_times().user))
        killed[0].kill()

    thread = threading.Thread(target=kill)
    try:
        torch.set_num_threads(2)
        thread.start()
        outcomes = ablation.run(cells, store, jobs=2, say=lambda line: None)
        thread.join()
        torch.set_num_threads(1)
        for key in store.keys():  # what both start from
            if not key.startswith(("student", "ablation")):
                shutil.copytree(store.root / key, quiet.root / key)
        alone = ablation.run(cells, quiet, jobs=1, say=lambda line: None)
    finally:
        torch.set_num_threads(before)
    assert killed and [o.error for o in outcomes] == ["", ""]
    assert [o.artifact.key for o in outcomes] == [o.artifact.key for o in alone]
    for mine in outcomes:
        students = [s.find(mine.artifact.metrics["student"]) for s in (store, quiet)]
        first, second = (one.manifest["files"]["model.safetensors"] for one in students)
        assert first == second
    assert not [*store.root.glob("*.partial")]
    assert all(problem is None for _, problem in store.verify())


# ---- notebooks on a cluster that somebody else started

COUNT = """\
import pathlib, time, torch
print("threads", torch.get_num_threads())
mark = pathlib.Path(out_dir) / "count.txt"
for i in range(int(mark.read_text()) if mark.exists() else 0, 80):
    mark.write_text(str(i + 1)); print("step", i); time.sleep(0.1)"""
AFTER = "assert (__import__('pathlib').Path(out_dir) / 'count.txt').read_text() == '80'"
NOTEBOOKS = {
    "10_quick": ["print('fine')"],
    "20_gan_fid": [COUNT],
    "30_classification_kd": [AFTER],
    "90_summary": ["1"],
}


@pytest.fixture
def elsewhere(tmp_path):
    started = faults.Elsewhere(tmp_path / "dask", 2, "--no-nanny")
    yield started
    started.end()


@pytest.fixture
def plan(tmp_path):
    folder = write_notebooks(tmp_path / "notebooks", NOTEBOOKS, OWN, method="")

    def make(scheduler) -> pipeline.Plan:
        return pipeline.make_plan(
            "smoke",
            out=str(tmp_path / "out"),
            artifacts=str(tmp_path / "store"),
            notebooks=folder,
            scheduler=str(scheduler),
        )

    return make


def test_notebooks_survive_a_worker_and_lose_nothing_with_the_scheduler(elsewhere, plan, tmp_path):
    lines, killed, out = [], [], tmp_path / "out"

    def kill_worker(line: str) -> None:
        lines.append(line)
        if "step 10" in line and not killed:
            found = [(w, p) for w in elsewhere.workers for p in psutil.Process(w.pid).children()]
            killed.append(next(w for w, p in found if "ipykernel" in " ".join(p.cmdline())))
            killed[0].kill()

    results = pipeline.run(plan(elsewhere.file), kill_worker)
    statuses = {name: one["status"] for name, one in results["notebooks"].items()}
    assert statuses == dict.fromkeys(NOTEBOOKS, "succeeded"), lines
    assert killed and any("its worker was lost; it runs again" in line for line in lines)
    starts = [line for line in lines if line.startswith("[")]
    assert all(line.endswith(f" starts on {socket.gethostname()}") for line in starts)
    places = {name: i for i, line in enumerate(starts) for name in ("20_", "30_") if name in line}
    assert places["30_"] > places["20_"]
    assert {line.split()[-1] for line in lines if " threads " in line} == {"1"}
    numbers = [int(re.search(r"step (\d+)", line)[1]) for line in lines if "step" in line]
    assert numbers.count(0) == 1 and numbers[-1] == 79  # it went on, and did not begin again
    counted = json.loads((out / "results.json").read_text())["notebooks"]["20_gan_fid"]
    assert counted["threads"] == 1 and counted["machine"]["cores"] >= 1
    assert not [*tmp_path.rglob(".seen-*")]

    # The same again, but the scheduler goes in the middle.
    (out / "count.txt").unlink()

    def kill_scheduler(line: str) -> None:
        if "step 5" in line:
            elsewhere.scheduler.kill()

    results = pipeline.run(plan(elsewhere.file), kill_scheduler)
    ended = results["notebooks"]
    assert pipeline.exit_code(results) == 1 and ended["10_quick"]["status"] == "succeeded"
    error = ended["20_gan_fid"]["error"]
    assert ended["20_gan_fid"]["status"] == "failed" and "scheduler is gone" in error
    assert "give the same command" in error and (out / "index.html").exists()


ADDRESSES = "tcp://127.0.0.1:1 127.0.0.1:1 nonsense tls://127.0.0.1:22x tcp://".split()


@pytest.mark.parametrize("address", [*ADDRESSES, ""])
def test_a_scheduler_that_is_not_there_is_reported(address):
    with pytest.raises(WorkbenchError, match="no Dask scheduler answers there"):
        with jobs.opened(1, address, print):
            pass


@pytest.mark.parametrize("step", ["notebook", "what is missing", "task"])
def test_a_worker_with_other_folders_or_other_code_is_refused(tmp_path, step):
    """What notebooks train too: it goes into the store that all share."""
    function, args = {
        "notebook": (task.run_notebook, (tmp_path / "n.ipynb", {}, tmp_path, 0.0)),
        "what is missing": (task.missing_tasks, (tmp_path / "n.ipynb", {})),
        "task": (task.do_task, (tmp_path / "n.ipynb", {}, "student")),
    }[step]
    for place, words in (
        (task.Place((tmp_path / ".seen-absent",)), "does not see the folder"),
        (task.Place((), ("0.0", "abc")), "other code"),
    ):
        with pytest.raises(WorkbenchError, match=words):
            function(lambda message: None, Needs(), place, *args)


class Quiet:
    """What a Cluster asks of a client, and no cluster behind it."""

    def __init__(self, cards: dict):
        self.cards = cards

    def subscribe_topic(self, topic, handler):
        pass

    def run(self, function, workers, on_error):
        assert function is worker.own_card
        return {address: self.cards[address] for address in workers}


def offering(*workers: Worker, cards: dict | None = None) -> cluster.Cluster:
    """A cluster of these workers, whose GPUs are these."""
    tasks = cluster.Cluster(Quiet(cards or {}), lambda *_: None, None, None)
    tasks.workers = lambda: list(workers)
    return tasks


def test_a_task_asks_for_what_one_worker_has_altogether():
    large, card = Worker("a", 32, 16.0, 0), Worker("b", 8, 64.0, 1)
    tasks = offering(large, card, cards={"b": ("b", "0"), "c": None})
    assert tasks.needs(100.0) == Needs(8, 64.0, True)
    assert tasks.needs(100.0, gpu=False, threads=16) == Needs(16, 16.0, False)
    with pytest.raises(WorkbenchError, match="so many threads and a GPU"):
        tasks.needs(threads=16)
    tasks.workers = lambda: []  # for a moment there is none
    assert tasks.needs(1.0) == Needs(8, 1.0, True)
    tasks.workers = lambda: [Worker("c", 8, 64.0, 2)]
    with pytest.raises(WorkbenchError, match="one worker for each GPU"):
        tasks.needs()


def test_tasks_do_not_wait_at_one_worker_while_others_idle():
    """Dask moves a waiting task only from workers with more tasks than slots: it is not given to any before it can run."""
    large = [Worker(f"w{i}", 8, 32.0, 0, slots=8) for i in range(3)]
    tasks = offering(large[0])

    def room() -> int:
        return next((n for n in range(100) if not tasks.free(n)), 100)

    assert room() == 1
    tasks.needs(2.0)
    assert room() == 1
    tasks.workers = lambda: large  # two more have come
    assert room() == 3
    tasks.needs(2.0, threads=4)
    assert room() == 6
    tasks.needs(20.0, threads=4)  # memory for one at a time
    assert room() == 3
    tasks.workers = lambda: []  # for a moment there is none; those known before may be back
    assert room() == 3
    tasks.workers = lambda: [Worker("one", 8, 32.0, 0, slots=1)]  # from these Dask takes what waits
    assert room() == 100


def test_two_workers_of_one_gpu_are_refused():
    a, b, c = (Worker(address, 4, 16.0, 1) for address in "abc")
    cards = {"a": ("host", "0"), "b": ("host", "1"), "c": ("other", "0")}
    assert offering(a, b, c, cards=cards).needs().gpu
    tasks = offering(a, b, cards=cards | {"c": ("host", "0")})
    assert tasks.needs().gpu
    tasks.workers = lambda: [a, b, c]
    with pytest.raises(WorkbenchError, match="(?s)two workers use the same GPU.*host, GPU 0.*a, c"):
        tasks.needs()


def test_a_worker_that_hangs_does_not_hold_up_the_stop(two, monkeypatch):
    tasks, heard = two
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 2)
    pids = tasks.client.run(os.getpid)
    hangs = next(iter(pids.values()))
    os.kill(hangs, signal.SIGSTOP)
    try:
        begun = time.monotonic()
        tasks.stop()
        assert time.monotonic() - begun < 30
    finally:
        os.kill(hangs, signal.SIGCONT)
    until(lambda: len(tasks.client.run(os.getpid)) == 2, "both workers")


def test_a_task_that_kills_its_worker_as_it_comes_is_given_up(plan, tmp_path, monkeypatch):
    from concurrent.futures import Future

    from distributed import KilledWorker

    handed_in, lines = [], []

    class Deadly(cluster.Inline):
        def workers(self):
            return []

        def submit(self, name, function, *args, needs):
            handed_in.append(name)
            future = Future()
            future.set_exception(KilledWorker("task", SimpleNamespace(address="tcp://worker"), 2))
            return future

    deadly = contextlib.nullcontext(Deadly(lambda *_: None))
    monkeypatch.setattr(queue, "opened", lambda *args, **_: deadly)
    ended = pipeline.run(plan("unused"), lines.append)["notebooks"]["10_quick"]
    assert ended["status"] == "failed" and handed_in.count("10_quick") == 3
    assert "worker of this task died" in ended["error"] and "fix" in ended["error"]
    lost = "10_quick: its worker was lost before it began"
    assert sum(lost in line for line in lines) == 2


def test_a_task_whose_run_has_ended_writes_no_page(tmp_path):
    """As when the run was killed, and another has begun in its folder: that one takes the mark away."""
    sleeps = {"10_quick": ["import time; print('sleeps'); time.sleep(600)"]}
    notebook = write_notebooks(tmp_path / "notebooks", sleeps, OWN) / "10_quick.ipynb"
    out = tmp_path / "out"
    out.mkdir()
    (out / "10_quick.html").write_text("of an earlier run")
    mark = out / ".seen-0"
    mark.touch()

    def receive(message: dict) -> None:
        if message.get("line") == "sleeps":
            assert not (out / "10_quick.html").exists()
            prepare_folder(out).release()  # the next run comes

    begun, place = time.monotonic(), task.Place((mark,))
    with pytest.raises(WorkbenchError, match="has ended without it"):
        task.run_notebook(receive, Needs(), place, notebook, {"preset": "smoke"}, out, 0.0)
    assert time.monotonic() - begun < 300 and not (out / "10_quick.html").exists()


@pytest.mark.parametrize(
    "error",
    [
        ImportError("no dfkd_lib"),
        RuntimeError("Error during deserialization of the task graph. This"),
    ],
)
def test_a_machine_without_the_library_is_reported(error):
    answer = jobs.failed(error)
    assert isinstance(answer, WorkbenchError) and "fix" in str(answer)
    assert "cannot run this library" in str(answer)


def test_what_is_stopped_before_it_listens_does_not_begin():
    stopped = []
    worker.stop_here("stopped")
    with (
        jobs.stopped_by(lambda: stopped.append(1), "stopped"),
        jobs.stopped_by(lambda: stopped.append(2), "goes on"),
    ):
        assert stopped == [1]
