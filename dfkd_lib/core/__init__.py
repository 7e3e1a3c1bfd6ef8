"""The ground floor: errors, the artifact store, the ledger of real images, atomic files, processes, provenance."""

from dfkd_lib.core import ledger, processes
from dfkd_lib.core.artifacts import (
    REPOSITORY,
    Artifact,
    ArtifactError,
    NotMade,
    Store,
    content_key,
    file_hash,
    home,
    load_tensors,
    note_whole,
    provenance,
    resolve,
    save_json,
    save_tensors,
)
from dfkd_lib.core.config import Config, Seed, Seeds, Setting
from dfkd_lib.core.errors import WorkbenchError, is_number, plain, printable

__all__ = [
    "REPOSITORY",
    "Artifact",
    "ArtifactError",
    "Config",
    "NotMade",
    "Seed",
    "Seeds",
    "Setting",
    "Store",
    "WorkbenchError",
    "content_key",
    "file_hash",
    "home",
    "is_number",
    "ledger",
    "load_tensors",
    "note_whole",
    "plain",
    "printable",
    "processes",
    "provenance",
    "resolve",
    "save_json",
    "save_tensors",
]
