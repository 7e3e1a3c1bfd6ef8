"""Where real images come from: IDX files, scikit-learn's digits, CIFAR, any folder of class folders."""

import gzip
import math
import os
import struct
import warnings
import zlib
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageChops, ImageOps

from dfkd_lib.core import WorkbenchError, ledger, one_of, resolve
from dfkd_lib.datasets.cifar import read_cifar
from dfkd_lib.datasets.images import ImageSet, evenly

SPLITS = ("train", "test")
LARGEST_SIDE = 4096  # pixels that images may be resized to
MNIST_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
LARGEST_IDX = 1 << 31  # bytes of values in an IDX file; MNIST's have 47 million
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
        name_or_path: "mnist", "digits", "cifar10", "cifar100" (also as a folder of this name below `root`), or a folder with `<split>/<class>/*.png|jpg|…`; images in
            sub-folders of a class's folder are of that class.
        split: "train" or "test" (a folder may also call its test images "val"); or "all" of a folder without splits,
            `<class>/*.png`, or images lying directly in it, which are one class then. Images of "all" that are not square
            lose their longer side's ends where a size is given.
        root: where named data sets lie.
        size: side in pixels that a folder's images are resized to (default: that of its first image); digits are padded to
            it with black.
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
    one_of(f"split of {name_or_path}", split, SPLITS if named else (*SPLITS, "all"))
    root = resolve(root)
    ledger.register_root(root, free=("artifacts", "teachers"))
    own = root / name_or_path if named else None
    if own and not (own / "train").is_dir():
        pixels, labels, classes = NAMED[name_or_path](split, root, download)
        pixels = _padded(pixels, size or pixels.shape[-1], name_or_path)
        return _image_set(pixels, labels, classes, f"{name_or_path}/{split}")
    folder = own or resolve(name_or_path)
    if not os.path.isdir(folder):
        raise WorkbenchError(
            "no such data set",
            got=name_or_path,
            where=folder,
            expected=f"{', '.join(NAMED)}, or a folder with train/<class>/*.png",
            fix="check the name or the path",
        )
    return _folder(folder, split, size, channels, max_images)


def _padded(pixels: np.ndarray, side: int, name: str) -> np.ndarray:
    """Images (N, C, S, S) of a named set in the middle of a black square of `side` pixels; only digits stand on black."""
    more = side - pixels.shape[-1]
    if more and (more < 0 or pixels.shape[1] > 1):
        raise WorkbenchError(
            f"the images of {name} are not had at this size",
            expected=f"size {pixels.shape[-1]}" + " or more" * (pixels.shape[1] == 1),
            got=side,
            where="size",
            fix="leave size out (0), or name a folder of its images, which are resized",
        )
    before = more // 2
    edges = (before, more - before)
    return np.pad(pixels, ((0, 0), (0, 0), edges, edges)) if more else pixels


def _image_set(pixels: np.ndarray, labels, classes: tuple[str, ...], split: str) -> ImageSet:
    """Images (N, C, H, W) of a real split, named after it."""
    labels = torch.as_tensor(labels).long()
    return ImageSet(torch.from_numpy(pixels), labels, classes, split, split)


def read_idx(path: str | Path) -> np.ndarray:
    """The uint8 array of a gzipped IDX file (LeCun's MNIST format); WorkbenchError if missing, damaged or truncated."""
    path = Path(path)
    try:
        with gzip.open(path) as file:
            head = file.read(4)
            dims = head[3] if head[:3] == b"\x00\x00\x08" and len(head) == 4 else 0
            sizes = file.read(4 * dims)
            if not 1 <= dims <= 4 or len(sizes) != 4 * dims:
                raise ValueError(f"it begins {head.hex(' ')}, and is not an IDX file of bytes")
            shape = struct.unpack(f">{dims}I", sizes)
            count = math.prod(shape)
            # No more than the header tells of, and one byte to see whether there is more: it may unpack to gigabytes.
            body = file.read(count + 1) if count <= LARGEST_IDX else b""
        if len(body) != count:
            raise ValueError(f"it has the wrong size for {shape} values of a byte")
    except ledger.LedgerError:
        raise
    except (OSError, EOFError, ValueError, zlib.error) as error:
        missing = isinstance(error, FileNotFoundError)
        raise WorkbenchError(
            f"a data file is {'missing' if missing else 'damaged or truncated'}",
            expected="a whole gzip file: 00 00 08 <dimensions, 1 to 4>, their sizes, the values",
            got=error,
            where=path,
            fix="fetch the file again; the four MNIST files belong in data/mnist/",
        ) from None
    return np.frombuffer(body, np.uint8).reshape(shape).copy()


