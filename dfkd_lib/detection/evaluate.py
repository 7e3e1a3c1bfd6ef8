"""What a detector finds in scenes."""

import torch
from torch import Tensor

from dfkd_lib import training
from dfkd_lib.datasets import SceneSet
from dfkd_lib.metrics import THRESHOLD, same_classes, sure
from dfkd_lib.models.detectors import Detector

PIXELS = 4_000_000  # of a batch


@torch.no_grad()
def predict(detector: Detector, images: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (N, Q, classes) in [0, 1] and boxes (N, Q, 4) of uint8 images (N, 3, H, W), on the CPU, in eval mode."""
    was_training, target = detector.training, training.device()
    detector.eval().to(target)
    batch_size = max(1, PIXELS // images[0, 0].numel())
    found = [detector(rows.to(target).float() / 255) for rows in images.split(batch_size)]
    detector.train(was_training)
    scores = torch.cat([d.logits for d in found]).sigmoid()[..., :-1]
    return scores.cpu(), torch.cat([d.boxes for d in found]).cpu()


def detections(detector: Detector, scenes: SceneSet, threshold: float = THRESHOLD) -> list[dict]:
    """What a detector finds in each scene, as `sure` gives it; WorkbenchError if it has not the scenes' classes."""
    same_classes(detector.num_labels, scenes, "the detector")
    found = zip(*predict(detector, scenes.images), strict=True)
    return [sure(scores, boxes, threshold) for scores, boxes in found]
