"""Scenes as batches of padded tensors, augmented a batch at a time."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from dfkd_lib.core import WorkbenchError
from dfkd_lib.core.artifacts import Artifact
from dfkd_lib.datasets.scenes import SceneSet

SCENES = "scenes.safetensors"
KEEP = 0.5  # share of an object that must stay in view for it to stay a target
Batch = tuple[Tensor, Tensor, Tensor]


def padded(scenes: SceneSet) -> tuple[Tensor, Tensor]:
    """Labels int64 (N, M), -1 where there is no object, and boxes float32 (N, M, 4); M ≥ 1 is the most in one scene."""
    most = max(1, *(len(labels) for labels in scenes.labels))
    labels = torch.full((len(scenes), most), -1)
    boxes = torch.zeros(len(scenes), most, 4)
    for row, (scene_labels, scene_boxes) in enumerate(
        zip(scenes.labels, scenes.boxes, strict=True)
    ):
        labels[row, : len(scene_labels)] = scene_labels
        boxes[row, : len(scene_labels)] = scene_boxes
    return labels, boxes


def open_scenes(artifact: Artifact) -> SceneSet:
    """Scenes that an artifact keeps, of split None: drawn by a generator, they belong to no data set.

    Args:
        artifact: its file scenes.safetensors holds pixels uint8 (N, 3, H, W) and, padded as by `padded`, labels and boxes
            (the layout that was asked for); its settings name the "classes".

    Raises:
        WorkbenchError: if the artifact keeps no such scenes.
    """
    kept, classes = artifact.tensors(SCENES), artifact.settings.get("classes")
    if not {"pixels", "labels", "boxes"} <= set(kept) or not classes:
        raise WorkbenchError(
            "this artifact keeps no scenes",
            where=artifact.path / SCENES,
            expected="pixels, labels and boxes, and classes in its settings",
            fix="give drawn scenes",
            got=f"{', '.join(sorted(kept))}; classes {classes}",
        )
    held = kept["labels"] >= 0
    boxes, labels = (
        [rows[there] for rows, there in zip(kept[name], held, strict=True)]
        for name in ("boxes", "labels")
    )
    return SceneSet(kept["pixels"], boxes, labels, tuple(classes), f"scenes of {artifact.key}")


class SceneBatches:
    """Batches (images float (B, 3, H, W) in [0, 1], labels (B, M), boxes (B, M, 4)) of scenes, for `training.fit`.

    Args:
        scenes: read once, here, inside the stage that trains on them. batch_size: scenes a step; the last, smaller
            batch is dropped unless it is the only one. augment: strength of `augmented`, ≥ 0; None for none at all.
    """

    def __init__(self, scenes: SceneSet, batch_size: int, augment: float | None = 0.0):
        self.images, self.augment = scenes.images, augment
        self.labels, self.boxes = padded(scenes)
        self.batch_size = min(batch_size, len(scenes))

    def __len__(self) -> int:
        return len(self.images) // self.batch_size

    def __call__(self, epoch: int, generator: torch.Generator) -> Iterator[Batch]:
        order = torch.randperm(len(self.images), generator=generator)
        for rows in order[: len(self) * self.batch_size].split(self.batch_size):
            batch = self.images[rows].float() / 255, self.labels[rows], self.boxes[rows]
            yield batch if self.augment is None else augmented(*batch, generator, self.augment)


def augmented(
    images: Tensor, labels: Tensor, boxes: Tensor, generator: torch.Generator, strength: float = 1.0
) -> Batch:
    """Each scene mirrored (1/2) and, at strength 1, scaled by 0.8-1.25, shifted by up to 1/8, its light changed.

    Edges are repeated. Objects of which less than half stays in view become -1; boxes are cut at the border. At
    strength 0 scenes are only mirrored. Shapes as in `SceneBatches`.
    """
    rows = len(images)

    def uniform(span: float, *shape: int) -> Tensor:
        return (2 * torch.rand(rows, *shape, generator=generator) - 1) * span * strength

    mirror = torch.where(torch.rand(rows, 1, generator=generator) < 0.5, -1.0, 1.0)
    if strength == 0:
        flipped = torch.where(mirror[:, :, None, None] < 0, images.flip(-1), images)
        scale = torch.cat([mirror, mirror.abs()], dim=1)
        return flipped, *_moved(labels, boxes, scale[:, None], torch.zeros(rows, 1, 2))
    zoom, shift = torch.exp(uniform(0.223, 1)), uniform(0.125, 2)
    scale = torch.cat([mirror * zoom, zoom], dim=1)  # of content, about the middle of the image
    # affine_grid maps places of the result to places of the source, both in [-1, 1]: the inverse of content's motion.
    theta = torch.zeros(rows, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = 1 / scale[:, 0], 1 / scale[:, 1]
    theta[:, :, 2] = -2 * shift / scale
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    images = images * (1 + uniform(0.2, 3, 1, 1)) + uniform(0.1, 1, 1, 1)
    return images.clamp(0, 1), *_moved(labels, boxes, scale[:, None], shift[:, None])


def _moved(labels: Tensor, boxes: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Padded objects after content moved by x -> (x - 1/2) scale + 1/2 + shift, those still in view first."""
    centre, size = (boxes[..., :2] - 0.5) * scale + 0.5 + shift, boxes[..., 2:] * scale.abs()
    low, high = (centre - size / 2).clamp(0, 1), (centre + size / 2).clamp(0, 1)
    visible = (high - low).prod(-1) >= KEEP * size.prod(-1)
    labels = torch.where(visible & (labels >= 0), labels, -1)
    boxes = torch.where(
        labels[..., None] >= 0, torch.cat([(low + high) / 2, high - low], dim=-1), 0.0
    )
    order = (labels < 0).int().argsort(dim=1, stable=True)
    return labels.gather(1, order), boxes.gather(1, order[..., None].expand(-1, -1, 4))
