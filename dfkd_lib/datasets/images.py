"""`ImageSet`: labelled images in memory as uint8, which say what real split they come from; batch augmentation."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from dfkd_lib.core import Pixels, WorkbenchError, origin, printable


def check_names(classes: tuple[str, ...], where: str) -> None:
    """Raise WorkbenchError unless every class has a name that a table, a page and a terminal can show."""
    bad = [name for name in classes if not name.strip() or not printable(name)]
    if bad or not classes:
        raise WorkbenchError(
            "a class has no usable name",
            expected="text without control characters",
            where=where,
            got=repr(bad[0]) if bad else "no classes",
            fix="rename it",
        )


def check_classes_agree(expected: Sequence[str], got: Sequence[str], where: str) -> None:
    """Raise unless both name the same classes in the same order: label k must mean one thing."""
    expected, got = tuple(expected), tuple(got)
    if expected == got:
        return
    lacking = [f"no {name}" for name in expected if name not in got]
    others = [f"also {name}" for name in got if name not in expected]
    difference = ", ".join([*lacking, *others]) or "in another order"
    raise WorkbenchError(
        "class names differ, so labels would mean different things",
        expected=", ".join(expected) or "names, which nobody recorded",
        got=f"{', '.join(got)} ({difference})",
        where=where,
        fix="give every split images of each class, in a folder (or under a COCO id) of one name; if a model has other "
        "classes, train one on these images (teacher=train) or give your own (shipped=/path)",
    )


def evenly(labels: Tensor, count: int, seed: int) -> Tensor:
    """Places of `count` (at most N) of the labels (N,), the classes taken in turn, chosen and ordered by `seed`."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    # Rank within its class, in shuffled order: taking the lowest ranks takes the classes in turn.
    rank = torch.zeros_like(order)
    for label in labels.unique():
        mine = labels[order] == label
        rank[mine] = torch.arange(int(mine.sum()))
    return order[torch.argsort(rank, stable=True)[:count]]


class Shown:
    """What sets of images and of scenes share: pixels (N, C, H, W), whose reads the ledger counts if they are real."""

    def __len__(self) -> int:
        return len(Pixels.of(self))

    @property
    def images(self) -> Tensor:
        """uint8 (N, C, H, W), 0..255, or frames on disk; the ledger counts this read if the images are real."""
        return self.pixels

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return tuple(Pixels.of(self).shape[1:])


def traced(pixels: Tensor, split: str | None, places: np.ndarray) -> tuple:
    """The split and places of images: their own, which are remembered, or those of the real set that they are of."""
    if split is None:
        return origin.found(pixels) or (None, places)
    origin.remember(pixels, split, places)
    return split, places


