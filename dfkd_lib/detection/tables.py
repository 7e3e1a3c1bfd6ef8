"""Detectors and drawn scenes as tables: COCO's measures, what each has read, and how good its scenes are."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dfkd_lib.core import Artifact
from dfkd_lib.metrics import intervals

if TYPE_CHECKING:
    import pandas as pd

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
    columns = {name: name for name in ("parameters", "AP", "AP50", "AP75")}
    columns |= {f"AP {size}": f"AP_{size}" for size in ("small", "medium", "large")}
    columns |= {name: name for name in ("precision", "recall")}
    return _table(
        [
            {"detector": f"{name} ({artifact.settings['model']})"}
            | {column: artifact.metrics.get(measure) for column, measure in columns.items()}
            for name, artifact in detectors.items()
        ]
    )


def class_table(detectors: dict[str, Artifact]) -> "pd.DataFrame":
    """AP and AP50 of each detector by class."""
    return _table(
        [
            {"detector": name}
            | {
                f"{label} {measure}": values[measure]
                for measure in ("AP", "AP50")
                for label, values in artifact.metrics["per_class"].items()
            }
            for name, artifact in detectors.items()
        ]
    )


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
                "started from": _start(artifact.settings),
                "scenes it trained on": artifact.metrics["train_scenes"],
                "of them from a data set": sum(read.values()),
                "splits": ", ".join(read) or "none",
                "labels": "the data set's"
                if artifact.settings.get("labelled", True)
                else "the teacher's detections",
            }
        )
    return _table(rows)


def _start(settings: dict) -> str:
    if isinstance(settings.get("weights"), dict):
        return "a detector of the generated scenes"
    if settings.get("weights") or settings.get("backbone_weights"):
        return "a file of weights"
    return "published weights" if settings.get("pretrained") else "nothing"


def measures_table(measured: dict[str, Sequence[Artifact]]) -> "pd.DataFrame":
    """What was measured of drawn scenes, one row a maker: mean and 95 % interval over its seeds.

    Args:
        measured: {maker: `measure_scenes` of each seed}.
    """
    return _table(
        [
            {"scenes": name, "seeds": len(found)}
            | {
                words: intervals.interval_text(
                    [(100 if key == "found" else 1) * one.metrics[key] for one in found]
                )
                for key, words in MEASURES.items()
            }
            for name, found in measured.items()
        ]
    )
