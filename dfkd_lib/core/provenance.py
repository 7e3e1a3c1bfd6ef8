"""Where a result comes from: the code, the libraries, the machine."""

import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path

from dfkd_lib.core.manifest import REPOSITORY
from dfkd_lib.core.processes import cores

DECISIVE = ("torch", "torchvision", "timm", "transformers", "numpy")  # can change a result
LIBRARIES = (
    *DECISIVE,
    *"accelerate torchmetrics torch-fidelity pycocotools onnxruntime safetensors scipy scikit-learn pandas".split(),
    *"matplotlib papermill nbconvert jupyterlab".split(),
)


def command(*words: str) -> str | None:
    """What a command prints, or None if it is not there or fails."""
    if shutil.which(words[0]) is None:
        return None
    try:
        done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@cache
def code() -> dict:
    """{"commit", "dirty": whether files differed from it} as this process first saw them; None where git cannot tell."""
    status = command("git", "status", "--porcelain")
    return {
        "commit": command("git", "rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
    }


def commit() -> str:
    """The commit in 12 digits, with "+" if files differ from it; "unknown" without git."""
    known = code()
    return (known["commit"] or "unknown")[:12] + "+" * bool(known["dirty"])


@cache
def versions(libraries: Sequence[str] = LIBRARIES) -> dict[str, str]:
    """Versions of Python and of these libraries, those that are installed."""
    found = {"python": platform.python_version()}
    for name in libraries:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """The name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    named = next(names, "") or command("sysctl", "-n", "machdep.cpu.brand_string")
    return named or platform.processor() or platform.machine()


def host() -> str:
    """The name of this machine."""
    return platform.node()


def hardware() -> dict:
    """Processor, usable cores, memory in GiB, graphics card (None without one) and operating system."""
    import psutil

    card = command("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader")
    return {
        "cpu": processor(),
        "cores": cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": card or None,
        "system": f"{platform.system()} {platform.release()} {sys.platform}",
    }


@cache
def machine() -> str:
    """The graphics card of this machine, or its processor and usable cores, in words."""
    found = hardware()
    return found["gpu"] or f"{found['cpu']}, {found['cores']} cores"


def describe() -> dict:
    """{"git", "versions", "hardware"}: all of it, as JSON-able values."""
    return {"git": code(), "versions": versions(), "hardware": hardware()}


def provenance_table():
    """Code, machine and library versions as a DataFrame of two columns."""
    import pandas as pd

    rows = {"commit": commit().replace("+", " with changes")}
    for name, value in hardware().items():
        rows[name.replace("_gib", " (GiB)")] = "none" if value is None else str(value)
    return pd.DataFrame([*rows.items(), *versions().items()], columns=["what", "here"])
