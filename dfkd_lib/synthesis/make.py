"""One shape for every maker: what it is, what it is given, how many → an `ImageSet` on disk, with its ledger.

Images are made shard by shard, and the one file of all is mapped into memory, never loaded: a killed run goes on with its
next shard, and 50,000 images cost no more memory than one shard.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dfkd_lib.core import Artifact, Store, WorkbenchError, artifacts
from dfkd_lib.core.files import whole_files
from dfkd_lib.datasets import ImageSet
from dfkd_lib.synthesis.canvas import balanced_labels
from dfkd_lib.synthesis.check import check_drawing, check_maker, returned
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
        WorkbenchError: if count is smaller than the number of classes; if the maker lacks something of `Maker`, or one of
            its methods takes or returns something else; whatever the maker raises.
    """
    check_maker(maker)
    if count < len(given.classes):
        raise WorkbenchError(
            "too few images to make",
            expected=f"at least {len(given.classes)}, one a class",
            got=count,
            where="make_images",
            fix="ask for more images",
        )
    trained = returned(maker, "train", maker.train(store, given))
    settings = {
        "maker": type(maker).__name__,
        **returned(maker, "as_dict", maker.as_dict()),
        **given.wanted,
        "count": count,
        "seed": seed,
        "shard": maker.shard,
    }
    others = returned(maker, "parents", maker.parents(given))
    parents = [*([trained] if trained else []), *others]

    def make(work: Path) -> dict:
        draw_shards(work, maker, trained, given, count, seed)
        return {"images": count, "maker": maker.budget}

    # Of a student that is trained while images are drawn, the architecture's code.
    code = getattr(maker, "code", ())
    try:
        made = store.get_or_make("synthetic", settings, make, parents, code=code)
    except TypeError as error:
        check_drawing(maker, error, draw_shards)
        raise
    return open_images(made), made


def draw_shards(
    work: Path, maker: Maker, trained: Artifact | None, given: Given, count: int, seed: int
) -> None:
    """Write a maker's images, going on after the shards that are on disk."""
    draw, done = maker.drawing(trained, given), whole_files(work)
    shape = (count, *given.shape)
    with open(work / IMAGES, "wb") as file:
        head = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, head)
        labels = balanced_labels(count, len(given.classes)).split(maker.shard)
        for number, part in enumerate(labels):
            path = work / "checkpoint" / f"images-{number:05d}.safetensors"
            if str(path.relative_to(work)) in done:
                images = artifacts.load_tensors(path)["images"]
                if earlier := getattr(draw, "earlier", None):
                    earlier(images)
            else:
                # Seeded by its number, a shard is the same whether or not the run was broken off before it.
                images = draw(part, seed * 100_003 + number)
                _check(images, (len(part), *shape[1:]), maker)
                path.parent.mkdir(exist_ok=True)
                artifacts.save_tensors(path, {"images": images})
                artifacts.note_whole(work, path)
            file.write(images.cpu().contiguous().numpy())


def _check(drawn: object, shape: tuple[int, ...], maker: Maker) -> None:
    """Refuse what a maker has drawn unless it is a uint8 image for each label."""
    form = (drawn.dtype, tuple(drawn.shape)) if isinstance(drawn, Tensor) else type(drawn)
    if form != (torch.uint8, shape):
        raise WorkbenchError(
            "a maker draws one image for each label",
            expected=f"torch.uint8 {shape}",
            got=" ".join(map(str, form)) if isinstance(form, tuple) else form.__name__,
            where=f"{type(maker).__name__}.drawing",
            fix="return uint8 images (N, C, S, S) in the order of the labels; datasets.to_uint8 takes floats in [-1, 1]",
        )


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
