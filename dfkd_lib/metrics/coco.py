"""How good detections are by COCO's measures, computed by pycocotools."""

import contextlib
import io
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dfkd_lib.core import WorkbenchError
from dfkd_lib.datasets import SceneSet, ground_truth

THRESHOLD = 0.5  # score from which a detection counts for precision and recall, and is drawn
FAINT = 0.01  # score below which pycocotools is not given a detection
# COCO's classes of an object's size: from and to this area in pixels of the original image.
SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
IOUS = {"AP": slice(None), "AP50": 0, "AP75": 5}  # places among COCO's ten thresholds


def sure(scores: Tensor, boxes: Tensor, threshold: float = THRESHOLD) -> dict[str, np.ndarray]:
    """The queries of one scene with a score (Q, classes) of at least `threshold`, best first.

    Returns:
        {"boxes": float (n, 4) cxcywh, "labels": int64 (n,), "scores": float (n,)}.
    """
    score, label = scores.max(dim=-1)
    order = score.argsort(descending=True)
    order = order[score[order] >= threshold]
    found = {"boxes": boxes[order], "labels": label[order], "scores": score[order]}
    return {name: value.numpy() for name, value in found.items()}


def average_precision(
    scenes: SceneSet, scores: Tensor, boxes: Tensor, by_size: bool = False
) -> dict:
    """COCO's average precision of given scores (N, Q, classes) and boxes (N, Q, 4) cxcywh in [0, 1].

    Args:
        by_size: also of small, medium and large objects alone, which takes longer: see SIZES.

    Returns:
        {"AP" (mean over IoU 0.50-0.95), "AP50", "AP75", "precision", "recall" (both at IoU 0.5 and score 0.5),
        "per_class": {class: {"AP", "AP50", "AP75"}}} and, by size, "AP_small", "AP_medium", "AP_large", each in [0, 1].
        A class or size without objects in these scenes is None and left out of the means; a detector that finds nothing
        has AP 0.
    """
    evaluation = coco_evaluation(scenes, scores, boxes, by_size=by_size)
    # (IoU thresholds, recall places, classes, sizes), -1 where there is no object
    precision = evaluation.eval["precision"][..., -1]
    whole = precision[..., 0]
    sizes = enumerate(SIZES, 1) if by_size else ()
    return {
        **{name: _mean(whole[ious]) or 0.0 for name, ious in IOUS.items()},
        **{f"AP_{size}": _mean(precision[..., place]) for place, size in sizes},
        **_precision_recall(evaluation),
        "per_class": {
            label: {name: _mean(whole[ious][..., k]) for name, ious in IOUS.items()}
            for k, label in enumerate(scenes.classes)
        },
    }


def coco_evaluation(
    scenes: SceneSet,
    scores: Tensor,
    boxes: Tensor,
    ious: Sequence[float] | None = None,
    by_size: bool = False,
):
    """pycocotools' own COCOeval of these detections, matched at some IoUs (None: COCO's ten) and accumulated; by size, with
    area ranges of SIZES after the one of all objects."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    same_classes(scores.shape[-1], scenes, "the scores")
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth, found = COCO(), COCO()
        truth.dataset = ground_truth(scenes)
        # `loadRes` would draw an outline for every box, half of the whole evaluation's time.
        found.dataset = {**truth.dataset, "annotations": _coco_rows(scenes, scores, boxes)}
        truth.createIndex()
        found.createIndex()
        evaluation = COCOeval(truth, found, "bbox")
        params, sizes = evaluation.params, SIZES if by_size else {}
        params.imgIds, params.catIds = sorted(truth.getImgIds()), sorted(truth.getCatIds())
        params.areaRng, params.areaRngLbl = [[0, 1e10], *map(list, sizes.values())], ["all", *sizes]
        params.maxDets = params.maxDets[-1:]
        if ious is not None:
            params.iouThrs = np.asarray(ious, float)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def same_classes(classes: Sequence[str] | int, scenes: SceneSet, whose: str) -> None:
    """WorkbenchError if `whose` (in words) classes, or their number where nobody knows names, are not the scenes'."""
    known = len(scenes.classes) if isinstance(classes, int) else scenes.classes
    if (classes if isinstance(classes, int) else tuple(classes)) != known:
        raise WorkbenchError(
            f"{whose} and the scenes have different classes",
            got=f"{classes} classes" if isinstance(classes, int) else ", ".join(classes),
            where=scenes.origin,
            expected=f"{len(scenes.classes)} classes: {', '.join(scenes.classes)}",
            fix="use a detector that was trained on these classes, or scenes of its own",
        )


def _mean(precision: np.ndarray) -> float | None:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else None


def _coco_rows(scenes: SceneSet, scores: Tensor, boxes: Tensor) -> list[dict]:
    """Each (query, class) above FAINT as pycocotools has a detection; boxes in pixels of the original."""
    height, width = scenes.shape[1:]
    sides = torch.tensor([width, height, width, height])
    pixels = boxes.double() * sides * scenes.scale.double()[:, None, None]
    pixels[..., :2] -= pixels[..., 2:] / 2
    image, query, label = (scores > FAINT).nonzero(as_tuple=True)
    columns = {
        "id": torch.arange(1, len(image) + 1),
        "image_id": image + 1,
        "category_id": label + 1,
        "bbox": pixels[image, query],
        "area": pixels[image, query, 2:].prod(-1),
        "iscrowd": torch.zeros_like(image),
        "score": scores[image, query, label].double(),
    }
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in values]


def judgements(evaluation) -> tuple[np.ndarray, np.ndarray, int]:
    """Of a `coco_evaluation`: each detection's score, whether it is right at the first IoU, both (n,); number of objects."""
    images, sizes = len(evaluation.params.imgIds), len(evaluation.params.areaRng)
    # By class, then size, then image.
    every = [one for i, one in enumerate(evaluation.evalImgs) if one and not i // images % sizes]
    scores = [np.empty(0), *(image["dtScores"] for image in every)]
    right = [np.asarray(image["dtMatches"])[0] > 0 for image in every if len(image["dtScores"])]
    objects = sum(len(image["gtIds"]) for image in every)
    return np.concatenate(scores), np.concatenate([np.empty(0, bool), *right]), objects


def _precision_recall(evaluation) -> dict[str, float]:
    """Precision and recall at IoU 0.5 of all detections with a score of at least THRESHOLD."""
    scores, right, objects = judgements(evaluation)
    found = right[scores >= THRESHOLD].tolist()
    return {"precision": sum(found) / max(len(found), 1), "recall": sum(found) / max(objects, 1)}
