"""Trained things by content key: made once, atomically, under a lock, checksummed, resumable after a kill.

The key of an artifact is a hash of its stage, its settings and its parents' keys, so a changed parameter makes anew what
depends on it and nothing else. While it is being made an artifact lives in `<key>.partial` (with its training
checkpoint); only when all of it is on disk is that folder renamed to `<key>`.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from dfkd_lib import ledger
from dfkd_lib.errors import WorkbenchError

REPOSITORY = Path(__file__).resolve().parent.parent
MANIFEST = "manifest.json"


class ArtifactError(WorkbenchError):
    """An artifact on disk is not what was written."""


def home(path: str | Path) -> Path:
    """A path with `~` written out; WorkbenchError if no file can have that name."""
    try:
        if b"\0" in os.fsencode(path):
            raise ValueError("a NUL character")
        return Path(path).expanduser()
    except (ValueError, RuntimeError, TypeError) as error:  # RuntimeError: `~name` of nobody
        raise WorkbenchError("this is no path", expected="a name of a file or a folder", got=f"{path!r}: {error}",
                             mend="correct the path") from None


def resolve(path: str | Path) -> Path:
    """An absolute path; relative ones are taken from the repository root, wherever a notebook was opened."""
    path = home(path)
    return path if path.is_absolute() else REPOSITORY / path


def save_json(path: str | Path, value: object) -> None:
    """Write JSON atomically (a temporary file, flushed to disk, then renamed)."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def save_tensors(path: str | Path, tensors: dict) -> None:
    """Write a dict of tensors as safetensors (made contiguous, on the CPU; shared storage is copied)."""
    from safetensors.torch import save_file

    save_file({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, str(path))


def _seconds(path: Path) -> float:
    """The number in a small file; 0 where it is missing or was cut off."""
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return 0.0


def load_tensors(path: str | Path) -> dict:
    """Read a safetensors file; WorkbenchError if it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(path))
    except FileNotFoundError:
        raise WorkbenchError("a checkpoint is missing", expected="a safetensors file", where=path,
                             mend="check the path, or train it anew") from None
    except (SafetensorError, OSError, LookupError, RuntimeError, TypeError, ValueError) as error:  # a header's lies, too
        raise WorkbenchError("a checkpoint cannot be read", expected="a whole safetensors file", got=error, where=path,
                             mend="fetch or train it again; the file is damaged or of another format") from None


def provenance() -> dict:
    """What made a result: git commit (with "+" if files differ from it), versions, processor, cores, accelerator."""
    import torch

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    changed = "+" if git("status", "--porcelain", "--untracked-files=no") else ""
    cpu = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
               platform.processor() or platform.machine())
    return {"commit": (git("rev-parse", "--short=12", "HEAD") or "unknown") + changed, "python": platform.python_version(),
            "torch": torch.__version__, "cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None}


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if os.path.exists(path) else []


def file_hash(path: str | Path) -> str:
    """The SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_key(stage: str, settings: dict, parents: Sequence["Artifact"] = ()) -> str:
    """`<stage>-<16 hex digits>` from the stage, its JSON-able settings and the keys of its parents, in order."""
    try:
        text = json.dumps([stage, settings, [parent.key for parent in parents]], sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise WorkbenchError(f"the settings of stage '{stage}' cannot be a key", got=error,
                             expected="finite numbers, strings, booleans, None, lists and dicts of them",
                             mend="give settings as plain values") from None
    return f"{stage}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: its key, its folder, its manifest, and whether it was found rather than made just now."""

    key: str
    path: Path
    manifest: dict
    cached: bool

    @property
    def stage(self) -> str:
        return self.manifest["stage"]

    @property
    def settings(self) -> dict:
        return self.manifest["settings"]

    @property
    def metrics(self) -> dict:
        return self.manifest["metrics"]

    @property
    def ledger(self) -> list[dict]:
        return self.manifest["ledger"]

    @property
    def parents(self) -> list[str]:
        return self.manifest["parents"]

    @property
    def seconds(self) -> float:
        """Seconds it took to make, over all its attempts."""
        return self.manifest["seconds"]

    def tensors(self, name: str = "model.safetensors") -> dict:
        return load_tensors(self.path / name)

    def json(self, name: str):
        return json.loads((self.path / name).read_text())


class NotMade(WorkbenchError):
    """An artifact that was only to be looked for is not there."""


class Store:
    """A folder of artifacts that any number of processes may share.

    Args:
        root: the folder; made when missing. Relative paths are taken from the repository root.

    Raises:
        WorkbenchError: if the folder cannot be written to.
    """

    def __init__(self, root: str | Path = "data/artifacts"):
        self.root = resolve(root)
        ledger.register_free(self.root)
        try:
            (self.root / ".locks").mkdir(parents=True, exist_ok=True)
            probe = self.root / f".write-probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise WorkbenchError("the artifact folder cannot be written to", got=error, where=self.root,
                                 mend="choose another folder (artifacts_dir) or free it") from None

    def get_or_make(self, stage: str, settings: dict, make: Callable[[Path], dict | None],
                    parents: Sequence[Artifact] = (), reads: dict[str, str] | None = None,
                    inherited: Sequence[dict] = ()) -> Artifact:
        """The artifact of this stage, settings and parents: from disk if it is there, else made by `make(work)`.

        `make` writes its files into the folder `work` and returns JSON-able metrics; it runs inside
        `ledger.stage(stage, reads)`. `work` outlives a kill, so a checkpoint kept in `work/checkpoint` resumes.
        `inherited` are ledger rows of work done elsewhere (the training of a checkpoint that is taken in).

        Raises:
            ArtifactError: if the bytes on disk are not those that were written.
        """
        key = content_key(stage, settings, parents)
        found = self.find(key)
        if found:
            return found
        with self._lock(key):
            found = self.find(key)  # made by another process while we waited
            if found:
                return found
            return self._make(key, stage, settings, make, parents, reads, inherited)

    def looking(self) -> "Store":
        """This store, to look with: what is not there raises `NotMade` instead of being made."""
        return _Looking(self.root)

    def find(self, key: str) -> Artifact | None:
        """The finished artifact of that key, its checksums verified, or None."""
        path = self.root / key
        if not path.is_dir():
            return None
        try:
            manifest = json.loads((path / MANIFEST).read_text())
            files = manifest["files"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError("an artifact has no readable manifest", got=error, where=path / MANIFEST,
                                mend=f"delete {path}; the next run makes it anew") from None
        for name, expected in files.items():
            got = file_hash(path / name) if (path / name).is_file() else "no such file"
            if got != expected:
                raise ArtifactError("the bytes of an artifact have changed since it was made", where=path / name,
                                    expected=f"sha256 {expected}", got=got,
                                    mend=f"restore the file, or delete {path}; the next run makes it anew")
        return Artifact(key, path, manifest, cached=True)

    def keys(self) -> list[str]:
        """The keys of all finished artifacts, sorted."""
        return sorted(p.name for p in self.root.iterdir() if p.is_dir() and p.name[0] != "." and p.suffix != ".partial")

    def verify(self) -> list[tuple[str, str | None]]:
        """(key, None) for each sound artifact and (key, what is wrong) for each damaged one."""
        rows = []
        for key in self.keys():
            try:
                self.find(key)
                rows.append((key, None))
            except ArtifactError as error:
                rows.append((key, str(error)))
        return rows

    def _lock(self, key: str) -> FileLock:
        lock = FileLock(self.root / ".locks" / f"{key}.lock")
        try:
            lock.acquire(timeout=0)
            lock.release()
        except Timeout:
            print(f"{key}: another process is making this; waiting for it", flush=True)
        return lock

    def _make(self, key, stage, settings, make, parents, reads, inherited) -> Artifact:
        work = self.root / f"{key}.partial"
        work.mkdir(exist_ok=True)
        spent, start = work / "seconds.txt", time.perf_counter()
        before = _seconds(spent)
        try:
            with ledger.stage(stage, reads) as seen:
                metrics = make(work) or {}
        finally:
            if work.is_dir():
                spent.write_text(str(before + time.perf_counter() - start))
        seconds, passing = _seconds(spent), {MANIFEST, spent.name}
        names = sorted(str(p.relative_to(work)) for p in work.rglob("*") if p.is_file()
                       and p.relative_to(work).parts[0] not in {"checkpoint", *passing})
        rows = [*({**row, "inherited": True} for row in inherited), *seen.entries()]
        manifest = {"stage": stage, "settings": settings, "parents": [parent.key for parent in parents],
                    "metrics": metrics, "ledger": rows,
                    "data_free": all(row["purpose"] == ledger.EVALUATION for row in rows),
                    "seconds": round(seconds, 2), "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                    "files": {name: file_hash(work / name) for name in names}}
        save_json(work / MANIFEST, manifest)
        os.replace(work, self.root / key)
        # Only now: until the rename a kill or a full disk must find the training's checkpoint where it was.
        shutil.rmtree(self.root / key / "checkpoint", ignore_errors=True)
        (self.root / key / spent.name).unlink(missing_ok=True)
        return Artifact(key, self.root / key, manifest, cached=False)


class _Looking(Store):
    def get_or_make(self, stage, settings, make, parents=(), reads=None, inherited=()) -> Artifact:
        key = content_key(stage, settings, parents)
        found = self.find(key)
        if found is None:
            raise NotMade("this has not been made yet", got=key, where=self.root, mend="run it")
        return found
