"""What a classifier reaches on its test images, and what it costs."""

import torch

from dfkd_lib.core.artifacts import Artifact
from dfkd_lib.models import count_flops
from dfkd_lib.training import device, load_trained, test_logits

# Keys of `scores` -> their names in tables.
SCORES = {
    "top1": "top-1",
    "top5": "top-5",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
}


def scores(artifact: Artifact) -> dict[str, float]:
    """ "top1", "top5", macro "precision", "recall" and "f1" on the artifact's test images, in [0, 1].

    With fewer than five classes top5 is 1.
    """
    from sklearn.metrics import precision_recall_fscore_support

    logits, labels = test_logits(artifact)
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, logits.argmax(1), average="macro", zero_division=0
    )
    best = logits.topk(min(5, logits.shape[1]), 1).indices
    return {
        "top1": artifact.metrics["accuracy"],
        "top5": (best == labels[:, None]).any(1).float().mean().item(),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
    }


def gigaflops(artifact: Artifact) -> float:
    """10⁹ floating point operations of one image's forward pass (a multiply-add counts as two)."""
    known = artifact.settings["overrides"]
    shape = known["in_chans"], known["img_size"], known["img_size"]
    return count_flops(load_trained(artifact), torch.zeros(1, *shape, device=device())) / 1e9
