"""One shape for every maker: what it is, what it is given, how many → an `ImageSet` on disk, with its ledger.

Images are made shard by shard into one file that is then mapped into memory, never loaded: a killed run goes on with its
next shard, and 50,000 images cost no more memory than one shard.
"""

import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dfkd_lib.core import Artifact, Store, WorkbenchError, artifacts
from dfkd_lib.datasets import ImageSet
from dfkd_lib.synthesis.canvas import balanced_labels
from dfkd_lib.synthesis.given import Given

IMAGES = "images.npy"


class Maker(Protocol):
    """Settings that can make images: a `core.Config`, or a frozen dataclass.

    Args:
        sees: what it may see of the real data, out of "real images" and "class probes".
        budget: the same in words.
        shard: images drawn, and written, at a time.
    """

    sees: tuple[str, ...]
    budget: str
    shard: int

    def train(self, store: Store, given: Given) -> Artifact | None:
        """What has to be trained before images can be drawn, made or found by key."""

    def drawing(self, trained: Artifact | None, given: Given) -> Callable[[Tensor, int], Tensor]:
        """A function from (labels (N,), seed) to uint8 images (N, C, S, S) of these classes, the same at every call.

        One that remembers has an attribute `earlier`, which is called with those that a killed run had drawn before.
        """

    def parents(self, given: Given) -> list[Artifact]:
        """The artifacts that drawing uses beside `trained`."""

    def as_dict(self) -> dict:
        """What drawing depends on, JSON-able."""


def make_images(
    store: Store, maker: Maker, given: Given, count: int, seed: int = 0
) -> tuple[ImageSet, Artifact]:
    """`count` synthetic images, even over the classes: (ImageSet, its artifact).

    Drawing reads no real image, whatever the maker, and the ledger holds it to that; what the training of the maker has
    read stands in the ledger of its parents.

    Args:
        maker: a `CGAN`, `GuidedGenerator`, `Inversion` or one of your own.
        given: what it may use.
        count: images, at least one a class.

    Returns:
        The images, mapped from the artifact's images.npy, uint8 (count, C, S, S); labels 0, 1, …, K−1, 0, 1, …

    Raises:
        WorkbenchError: if count is smaller than the number of classes; whatever the maker raises.
    """
    if count < len(given.classes):
        raise WorkbenchError(
            "too few images to make",
            expected=f"at least {len(given.classes)}, one a class",
            got=count,
            where="make_images",
            fix="ask for more images",
        )
    trained = maker.train(store, given)
    settings = {
        "maker": type(maker).__name__,
        **maker.as_dict(),
        **given.wanted,
        "count": count,
        "seed": seed,
        "shard": maker.shard,
    }
    parents = [*([trained] if trained else []), *maker.parents(given)]

    def make(work: Path) -> dict:
        draw_shards(work, maker, trained, given, count, seed)
        return {"images": count, "maker": maker.budget}

    # Of a student that is trained while images are drawn, the architecture's code.
    made = store.get_or_make("synthetic", settings, make, parents, code=getattr(maker, "code", ()))
    return open_images(made), made


def draw_shards(
    work: Path, maker: Maker, trained: Artifact | None, given: Given, count: int, seed: int
) -> None:
    """Write a maker's images, going on after the shards that are on disk and whole."""
    draw, labels = maker.drawing(trained, given), balanced_labels(count, len(given.classes))
    done = work / "checkpoint" / "shards.json"
    done.parent.mkdir(exist_ok=True)
    sums, size = _kept_shards(done), maker.shard * int(np.prod(given.shape))
    shape = (count, *given.shape)
    with open(work / IMAGES, "r+b" if sums else "w+b") as file:
        head = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, head)
        begin, whole = file.tell(), 0
        while whole < len(sums) and zlib.crc32(file.read(size)) == sums[whole]:
            whole += 1
        if whole < len(sums):
            place = f"{work / IMAGES}: damaged in part {whole + 1} of {len(sums)}"
            print(f"{place}; drawn anew from there", flush=True)
        del sums[whole:]
        if whole and (earlier := getattr(draw, "earlier", None)):
            file.seek(begin)
            for _ in range(whole):
                held = np.frombuffer(bytearray(file.read(size)), np.uint8)
                earlier(torch.from_numpy(held).view(-1, *given.shape))
        for shard, part in enumerate(labels.split(maker.shard)):
            if shard < whole:
                continue
            # Seeded by its number, a shard is the same whether or not the run was broken off before it.
            drawn = draw(part, seed * 100_003 + shard)
            images = _checked(drawn, (len(part), *given.shape), maker)
            file.seek(begin + shard * size)
            file.write(images)
            file.flush()
            # Or after a power cut the sums below could stand for images that are not on disk.
            os.fsync(file.fileno())
            sums.append(zlib.crc32(images))
            artifacts.save_json(done, sums)


def _checked(drawn: object, shape: tuple[int, ...], maker: Maker) -> np.ndarray:
    """What a maker has drawn, as bytes to write; refused unless it is a uint8 image for each label."""
    right = isinstance(drawn, Tensor) and drawn.dtype == torch.uint8 and drawn.shape == shape
    if not right:
        form = (drawn.dtype, tuple(drawn.shape)) if isinstance(drawn, Tensor) else type(drawn)
        raise WorkbenchError(
            "a maker draws one image for each label",
            expected=f"torch.uint8 {shape}",
            got=" ".join(map(str, form)) if isinstance(form, tuple) else form.__name__,
            where=f"{type(maker).__name__}.drawing",
            fix="return uint8 images (N, C, S, S) in the order of the labels; datasets.to_uint8 takes floats in [-1, 1]",
        )
    return drawn.cpu().contiguous().numpy()


def _kept_shards(done: Path) -> list[int]:
    """The checksums of the shards that are on disk; none where the file that holds them is missing or damaged."""
    try:
        sums = json.loads(done.read_text())
        return sums if isinstance(sums, list) and (done.parent.parent / IMAGES).is_file() else []
    except (OSError, ValueError):
        return []


def open_images(made: Artifact) -> ImageSet:
    """The `ImageSet` of a "synthetic" artifact: its pixels stay on disk until they are used.

    Raises:
        WorkbenchError: if the artifact holds no images.
    """
    file, classes = made.path / IMAGES, tuple(made.settings.get("classes", ()))
    if not file.is_file():
        raise WorkbenchError(
            "this artifact holds no images",
            expected=IMAGES,
            got=made.stage,
            where=made.path,
            fix="give an artifact that make_images has returned",
        )
    pixels = np.load(file, mmap_mode="c")  # copy on write: nothing can change the file
    labels = balanced_labels(len(pixels), len(classes))
    return ImageSet(torch.from_numpy(pixels), labels, classes, f"synthetic ({made.key})")
