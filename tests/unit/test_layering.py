"""The house order: data flows one way through the rooms, and notebooks stay thin."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

from dfkd_lib.pipeline import make_plan, read_notebook
from dfkd_lib.presets import PRESETS

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "dfkd_lib"
# A room imports only rooms named before it.
ROOMS = (
    "core presets jobs datasets models attention losses metrics training synthesis distill ablation detection deploy "
    "plots reporting widgets pipeline cli __main__"
).split()
ONLY_IN = {
    "ipywidgets": "widgets",
    "anywidget": "widgets",
    "papermill": "pipeline",
    "nbconvert": "pipeline",
    "dask": "jobs",
    "distributed": "jobs",
}
MODULES = sorted(LIBRARY.rglob("*.py"))
NOTEBOOK_FILES = sorted((ROOT / "notebooks").glob("*.ipynb"))
WORKING_TEXT = [
    *MODULES,
    *sorted((ROOT / "tests").rglob("*.py")),
    *NOTEBOOK_FILES,
    *(p for p in (ROOT / "README.md", ROOT / "Makefile", ROOT / "pyproject.toml") if p.exists()),
]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def room_of(path: Path) -> str:
    first = path.relative_to(LIBRARY).parts[0]
    return first.removesuffix(".py")


def imports(tree: ast.AST) -> list[str]:
    """Every module that a tree imports, also inside functions, as dotted names."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            found += (
                [f"{node.module}.{alias.name}" for alias in node.names]
                if node.module == "dfkd_lib"
                else [node.module]
            )
    return found


@pytest.fixture(scope="module")
def trees() -> dict[Path, ast.AST]:
    return {path: ast.parse(path.read_text()) for path in MODULES}


def wrong_imports(trees, is_wrong) -> list[str]:
    """Every import of a module that is wrong in its room."""
    return [
        f"{name_of(path)} imports {module}"
        for path, tree in trees.items()
        for module in imports(tree)
        if is_wrong(room_of(path), module)
    ]


def test_a_room_imports_only_rooms_above_it(trees):
    rooms = {room_of(path) for path in MODULES} - {"__init__"}
    assert rooms <= set(ROOMS), f"name these in ROOMS: {rooms - set(ROOMS)}"

    def is_wrong(room, module):
        top, _, other = f"{module}.".partition(".")
        other = other.partition(".")[0]
        if top != "dfkd_lib" or room == "__init__" or other in (room, "__version__"):
            return False
        return other not in ROOMS or ROOMS.index(other) > ROOMS.index(room)

    assert not wrong_imports(trees, is_wrong)


def test_plots_take_arrays_and_import_no_other_room(trees):
    other = re.compile(r"dfkd_lib\.(?!plots\b)|torch\b")
    assert not wrong_imports(trees, lambda room, module: room == "plots" and other.match(module))


def test_some_libraries_have_one_importer(trees):
    def is_wrong(room, module):
        return room != ONLY_IN.get(module.split(".")[0], room)

    assert not wrong_imports(trees, is_wrong)


def public_names(room: str) -> set[str] | None:
    """What a room's `__init__` imports of its own modules, defines, or names in `__all__`; None of a single file."""
    path = LIBRARY / room / "__init__.py"
    if not path.exists():
        return None
    found = set()
    for node in ast.parse(path.read_text()).body:
        match node:
            case ast.ImportFrom(module=module) if module.startswith(f"dfkd_lib.{room}"):
                found |= {alias.name for alias in node.names}
            case ast.FunctionDef(name=name):
                found.add(name)
            case ast.Assign(targets=[ast.Name(id="__all__")], value=value):
                found |= set(ast.literal_eval(value))
    return found


def test_a_room_takes_from_another_what_that_one_names(trees):
    public = {room: public_names(room) for room in ROOMS}
    found = set()
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or not node.module.startswith("dfkd_lib."):
                continue
            _, room, *inside = node.module.split(".")
            if room == room_of(path) or public[room] is None or public[room] & set(inside[:1]):
                continue
            names = {alias.name for alias in node.names} - public[room]
            found |= {f"{node.module.removeprefix('dfkd_lib.')}.{name}" for name in names}
    assert not found, sorted(found)


def test_modules_and_functions_stay_short(trees):
    long = [name_of(path) for path in trees if len(path.read_text().splitlines()) > 450]
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                if node.end_lineno - node.lineno >= 60:
                    long.append(f"{name_of(path)}: {node.name}")
    assert not long, long


def test_every_module_says_what_it_is(trees):
    assert not [name_of(path) for path, tree in trees.items() if not ast.get_docstring(tree)]


def test_no_file_names_a_folder_of_one_machine():
    home = re.compile(r"[\"' (](/work/|/root/|/home/|/tmp/|/Users/)")
    assert not [
        name_of(path)
        for path in WORKING_TEXT
        if path != Path(__file__) and home.search(path.read_text())
    ]


@pytest.mark.parametrize("path", NOTEBOOK_FILES, ids=lambda path: path.stem)
def test_a_notebook_is_thin_and_without_outputs(path):
    """A cell is short enough to read; one that defines a step may have 30 lines."""
    node = nbformat.read(path, as_version=4)
    nbformat.validate(node)
    assert node.cells[0].cell_type == "markdown" and node.cells[0].source.startswith("# ")
    for cell in node.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
        assert "globals()" not in cell.source
        tags, lines = cell.metadata.get("tags", []), len(cell.source.splitlines())
        if cell.cell_type == "code" and "parameters" not in tags:
            assert lines <= (30 if "edit-me" in tags else 18), cell.source
    declared = read_notebook(path)
    assert not declared.method or len(declared.parameters) <= 12
    assert all(declared.help(name) for name in declared.parameters)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_obeys_the_configurations(preset):
    assert list(make_plan(preset).notebooks) == [path.stem for path in NOTEBOOK_FILES]
