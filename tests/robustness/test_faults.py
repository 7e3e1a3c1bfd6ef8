"""What may befall a run: whatever it is, finished things stay, the store is sound, and the next run ends as if nothing had been.

FAULTS=full (`make faults`) deals 20 kills and every other fault at more places; without it a few of each are dealt.
Every fault strikes a pipeline of real notebooks that train, in a process of its own.
"""

import json
import os
import random
import re
import resource
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import faults
import psutil
import pytest
import torch
from faults import FULL, SEED, Disk, Place, flip, strike
from small_notebooks import write_notebooks

from dfkd_lib import pipeline, training
from dfkd_lib.core import WorkbenchError, artifacts
from dfkd_lib.core.artifacts import ArtifactError, Store

pytestmark = pytest.mark.faults


def undisturbed(folder: Path, command: list[str]) -> Place:
    """A run that nothing befell, and how long it took."""
    place, start = Place(folder, command), time.monotonic()
    assert place.run() == 0, place.log
    place.seconds = time.monotonic() - start
    assert place.verify()[0] == 0
    return place


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return undisturbed(tmp_path_factory.mktemp("undisturbed"), faults.SHORT)


@pytest.fixture(scope="module")
def killed_reference(reference, tmp_path_factory):
    """What kills are dealt to: in full, several notebooks at a time."""
    return undisturbed(tmp_path_factory.mktemp("long"), faults.LONG) if FULL else reference


@pytest.fixture(scope="module")
def every_kind(reference, tmp_path_factory):
    """Artifacts of as many kinds as are looked at: in full, of every notebook that trains."""
    return undisturbed(tmp_path_factory.mktemp("kinds"), faults.EVERY_KIND) if FULL else reference


def copy_of(place: Place, folder: Path) -> Place:
    for name in ("out", "store"):
        shutil.copytree(getattr(place, name), folder / name)
    return Place(folder, place.command)


# ---- killed

VICTIMS = {
    "all": lambda processes: processes,
    "the pipeline": lambda processes: processes[:1],
    "a kernel": lambda processes: faults.kernels(processes) or processes[:1],
}
CHANCE = random.Random(SEED)
KILLS = [
    (number, list(VICTIMS)[number % 3], CHANCE.uniform(0.03, 0.97))
    for number in range(20 if FULL else 2)
]


@pytest.mark.parametrize("number, victim, part", KILLS)
def test_killed(killed_reference, tmp_path, number, victim, part):
    def blow(process, processes):
        faults.kill(VICTIMS[victim](processes))

    place = Place(tmp_path, killed_reference.command)
    code = strike(place, part * killed_reference.seconds, blow)
    if victim == "a kernel" and "killed by signal 9" in place.log:
        assert code == 1 and "fix: give the same command again" in place.log
    faults.recovers(place, killed_reference)


INT, TERM = signal.SIGINT, signal.SIGTERM
STOPS = [(INT,), (INT, INT), (INT, INT, TERM), (TERM,)] if FULL else [(INT, INT)]


@pytest.mark.parametrize("numbers", STOPS)
def test_stopped_by_hand(killed_reference, tmp_path, numbers):
    def blow(process, processes):
        for signal_number in numbers:
            process.send_signal(signal_number)
            time.sleep(CHANCE.uniform(0, 0.3))

    first = CHANCE.uniform(0.3, 0.9) if FULL else 0.5
    # Machines are not equally busy: a stop that finds every notebook finished is dealt again, earlier.
    for number, share in enumerate((first, first / 2, first / 4)):
        place = Place(tmp_path / str(number), killed_reference.command)
        code = strike(place, share * killed_reference.seconds, blow)
        written = place.out / "results.json"  # none of a run that was stopped before it began
        results = json.loads(written.read_text())["notebooks"] if written.exists() else {}
        if "interrupted" in {result["status"] for result in results.values()}:
            break
    else:
        pytest.fail(f"no notebook was interrupted: {results}")
    assert code == 130 and "Traceback" not in place.log, place.log
    assert "give the same command again" in place.log and (place.out / "index.html").exists()
    faults.recovers(place, killed_reference)


# ---- disks


def refused_for_the_disk(place: Place, code: int) -> None:
    """The run ended with a message that names the disk, and its fix."""
    text = place.log.lower()
    assert code in (1, 2) and "disk" in text and "fix: " in text, place.log


@pytest.mark.parametrize("part", [0.5] if not FULL else [0.05, 0.3, 0.6, 0.8, 0.95])
def test_a_disk_that_is_full(reference, tmp_path, part):
    if not faults.can_mount(tmp_path / "try"):
        pytest.skip("mounting is not allowed here: files that may not grow are tried instead")
    files = [p for at in (reference.out, reference.store) for p in at.rglob("*") if p.is_file()]
    used = sum(512 * p.stat().st_blocks for p in files)
    with Disk(tmp_path / "disk", int(part * used)) as disk:
        place = Place(tmp_path, reference.command, disk.folder)
        refused_for_the_disk(place, place.run())
        assert "free" in place.log.lower()
        disk.again(f"size={20 * used}")
        faults.recovers(place, reference)


