"""CIFAR-10 and CIFAR-100 from the files of their authors, which are pickles: read so that none can call anything."""

import hashlib
import io
import pickle
from pathlib import Path

import numpy as np

from dfkd_lib.core import WorkbenchError, ledger

# All that an array of numbers needs; names of old NumPy's modules stand in the files.
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _Plain(pickle.Unpickler):
    """Reads dicts, lists, text, numbers and arrays of numbers; whatever else a pickle names is refused."""

    def find_class(self, module: str, name: str):
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which images do not need")
        return ALLOWED[module, name]


def read_cifar(
    name: str, split: str, root: Path, download: bool
) -> tuple[np.ndarray, list[int], tuple[str, ...]]:
    """uint8 (N, 3, 32, 32), labels and class names of "cifar10" or "cifar100".

    Raises:
        WorkbenchError: if a file is missing, or its checksum is not the one that torchvision knows of it.
    """
    import torchvision

    kind = torchvision.datasets.CIFAR10 if name == "cifar10" else torchvision.datasets.CIFAR100
    folder = root / kind.base_folder
    files = {folder / entry[0]: f"{name}/train" for entry in kind.train_list}
    ledger.register_files(files | {folder / entry[0]: f"{name}/test" for entry in kind.test_list})
    wanted = kind.train_list if split == "train" else kind.test_list
    try:
        if download and not all((folder / entry[0]).is_file() for entry in wanted):
            torchvision.datasets.utils.download_and_extract_archive(
                kind.url, str(root), filename=kind.filename, md5=kind.tgz_md5
            )
        parts = [_unpickled(folder / entry[0], entry[1]) for entry in wanted]
        classes = _unpickled(folder / kind.meta["filename"], kind.meta["md5"])[kind.meta["key"]]
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        # RuntimeError, OSError: no file, no network.
        raise WorkbenchError(
            f"{name} is not here, or damaged",
            expected=f"torchvision's files in {folder}",
            got=error,
            fix=f"load_images('{name}', '{split}', download=True) fetches it, or name a "
            "folder of class folders instead",
        ) from None
    kind_of_labels = "labels" if name == "cifar10" else "fine_labels"
    labels = [label for part in parts for label in part[kind_of_labels]]
    pixels = np.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32)
    return pixels, labels, tuple(classes)


def _unpickled(path: Path, md5: str) -> dict:
    data = path.read_bytes()
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != md5:
        raise OSError(f"{path.name} is not the file of its authors: its MD5 is not {md5}")
    return _Plain(io.BytesIO(data), encoding="latin1").load()
