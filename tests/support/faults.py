"""Breaking a run on purpose: a pipeline as a process of its own, what it leaves, and how that compares to an unbroken run."""

import hashlib
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from dfkd_lib.core.artifacts import Store

ROOT = Path(__file__).resolve().parents[2]
FULL = os.environ.get("FAULTS") == "full"
SEED = int(os.environ.get("FAULTS_SEED") or (int(time.time()) if FULL else 7))
# A run at smoke size, made smaller still: settings of each notebook.
SMALL = {
    "20": "seeds=0 maker_images=60 train_images=100 feature_images=300 fid_images=100 gan_epochs=1 "
    "'makers=augmented GAN,class probes'",
    "35": "seeds=0 train_images=100 synthetic_images=100 student_images=100 gan_epochs=2 teacher_images=500 "
    "student_epochs=3",
    "40": "seeds=0 train_scenes=32 teacher_epochs=2 students=train,synthetic",
    "50": "seeds=0 shares=1 passes=400 images=200 feature_images=300 test_images=200",
    "60": "seeds=0 images=100 test_images=200 feature_images=300",
    "70": "students=classification calibration_images=32 parity_images=32 repeats=3 test_images=200",
}


def words(only: str, jobs: int = 1) -> list[str]:
    """The command line of a run of these notebooks."""
    command = ["--profile", "smoke", "--only", only, "--jobs", str(jobs)]
    for number in only.split(","):
        for setting in shlex.split(SMALL[number]):
            command += ["--set", f"{number}.{setting}"]
    return command


SHORT = words("35")
LONG = words("35,40", jobs=2)
EVERY_KIND = words("20,35,40,50,60,70", jobs=2)
# The same picture is the same file, and one thread sums alike everywhere.
STEADY = {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "SOURCE_DATE_EPOCH": "0"}
# What follows from how long something took or from where it lies differs from run to run; nothing else may.
PASSING = re.compile(
    r"second|per_s|_ms$|latency|millisecond|times_faster|times_more|peak_memory|^deployment_|^made$|^sealed$"
)


