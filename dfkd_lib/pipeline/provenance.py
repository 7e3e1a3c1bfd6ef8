"""Where a result comes from: the code, the libraries and the machine."""

import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from dfkd_lib.artifacts import REPOSITORY

LIBRARIES = ("torch", "torchvision", "timm", "transformers", "accelerate", "torchmetrics", "torch-fidelity",
             "pycocotools", "onnxruntime", "safetensors", "numpy", "scipy", "scikit-learn", "pandas", "matplotlib",
             "papermill", "nbconvert", "jupyterlab")


def command(*words: str) -> str | None:
    """What a command prints, or None if it is not there or fails."""
    if shutil.which(words[0]) is None:
        return None
    try:
        done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def code() -> dict:
    """The git commit, and whether the tree differed from it; None where git cannot tell."""
    status = command("git", "status", "--porcelain")
    return {"commit": command("git", "rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def versions() -> dict:
    """Versions of Python and of the libraries that results depend on."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """The name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return command("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor() or platform.machine()


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hardware() -> dict:
    """Processor, usable cores, memory in GiB, graphics card (None without one) and operating system."""
    import psutil

    card = command("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader")
    return {"cpu": processor(), "cores": cores(), "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "gpu": card or None, "system": f"{platform.system()} {platform.release()} {sys.platform}"}


def describe() -> dict:
    """All of it, as JSON-able values."""
    return {"git": code(), "versions": versions(), "hardware": hardware()}
