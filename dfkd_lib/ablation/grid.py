"""A grid of students: rows of settings times seeds, from a YAML file or a list, checked before anything is trained."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dfkd_lib.core import WorkbenchError, artifacts, nearest, plain
from dfkd_lib.distill import MAKERS, AblationConfig, ClassificationConfig, Study, drop_one
from dfkd_lib.models import model_names

SOURCES = ("real", *MAKERS)
BASE = ClassificationConfig()
# A cell has one seed of its own, so the list of them is no setting of it.
DEFAULTS = {k: v for k, v in BASE.flat().items() if k != "seeds"} | {"source": "augmented GAN"}
SETTINGS = BASE.settings()
MOST_ROWS = 10_000  # the product of a few long lists would fill the memory
PARTS = ("base", "rows", "grid", "drop_one", "seeds")


@dataclass(frozen=True)
class Cell:
    """One student of an ablation.

    Args:
        name: the setting it belongs to; cells of one name differ in the seed alone.
        settings: {dotted name in `ClassificationConfig`: value} that differ from its defaults, and "source": "real" or one of
            `MAKERS` (default: "augmented GAN").
        seed: of the student's weights, order and dropout; the images are the same for every seed.
    """

    name: str
    settings: dict
    seed: int

    @property
    def source(self) -> str:
        return self.settings.get("source", DEFAULTS["source"])

    def config(self) -> ClassificationConfig:
        """The configuration of these settings."""
        return BASE.override({k: v for k, v in self.settings.items() if k != "source"})

    def study(self, store) -> Study:
        """The study of these settings, new at each call: it holds images once it is used, and cells are many."""
        return Study(store, self.config())

    def as_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def of(cls, saved: dict) -> "Cell":
        """The cell that `as_dict` wrote; WorkbenchError if it does not fit this version's settings."""
        return make_cell(saved["name"], saved["settings"], saved["seed"])


def show(value) -> str:
    """A setting as text, numbers short."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def resolve(name: str) -> str:
    """The dotted name of a setting, or "source"; WorkbenchError with the nearest right name."""
    try:
        return name if name == "source" else BASE.resolve(name)
    except WorkbenchError as error:
        error.where = "grid"
        raise WorkbenchError(
            f"the grid names an unknown setting: {error.what}",
            expected=error.expected,
            got=name,
            where="grid",
            fix=error.fix,
        ) from None


def short_name(name: str) -> str:
    """The other name that a setting goes by, where it has one ("temperature"), else its dotted one."""
    return (SETTINGS[name].also if name in SETTINGS else "") or name


def make_cell(name: str, settings: dict, seed: int) -> Cell:
    """A cell whose settings are checked: names, types and values; those equal to a default are left out.

    Raises:
        WorkbenchError: with the nearest right name, or what was expected.
    """
    named = {resolve(key): value for key, value in settings.items()}
    source = named.pop("source", DEFAULTS["source"])
    if source not in SOURCES:
        _refuse("source", source, SOURCES)
    try:
        config = BASE.override(named)
    except WorkbenchError as error:
        raise WorkbenchError(
            f"the grid cannot be run: {error.what}",
            expected=error.expected,
            got=error.got,
            where="grid",
            fix=error.fix,
        ) from None
    if config.student.model not in model_names():
        _refuse("student_model", config.student.model, model_names())
    found = {k: v for k, v in config.flat().items() if k != "seeds"} | {"source": source}
    return Cell(
        name,
        {k: list(v) if isinstance(v, tuple) else v for k, v in found.items() if v != DEFAULTS[k]},
        _seed(seed),
    )


def _seed(seed) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise WorkbenchError(
            "a seed is no seed",
            expected="a whole number from 0, below 2**32",
            got=plain(seed),
            where="seeds",
            fix="list seeds as in [0, 1, 2]",
        )
    return seed


def _refuse(what: str, got: object, known: Sequence[str]) -> None:
    near = nearest(str(got), known)
    raise WorkbenchError(
        f"the grid names an unknown {what}",
        expected=", ".join(known),
        got=plain(got),
        where="grid",
        fix=f"did you mean '{near}'?" if near else "choose one of the expected names",
    )


def base_of(config: ClassificationConfig, source: str = "augmented GAN") -> dict:
    """The settings of a notebook's configuration, as `read_grid` takes them for its base."""
    differing = {
        k: v for k, v in config.flat().items() if v != DEFAULTS.get(k, v) and k != "source"
    }
    return {**differing, "source": source}


def cells_of(config: AblationConfig) -> list[Cell]:
    """The cells of the grid file that a configuration names, or one loss left out at a time where it names none."""
    grid = artifacts.resolve(config.grid) if config.grid else {"drop_one": True}
    return read_grid(grid, base_of(config, config.source), config.seeds)


