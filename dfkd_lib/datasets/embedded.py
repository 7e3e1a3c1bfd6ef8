"""The data files that lie in the repository, and whether they are whole."""

import gzip
import hashlib
import zlib
from pathlib import Path

import pandas as pd

from dfkd_lib.core import resolve

# Of the uncompressed files of LeCun, Cortes and Burges; the compressed ones differ with the compressor.
MNIST_MD5 = {
    "train-images-idx3-ubyte.gz": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte.gz": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte.gz": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte.gz": "27ae3e4e09519cfbb04c329615203637",
}


def embedded_table(root: str | Path = "data") -> pd.DataFrame:
    """The embedded data files, their sizes in bytes, and whether MNIST's are the original's."""
    folder = resolve(root)
    places = {folder / "mnist" / name: digest for name, digest in MNIST_MD5.items()}
    states = {path: _state(path, digest) for path, digest in places.items()}
    teachers = sorted((folder / "teachers").glob("*.safetensors"))
    rows = [
        (f"{path.parent.name}/{path.name}", path.stat().st_size if path.is_file() else 0, state)
        for path, state in (states | dict.fromkeys(teachers, "shipped teacher")).items()
    ]
    return pd.DataFrame(rows, columns=["file", "bytes", "state"])


def _state(path: Path, digest: str) -> str:
    if not path.is_file():
        return "missing: restore it from the repository"
    try:
        found = hashlib.md5(gzip.decompress(path.read_bytes()), usedforsecurity=False).hexdigest()
    except (OSError, EOFError, zlib.error):
        found = "damaged"
    return "sound" if found == digest else "changed: restore it from the repository"