@dataclass
class Place:
    """A folder for reports and one for artifacts, and the command that fills them."""

    folder: Path
    command: list[str]
    disk: Path | None = None  # where out and store lie, if not in the folder
    log: str = ""
    seconds: float = 0.0  # that its run took

    def __post_init__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        below = self.disk or self.folder
        self.out, self.store = below / "out", below / "store"

    def start(self, *more: str, out: Path | None = None, limit=None) -> subprocess.Popen:
        """The pipeline, as a process in a session of its own that ignores no signal; `limit` is called there first."""
        environment = environment_of(self.folder) | {"PYTHONPATH": str(ROOT)}

        def before():
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if limit:
                limit()

        folders = ["--out", str(out or self.out), "--artifacts", str(self.store)]
        with open(self.folder / "log.txt", "w") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "dfkd_lib", "run", *self.command, *folders, *more],
                cwd=ROOT,
                env=environment,
                start_new_session=True,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=before,
            )

    def ended(self, process: subprocess.Popen, seconds: float = 400) -> int:
        """Wait for a run; its exit code, and its output in `log`."""
        try:
            code = process.wait(seconds)
        finally:
            for one in tree(process.pid):
                one.kill()
        self.log = self.so_far()
        return code

    def so_far(self) -> str:
        return (self.folder / "log.txt").read_text(errors="replace")

    def run(self, *more: str, **options) -> int:
        return self.ended(self.start(*more, **options))

    def verify(self) -> tuple[int, str]:
        """Exit code and output of `python -m dfkd_lib verify`."""
        command = [sys.executable, "-m", "dfkd_lib", "verify", "--artifacts", str(self.store)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    def finished(self) -> dict[str, dict[str, str]]:
        """{key: {file: hash}} of all that is finished, the manifest with the time it was made among the files."""
        if not self.store.is_dir():
            return {}
        return {key: hashes(self.store / key) for key in Store(self.store).keys()}

    def begun(self) -> list[str]:
        return sorted(path.stem for path in self.store.glob("*.partial"))

    def artifacts(self) -> dict[str, dict]:
        """{key: {file: what it holds}} without what may differ between two runs."""
        return {key: contents(self.store / key) for key in Store(self.store).keys()}

    def report(self, out: Path | None = None) -> dict:
        """Statuses, metrics, artifacts, figures and tables of the report, without what may differ between two runs."""
        out = out or self.out
        saved = json.loads((out / "results.json").read_text())["notebooks"]
        notebooks = {
            name: {
                "status": r["status"],
                "metrics": steady(r["metrics"]),
                "artifacts": sorted(a["key"] for a in r["artifacts"]),
            }
            for name, r in saved.items()
        }
        files = [p for p in out.rglob("*") if p.is_file() and p.name != ".lock"]
        tables = {p.name: p.read_text() for p in (out / "tables").glob("*.csv")}
        figures = hashes(out / "figures")
        return {
            "notebooks": notebooks,
            "files": sorted(str(p.relative_to(out)) for p in files),
            "tables": {k: v for k, v in tables.items() if not PASSING.search(v.split("\n")[0])},
            "figures": {
                k: v for k, v in figures.items() if k.endswith("svg") and not PASSING.search(k[:-4])
            },
        }


def environment_of(folder: Path) -> dict[str, str]:
    """The environment of a process whose pictures are the same file each time."""
    (folder / "matplotlibrc").write_text("svg.hashsalt: faults\n")
    return {**os.environ, **STEADY, "MATPLOTLIBRC": str(folder / "matplotlibrc")}


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def contents(folder: Path) -> dict:
    """{file: hash, or its content if it is JSON that holds times} of an artifact."""
    found = hashes(folder)
    for name in found:
        if name.endswith(".json"):
            found[name] = steady(json.loads((folder / name).read_text()))
            if name == "manifest.json":
                files = found[name]["files"].items()
                found[name]["files"] = {k: v for k, v in files if not k.endswith(".json")}
    return found


def steady(value):
    """JSON without the entries that tell of time."""
    if isinstance(value, dict):
        return {k: steady(v) for k, v in value.items() if not PASSING.search(k)}
    return [steady(v) for v in value] if isinstance(value, list) else value


def tree(pid: int) -> list[psutil.Process]:
    """A process and all below it that live."""
    try:
        root = psutil.Process(pid)
        return [p for p in [root, *root.children(recursive=True)] if lives(p)]
    except psutil.Error:
        return []


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def kernels(processes: list[psutil.Process]) -> list[psutil.Process]:
    found = []
    for process in processes:
        try:
            found += [process] if "ipykernel_launcher" in " ".join(process.cmdline()) else []
        except psutil.Error:
            continue
    return found


def gone(processes: list[psutil.Process], seconds: float = 60) -> list[psutil.Process]:
    """Those that still live after a while."""
    end = time.monotonic() + seconds
    while (left := [p for p in processes if lives(p)]) and time.monotonic() < end:
        time.sleep(0.1)
    return left


def wait_until(process: subprocess.Popen, moment: float) -> bool:
    """Wait so many seconds of a run; False if it ended before."""
    end = time.monotonic() + moment
    while time.monotonic() < end:
        if process.poll() is not None:
            return False
        time.sleep(0.02)
    return process.poll() is None


def strike(place: Place, moment: float, blow) -> int:
    """Start a run, deal a blow at that moment; its exit code.

    A run that was over before (machines are not equally busy) is begun anew, and the moment taken earlier by as much.
    """
    while True:
        start = time.monotonic()
        process = place.start()
        if wait_until(process, moment):
            break
        lasted = time.monotonic() - start
        assert moment > 1, place.so_far()
        moment *= 0.9 * min(1.0, lasted / moment)
        shutil.rmtree(place.out), shutil.rmtree(place.store)
    processes = tree(process.pid)
    blow(process, processes)
    code = place.ended(process)
    left = gone(processes)
    assert not left, f"still running: {[p.cmdline() for p in left]}"
    return code


def kill(processes) -> None:
    for process in processes:
        try:
            process.kill()
        except psutil.Error:
            continue


def recovers(place: Place, reference: Place) -> None:
    """After a fault: the store is sound, the next run completes, nothing finished is lost or made again, all is equal."""
    place.store.mkdir(exist_ok=True)  # the blow may have come before
    code, output = place.verify()
    assert code == 0, output
    before = place.finished()
    assert set(before) <= set(reference.artifacts()), (
        "something was made that an undisturbed run does not make"
    )
    code = place.run()
    assert code == 0, place.log
    after = place.finished()
    assert {key: after.get(key) for key in before} == before, (
        "something finished was lost or made again"
    )
    equal(place, reference)


def equal(place: Place, reference: Place, out: Path | None = None) -> None:
    """Artifacts and report are those of the undisturbed run, and nothing else lies about."""
    assert place.artifacts() == reference.artifacts()
    assert place.report(out) == reference.report()
    assert not place.begun() and not list(place.folder.rglob("*.tmp"))
    assert place.verify()[0] == 0


def flip(path: Path, chance: random.Random) -> int:
    """Change one bit of a file, keeping its times; where."""
    data, times = bytearray(path.read_bytes()), path.stat()
    place = chance.randrange(len(data))
    data[place] ^= 1 << chance.randrange(8)
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    return place


class Disk:
    """A small disk: a tmpfs where mounting is allowed."""

    def __init__(self, folder: Path, size: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs")

    def _mount(self, *words: str) -> None:
        subprocess.run(["mount", *words, str(self.folder)], check=True, capture_output=True)

    def again(self, options: str) -> None:
        self._mount("-o", f"remount,{options}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        subprocess.run(["umount", "-l", str(self.folder)], check=False)


class Elsewhere:
    """A Dask scheduler and workers of one thread, as `dask` starts them, each a process of its own."""

    def __init__(self, folder: Path, workers: int, *more: str):
        folder.mkdir(parents=True)
        self.file, self.folder = folder / "scheduler.json", folder
        here = ["--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", str(self.file)]
        self.scheduler = self._start("scheduler", "--port", "0", *here)
        end = time.monotonic() + 120
        while not self.file.exists():
            log = (folder / "scheduler.txt").read_text()
            assert self.scheduler.poll() is None and time.monotonic() < end, log
            time.sleep(0.1)
        here += ["--nthreads", "1", *more]
        self.workers = [self._start("worker", *here) for _ in range(workers)]

    def _start(self, what: str, *more: str) -> subprocess.Popen:
        command = [sys.executable, "-m", f"distributed.cli.dask_{what}", *more]
        environment = environment_of(self.folder) | {"PYTHONPATH": str(ROOT)}
        with open(self.folder / f"{what}.txt", "ab") as log:
            return subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, cwd=self.folder
            )

    def end(self) -> list[psutil.Process]:
        """End all of it; what still lives."""
        all_of_it = [p for process in [self.scheduler, *self.workers] for p in tree(process.pid)]
        kill(all_of_it)
        return gone(all_of_it)


def can_mount(folder: Path) -> bool:
    try:
        with Disk(folder, 1 << 20):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False
