"""Where precision is lost: precision over recall by class, and what is taken for what, background included."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from dfkd_lib.datasets import SceneSet
from dfkd_lib.metrics.coco import THRESHOLD, coco_evaluation, sure

MEAN = "mean of classes"


class Curve(NamedTuple):
    """Precision over recall of one class, each (101,).

    Args:
        recall: 0, 0.01 ... 1.
        precision: the best that is had at this recall or more, 0 beyond the last detection.
    """

    recall: np.ndarray
    precision: np.ndarray


class Matches(NamedTuple):
    """What detections of one scene stand for: pairs (n, 2) of detection and object, and those left over of both."""

    pairs: np.ndarray
    false: np.ndarray
    missed: np.ndarray


def precision_recall_curves(
    scenes: SceneSet, scores: Tensor, boxes: Tensor, iou: float = 0.5
) -> dict[str, Curve]:
    """Interpolated precision over recall as COCO's AP is the mean of it, by pycocotools' own accumulation.

    Args:
        scores: (N, Q, classes) in [0, 1].
        boxes: (N, Q, 4) cxcywh in [0, 1].
        iou: from which a detection is right.

    Returns:
        {class: Curve} of each class with an object in these scenes, and their mean under MEAN if there is one.

    Raises:
        WorkbenchError: if scores and scenes have different classes.
    """
    evaluation = coco_evaluation(scenes, scores, boxes, [iou])
    recall = np.asarray(evaluation.params.recThrs)
    precision = evaluation.eval["precision"][0, :, :, 0, 0]
    curves = {
        name: Curve(recall, precision[:, k])
        for k, name in enumerate(scenes.classes)
        if precision[0, k] > -1
    }
    if curves:
        mean = np.mean([curve.precision for curve in curves.values()], axis=0)
        curves[MEAN] = Curve(recall, mean)
    return curves


def matched(found: Tensor, truth: Tensor, iou: float = 0.5) -> Matches:
    """Pair detections with objects whatever their classes, the pair of greatest IoU first, each once.

    Args:
        found: (n, 4), cxcywh.
        truth: (m, 4), cxcywh.
        iou: below it nothing is paired.
    """
    both = (torch.as_tensor(b).double().view(-1, 4) for b in (found, truth))
    overlap = box_iou(*(box_convert(b, "cxcywh", "xyxy") for b in both))
    pairs, false, missed = [], [*range(overlap.shape[0])], [*range(overlap.shape[1])]
    for place in overlap.flatten().argsort(descending=True, stable=True).tolist():
        detection, thing = divmod(place, overlap.shape[1])
        if overlap[detection, thing] < iou:
            break
        if detection in false and thing in missed:
            pairs.append((detection, thing))
            false.remove(detection)
            missed.remove(thing)
    return Matches(*(np.array(p, np.int64) for p in (np.reshape(pairs, (-1, 2)), false, missed)))


def confusion(
    scenes: SceneSet, scores: Tensor, boxes: Tensor, threshold: float = THRESHOLD, iou: float = 0.5
) -> np.ndarray:
    """What each object is taken for: counts int64 (classes + 1, classes + 1), rows true, columns predicted.

    Each query counts as its best class, if its score is at least `threshold`; queries and objects are paired by `matched`.
    The last column are objects that no detection answers for (missed), the last row detections of background. Their
    corner is 0: background that is left alone is not counted.
    """
    size = len(scenes.classes)
    counts = np.zeros((size + 1, size + 1), np.int64)
    for score, box, truth, labels in zip(scores, boxes, scenes.boxes, scenes.labels, strict=True):
        found, true = sure(score, box, threshold), labels.numpy()
        pairs, false, missed = matched(torch.from_numpy(found["boxes"]), truth, iou)
        np.add.at(counts, (true[pairs[:, 1]], found["labels"][pairs[:, 0]]), 1)
        np.add.at(counts, (size, found["labels"][false]), 1)
        np.add.at(counts, (true[missed], size), 1)
    return counts
