"""Trained things by content key: made once, atomically, under a lock, checksummed, resumable after a kill.

The key of an artifact is a hash of its stage, its settings, its parents' keys and the code that makes it, so a changed
parameter or function makes anew what depends on it and nothing else. While it is being made an artifact lives in `<key>.partial` (with its training
checkpoint); only when all of it is on disk is that folder renamed to `<key>`. What is damaged is never used and never
deleted: it is moved to `.damaged/<key>` with a note, and made anew.
"""

import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import Timeout

from dfkd_lib.core import ledger, memory, processes, provenance
from dfkd_lib.core.code import Fingerprint, stage_fingerprint
from dfkd_lib.core.errors import WorkbenchError
from dfkd_lib.core.explain import made_anew, report_versions
from dfkd_lib.core.files import (
    disk_error,
    file_hash,
    file_lock,
    flush,
    is_full,
    load_tensors,
    note_whole,
    save_json,
    save_tensors,
    unusable,
    whole_files,
)
from dfkd_lib.core.manifest import (
    MANIFEST,
    REPOSITORY,
    Artifact,
    ArtifactError,
    checked,
    content_key,
    home,
    resolve,
    seal,
)

__all__ = [
    "Artifact",
    "ArtifactError",
    "BeingMade",
    "NotMade",
    "REPOSITORY",
    "Store",
    "content_key",
    "file_hash",
    "home",
    "load_tensors",
    "note_whole",
    "only_finding",
    "resolve",
    "save_json",
    "save_tensors",
    "without_waiting",
]

WAIT_SECONDS = 60.0  # between two messages that another process is being waited for
PATIENCE = 5.0  # seconds before the first of them
STALE_SECONDS = 3600  # a temporary file that nobody has touched for so long belongs to nobody


@dataclass(frozen=True)
class _Wanted:
    """What `Store.get_or_make` is asked for."""

    key: str
    stage: str
    settings: dict
    make: Callable[[Path], dict | None]
    parents: Sequence[Artifact]
    reads: ledger.Reads | None
    inherited: Sequence[dict]
    code: Fingerprint


def _seconds(path: Path) -> float:
    """The number in a small file; 0 where it is missing or was cut off."""
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return 0.0


def _hash(path: Path) -> str:
    return file_hash(path) if path.is_file() else "no such file"


class NotMade(WorkbenchError):
    """An artifact that was only to be found is not there."""


class BeingMade(WorkbenchError):
    """Another process is making an artifact that is not to be waited for."""


# What this thread does about an artifact that is missing, and about one that another process is making.
_makes: ContextVar[bool] = ContextVar("makes", default=True)
_waits: ContextVar[bool] = ContextVar("waits", default=True)


@contextmanager
def _set(what: ContextVar[bool], value: bool) -> Iterator[None]:
    before = what.set(value)
    try:
        yield
    finally:
        what.reset(before)


def only_finding():
    """A context in which stores only find: what is not there raises `NotMade` instead of being made."""
    return _set(_makes, False)


