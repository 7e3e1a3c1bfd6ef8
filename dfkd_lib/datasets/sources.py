"""Where real images come from: IDX files, scikit-learn's digits, torchvision's CIFAR, any folder of class folders."""

import gzip
import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from dfkd_lib import ledger
from dfkd_lib.artifacts import resolve
from dfkd_lib.datasets.images import ImageSet
from dfkd_lib.errors import WorkbenchError

SPLITS = ("train", "test")
MNIST_FILES = {"train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
               "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")}
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


def load_images(name_or_path: str, split: str, root: str | Path = "data", *, size: int | None = None,
                channels: int | None = None, download: bool = False, max_images: int = 0) -> ImageSet:
    """A labelled real split, in memory.

    Args:
        name_or_path: "mnist", "digits", "cifar10", "cifar100", or a folder with `<split>/<class>/*.png|jpg|…`.
        split: "train" or "test" (a folder may also call its test images "val"); or "all" of a folder without splits,
            `<class>/*.png`, or images lying directly in it, which are one class then. Images of "all" that are not square
            lose their longer side's ends where a size is given.
        root: where named data sets lie. size: side in pixels that a folder's images are resized to (default: that of
            its first image). channels: 1 or 3 for a folder (default 3). download: fetch CIFAR if it is not there.
        max_images: of a folder, read no more files than that, as evenly over the classes as they allow, always the same
            ones; 0: all. Hidden files and folders are passed over.

    Returns:
        ImageSet: uint8 (N, C, H, W), int64 labels (N,), class names; `split` names the real split for the ledger.

    Raises:
        WorkbenchError: on missing, damaged or wrong-size files, an empty class, an unknown name or split.
    """
    named = name_or_path in ("mnist", "digits", "cifar10", "cifar100")
    if split not in SPLITS and (named or split != "all"):
        raise WorkbenchError("no such split", expected=" or ".join(SPLITS) + ("" if named else ", or all of a folder"),
                             got=split, where=name_or_path)
    if max_images < 0:
        raise WorkbenchError("no such number of images", expected="0 (all) or more", got=max_images, where="max_images")
    root = resolve(root)
    ledger.register_root(root, free=("artifacts", "teachers"))
    if name_or_path == "mnist":
        return _mnist(root / "mnist", split)
    if name_or_path == "digits":
        return _digits(split)
    if name_or_path in ("cifar10", "cifar100"):
        return _cifar(name_or_path, root, split, download)
    folder = resolve(name_or_path)
    if not folder.is_dir():
        raise WorkbenchError("no such data set", got=name_or_path, where=folder,
                             expected="mnist, digits, cifar10, cifar100, or a folder with train/<class>/*.png",
                             mend="check the name or the path")
    return _folder(folder, split, size, channels, max_images)


def read_idx(path: str | Path) -> np.ndarray:
    """The uint8 array of a gzipped IDX file (LeCun's MNIST format); WorkbenchError if missing, damaged or truncated."""
    path = Path(path)
    mend = "fetch the file again; the four MNIST files belong in data/mnist/"
    try:
        with gzip.open(path) as file:
            data = file.read()
    except FileNotFoundError:
        raise WorkbenchError("a data file is missing", expected=path.name, where=path.parent, mend=mend) from None
    except (OSError, EOFError, zlib.error) as error:
        raise WorkbenchError("a data file is damaged or truncated", expected="a whole gzip file", got=error, where=path,
                             mend=mend) from None
    dims = data[3] if len(data) >= 4 and data[:3] == b"\x00\x00\x08" else 0
    if not dims or len(data) < 4 + 4 * dims:
        raise WorkbenchError("a data file is not an IDX file of bytes", expected="it begins 00 00 08 <dimensions>",
                             got=data[:4].hex(" "), where=path, mend=mend)
    shape = struct.unpack(f">{dims}I", data[4:4 + 4 * dims])
    body = len(data) - 4 - 4 * dims
    if body != int(np.prod(shape, dtype=np.int64)):
        raise WorkbenchError("a data file has the wrong size", expected=f"{shape} = {np.prod(shape)} bytes of values",
                             got=f"{body} bytes", where=path, mend=mend)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(shape).copy()


