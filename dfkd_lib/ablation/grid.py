"""A grid of students: settings times seeds, from a YAML file or a list, checked before anything is trained."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from dfkd_lib.core import Config, Seeds, WorkbenchError, one_of, plain, resolve
from dfkd_lib.distill import AblationConfig, ClassificationConfig, Study, drop_one
from dfkd_lib.models import model_names

BASE = AblationConfig()
# A cell has one seed of its own, and neither a grid nor processes.
DEFAULTS = {
    name: value
    for name, value in BASE.flat().items()
    if name not in ("seeds", "grid", "baseline", "jobs")
}
SETTINGS = BASE.settings()
# Beginnings of the makers that may work against a student.
RIVALS = ("adversarial", "contrastive", "fast")
EXAMPLE = "see notebooks/README.md for an example"
MOST_ROWS = 10_000  # the product of a few long lists would fill the memory


class Grid(Config):
    """What a grid file holds; every part is optional."""

    base: dict[str, Any] = Field({}, description="settings of every cell")
    rows: dict[str, dict[str, Any]] = Field({}, description="settings by name")
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(
        {}, description="lists of values, crossed with one another and with the rows"
    )
    drop_one: bool = Field(False, description="whether to add a row without each loss in use")
    seeds: Seeds = Field((0,), description="of every row, as in [0, 1, 2]")


@dataclass(frozen=True)
class Cell:
    """One student of an ablation.

    Args:
        name: the setting it belongs to; cells of one name differ in the seed alone.
        settings: {dotted name in `AblationConfig`: value} that differ from its defaults; "source" is what it is trained on.
        seed: of the student's weights, order and dropout; the images are the same for every seed.
    """

    name: str
    settings: dict
    seed: int

    @property
    def source(self) -> str:
        return self.settings.get("source", DEFAULTS["source"])

    def config(self) -> AblationConfig:
        """The configuration of these settings."""
        return BASE.override(self.settings)

    def study(self, store) -> Study:
        """The study of these settings, new at each call: it holds images once it is used, and cells are many."""
        return Study(store, self.config())

    @classmethod
    def of(cls, saved: dict) -> "Cell":
        """The cell of what `dataclasses.asdict` gives; WorkbenchError if it does not fit this version's settings."""
        return make_cell(saved["name"], saved["settings"], saved["seed"])


def _refused(what: str, got: object, expected: str, fix: str) -> WorkbenchError:
    return WorkbenchError(what, expected=expected, got=plain(got), where="grid", fix=fix)


def resolved(settings: dict) -> dict:
    """The settings by their dotted names; WorkbenchError with the nearest right name of one that a cell has not."""
    names = BASE.names()
    found = {names.resolve(str(name)): value for name, value in settings.items()}
    for name in found.keys() - DEFAULTS.keys():
        one_of("setting of a cell", name, DEFAULTS)
    return found


def short_name(name: str) -> str:
    """The other name that a setting goes by, where it has one ("temperature"), else its dotted one."""
    return (SETTINGS[name].also if name in SETTINGS else "") or name


def make_cell(name: str, settings: dict, seed: int) -> Cell:
    """A cell whose settings are checked: names, types and values; those equal to a default are left out.

    Raises:
        WorkbenchError: with the nearest right name, or what was expected.
    """
    config = BASE.override({**resolved(settings), "seeds": [seed]})
    one_of("student.model", config.student.model, model_names())
    found = config.flat()
    differing = {k: found[k] for k, default in DEFAULTS.items() if found[k] != default}
    settings = {k: list(v) if isinstance(v, tuple) else v for k, v in differing.items()}
    return Cell(name, settings, config.seeds[0])


def base_of(config: ClassificationConfig, source: str = DEFAULTS["source"]) -> dict:
    """The settings of a notebook's configuration, as `read_grid` takes them for its base."""
    differing = {k: v for k, v in config.flat().items() if v != DEFAULTS.get(k, v)}
    return {**differing, "source": source}


def cells_of(config: AblationConfig) -> list[Cell]:
    """The cells of the grid file that a configuration names, or one loss left out at a time where it names none."""
    grid = resolve(config.grid) if config.grid else {"drop_one": True}
    return read_grid(grid, base_of(config, config.source), config.seeds)


