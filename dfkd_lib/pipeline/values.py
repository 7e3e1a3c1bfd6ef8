"""Values that name something (a model, a data set, a file, a row of a grid), checked before a kernel starts."""

import json
import os
import re
from collections.abc import Callable, Iterable

from dfkd_lib.core import Config, WorkbenchError, nearest, resolve

TABLES = re.compile(r"\b(?:MODELS|SPECS)\b")
ENTRY = re.compile(r"\b(?:MODELS|SPECS)\[\s*(['\"])([^'\"{}]+)\1\s*\](\s*=(?!=))?")
IMAGES = {"data.name", "name"}
OWN_NAMES = {
    "model": ("", "student", "untrained"),
    "second": ("", "auto", "none", "student", "untrained"),
    "feature.space": ("classifier", "teacher", "inception"),
}  # of notebooks 10 and 20, beside names of pretrained models


def added_models(sources: Iterable[str]) -> set[str] | None:
    """The models that code adds to the library's tables; None if reading does not tell which.

    Args:
        sources: of a notebook's code cells and of the modules of one's own that it imports.
    """
    found: set[str] = set()
    for source in sources:
        entries = list(ENTRY.finditer(source))
        imports = re.findall(r"^\s*(?:from|import) .*$", source, re.MULTILINE)
        named = sum(len(TABLES.findall(line)) for line in imports)
        if len(TABLES.findall(source)) > len(entries) + named:
            return None
        found |= {entry[2] for entry in entries if entry[3]}
    return found


def check_values(method: str, config: Config, added: set[str] | None) -> None:
    """Raise WorkbenchError, with the nearest right name, on a value that names what is not there.

    Args:
        added: models that the notebook adds, see `added_models`.
    """
    values = config.flat()
    default = type(config)().flat()
    for name, value in values.items():
        if not isinstance(value, str):
            continue
        if name in IMAGES and _is_data(name, values):
            _check_data(name, value, generated=method == "detection")
        elif name in OWN_NAMES and method in ("attention", "synthesis", "classification"):
            _check_loadable(name, value, OWN_NAMES[name], added)
        elif names := _models(method, name):
            _check(name, value, {*names(), *(added or ())}, "model", added is None or not value)
        elif name in ("teacher.shipped", "teacher.guide", "detector"):
            used = name != "teacher.shipped" or values["teacher.source"] == "shipped"
            detector = name == "detector" or method == "detection"
            same = value == default[name] and not used
            _check(name, value, shipped(detector), "shipped model", not value or same)
    if method == "ablation":
        _check_grid(config, added)


def shipped(detectors: bool) -> list[str]:
    """The names of the models in data/teachers, detectors or classifiers."""
    from dfkd_lib.models import detector_names

    known, found = detector_names(), []
    for record in sorted(resolve("data/teachers").glob("*.json")):
        try:
            model = json.loads(record.read_bytes())["model"]
        except (OSError, ValueError, TypeError, KeyError):
            continue
        if (model in known) == detectors:
            found.append(record.stem)
    return found


def _models(method: str, name: str) -> Callable[[], Iterable[str]] | None:
    """What gives the right names of a setting that is a model's; None of any other."""
    from dfkd_lib.models import detector_names, model_names

    if method == "detection":
        return detector_names if name in ("student.model", "teacher.model") else None
    of_early = method == "early" and name in ("student", "baseline")
    ours = name in ("student.model", "teacher.model", "rival_model", "feature.model")
    return model_names if ours or of_early else None


def _is_data(name: str, values: dict) -> bool:
    return name == "data.name" or "background" in values  # notebook 00's settings are its data's


def _check_data(name: str, value: str, generated: bool) -> None:
    from dfkd_lib.datasets import GENERATED, NAMED

    names = [GENERATED] if generated else list(NAMED)
    if value in names or os.path.isdir(resolve(value)):
        return
    near = nearest(value, names)
    raise WorkbenchError(
        f"the setting '{name}' names no data set",
        expected=f"{', '.join(names)}, or a folder",
        got=value,
        where=resolve(value),
        fix=f"did you mean '{near}'?" if near else "check the path",
    )


def _check_loadable(name: str, value: str, own: Iterable[str], added: set[str] | None) -> None:
    """A word of the notebook's own, a pretrained model's name, one of the hub's, a file or a folder."""
    import timm

    from dfkd_lib.models import model_names

    path, hub = resolve(value), value.removeprefix("hf-hub:")
    if value in own or os.path.exists(path) or added is None or timm.is_model(hub):
        return
    file = value.endswith(".safetensors") or value.startswith((".", "/", "~"))
    if not file and hub.count("/") == 1:
        return
    names = [*filter(None, own), *model_names(), *added]
    _check(
        name, value, [value] if value in names else [*names, *timm.list_models()], "model", False
    )


def _check(name: str, value: str, names: Iterable[str], what: str, skip: bool) -> None:
    names = sorted(names)
    if skip or value in names:
        return
    near = nearest(value, names)
    shown = ", ".join(names[:40]) + (", …" if len(names) > 40 else "")
    raise WorkbenchError(
        f"the setting '{name}' names no {what}",
        expected=f"one of {shown}",
        got=value,
        fix=f"did you mean '{near}'?" if near else "choose one of them",
    )


def _check_grid(config, added: set[str] | None) -> None:
    """The grid's file, its cells unless the notebook adds models to choose from, and the baseline among its rows.

    Where neither is set, the rows are the library's own.
    """
    from dfkd_lib import ablation

    if config.grid and not os.path.isfile(resolve(config.grid)):
        raise WorkbenchError(
            "a grid cannot be read",
            expected="a YAML file of settings and seeds",
            got=config.grid,
            where=resolve(config.grid),
            fix="there is no such file: check the path",
        )
    if added != set() or not (config.grid or config.baseline):
        return
    rows = list(dict.fromkeys(cell.name for cell in ablation.cells_of(config)))
    _check("baseline", config.baseline, rows, "row of the grid", not config.baseline)
