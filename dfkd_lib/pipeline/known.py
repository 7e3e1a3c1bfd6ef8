"""The settings of every method, kept on disk: their classes import torch, and a typo is to be refused within a second."""

import importlib.util
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from dfkd_lib import presets
from dfkd_lib.core import REPOSITORY, Names, file_hash
from dfkd_lib.core.files import replacing

TIMES = "took.json"  # what earlier runs took is no part of any page
KEPT = Path(importlib.util.cache_from_source(__file__)).with_suffix(".settings.json")


@dataclass(frozen=True)
class Known:
    """The settings of one method.

    Args:
        names: what a word may stand for.
        settings: {dotted name: {"help": phrase, "rule": values allowed, "values": {preset: its value, as Python has it}}}.
    """

    names: Names
    settings: dict[str, dict]


def known(method: str) -> Known:
    """The settings of a method, or of none (""), as they are in the library's files now."""
    if not method:
        return Known(Names([], {}, {}, "Config"), {})
    presets.config_name(method)
    # A method that another program adds to the table is not kept.
    found = _every(library_state()).get(method) or _described(method)
    return Known(Names(**found["names"]), found["settings"])


@cache
def library_state() -> str:
    """The hashes of the library's files that decide what it does, and of the models that come with it."""
    files = [*(REPOSITORY / "dfkd_lib").rglob("*"), *(REPOSITORY / "data").glob("teachers/*")]
    own = sorted(
        path
        for path in files
        if path.is_file() and path.parent.name != "__pycache__" and path.name != TIMES
    )
    return repr([(str(path), file_hash(path)) for path in own])


@cache
def _every(state: str) -> dict:
    with suppress(OSError, ValueError, KeyError, TypeError):
        saved = json.loads(KEPT.read_text())
        if saved["state"] == state:
            return saved["methods"]
    methods = {method: _described(method) for method in presets.METHODS}
    with suppress(OSError):  # whoever cannot write it does without
        KEPT.parent.mkdir(exist_ok=True)
        with replacing(KEPT) as temporary:
            temporary.write_text(json.dumps({"state": state, "methods": methods}))
    return methods


def _described(method: str) -> dict:
    trees = {preset: presets.of_preset(method, preset).settings() for preset in presets.PRESETS}
    settings = {
        name: {
            "help": setting.help,
            "rule": setting.rule,
            "values": {preset: repr(tree[name].default) for preset, tree in trees.items()},
        }
        for name, setting in trees["paper"].items()
    }
    return {"names": asdict(presets.config_class(method)().names()), "settings": settings}
