"""Which stage read which real images, how many, and for what; refuses what a stage did not declare.

"Data-free" is a claim about reading. A stage declares the real splits it may read and the purpose of each; any other
read raises: through the library (the pixels of a real set, and of a set that was made of them, see `core.origin`), or
round it (files opened by Python, under another name too; files that are open or mapped already when a stage begins;
processes; the readers of `READERS`, which are not written in Python). Code that means to get past this can. What a store
makes it makes where the kernel keeps undeclared files from it, as far as the machine does that; see `core.isolation`.
"""

import importlib.util
import os
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from stat import S_ISREG
from typing import Any
from unittest import mock

import numpy as np

from dfkd_lib.core import isolation
from dfkd_lib.core.errors import WorkbenchError

EVALUATION = "evaluation"
NOT_RECORDED = "not recorded"  # the split that a checkpoint from elsewhere was trained on
UNKNOWN = "?"  # the split of real data that belongs to no registered one
ISOLATED, WATCHED = "isolated", "guarded against accidents"  # what a certificate says of a stage
GUARDS = {
    ISOLATED: "the kernel kept every file of real data that it did not declare from it and from what it started",
    WATCHED: "Python's reads and what it starts are watched, which stops accidents and not intent",
}
# Functions that open files without Python: (module, attributes). Those that are imported are watched during a stage.
READERS = (
    ("torch", "from_file"),
    ("torch", "UntypedStorage.from_file"),
    ("torchvision.io", "read_file"),
    ("torchvision.io", "read_image"),
    ("torchvision.io", "decode_image"),
    ("torchvision.io.image", "read_file"),
    ("torchvision.io.image", "read_image"),
    ("torchvision.io.image", "decode_image"),
    ("cv2", "imread"),
)
MOST_FILES = 50_000  # whose other names are looked for: each takes a call of the file system
# Programs that a stage may start where nothing keeps files from them: compilers, and questions about the machine.
TOOLS = set(
    "ar as c++ cc cl clang clang++ cuobjdump fc-list file g++ gcc git hipcc ld ldconfig lscpu ninja nvcc nvdisasm nvidia-smi objdump "
    "ptxas rocm-smi sw_vers sysctl uname which xcrun".split()
)


class LedgerError(WorkbenchError):
    """A stage touched real data that it did not declare."""


@dataclass
class Stage:
    """One declared stage: its name, the splits it may read with the purpose of each, and what it has read so far."""

    name: str
    reads: dict[str, str]
    seen: dict[str, np.ndarray] = field(default_factory=dict)
    guard: str = WATCHED

    def entries(self) -> list[dict]:
        """One row for each declared split: stage, split, purpose, and the number of distinct images read."""
        return [
            {
                "stage": self.name,
                "split": split,
                "purpose": purpose,
                "images": len(self.seen.get(split, ())),
            }
            for split, purpose in sorted(self.reads.items())
        ]

    @property
    def learns(self) -> bool:
        """Whether it reads real images for more than evaluation."""
        return any(purpose != EVALUATION for purpose in self.reads.values())

    def may_read(self, split: str | None) -> bool:
        """Whether files of a split, of "name/*" one of whose splits, or of no real data (None) may be opened."""
        if split is not None and split.endswith("/*"):
            return any(one.startswith(split[:-1]) for one in self.reads)
        return split is None or split in self.reads

    def refuse(self, what: str, split: str, where: object = None, fix: str = "") -> None:
        declared = ", ".join(f"{s} ({p})" for s, p in sorted(self.reads.items()))
        raise LedgerError(
            f"stage '{self.name}' may not read {what}",
            expected=f"it declared: {declared or 'no real data at all'}",
            got=split,
            where=where,
            fix=fix
            or "declare the split in reads={...} if the method really needs it, and the "
            "summary will count it; otherwise give this stage synthetic images",
        )

    def check(self, path: str | bytes | os.PathLike) -> None:
        """Raise if the file is real data that was not declared, under this name or, by a hard link, another."""
        name = os.path.realpath(os.fsdecode(path))
        split = _split_of(name)
        if split is None:
            with suppress(OSError):
                found = os.stat(name)
                if found.st_nlink > 1 and S_ISREG(found.st_mode):
                    split = _inodes().get((found.st_dev, found.st_ino))
        if not self.may_read(split):
            self.refuse("a file of real data", f"{name} ({split})" if split != UNKNOWN else name)

    def run(self, make: Callable[[], Any]) -> Any:
        """`make()`; of a stage that learns from no real image, apart from all files that it may not read, where that
        can be done."""
        if self.learns:
            return make()
        places = {path: self.may_read(split) for path, split in _places.items()}
        # A second name of a file the kernel would show.
        apart = None if _inodes() else isolation.apart_from(places)
        if apart is None:
            return make()
        self.guard = ISOLATED
        try:
            return apart(make)
        except isolation.Unavailable:
            self.guard = WATCHED
            return make()
        except LedgerError:
            raise
        except Exception as error:
            if "ermission denied" not in str(error):
                raise
            hidden = [path for path, may in places.items() if not may and path in str(error)]
            if hidden:
                self.refuse("a file of real data", max(hidden, key=len), error)
            self.guard = WATCHED
            print(f"stage '{self.name}' goes on, {WATCHED} only: it needs {error}", flush=True)
            return make()


