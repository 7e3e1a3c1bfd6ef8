"""Detectors and drawn scenes as tables: COCO's measures, what each has read, and how good its scenes are."""

from collections.abc import Sequence

import numpy as np

from dfkd_lib.core.artifacts import Artifact
from dfkd_lib.metrics.intervals import interval_text, paired_difference

MEASURES = {
    "frechet": "distance of scenes",
    "frechet_objects": "distance of objects",
    "found": "objects found (%)",
    "AP50": "AP50 of what was asked",
    "attention": "attention loss",
}


def ap_table(detectors: dict[str, Artifact]):
    """COCO measures of each detector as a pandas table: parameters, AP, AP50, AP75, AP by size, precision, recall."""
    import pandas as pd

    rows = []
    for name, artifact in detectors.items():
        m = artifact.metrics
        rows.append(
            {
                "detector": f"{name} ({artifact.settings['model']})",
                "parameters": m["parameters"],
                "AP": m["AP"],
                "AP50": m["AP50"],
                "AP75": m["AP75"],
                **{f"AP {size}": m.get(f"AP_{size}") for size in ("small", "medium", "large")},
                "precision": m["precision"],
                "recall": m["recall"],
            }
        )
    return pd.DataFrame(rows).replace({None: np.nan})


def class_table(detectors: dict[str, Artifact]):
    """AP and AP50 of each detector by class as a pandas table."""
    import pandas as pd

    rows = [
        {
            "detector": name,
            **{
                f"{c} {measure}": v[measure]
                for measure in ("AP", "AP50")
                for c, v in artifact.metrics["per_class"].items()
            },
        }
        for name, artifact in detectors.items()
    ]
    return pd.DataFrame(rows).replace({None: np.nan})


def seen_table(detectors: dict[str, Artifact]):
    """What each detector was made from: where it started, and scenes of data sets that its own training read, by the
    ledger; what stands behind the detector that it started from is not among them."""
    import pandas as pd

    rows = []
    for name, artifact in detectors.items():
        read = {
            row["split"]: row["images"] for row in artifact.ledger if row["purpose"] != "evaluation"
        }
        rows.append(
            {
                "detector": name,
                "started from": _start(artifact.settings),
                "scenes it trained on": artifact.metrics["train_scenes"],
                "of them from a data set": sum(read.values()),
                "splits": ", ".join(read) or "none",
                "labels": "the teacher's detections"
                if artifact.settings.get("scenes") == "synthetic"
                else "the data set's",
            }
        )
    return pd.DataFrame(rows)


def _start(settings: dict) -> str:
    weights = settings.get("weights")
    if isinstance(weights, dict):
        return "a detector of the generated scenes"
    return (
        "weights given"
        if weights or settings.get("backbone_weights")
        else "published weights"
        if settings.get("pretrained")
        else "nothing"
    )


def measures_table(measured: dict[str, Sequence[Artifact]]):
    """What was measured of drawn scenes, one row a maker: mean and 95 % interval over its seeds.

    Args:
        measured: {maker: `measure.measure_scenes` of each seed}.
    """
    import pandas as pd

    rows = []
    for name, found in measured.items():
        row = {"scenes": name, "seeds": len(found)}
        for key, words in MEASURES.items():
            row[words] = interval_text(
                [(100 if key == "found" else 1) * one.metrics[key] for one in found]
            )
        rows.append(row)
    return pd.DataFrame(rows)


def arms_difference(measured: dict[str, Sequence[Artifact]], key: str = "frechet") -> dict:
    """`intervals.paired_difference` of a measure, augmented minus vanilla, over pairs of one seed."""
    return paired_difference(
        *([one.metrics[key] for one in measured[arm]] for arm in ("vanilla", "synthetic"))
    )
