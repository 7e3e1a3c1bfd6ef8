"""Files of a trained network that comes with the workbench: its weights, and the record of how they were made."""

import json
from pathlib import Path

from dfkd_lib.core import Artifact, WorkbenchError, artifacts, provenance

FOLDER = "data/teachers"


def _files(name: str, folder: str | Path) -> tuple[Path, Path]:
    base = artifacts.resolve(folder) / name
    return base.with_name(f"{base.name}.safetensors"), base.with_name(f"{base.name}.json")


def write_shipped(
    artifact: Artifact, name: str, command: str, folder: str | Path = FOLDER, **known: object
) -> Path:
    """Write an artifact's weights (kernels as float16) and, with what is `known` beside, its record; returns the weights'
    path."""
    file, about = _files(name, folder)
    file.parent.mkdir(parents=True, exist_ok=True)
    # Vectors stay float32: running variances can be smaller than float16 resolves.
    weights = {
        key: value.half() if value.is_floating_point() and value.ndim > 1 else value
        for key, value in artifact.tensors().items()
    }
    artifacts.save_tensors(file, weights)
    record = {
        "command": command,
        "model": artifact.settings["model"],
        "seed": artifact.settings["config"]["seed"],
        **known,
        "seconds": artifact.seconds,
        "made": artifact.manifest["made"],
        "ledger": artifact.ledger,
        "provenance": provenance.describe(),
        "history": artifact.json("history.json"),
    }
    artifacts.save_json(about, record)
    return file


def read_shipped(name: str, folder: str | Path = FOLDER) -> tuple[Path, dict]:
    """The weights' path and the record, which names at least a "model".

    Raises:
        WorkbenchError: if a file is missing, or the record cannot be used.
    """
    weights, about = _files(name, folder)
    for path in (weights, about):
        if not path.is_file():
            raise WorkbenchError(
                "a shipped teacher is missing",
                expected=path.name,
                where=path.parent,
                fix="choose teacher=train, or restore the file from the repository",
            )
    try:
        record = json.loads(about.read_bytes())
        record["model"]
    except (ValueError, TypeError, KeyError) as error:
        raise WorkbenchError(
            "the record beside a checkpoint cannot be used",
            where=about,
            got=repr(error)[:200],
            expected='JSON with at least {"model": "name for create_model", "overrides": {}}',
            fix="write that file",
        ) from None
    return weights, record
