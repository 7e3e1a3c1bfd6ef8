"""Real pixels under another name: sets of images that were made of a real set's tensor, or of copies of its images.

A real set is remembered while its tensor lives, by what it is stored in and by a hash of each image. Nothing that was
changed (shifted, mirrored, as floats) is recognised.
"""

import weakref
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from dfkd_lib.core import ledger

if TYPE_CHECKING:
    from torch import Tensor

LOOKED_AT = 64  # images of a set, evenly over it, that are compared with real ones
BYTES = 1024  # of an image, evenly over it, that its hash is made of at most


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
    """Where real images are, without keeping them; `hashes` are made when they are first asked for."""

    def __init__(self, pixels: "Tensor", split: str, places: np.ndarray):
        self.storage = weakref.ref(pixels.untyped_storage())
        self.offset, self.shape = int(pixels.storage_offset()), tuple(pixels.shape)
        self.strides = pixels.stride()
        self.split, self.places = split, places

    @property
    def pixels(self) -> "Tensor":
        import torch

        storage: Any = self.storage()
        return torch.empty(0, dtype=torch.uint8).set_(
            storage, self.offset, self.shape, self.strides
        )

    @cached_property
    def hashes(self) -> np.ndarray:
        return _hashes(self.pixels)

    def places_of(self, view: "Tensor") -> np.ndarray:
        """The places of images (n, C, H, W) that lie in the same storage."""
        rows = np.arange(len(view)) * view.stride(0) + (int(view.storage_offset()) - self.offset)
        return self.places[(rows // self.strides[0]).clip(0, len(self.places) - 1)]


_real: list[_Real] = []


def remember(pixels: "Tensor", split: str, places: np.ndarray) -> None:
    """These uint8 images (N, C, H, W) are real, of these places (N,) of a split."""
    _real[:] = [one for one in _real if one.storage() is not None]
    _real.append(_Real(pixels, split, places))


def found(pixels: "Tensor") -> tuple[str, np.ndarray] | None:
    """(split, places (N,)) of a real set that uint8 images (N, C, H, W) are of, as a whole or in part; None if of none.

    Images of one value are nobody's. The place of an image that is not of that set is −1.
    """
    storage = pixels.untyped_storage()
    living = [one for one in _real if one.storage() is not None]
    for one in living:
        if one.storage() is storage:
            return one.split, one.places_of(pixels)
    living = [one for one in living if one.shape[1:] == pixels.shape[1:]]
    if not living:
        return None
    some = pixels[np.linspace(0, len(pixels) - 1, min(LOOKED_AT, len(pixels))).round().astype(int)]
    some = some[some.flatten(1).amin(1) < some.flatten(1).amax(1)]
    for one in living:
        rows = _rows(one.hashes, _hashes(some))
        if any(row >= 0 and some[i].equal(one.pixels[row]) for i, row in enumerate(rows)):
            rows = _rows(one.hashes, _hashes(pixels))
            return one.split, np.where(rows < 0, -1, one.places[rows])
    return None


def _rows(known: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Where each hash (n,) stands among those known; −1 for none."""
    order = np.argsort(known)
    rows = order[np.searchsorted(known, hashes, sorter=order).clip(max=len(order) - 1)]
    return np.where(known[rows] == hashes, rows, -1)


def _hashes(images: "Tensor") -> np.ndarray:
    """A hash int64 (N,) of each uint8 image, for this process alone."""
    flat = images.flatten(1)
    flat = flat[:, :: max(1, -(-flat.shape[1] // BYTES))]
    return np.array([hash(image.tobytes()) for image in flat.numpy()], np.int64)
