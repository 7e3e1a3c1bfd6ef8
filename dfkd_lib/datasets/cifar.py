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


# The binary version: folder, {split: files}, class names, bytes of labels before the 3,072 of an image.
BINARY = {
    "cifar10": (
        "cifar-10-batches-bin",
        {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]},
        "batches.meta.txt",
        1,
    ),
    "cifar100": (
        "cifar-100-binary",
        {"train": ["train.bin"], "test": ["test.bin"]},
        "fine_label_names.txt",
        2,
    ),
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
    """uint8 (N, 3, 32, 32), labels and class names of "cifar10" or "cifar100", from their authors' files for Python or binary.

    Raises:
        WorkbenchError: if a file is missing, or its checksum is not the one that torchvision knows of it; of the binary
            version, if its size is not that of whole records, or a label is none.
    """
    if (root / BINARY[name][0]).is_dir():
        return _read_binary(name, split, root)
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
            expected=f"torchvision's files in {folder}, the binary version in {root / BINARY[name][0]}, or "
            f"{root / name}/train/<class>/*.png",
            got=error,
            fix=f"load_images('{name}', '{split}', download=True) fetches it, or name a "
            "folder of class folders instead (--data FOLDER, 30.data=FOLDER)",
        ) from None
    kind_of_labels = "labels" if name == "cifar10" else "fine_labels"
    labels = [label for part in parts for label in part[kind_of_labels]]
    pixels = np.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32)
    return pixels, labels, tuple(classes)


def _read_binary(
    name: str, split: str, root: Path
) -> tuple[np.ndarray, list[int], tuple[str, ...]]:
    folder, splits, names, head = BINARY[name]
    folder = root / folder
    ledger.register_files(
        {folder / file: f"{name}/{one}" for one, files in splits.items() for file in files}
    )
    try:
        classes = tuple((folder / names).read_text().split())
        parts = [np.frombuffer((folder / file).read_bytes(), np.uint8) for file in splits[split]]
        records = np.concatenate([part.reshape(-1, head + 3072) for part in parts])
        if not len(records) or records[:, head - 1].max() >= len(classes):
            raise ValueError("no image, or a label beyond the class names")
    except (OSError, ValueError) as error:
        raise WorkbenchError(
            f"{name}'s binary version is damaged, or not whole",
            expected=f"{', '.join([*splits[split], names])}; {head + 3072} bytes an image",
            got=error,
            where=folder,
            fix="unpack its archive again, or remove the folder",
        ) from None
    return records[:, head:].reshape(-1, 3, 32, 32).copy(), records[:, head - 1].tolist(), classes


def _unpickled(path: Path, md5: str) -> dict:
    data = path.read_bytes()
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != md5:
        raise OSError(f"{path.name} is not the file of its authors: its MD5 is not {md5}")
    return _Plain(io.BytesIO(data), encoding="latin1").load()
