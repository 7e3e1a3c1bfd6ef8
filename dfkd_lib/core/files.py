"""Files that are whole or not there: written beside their place, flushed to disk, renamed; and the error of a full disk."""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from dfkd_lib.core import memory
from dfkd_lib.core.errors import WorkbenchError

WHOLE = "checkpoint/whole.json"  # in a folder of work: the hashes of files beside the checkpoint that a resumed run uses
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
FULL_TEXT = re.compile(
    r"no space left|quota exceeded|file too large|read-only file system|code: (28|122|27|30)\b"
    r"|PytorchStreamWriter failed|unexpected pos",
    re.IGNORECASE,
)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary file to write; at the end it is flushed to disk and takes the place of `path`, or nothing has happened."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on disk."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_json(path: str | Path, value: object) -> None:
    """Write JSON atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1))


def save_tensors(path: str | Path, tensors: dict) -> None:
    """Write a dict of tensors as safetensors, atomically (made contiguous, on the CPU; shared storage is copied)."""
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        save_file(
            {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()},
            str(temporary),
        )


def is_full(error: object) -> bool:
    """Whether an error, or the text of one, means that a disk takes no more (full, a quota, read-only)."""
    return (
        isinstance(error, OSError)
        and error.errno in FULL
        or FULL_TEXT.search(str(error)) is not None
    )


def disk_error(what: str, error: object, where: Path) -> WorkbenchError:
    """The error for a disk that takes no more: which, how much is left on it, how to fix it."""
    free = "unknown"
    with suppress(OSError):
        there = next(p for p in [where, *where.parents] if p.exists())
        free = f"{shutil.disk_usage(there).free / 1e6:,.0f} MB"
    return WorkbenchError(
        what,
        got=f"{str(error).splitlines()[0][:300]} ({free} free on this disk)",
        where=where,
        fix="free room on that disk (or make it writable), or choose folders on another one; then give the same command "
        "again: finished artifacts and epochs are found again",
    )


def file_lock(path: Path) -> FileLock:
    """A lock between processes, which ends with the process that holds it.

    Acquiring it raises OSError with one of NO_LOCKS where the disk knows none: the files which filelock would take instead
    stay behind when their process is killed.
    """
    return FileLock(path, fallback_to_soft=False)


def unusable(what: str, error: OSError, where: Path, fix: str) -> WorkbenchError:
    """The error for a folder that cannot be written to, or whose disk has no locks."""
    if error.errno not in NO_LOCKS:
        fix = f"{fix}, or free this one"
        return WorkbenchError(f"{what} cannot be written to", got=error, where=where, fix=fix)
    return WorkbenchError(
        f"{what} is on a disk with no file locks, without which two processes would make one thing twice",
        got=error,
        where=where,
        expected="a disk that supports flock",
        fix=f"{fix}, or have this disk mounted with locks (Lustre: the option flock; NFS: version 4)",
    )


def note_whole(work: Path, path: Path) -> None:
    """Note that a file in a folder of work is whole: a resumed run may use it, and notices if it has changed since."""
    memory.check(path)
    whole = work / WHOLE
    whole.parent.mkdir(exist_ok=True)
    save_json(whole, {**whole_files(work), str(path.relative_to(work)): file_hash(path)})


def whole_files(work: Path) -> dict[str, str]:
    """{name: hash} of the files in a folder of work that were noted as whole."""
    try:
        return dict(json.loads((work / WHOLE).read_text()))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError):
        return {WHOLE: "unreadable"}


def load_tensors(path: str | Path) -> dict:
    """Read a safetensors file; WorkbenchError if it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(path))
    except FileNotFoundError:
        raise WorkbenchError(
            "a checkpoint is missing",
            expected="a safetensors file",
            where=path,
            fix="check the path, or train it anew",
        ) from None
    except WorkbenchError:  # the ledger's refusal
        raise
    except (SafetensorError, OSError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise WorkbenchError(
            "a checkpoint cannot be read",
            expected="a whole safetensors file",
            got=error,
            where=path,
            fix="fetch or train it again; the file is damaged or of another format",
        ) from None


def file_hash(path: str | Path) -> str:
    """The SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
