"""The inception score's analogue: how sure a classifier is of each image, and of how many classes they are."""

import torch
from torch import Tensor

from dfkd_lib.core import WorkbenchError


def score(logits: Tensor) -> float:
    """exp(E KL(p(y|x) ‖ p(y))) of logits (N, K), in [1, K] (Salimans et al. 2016, with any classifier as the judge).

    K: every image is classified with certainty and all classes come equally often. 1: nothing is, or all as one class.

    Raises:
        WorkbenchError: on other shapes, no row, or values that are not finite.
    """
    return float(scores(logits, torch.ones(1, len(logits)))[0])


def scores(logits: Tensor, weights: Tensor) -> Tensor:
    """The scores (R,) of R weightings (R, N) of the images, weights ≥ 0: what a bootstrap resamples."""
    if logits.ndim != 2 or not len(logits) or not torch.isfinite(logits).all():
        raise WorkbenchError(
            "a score needs finite logits",
            expected="(N >= 1, K), finite",
            got=tuple(logits.shape),
            fix="check the images and the classifier",
        )
    log_p = logits.double().log_softmax(1)
    p, weights = log_p.exp(), weights.to(log_p) / weights.to(log_p).sum(1, keepdim=True)
    certain, mean = weights @ (p * log_p).sum(1), weights @ p
    entropy = -torch.special.xlogy(mean, mean).sum(1)
    return (certain + entropy).exp().clamp(1, logits.shape[1])  # rounding alone can leave the range
