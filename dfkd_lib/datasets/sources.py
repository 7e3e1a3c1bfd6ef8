"""Where real images come from: IDX files, scikit-learn's digits, CIFAR, any folder of class folders."""

import gzip
import math
import os
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from dfkd_lib.core import WorkbenchError, ledger
from dfkd_lib.core.artifacts import resolve
from dfkd_lib.datasets.cifar import read_cifar
from dfkd_lib.datasets.images import ImageSet

SPLITS = ("train", "test")
MNIST_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
LARGEST_IDX = 1 << 31  # bytes of values in an IDX file; MNIST's have 47 million
LARGEST_SIDE = 4096  # pixels that images may be resized to
# What may stand in an image file, whatever its suffix: Pillow also reads formats that run a program of their own (EPS).
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "WEBP", "TIFF", "GIF", "PPM")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


def load_images(
    name_or_path: str,
    split: str,
    root: str | Path = "data",
    *,
    size: int | None = None,
    channels: int | None = None,
    download: bool = False,
    max_images: int = 0,
) -> ImageSet:
    """A labelled real split, in memory.

    Args:
        name_or_path: "mnist", "digits", "cifar10", "cifar100", or a folder with `<split>/<class>/*.png|jpg|…`.
        split: "train" or "test" (a folder may also call its test images "val"); or "all" of a folder without splits,
            `<class>/*.png`, or images lying directly in it, which are one class then. Images of "all" that are not square
            lose their longer side's ends where a size is given.
        root: where named data sets lie.
        size: side in pixels that a folder's images are resized to (default: that of its first image).
        channels: 1 or 3 for a folder (default 3).
        download: fetch CIFAR if it is not there.
        max_images: of a folder, read no more files than that, as evenly over the classes as they allow, always the same
            ones; 0: all. Hidden files and folders are passed over.

    Returns:
        ImageSet: uint8 (N, C, H, W), int64 labels (N,), class names; `split` names the real split for the ledger.

    Raises:
        WorkbenchError: on missing, damaged or wrong-size files, an empty class, an unknown name or split.
    """
    named = name_or_path in NAMED
    if split not in SPLITS and (named or split != "all"):
        raise WorkbenchError(
            "no such split",
            expected=" or ".join(SPLITS) + ("" if named else ", or all of a folder"),
            got=split,
            where=name_or_path,
            fix="choose one of them",
        )
    root = resolve(root)
    ledger.register_root(root, free=("artifacts", "teachers"))
    if named:
        return NAMED[name_or_path](split, root, download)
    folder = resolve(name_or_path)
    if not os.path.isdir(folder):
        raise WorkbenchError(
            "no such data set",
            got=name_or_path,
            where=folder,
            expected=f"{', '.join(NAMED)}, or a folder with train/<class>/*.png",
            fix="check the name or the path",
        )
    return _folder(folder, split, size, channels, max_images)


def read_idx(path: str | Path) -> np.ndarray:
    """The uint8 array of a gzipped IDX file (LeCun's MNIST format); WorkbenchError if missing, damaged or truncated."""
    path = Path(path)
    fix = "fetch the file again; the four MNIST files belong in data/mnist/"
    try:
        with gzip.open(path) as file:
            head = file.read(4)
            dims = head[3] if head[:3] == b"\x00\x00\x08" and len(head) == 4 else 0
            sizes = file.read(4 * dims)
            shape = (
                struct.unpack(f">{dims}I", sizes)
                if 1 <= dims <= 4 and len(sizes) == 4 * dims
                else ()
            )
            count = math.prod(shape)
            # No more than the header tells of, and one byte to see whether there is more: it may unpack to gigabytes.
            body = file.read(count + 1) if shape and count <= LARGEST_IDX else b""
    except FileNotFoundError:
        raise WorkbenchError(
            "a data file is missing", expected=path.name, where=path.parent, fix=fix
        ) from None
    except ledger.LedgerError:
        raise
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise WorkbenchError(
            "a data file is damaged or truncated",
            expected="a whole gzip file",
            got=error,
            where=path,
            fix=fix,
        ) from None
    if not shape:
        raise WorkbenchError(
            "a data file is not an IDX file of bytes",
            expected="it begins 00 00 08 <dimensions, 1 to 4>",
            got=head.hex(" "),
            where=path,
            fix=fix,
        )
    if len(body) != count:
        got = f"{len(body)} bytes" if count > len(body) else f"{count} bytes and more"
        raise WorkbenchError(
            "a data file has the wrong size",
            expected=f"{shape} = {count} bytes of values, at most {LARGEST_IDX}",
            got=got,
            where=path,
            fix=fix,
        )
    return np.frombuffer(body, np.uint8).reshape(shape).copy()


