"""Every way past the ledger that is known: each raises in a stage that has not declared the data."""

import ctypes
import gzip
import multiprocessing
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from multiprocessing import forkserver, resource_tracker, shared_memory
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from dfkd_lib.core import Store, isolation, ledger
from dfkd_lib.core.ledger import LedgerError
from dfkd_lib.datasets import ImageSet, SceneSet, load_images

ROOT = Path(__file__).parents[2]
MNIST = ROOT / "data" / "mnist"
NAMES = "train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz"
needs_landlock = pytest.mark.skipif(isolation._version() < 2, reason="the kernel has no landlock")


@pytest.fixture
def real() -> ImageSet:
    pixels = torch.randint(0, 256, (6, 1, 4, 4), dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(6) % 2, ("a", "b"), split="ways/train")


@pytest.fixture
def photo(tmp_path) -> Path:
    """A real image file of a registered folder."""
    folder = tmp_path / "photos" / "train"
    folder.mkdir(parents=True)
    pixels = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    torchvision.io.write_png(pixels, str(folder / "0.png"))
    ledger.register_files({folder: "photos/train"})
    return folder / "0.png"


def test_pixels_of_a_real_set_count(real):
    with ledger.stage("s", {"ways/train": "training"}) as seen:
        real.pixels
    assert seen.entries()[0]["images"] == 6
    with pytest.raises(LedgerError, match="ways/train"), ledger.stage("data-free"):
        real.pixels
    with ledger.stage("data-free"):
        assert len(real) == 6 and real.shape == (1, 4, 4) and len(real.fingerprint) == 16


@pytest.mark.parametrize(
    ("again", "places"),
    [
        (lambda pixels: pixels, range(6)),
        (lambda pixels: pixels[2:5], (2, 3, 4)),
        (lambda pixels: pixels[::2], (0, 2, 4)),
        (lambda pixels: pixels.clone(), range(6)),
        (lambda pixels: pixels[torch.tensor([5, 1])], (5, 1)),
        (lambda pixels: torch.from_numpy(pixels.numpy().copy()), range(6)),
        (lambda pixels: torch.cat([pixels[3:4], 255 - pixels[:1]]), (3, -1)),
    ],
    ids=["itself", "slice", "stride", "clone", "chosen", "numpy", "mixed"],
)
def test_a_set_made_of_real_pixels_is_real(real, again, places):
    pixels = again(real.pixels)
    labels = torch.zeros(len(pixels), dtype=torch.long)
    wrapped = ImageSet(pixels, labels, real.classes)
    assert wrapped.split == "ways/train" and wrapped.places.tolist() == list(places)
    with pytest.raises(LedgerError, match="ways/train"), ledger.stage("data-free"):
        wrapped.images


def test_other_images_of_the_same_shape_stay_free(real):
    other = ImageSet(255 - real.pixels, real.labels, real.classes)
    blank = ImageSet(torch.zeros_like(real.pixels), real.labels, real.classes)
    assert other.split is None and blank.split is None


@pytest.mark.parametrize(
    ("again", "places"),
    [
        (lambda pixels: pixels.flip(-1), range(6)),
        (lambda pixels: torch.cat([pixels[4:].flip(-1), pixels[:1]]), (4, 5, 0)),
        (lambda pixels: pixels.repeat(1, 3, 1, 1), range(6)),
        (lambda pixels: pixels[1:].repeat(1, 3, 1, 1).flip(-1), range(1, 6)),
    ],
    ids=["mirrored", "some mirrored", "as RGB", "mirrored as RGB"],
)
def test_mirrored_images_and_grey_ones_as_rgb_are_real(real, again, places):
    pixels = again(real.pixels)
    wrapped = ImageSet(pixels, torch.zeros(len(pixels), dtype=torch.long), real.classes)
    assert wrapped.split == "ways/train" and wrapped.places.tolist() == list(places)
    other = ImageSet(255 - real.pixels.repeat(1, 3, 1, 1), real.labels, real.classes)
    assert other.split is None


def test_copies_of_a_real_set_are_known_when_its_tensor_is_gone(real):
    copy, labels, classes = real.pixels[[4, 2]], real.labels[:2], real.classes
    vars(real).clear()
    wrapped = ImageSet(copy, labels, classes)
    assert wrapped.split == "ways/train" and wrapped.places.tolist() == [4, 2]


