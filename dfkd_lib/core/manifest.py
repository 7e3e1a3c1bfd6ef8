"""What an artifact is: its key, its manifest, its folder; paths, and the versions and the commit that made it."""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from dfkd_lib.core.code import Fingerprint
from dfkd_lib.core.errors import WorkbenchError
from dfkd_lib.core.files import load_tensors

REPOSITORY = Path(__file__).resolve().parents[2]
MANIFEST = "manifest.json"
DECISIVE = (
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "numpy",
)  # libraries that can change a result


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


@cache
def commit() -> str:
    """The git commit as this process first saw it, with "+" if files differ from it; "unknown" without git."""

    def git(*words: str) -> str:
        try:
            done = subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True)
        except OSError:
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    changed = "+" if git("status", "--porcelain", "--untracked-files=no") else ""
    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + changed


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that can change a result: recorded with an artifact, not part of its key."""
    found = {"python": platform.python_version()}
    for name in DECISIVE:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def provenance() -> dict:
    """What made a result: git commit (with "+" if files differ from it), versions, processor, cores, accelerator."""
    import torch

    cpu = next(
        (
            line.split(":")[1].strip()
            for line in _lines("/proc/cpuinfo")
            if line.startswith("model name")
        ),
        platform.processor() or platform.machine(),
    )
    return {
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if os.path.exists(path) else []


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
    def parents(self) -> list[str]:
        return self.manifest["parents"]

    @property
    def functions(self) -> dict[str, str]:
        """{qualified name: digest, or "= value"} of the code that made it; empty for those of earlier versions."""
        return self.manifest.get("code", {}).get("functions", {})

    @property
    def seconds(self) -> float:
        """Seconds it took to make, over all its attempts."""
        return self.manifest["seconds"]

    def tensors(self, name: str = "model.safetensors") -> dict:
        return load_tensors(self.path / name)

    def json(self, name: str):
        return json.loads((self.path / name).read_text())
