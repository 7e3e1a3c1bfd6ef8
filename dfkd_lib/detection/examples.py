"""A few scenes with what is there and what detectors find, as the plots of scenes take them."""

from dfkd_lib.core import Artifact
from dfkd_lib.datasets import SceneSet
from dfkd_lib.detection.detector import predictions
from dfkd_lib.detection.step import ObjectTargets, Queries
from dfkd_lib.metrics import sure


def with_objects(scenes: SceneSet, count: int) -> list[int]:
    """Places of `count` scenes with an object, evenly over the set: neighbours are often of one video."""
    rows = [i for i, labels in enumerate(scenes.labels) if len(labels)] or [*range(len(scenes))]
    return rows[:: max(1, len(rows) // count)][:count]


def truth(scenes: SceneSet) -> list[dict]:
    """The true objects of each scene: {"boxes" (n, 4) cxcywh in [0, 1], "labels" (n,)}."""
    pairs = zip(scenes.boxes, scenes.labels, strict=True)
    return [{"boxes": boxes.numpy(), "labels": labels.numpy()} for boxes, labels in pairs]


def compared(
    detectors: dict[str, Artifact], test: SceneSet, count: int, threshold: float
) -> dict[str, object]:
    """Test scenes with an object, evenly over the set, and what each detector finds there: for `plots.detection_compare`."""
    rows = with_objects(test, count)
    some, found = test.subset(rows), {}
    for name, artifact in detectors.items():
        scores, boxes = predictions(artifact)
        found[name] = [sure(scores[i], boxes[i], threshold) for i in rows]
    images = some.pixels.numpy()
    return {"images": images, "classes": test.classes, "truth": truth(some), "found": found}


def pairs(found: Queries, targets: ObjectTargets) -> list[dict]:
    """Of each scene the queries of the last decoder layer that answer for an object: their boxes, the object's label, and
    the probability of it as score."""
    shown = []
    parts = (found.logits[-1].sigmoid(), found.boxes[-1], targets.labels[-1], targets.present[-1])
    for scores, boxes, labels, present in zip(
        *(part.detach().cpu() for part in parts), strict=True
    ):
        own = labels[present]
        chance = scores[present].gather(1, own[:, None]).flatten()
        scene = {"boxes": boxes[present], "labels": own, "scores": chance}
        shown.append({name: value.numpy() for name, value in scene.items()})
    return shown