_active: Stage | None = None
# File or folder -> its split, UNKNOWN, or None where nothing is real.
_places: dict[str, str | None] = {}
_links: dict[tuple[int, int], str | None] | None = None


@contextmanager
def stage(name: str, reads: dict[str, str] | None = None) -> Iterator[Stage]:
    """Declare a stage and the real splits it may read, as {split: purpose}; yields the `Stage` that counts them.

    Raises:
        LedgerError: on any undeclared real read inside; where a file that it may not read is open already; and when
            stages are nested (a data-free stage could otherwise fetch its images through another).
    """
    global _active
    if _active is not None:
        raise LedgerError(
            f"stage '{name}' was started inside stage '{_active.name}'",
            expected="one stage at a time",
            fix="make what this stage needs before it starts and pass it in",
        )
    began = Stage(name, dict(reads or {}))
    for path in isolation.open_files():
        if not began.may_read(_split_of(path)):
            began.refuse("a file that is open, or mapped, already", path, fix="close it first")
    _active = began
    try:
        with _watched_readers():
            yield began
    finally:
        _active = None


def read(split: str, indices: np.ndarray) -> None:
    """Count real images `indices` (int, (n,), places within the split) as read by the active stage, or raise."""
    if _active is None:
        return
    if split not in _active.reads:
        _active.refuse("real images", split)
    before = _active.seen.get(split)
    _active.seen[split] = np.unique(indices) if before is None else np.union1d(before, indices)


def register_files(paths: dict[str | Path, str]) -> None:
    """These files or folders hold real images of these splits; "name/*": of all splits of a name."""
    _register({os.path.realpath(path): split for path, split in paths.items()})


def register_root(folder: str | Path, free: tuple[str, ...] = ()) -> None:
    """Everything below `folder` is real data, but for the sub-folders named in `free`."""
    root = os.path.realpath(folder)
    new: dict[str, str | None] = {os.path.join(root, name): None for name in free} | {root: UNKNOWN}
    _register({path: split for path, split in new.items() if path not in _places})


def register_free(folder: str | Path) -> None:
    """`folder` holds no real data, wherever it lies (a store of artifacts)."""
    _register({os.path.realpath(folder): None})


def _register(places: dict[str, Any]) -> None:
    global _links
    if places.items() - _places.items():
        _places.update(places)
        _links = None


def _split_of(path: str) -> str | None:
    """The split of the innermost registered folder that a file is in, or of the file itself."""
    while path not in _places:
        above = os.path.dirname(path)
        if above == path:
            return None
        path = above
    return _places[path]


def _files() -> Iterator[str]:
    """Every file of real data."""
    for place in [path for path, split in _places.items() if split is not None]:
        if os.path.isfile(place):
            yield place
        for folder, inner, names in os.walk(place):
            # What lies in another registered place is that one's.
            inner[:] = [name for name in inner if os.path.join(folder, name) not in _places]
            yield from (os.path.join(folder, name) for name in names)


def _inodes() -> dict[tuple[int, int], str | None]:
    """{(device, inode): split} of all files of real data that have several names; found once for the places known.

    Of very many files not all are looked at; an entry of no file then stands for the others.
    """
    global _links
    if _links is None:
        _links = {}
        for count, file in enumerate(_files()):
            if count == MOST_FILES:
                _links[0, 0] = UNKNOWN
                break
            with suppress(OSError):
                found = os.stat(file)
                if found.st_nlink > 1 and (split := _split_of(file)) is not None:
                    _links[found.st_dev, found.st_ino] = split
    return _links


