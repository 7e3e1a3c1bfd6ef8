"""Teachers that come with the workbench: a trained detector and its record, taken into the store like any other."""

import json
from pathlib import Path

from dfkd_lib import training
from dfkd_lib.core import Artifact, Store, WorkbenchError, artifacts, ledger, provenance
from dfkd_lib.datasets import Scenes
from dfkd_lib.detection.detector import save_detector
from dfkd_lib.models import create_detector
from dfkd_lib.models.detectors import SPECS, Detector

FOLDER = "data/teachers"
RECORDED = ("settings", "metrics", "seconds", "made", "ledger")


def ship_detector(artifact: Artifact, name: str, command: str, folder: str | Path = FOLDER) -> Path:
    """Write a detector's weights (kernels as float16) and its record to `folder`; returns the weights' path."""
    base = artifacts.resolve(folder) / name
    base.parent.mkdir(parents=True, exist_ok=True)
    # Vectors stay float32: running variances can be smaller than float16 resolves.
    weights = {
        key: t.half() if t.is_floating_point() and t.ndim > 1 else t
        for key, t in artifact.tensors().items()
    }
    artifacts.save_tensors(base.with_suffix(".safetensors"), weights)
    record = {
        "command": command,
        "model": artifact.settings["model"],
        "seed": artifact.settings["config"]["seed"],
        **{name: artifact.manifest[name] for name in RECORDED},
        "provenance": provenance.describe(),
        "history": artifact.json("history.json"),
    }
    artifacts.save_json(base.with_suffix(".json"), record)
    return base.with_suffix(".safetensors")


def _found(name: str, folder: str | Path) -> tuple[Path, dict]:
    """The weights' path and the record of a shipped detector; WorkbenchError if a file is missing or damaged."""
    weights = (artifacts.resolve(folder) / name).with_suffix(".safetensors")
    about = weights.with_suffix(".json")
    try:
        if weights.is_file():
            return weights, json.loads(about.read_text())
        missing = weights.name
    except (OSError, ValueError) as error:
        missing = f"{about.name}: {error}"
    raise WorkbenchError(
        "a shipped teacher is missing",
        expected=f"{weights.name} and {about.name}",
        got=missing,
        where=weights.parent,
        fix="choose teacher=train, or restore the files from the repository",
    )


def shipped_detector(
    store: Store, name: str, test: Scenes, folder: str | Path = FOLDER
) -> Artifact:
    """A shipped detector, measured on test scenes and put in the store.

    Args:
        name: `<folder>/<name>.safetensors` beside `<name>.json`, as `ship_detector` writes them.

    Raises:
        WorkbenchError: if a file is missing or damaged, or the detector knows other classes than the scenes have.
    """
    weights, record = _found(name, folder)
    known = record["metrics"]["classes"]
    if list(test.classes) != known:
        raise WorkbenchError(
            "the shipped teacher knows other classes than these scenes have",
            where=weights,
            expected=", ".join(known),
            got=", ".join(test.classes),
            fix="train a teacher on these scenes: teacher=train",
        )
    settings = {
        "model": record["model"],
        "shipped": artifacts.file_hash(weights),
        "record": record["settings"],
        "test": test.identity,
    }

    def make(work: Path) -> dict:
        detector = create_detector(record["model"], len(known), weights=weights)
        metrics = save_detector(work, detector, test.load(), record["history"])
        return {**metrics, "train_scenes": record["metrics"]["train_scenes"], "shipped": name}

    reads = {test.split: ledger.EVALUATION}
    more = {"inherited": record["ledger"], "code": [SPECS.get(record["model"])]}
    return store.get_or_make("detection-teacher", settings, make, reads=reads, **more)


def open_shipped(name: str, folder: str | Path = FOLDER) -> Detector:
    """A shipped detector by itself, frozen, on the training device; it is neither measured nor put in a store."""
    weights, record = _found(name, folder)
    classes = len(record["metrics"]["classes"])
    return training.frozen(create_detector(record["model"], classes, weights=weights))
