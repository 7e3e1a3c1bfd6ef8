"""Layouts of scenes after a teacher's own statistics of classes, boxes and counts: nobody's labels are read.

After the sampling of boxes and categories in data-free quantization of detectors, where a network's own predictions say
what its images should hold.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dfkd_lib import training
from dfkd_lib.core import Artifact, Store, artifacts
from dfkd_lib.datasets import Scenes, check_classes_agree, in_turn
from dfkd_lib.detection.detector import load_detector
from dfkd_lib.metrics import THRESHOLD

STATISTICS = "statistics.safetensors"
NOISE_IMAGES = 2048  # of noise, in which a teacher that may see no image is asked what it expects
TOGETHER = 64
SMALLEST = 0.03  # side of a box that is drawn, as a share of the scene
RIDGE = 0.01  # added to variances: the boxes of one query hardly differ


def layout_statistics(
    store: Store, teacher: Artifact, scenes: Scenes | None, side: int
) -> Artifact:
    """What a teacher finds in scenes, or, where it may be shown none, in noise: statistics.safetensors with "counts" (M + 1,),
    the frequencies of numbers of objects, "classes" (K,), and of each class "mean" (K, 4) and "factor" (K, 4, 4) of a normal
    distribution of (logit x, logit y, log width, log height).

    In scenes its detections count. In noise every query counts by its score, for what is seen there tells where and how large
    a teacher expects objects; not of which class, so that classes are even, and a scene has at least one object.

    Args:
        scenes: whose images, not labels, are read; None reads no image at all.
        side: of the noise images in pixels.
    """
    settings = {"images": scenes.identity if scenes else {"noise": NOISE_IMAGES, "side": side}}
    if scenes:
        known = teacher.metrics["classes"]
        check_classes_agree(known, scenes.classes, "the teacher and the scenes of its layouts")

    def make(work: Path) -> dict:
        images = _real(scenes) if scenes else _noise(side)
        detector = load_detector(teacher)
        seen = []
        with torch.no_grad():
            for batch in images:
                output = detector(batch.to(training.device()))
                score, label = output.logits.sigmoid()[..., :-1].max(-1)
                seen.append([part.cpu().double() for part in (score, label, output.boxes)])
        scores, labels, boxes = (torch.cat(parts) for parts in zip(*seen, strict=True))
        found = scores >= THRESHOLD
        known = scenes is not None and bool(found.any())  # an untrained teacher finds nothing
        counts = found.sum(1).clamp(min=0 if known else 1)
        weights = scores * found if known else scores
        made = _statistics(weights, labels.long(), boxes, detector.num_labels)
        made |= {"counts": counts.bincount() / len(counts)}
        if not scenes:
            made["classes"] = torch.full_like(made["classes"], 1 / detector.num_labels)
        artifacts.save_tensors(work / STATISTICS, made)
        return {"scenes": len(scores), "objects": int(found.sum())}

    reads = {scenes.split: "layout statistics"} if scenes else {}
    return store.get_or_make("layout_statistics", settings, make, [teacher], reads)


def _real(scenes: Scenes) -> Iterator[Tensor]:
    images = scenes.load().images
    for rows in in_turn(images, torch.arange(len(images)).split(TOGETHER)):
        yield rows.float() / 255


def _noise(side: int) -> Iterator[Tensor]:
    """Fields of colour at four scales, float (B, 3, side, side) in [0, 1]."""
    random = torch.Generator().manual_seed(0)
    for _ in range(NOISE_IMAGES // TOGETHER):
        parts = [
            torch.randn(TOGETHER, 3, cells, cells, generator=random) for cells in (1, 4, 12, 40)
        ]
        fields = [F.interpolate(part, (side, side), mode="bilinear") for part in parts]
        yield torch.stack(fields).sum(0).sigmoid()


def _statistics(weights: Tensor, labels: Tensor, boxes: Tensor, classes: int) -> dict[str, Tensor]:
    """Classes and boxes of queries: weights (N, Q) in [0, 1], labels (N, Q), boxes (N, Q, 4); see `layout_statistics`."""
    chosen = weights > 0
    weights, labels, boxes = weights[chosen], labels[chosen], boxes[chosen]
    places = torch.cat([boxes[:, :2].logit(1e-3), boxes[:, 2:].clamp(min=1e-3).log()], -1)
    share = torch.zeros(classes).double().index_add_(0, labels, weights)
    means, factors = [], []
    for label in range(classes):
        # A class of which less than one object was found has the boxes of all.
        own = weights * ((labels == label) | (share[label] < 1)) + 1e-9
        own = own / own.sum()
        means.append(own @ places)
        apart = places - means[-1]
        spread = (own[:, None] * apart).mT @ apart
        factors.append(torch.linalg.cholesky(spread + RIDGE * torch.eye(4)))
    known = share.clamp(min=1)
    found = {"classes": known / known.sum(), "mean": torch.stack(means)}
    found["factor"] = torch.stack(factors)
    return {name: value.float() for name, value in found.items()}


def sampled_layouts(
    statistics: dict[str, Tensor], count: int, random: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Layouts drawn from `layout_statistics`: labels int64 (count, M), -1 for none, objects first, and boxes (count, M, 4)
    cxcywh, each within its scene."""
    most = max(1, len(statistics["counts"]) - 1)
    objects = statistics["counts"].multinomial(count, True, generator=random)
    labels = statistics["classes"].multinomial(count * most, True, generator=random)
    noise = torch.randn(count * most, 4, 1, generator=random)
    places = statistics["mean"][labels] + (statistics["factor"][labels] @ noise).squeeze(-1)
    size = places[:, 2:].exp().clamp(SMALLEST, 1)
    centre = torch.minimum(torch.maximum(places[:, :2].sigmoid(), size / 2), 1 - size / 2)
    there = torch.arange(most) < objects[:, None]
    boxes = torch.cat([centre, size], -1).view(count, most, 4)
    return torch.where(there, labels.view(count, most), -1), torch.where(
        there[..., None], boxes, 0.0
    )
