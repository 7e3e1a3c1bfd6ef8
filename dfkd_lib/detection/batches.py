"""Scenes as batches of padded tensors, augmented a batch at a time."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dfkd_lib.datasets import FILL, SceneSet, in_turn
from dfkd_lib.models import pixel_mask

IN_VIEW = 0.5  # share of an object that must stay in view for it to stay a target
EMPTY = 0.25  # share of a batch that is empty ground, where this is learned


class Batch(NamedTuple):
    """What a detector's step receives; no labels and boxes of scenes whose labels are not read."""

    images: Tensor  # float (B, 3, H, W) in [0, 1]
    labels: Tensor | None  # int64 (B, M), -1 where there is no object, objects first
    boxes: Tensor | None  # float (B, M, 4), cxcywh in [0, 1]
    places: Tensor | None = None  # int64 (B,), of scenes that are as they were or mirrored

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        return Batch(*(part if part is None else part.to(device) for part in self))


def padded(scenes: SceneSet) -> tuple[Tensor, Tensor]:
    """Labels int64 (N, M), -1 where there is no object, and boxes float32 (N, M, 4); M ≥ 1 is the most in one scene."""
    most = max(1, *(len(labels) for labels in scenes.labels))
    labels = torch.full((len(scenes), most), -1)
    boxes = torch.zeros(len(scenes), most, 4)
    for row, (own, where) in enumerate(zip(scenes.labels, scenes.boxes, strict=True)):
        labels[row, : len(own)] = own
        boxes[row, : len(own)] = where
    return labels, boxes


class SceneBatches:
    """Batches of scenes for `training.fit`; the last, smaller one is dropped unless it is the only one.

    Args:
        augment: strength of `augmented`, ≥ 0; None for none at all.
        labelled: False leaves labels and boxes out of every batch.
        empty: scenes without objects, of which each batch has `EMPTY`: in the first epoch any, then the hard ones.
        fires: how sure the detector in training is, at most, of an object in each of these: (n,).
    """

    def __init__(
        self,
        scenes: SceneSet,
        batch_size: int,
        augment: float | None = 0.0,
        labelled: bool = True,
        empty: SceneSet | None = None,
        fires: Callable[[], Tensor] | None = None,
    ):
        self.images, self.augment, self.labelled = scenes.images, augment, labelled
        self.labels, self.boxes = padded(scenes)
        self.batch_size = min(batch_size, len(scenes))
        self.empty, self.fires = empty and empty.images, fires
        self.negatives = round(EMPTY * self.batch_size) if empty else 0

    def __len__(self) -> int:
        return len(self.images) // (self.batch_size - self.negatives)

    def __call__(self, epoch: int, generator: torch.Generator) -> Iterator[Batch]:
        own = self.batch_size - self.negatives
        order = torch.randperm(len(self.images), generator=generator)
        for batch in self._beside(self._read(order[: len(self) * own], own), epoch, generator):
            if self.augment == 0:
                mirror = torch.rand(len(batch.images), generator=generator) < 0.5
                batch = self._mirrored(batch, mirror)
            elif self.augment is not None:
                batch = augmented(batch, generator, self.augment)
            yield batch if self.labelled else batch._replace(labels=None, boxes=None)

    def _beside(
        self, batches: Iterator[Batch], epoch: int, generator: torch.Generator
    ) -> Iterator[Batch]:
        """The batches, each with scenes of empty ground beside its own."""
        if not self.negatives:
            yield from batches
            return
        count = len(self) * self.negatives
        if epoch:
            order = self.fires().argsort(descending=True, stable=True)
            rows = order[torch.arange(count) % len(order)]
            rows = rows[torch.randperm(count, generator=generator)]
        else:
            rows = torch.randint(len(self.empty), (count,), generator=generator)
        chunks = rows.split(self.negatives)
        for batch, more in zip(batches, in_turn(self.empty, chunks), strict=True):
            images = torch.cat([batch.images, more.float() / 255])
            labels = F.pad(batch.labels, (0, 0, 0, len(more)), value=-1)
            yield Batch(images, labels, F.pad(batch.boxes, (0, 0, 0, 0, 0, len(more))))

    @property
    def views(self) -> int:
        """How many ways a scene may look: 2 of mirrored ones, 0 where each epoch makes others."""
        return 0 if self.negatives else {None: 1, 0: 2}.get(self.augment, 0)

    def _mirrored(self, batch: Batch, mirror: Tensor) -> Batch:
        images, labels, boxes, places = batch
        images = torch.where(mirror[:, None, None, None], images.flip(-1), images)
        middle = torch.where(mirror[:, None], 1 - boxes[..., 0], boxes[..., 0])
        boxes = torch.cat([torch.where(labels >= 0, middle, 0.0)[..., None], boxes[..., 1:]], -1)
        places = None if places is None else places + mirror * len(self.images)
        return Batch(images, labels, boxes, places)

    def in_order(self) -> Iterator[Batch]:
        """All scenes as they are, in their order."""
        return self._read(torch.arange(len(self.images)), self.batch_size)

    def rows(self, rows: Tensor) -> Batch:
        """The scenes at these places, as they are."""
        return self._batch(rows, self.images[rows])

    def _read(self, rows: Tensor, together: int) -> Iterator[Batch]:
        """The scenes at these places, as they are, so many at a time."""
        chunks = rows.split(together)
        yield from map(self._batch, chunks, in_turn(self.images, chunks))

    def _batch(self, rows: Tensor, images: Tensor) -> Batch:
        return Batch(images.float() / 255, self.labels[rows], self.boxes[rows], rows)


