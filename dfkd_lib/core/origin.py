"""Real pixels under another name: sets of images that were made of a real set's tensor, or of copies of its images.

A real set is remembered by what it is stored in, while its tensor lives, and by a hash of each image, for good. Images of it
are recognised in any order and number: as they are, mirrored left to right, and grey ones as the first channel of others
(RGB). Nothing that was changed otherwise (shifted, resized, as floats) is.
"""

import weakref
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from dfkd_lib.core import ledger

if TYPE_CHECKING:
    from torch import Tensor

LOOKED_AT = 64  # images of a set, evenly over it, that are compared with real ones
# Images up to this size are hashed whole, larger ones by pieces evenly over them; by all where these show too few values.
BYTES, PIECE, VALUES = 4096, 64, 16
# Bytes of a set that is hashed when it is made; a larger one is only known while its tensor lives.
LARGEST = 4 << 30


class Pixels:
    """The field of a set that holds its images: the ledger counts each read of it if they are real.

    The set has a `split`, None if they are not.

    Args:
        places: name of the field that holds each image's place in its split.
    """

    def __init__(self, places: str):
        self.places = places

    def __get__(self, images: Any, kind: type | None = None) -> "Tensor":
        if images is None:
            raise AttributeError  # the field has no default
        if images.split is not None:
            ledger.read(images.split, getattr(images, self.places))
        return self.of(images)

    def __set__(self, images: Any, value: "Tensor") -> None:
        vars(images)["pixels"] = value

    @staticmethod
    def of(images: Any) -> "Tensor":
        """The pixels, uncounted: for their shape, or to pick some out for a set of the same split."""
        return vars(images)["pixels"]


class _Real:
    """Where real images are, without keeping them."""

    def __init__(self, pixels: "Tensor", split: str, places: np.ndarray):
        self.storage = weakref.ref(pixels.untyped_storage())
        self.offset, self.shape = int(pixels.storage_offset()), tuple(pixels.shape)
        self.strides = pixels.stride()
        self.split, self.places = split, places

    def same(self, pixels: "Tensor", split: str, places: np.ndarray) -> bool:
        """Whether it is these images, which another set holds too."""
        here = self.split, self.offset, self.shape, self.strides
        there = split, int(pixels.storage_offset()), tuple(pixels.shape), pixels.stride()
        return (
            self.storage() is pixels.untyped_storage()
            and here == there
            and np.array_equal(self.places, places)
        )

    @cached_property
    def known(self) -> dict[int, int]:
        """{hash of an image: its place}, for a set that is too large to be hashed when it is made."""
        import torch

        storage: Any = self.storage()
        pixels = torch.empty(0, dtype=torch.uint8)
        pixels.set_(storage, self.offset, self.shape, self.strides)
        return dict(zip(_hashes(pixels), self.places.tolist(), strict=True))

    def places_of(self, view: "Tensor") -> np.ndarray:
        """The places of images (n, C, H, W) that lie in the same storage."""
        rows = np.arange(len(view)) * view.stride(0) + (int(view.storage_offset()) - self.offset)
        return self.places[(rows // self.strides[0]).clip(0, len(self.places) - 1)]


_real: list[_Real] = []
# (split, shape of an image) -> {hash of an image: its place}, of all real sets so far.
_known: dict[tuple[str, tuple[int, ...]], dict[int, int]] = {}


def remember(pixels: "Tensor", split: str, places: np.ndarray) -> None:
    """These uint8 images (N, C, H, W) are real, of these places (N,) of a split; those of place −1 are not."""
    _real[:] = [one for one in _real if one.storage() is not None]
    if any(one.same(pixels, split, places) for one in _real):
        return
    _real.append(_Real(pixels, split, places))
    if pixels.numel() > LARGEST:
        return
    known = _known.setdefault((split, tuple(pixels.shape[1:])), {})
    some = _evenly(len(pixels))
    parts = all(map(known.__contains__, _hashes(pixels[some])))
    if parts and len(some) < len(pixels):
        parts = bool(np.isin(places, np.array([*known.values()], np.int64)).all())
    if not parts:  # of what is known
        pairs = zip(_hashes(pixels), places.tolist(), strict=True)
        known.update((number, place) for number, place in pairs if place >= 0)


def found(pixels: "Tensor") -> tuple[str, np.ndarray] | None:
    """(split, places (N,)) of a real set that uint8 images (N, C, H, W) are of, as a whole or in part; None if of none.

    Images of one value are nobody's. The place of an image that is not of that set is −1.
    """
    storage = pixels.untyped_storage()
    living = [(one, held) for one in _real if (held := one.storage()) is not None]
    for one, held in living:
        if held is storage:
            return one.split, one.places_of(pixels)
    tables = [(split, shape, known) for (split, shape), known in [*_known.items()]]
    tables += [
        (one.split, one.shape[1:], one.known)
        for one, _ in living
        if np.prod(one.shape) > LARGEST and one.shape[1:] == tuple(pixels.shape[1:])
    ]
    shapes = {shape for _, shape, known in tables if known}
    some = pixels[_evenly(len(pixels))]
    looks = [(shape, _hashes(look[_varied(look)])) for shape, look in _looks(some, shapes)]
    counted = [
        (sum(number in known for shape, look in looks if shape == own for number in look), i)
        for i, (_, own, known) in enumerate(tables)
    ]
    most, best = max(counted, default=(0, 0), key=lambda pair: pair[0])
    if not most:
        return None
    split, shape, known = tables[best]
    places = np.full(len(pixels), -1)
    for _, look in _looks(pixels, {shape}):
        rows = np.array([known.get(number, -1) for number in _hashes(look)], np.int64)
        places = np.where(places < 0, rows, places)
    return split, places


def _looks(pixels: "Tensor", shapes: set[tuple[int, ...]]) -> Iterator[tuple[tuple, "Tensor"]]:
    """(shape of an image, images) for what images (N, C, H, W) may be copies of, of these shapes: as they are, their first
    channel, and both mirrored."""
    for look in (pixels, pixels[:, :1])[: pixels.shape[1]]:
        if (shape := tuple(look.shape[1:])) in shapes:
            yield shape, look
            yield shape, look.flip(-1)


def _varied(images: "Tensor") -> "Tensor":
    """Which images (n, C, H, W) have more than one value: bool (n,)."""
    flat = images.flatten(1)
    return flat.amin(1) < flat.amax(1)


def _evenly(count: int) -> np.ndarray:
    """At most `LOOKED_AT` rows, evenly over `count`."""
    return np.linspace(0, count - 1, min(LOOKED_AT, count)).round().astype(int)


def _hashes(images: "Tensor") -> list[int]:
    """A hash of each uint8 image, for this process alone."""
    parts = (part.flatten(1).cpu().numpy() for part in images.split(4096))
    return [_hash(image) for part in parts for image in part]


def _hash(image: np.ndarray) -> int:
    """Of uint8 (n,)."""
    if len(image) > BYTES:
        starts = np.linspace(0, len(image) - PIECE, BYTES // PIECE).astype(int)
        pieces = b"".join(image[start : start + PIECE].tobytes() for start in starts)
        if len(set(pieces)) >= VALUES:
            return hash(pieces)
    return hash(image.tobytes())
