"""Named sets of settings: what `smoke`, `quick`, `night` and `paper` change of each method's defaults.

A method's defaults are its paper's settings wherever the paper gives one, so `paper` changes next to nothing. `quick` is a
laptop's, `smoke` the tests', `night` the papers' sizes as far as two cores get in one night. Their settings stand in
`presets.toml`.
"""

import importlib
import os
import shlex
import tomllib
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import reduce
from pathlib import Path
from typing import cast

from dfkd_lib.core import Config, flat, injected, one_of, resolve

# Method -> its configuration, "module:class"; imported when it is asked for, so that a typo is refused at once.
METHODS = {
    "start": "dfkd_lib.datasets:DataConfig",
    "attention": "dfkd_lib.distill:AttentionConfig",
    "synthesis": "dfkd_lib.distill:ClassificationConfig",
    "classification": "dfkd_lib.distill:ClassificationConfig",
    "ablation": "dfkd_lib.distill:AblationConfig",
    "detection": "dfkd_lib.detection:DetectionConfig",
    "early": "dfkd_lib.distill:EarlyConfig",
    "titn": "dfkd_lib.distill:TitnConfig",
    "deploy": "dfkd_lib.deploy:DeployConfig",
    "summary": "dfkd_lib.core:Config",
}
# Method -> what its notebook trains, task by task, "module:function"; see `distill.tasks`.
TASKS = {
    "attention": "dfkd_lib.distill.tasks:attention",
    "synthesis": "dfkd_lib.distill.tasks:synthesis",
    "classification": "dfkd_lib.distill.tasks:classification",
    "ablation": "dfkd_lib.ablation.cells:tasks",
    "detection": "dfkd_lib.detection.study:tasks",
    "early": "dfkd_lib.distill.tasks:early",
    "titn": "dfkd_lib.distill.tasks:titn",
}
PRESETS = ("smoke", "quick", "night", "paper")
# Parameters of notebooks that are no settings of their method.
NOT_SETTINGS = ("preset", "overrides", "out_dir", "artifacts_dir", "interactive")

# Named set of images -> the table of `presets.toml` that holds what presets change besides for all of its kind; a table of
# its own name follows.
PROFILES = {"cifar10": "cifar", "cifar100": "cifar", "mnist": "mnist"}
TABLES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
CIFAR_CLASSES = {
    "cifar10": set("airplane automobile bird cat deer dog frog horse ship truck".split()),
    "cifar100": {"aquarium_fish", "maple_tree", "sweet_pepper", "willow_tree"},  # and 96 others
}


def data_set(name: str) -> str:
    """The named set that images are of: a name's own, and that of a folder with the classes of CIFAR; else the name."""
    if name in PROFILES or not name:
        return name
    found: set[str] = set()
    with suppress(OSError, ValueError):  # words that cannot be a path name no folder
        with os.scandir(resolve(name) / "train") as entries:
            found = {entry.name for entry in entries if entry.is_dir()}
    if found == CIFAR_CLASSES["cifar10"]:
        return "cifar10"
    return "cifar100" if len(found) == 100 and CIFAR_CLASSES["cifar100"] <= found else name


def config_name(method: str) -> str:
    """Where the configuration class of a method is, "module:class"; WorkbenchError on a name that is none."""
    return METHODS[one_of("method", method, METHODS)]


def config_class(method: str) -> type[Config]:
    """The configuration class of a method; WorkbenchError on a name that is none."""
    return cast(type[Config], _named(config_name(method)))


def tasks(method: str) -> Callable[[Mapping[str, object]], dict[str, Callable[[], object]]] | None:
    """What a method's notebook trains, as a function of the names it defines, see `distill.tasks`; None: nothing."""
    return _named(TASKS[method]) if method in TASKS else None


def _named(name: str):
    """What "module:name" stands for."""
    module, _, name = name.partition(":")
    return getattr(importlib.import_module(module), name)


def load(method: str, preset: str = "quick", overrides: str = "", **given: object) -> Config:
    """The configuration of a method: its defaults, changed by the preset, by what is given, and by overrides.

    In a notebook that papermill runs, parameters that it was given and that the notebook does not declare count as overrides.

    Args:
        preset: smoke, quick, night or paper. overrides: "student.epochs=10 gan.lam=0", as for `Config.override`.
        given: settings by name; "" means what the preset says, and so does None of a setting that cannot be None.

    Raises:
        WorkbenchError: on unknown names, with the nearest right one, and on impossible values.
    """
    config = of_preset(method, preset, str(given.get("data") or given.get("data.name") or ""))
    settings = config.settings() if None in given.values() else {}
    given = {
        name: value
        for name, value in given.items()
        if (value is None and settings[config.resolve(name)].optional)
        or not (value is None or value == "")
    }
    config = config.override(given)
    return config.override(overrides).override(injected(NOT_SETTINGS))


def of_preset(method: str, preset: str, data: str = "") -> Config:
    """The configuration of a method as a preset has it, for these images; WorkbenchError if there is no such method or preset.

    Args:
        data: a named set or a folder, see `PROFILES`; "": the method's own.
    """
    place = f"{one_of('preset', preset, PRESETS)}.{method}"
    changes, name = differences(place), data_set(data)
    for table in dict.fromkeys((PROFILES[name], name)) if name in PROFILES else ():
        changes |= differences(f"{table}.{place}")
    return config_class(method)().override(changes)


def differences(place: str) -> dict[str, object]:
    """{dotted name: value} of a table of `presets.toml`, "preset.method", with those that it is like; {} if there is none."""
    table = reduce(lambda tables, name: tables.get(name, {}), place.split("."), TABLES)
    found: dict[str, object] = {}
    for other in table.get("like", ()):
        found |= differences(other)
    return found | {name: value for name, value in flat(table).items() if name != "like"}


def of_parameters(method: str, parameters: Mapping[str, object]) -> Config:
    """The configuration that a notebook with these parameters loads: those that are settings of its method are given."""
    preset = str(parameters.get("preset", "quick"))
    known = config_class(method)()
    own = {k: v for k, v in parameters.items() if k not in NOT_SETTINGS and known.has(k)}
    return load(method, preset, str(parameters.get("overrides", "")), **own)


def overrides_text(values: Mapping[str, object]) -> str:
    """Settings by name as the text that `overrides` takes: "student.epochs=10 seeds=0,1"."""

    def word(name: str, value: object) -> str:
        text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        return shlex.quote(f"{name}={text}")

    return " ".join(word(name, value) for name, value in values.items())
