"""Whether a detector's scores are probabilities: expected calibration error, and Platt's scaling of scores."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dfkd_lib.datasets import SceneSet
from dfkd_lib.metrics.coco import coco_evaluation, judgements

BINS = 15  # of scores, of equal width (Guo et al. 2017)
EDGE = 1e-6  # scores are kept so far from 0 and 1


class Scaling(NamedTuple):
    """A score s as a probability: sigmoid(logit(s) / temperature + shift); the order of scores, and AP, stay."""

    temperature: float = 1.0
    shift: float = 0.0

    def __call__(self, scores: Tensor) -> Tensor:
        """Scores of any shape, scaled; 0 stays 0, of places that hold no detection."""
        logits = scores.double().clamp(EDGE, 1 - EDGE).logit()
        scaled = (logits / self.temperature + self.shift).sigmoid().to(scores)
        return torch.where(scores > 0, scaled, scores)


def judged(
    scenes: SceneSet, scores: Tensor, boxes: Tensor, iou: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Each detection that COCO counts: its score, and whether it is right, both (n,).

    Args:
        scores: (N, Q, classes) in [0, 1].
        boxes: (N, Q, 4) cxcywh in [0, 1].
        iou: with an object of its class, from which a detection is right; each object makes one right, its surest.
    """
    return judgements(coco_evaluation(scenes, scores, boxes, [iou]))[:2]


def calibration_error(scores: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error of detections (n,): mean over them of |share right - mean score| of their bin of scores.

    Returns:
        A number in [0, 1]; 0 of no detection.

    Source: Guo et al. 2017; for detections, by their scores alone, Küppers et al. 2020.
    """
    places = np.minimum((scores * BINS).astype(int), BINS - 1)
    gaps = np.bincount(places, right.astype(float) - scores, BINS)
    return float(np.abs(gaps).sum() / max(len(scores), 1))


def fit_scaling(scores: np.ndarray, right: np.ndarray) -> Scaling:
    """The scaling that gives detections (n,) the greatest likelihood; none where all are right, or none is.

    Source: Platt 1999; with its shift held at 0 it is the temperature scaling of Guo et al. 2017, which cannot correct
        scores that are all too high.
    """
    from sklearn.linear_model import LogisticRegression

    if right.all() or not right.any():
        return Scaling()
    clear = np.clip(scores, EDGE, 1 - EDGE)
    logits = np.log(clear / (1 - clear))[:, None]
    fitted = LogisticRegression(C=np.inf).fit(logits, right)
    # Surer detections are never made less sure than others.
    slope = max(float(fitted.coef_[0, 0]), 1e-3)
    return Scaling(1 / slope, float(fitted.intercept_[0]))