def test_large_images_are_known_by_pieces_only_where_these_tell_them_apart():
    photos = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    dots = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    dots[0, 0, 1, 1] = dots[1, 0, 1, 2] = 255
    labels = torch.tensor([0, 1])
    ImageSet(torch.cat([photos, dots[:1]]), torch.tensor([0, 1, 0]), ("a", "b"), split="ways/large")
    assert ImageSet(photos.clone(), labels, ("a", "b")).split == "ways/large"
    mixed = ImageSet(dots, labels, ("a", "b"))
    assert mixed.split == "ways/large" and mixed.places.tolist() == [2, -1]
    assert ImageSet(dots[1:], labels[:1], ("a", "b")).split is None


def test_images_beside_real_ones_do_not_become_real(real):
    others = 255 - real.pixels
    mixed = ImageSet(torch.cat([real.pixels, others]), real.labels.repeat(2), real.classes)
    assert mixed.subset([0, 6, 7]).places.tolist() == [0, -1, -1]
    assert ImageSet(others.clone(), real.labels, real.classes).split is None


def test_scenes_made_of_real_pixels_are_real():
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    nothing = [torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.long)] * 2, ("a",)
    real = SceneSet(pixels, *nothing, split="ways/scenes")
    wrapped = SceneSet(real.pixels.clone(), *nothing)
    for scenes in (real, wrapped):
        with pytest.raises(LedgerError, match="ways/scenes"), ledger.stage("data-free"):
            scenes.pixels


