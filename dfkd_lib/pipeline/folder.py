"""The folder of a run's reports: made, tried, locked, and cleared of what killed runs left."""

import secrets
from pathlib import Path

from filelock import FileLock, Timeout

from dfkd_lib.core import WorkbenchError
from dfkd_lib.core.files import file_lock, unusable

LEFT = ("*.tmp", "*/*.tmp", ".probe-*", ".seen-*")  # by a run that was killed


def prepare_folder(out: Path) -> FileLock:
    """Make the output folder and lock it; WorkbenchError if it cannot be written or another run is using it."""
    try:
        for folder in (out, out / "metrics", out / "figures", out / "tables"):
            folder.mkdir(parents=True, exist_ok=True)
        probe = out / f".probe-{secrets.token_hex(4)}"
        probe.write_bytes(b"0" * 4096)
        probe.unlink(missing_ok=True)
        lock = file_lock(out / ".lock")
        lock.acquire(timeout=0)
        for path in (path for pattern in LEFT for path in out.glob(pattern)):
            path.unlink(missing_ok=True)
        return lock
    except Timeout:
        raise WorkbenchError(
            "another run is writing to this output folder",
            where=out,
            fix="wait for it, or give another folder with --out",
        ) from None
    except OSError as error:
        raise unusable("the output folder", error, out, "give another with --out") from None