def read_grid(
    grid: str | Path | dict | list, base: dict | None = None, seeds: Sequence[int] | None = None
) -> list[Cell]:
    """The cells of a grid, checked.

    Args:
        grid: a YAML file, or what one holds: {"base": settings of every cell, "drop_one": true for a row without each loss
            in use, "rows": {name: settings}, "grid": {setting: [values]} crossed with one another and with the rows,
            "seeds": [0, 1, 2] or "0,1,2"}, every part optional; or a list of rows, each a dict of settings with or
            without "name".
        base: settings under those of the grid. seeds: where the grid names none; [0] by default.

    Raises:
        WorkbenchError: on a file that cannot be read, unknown or repeated names, wrong types, impossible values.
    """
    if isinstance(grid, (str, Path)):
        grid = _read_file(Path(grid))
    grid = {"rows": grid} if isinstance(grid, list) else grid
    if not isinstance(grid, dict):
        form = f"a mapping of {', '.join(Grid.model_fields)}, or a list of rows"
        raise _refused("a grid has the wrong form", type(grid).__name__, form, EXAMPLE)
    parts = {str(name): part for name, part in grid.items() if part is not None}
    parts = ({} if seeds is None else {"seeds": list(seeds)}) | parts
    if isinstance(parts.get("rows"), list):
        parts["rows"] = _by_name(map(_named, parts["rows"]))
    if isinstance(parts.get("rows"), dict):
        parts["rows"] = {str(name): row or {} for name, row in parts["rows"].items()}
    checked = Grid(**parts)
    common = resolved(base or {}) | resolved(checked.base)
    # The generator that looks for disagreement with a student makes the same images for every setting.
    common = {"rival_model": common.get("student.model", DEFAULTS["student.model"]), **common}
    cells = [
        make_cell(name, _without_rival({**common, **resolved(settings)}), seed)
        for name, settings in _rows(checked, common).items()
        for seed in checked.seeds
    ]
    _check_different(cells)
    return cells


def _without_rival(settings: dict) -> dict:
    """The settings without what only makers against a student know, unless one is the source: it would split equal cells."""
    if str(settings.get("source")).startswith(RIVALS):
        return settings
    return {k: v for k, v in settings.items() if k != "rival_model"}


def _read_file(path: Path):
    import yaml

    class Plain(yaml.SafeLoader):
        """Refuses what YAML would take in silently: a name given twice, and aliases (a few lines unfold to gigabytes)."""

        def compose_node(self, parent, index):
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError(
                    "an alias (*name); write its values out, or put what rows share into 'base'"
                )
            return super().compose_node(parent, index)

        def construct_mapping(self, node, deep=False):
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if len(set(names)) < len(names):
                raise yaml.YAMLError(
                    f"'{next(n for n in names if names.count(n) > 1)}' is given twice in one place"
                )
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(path.read_bytes(), Plain)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise WorkbenchError(
            "a grid cannot be read",
            where=path,
            got=str(error)[:300],
            expected="a YAML file",
            fix=f"check the path, and {EXAMPLE}",
        ) from None


def _named(row: object) -> tuple[str, dict]:
    """A row of a list with its name: what it gives by itself, or its settings."""
    if not isinstance(row, dict):
        form, fix = "settings by name", "write a row as {name: ..., setting: value}"
        raise _refused("a row of a grid has the wrong form", repr(row)[:200], form, fix)
    settings = {key: value for key, value in row.items() if key != "name"}
    short = {k: f"{v:g}" if isinstance(v, float) else v for k, v in settings.items()}
    return str(row.get("name") or _words(short) or "base"), settings


def _words(settings: dict) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def _by_name(rows: Iterable[tuple[str, dict]]) -> dict[str, dict]:
    found: dict[str, dict] = {}
    for name, settings in rows:
        if name in found:
            fix = "name each row, and give each value, once"
            raise _refused("two rows of a grid have one name", name, "different names", fix)
        found[name] = settings
    return found


def _rows(grid: Grid, common: dict) -> dict[str, dict]:
    """Every row's own settings, the product of rows and grid."""
    rows = grid.rows
    if grid.drop_one:
        rows = {**_rows_without(make_cell("base", common, 0).config()), **rows}
    count = math.prod(map(len, grid.grid.values())) * max(len(rows), 1)
    if count > MOST_ROWS:
        most, fix = f"at most {MOST_ROWS} rows", "cross fewer settings with one another"
        raise _refused("a grid is too large", f"{count} rows", most, fix)
    products = [
        dict(zip(grid.grid, each, strict=True)) for each in itertools.product(*grid.grid.values())
    ]
    return _by_name(
        (", ".join(filter(None, [row, _words(chosen)])) or "base", {**settings, **chosen})
        for row, settings in (rows or {"": {}}).items()
        for chosen in products
    )


def _rows_without(config: ClassificationConfig) -> dict[str, dict]:
    """The settings of the one-loss-out ablation: {"all": {}, "without KD": {"weights.kd": 0.0}, …}."""
    flat = config.weights.flat()
    return {
        name: {f"weights.{key}": value for key, value in left.flat().items() if value != flat[key]}
        for name, left in drop_one(config.weights).items()
    }


def _check_different(cells: list[Cell]) -> None:
    seen: dict[str, str] = {}
    for cell in cells:
        same = seen.setdefault(f"{sorted(cell.settings.items())} {cell.seed}", cell.name)
        if same != cell.name:
            form = "rows that differ in a setting"
            got = f"'{same}' and '{cell.name}'"
            raise _refused("two rows of a grid are the same student", got, form, "leave one out")