def _register_mnist(root: Path) -> Path:
    """Say which files below `root` are MNIST's; returns their folder."""
    folder = root / "mnist"
    files = {folder / name: f"mnist/{s}" for s, names in MNIST_FILES.items() for name in names}
    ledger.register_files(files)
    return folder


_register_mnist(resolve("data"))


def _mnist(split: str, root: Path, _: bool) -> tuple:
    folder = _register_mnist(root)
    images, labels = (read_idx(folder / name) for name in MNIST_FILES[split])
    return images[:, None], labels, tuple("0123456789")


def _digits(split: str, *_) -> tuple:
    import sklearn.datasets

    bunch = sklearn.datasets.load_digits()
    # The bundled copy comes in the writers' order; a fixed shuffle gives both splits every writer and class.
    order = np.random.default_rng(0).permutation(len(bunch.target))
    chosen = order[:1437] if split == "train" else order[1437:]
    images = np.round(bunch.images[chosen] * (255 / 16)).astype(np.uint8)
    return images[:, None], bunch.target[chosen], tuple("0123456789")


# Each gives pixels, labels and classes for (split, root, download).
NAMED = {
    "mnist": _mnist,
    "digits": _digits,
    "cifar10": partial(read_cifar, "cifar10"),
    "cifar100": partial(read_cifar, "cifar100"),
}


def _folder(
    folder: Path, split: str, size: int | None, channels: int | None, max_images: int
) -> ImageSet:
    mode = {None: "RGB", 3: "RGB", 1: "L"}.get(channels)
    if mode is None or max_images < 0 or not (size is None or 1 <= size <= LARGEST_SIDE):
        raise WorkbenchError(
            "no such size, number of channels or number of images",
            expected=f"size 1..{LARGEST_SIDE} or none, channels 1 or 3, max_images 0 (all) or more",
            got=f"size {size}, channels {channels}, max_images {max_images}",
            where=folder,
            fix="correct the value out of range",
        )
    files = _class_files(folder, split)
    if split == "all":
        ledger.register_files({folder: f"{folder.name}/all"})
    else:
        splits = {"train": "train", "test": "test", "val": "test"}
        ledger.register_files({folder / s: f"{folder.name}/{kind}" for s, kind in splits.items()})
    labels = torch.tensor([k for k, found in enumerate(files.values()) for _ in found])
    chosen = evenly(labels, max_images or len(labels), 0).sort().values
    every = [file for found in files.values() for file in found]
    every = [every[i] for i in chosen]
    images = [read_image(file, mode, size, crop=split == "all") for file in every]
    side = images[0].shape[0]
    for file, image in zip(every, images, strict=True):
        if image.shape[:2] != (side, side):
            raise WorkbenchError(
                "an image is not square, or has another size than the first",
                expected=f"{side} x {side} pixels",
                got=f"{image.shape[1]} x {image.shape[0]}",
                where=file,
                fix="give size=... to resize them all",
            )
    pixels = np.stack(images)
    pixels = np.ascontiguousarray(pixels.reshape(*pixels.shape[:3], -1).transpose(0, 3, 1, 2))
    return _image_set(pixels, labels[chosen], tuple(files), f"{folder.name}/{split}")


