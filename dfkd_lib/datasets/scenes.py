"""Sets of scenes with boxes, and the generated aerial scenes that are the embedded data set for detection."""

import hashlib
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from dfkd_lib.core import Pixels, WorkbenchError
from dfkd_lib.datasets.frames import Frames
from dfkd_lib.datasets.images import Shown, check_names, traced
from dfkd_lib.datasets.silhouettes import CLASSES, silhouette

SUPERSAMPLE = 4
MAX_OBJECTS = 4
EXTENT = (0.2, 0.5)  # of the longest side of an object, as a share of the image
SKIES = (
    (90, 140, 200),
    (60, 100, 170),
    (140, 170, 200),
    (165, 175, 185),
    (200, 205, 210),
    (110, 100, 130),
    (180, 130, 110),
    (40, 50, 80),
    (120, 180, 220),
)
GROUNDS = ((70, 95, 55), (105, 95, 70), (80, 80, 85), (60, 75, 60), (130, 120, 95), (45, 50, 50))
STREAMS = {"train": 0, "test": 1, "val": 2, "synthetic": 3}


@dataclass(frozen=True)
class SceneSet(Shown):
    """Images with labelled boxes.

    Args:
        pixels: uint8 (N, 3, H, W), in memory or frames on disk; the ledger counts each read when `split` is set, as it is too
            where they are a real set's.
        boxes: N float32 tensors (n, 4), centre x, centre y, width, height, as shares of the image in [0, 1].
        labels: N int64 tensors (n,), each in [0, len(classes)).
        classes: class names.
        origin: one line on where the scenes come from.
        split: name in the ledger, as "aerial/train"; None for scenes that a data-free stage may read.
        rows: place of each scene's image within its split, int64 (N,); several crops of an image share one
            place.
        scale: pixels of the original image to one pixel of the scene, float32 (N,) (1 by default).
        source: what tells pixels that come from files from others, in place of the pixels and of the folder's name.
    """

    pixels: Pixels = Pixels("rows")
    boxes: list[Tensor]
    labels: list[Tensor]
    classes: tuple[str, ...]
    origin: str = ""
    split: str | None = None
    rows: np.ndarray = field(default=None, repr=False)
    scale: Tensor = field(default=None, repr=False)
    source: str = field(default="", repr=False)

    def __post_init__(self):
        pixels = Pixels.of(self)
        count = len(pixels)
        if self.rows is None:
            object.__setattr__(self, "rows", np.arange(count))
        if self.scale is None:
            object.__setattr__(self, "scale", torch.ones(count))
        lengths = [len(self.boxes), len(self.labels), len(self.scale)]
        if (
            not count
            or pixels.dtype != torch.uint8
            or pixels.ndim != 4
            or lengths != [count] * 3
            or not (self.scale > 0).all()
        ):
            raise WorkbenchError(
                "a scene set is not whole",
                expected="uint8 (N >= 1, 3, H, W); for each image boxes, labels, a scale above 0",
                got=f"{pixels.dtype} {tuple(pixels.shape)}; {lengths} of these",
                where=self.origin,
                fix="convert the images to uint8, and give a tensor of each for each image",
            )
        check_names(self.classes, self.origin)
        if isinstance(pixels, Frames):
            return  # the ledger knows files by their places
        split, rows = traced(pixels, self.split, self.rows)
        object.__setattr__(self, "split", split)
        object.__setattr__(self, "rows", rows)

    @property
    def fingerprint(self) -> str:
        """A hash of pixels, boxes, labels and classes: names these very scenes in an artifact's settings."""
        pixels = Pixels.of(self)
        of = self.classes, self.source or self.split, tuple(pixels.shape)
        digest = hashlib.sha256(repr(of).encode())
        if not self.source:
            digest.update(pixels.numpy().tobytes())
        for boxes, labels in zip(self.boxes, self.labels, strict=True):
            digest.update(boxes.numpy().tobytes() + labels.numpy().tobytes())
        # Scenes at their own size keep the name that they had before there were scales.
        if (self.scale != 1).any():
            digest.update(self.scale.numpy().tobytes())
        return digest.hexdigest()[:16]

    def subset(self, indices) -> "SceneSet":
        """The scenes at `indices` (ints, any order), of the same split."""
        indices = [int(i) for i in indices]
        pixels = Pixels.of(self)
        held = isinstance(pixels, Tensor)
        return SceneSet(
            pixels[indices] if held else pixels.take(indices),
            [self.boxes[i] for i in indices],
            [self.labels[i] for i in indices],
            self.classes,
            self.origin,
            self.split,
            self.rows[indices],
            self.scale[indices],
            self.source and f"{self.source} {indices}",
        )

    def counts(self) -> dict[str, int]:
        """The number of objects of each class."""
        found = torch.bincount(torch.cat(self.labels), minlength=len(self.classes))
        return dict(zip(self.classes, found.tolist(), strict=True))


