"""Detectors and drawn scenes as tables, and as examples in the form that the plots of scenes take."""

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from dfkd_lib.core import Artifact
from dfkd_lib.datasets import SceneSet, check_classes_agree
from dfkd_lib.detection.detector import predictions
from dfkd_lib.detection.step import ObjectTargets, Queries
from dfkd_lib.metrics import intervals, sure
from dfkd_lib.models import display_name

if TYPE_CHECKING:
    import pandas as pd

LABELS = {True: "the data set's", False: "the teacher's detections"}
MEASURES = {
    "frechet": "distance of scenes",
    "frechet_objects": "distance of objects",
    "found": "objects found (%)",
    "AP50": "AP50 of what was asked",
    "attention": "attention loss",
}


def _table(rows: list[dict]) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame(rows).replace({None: np.nan})


def ap_table(detectors: dict[str, Artifact]) -> "pd.DataFrame":
    """COCO measures of each detector: parameters, AP, AP50, AP75, AP by size, precision, recall."""
    sizes = [f"AP_{size}" for size in ("small", "medium", "large")]
    measures = ["parameters", "AP", "AP50", "AP75", *sizes, "precision", "recall"]
    rows = []
    for name, artifact in detectors.items():
        found = {measure.replace("_", " "): artifact.metrics.get(measure) for measure in measures}
        rows.append({"detector": f"{name} ({display_name(artifact.settings['model'])})", **found})
    return _table(rows)


def gain_table(students: dict[str, Sequence[Artifact]]) -> "pd.DataFrame":
    """What each student has over each one before it, trained from the same seeds: mean difference of AP50, its paired
    95 % interval and p (`metrics.intervals.paired_difference`); of fewer than three seeds the mean alone."""
    rows = []
    for one, other in combinations(students, 2):
        before, after = ([made.metrics["AP50"] for made in students[key]] for key in (one, other))
        gain = intervals.paired_difference(before, after)
        if gain["pairs"] < intervals.FEWEST:
            gain |= dict.fromkeys(("low", "high", "p"), np.nan)
        own = {"AP50": intervals.interval_text(after, ".3f")}
        own["of the other"] = intervals.interval_text(before, ".3f")
        rows.append({"student": other, "against": one, **own, **gain})
    return _table(rows)


def class_table(detectors: dict[str, Artifact]) -> "pd.DataFrame":
    """AP and AP50 of each detector by class."""
    rows = []
    for name, artifact in detectors.items():
        classes = artifact.metrics["per_class"].items()
        measures = ("AP", "AP50")
        found = {f"{label} {one}": values[one] for one in measures for label, values in classes}
        rows.append({"detector": name, **found})
    return _table(rows)


def seen_table(detectors: dict[str, Artifact]) -> "pd.DataFrame":
    """What each detector was made from: where it started, and scenes of data sets that its own training read, by the
    ledger; what stands behind the detector that it started from is not among them."""
    rows = []
    for name, artifact in detectors.items():
        entries = [entry for entry in artifact.ledger if entry["purpose"] != "evaluation"]
        read = {entry["split"]: entry["images"] for entry in entries}
        rows.append(
            {
                "detector": name,
                "started from": _start(artifact),
                "scenes it trained on": artifact.metrics["train_scenes"],
                "of them from a data set": sum(read.values()),
                "splits": ", ".join(read) or "none",
                "labels": LABELS[artifact.settings.get("labelled", True)],
            }
        )
    return _table(rows)


def _start(artifact: Artifact) -> str:
    settings, kept, text = artifact.settings, artifact.metrics.get("classes_kept"), "nothing"
    if isinstance(settings.get("weights"), dict):
        text = "a detector of the generated scenes"
    elif settings.get("weights") or settings.get("backbone_weights"):
        text = "a file of weights"
    elif settings.get("pretrained"):
        text = "published weights"
    elif artifact.metrics.get("inherited"):
        text = "its teacher, but for the backbone"
    return text if kept is None else f"{text}, with {', '.join(kept) or 'none'} of its classes"


def measures_table(measured: dict[str, Sequence[Artifact]]) -> "pd.DataFrame":
    """What was measured of drawn scenes, one row a maker, of `measure_scenes` of each of its seeds: mean and 95 %
    interval."""
    rows = []
    for name, found in measured.items():
        row = {"scenes": name, "seeds": len(found)}
        for key, text in MEASURES.items():
            scale = 100 if key == "found" else 1
            row[text] = intervals.interval_text([scale * one.metrics[key] for one in found])
        rows.append(row)
    return _table(rows)


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
        check_classes_agree(
            artifact.metrics["classes"], test.classes, f"{name} and the test scenes"
        )
        scores, boxes = predictions(artifact)
        found[name] = [sure(scores[i], boxes[i], threshold) for i in rows]
    images = some.pixels.numpy()
    return {"images": images, "classes": test.classes, "truth": truth(some), "found": found}


def pairs(found: Queries, targets: ObjectTargets) -> list[dict]:
    """Of each scene the queries of the last decoder layer that answer for an object: their boxes, the object's label, and
    the probability of it as score."""
    parts = (found.logits[-1].sigmoid(), found.boxes[-1], targets.labels[-1], targets.present[-1])
    shown = []
    for scene in zip(*(part.detach().cpu() for part in parts), strict=True):
        scores, boxes, labels = (part[scene[-1]] for part in scene[:-1])
        chance = scores.gather(1, labels[:, None]).flatten()
        shown.append({"boxes": boxes.numpy(), "labels": labels.numpy(), "scores": chance.numpy()})
    return shown


def calibration_table(calibrated: dict[str, Artifact]) -> "pd.DataFrame":
    """Whether scores are probabilities, of `DetectionStudy.calibrated` of each detector: its expected calibration error as
    it is and scaled, and the scaling."""
    columns = {"ECE": "ECE", "ECE_scaled": "ECE, scaled", "temperature": "T", "shift": "shift"}
    return _table(
        [
            {"detector": name, **{text: one.metrics[key] for key, text in columns.items()}}
            for name, one in calibrated.items()
        ]
    )