def _mnist(folder: Path, split: str) -> ImageSet:
    ledger.register_files({folder / name: f"mnist/{s}" for s, names in MNIST_FILES.items() for name in names})
    image_file, label_file = (folder / name for name in MNIST_FILES[split])
    images, labels = read_idx(image_file), read_idx(label_file)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise WorkbenchError("images and labels do not belong together", where=folder,
                             expected="(N, height, width) images and (N,) labels",
                             got=f"{images.shape} and {labels.shape}", mend="fetch both files of this split again")
    return ImageSet(torch.from_numpy(images)[:, None], torch.from_numpy(labels).long(), tuple("0123456789"),
                    f"mnist/{split}", f"mnist/{split}")


def _digits(split: str) -> ImageSet:
    import sklearn.datasets

    # One bundled file holds both splits: a stage that may read neither may not open it.
    ledger.register_files({Path(sklearn.datasets.__file__).parent / "data" / "digits.csv.gz": f"digits/{split}"})
    bunch = sklearn.datasets.load_digits()
    # The bundled copy comes in the writers' order; a fixed shuffle gives both splits every writer and class.
    order = np.random.default_rng(0).permutation(len(bunch.target))
    chosen = order[:1437] if split == "train" else order[1437:]
    images = np.round(bunch.images[chosen] * (255 / 16)).astype(np.uint8)
    return ImageSet(torch.from_numpy(images)[:, None], torch.from_numpy(bunch.target[chosen]).long(),
                    tuple("0123456789"), f"digits/{split}", f"digits/{split}")


def _cifar(name: str, root: Path, split: str, download: bool) -> ImageSet:
    import torchvision

    kind = torchvision.datasets.CIFAR10 if name == "cifar10" else torchvision.datasets.CIFAR100
    files = {root / kind.base_folder / entry[0]: f"{name}/train" for entry in kind.train_list}
    ledger.register_files(files | {root / kind.base_folder / entry[0]: f"{name}/test" for entry in kind.test_list})
    try:
        # torchvision checks each file's md5 against its own list before it unpickles: bytes are CIFAR's or refused.
        data = kind(str(root), train=split == "train", download=download)
    except (RuntimeError, OSError) as error:  # OSError: no network
        raise WorkbenchError(f"{name} is not here, or damaged", expected=f"torchvision's files in {root / kind.base_folder}",
                             got=error, mend=f"load_images('{name}', '{split}', download=True) fetches it, or name a "
                             "folder of class folders instead") from None
    return ImageSet(torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets),
                    tuple(data.classes), f"{name}/{split}", f"{name}/{split}")


def _class_files(folder: Path, split: str) -> dict[str, list[Path]]:
    """{class: its image files, sorted} of a folder's split, every class with at least one."""
    base = folder if split == "all" else folder / split
    if split == "test" and not base.is_dir() and (folder / "val").is_dir():
        base = folder / "val"
    if split == "all" and any((base / name).is_dir() for name in ("train", "test", "val")):
        raise WorkbenchError("this folder has splits", expected="a folder of class folders, or of images",
                             got="train, test or val in it", where=base, mend="load its splits, or name one of "
                             "them as the folder")
    classes = sorted(p.name for p in base.iterdir() if p.is_dir() and p.name[0] != ".") if base.is_dir() else []
    files = {name: _images_in(base / name) for name in classes}
    if split == "all" and not classes and _images_in(base):
        files = {folder.name: _images_in(base)}
    if not files:
        raise WorkbenchError("a folder of images has no classes", expected=f"{base}/<class>/*.png or *.jpg", where=base,
                             mend="put each class's images into a folder of its name")
    for name, found in files.items():
        if not found:
            raise WorkbenchError("a class has no image", got="0 images", expected=f"{', '.join(IMAGE_SUFFIXES)} files",
                                 where=base / name, mend="add images, or remove the empty folder")
    return files


def _images_in(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir()
                  if f.suffix.lower() in IMAGE_SUFFIXES and f.name[0] != "." and f.is_file())