@pytest.mark.parametrize(
    "read",
    [
        "import gzip; gzip.open(path).read()",
        "import numpy as np; np.memmap(path, np.uint8, 'r')",
        "import numpy as np; np.fromfile(path, np.uint8)",
        "import sklearn.datasets as data; data.load_digits()",
    ],
    ids=["gzip", "memmap", "fromfile", "digits"],
)
def test_data_is_known_before_anything_is_loaded(read):
    code = f"""
        from dfkd_lib.core import ledger
        path = {str(MNIST / NAMES[0])!r}
        with ledger.stage("data-free"):
            {read}
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode and "LedgerError" in done.stderr, done.stderr


@pytest.mark.parametrize(
    "start",
    [
        lambda path: subprocess.run(["cat", path], capture_output=True),
        lambda path: subprocess.run(f"gzip -dc '{path}'", shell=True, capture_output=True),
        lambda path: subprocess.run([sys.executable, "-c", f"open({str(path)!r}).read()"]),
        lambda path: subprocess.run(["cat", path.name], cwd=path.parent, capture_output=True),
        lambda path: os.system(f"cat {path}"),
        lambda path: os.posix_spawn("/bin/cat", ["cat", str(path)], {}),
        lambda path: os.execv("/bin/cat", ["cat", str(path)]),
        lambda path: subprocess.run([sys.executable, "-c", "print(1)"]),
    ],
    ids=["argument", "shell", "code", "folder", "system", "spawn", "exec", "unknown program"],
)
def test_a_process_that_could_read_raises(start, photo):
    with pytest.raises(LedgerError), ledger.stage("data-free"):
        start(photo)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_process_of_multiprocessing_that_could_read_raises(method):
    process = multiprocessing.get_context(method).Process(target=len, args=("",))
    with pytest.raises(LedgerError, match="multiprocessing"), ledger.stage("data-free"):
        process.start()


def test_a_server_of_before_forks_for_no_data_free_stage():
    context = multiprocessing.get_context("forkserver")
    forkserver.ensure_running()
    try:
        with pytest.raises(LedgerError, match="server"), ledger.stage("data-free"):
            context.Process(target=len, args=("",)).start()
        with ledger.stage("s", {"ways/train": "training"}):
            started(context)
    finally:
        forkserver._forkserver._stop()


def started(context) -> None:
    process = context.Process(target=len, args=("",))
    process.start()
    process.join()
    assert process.exitcode == 0


def test_processes_of_multiprocessing_that_may_run():
    with ledger.stage("s", {"ways/train": "training"}):
        started(multiprocessing.get_context("spawn"))
    resource_tracker._resource_tracker._stop()
    with ledger.stage("data-free"):  # starts the process that tidies up
        memory = shared_memory.SharedMemory(create=True, size=8)
        memory.close()
        memory.unlink()
        started(multiprocessing.get_context("fork"))
    started(multiprocessing.get_context("spawn"))


def test_compilers_and_questions_about_the_machine_may_run():
    with ledger.stage("data-free"):
        assert subprocess.run(["uname"], capture_output=True).returncode == 0


def test_a_process_of_a_stage_that_learns_from_declared_images_may_run(photo):
    with ledger.stage("s", {"photos/train": "training"}):
        assert subprocess.run(["cat", photo], capture_output=True).returncode == 0


@pytest.mark.parametrize(
    "read",
    [
        lambda path: torch.from_file(str(path), size=4, dtype=torch.uint8),
        lambda path: torch.UntypedStorage.from_file(str(path), False, 4),
        lambda path: torchvision.io.read_image(str(path)),
        lambda path: torchvision.io.read_file(str(path)),
    ],
    ids=["torch.from_file", "storage", "torchvision.io.read_image", "torchvision.io.read_file"],
)
def test_readers_that_are_not_pythons_raise(read, photo):
    with pytest.raises(LedgerError, match="photos/train"), ledger.stage("data-free"):
        read(photo)
    read(photo)  # as before


def test_a_hard_link_is_the_file(photo, tmp_path):
    os.link(photo, tmp_path / "innocent.png")
    with pytest.raises(LedgerError, match="photos/train"), ledger.stage("data-free"):
        open(tmp_path / "innocent.png", "rb")
    with pytest.raises(LedgerError, match="photos/train"), ledger.stage("data-free"):
        os.link(photo, tmp_path / "another.png")


@pytest.mark.parametrize("move", [os.rename, os.replace, shutil.move, Path.rename])
def test_real_data_stays_real_where_it_is_moved(move, photo, tmp_path):
    for old in (photo, photo.parent, photo.parent.parent):
        with pytest.raises(LedgerError, match="photos/train"), ledger.stage("data-free"):
            move(old, tmp_path / "moved")
    move(photo, tmp_path / "innocent.png")
    move(photo.parent.parent, tmp_path / "folder")
    (tmp_path / "folder" / "train" / "1.png").write_bytes(b"pixels")
    for place in ("innocent.png", "folder/train/1.png"):
        with pytest.raises(LedgerError, match="photos/train"), ledger.stage("data-free"):
            open(tmp_path / place, "rb")
    with ledger.stage("s", {"photos/train": "training"}):
        move(tmp_path / "innocent.png", tmp_path / "declared.png")
        assert (tmp_path / "declared.png").read_bytes()


def test_what_a_stage_writes_it_may_rename(photo, tmp_path):
    (tmp_path / "root" / "free").mkdir(parents=True)
    ledger.register_root(tmp_path / "root", free=("free",))
    with ledger.stage("data-free"):
        for folder in (tmp_path, tmp_path / "root", tmp_path / "root" / "free"):
            (folder / "a.tmp").write_text("a")
            os.replace(folder / "a.tmp", folder / "a")
        assert (tmp_path / "root" / "free" / "a").read_text() == "a"


def test_other_hard_links_are_free(tmp_path):
    (tmp_path / "a").write_text("a")
    os.link(tmp_path / "a", tmp_path / "b")
    with ledger.stage("data-free"):
        assert (tmp_path / "b").read_text() == "a"


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="shown by Linux alone")
@pytest.mark.parametrize(
    "open_it", [lambda path: open(path, "rb"), lambda path: np.memmap(path, np.uint8, "r")]
)
def test_an_earlier_handle_is_seen(open_it, photo):
    held = open_it(photo)
    with pytest.raises(LedgerError, match="open, or mapped"), ledger.stage("data-free"):
        held[:4] if isinstance(held, np.ndarray) else held.read()
    del held


@pytest.fixture
def elsewhere(monkeypatch, tmp_path) -> Path:
    """Real data outside of the folder of temporary files, all that is known of any."""
    places = {str(MNIST / name): f"mnist/{name.partition('-')[0]}" for name in NAMES}
    monkeypatch.setattr(ledger, "_places", places)
    monkeypatch.setattr(ledger, "_links", None)
    return tmp_path


def test_a_link_made_between_stages_is_the_file(elsewhere, photo):
    assert not ledger._inodes()  # looked for by the stage before
    os.link(photo, elsewhere / "innocent.png")
    with pytest.raises(LedgerError, match="photos/train"), ledger.stage("data-free"):
        open(elsewhere / "innocent.png", "rb")


def made(folder: Path, make, reads=None) -> dict:
    return Store(folder / "store").get_or_make("s", {}, make, reads=reads).manifest


@needs_landlock
def test_what_a_store_makes_cannot_see_the_data(elsewhere):
    """Neither a reader in C++ that nothing watches nor a process that does not name the file."""
    path, found = MNIST / NAMES[0], {}
    (elsewhere / "hidden.txt").write_text(str(path))
    command = f"cat $(cat {elsewhere / 'hidden.txt'}) > {elsewhere / 'copy'}"

    def make(work):
        with pytest.raises(RuntimeError):
            torch.ops.image.read_file(str(path))
        found["process"] = subprocess.run(command, shell=True, capture_output=True).returncode
        (work / "a.txt").write_text((elsewhere / "hidden.txt").read_text())

    assert made(elsewhere, make)["guard"] == ledger.ISOLATED and found["process"] != 0
    assert gzip.open(path).read(4)  # the process goes on as before


@needs_landlock
def test_a_refusal_of_the_kernel_is_the_ledgers(elsewhere):
    read, path = torch.from_file, str(MNIST / NAMES[0])  # under a name that nothing watches
    with pytest.raises(LedgerError, match=NAMES[0]):
        made(elsewhere, lambda work: read(path, size=4, dtype=torch.uint8) and None)


@needs_landlock
def test_declared_files_are_seen(elsewhere):
    def make(work):
        return {"bytes": len(torch.ops.image.read_file(str(MNIST / NAMES[1])))}

    manifest = made(elsewhere, make, {"mnist/t10k": ledger.EVALUATION})
    assert manifest["guard"] == ledger.ISOLATED and manifest["metrics"]["bytes"] > 1e6


@needs_landlock
def test_work_apart_returns_raises_and_is_interrupted_as_here(elsewhere):
    def denied(work):
        raise PermissionError(13, "Permission denied", "/somewhere/else")

    assert made(elsewhere, lambda work: {"a": 1})["metrics"] == {"a": 1}
    with pytest.raises(ZeroDivisionError):
        made(elsewhere, lambda work: 1 / 0)
    with pytest.raises(PermissionError):
        made(elsewhere, denied)

    def slow(work):
        threading.Timer(0.1, interrupt).start()
        while True:
            time.sleep(0.01)

    main = ctypes.c_ulong(threading.get_ident())

    def interrupt() -> None:
        """As Ctrl-C, which workers of the test run do not hear."""
        ctypes.pythonapi.PyThreadState_SetAsyncExc(main, ctypes.py_object(KeyboardInterrupt))

    with pytest.raises(KeyboardInterrupt):
        made(elsewhere, slow)


def test_a_stage_that_learns_and_a_kernel_without_landlock_are_guarded(elsewhere, monkeypatch):
    reads = {"toy/train": "training"}
    assert made(elsewhere, lambda work: None, reads)["guard"] == ledger.WATCHED
    monkeypatch.setattr(isolation, "_version", lambda: 0)
    assert made(elsewhere, lambda work: None)["guard"] == ledger.WATCHED


def test_a_second_name_of_real_data_or_too_many_files_are_not_isolated(elsewhere, monkeypatch):
    (elsewhere / "0.bin").write_bytes(b"pixels")
    os.link(elsewhere / "0.bin", elsewhere / "1.bin")
    ledger.register_files({elsewhere / "0.bin": "linked/train"})
    assert made(elsewhere, lambda work: None)["guard"] == ledger.WATCHED
    (elsewhere / "1.bin").unlink()
    monkeypatch.setattr(ledger, "_links", None)
    monkeypatch.setattr(ledger, "MOST_FILES", 1)
    assert made(elsewhere / "other", lambda work: None)["guard"] == ledger.WATCHED


def test_the_shipped_data_is_declared_as_before():
    with ledger.stage("s", {"digits/test": ledger.EVALUATION}) as seen:
        load_images("digits", "test").images
    assert seen.entries()[0]["images"] == 360