def rows_without(config: ClassificationConfig) -> dict[str, dict]:
    """The settings of the one-loss-out ablation: {"all": {}, "without KD": {"weights.kd": 0.0}, …}."""
    flat = config.weights.flat()
    return {
        name: {f"weights.{key}": value for key, value in left.flat().items() if value != flat[key]}
        for name, left in drop_one(config.weights).items()
    }


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
    if isinstance(grid, list):
        grid = {"rows": _named(grid)}
    if not isinstance(grid, dict):
        raise WorkbenchError(
            "a grid has the wrong form",
            expected=f"a mapping of {', '.join(PARTS)}, or a list of rows",
            got=type(grid).__name__,
            where="grid",
            fix="see notebooks/README.md for an example",
        )
    for name in set(grid) - set(PARTS):
        _refuse("part", str(name), PARTS)
    if isinstance(grid.get("rows"), list):
        grid = {**grid, "rows": _named(grid["rows"])}
    for part in ("base", "rows", "grid"):
        if not isinstance(grid.get(part) or {}, dict):
            raise WorkbenchError(
                f"the grid's '{part}' has the wrong form",
                expected="names with values",
                got=grid[part],
                where="grid",
                fix=f"write {part}: {{name: value}}",
            )
    common = {**(base or {}), **(grid.get("base") or {})}
    common = {resolve(name): value for name, value in common.items()}
    # The generator that looks for disagreement with a student makes the same images for every setting.
    common = {"rival_model": common.get("student.model", DEFAULTS["student.model"]), **common}
    cells = [
        make_cell(name, _without_rival({**common, **_resolved(settings)}), seed)
        for name, settings in _rows(grid, common).items()
        for seed in _seeds(grid.get("seeds", seeds if seeds is not None else [0]))
    ]
    _check_different(cells)
    return cells


def _resolved(settings: dict) -> dict:
    return {resolve(str(name)): value for name, value in settings.items()}


def _without_rival(settings: dict) -> dict:
    """The settings without what only the maker "adversarial" knows, unless it is the source: it would split equal cells."""
    return (
        settings
        if settings.get("source") == "adversarial"
        else {k: v for k, v in settings.items() if k != "rival_model"}
    )


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
        return yaml.load(path.read_text(), Plain)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise WorkbenchError(
            "a grid cannot be read",
            where=path,
            got=str(error)[:300],
            expected="a YAML file",
            fix="check the path; notebooks/README.md has an example",
        ) from None


def _named(rows: list) -> dict[str, dict]:
    found: dict[str, dict] = {}
    for row in rows:
        if not isinstance(row, dict):
            raise WorkbenchError(
                "a row of a grid has the wrong form",
                expected="settings by name",
                got=repr(row)[:200],
                where="grid",
                fix="write a row as {name: ..., setting: value}",
            )
        settings = {key: value for key, value in row.items() if key != "name"}
        name = str(
            row.get("name")
            or ", ".join(f"{key}={show(value)}" for key, value in settings.items())
            or "base"
        )
        if name in found:
            raise WorkbenchError(
                "two rows of a grid have one name", got=name, where="grid", fix="name each once"
            )
        found[name] = settings
    return found


def _rows(grid: dict, common: dict) -> dict[str, dict]:
    """Every row's own settings, the product of rows and grid."""
    rows = dict(grid.get("rows") or {})
    if grid.get("drop_one"):
        rows = {**rows_without(make_cell("base", common, 0).config()), **rows}
    crossed = grid.get("grid") or {}
    for name, values in crossed.items():
        resolve(str(name))
        if not isinstance(values, list) or not values:
            raise WorkbenchError(
                f"the grid's values of '{name}' have the wrong form",
                expected="a list of values",
                got=repr(values),
                where="grid",
                fix=f"write {name}: [{values}]",
            )
    count = math.prod(map(len, crossed.values())) * max(len(rows), 1)
    if count > MOST_ROWS:
        raise WorkbenchError(
            "a grid is too large",
            expected=f"at most {MOST_ROWS} rows",
            got=f"{count} rows",
            where="grid",
            fix="cross fewer settings with one another",
        )
    found = {}
    for row, settings in (rows or {"": {}}).items():
        if not isinstance(settings or {}, dict):
            raise WorkbenchError(
                f"row '{row}' of the grid has the wrong form",
                expected="settings by name",
                got=settings,
                where="grid",
                fix="write a row as name: {setting: value}",
            )
        for values in itertools.product(*crossed.values()):
            chosen = dict(zip(crossed, values, strict=True))
            name = (
                ", ".join(
                    filter(None, [str(row), *(f"{key}={value}" for key, value in chosen.items())])
                )
                or "base"
            )
            if name in found:
                raise WorkbenchError(
                    "two rows of a grid have one name",
                    got=name,
                    where="grid",
                    fix="give each value once",
                )
            found[name] = {**(settings or {}), **chosen}
    return found


def _seeds(seeds) -> list[int]:
    if isinstance(seeds, str):
        seeds = [int(word) if word.strip().isdigit() else word for word in seeds.split(",")]
    seeds = [_seed(seed) for seed in (seeds if isinstance(seeds, (list, tuple)) else [seeds])]
    if not seeds or len(set(seeds)) < len(seeds):
        raise WorkbenchError(
            "the seeds of a grid are not usable",
            expected="at least one, each once",
            got=seeds,
            where="seeds",
            fix="equal seeds give equal runs, which are no independent evidence",
        )
    return seeds


def _check_different(cells: list[Cell]) -> None:
    seen: dict[str, str] = {}
    for cell in cells:
        same = seen.setdefault(f"{sorted(cell.settings.items())} {cell.seed}", cell.name)
        if same != cell.name:
            raise WorkbenchError(
                "two rows of a grid are the same student",
                got=f"'{same}' and '{cell.name}'",
                expected="rows that differ in a setting",
                where="grid",
                fix="leave one out",
            )