def _thin(files: dict[str, list[Path]], count: int) -> dict[str, list[Path]]:
    """At most `count` files in all, the classes taken in turn; which ones of a class is drawn from seed 0."""
    if not count or sum(map(len, files.values())) <= count:
        return files
    rng = np.random.default_rng(0)
    drawn = {name: [found[i] for i in rng.permutation(len(found))] for name, found in files.items()}
    turns = sorted((i, name) for name, found in drawn.items() for i in range(len(found)))[:count]
    share = Counter(name for _, name in turns)
    return {name: sorted(drawn[name][:share[name]]) for name in drawn if share[name]}


def _folder(folder: Path, split: str, size: int | None, channels: int | None, max_images: int) -> ImageSet:
    files = _thin(_class_files(folder, split), max_images)
    places = ("all",) if split == "all" else ("train", "test", "val")
    ledger.register_files({folder if name == "all" else folder / name:
                           f"{folder.name}/{'test' if name == 'val' else name}" for name in places})
    mode = _mode(channels, folder)
    every = [file for found in files.values() for file in found]
    first = read_image(every[0], mode)
    side = size or first.shape[0]
    if size is None and first.shape[0] != first.shape[1]:
        raise WorkbenchError("images are not square", expected="square images, or a size to resize them to",
                             got=f"{first.shape[1]} x {first.shape[0]}", where=every[0], mend="give size=...")
    pixels = np.stack([read_image(f, mode, side, resize=size is not None, crop=split == "all") for f in every])
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
    labels = np.repeat(np.arange(len(files)), [len(found) for found in files.values()])
    name = f"{folder.name}/{split}"
    return ImageSet(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels).long(),
                    tuple(files), name, name)


def _mode(channels: int | None, where: Path) -> str:
    mode = {None: "RGB", 3: "RGB", 1: "L"}.get(channels)
    if mode is None:
        raise WorkbenchError("no such number of channels", expected="1 or 3", got=channels, where=where)
    return mode


def load_image(path: str | Path, size: int | None = None, channels: int | None = None) -> torch.Tensor:
    """One image file as uint8 (C, H, W), read as `load_images` reads those of "all": with a size, its middle square.

    Args:
        size: side in pixels, default as the file has it. channels: 1 or 3 (default 3).

    Raises:
        WorkbenchError: if the file is missing or damaged, or the number of channels another.
    """
    path = resolve(path)
    pixels = torch.from_numpy(read_image(path, _mode(channels, path), size, resize=size is not None, crop=True).copy())
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def read_image(path: Path, mode: str, side: int | None = None, resize: bool = False, crop: bool = False) -> np.ndarray:
    """One image file as uint8 (H, W) for mode "L" or (H, W, 3) for "RGB"; resized or checked to side × side if given.

    `crop` turns a photograph upright and takes the middle square before resizing. Transparent pixels become black,
    16-bit grey keeps its upper 8 bits; pixels that are not whole numbers are refused. CMYK is inverted in a JPEG file
    with Adobe's marker alone.
    """
    from PIL import Image, ImageChops, ImageOps

    try:
        with Image.open(path) as image:
            if image.mode == "F":
                raise ValueError("floating-point pixels, whose range nobody knows")
            if crop:
                image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip rather than scale
                image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
            elif image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
                image = ImageChops.invert(image)  # Pillow takes every CMYK JPEG for Adobe's, who write them inverted
            elif "A" in image.getbands() or "transparency" in image.info:
                over = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", over.size, (0, 0, 0, 255)), over)
            image = image.convert(mode)
    except WorkbenchError:  # the ledger's refusal
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise WorkbenchError("an image cannot be read", expected="a whole image file", got=error, where=path,
                             mend="replace or remove the file") from None
    if resize:
        image = ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC) if crop else image.resize(
            (side, side), Image.Resampling.BICUBIC)
    if side and image.size != (side, side):
        raise WorkbenchError("an image has another size than the first", expected=f"{side} x {side} pixels",
                             got=f"{image.width} x {image.height}", where=path, mend="give size=... to resize them all")
    return np.asarray(image)