@dataclass
class ImageSet(Shown):
    """Labelled images; reading the pixels of a real split is counted by the ledger, and refused where undeclared.

    A set that is made of a real one's tensor, or of copies of its images, is of its split.

    Args:
        pixels: uint8 (N, C, H, W), 0..255.
        labels: int64 (N,), 0..K-1.
        classes: K names.
        name: where it comes from, for people.
        split: "mnist/train" and the like for real images, None for synthetic.
        places: int64 (N,), each image's place in its real split (0..N-1 by default).

    Raises:
        WorkbenchError: on wrong types or shapes, labels out of range, or no image at all.
    """

    pixels: Pixels = Pixels("places")
    labels: Tensor
    classes: tuple[str, ...]
    name: str = "images"
    split: str | None = None
    places: np.ndarray | None = None
    _fingerprint: str | None = field(default=None, repr=False)

    def __post_init__(self):
        self.classes = tuple(str(c) for c in self.classes)
        check_names(self.classes, self.name)
        held = Pixels.of(self)
        pixels = held if isinstance(held, Tensor) else torch.empty(0)
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.numel() == 0:
            raise WorkbenchError(
                "images have the wrong form",
                expected="uint8 (N, C, H, W), none of them 0",
                got=f"{type(held).__name__}, {pixels.dtype} {tuple(pixels.shape)}",
                where=self.name,
                fix="convert float images in [-1, 1] with datasets.to_uint8, which refuses NaN",
            )
        labels, count = self.labels, len(pixels)
        fits = labels.dtype == torch.int64 and labels.shape == (count,)
        bad = ((labels < 0) | (labels >= len(self.classes))).nonzero().flatten().tolist()
        if bad or not fits:
            first = f", {int(labels[bad[0]])} for image {bad[0]}" if bad and fits else ""
            raise WorkbenchError(
                "labels do not fit the images",
                expected=f"int64 ({count},), 0..{len(self.classes) - 1}",
                got=f"{labels.dtype} {tuple(labels.shape)}{first}",
                where=self.name,
                fix="give one label an image, and name all classes",
            )
        if self.places is None:
            self.places = np.arange(count)
        self.split, self.places = traced(pixels, self.split, self.places)

    @property
    def real(self) -> bool:
        return self.split is not None

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def fingerprint(self) -> str:
        """A hash of pixels, labels and class names: the identity of the set in artifact keys."""
        if self._fingerprint is None:
            pixels = Pixels.of(self)
            what = repr((tuple(pixels.shape), self.classes, self.split))
            digest = hashlib.sha256(what.encode())
            for part in pixels.split(4096):  # a set may be larger than memory
                digest.update(part.numpy().tobytes())
            digest.update(self.labels.numpy().tobytes())
            self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint

    def subset(self, indices) -> "ImageSet":
        """The images at `indices` (ints (n,), or a boolean mask (N,)), in that order."""
        indices = torch.as_tensor(indices)
        indices = indices.nonzero().flatten() if indices.dtype == torch.bool else indices.long()
        return replace(
            self,
            pixels=Pixels.of(self)[indices],
            labels=self.labels[indices],
            places=self.places[indices.numpy()],
            _fingerprint=None,
        )

    def sample(self, count: int, seed: int = 0) -> "ImageSet":
        """`count` images, as evenly over the classes as they allow, chosen by `seed`; all of them if count >= N.

        Raises:
            WorkbenchError: if a class has no image, or count is below 1.
        """
        if count < 1:
            raise WorkbenchError(
                "an impossible number of images",
                expected="1 or more",
                got=count,
                where=self.name,
                fix="ask for at least one",
            )
        if count >= len(self):
            return self
        self.check_classes()
        return self.subset(evenly(self.labels, count, seed))

    def check_classes(self) -> None:
        """Raise if a class has no image."""
        counts = torch.bincount(self.labels, minlength=self.num_classes)
        empty = [self.classes[k] for k in (counts == 0).nonzero().flatten().tolist()]
        if empty:
            raise WorkbenchError(
                "a class has no image",
                expected="at least one image in each class",
                got=f"none for {', '.join(empty)}",
                where=self.name,
                fix="add images of that class, or leave it out of the class names",
            )


def to_float(images: Tensor) -> Tensor:
    """uint8 (…), 0..255 → float32, [-1, 1]: the one normalisation of classifiers and GANs here."""
    return images.float().div_(127.5).sub_(1.0)


def to_uint8(images: Tensor) -> Tensor:
    """Float (…) in [-1, 1] (clamped) → uint8, 0..255; WorkbenchError on NaN or infinity."""
    if not torch.isfinite(images).all():
        raise WorkbenchError(
            "images hold values that are not numbers",
            expected="finite values in [-1, 1]",
            got=f"{int((~torch.isfinite(images)).sum())} NaN or infinite pixels",
            fix="the generator has diverged: lower its learning rate, or use its last good checkpoint",
        )
    return images.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def random_shift(x: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Each image (B, C, H, W) moved by up to `pixels` along both axes, edges repeated."""
    if pixels == 0:
        return x
    batch, _, height, width = x.shape
    moves = torch.randint(-pixels, pixels + 1, (2, batch, 1), generator=generator)
    moves = moves.to(x.device, non_blocking=True)
    rows = (torch.arange(height, device=x.device) + moves[0]).clamp(0, height - 1)
    columns = (torch.arange(width, device=x.device) + moves[1]).clamp(0, width - 1)
    index = torch.arange(batch, device=x.device)[:, None, None]
    return x.movedim(1, -1)[index, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def random_flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image (B, C, H, W) mirrored left to right with probability 1/2."""
    # Not to wait for what the device is still doing; so with all that is drawn for a batch.
    chosen = torch.rand(len(x), generator=generator).to(x.device, non_blocking=True) < 0.5
    return torch.where(chosen[:, None, None, None], x.flip(-1), x)
