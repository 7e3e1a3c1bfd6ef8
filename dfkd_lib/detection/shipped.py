"""Teachers that come with the workbench: a trained detector and its record, taken into the store like any other."""

import json
from pathlib import Path

from dfkd_lib import training
from dfkd_lib.core import WorkbenchError, artifacts, ledger
from dfkd_lib.core.artifacts import Artifact, Store
from dfkd_lib.detection.distill import keep_detector
from dfkd_lib.detection.source import SceneSource
from dfkd_lib.models.detectors import SPECS, Detector, create_detector

FOLDER = "data/teachers"


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
    settings, metrics = artifact.settings, artifact.metrics
    artifacts.save_json(
        base.with_suffix(".json"),
        {
            "command": command,
            "model": settings["model"],
            "seed": settings["config"]["seed"],
            "settings": settings,
            "metrics": metrics,
            "seconds": artifact.seconds,
            "made": artifact.manifest["made"],
            "ledger": artifact.ledger,
            "provenance": artifacts.provenance(),
            "history": artifact.json("history.json"),
        },
    )
    return base.with_suffix(".safetensors")


def shipped_detector(
    store: Store, name: str, source: SceneSource, folder: str | Path = FOLDER
) -> Artifact:
    """A shipped detector, measured on the test scenes of `source` and put in the store.

    Args:
        name: `<folder>/<name>.safetensors` beside `<name>.json`, as `ship_detector` writes them.

    Raises:
        WorkbenchError: if a file is missing or damaged, or the detector knows other classes than the scenes have.
    """
    base = artifacts.resolve(folder) / name
    weights, about = base.with_suffix(".safetensors"), base.with_suffix(".json")
    for path in (weights, about):
        if not path.is_file():
            raise WorkbenchError(
                "a shipped teacher is missing",
                expected=path.name,
                where=path.parent,
                fix="choose teacher='train', or restore the file from the repository",
            )
    record = json.loads(about.read_text())
    test = source.load("test")
    if list(test.classes) != record["metrics"]["classes"]:
        raise WorkbenchError(
            "the shipped teacher knows other classes than these scenes have",
            where=weights,
            expected=", ".join(record["metrics"]["classes"]),
            got=", ".join(test.classes),
            fix="train a teacher on these scenes: teacher='train'",
        )
    settings = {
        "model": record["model"],
        "shipped": artifacts.file_hash(weights),
        "record": record["settings"],
        "test": source.identity("test"),
    }

    def make(work: Path) -> dict:
        detector = create_detector(record["model"], len(test.classes), weights=weights)
        metrics = keep_detector(work, detector, test, record["history"])
        return {**metrics, "train_scenes": record["metrics"]["train_scenes"], "shipped": name}

    return store.get_or_make(
        "detection-teacher",
        settings,
        make,
        reads={test.split: ledger.EVALUATION},
        inherited=record["ledger"],
        code=[SPECS.get(record["model"])],
    )


def open_shipped(name: str, folder: str | Path = FOLDER) -> Detector:
    """A shipped detector to look into, frozen, on the training device; it is neither measured nor put in a store."""
    base = artifacts.resolve(folder) / name
    try:
        record = json.loads(base.with_suffix(".json").read_text())
    except (OSError, ValueError) as error:
        raise WorkbenchError(
            "a shipped teacher is missing",
            expected=base.with_suffix(".json").name,
            got=error,
            where=base.parent,
            fix="restore the file from the repository",
        ) from None
    detector = create_detector(
        record["model"], len(record["metrics"]["classes"]), weights=base.with_suffix(".safetensors")
    )
    return detector.eval().requires_grad_(False).to(training.device())
