"""The ground floor: errors, the artifact store, the ledger of real images, atomic files, processes, provenance."""

from dfkd_lib.core import explain, ledger, memory, processes, provenance
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
    resolve,
    save_json,
    save_tensors,
)
from dfkd_lib.core.code import Fingerprint, Registry, fingerprint
from dfkd_lib.core.config import Config, Seed, Seeds, Setting
from dfkd_lib.core.errors import WorkbenchError, is_number, plain, printable
from dfkd_lib.core.source import remember

__all__ = [
    "REPOSITORY",
    "Artifact",
    "ArtifactError",
    "Config",
    "Fingerprint",
    "NotMade",
    "Registry",
    "Seed",
    "Seeds",
    "Setting",
    "Store",
    "WorkbenchError",
    "content_key",
    "explain",
    "file_hash",
    "fingerprint",
    "home",
    "is_number",
    "ledger",
    "load_tensors",
    "memory",
    "note_whole",
    "plain",
    "printable",
    "processes",
    "provenance",
    "remember",
    "resolve",
    "save_json",
    "save_tensors",
]