def _class_files(folder: Path, split: str) -> dict[str, list[Path]]:
    """{class: its image files, sorted} of a folder's split, every class with at least one."""
    base = folder if split == "all" else folder / split
    if split == "test" and not base.is_dir():
        base = folder / "val"
    places = [*base.glob("*/"), *base.glob("*/*/")] if split == "all" else []
    for place in places:
        if place.name in ("train", "test", "val"):
            raise WorkbenchError(
                "this folder has splits",
                expected="a folder of class folders, or of images",
                got=place,
                where=base,
                fix=f"load the splits of {place.parent}, or name one of them as the folder",
            )
    within = sorted(base.iterdir()) if base.is_dir() else []
    files = {p.name: _images_in(p) for p in within if p.is_dir() and p.name[0] != "."}
    if split == "all" and not files and (own := _images_in(base, deep=False)):
        files = {folder.name: own}
    if not files or not all(files.values()):
        empty = [name for name, found in files.items() if not found]
        raise WorkbenchError(
            "a class has no image" if files else "a folder of images has no classes",
            expected=f"<class>/**/*{{{','.join(IMAGE_SUFFIXES)}}}",
            got=f"no image in {', '.join(empty)}" if files else "no folder of a class",
            where=base,
            fix="put each class's images into a folder of its name, and remove empty ones",
        )
    return files


def _images_in(folder: Path, deep: bool = True) -> list[Path]:
    """A folder's image files, sorted; with those of its sub-folders where `deep`."""
    found = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if deep and name[0] != "."]
        found += [Path(place, name) for name in names if name[0] != "."]
    return sorted(f for f in found if f.suffix.lower() in IMAGE_SUFFIXES and f.is_file())


@contextmanager
def open_image(path: Path):
    """Pillow's image of a file, not decoded yet; WorkbenchError if it is none, or has more than 89 million pixels.

    Also on what goes wrong while it is open: a broken file makes Pillow's readers raise whatever they stumble over.
    """
    try:
        with warnings.catch_warnings():  # what Pillow only warns of fills the memory just as well
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                yield image
    except WorkbenchError:  # the ledger's refusal
        raise
    except Exception as error:
        raise WorkbenchError(
            "an image cannot be read",
            expected="a whole image file",
            got=str(error) or type(error).__name__,
            where=path,
            fix="replace or remove the file",
        ) from None


def read_image(path: Path, mode: str, size: int | None = None, crop: bool = False) -> np.ndarray:
    """One image file as uint8 (H, W) for mode "L" or (H, W, 3) for "RGB", see `upright`, resized to size × size if given.

    `crop` takes the middle square before resizing. Of several frames the first is taken.
    """
    with open_image(path) as opened:
        image = upright(opened, mode)
        if size and crop:
            image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
        elif size:
            image = image.resize((size, size), Image.Resampling.BICUBIC)
        return np.asarray(image)


# deploy/predict.py, which runs without this library, holds the same text.
def upright(image: Image.Image, mode: str) -> Image.Image:
    """An opened file in mode "L" or "RGB", turned as its EXIF tag says.

    Transparent pixels become black, 16-bit grey keeps its upper 8 bits; pixels that are not whole numbers of at most 16
    bits are refused. CMYK is inverted in a JPEG file with Adobe's marker alone.
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range nobody knows")
    # Pillow takes every CMYK JPEG for Adobe's, who write them inverted.
    inverted = (image.mode, image.format) == ("CMYK", "JPEG") and "adobe" not in image.info
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip rather than scale
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("whole numbers beyond 16 bits, whose range nobody knows")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif inverted:
        image = ImageChops.invert(image)
    elif "A" in image.getbands() or "transparency" in image.info:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, (0, 0, 0, 255)), over)
    return image.convert(mode)


def upright_size(image: Image.Image) -> tuple[tuple[int, int], bool]:
    """(width, height) of an opened file once it is upright, and whether its EXIF tag turns or mirrors it at all."""
    # The method of PNG files decodes all pixels to look for a tag behind them.
    turned = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    # Pillow gives the size of a TIFF file as it will be upright.
    across = turned in (5, 6, 7, 8) and image.format != "TIFF"
    return image.size[::-1] if across else image.size, turned in range(2, 9)


def size_of(path: Path) -> tuple[int, int] | None:
    """Width and height of a file's upright picture; None if it cannot be read, which is reported with the other images."""
    try:
        with open_image(path) as image:
            return upright_size(image)[0]
    except ledger.LedgerError:
        raise
    except WorkbenchError:
        return None
