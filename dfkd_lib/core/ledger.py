"""Which stage read which real images, how many, and for what; refuses what a stage did not declare.

"Data-free" is a claim about reading. A stage declares the real splits it may read and the purpose of each; any other
read raises, whether it goes through the library (an `ImageSet` of a real split) or round it (a file opened directly:
Python's audit hook sees it; readers written in C++ that open files themselves, such as `torchvision.io`, it cannot see).
"""

import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dfkd_lib.core.errors import WorkbenchError

EVALUATION = "evaluation"
NOT_RECORDED = "not recorded"  # the split that a checkpoint from elsewhere was trained on
UNKNOWN = "?"  # the split of real data that belongs to no registered one


class LedgerError(WorkbenchError):
    """A stage touched real data that it did not declare."""


@dataclass
class Stage:
    """One declared stage: its name, the splits it may read with the purpose of each, and what it has read so far."""

    name: str
    reads: dict[str, str]
    seen: dict[str, np.ndarray] = field(default_factory=dict)

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

    def refuse(self, what: str, split: str, where: object = None) -> None:
        declared = ", ".join(f"{s} ({p})" for s, p in sorted(self.reads.items()))
        raise LedgerError(
            f"stage '{self.name}' may not read {what}",
            expected=f"it declared: {declared or 'no real data at all'}",
            got=split,
            where=where,
            fix="declare the split in reads={...} if the method really needs it, and the "
            "summary will count it; otherwise give this stage synthetic images",
        )


_active: Stage | None = None
_places: dict[
    str, str | None
] = {}  # file or folder -> its split, UNKNOWN, or None where nothing is real


@contextmanager
def stage(name: str, reads: dict[str, str] | None = None):
    """Declare a stage and the real splits it may read, as {split: purpose}; yields the `Stage` that counts them.

    Raises:
        LedgerError: on any undeclared real read inside, and when stages are nested (a data-free stage could otherwise
            fetch its images through another).
    """
    global _active
    if _active is not None:
        raise LedgerError(
            f"stage '{name}' was started inside stage '{_active.name}'",
            expected="one stage at a time",
            fix="make what this stage needs before it starts and pass it in",
        )
    _active = Stage(name, dict(reads or {}))
    try:
        yield _active
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
    """These files or folders hold real images of these splits."""
    _places.update({os.path.realpath(path): split for path, split in paths.items()})


def register_root(folder: str | Path, free: tuple[str, ...] = ()) -> None:
    """Everything below `folder` is real data, but for the sub-folders named in `free`."""
    root = os.path.realpath(folder)
    for name in free:
        _places.setdefault(os.path.join(root, name), None)
    _places.setdefault(root, UNKNOWN)


def register_free(folder: str | Path) -> None:
    """`folder` holds no real data, wherever it lies (a store of artifacts)."""
    _places[os.path.realpath(folder)] = None


def _split_of(path: str) -> str | None:
    """The split of the innermost registered folder that a file is in, or of the file itself."""
    while path not in _places:
        above = os.path.dirname(path)
        if above == path:
            return None
        path = above
    return _places[path]


def _audit(event: str, args: tuple) -> None:
    if event != "open" or _active is None:
        return
    path, mode, flags = (*args, None, None, None)[:3]
    if not isinstance(path, (str, bytes)) or (isinstance(mode, str) and not set(mode) & set("r+")):
        return
    if isinstance(flags, int) and flags & os.O_ACCMODE == os.O_WRONLY:
        return
    path = os.path.realpath(os.fsdecode(path))
    split = _split_of(path)
    if split is not None and split not in _active.reads:
        _active.refuse("a file of real data", f"{path} ({split})" if split != UNKNOWN else path)


sys.addaudithook(_audit)
