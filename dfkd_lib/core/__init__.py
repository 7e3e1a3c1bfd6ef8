"""The ground floor: errors, the artifact store, the ledger of real images, atomic files, processes, provenance."""

from dfkd_lib.core import (
    artifacts,
    explain,
    files,
    ledger,
    memory,
    origin,
    processes,
    provenance,
)
from dfkd_lib.core.artifacts import (
    REPOSITORY,
    Artifact,
    ArtifactError,
    BeingMade,
    NotMade,
    Store,
    content_key,
    file_hash,
    home,
    load_tensors,
    note_whole,
    only_finding,
    resolve,
    save_json,
    save_tensors,
    without_waiting,
)
from dfkd_lib.core.code import Fingerprint, Registry, fingerprint
from dfkd_lib.core.config import (
    Config,
    Names,
    NoSuchNames,
    Seed,
    Seeds,
    Setting,
    Sides,
    nearest,
    one_of,
)
from dfkd_lib.core.counts import images_behind, learned_from, most_images, purposes_text, total_text
from dfkd_lib.core.errors import WorkbenchError, is_number, plain, printable
from dfkd_lib.core.explain import flat
from dfkd_lib.core.injected import injected
from dfkd_lib.core.origin import Pixels
from dfkd_lib.core.reach import INSTALLED
from dfkd_lib.core.sent import OtherCode, as_sent, received, signed
from dfkd_lib.core.source import remember
