"""How good drawn scenes are: their distance to real ones, and whether a teacher finds in them what was asked for.

Distances are taken in the features of a judge, a detector that had no part in making the scenes: the teacher's own features
would favour the GAN that learned from its attention.
"""

from pathlib import Path

import torch
from torch import Tensor
from torchvision.ops import roi_align

from dfkd_lib import metrics
from dfkd_lib.core import ledger
from dfkd_lib.core.artifacts import Artifact, Store
from dfkd_lib.datasets.scenes import SceneSet
from dfkd_lib.detection.batches import open_scenes, padded
from dfkd_lib.detection.distill import load_detector
from dfkd_lib.detection.evaluate import average_precision, predict
from dfkd_lib.detection.probes import object_consistency_loss, object_probes
from dfkd_lib.detection.source import SceneSource
from dfkd_lib.detection.synthesis import TOGETHER
from dfkd_lib.models.detectors import Detector
from dfkd_lib.models.scene_gan import CONTEXT, object_boxes


@torch.no_grad()
def scene_features(detector: Detector, scenes: SceneSet) -> tuple[Tensor, Tensor]:
    """What a detector's backbone sees, projected for its encoder: means over scenes (N, D), and about objects (n, D)."""
    kept: list[Tensor] = []
    hook = detector.network.model.input_projection.register_forward_hook(
        lambda module, given, out: kept.append(out)
    )
    labels, boxes = padded(scenes)
    pixels, device, whole, things = scenes.images, next(detector.parameters()).device, [], []
    try:
        for rows in torch.arange(len(scenes)).split(TOGETHER):
            detector(pixels[rows].float().to(device) / 255)
            seen = kept.pop().float().cpu()
            whole.append(seen.mean((2, 3)))
            regions = object_boxes(boxes[rows], labels[rows], CONTEXT, *seen.shape[-2:])
            things.append(roi_align(seen, regions, 1, aligned=True).flatten(1))
    finally:
        hook.remove()
    return torch.cat(whole), torch.cat(things)


@torch.no_grad()
def consistency(teacher: Detector, scenes: SceneSet, probes: Tensor) -> float:
    """The attention loss of a teacher's objects in these scenes (see `object_consistency_loss`), in [0, 1]."""
    labels, boxes = padded(scenes)
    pixels, device, found = scenes.images, next(teacher.parameters()).device, []
    for rows in torch.arange(len(scenes)).split(TOGETHER):
        images = pixels[rows].float().to(device) / 255
        found.append(
            object_probes(teacher, images, labels[rows].to(device), boxes[rows].to(device))[0].cpu()
        )
    return float(object_consistency_loss(torch.cat(found), probes, labels[labels >= 0]))


def measure_scenes(
    store: Store,
    scenes: Artifact | None,
    teacher: Artifact,
    judge: Artifact,
    probes: Artifact,
    source: SceneSource,
) -> Artifact:
    """Measures of drawn scenes, or of the real test scenes (None), against the real training scenes.

    Args:
        teacher: the detector that is to find the objects. judge: whose features distances are taken in.
        probes: the teacher's class probes. source: of the real scenes, which are read here to measure and for nothing else.

    Returns:
        Artifact with metrics "frechet" (of scenes), "frechet_objects" (≥ 0), "found" (share of the objects asked for that
        the teacher finds with their class, at score and IoU 0.5), "AP50" (of the teacher's detections against the layout),
        "attention" (loss), "scenes", "reference_scenes", "objects".
    """

    def make(work: Path) -> dict:
        reference, shown = (
            source.load("train"),
            source.load("test") if scenes is None else open_scenes(scenes),
        )
        asked, seen = load_detector(teacher), load_detector(judge)
        real, drawn = scene_features(seen, reference), scene_features(seen, shown)
        found = average_precision(shown, *predict(asked, shown.images))
        distances = [
            metrics.frechet_distance_from_features(a.double(), b.double())
            for a, b in zip(real, drawn, strict=True)
        ]
        return {
            "frechet": distances[0],
            "frechet_objects": distances[1],
            "found": found["recall"],
            "AP50": found["AP50"],
            "attention": consistency(asked, shown, probes.tensors("probes.safetensors")["probes"]),
            "scenes": len(shown),
            "reference_scenes": len(reference),
            "objects": len(drawn[1]),
        }

    reads = {source.split("train"): ledger.EVALUATION}
    if scenes is None:
        reads[source.split("test")] = ledger.EVALUATION
    of = "real test scenes" if scenes is None else "drawn scenes"
    settings = {"of": of, "train": source.identity("train"), "test": source.identity("test")}
    parents = [*([scenes] if scenes else []), teacher, judge, probes]
    return store.get_or_make("scene_measures", settings, make, parents, reads)