def augmented(batch: Batch, generator: torch.Generator, strength: float = 1.0) -> Batch:
    """Each scene mirrored (1/2) and, at strength 1, scaled by 0.8-1.25, shifted by up to 1/8, its light changed.

    Edges are repeated, and what fills a frame up to a scene stays so filled. Objects of which less than half stays in view become -1; boxes are cut at the border.
    """
    images, labels, boxes, _ = batch
    count = len(images)

    def uniform(span: float, *shape: int) -> Tensor:
        return (2 * torch.rand(count, *shape, generator=generator) - 1) * span * strength

    mirror = torch.where(torch.rand(count, 1, generator=generator) < 0.5, -1.0, 1.0)
    zoom, shift = torch.exp(uniform(0.223, 1)), uniform(0.125, 2)
    scale = torch.cat([mirror * zoom, zoom], dim=1)  # of content, about the middle of the image
    # affine_grid maps places of the result to places of the source, both in [-1, 1]: the inverse of content's motion.
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = 1 / scale[:, 0], 1 / scale[:, 1]
    theta[:, :, 2] = -2 * shift / scale
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    frame, _ = pixel_mask(images)
    images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    images = images * (1 + uniform(0.2, 3, 1, 1)) + uniform(0.1, 1, 1, 1)
    if not frame.all():
        how = {"mode": "nearest", "padding_mode": "border", "align_corners": False}
        inside = F.grid_sample(frame[:, None].float(), grid, **how) > 0
        images = torch.where(inside, images, torch.tensor(FILL).view(3, 1, 1) / 255)
    return Batch(images.clamp(0, 1), *_moved(labels, boxes, scale[:, None], shift[:, None]))


def _moved(labels: Tensor, boxes: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Padded objects after content moved by x -> (x - 1/2) scale + 1/2 + shift, those still in view first."""
    centre, size = (boxes[..., :2] - 0.5) * scale + 0.5 + shift, boxes[..., 2:] * scale.abs()
    low, high = (centre - size / 2).clamp(0, 1), (centre + size / 2).clamp(0, 1)
    visible = (high - low).prod(-1) >= IN_VIEW * size.prod(-1)
    labels = torch.where(visible & (labels >= 0), labels, -1)
    inside = torch.cat([(low + high) / 2, high - low], dim=-1)
    boxes = torch.where(labels[..., None] >= 0, inside, 0.0)
    order = (labels < 0).int().argsort(dim=1, stable=True)
    return labels.gather(1, order), boxes.gather(1, order[..., None].expand(-1, -1, 4))
