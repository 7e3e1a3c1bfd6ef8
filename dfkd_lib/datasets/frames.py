"""From frames on disk to scenes: windows about objects, resizing, filling; read when they are asked for."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dfkd_lib.core import file_hash, fingerprint
from dfkd_lib.datasets.sources import read_image

SMALLEST = 8  # pixels of a window's side, at least
FILL = (124, 116, 104)  # ImageNet's mean: 0 after a detector's normalisation
SHOWN = 0.5  # share of an object's box that must lie in a window for the object to count


def windows(
    shape: tuple,
    boxes: np.ndarray,
    usual: np.ndarray,
    rng: np.random.Generator,
    *,
    crop: float,
    crops: int,
    spread: float,
    anywhere: float,
    whole: float = 0.0,
) -> list[tuple[np.ndarray, int]]:
    """Square windows on a frame (H, W, 3): [(corner x, y int (2,), side in pixels)], `crops` of them.

    Args:
        boxes: (n, 4) x, y, width, height in pixels. Each object is the middle of a window in turn, off it by
            chance but whole.
        usual: longer sides of objects, from which a frame without any takes its window's size.
        crop: a window's side in longer sides of its object.
        spread: `crop` is drawn log-uniformly from crop / spread to crop * spread.
        anywhere: share of windows that lie anywhere on the frame instead (so that empty sky is seen); of a
            frame without objects, all.
        whole: share of windows that show all of the frame.
    """
    found = []
    for turn in range(crops):
        if whole and rng.random() < whole:
            found.append((np.zeros(2, int), max(shape[:2])))
            continue
        box = boxes[turn % len(boxes)] if len(boxes) else None
        extent = rng.choice(usual) if box is None else box[2:].max()
        factor = crop * spread ** rng.uniform(-1, 1) if spread > 1 else crop
        side = max(SMALLEST, round(factor * extent))
        most = np.maximum(np.array(shape[1::-1]) - side, 0)
        if box is None or (anywhere and rng.random() < anywhere):
            corner = rng.integers(0, most, endpoint=True)
        else:
            room = max(side - extent, 0) / 2  # rounding may take half a pixel
            low = box[:2] + box[2:] / 2 - side / 2 + rng.uniform(-room, room, 2)
            corner = np.round(low).astype(int).clip(0, most)
        found.append((corner, side))
    return found


def inside(
    boxes: np.ndarray, corner: np.ndarray, side: int, share: float = SHOWN
) -> tuple[np.ndarray, np.ndarray]:
    """What a window of a frame shows of boxes (n, 4) x, y, width, height, of each more than nothing and at least a share:
    cut to it, and which of them they are."""
    low = (boxes[:, :2] - corner).clip(0, side)
    high = (boxes[:, :2] + boxes[:, 2:] - corner).clip(0, side)
    area = (high - low).prod(axis=1)
    keep = np.flatnonzero((area > 0) & (area >= share * boxes[:, 2:].prod(axis=1)))
    return np.concatenate([low, high - low], axis=1)[keep], keep


def resized(
    shape: tuple, size: int | None, shortest: int | None = None, longest: int = 1333
) -> tuple[tuple[int, int], float]:
    """Width and height in pixels of an image (H, W, ...) and by how much it is enlarged: to a square of side `size`, by
    DETR's rule to the pixel as transformers' processor rounds it, or not at all (1)."""
    high, wide = shape[:2]
    short, long = sorted((high, wide))
    factor = 1.0
    if size:
        factor = size / long
        high, wide = (round(side * size / long) for side in (high, wide))
    elif shortest:
        from transformers.image_transforms import get_size_with_aspect_ratio

        factor = min(shortest / short, longest / long)
        high, wide = get_size_with_aspect_ratio((high, wide), shortest, longest)
    return (max(1, wide), max(1, high)), factor


def shares(boxes: np.ndarray, shape: tuple) -> Tensor:
    """Boxes (n, 4) x, y, width, height in pixels → centre x, centre y, width, height as shares, float32."""
    scaled = boxes / np.array([shape[1], shape[0]] * 2)
    scaled[:, :2] += scaled[:, 2:] / 2
    return torch.from_numpy(scaled.astype(np.float32))


class View(NamedTuple):
    """What a scene shows of a frame on disk: all of it or a square window, resized to (width, height)."""

    file: Path
    size: tuple[int, int]
    window: tuple[int, int, int] | None = None  # left, top, side in pixels of the frame

    def of(self, frame: Image.Image) -> np.ndarray:
        """Its pixels uint8 (3, height, width), filled where the window leaves the frame."""
        seen = frame
        if self.window:
            x, y, side = self.window
            corners = (x, y, x + side, y + side)
            seen = frame.crop(corners)
            if corners[2] > frame.width or corners[3] > frame.height:  # PIL fills with black
                mask = Image.new("L", frame.size, 255).crop(corners)
                seen = Image.composite(seen, Image.new("RGB", seen.size, FILL), mask)
        if seen.size != self.size:
            seen = seen.resize(self.size, Image.Resampling.BILINEAR, reducing_gap=3.0)
        return np.asarray(seen).transpose(2, 0, 1)


class Frames:
    """Scenes of frames on disk in the form of a tensor uint8 (N, 3, H, W), read whenever scenes are asked for.

    Args:
        views: what each scene shows.
        height, width: of all scenes; smaller ones are filled at right and bottom.
    """

    dtype, ndim = torch.uint8, 4

    def __init__(self, views: Sequence[View], height: int, width: int):
        self.views, self.shape = views, torch.Size((len(views), 3, height, width))

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, rows: int | slice | Sequence[int] | Tensor) -> Tensor:
        """One scene uint8 (3, H, W), or several (n, 3, H, W); each file is read once, by as many threads as torch has."""
        if isinstance(rows, (int, np.integer)):
            return self[[range(len(self))[rows]]][0]
        places = range(len(self))[rows] if isinstance(rows, slice) else torch.as_tensor(rows)
        found = np.empty((len(places), *self.shape[1:]), np.uint8)
        found[:] = np.array(FILL, np.uint8)[:, None, None]
        of_file = defaultdict(list)
        for place, row in enumerate(map(int, places)):
            of_file[self.views[row].file].append((place, self.views[row]))

        def read(file: Path) -> None:
            frame = Image.fromarray(read_image(file, "RGB"))
            for place, view in of_file[file]:
                found[place, :, : view.size[1], : view.size[0]] = view.of(frame)

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            [*pool.map(read, of_file)]
        return torch.from_numpy(found)

    def take(self, rows: Sequence[int]) -> "Frames":
        """The scenes at these places, not read yet."""
        return Frames([self.views[row] for row in rows], *self.shape[2:])

    def split(self, count: int) -> Iterator[Tensor]:
        """All scenes in their order, so many at a time."""
        return in_turn(self, torch.arange(len(self)).split(count))

    def numpy(self) -> np.ndarray:
        """All scenes, in memory."""
        return self[:].numpy()

    @property
    def identity(self) -> str:
        """A hash of the files' bytes, of what is shown of them, and of the code that reads them."""
        files = [*dict.fromkeys(view.file for view in self.views)]
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            hashes = dict(zip(files, pool.map(file_hash, files), strict=True))
        shown = [(hashes[view.file], *view[1:]) for view in self.views]
        of = repr((tuple(self.shape), shown, fingerprint(Frames).digest))
        return hashlib.sha256(of.encode()).hexdigest()


def in_turn(images: Tensor | Frames, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Images uint8 (n, 3, H, W) at the places of each chunk; of frames on disk the next chunk is read meanwhile."""
    if isinstance(images, Tensor):
        yield from (images[rows] for rows in chunks)
        return
    with ThreadPoolExecutor(1) as reader:
        coming = None
        for rows in chunks:
            now, coming = coming, reader.submit(images.__getitem__, rows)
            if now is not None:
                yield now.result()
        if coming is not None:
            yield coming.result()
