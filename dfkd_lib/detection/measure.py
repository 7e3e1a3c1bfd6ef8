"""How good drawn scenes are: their distance to real ones, and whether a teacher finds in them what was asked for.

Distances are taken in the features of a judge, a detector that had no part in making the scenes: the teacher's own features
would favour the GAN that learned from its attention.
"""

from pathlib import Path

import torch
from torch import Tensor
from torchvision.ops import roi_align

from dfkd_lib import metrics
from dfkd_lib.core import Artifact, Store, ledger
from dfkd_lib.datasets import Scenes, SceneSet, check_classes_agree
from dfkd_lib.detection.batches import SceneBatches
from dfkd_lib.detection.detector import load_detector
from dfkd_lib.detection.probes import object_consistency_loss, object_probes
from dfkd_lib.detection.scene_gan import PROBES, TOGETHER
from dfkd_lib.models import Detector
from dfkd_lib.models.scene_gan import CONTEXT, object_boxes


@torch.no_grad()
def scene_features(detector: Detector, scenes: SceneSet) -> tuple[Tensor, Tensor]:
    """A detector's backbone features, projected for its encoder: means over scenes (N, D), and about objects (n, D)."""
    outputs: list[Tensor] = []
    device, whole, things = next(detector.parameters()).device, [], []
    with detector.projection.register_forward_hook(
        lambda module, inputs, output: outputs.append(output)
    ):
        for images, labels, boxes, _ in SceneBatches(scenes, TOGETHER).in_order():
            detector(images.to(device))
            seen = outputs.pop().float().cpu()
            whole.append(seen.mean((2, 3)))
            regions = object_boxes(boxes, labels, CONTEXT, *seen.shape[-2:])
            things.append(roi_align(seen, regions, 1, aligned=True).flatten(1))
    return torch.cat(whole), torch.cat(things)


@torch.no_grad()
def consistency(
    teacher: Detector, scenes: SceneSet, probes: Tensor
) -> tuple[float, Tensor, Tensor]:
    """The attention loss of a teacher's objects in these scenes (see `object_consistency_loss`), in [0, 1]; and what it finds
    in them, as of `predict`: scores (N, Q, classes) and boxes (N, Q, 4)."""
    device, seen, found = next(teacher.parameters()).device, [], []
    for batch in SceneBatches(scenes, TOGETHER).in_order():
        own, detections = object_probes(teacher, *batch.to(device)[:3])
        seen.append(own.cpu())
        found.append((detections.logits.sigmoid()[..., :-1].cpu(), detections.boxes.cpu()))
    loss = object_consistency_loss(torch.cat(seen), probes, torch.cat(scenes.labels))
    scores, boxes = (torch.cat(part) for part in zip(*found, strict=True))
    return float(loss), scores, boxes


def measure_scenes(
    store: Store,
    drawn: Artifact | None,
    teacher: Artifact,
    judge: Artifact,
    probes: Artifact,
    train: Scenes,
    test: Scenes,
) -> Artifact:
    """Measures of drawn scenes, or of the real test scenes (None), against the real training scenes, in a judge's features.

    Returns:
        Artifact with metrics "frechet" (of scenes), "frechet_objects" (≥ 0), "found" (share of the objects asked for that
        the teacher finds with their class, at score and IoU 0.5), "AP50" (of the teacher's detections against the layout),
        "attention" (loss), "scenes", "reference_scenes", "objects".
    """
    for scenes in (Scenes.of(drawn) if drawn else test, train):
        check_classes_agree(teacher.metrics["classes"], scenes.classes, "the teacher and scenes")

    def make(work: Path) -> dict:
        reference = train.load()
        shown = test.load() if drawn is None else Scenes.of(drawn).load()
        finder, features = load_detector(teacher), load_detector(judge)
        real, made = scene_features(features, reference), scene_features(features, shown)
        attention, *finds = consistency(finder, shown, probes.tensors(PROBES)["probes"])
        found = metrics.average_precision(shown, *finds)
        distances = (
            metrics.frechet_distance_from_features(a.double(), b.double())
            for a, b in zip(real, made, strict=True)
        )
        return {
            **dict(zip(("frechet", "frechet_objects"), distances, strict=True)),
            "found": found["recall"],
            "AP50": found["AP50"],
            "attention": attention,
            "scenes": len(shown),
            "reference_scenes": len(reference),
            "objects": len(made[1]),
        }

    reads = {scenes.split: ledger.EVALUATION for scenes in (train, *(() if drawn else (test,)))}
    of = "drawn scenes" if drawn else "real test scenes"
    settings = {"of": of, "train": train.identity, "test": test.identity}
    parents = [*([drawn] if drawn else []), teacher, judge, probes]
    return store.get_or_make("scene_measures", settings, make, parents, reads)