@pytest.mark.parametrize("size", [200_000] if not FULL else [30_000, 200_000])
def test_files_that_may_not_grow(reference, tmp_path, size):
    """Where nothing may be mounted this stands for a full disk or quota: the system refuses to write on."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    place = Place(tmp_path, reference.command)
    refused_for_the_disk(place, place.run(limit=limit))
    faults.recovers(place, reference)


@pytest.mark.parametrize("which", ["out", "store"])
def test_read_only(reference, tmp_path, which):
    mounts = faults.can_mount(tmp_path / "try")
    if not mounts and os.geteuid() == 0:
        pytest.skip("nothing is read-only to root but a disk, and none may be mounted here")
    place = copy_of(reference, tmp_path / "place")
    folder = getattr(place, which)
    if mounts:
        option = "--out" if which == "out" else "--artifacts"
        with Disk(tmp_path / "disk", 1 << 20) as disk:
            disk.again("ro")
            code = place.run(option, str(disk.folder / "below"))
    else:
        folder.chmod(0o555)
        code = place.run()
        folder.chmod(0o755)
    assert code == 2 and "cannot be written to" in place.log and "fix: " in place.log, place.log
    assert "starts" not in place.log, "a kernel was started all the same"
    faults.recovers(place, reference)


# ---- neighbours


def test_two_pipelines_on_one_store(reference, tmp_path):
    place, other = Place(tmp_path, reference.command), tmp_path / "other"
    first = place.start()
    second = Place(tmp_path / "second", reference.command)
    second.store = place.store
    beside = second.start(out=other)
    until = time.monotonic() + 60
    while not (place.out / ".lock").exists() and time.monotonic() < until:
        time.sleep(0.1)
    third = Place(tmp_path / "third", reference.command)
    assert (
        third.run(out=place.out) == 2
        and "another run is writing to this output folder" in third.log
    ), third.log
    codes = place.ended(first), second.ended(beside)
    assert codes == (0, 0), place.log + second.log
    epochs = [
        sorted(re.findall(r"(\S+ \S+ epoch \d+/\d+) ", log))
        for log in (place.log + second.log, reference.log)
    ]
    assert epochs[0] == epochs[1] and epochs[0], "something was trained twice"
    faults.equal(place, reference)
    assert place.report(other) == reference.report()


# ---- bytes


def test_a_flipped_bit_in_every_file_of_every_kind_of_artifact(every_kind, tmp_path):
    place = copy_of(every_kind, tmp_path)
    store, chance, kinds = Store(place.store), random.Random(SEED), {}
    for key in store.keys():
        kinds.setdefault(key.rsplit("-", 1)[0], key)
    for key in kinds.values():
        for path in sorted(p for p in (store.root / key).rglob("*") if p.is_file()):
            whole = path.read_bytes()
            for _ in range(3):
                where = flip(path, chance)
                try:
                    store.find(key)
                    assert path.name == "manifest.json", f"unseen: a bit at {where} of {path}"
                    assert json.loads(path.read_bytes()) == json.loads(whole)
                except ArtifactError as error:
                    assert path.name in str(error) and "made anew" in str(error)
                path.write_bytes(whole)
    for key in store.keys():  # one file of each artifact, at random
        files = [p for p in sorted((store.root / key).rglob("*")) if p.is_file()]
        kept = [p for p in files if p.suffix != ".json" or p.name == "manifest.json"]
        path = chance.choice(kept)
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    code, output = place.verify()
    assert code == 1 and "made anew" in output, output
    assert output.count("damaged  ") == len(store.keys())
    damaged = {key: faults.hashes(store.root / key) for key in store.keys()}
    assert place.run() == 0, place.log
    assert "is damaged and made anew" in place.log
    faults.equal(place, every_kind)
    aside = {key: faults.hashes(store.root / ".damaged" / key) for key in store.set_aside()}
    assert aside == damaged, "what was damaged is kept as it was"


def toy(work: Path, epochs: int):
    """A small training with a checkpoint; its weights."""
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 4)
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    training.fit(
        {"model": model},
        lambda batch, progress: {"loss": model(batch[0]).square().mean()},
        training.TensorBatches((x,), 16),
        training.TrainConfig(epochs=epochs, batch_size=16, lr=1e-2),
        checkpoint=work / "checkpoint",
    )
    return model.weight.detach().clone()


def test_a_flipped_bit_in_a_checkpoint(tmp_path, capsys):
    """Wherever it lies: the training starts anew, or the bit meant nothing; it never goes on with other weights."""
    whole, chance, seen = toy(tmp_path / "whole", 3), random.Random(SEED), 0
    toy(tmp_path / "broken", 2)
    kept = (tmp_path / "broken" / "checkpoint" / "checkpoint.pt").read_bytes()
    for _ in range(200):
        shutil.rmtree(tmp_path / "broken")
        path = tmp_path / "broken" / "checkpoint" / "checkpoint.pt"
        path.parent.mkdir(parents=True)
        path.write_bytes(kept)
        flip(path, chance)
        with suppress(WorkbenchError):
            assert torch.equal(toy(tmp_path / "broken", 3), whole)
        seen += "is damaged" in capsys.readouterr().out
    assert seen > 20


def test_a_flipped_bit_in_the_work_of_a_stage_that_was_broken_off(tmp_path):
    """What a killed making left, as images and targets are, is looked at before it goes on."""
    store = Store(tmp_path / "store")
    # After the first file; not in its code, which is part of the key.
    stops = [True, False, False]

    def parts(work):
        for name in ("a", "b"):
            if name not in artifacts.whole_files(work):
                (work / name).write_text(f"content of {name}")
                artifacts.note_whole(work, work / name)
            if stops.pop(0):
                raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        store.get_or_make("parts", {}, parts)
    flip(store.root / f"{store.unfinished()[0]}.partial" / "a", random.Random(SEED))
    made = store.get_or_make("parts", {}, parts)
    assert (made.path / "a").read_text() == "content of a"
    assert store.verify() == [(made.key, None)]
    assert store.set_aside() == [f"{made.key}.partial"]


# ---- half written


def test_a_notebook_that_is_cut_off_is_refused_by_name(tmp_path):
    source = (faults.ROOT / "notebooks" / "35_ablation.ipynb").read_bytes()
    for number, part in enumerate((0.0, 0.01, 0.3, 0.5, 0.9, 0.999)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "35_ablation.ipynb").write_bytes(source[: int(part * len(source))])
        with pytest.raises(WorkbenchError, match="35_ablation.ipynb"):
            pipeline.make_plan("smoke", notebooks=folder)


def test_results_that_are_cut_off(reference, tmp_path):
    place, cut = copy_of(reference, tmp_path), []
    for path in sorted(p for p in place.out.rglob("*") if p.is_file() and p.name != ".lock"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        cut.append(path.name)
    for left in (
        "results.json.99999.tmp",
        "metrics/35_ablation.json.99999.tmp",
        "index.html.99999.tmp",
        ".probe-99999",
    ):
        (place.out / left).write_text('{"notebooks": {"35')
    faults.recovers(place, reference)


# ---- memory, hanging


def test_a_kernel_that_runs_out_of_memory(reference, tmp_path):
    """No more address space for a kernel in the middle of its training, as a limit of a batch system gives."""
    place = Place(tmp_path, reference.command)
    last = []

    def blow(process, processes):
        until = time.monotonic() + 100
        while not place.begun() and time.monotonic() < until:  # a training, not the start of Python
            time.sleep(0.05)
        for kernel in faults.kernels(faults.tree(process.pid)):
            kernel.rlimit(psutil.RLIMIT_AS, (kernel.memory_info().vms, psutil.RLIM_INFINITY))
            last.append(kernel.pid)

    code = strike(place, 0.2 * reference.seconds, blow)
    assert last and code == 1 and "fix:" in place.log and "35_ablation failed" in place.log, (
        place.log
    )
    assert "memory" in place.log.partition("35_ablation failed")[2], place.log
    faults.recovers(place, reference)


HANGING = {
    "10_waits": ["import threading; threading.Event().wait()"],
    "20_stopped": [
        "import os, signal, subprocess; subprocess.Popen(['sleep', '600'])",
        "os.kill(os.getpid(), signal.SIGSTOP)",
    ],
    "25_full": [
        "import resource\nspace = 2 * 10**9\nresource.setrlimit(resource.RLIMIT_AS, (space, space))",
        "many = bytearray(10**10)",
    ],
    "30_busy": ["import time\nend = time.monotonic() + 27\nwhile time.monotonic() < end: pass"],
    "40_talks": ["import time\nfor i in range(9): time.sleep(3); print(i)"],
}


def test_a_kernel_that_hangs_is_ended_and_the_others_go_on(tmp_path):
    notebooks = write_notebooks(tmp_path / "notebooks", HANGING)
    plan = pipeline.make_plan(
        "smoke",
        out=str(tmp_path / "out"),
        artifacts=str(tmp_path / "store"),
        notebooks=notebooks,
        jobs=5,
        hung=0.3,
    )
    results = pipeline.run(plan, lambda line: None)["notebooks"]
    assert {n: r["status"] for n, r in results.items()} == {
        "10_waits": "failed",
        "20_stopped": "failed",
        "25_full": "failed",
        "30_busy": "succeeded",
        "40_talks": "succeeded",
    }
    for name in ("10_waits", "20_stopped"):
        assert "hung and was ended: for 0.3 min" in results[name]["error"]
        assert "--hung" in results[name]["error"]
    assert results["25_full"]["error"].startswith("MemoryError")
    assert "fix: set a smaller batch" in results["25_full"]["error"]
