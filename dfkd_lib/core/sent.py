"""Code of a notebook's own on its way to another process: pickled by value, with its source, and compared on arrival."""

import base64
import hashlib
import hmac
import json
import linecache
import os
import pickle
from pathlib import Path

from dfkd_lib.core.code import fingerprint, with_functions
from dfkd_lib.core.errors import WorkbenchError
from dfkd_lib.core.files import unusable
from dfkd_lib.core.source import record_of, remember

MOST_BYTES = 10_000_000  # the size from which Dask warns too


class OtherCode(WorkbenchError):
    """A worker would make something else than the process that asked for it."""


def as_sent(thing: object) -> dict:
    """A step, or any other code, as `received` takes it in another process, by Dask or as JSON.

    What it reaches in `__main__` (functions, classes, closures, defaults, globals) goes with it, and the source of that,
    without which the other process would compute another key. Modules, also the user's own, go by their names.

    Returns:
        {"digest": of its fingerprint, "pickled", "sources": {name of a cell or file: text}}, all text.

    Raises:
        WorkbenchError: if it has no fingerprint, holds what cannot be pickled, or is larger than 10 MB.
    """
    import cloudpickle

    found, functions = with_functions(thing)
    # Names in decorators count in a key; Python does not need them any more, and so they are not pickled with a function.
    named = []
    for function in functions:
        names = {name for root, name, *_ in record_of(function).names if not root}
        held = function.__globals__
        named.append((function, {name: held[name] for name in names & held.keys()}))
    here = "train in this process (jobs=1)"
    try:
        pickled = cloudpickle.dumps((thing, named))
    except Exception as error:
        raise WorkbenchError(
            "code of your own cannot be sent to other processes",
            expected="functions, classes, and values that can be pickled",
            got=f"{type(error).__name__}: {error}",
            fix=f"make inside the function what cannot be pickled, or {here}",
        ) from None
    if len(pickled) > MOST_BYTES:
        raise WorkbenchError(
            "code of your own holds too much to be sent to other processes",
            expected=f"at most {MOST_BYTES:,} bytes",
            got=f"{len(pickled):,}",
            fix=f"load tensors and models inside the function, or {here}",
        )
    places = {function.__code__.co_filename for function in functions}
    sources = {place: text for place in places if (text := "".join(linecache.getlines(place)))}
    return {
        "digest": found.digest,
        "pickled": base64.b64encode(pickled).decode(),
        "sources": sources,
    }


def signed(sent: dict) -> dict:
    """What `as_sent` gave, to be kept on a disk: with a signature by the secret with which Jupyter signs a user's notebooks."""
    return {**sent, "signature": _signature(sent)}


def _signature(sent: dict) -> str:
    from jupyter_core.paths import jupyter_data_dir
    from nbformat.sign import MemorySignatureStore, NotebookNotary

    folder = Path(jupyter_data_dir())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        notary = NotebookNotary(data_dir=str(folder), store_factory=MemorySignatureStore)
        secret = notary.secret
    except OSError as error:
        raise unusable("Jupyter's data folder", error, folder, "set JUPYTER_DATA_DIR") from None
    content = json.dumps({name: sent[name] for name in ("digest", "pickled", "sources")})
    return hmac.new(secret, content.encode(), hashlib.sha256).hexdigest()


def received(sent: dict, from_disk: bool = False) -> object:
    """What `as_sent` was given. It is unpickled: only for what this user has sent.

    Args:
        from_disk: whether it was kept on a disk, which may hold anybody's: then it must be `signed` by this user.

    Raises:
        OtherCode: if it cannot be read here, or would get another key than where it was sent from; if it is not signed.
    """
    if from_disk and not hmac.compare_digest(sent.get("signature", ""), _signature(sent)):
        raise OtherCode(
            "code on this disk does not bear your signature, and is not run",
            fix="run it from the notebook that it is of, as the same user",
        )
    for place, text in sent["sources"].items():
        if not os.path.exists(place):
            remember(place, text)
    try:
        thing, named = pickle.loads(base64.b64decode(sent["pickled"]))
        for function, names in named:
            for name, value in names.items():
                function.__globals__.setdefault(name, value)
        found = fingerprint(thing).digest
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    if found != sent["digest"]:
        raise OtherCode(
            "code of your own is not the same in the process that it was sent to",
            expected=sent["digest"],
            got=found,
            fix="have workers of the same Python and libraries that find the same modules of yours (PYTHONPATH), or train "
            "in this process (jobs=1)",
        )
    return thing
