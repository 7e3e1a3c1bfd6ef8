"""A grid of students: rows of settings times seeds, from a YAML file or a list, checked before anything is trained."""

import difflib
import itertools
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from dfkd_lib.core import WorkbenchError, artifacts, plain
from dfkd_lib.distill import Augmentation, KDWeights, drop_one
from dfkd_lib.laboratory import MAKERS, MakerRecipe
from dfkd_lib.models import model_names
from dfkd_lib.recipes import parse_seeds

SOURCES = ("real", *MAKERS)
DEFAULTS = {**{f.name: f.default for f in fields(MakerRecipe)}, "source": "augmented GAN"}
MOST_ROWS = 10_000  # the product of a few long lists would fill the memory
PARTS = ("base", "rows", "grid", "drop_one", "seeds")
# Names that a loss has in tables -> the recipe's.
WEIGHTS = {
    "kd": "kd_weight",
    "ce": "ce_weight",
    "patch": "patch_weight",
    "hard": "hard_weight",
    "soft": "soft_weight",
    "early": "early_weight",
}


@dataclass(frozen=True)
class Cell:
    """One student of an ablation.

    Args:
        name: the row it belongs to; cells of one row differ in the seed alone.
        settings: fields of `laboratory.MakerRecipe` that differ from its defaults, and "source": "real" or one of `MAKERS`
            (default: "augmented GAN").
        seed: of the student's weights, order and dropout; the images are the same for every seed.
    """

    name: str
    settings: dict
    seed: int

    @property
    def source(self) -> str:
        return self.settings.get("source", DEFAULTS["source"])

    def recipe(self) -> MakerRecipe:
        """The recipe of these settings, new at each call: it holds images once it is used, and cells are many."""
        return MakerRecipe(
            **{name: value for name, value in self.settings.items() if name != "source"}
        )

    @property
    def label(self) -> str:
        """What differs from the defaults, in short: "temperature=2, source=real"; "defaults" if nothing does."""
        return (
            ", ".join(f"{name}={show(value)}" for name, value in sorted(self.settings.items()))
            or "defaults"
        )

    def as_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def of(cls, saved: dict) -> "Cell":
        """The cell that `as_dict` wrote; WorkbenchError if it does not fit this version's settings."""
        return make_cell(saved["name"], saved["settings"], saved["seed"])


def show(value) -> str:
    """A setting as text, numbers short."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def make_cell(name: str, settings: dict, seed: int) -> Cell:
    """A cell whose settings are checked: names, types and values; those equal to a default are left out.

    Raises:
        WorkbenchError: with the nearest right name, or what was expected.
    """
    known = {key: _typed(key, value) for key, value in settings.items()}
    cell = Cell(
        name, {key: value for key, value in known.items() if value != DEFAULTS[key]}, _seed(seed)
    )
    recipe = cell.recipe()
    if cell.source not in SOURCES:
        _refuse("source", cell.source, SOURCES)
    if recipe.student_model not in model_names():
        _refuse("student_model", recipe.student_model, model_names())
    (
        recipe.weights,
        recipe.student_config(cell.seed),
        Augmentation(kind=recipe.augmentation, mix=recipe.mix),
    )  # each checks itself
    return cell


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


def _refuse(what: str, got: str, known: Sequence[str]) -> None:
    near = difflib.get_close_matches(str(got), list(known), n=1)
    raise WorkbenchError(
        f"the grid names an unknown {what}",
        expected=", ".join(known),
        got=got,
        where="grid",
        fix=f"did you mean '{near[0]}'?" if near else "choose one of the expected names",
    )


def _typed(name: str, value):
    """The value of a setting in its own type; WorkbenchError on an unknown name, a wrong type, or no finite number."""
    if name not in DEFAULTS:
        _refuse("setting", name, sorted(DEFAULTS))
    kind = type(DEFAULTS[name])
    if kind is float and type(value) in (int, str):
        with suppress(ValueError, OverflowError):
            value = float(value)  # YAML takes 1e-3 for text
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise WorkbenchError(
            f"the grid's setting '{name}' has the wrong type",
            expected=kind.__name__,
            got=f"{plain(value)} ({type(value).__name__})",
            where="grid",
            fix="write 1.0 for a number with a fraction, 1 for a whole one, quotes around text",
        )
    if kind is int and value < 0:
        raise WorkbenchError(
            f"the grid's setting '{name}' is impossible",
            expected="0 or more",
            got=value,
            where="grid",
            fix="give it a value from 0 on",
        )
    return value


def base_of(parameters: dict) -> dict:
    """The settings that a notebook's parameters (`globals()`) name, as `read_grid` takes them for its base."""
    return {
        name: type(default)(parameters[name])
        for name, default in DEFAULTS.items()
        if name in parameters
    }


def cells_of(parameters: dict) -> list[Cell]:
    """The cells that notebook 35's parameters ask for: those of its grid, or one loss left out at a time."""
    grid = artifacts.resolve(parameters["grid"]) if parameters["grid"] else {"drop_one": True}
    return read_grid(grid, base_of(parameters), parse_seeds(parameters["seeds"]))


def rows_without(weights: KDWeights) -> dict[str, dict]:
    """The rows of the one-loss-out ablation as settings: {"all": {}, "without KD": {"kd_weight": 0.0}, …}."""
    return {
        name: {WEIGHTS[key]: 0.0 for key in WEIGHTS if getattr(left, key) != getattr(weights, key)}
        for name, left in drop_one(weights).items()
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
            fix="see the README for an example",
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
    # The generator that looks for disagreement with a student makes the same images for every row.
    common = {"rival_model": common.get("student_model", DEFAULTS["student_model"]), **common}
    cells = [
        make_cell(name, _without_rival({**common, **settings}), seed)
        for name, settings in _rows(grid, common).items()
        for seed in _seeds(grid.get("seeds", seeds if seeds is not None else [0]))
    ]
    _check_different(cells)
    return cells


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
            fix="check the path; the README has an example of what is in it",
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
        rows = {**rows_without(make_cell("base", common, 0).recipe().weights), **rows}
    crossed = grid.get("grid") or {}
    for name, values in crossed.items():
        if name not in DEFAULTS:
            _refuse("setting", str(name), sorted(DEFAULTS))
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
