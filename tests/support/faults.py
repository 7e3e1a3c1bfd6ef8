"""Breaking a run on purpose: a pipeline as a process of its own, what it leaves, and how that compares to an unbroken run."""

import hashlib
import json
import os
import random
import re
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
ABLATION = [
    "35.seeds=0",
    "35.train_images=100",
    "35.synthetic_images=100",
    "35.student_images=100",
    "35.gan_epochs=2",
    "35.teacher_images=500",
    "35.student_epochs=3",
]
DETECTION = [
    "40.train_scenes=32",
    "40.teacher_epochs=2",
    "40.arms=train,synthetic",
    "40.gan_seeds=0",
]
EARLY = [
    "50.seeds=0",
    "50.shares=1",
    "50.passes=400",
    "50.images=200",
    "50.feature_images=300",
    "50.test_images=200",
]
GAN = [
    "20.seeds=0",
    "20.makers=augmented GAN,class probes",
    "20.maker_images=60",
    "20.train_images=100",
    "20.feature_images=300",
    "20.fid_images=100",
    "20.gan_epochs=1",
]
TITN = ["60.seeds=0", "60.images=100", "60.test_images=200", "60.feature_images=300"]
DEPLOY = [
    "70.students=classification",
    "70.calibration_images=32",
    "70.parity_images=32",
    "70.repeats=3",
    "70.test_images=200",
]


def words(only: str, settings: list[str], jobs: int = 1) -> list[str]:
    """The command line of a run at smoke size, made smaller still."""
    return [
        "--profile",
        "smoke",
        "--only",
        only,
        "--jobs",
        str(jobs),
        *[w for s in settings for w in ("--set", s)],
    ]


SHORT = words("35", ABLATION)
LONG = words("35,40", [*ABLATION, *DETECTION], jobs=2)
EVERY_KIND = words(
    "20,35,40,50,60,70", [*GAN, *ABLATION, *DETECTION, *EARLY, *TITN, *DEPLOY], jobs=2
)
# What follows from how long something took or from where it lies differs from run to run; nothing else may.
PASSING = re.compile(
    r"second|per_s|_ms$|latency|millisecond|times_faster|times_more|peak_memory|^deployment_|^made$|^sealed$"
)
CLOCK = """
import os, time
_real = {name: getattr(time, name) for name in ("time", "time_ns", "localtime", "gmtime", "strftime")}
_back = lambda: float(os.environ["FAULTS_BACK"]) if os.path.exists(os.environ["FAULTS_CLOCK"]) else 0.0
time.time = lambda: _real["time"]() - _back()
time.time_ns = lambda: _real["time_ns"]() - int(_back() * 1e9)
time.localtime = lambda at=None: _real["localtime"](time.time() if at is None else at)
time.gmtime = lambda at=None: _real["gmtime"](time.time() if at is None else at)
time.strftime = lambda text, at=None: _real["strftime"](text, time.localtime() if at is None else at)
"""


@dataclass
class Row:
    """One line of the table: the fault, when it struck and what was running, whether all was well, what was resumed."""

    fault: str
    running: str = ""
    survived: bool = False
    resumed: str = ""
    seconds: float = 0.0


