"""Which stage read which real images, how many, and for what; refuses what a stage did not declare.

"Data-free" is a claim about reading. A stage declares the real splits it may read and the purpose of each; any other
read raises: through the library (the pixels of a real set, and of a set that was made of them, see `core.origin`), or
round it (files opened by Python, under another name and moved too; files that are open or mapped already when a stage
begins; processes; the readers of `READERS`, which are not written in Python). Code that means to get past this can. What a store
makes it makes where the kernel keeps undeclared files from it, as far as the machine does that; see `core.isolation`.
"""

import importlib.util
import os
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from stat import S_ISREG
from typing import Any
from unittest import mock

import numpy as np

from dfkd_lib.core import isolation, starts
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
# Split -> why it is read; of one that is read for several purposes: purpose -> the places of its images, int (n,).
Reads = Mapping[str, str | Mapping[str, np.ndarray]]


class LedgerError(WorkbenchError):
    """A stage touched real data that it did not declare."""


@dataclass
class Stage:
    """One declared stage: its name, the splits it may read with the purpose of each, and what it has read so far."""

    name: str
    reads: Reads
    seen: dict[str, np.ndarray] = field(default_factory=dict)
    guard: str = WATCHED

    def entries(self) -> list[dict]:
        """One row for each purpose of a declared split: stage, split, purpose, and the number of distinct images read.

        Images of a split with several purposes that are of none of them count for the first.
        """
        rows = []
        for split, purposes in sorted(self.reads.items()):
            seen = self.seen.get(split, np.empty(0, np.int64))
            counts = {purposes: len(seen)} if isinstance(purposes, str) else _counts(seen, purposes)
            rows += [
                {"stage": self.name, "split": split, "purpose": purpose, "images": images}
                for purpose, images in counts.items()
            ]
        return rows

    @property
    def learns(self) -> bool:
        """Whether it reads real images for more than evaluation."""
        return any(purpose != EVALUATION for why in self.reads.values() for purpose in _names(why))

    def may_read(self, split: str | None) -> bool:
        """Whether files of a split, of "name/*" one of whose splits, or of no real data (None) may be opened."""
        if split is not None and split.endswith("/*"):
            return any(one.startswith(split[:-1]) for one in self.reads)
        return split is None or split in self.reads

    def refuse(self, what: str, split: str, where: object = None, fix: str = "") -> None:
        declared = ", ".join(f"{s} ({', '.join(_names(p))})" for s, p in sorted(self.reads.items()))
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


def _names(purposes: str | Mapping[str, np.ndarray]) -> list[str]:
    return [purposes] if isinstance(purposes, str) else list(purposes)


def _counts(seen: np.ndarray, purposes: Mapping[str, np.ndarray]) -> dict[str, int]:
    """How many of the places seen (n,) are of each purpose; those of none, of the first."""
    counts = {purpose: int(np.isin(seen, places).sum()) for purpose, places in purposes.items()}
    others = ~np.isin(seen, np.concatenate([*purposes.values()]))
    counts[next(iter(counts))] += int(others.sum())
    return counts


_active: Stage | None = None
# File or folder -> its split, UNKNOWN, or None where nothing is real.
_places: dict[str, str | None] = {}
_links: dict[tuple[int, int], str | None] | None = None


@contextmanager
def stage(name: str, reads: Reads | None = None) -> Iterator[Stage]:
    """Declare a stage and the real splits it may read, as {split: purpose}; yields the `Stage` that counts them.

    Args:
        reads: of a split with several purposes {purpose: places of its images}, so that each counts its own.

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
        with _watched_readers(), _watched_starts(began):
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


def _watched_starts(stage: Stage) -> AbstractContextManager:
    """Watch the starts that have no audit event; what a server of before forks, nothing watches, nor the kernel restricts."""

    def refuse() -> None:
        fix = 'start the process before the stage, or with the method "spawn" or "fork"'
        stage.refuse("what a process reads that multiprocessing's server forks", "it runs", fix=fix)

    def check(words: list[str], folder: str) -> None:
        if _active is stage:  # not of a reference that outlives it
            _check_process(stage, words, folder)

    return starts.watched(check, None if stage.learns else refuse)


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
    if stage.learns or stage.guard == ISOLATED or starts.harmless(words) or _of_library(words):
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


def _placed(path: Any, folder: int) -> str:
    """Where a name is that is moved, itself a link perhaps, in the working folder or that of a descriptor."""
    path = os.fsdecode(path)
    if folder >= 0 and not os.path.isabs(path):
        with suppress(OSError):
            path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
    above, name = os.path.split(path.rstrip("/"))
    return os.path.join(os.path.realpath(above), name)


def _follow_move(old: Any, new: Any, old_folder: int = -1, new_folder: int = -1) -> None:
    """Real data that is moved stays real; raise if the stage may not read it, and might where it is moved to."""
    old, new = _placed(old, old_folder), _placed(new, new_folder)
    below = f"{old}/"
    real = {place: split for place, split in _places.items() if place.startswith(below)}
    real = {place: split for place, split in {old: _split_of(old), **real}.items() if split}
    moved = {}
    for place, split in real.items():
        there = _split_of(to := new + place[len(old) :])
        if _active is not None and not _active.may_read(split) and _active.may_read(there):
            _active.refuse("a file of real data that it moves", f"{place} ({split})")
        if there is None or split not in (UNKNOWN, there):
            moved[to] = split
    _register(moved)


def _follow_link(old: Any, new: Any, old_folder: int = -1, new_folder: int = -1) -> None:
    """Real data that gets another name is known by it; raise if the stage may not read it."""
    old = os.path.realpath(_placed(old, old_folder))
    if _active is not None:
        _active.check(old)
    split = _split_of(old)
    if split is not None and _links is not None:
        with suppress(OSError):
            found = os.stat(old)
            _links[found.st_dev, found.st_ino] = split


FOLLOWED = {"os.rename": _follow_move, "os.link": _follow_link}


def _audit(event: str, args: tuple) -> None:
    if _active is None:
        if event in FOLLOWED:
            FOLLOWED[event](*args)
        return
    if event == "open":
        path, mode, flags = (*args, None, None, None)[:3]
        written = isinstance(mode, str) and not set(mode) & set("r+")
        if isinstance(flags, int):
            written = written or flags & os.O_ACCMODE == os.O_WRONLY
        if isinstance(path, (str, bytes)) and not written:
            _active.check(path)
    elif event in FOLLOWED:
        FOLLOWED[event](*args)
    elif event in starts.STARTS:
        _check_process(_active, *starts.described(*starts.STARTS[event](args)))


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
