"""Where a detector looks for an object: its cross-attention about the object's box, for one object and for a class.

What the class token's row is to a classifier (A eq. 1), the row of the query that answers for an object is to a DETR.
Objects lie anywhere and have any size, so a probe is taken in the frame of its box: only then do the probes of a class
have a mean.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from dfkd_lib.attention import capture_attention, patch_grid
from dfkd_lib.core import WorkbenchError
from dfkd_lib.core.processes import shared_count
from dfkd_lib.datasets import SceneSet
from dfkd_lib.detection.batches import Batch
from dfkd_lib.detection.matching import matching_cost
from dfkd_lib.models import Detections, Detector
from dfkd_lib.models.scene_gan import object_boxes

SIDE = 7  # places of a probe across its frame
FRAME = 2.0  # sides of the frame over sides of the box: attention gathers at outlines, and beyond


def object_probes(
    detector: Detector, images: Tensor, labels: Tensor, boxes: Tensor
) -> tuple[Tensor, Detections]:
    """The attention probe of each object that a layout names, (n, SIDE²), each of sum 1, and the detections.

    An object's query is the one that fits it best by class and box (the cost of Hungarian matching); its cross-attention in
    the last decoder layer, mean over heads, is read about the object's box by bilinear interpolation, in float32: bf16 has
    too few digits for the small differences between probes.

    Args:
        images: float (B, 3, H, W) in [0, 1], which the gradient reaches.
        labels, boxes: int64 (B, M), -1 for none, and (B, M, 4), cxcywh in [0, 1].

    Raises:
        WorkbenchError: for a detector without cross-attention, or whose tokens form no grid over the images.
    """
    with torch.autocast(images.device.type, enabled=False):
        with capture_attention(detector, (-1,), None, kind="cross") as maps:
            found = detector(images.float())
        weights = maps[-1].mean(1)  # (B, Q, T)
        height, width = patch_grid(detector, weights.shape[-1], *images.shape[-2:])
        best = matching_cost(found.logits, found.boxes, labels, boxes).argmin(1)  # (B, M)
        rows = weights.gather(1, best[..., None].expand(-1, -1, weights.shape[-1]))[labels >= 0]
        frames = object_boxes(boxes, labels, FRAME, height, width)
        frames[:, 0] = torch.arange(len(rows), device=rows.device)  # a map of its own for each
        grids = rows.unflatten(1, (1, height, width)).float()
        probes = roi_align(grids, frames, SIDE, sampling_ratio=2, aligned=True).flatten(1)
    return probes / probes.sum(1, keepdim=True).clamp(min=1e-8), found


@torch.no_grad()
def class_object_probes(detector: Detector, batches: Iterable[Batch], num_classes: int) -> Tensor:
    """The mean probe of the objects of each of K classes (A eq. 2, for objects): (K, SIDE²), each of sum 1."""
    total, count = torch.zeros(num_classes, SIDE * SIDE), torch.zeros(num_classes)
    device = next(detector.parameters()).device
    for batch in batches:
        probes, _ = object_probes(detector, *batch.to(device)[:3])
        known = batch.labels[batch.labels >= 0]
        total.index_add_(0, known, probes.cpu())
        count += torch.bincount(known, minlength=num_classes)
    return total / count[:, None]


def check_objects(scenes: SceneSet) -> None:
    """WorkbenchError unless every class has an object: a class without one has no probe."""
    empty = [name for name, count in scenes.counts().items() if not count]
    if empty:
        raise WorkbenchError(
            "a class has no object in the training scenes",
            expected="at least one of each class",
            got=f"none of {', '.join(empty)}",
            where=scenes.origin,
            fix="leave it out of 'categories' in all splits, add objects, or cut more crops a frame",
        )


def object_consistency_loss(probes: Tensor, class_probes: Tensor, labels: Tensor) -> Tensor:
    """1 - cos of each object's probe (n, D) with the probe of its class (K, D), mean over objects: in [0, 1].

    Source: A eq. 4, for objects.
    """
    apart = 1 - F.cosine_similarity(probes, class_probes.to(probes)[labels], dim=1)
    return apart.sum() / shared_count(len(labels), probes)