def _mnist(split: str, root: Path, _: bool) -> ImageSet:
    folder = root / "mnist"
    ledger.register_files(
        {folder / name: f"mnist/{s}" for s, names in MNIST_FILES.items() for name in names}
    )
    image_file, label_file = (folder / name for name in MNIST_FILES[split])
    images, labels = read_idx(image_file), read_idx(label_file)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise WorkbenchError(
            "images and labels do not belong together",
            where=folder,
            expected="(N, height, width) images and (N,) labels",
            got=f"{images.shape} and {labels.shape}",
            fix="fetch both files of this split again",
        )
    return _image_set(images[:, None], labels, tuple("0123456789"), f"mnist/{split}")


def _digits(split: str, *_) -> ImageSet:
    import sklearn.datasets

    # One bundled file holds both splits: a stage that may read neither may not open it.
    ledger.register_files(
        {Path(sklearn.datasets.__file__).parent / "data" / "digits.csv.gz": f"digits/{split}"}
    )
    bunch = sklearn.datasets.load_digits()
    # The bundled copy comes in the writers' order; a fixed shuffle gives both splits every writer and class.
    order = np.random.default_rng(0).permutation(len(bunch.target))
    chosen = order[:1437] if split == "train" else order[1437:]
    images = np.round(bunch.images[chosen] * (255 / 16)).astype(np.uint8)
    labels = bunch.target[chosen]
    return _image_set(images[:, None], labels, tuple("0123456789"), f"digits/{split}")


def _cifar(name: str) -> Callable[..., ImageSet]:
    def load(split: str, root: Path, download: bool) -> ImageSet:
        return _image_set(*read_cifar(name, root, split, download), f"{name}/{split}")

    return load


NAMED = {
    "mnist": _mnist,
    "digits": _digits,
    "cifar10": _cifar("cifar10"),
    "cifar100": _cifar("cifar100"),
}


def _image_set(pixels: np.ndarray, labels, classes: tuple[str, ...], split: str) -> ImageSet:
    """Images (N, C, H, W) of a real split, named after it."""
    labels = torch.as_tensor(labels).long()
    return ImageSet(torch.from_numpy(pixels), labels, classes, split, split)


def _class_files(folder: Path, split: str) -> dict[str, list[Path]]:
    """{class: its image files, sorted} of a folder's split, every class with at least one."""
    base = folder if split == "all" else folder / split
    if split == "test" and not base.is_dir() and (folder / "val").is_dir():
        base = folder / "val"
    if split == "all" and any((base / name).is_dir() for name in ("train", "test", "val")):
        raise WorkbenchError(
            "this folder has splits",
            expected="a folder of class folders, or of images",
            got="train, test or val in it",
            where=base,
            fix="load its splits, or name one of them as the folder",
        )
    classes = (
        sorted(p.name for p in base.iterdir() if p.is_dir() and p.name[0] != ".")
        if base.is_dir()
        else []
    )
    files = {name: _images_in(base / name) for name in classes}
    if split == "all" and not classes and _images_in(base):
        files = {folder.name: _images_in(base)}
    if not files:
        raise WorkbenchError(
            "a folder of images has no classes",
            expected=f"{base}/<class>/*.png or *.jpg",
            where=base,
            fix="put each class's images into a folder of its name",
        )
    for name, found in files.items():
        if not found:
            raise WorkbenchError(
                "a class has no image",
                got="0 images",
                expected=f"{', '.join(IMAGE_SUFFIXES)} files",
                where=base / name,
                fix="add images, or remove the empty folder",
            )
    return files


def _images_in(folder: Path) -> list[Path]:
    return sorted(
        f
        for f in folder.iterdir()
        if f.suffix.lower() in IMAGE_SUFFIXES and f.name[0] != "." and f.is_file()
    )


def _thin(files: dict[str, list[Path]], count: int) -> dict[str, list[Path]]:
    """At most `count` files in all, the classes taken in turn; which ones of a class is drawn from seed 0."""
    if not count or sum(map(len, files.values())) <= count:
        return files
    rng = np.random.default_rng(0)
    drawn = {name: [found[i] for i in rng.permutation(len(found))] for name, found in files.items()}
    turns = sorted((i, name) for name, found in drawn.items() for i in range(len(found)))[:count]
    share = Counter(name for _, name in turns)
    return {name: sorted(drawn[name][: share[name]]) for name in drawn if share[name]}


