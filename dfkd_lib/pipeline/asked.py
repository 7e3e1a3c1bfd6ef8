"""Which tables `dfkd tables` is asked for: checked before anything that takes seconds to import."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dfkd_lib import presets
from dfkd_lib.core import WorkbenchError, nearest, one_of, resolve
from dfkd_lib.pipeline.known import known
from dfkd_lib.pipeline.plan import check_options
from dfkd_lib.reporting.papers import FIGURES, TABLES


@dataclass(frozen=True)
class Request:
    """A table that was asked for: all that another process needs to open it."""

    table: str
    preset: str
    data: str
    overrides: str
    artifacts: str
    name: str  # on the page and of its files: the table's, and its images' where it is asked for of several

    @property
    def title(self) -> str:
        return f"{TABLES[self.table].title}, {self.data}, {self.preset}"


def list_tables() -> str:
    """The papers' tables and figures by name."""
    lines = ["tables, for dfkd tables NAME … --preset smoke|quick|night|paper [--data …]"]
    lines += [f"  {k:4} {t.title} ({', '.join(t.data)})" for k, t in TABLES.items()]
    lines += ["figures, for dfkd run --profile … --only NN [--set NN.data=cifar10]"]
    return "\n".join(
        [*lines, *(f"  {nn}   {name}: {what}" for name, (nn, what) in FIGURES.items())]
    )


def chosen(
    names: Sequence[str],
    preset: str,
    data: str,
    settings: Sequence[str],
    artifacts: str,
    processes: int = 1,
    threads: int | None = None,
) -> list[Request]:
    """The tables asked for; WorkbenchError on a name, data set or setting that is none of theirs, and on options out of range."""
    check_options(preset, processes, 0, threads, None)
    names = [name.upper() for name in names]
    for name in names:
        one_of("table", name, TABLES)
    sets = [data] if os.path.isdir(resolve(data)) else data.split(",")
    sets = [one.strip() for one in sets if one.strip()]
    for one in sets:
        _check_data(one, names)
    changes: dict[str, list[str]] = {name: [] for name in names}
    for setting in settings:
        table, _, rest = setting.partition(".")
        if table.upper() not in changes or "=" not in rest:
            raise WorkbenchError(
                "a setting of no table that is asked for",
                expected="TABLE.setting=value, of " + ", ".join(names),
                got=setting,
                where="--set",
                fix=f"--set {names[0]}.seeds=0",
            )
        known(TABLES[table.upper()].method).names.resolve(rest.partition("=")[0])
        changes[table.upper()].append(rest)
    return _requests(names, preset, sets, artifacts, changes)


def _check_data(data: str, names: Sequence[str]) -> None:
    """Refuse images that none of these tables is of."""
    kind = presets.data_set(data)
    if any(kind in TABLES[name].data for name in names):
        return
    right = sorted({one for name in names for one in TABLES[name].data})
    near = nearest(data, {one for table in TABLES.values() for one in table.data})
    others = ", ".join(name for name, table in TABLES.items() if kind in table.data)
    likely = f"did you mean '{near}'?" if near else "leave --data out"
    raise WorkbenchError(
        "none of these tables is of such images",
        expected=f"{', '.join(right)}, or a folder of their classes",
        got=data,
        where="--data",
        fix=f"name another table: {others}" if others else likely,
    )


def _requests(
    names: Sequence[str], preset: str, sets: Sequence[str], artifacts: str, changes: dict
) -> list[Request]:
    """Each table of each of these sets that it has, or of its own first."""
    found = []
    for table in dict.fromkeys(names):
        fits = [data for data in sets if presets.data_set(data) in TABLES[table].data]
        fits = fits or [TABLES[table].data[0]]
        overrides = presets.overrides_text(dict(c.split("=", 1) for c in changes[table]))
        for data in fits:
            name = f"{table}_{Path(data).name}" if len(fits) > 1 else table
            found.append(Request(table, preset, data, overrides, artifacts, name))
    return found