def without_waiting():
    """A context in which what another process is making raises `BeingMade` instead of being waited for."""
    return _set(_waits, False)


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
            probe = self.root / f".write-probe-{secrets.token_hex(4)}"  # of this process alone
            probe.touch()
            probe.unlink()
            lock = file_lock(self.root / ".locks" / "probe.lock")
            with suppress(Timeout), lock.acquire(timeout=0):
                pass  # that another process holds it is an answer too
        except OSError as error:
            raise unusable(
                "the artifact folder", error, self.root, "choose another (artifacts_dir)"
            ) from None

    def get_or_make(
        self,
        stage: str,
        settings: dict,
        make: Callable[[Path], dict | None],
        parents: Sequence[Artifact] = (),
        reads: ledger.Reads | None = None,
        inherited: Sequence[dict] = (),
        code: Sequence[object] = (),
    ) -> Artifact:
        """The artifact of this stage, settings, parents and code: from disk if it is there, else made by `make(work)`.

        `make` writes its files into the folder `work` and returns JSON-able metrics; it runs inside
        `ledger.stage(stage, reads)`. `work` outlives a kill, so a checkpoint in `work/checkpoint` resumes.
        `inherited` are ledger rows of work done elsewhere (the training of a checkpoint that is taken in).

        The code is that of `make`, followed through all it reaches by name, and of `code`: entries of tables that `make`
        looks up by a setting (`MODELS[name]`). The values in the closure of `make` are those of settings and parents.

        Several processes of one run (`accelerate launch`) call this alike, on a folder that all of them see. `make` then
        runs in all of them at once; what the main one writes stays, the others write into a copy that is thrown away.
        One whose bytes are not those that were written is set aside, with a note, and made anew.

        Raises:
            WorkbenchError: if the disk takes no more; whatever `make` raises.
        """
        known = stage_fingerprint(make, code)
        key = content_key(stage, settings, parents, known)
        wanted = _Wanted(key, stage, settings, make, parents, reads, inherited, known)
        if processes.count() > 1 and _makes.get():
            return self._make_together(wanted)
        with suppress(ArtifactError):
            if found := self.find(key):
                report_versions(found)
                return found
        if not _makes.get():
            raise NotMade("this has not been made yet", got=key, where=self.root, fix="run it")
        with self._lock(key):
            if found := self._find_sound(key):  # made by another process while we waited
                return found
            try:
                return self._make(wanted)
            except Exception as error:
                if is_full(error) and not isinstance(error, WorkbenchError):
                    what = f"'{stage}' cannot be written to disk"
                    raise disk_error(what, error, self.root) from error
                raise

    def find(self, key: str) -> Artifact | None:
        """The finished artifact of that key, its checksums verified, or None."""
        path = self.root / key
        if not path.is_dir():
            return None
        manifest = checked(path / MANIFEST)
        for name, expected in manifest["files"].items():
            got = _hash(path / name)
            if got != expected:
                raise ArtifactError(
                    "the bytes of an artifact have changed since it was made",
                    where=path / name,
                    expected=f"sha256 {expected}",
                    got=got,
                    fix="restore the file, or run what made it again: it is moved to .damaged and made anew",
                )
        return Artifact(key, path, manifest, cached=True)

    def keys(self) -> list[str]:
        """The keys of all finished artifacts, sorted."""
        return sorted(
            p.name
            for p in self.root.iterdir()
            if p.is_dir() and p.name[0] != "." and p.suffix != ".partial"
        )

    def verify(self) -> list[tuple[str, str | None]]:
        """(key, None) for each sound artifact and (key, what is wrong) for each damaged one."""
        rows: list[tuple[str, str | None]] = []
        for key in self.keys():
            try:
                self.find(key)
                rows.append((key, None))
            except ArtifactError as error:
                rows.append((key, str(error)))
        return rows

    def unfinished(self) -> list[str]:
        """The keys of artifacts that were begun: the next run that needs one goes on there."""
        return sorted(path.stem for path in self.root.glob("*.partial"))

    def set_aside(self) -> list[str]:
        """The names in `.damaged`: what was not what had been written, for whoever wants to inspect it."""
        return sorted(path.name for path in (self.root / ".damaged").glob("*"))

    def tidy(self) -> None:
        """Remove what killed processes left: temporary files that nobody writes, checkpoints of what is finished."""
        for path in [*self.root.glob(".write-probe-*"), *self.root.glob(".jobs/*.tmp")]:
            with suppress(OSError):
                if abs(time.time() - path.stat().st_mtime) > STALE_SECONDS:
                    path.unlink()
        for key in self.keys():
            self._drop_checkpoint(key)

    def _drop_checkpoint(self, key: str) -> None:
        shutil.rmtree(self.root / key / "checkpoint", ignore_errors=True)
        with suppress(OSError):
            (self.root / key / "seconds.txt").unlink(missing_ok=True)

    def _set_aside(self, path: Path, why: object) -> None:
        """Move a damaged folder to `.damaged`, with a note."""
        aside = self.root / ".damaged" / path.name
        while aside.exists():
            aside = aside.with_name(aside.name + "+")
        aside.parent.mkdir(exist_ok=True)
        os.replace(path, aside)
        print(f"{path.name} is damaged and made anew; it is moved to {aside}\n  {why}", flush=True)

    @contextmanager
    def _lock(self, key: str) -> Iterator[None]:
        lock = file_lock(self.root / ".locks" / f"{key}.lock")
        wait = PATIENCE if _waits.get() else 0.0
        while True:
            try:
                lock.acquire(timeout=wait)
                break
            except Timeout:
                if not _waits.get():
                    raise BeingMade("another process is making this", got=key) from None
                # Printed again and again: waiting must not be taken for hanging.
                print(f"{key}: another process is making this; waiting for it", flush=True)
                wait = WAIT_SECONDS
        try:
            yield
        finally:
            lock.release()

    def _make_together(self, wanted: _Wanted) -> Artifact:
        """`get_or_make` in each of several processes: the main one in the work folder, the others in copies of it."""
        key, work = wanted.key, self.root / f"{wanted.key}.partial"
        shared = "give a folder that all processes share and see at once (artifacts_dir)"
        with ExitStack() as held:

            def found_or_locked() -> tuple[str, bool]:
                with suppress(ArtifactError):
                    if self.find(key):
                        return key, True
                held.enter_context(self._lock(key))
                found = self._find_sound(key) is not None
                if not found:
                    self._work_folder(key)
                return key, found

            agreed, found = processes.from_main(found_or_locked)
            with processes.together(key):
                if agreed != key:
                    raise WorkbenchError(
                        "the processes of this run are not making the same thing",
                        expected=agreed,
                        got=key,
                        fix="give all of them the same parameters and the same data",
                    )
                there = self.find(key) if found else None
                if found and there is None or not found and not work.is_dir():
                    raise WorkbenchError(
                        "a process does not see the artifact folder of the main one",
                        where=self.root,
                        fix=shared,
                    )
                if there is not None:
                    return there
                if not processes.is_main():
                    folder = held.enter_context(tempfile.TemporaryDirectory(prefix="dfkd-"))
                    own = shutil.copytree(work, Path(folder) / key)
            with processes.together(key):
                if processes.is_main():
                    self._make(wanted)
                else:
                    with ledger.stage(wanted.stage, wanted.reads):
                        wanted.make(own)
        with processes.together(key):
            made = self.find(key)
            if made is None:
                raise ArtifactError(
                    "what the main process made cannot be seen from here",
                    got=key,
                    where=self.root,
                    fix=shared,
                )
        return replace(made, cached=False)

    def _find_sound(self, key: str) -> Artifact | None:
        """`find`, but what is damaged is set aside. Under the key's lock."""
        try:
            return self.find(key)
        except ArtifactError as error:
            self._set_aside(self.root / key, error)
            return None

    def _work_folder(self, key: str) -> Path:
        """Where an artifact is made: with what an earlier attempt left, if it is sound. Under the key's lock."""
        work = self.root / f"{key}.partial"
        wrong = [name for name, hash in whole_files(work).items() if _hash(work / name) != hash]
        if wrong:
            why = f"of its unfinished making these are not what was written: {', '.join(wrong)}"
            self._set_aside(work, why)
        work.mkdir(exist_ok=True)
        for left in work.rglob("*.tmp"):  # by a process that was killed: we hold the lock
            left.unlink(missing_ok=True)
        return work

    def _make(self, wanted: _Wanted) -> Artifact:
        key = wanted.key
        if line := made_anew(
            self.root, key, wanted.stage, wanted.settings, wanted.parents, wanted.code
        ):
            print(line, flush=True)
        work = self._work_folder(key)
        spent, start = work / "seconds.txt", time.perf_counter()
        before = _seconds(spent)
        try:
            with ledger.stage(wanted.stage, wanted.reads) as seen:
                metrics = seen.run(lambda: wanted.make(work)) or {}
            memory.check(key)
        finally:
            with suppress(OSError):  # a full disk must not hide what went wrong before
                spent.write_text(str(before + time.perf_counter() - start))
        rows = [*({**row, "inherited": True} for row in wanted.inherited), *seen.entries()]
        manifest = self._manifest(wanted, metrics, rows, seen.guard, _seconds(spent))
        for path in {p for name in manifest["files"] for p in (work / name, (work / name).parent)}:
            flush(path)  # or a power cut could leave the name of a file without its bytes
        save_json(work / MANIFEST, manifest)
        try:
            os.replace(work, self.root / key)
        except OSError:
            found = self.find(key)  # another machine's, which this one's disk has hidden until now
            if found is None:
                raise
            shutil.rmtree(work, ignore_errors=True)
            return found
        flush(self.root)
        # Only now: until the rename a kill or a full disk must find the training's checkpoint where it was.
        self._drop_checkpoint(key)
        return Artifact(key, self.root / key, manifest, cached=False)

    def _manifest(
        self, wanted: _Wanted, metrics: dict, rows: list[dict], guard: str, seconds: float
    ) -> dict:
        work = self.root / f"{wanted.key}.partial"
        files = (p.relative_to(work) for p in work.rglob("*") if p.is_file())
        names = sorted(
            str(p) for p in files if p.parts[0] not in ("checkpoint", "seconds.txt", MANIFEST)
        )
        manifest = {
            "stage": wanted.stage,
            "settings": wanted.settings,
            "parents": [parent.key for parent in wanted.parents],
            "metrics": metrics,
            "ledger": rows,
            "guard": guard,
            "data_free": all(row["purpose"] == ledger.EVALUATION for row in rows),
            "seconds": round(seconds, 2),
            "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "files": {name: file_hash(work / name) for name in names},
            "code": {"digest": wanted.code.digest, "functions": wanted.code.table},
            "versions": provenance.versions(provenance.DECISIVE),
            "commit": provenance.commit(),
            "hardware": provenance.machine(),
        }
        return manifest | {"sealed": seal(json.loads(json.dumps(manifest)))}  # as it will be read