def _folder(
    folder: Path, split: str, size: int | None, channels: int | None, max_images: int
) -> ImageSet:
    if max_images < 0:
        raise WorkbenchError(
            "no such number of images",
            expected="0 (all) or more",
            got=max_images,
            where="max_images",
            fix="give a number from 0 on",
        )
    files = _thin(_class_files(folder, split), max_images)
    if split == "all":
        places = {folder: f"{folder.name}/all"}
    else:
        splits = {"train": "train", "test": "test", "val": "test"}
        places = {folder / name: f"{folder.name}/{kind}" for name, kind in splits.items()}
    ledger.register_files(places)
    mode = _mode(channels, size, folder)
    every = [file for found in files.values() for file in found]
    first = read_image(every[0], mode)
    side = size or first.shape[0]
    if size is None and first.shape[0] != first.shape[1]:
        raise WorkbenchError(
            "images are not square",
            expected="square images, or a size to resize them to",
            got=f"{first.shape[1]} x {first.shape[0]}",
            where=every[0],
            fix="give size=...",
        )
    pixels = np.stack(
        [read_image(f, mode, side, resize=size is not None, crop=split == "all") for f in every]
    )
    pixels = np.ascontiguousarray(pixels.reshape(*pixels.shape[:3], -1).transpose(0, 3, 1, 2))
    labels = np.repeat(np.arange(len(files)), [len(found) for found in files.values()])
    return _image_set(pixels, labels, tuple(files), f"{folder.name}/{split}")


def _mode(channels: int | None, size: int | None, where: Path) -> str:
    if size is not None and not 1 <= size <= LARGEST_SIDE:
        raise WorkbenchError(
            "no such size of images",
            expected=f"1..{LARGEST_SIDE} pixels",
            got=size,
            where=where,
            fix="give another size",
        )
    mode = {None: "RGB", 3: "RGB", 1: "L"}.get(channels)
    if mode is None:
        raise WorkbenchError(
            "no such number of channels",
            expected="1 or 3",
            got=channels,
            where=where,
            fix="leave it out for colour, or give 1 for grey",
        )
    return mode


def load_image(
    path: str | Path, size: int | None = None, channels: int | None = None
) -> torch.Tensor:
    """One image file as uint8 (C, H, W), read as `load_images` reads those of "all": with a size, its middle square.

    Args:
        size: side in pixels, default as the file has it.
        channels: 1 or 3 (default 3).

    Raises:
        WorkbenchError: if the file is missing or damaged, or the number of channels another.
    """
    path = resolve(path)
    pixels = torch.from_numpy(
        read_image(
            path, _mode(channels, size, path), size, resize=size is not None, crop=True
        ).copy()
    )
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def open_image(path: Path):
    """Pillow's image of a file, not decoded yet; any error of Pillow's if it is none, or of more than 89 million pixels."""
    from PIL import Image

    with warnings.catch_warnings():  # what Pillow only warns of fills the memory just as well
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(path, formats=FORMATS)


def read_image(
    path: Path, mode: str, side: int | None = None, resize: bool = False, crop: bool = False
) -> np.ndarray:
    """One image file as uint8 (H, W) for mode "L" or (H, W, 3) for "RGB"; resized or checked to side × side if given.

    `crop` turns a photograph upright and takes the middle square before resizing. Transparent pixels become black,
    16-bit grey keeps its upper 8 bits; pixels that are not whole numbers of at most 16 bits are refused. CMYK is inverted
    in a JPEG file with Adobe's marker alone. Of several frames the first is taken.
    """
    from PIL import Image, ImageChops, ImageOps

    try:
        with open_image(path) as image:
            if image.mode == "F":
                raise ValueError("floating-point pixels, whose range nobody knows")
            if crop:
                image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip rather than scale
                values = np.asarray(image)
                if values.min() < 0 or values.max() > 65535:
                    raise ValueError("whole numbers beyond 16 bits, whose range nobody knows")
                image = Image.fromarray((values >> 8).astype(np.uint8))
            elif image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
                # Pillow takes every CMYK JPEG for Adobe's, who write them inverted.
                image = ImageChops.invert(image)
            elif "A" in image.getbands() or "transparency" in image.info:
                over = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", over.size, (0, 0, 0, 255)), over)
            image = image.convert(mode)
    except WorkbenchError:  # the ledger's refusal
        raise
    # A broken file makes Pillow's readers raise whatever they stumble over.
    except Exception as error:
        raise WorkbenchError(
            "an image cannot be read",
            expected="a whole image file",
            got=str(error) or type(error).__name__,
            where=path,
            fix="replace or remove the file",
        ) from None
    if resize:
        image = (
            ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)
            if crop
            else image.resize((side, side), Image.Resampling.BICUBIC)
        )
    if side and image.size != (side, side):
        raise WorkbenchError(
            "an image has another size than the first",
            expected=f"{side} x {side} pixels",
            got=f"{image.width} x {image.height}",
            where=path,
            fix="give size=... to resize them all",
        )
    return np.asarray(image)