@dataclass
class Place:
    """A folder for reports and one for artifacts, and the command that fills them."""

    folder: Path
    command: list[str]
    disk: Path | None = None  # where out and store lie, if not in the folder
    log: str = ""

    def __post_init__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        self.out, self.store = (
            (self.disk or self.folder) / "out",
            (self.disk or self.folder) / "store",
        )

    def start(self, *more: str, out: Path | None = None, **options) -> subprocess.Popen:
        """The pipeline, as a process in a session of its own that ignores no signal."""
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(options.pop("path", []) + [str(ROOT)]),
            "OMP_NUM_THREADS": "1",
            "MPLBACKEND": "agg",
            **options.pop("env", {}),
        }
        limit = options.pop("limit", lambda: None)

        def before():
            signal.signal(signal.SIGINT, signal.default_int_handler)
            limit()

        (self.folder / "matplotlibrc").write_text(
            "svg.hashsalt: faults\n"
        )  # the same picture is the same file
        environment |= {"MATPLOTLIBRC": str(self.folder / "matplotlibrc"), "SOURCE_DATE_EPOCH": "0"}
        self.log_file = open(self.folder / "log.txt", "w+")
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "dfkd_lib",
                "run",
                *self.command,
                "--out",
                str(out or self.out),
                "--artifacts",
                str(self.store),
                *more,
            ],
            cwd=ROOT,
            env=environment,
            start_new_session=True,
            stdout=self.log_file,
            stderr=subprocess.STDOUT,
            preexec_fn=before,
        )

    def ended(self, process: subprocess.Popen, seconds: float = 400) -> int:
        """Wait for a run; its exit code, and what it said in `log`."""
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
        """Exit code and words of `python -m dfkd_lib verify`."""
        done = subprocess.run(
            [sys.executable, "-m", "dfkd_lib", "verify", "--artifacts", str(self.store)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
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
        names = sorted(
            str(p.relative_to(out)) for p in out.rglob("*") if p.is_file() and p.name != ".lock"
        )
        tables = {
            p.name: p.read_text()
            for p in sorted((out / "tables").glob("*.csv"))
            if not PASSING.search(p.read_text().split("\n")[0])
        }
        figures = {
            p.name: hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted((out / "figures").glob("*.svg"))
            if not PASSING.search(p.stem)
        }
        return {"notebooks": notebooks, "files": names, "tables": tables, "figures": figures}


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def contents(folder: Path) -> dict:
    """{file: hash, or what it says if it is JSON that holds times} of an artifact."""
    found = hashes(folder)
    for name in found:
        if name.endswith(".json"):
            found[name] = steady(json.loads((folder / name).read_text()))
            if name == "manifest.json":
                found[name]["files"] = {
                    k: v for k, v in found[name]["files"].items() if not k.endswith(".json")
                }
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
        return [
            p for p in [root, *root.children(recursive=True)] if p.status() != psutil.STATUS_ZOMBIE
        ]
    except psutil.Error:
        return []


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

    def lives(process):
        try:
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

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


def running(place: Place, moment: float) -> str:
    """When a fault struck, and the last thing that the run had said."""
    said = [line.strip() for line in place.so_far().splitlines() if line.strip()]
    begun = ", ".join(key.rsplit("-", 1)[0] for key in place.begun())
    return f"{moment:5.1f} s, {'making ' + begun if begun else 'between artifacts'}; {(said or ['nothing said'])[-1][:60]}"


def strike(place: Place, moment: float, blow, *more: str, **options) -> tuple[str, int, float]:
    """Start a run, deal a blow at that moment: (what was running, exit code, the moment).

    A run that was over before (machines are not equally busy) is begun anew, and the moment taken earlier by as much.
    """
    while True:
        start = time.monotonic()
        process = place.start(*more, **options)
        if wait_until(process, moment):
            break
        lasted = time.monotonic() - start
        assert moment > 1, place.so_far()
        moment *= 0.9 * min(1.0, lasted / moment)
        shutil.rmtree(place.out), shutil.rmtree(place.store)
    told, processes = running(place, moment), tree(process.pid)
    blow(process, processes)
    code = place.ended(process)
    left = gone(processes)
    assert not left, f"still running: {[p.cmdline() for p in left]}"
    return told, code, moment


def kill(processes) -> None:
    for process in processes:
        try:
            process.kill()
        except psutil.Error:
            continue


def recovers(place: Place, reference: Place, row: Row, **options) -> None:
    """After a fault: the store is sound, the next run completes, nothing finished is lost or made again, all is equal."""
    place.store.mkdir(exist_ok=True)  # the blow may have come before
    code, said = place.verify()
    assert code == 0, said
    before, begun = place.finished(), place.begun()
    assert set(before) <= set(reference.artifacts()), (
        "something was made that an undisturbed run does not make"
    )
    code = place.run(**options)
    assert code == 0, place.log
    after = place.finished()
    assert {key: after.get(key) for key in before} == before, (
        "something finished was lost or made again"
    )
    equal(place, reference)
    epochs = [int(n) for n in re.findall(r"epoch (\d+)/\d+", place.log)]
    row.resumed = (
        f"{len(before)} found, {len(after) - len(before)} made, {len(begun)} of them begun before"
        + (f", first from epoch {epochs[0]}" if epochs and begun else "")
    )
    row.survived = True


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
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
            check=True,
            capture_output=True,
        )

    def again(self, options: str) -> None:
        subprocess.run(
            ["mount", "-o", f"remount,{options}", str(self.folder)], check=True, capture_output=True
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        subprocess.run(["umount", "-l", str(self.folder)], check=False)


class Elsewhere:
    """A Dask scheduler and workers of one thread, as `dask` starts them, each a process of its own."""

    def __init__(self, folder: Path, workers: int):
        folder.mkdir(parents=True)
        self.file, self.folder = folder / "scheduler.json", folder
        (folder / "matplotlibrc").write_text("svg.hashsalt: faults\n")
        self.scheduler = self._start(
            "scheduler",
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--no-dashboard",
            "--scheduler-file",
            str(self.file),
        )
        while not self.file.exists():
            time.sleep(0.1)
        self.workers = [
            self._start(
                "worker",
                "--scheduler-file",
                str(self.file),
                "--nthreads",
                "1",
                "--no-dashboard",
                "--host",
                "127.0.0.1",
            )
            for _ in range(workers)
        ]

    def _start(self, what: str, *more: str) -> subprocess.Popen:
        with open(self.folder / f"{what}.txt", "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.dask_{what}", *more],
                stdout=log,
                stderr=log,
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "OMP_NUM_THREADS": "1",
                    "MPLBACKEND": "agg",
                    "MATPLOTLIBRC": str(self.folder / "matplotlibrc"),
                    "SOURCE_DATE_EPOCH": "0",
                },
                cwd=self.folder,
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


def table(rows: list[Row]) -> str:
    """The rows as text, and how many of them were survived."""
    lines = [
        f"{'fault':<34} {'survived':<8} {'seconds':>7}  when, what was running | what the next run found",
        "-" * 120,
    ]
    lines += [
        f"{r.fault:<34} {'yes' if r.survived else 'NO':<8} {r.seconds:7.1f}  {r.running} | {r.resumed}"
        for r in rows
    ]
    kills = [r for r in rows if r.fault.startswith("SIGKILL")]
    return "\n".join(
        [
            *lines,
            f"{sum(r.survived for r in kills)}/{len(kills)} kills survived, "
            f"{sum(r.survived for r in rows)}/{len(rows)} faults in all; seed {SEED} (FAULTS_SEED)",
        ]
    )