@contextmanager
def _watched_readers() -> Iterator[None]:
    """Put a check of the path before the readers of `READERS` whose modules are imported."""
    with ExitStack() as until_then:
        for module, attributes in READERS:
            holder: Any = sys.modules.get(module)
            *inner, name = attributes.split(".")
            for part in inner:
                holder = getattr(holder, part, None)
            if callable(reader := getattr(holder, name, None)):
                until_then.enter_context(mock.patch.object(holder, name, _checked(reader)))
        yield


def _checked(reader: Callable) -> Callable:
    @wraps(reader)
    def checked(*args: Any, **named: Any) -> Any:
        for value in (*args, *named.values()):
            if isinstance(value, (str, bytes, os.PathLike)) and _active is not None:
                _active.check(value)
        return reader(*args, **named)

    return checked


def _check_process(stage: Stage, words: list[str], folder: str) -> None:
    """Raise if a process is to be given real data, or is one that nothing would watch in a stage that learns from none."""
    parts = [part for word in words for part in (word, *re.findall(r"[^\s'\"=:;,()<>|&]+", word))]
    for part in dict.fromkeys(parts):
        with suppress(ValueError):  # of what cannot be a path
            stage.check(os.path.join(folder, part))
    program = Path(words[0]).stem if words else ""
    if stage.learns or stage.guard == ISOLATED or program in TOOLS or _of_library(words):
        return
    stage.refuse(
        "what a process reads that it starts",
        " ".join(words)[:200],
        fix="start it before the stage and pass in what it gives; a stage that a store makes may start it where the "
        "kernel has landlock",
    )


def _of_library(words: list[str]) -> bool:
    """Whether Python is to run a file of an installed library (a compiler's worker), or of the store (a package)."""
    if len(words) < 2 or not os.path.basename(words[0]).startswith("python"):
        return False
    script = os.path.realpath(words[1])
    above = [os.path.dirname(script)]
    while above[-1] not in _places and os.path.dirname(above[-1]) != above[-1]:
        above.append(os.path.dirname(above[-1]))
    in_store = above[-1] in _places and _places[above[-1]] is None
    return in_store or sysconfig.get_paths()["purelib"] in map(str, Path(script).parents)


def _audit(event: str, args: tuple) -> None:
    if _active is None:
        return
    if event == "open":
        path, mode, flags = (*args, None, None, None)[:3]
        written = isinstance(mode, str) and not set(mode) & set("r+")
        if isinstance(flags, int):
            written = written or flags & os.O_ACCMODE == os.O_WRONLY
        if isinstance(path, (str, bytes)) and not written:
            _active.check(path)
    elif event == "os.link":
        _active.check(args[0])
    elif event in STARTS:
        program, words, folder = STARTS[event](args)
        words = [words] if isinstance(words, (str, bytes)) else list(words or ())
        words = [os.fsdecode(program), *map(os.fsdecode, words[1:])] if words else []
        _check_process(_active, words, os.fsdecode(folder or "."))


# Audit event -> (program, words with its name first, folder or None) of what is started.
STARTS: dict[str, Callable[[tuple], tuple]] = {
    "subprocess.Popen": lambda args: args[:3],
    "os.exec": lambda args: (args[0], args[1], None),
    "os.posix_spawn": lambda args: (args[0], args[1], None),
    "os.spawn": lambda args: (args[1], args[2], None),
    "os.system": lambda args: ("sh", ["sh", args[0]], None),
}


def _register_known() -> None:
    """What is known to be real before anything is loaded: the data folder, and what comes with a library."""
    register_root(Path(__file__).resolve().parents[2] / "data", free=("artifacts", "teachers"))
    for cache in ("~/scikit_learn_data", "~/.keras/datasets", "~/.cache/huggingface/datasets"):
        register_root(Path(cache).expanduser())
    sklearn = importlib.util.find_spec("sklearn")
    if sklearn is not None and sklearn.origin:
        # One file holds both splits.
        digits = Path(sklearn.origin).parent / "datasets" / "data" / "digits.csv.gz"
        register_files({digits: "digits/*"})


_register_known()
sys.addaudithook(_audit)
