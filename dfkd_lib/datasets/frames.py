"""From a frame with boxes to scenes: windows about its objects, resizing, filling."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

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
    """
    found = []
    for turn in range(crops):
        box = boxes[turn % len(boxes)] if len(boxes) else None
        extent = rng.choice(usual) if box is None else box[2:].max()
        factor = crop * spread ** rng.uniform(-1, 1) if spread > 1 else crop
        side = max(8, round(factor * extent))
        most = np.maximum(np.array(shape[1::-1]) - side, 0)
        if box is None or (anywhere and rng.random() < anywhere):
            corner = rng.integers(0, most, endpoint=True)
        else:
            room = max(side - extent, 0) / 2  # rounding may take half a pixel
            low = box[:2] + box[2:] / 2 - side / 2 + rng.uniform(-room, room, 2)
            corner = np.round(low).astype(int).clip(0, most)
        found.append((corner, side))
    return found


def cut(pixels: np.ndarray, boxes: np.ndarray, corner: np.ndarray, side: int):
    """The window of a frame uint8 (H, W, 3), filled where it leaves it; the boxes in it and which of `boxes` they are."""
    frame = Image.fromarray(pixels)
    window = frame.crop((*corner, *(corner + side)))
    if (corner + side > frame.size).any():  # PIL fills with black; fill with the mean
        mask = Image.new("L", frame.size, 255).crop((*corner, *(corner + side)))
        window = Image.composite(window, Image.new("RGB", window.size, FILL), mask)
    low = (boxes[:, :2] - corner).clip(0, side)
    high = (boxes[:, :2] + boxes[:, 2:] - corner).clip(0, side)
    keep = np.flatnonzero((high - low).prod(axis=1) >= SHOWN * boxes[:, 2:].prod(axis=1))
    return np.asarray(window), np.concatenate([low, high - low], axis=1)[keep], keep


def enlargement(shape: tuple, size: int | None, shortest: int | None, longest: int) -> float:
    """By how much an image (H, W, 3) is enlarged: to a square of side `size`, by DETR's rule, or not at all (1)."""
    short, long = sorted(shape[:2])
    if size:
        return size / long
    return min(shortest / short, longest / long) if shortest else 1.0


def resized(pixels: np.ndarray, boxes: np.ndarray, factor: float, size: int | None):
    """Image and boxes (x, y, width, height) enlarged by `factor`; with `size`, filled to a square of that side."""
    height, width = pixels.shape[:2]
    wide, high = max(1, round(width * factor)), max(1, round(height * factor))
    image = Image.fromarray(pixels)
    if (wide, high) != image.size:
        image = image.resize((wide, high), Image.Resampling.BILINEAR, reducing_gap=3.0)
    if size and (wide, high) != (size, size):
        square = Image.new("RGB", (size, size), FILL)
        square.paste(image)
        image = square
    return np.asarray(image), boxes * np.array([wide / width, high / height] * 2)


def shares(boxes: np.ndarray, shape: tuple) -> Tensor:
    """Boxes (n, 4) x, y, width, height in pixels → centre x, centre y, width, height as shares, float32."""
    scaled = boxes / np.array([shape[1], shape[0]] * 2)
    scaled[:, :2] += scaled[:, 2:] / 2
    return torch.from_numpy(scaled.astype(np.float32))


def stacked(images: list[np.ndarray]) -> Tensor:
    """uint8 (N, 3, H, W) of the largest height and width; smaller images are filled at right and bottom."""
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    every = np.empty((len(images), height, width, 3), np.uint8)
    every[:] = FILL
    for row, image in zip(every, images, strict=True):
        row[: image.shape[0], : image.shape[1]] = image
    return torch.from_numpy(every).permute(0, 3, 1, 2).contiguous()
