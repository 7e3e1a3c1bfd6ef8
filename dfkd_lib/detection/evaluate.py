"""What a detector finds in scenes, and how good it is by COCO's measures (pycocotools)."""

import contextlib
import io

import numpy as np
import torch
from torch import Tensor

from dfkd_lib import training
from dfkd_lib.datasets.coco import ground_truth
from dfkd_lib.datasets.scenes import SceneSet
from dfkd_lib.models.detectors import Detector

PIXELS = 4_000_000  # that are looked at together
THRESHOLD = 0.5  # score from which a detection counts for precision and recall, and is drawn


@torch.no_grad()
def predict(detector: Detector, images: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (N, Q, classes) in [0, 1] and boxes (N, Q, 4) of uint8 images (N, 3, H, W), on the CPU, in eval mode."""
    was_training, target = detector.training, training.device()
    detector.eval().to(target)
    batch_size = max(1, PIXELS // images[0, 0].numel())
    found = [detector(rows.to(target).float() / 255) for rows in images.split(batch_size)]
    detector.train(was_training)
    return (torch.cat([d.logits for d in found]).sigmoid()[..., :-1].cpu(), torch.cat([d.boxes for d in found]).cpu())


def detections(detector: Detector, scenes: SceneSet, threshold: float = THRESHOLD) -> list[dict]:
    """What a detector finds in each scene, as `sure` gives it."""
    return [sure(*found, threshold) for found in zip(*predict(detector, scenes.images), strict=True)]


def sure(scores: Tensor, boxes: Tensor, threshold: float = THRESHOLD) -> dict[str, np.ndarray]:
    """The queries of one scene with a score (Q, classes) of at least `threshold`, best first.

    Returns:
        {"boxes": float (n, 4) cxcywh, "labels": int64 (n,), "scores": float (n,)}.
    """
    score, label = scores.max(dim=-1)
    keep = score.argsort(descending=True)
    keep = keep[score[keep] >= threshold]
    return {"boxes": boxes[keep].numpy(), "labels": label[keep].numpy(), "scores": score[keep].numpy()}


def evaluate_ap(detector: Detector, scenes: SceneSet) -> dict:
    """COCO's average precision of a detector on scenes.

    Returns:
        {"AP" (mean over IoU 0.50-0.95), "AP50", "AP75", "precision", "recall" (both at IoU 0.5 and score 0.5),
        "per_class": {class: {"AP", "AP50"}}}, each in [0, 1]. A class without objects in these scenes is None and left
        out of the means; a detector that finds nothing has AP 0.
    """
    scores, boxes = predict(detector, scenes.images)
    return average_precision(scenes, scores, boxes)


def average_precision(scenes: SceneSet, scores: Tensor, boxes: Tensor) -> dict:
    """As `evaluate_ap`, for given scores (N, Q, classes) and boxes (N, Q, 4)."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth = COCO()
        truth.dataset = ground_truth(scenes)
        truth.createIndex()
        rows = _coco_rows(scenes, scores, boxes)
        evaluation = COCOeval(truth, truth.loadRes(rows) if len(rows) else COCO(), "bbox")
        evaluation.params.imgIds = sorted(truth.getImgIds())
        evaluation.params.catIds = sorted(truth.getCatIds())
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    # (IoU thresholds, recall places, classes), -1 where a class has no object
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    per_class = {name: {"AP": _mean(precision[:, :, k]), "AP50": _mean(precision[0, :, k])}
                 for k, name in enumerate(scenes.classes)}
    return {"AP": _mean(precision) or 0.0, "AP50": _mean(precision[0]) or 0.0, "AP75": _mean(precision[5]) or 0.0,
            **_precision_recall(evaluation), "per_class": per_class}


def _mean(precision: np.ndarray) -> float | None:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else None


def _coco_rows(scenes: SceneSet, scores: Tensor, boxes: Tensor) -> np.ndarray:
    """Each (query, class) with a score above 0.01 as a row: image id, x, y, width, height (pixels), score, class id."""
    height, width = scenes.pixels.shape[2:]
    pixels = boxes.double() * torch.tensor([width, height, width, height])
    pixels[..., :2] -= pixels[..., 2:] / 2
    image, query, label = (scores > 0.01).nonzero(as_tuple=True)
    columns = [image + 1, *pixels[image, query].unbind(-1), scores[image, query, label], label + 1]
    return torch.stack([c.double() for c in columns], dim=1).numpy()


def _precision_recall(evaluation) -> dict[str, float]:
    """Precision and recall at IoU 0.5 of all detections with a score of at least THRESHOLD."""
    right = made = objects = 0
    for image in filter(None, evaluation.evalImgs):
        sure = np.asarray(image["dtScores"]) >= THRESHOLD
        right += int((image["dtMatches"][0][sure] > 0).sum()) if len(sure) else 0
        made += int(sure.sum())
        objects += len(image["gtIds"])
    return {"precision": right / made if made else 0.0, "recall": right / objects if objects else 0.0}