def generate_scenes(count: int, size: int = 96, seed: int = 0, split: str = "train") -> SceneSet:
    """Draw seeded aerial scenes of 0-4 birds, helicopters, drones and planes, with the boxes of what was drawn.

    Scene i depends on (seed, split, i) alone, so a larger set begins with the smaller one, byte for byte.

    Args:
        count: number of scenes, ≥ 1.
        size: side in pixels, ≥ 32.
        split: "train", "val", "test" or "synthetic", streams that share no scene.

    Returns:
        SceneSet of split "aerial/<split>": these scenes play the part of a real data set, so the ledger counts them.
        Scenes of the stream "synthetic" belong to no data set (split None).
    """
    images, boxes, labels = np.empty((count, size, size, 3), np.uint8), [], []
    for index in range(count):
        rng = np.random.default_rng([seed, STREAMS[split], index])
        images[index], scene_boxes, scene_labels = _scene(size, rng)
        boxes.append(torch.from_numpy(scene_boxes))
        labels.append(torch.from_numpy(scene_labels))
    return SceneSet(
        torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
        boxes,
        labels,
        CLASSES,
        f"generated aerial scenes, {split}, seed {seed}",
        None if split == "synthetic" else f"aerial/{split}",
    )


def _scene(size: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """One scene: uint8 (size, size, 3), boxes float32 (n, 4) cxcywh, labels int64 (n,)."""
    canvas = _sky(size, rng)
    taken, labels = [], []
    for _ in range(rng.choice(MAX_OBJECTS + 1, p=(0.05, 0.3, 0.3, 0.2, 0.15))):
        label = int(rng.integers(len(CLASSES)))
        box = _draw(canvas, label, size * rng.uniform(*EXTENT), taken, rng)
        if box is not None:
            taken.append(box)
            labels.append(label)
    canvas = canvas + rng.normal(0, rng.uniform(0, 5), canvas.shape).astype(np.float32)
    corners = np.array(taken, dtype=np.float32).reshape(-1, 4) / size
    boxes = np.concatenate(
        [(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], axis=1
    )
    return canvas.clip(0, 255).astype(np.uint8), boxes, np.array(labels, dtype=np.int64)


def _smooth_noise(cells: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Noise in about [-1, 1] that changes over size / cells pixels, float32 (size, size)."""
    coarse = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))


def _sky(size: int, rng: np.random.Generator) -> np.ndarray:
    """A background of sky, clouds, perhaps ground with clutter: float32 (size, size, 3) in 0-255."""
    top = np.array(SKIES[rng.integers(len(SKIES))], np.float32) + rng.uniform(-20, 20, 3)
    low = top + rng.uniform(10, 60) * np.array([1.0, 0.8, 0.4])
    y = np.linspace(0, 1, size, dtype=np.float32)
    ramp = (y[:, None] + rng.uniform(-0.4, 0.4) * (y[None, :] - 0.5))[..., None]
    canvas = (top * (1 - ramp) + low * ramp).astype(np.float32)
    cloud = _smooth_noise(int(rng.integers(3, 6)), size, rng) + 0.5 * _smooth_noise(
        int(rng.integers(8, 14)), size, rng
    )
    cover = (cloud + rng.uniform(-0.9, 0.5)).clip(0, 1)[..., None] * rng.uniform(0.2, 0.9)
    canvas += cover * (rng.uniform(190, 250) - canvas)
    if rng.random() < 0.45:
        _ground(canvas, rng)
    return canvas


def _ground(canvas: np.ndarray, rng: np.random.Generator) -> None:
    """Draw hills, and at times buildings, over the lower part of `canvas`, in place."""
    size = len(canvas)
    colour = np.array(GROUNDS[rng.integers(len(GROUNDS))], np.float32) + rng.uniform(-15, 15, 3)
    ridge = size * (
        rng.uniform(0.65, 0.92) + 0.06 * _smooth_noise(int(rng.integers(3, 8)), size, rng)[0]
    )
    if rng.random() < 0.4:
        for left in rng.integers(0, size, 6):
            width = int(rng.integers(size // 24, size // 8))
            ridge[left : left + width] = ridge[left : left + width].mean() - size * rng.uniform(
                0.02, 0.14
            )
    inside = np.arange(size)[:, None] > ridge[None, :]
    texture = 12 * _smooth_noise(size // 4, size, rng)
    canvas[inside] = (colour + texture[..., None])[inside]


def _draw(
    canvas: np.ndarray, label: int, length: float, taken: list, rng: np.random.Generator
) -> tuple | None:
    """Draw one object where it hardly overlaps the boxes in `taken`; returns its box (x0, y0, x1, y1) or None."""
    parts = silhouette(label, length * SUPERSAMPLE, rng)
    extent = np.concatenate([points for points, _, _ in parts]).max(axis=0) / SUPERSAMPLE
    corner = _free_corner(extent, len(canvas), taken, rng)
    if corner is None:
        return None
    origin = np.floor(corner).astype(int)
    inner = corner - origin
    width, height = np.ceil(inner + extent).astype(int) + 1
    size = (int(width) * SUPERSAMPLE, int(height) * SUPERSAMPLE)
    alpha, shade = Image.new("L", size), Image.new("L", size)
    draw_alpha, draw_shade = ImageDraw.Draw(alpha), ImageDraw.Draw(shade)
    for points, tone, opacity in parts:
        outline = (points + inner * SUPERSAMPLE).ravel().tolist()
        draw_alpha.polygon(outline, fill=opacity)
        draw_shade.polygon(outline, fill=int(255 * tone))
    # Shade outside the outline is 0 and premultiplied by reduce(); dividing by the covered share undoes it.
    cover = np.asarray(alpha.reduce(SUPERSAMPLE), np.float32) / 255
    tone = np.asarray(shade.reduce(SUPERSAMPLE), np.float32) / 255
    solid = np.asarray(shade.point(lambda v: 255 if v else 0).reduce(SUPERSAMPLE), np.float32) / 255
    tone = tone / np.maximum(solid, 1e-3)
    x, y = origin
    area = canvas[y : y + height, x : x + width]
    cover = cover[: len(area), : area.shape[1], None]
    tone = tone[: len(area), : area.shape[1], None]
    area += cover * (tone * _paint(area.mean(axis=(0, 1)), rng) - area)
    return (*corner, *(corner + extent))


def _paint(behind: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A colour that stands out from what is behind it: float32 (3,) in 0-255."""
    target = behind.mean()
    if target > 110 and rng.random() < 0.75:
        target = target - rng.uniform(70, 150)
    else:
        target = target + rng.uniform(70, 120)
    return np.clip(target + rng.uniform(-30, 30, 3), 5, 250).astype(np.float32)


def _free_corner(
    extent: np.ndarray, size: int, taken: list, rng: np.random.Generator
) -> np.ndarray | None:
    """A top-left corner at which a box of this extent lies inside and covers little of the others, or None."""
    for _ in range(12):
        corner = rng.uniform(0.5, np.maximum(size - extent - 0.5, 0.6))
        for box in np.array(taken).reshape(-1, 2, 2):
            shared = np.minimum(corner + extent, box[1]) - np.maximum(corner, box[0])
            smaller = min(extent.prod(), (box[1] - box[0]).prod())
            if shared.clip(0).prod() > 0.1 * smaller:
                break
        else:
            return corner
    return None
