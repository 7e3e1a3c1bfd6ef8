"""Where a result comes from: the code, the libraries, the machine, and the data at hand."""

import gzip
import hashlib
import platform
import shutil
import subprocess
import sys
import zlib
from importlib import metadata
from pathlib import Path

import pandas as pd

from dfkd_lib.core.artifacts import REPOSITORY, resolve
from dfkd_lib.core.processes import cores

LIBRARIES = (
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "accelerate",
    "torchmetrics",
    "torch-fidelity",
    "pycocotools",
    "onnxruntime",
    "safetensors",
    "numpy",
    "scipy",
    "scikit-learn",
    "pandas",
    "matplotlib",
    "papermill",
    "nbconvert",
    "jupyterlab",
)
# Of the uncompressed files of LeCun, Cortes and Burges; the compressed ones differ with the compressor.
MNIST_MD5 = {
    "train-images-idx3-ubyte.gz": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte.gz": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte.gz": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte.gz": "27ae3e4e09519cfbb04c329615203637",
}


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
    return {
        "commit": command("git", "rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
    }


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
        return next(
            line.partition(":")[2].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return (
            command("sysctl", "-n", "machdep.cpu.brand_string")
            or platform.processor()
            or platform.machine()
        )


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


def environment_table() -> pd.DataFrame:
    """Code, machine and library versions as a table of two columns."""
    known = describe()
    machine = {
        name.replace("_gib", " (GiB)"): "none" if value is None else value
        for name, value in known["hardware"].items()
    }
    commit = (known["git"]["commit"] or "unknown")[:12] + (
        " with changes" if known["git"]["dirty"] else ""
    )
    rows = {"commit": commit, **machine, **known["versions"]}
    return pd.DataFrame(
        [(name, str(value)) for name, value in rows.items()], columns=["what", "here"]
    )


def data_table(root: str | Path = "data") -> pd.DataFrame:
    """The embedded data files, their sizes, and whether the bytes in them are those of the original MNIST."""
    rows = []
    for name, expected in MNIST_MD5.items():
        path, state = resolve(root) / "mnist" / name, "missing: restore it from the repository"
        if path.is_file():
            try:
                found = hashlib.md5(
                    gzip.decompress(path.read_bytes()), usedforsecurity=False
                ).hexdigest()
            except (OSError, EOFError, zlib.error):
                found = "damaged"
            state = "sound" if found == expected else "changed: restore it from the repository"
        rows.append((f"mnist/{name}", path.stat().st_size if path.is_file() else 0, state))
    for path in sorted((resolve(root) / "teachers").glob("*.safetensors")):
        rows.append((f"teachers/{path.name}", path.stat().st_size, "shipped teacher"))
    return pd.DataFrame(rows, columns=["file", "bytes", "state"])


def describe() -> dict:
    """All of it, as JSON-able values."""
    return {"git": code(), "versions": versions(), "hardware": hardware()}
