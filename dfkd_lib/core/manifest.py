"""What an artifact is: its key, its manifest, its folder; and paths."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dfkd_lib.core.code import Fingerprint
from dfkd_lib.core.errors import WorkbenchError
from dfkd_lib.core.files import load_tensors

REPOSITORY = Path(__file__).resolve().parents[2]
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
        raise WorkbenchError(
            "this is no path",
            expected="a name of a file or a folder",
            got=f"{path!r}: {error}",
            fix="correct the path",
        ) from None


def resolve(path: str | Path) -> Path:
    """An absolute path; relative ones are taken from the repository root, wherever a notebook was opened."""
    path = home(path)
    return path if path.is_absolute() else REPOSITORY / path


def content_key(
    stage: str,
    settings: dict,
    parents: Sequence["Artifact"] = (),
    code: Fingerprint | None = None,
) -> str:
    """`<stage>-<16 hex digits>` from the stage, its JSON-able settings, the keys of its parents, in order, and its code."""
    parts = [stage, settings, [parent.key for parent in parents], *([code.digest] if code else [])]
    try:
        text = json.dumps(parts, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise WorkbenchError(
            f"the settings of stage '{stage}' cannot be a key",
            got=error,
            expected="finite numbers, strings, booleans, None, lists and dicts of them",
            fix="give settings as plain values",
        ) from None
    return f"{stage}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def seal(manifest: dict) -> str:
    """The hash of a manifest's own content: a flipped byte in it must not go unseen either."""
    content = {name: value for name, value in manifest.items() if name != "sealed"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def checked(path: Path) -> dict:
    """A manifest, as it was sealed, that names no file outside its folder; ArtifactError if it is not."""
    try:
        manifest = json.loads(path.read_text())
        if manifest["sealed"] != seal(manifest):
            raise ValueError("it is not what was written")
        if any(Path(name).is_absolute() or ".." in Path(name).parts for name in manifest["files"]):
            raise ValueError("it names a file elsewhere")
        return manifest
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(
            "an artifact has no readable manifest",
            got=f"no {error}" if isinstance(error, KeyError) else error,
            where=path,
            fix="run what made it again: it is moved to .damaged and made anew; delete it if it is of an earlier version",
        ) from None


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: its key, its folder, its manifest, and whether it was found rather than made just now."""

    key: str
    path: Path
    manifest: dict
    cached: bool

    @property
    def fingerprint(self) -> str:
        """Its identity where code holds it."""
        return self.key

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
    def guard(self) -> str:
        """How it was kept from undeclared real images, of `ledger.GUARDS`."""
        return self.manifest.get("guard", "not recorded")

    @property
    def hardware(self) -> str:
        """The machine that made it, in words."""
        return self.manifest.get("hardware", "not recorded")

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
