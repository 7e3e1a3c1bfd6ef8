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
    "core",
    "presets",
    "jobs",
    "datasets",
    "models",
    "attention",
    "losses",
    "metrics",
    "training",
    "synthesis",
    "distill",
    "ablation",
    "detection",
    "deploy",
    "plots",
    "reporting",
    "widgets",
    "pipeline",
    "cli",
    "__main__",
)
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


def test_every_room_has_its_place():
    rooms = {room_of(path) for path in MODULES} - {"__init__"}
    assert rooms <= set(ROOMS), f"name these in ROOMS: {rooms - set(ROOMS)}"


def test_a_room_imports_only_rooms_above_it(trees):
    wrong = []
    for path, tree in trees.items():
        room = room_of(path)
        for module in imports(tree):
            parts = module.split(".")
            if parts[0] != "dfkd_lib" or room == "__init__" or parts[1] in (room, "__version__"):
                continue
            if parts[1] not in ROOMS or ROOMS.index(parts[1]) > ROOMS.index(room):
                wrong.append(f"{name_of(path)} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_plots_take_arrays_and_import_no_other_room(trees):
    wrong = [
        f"{name_of(path)} imports {module}"
        for path, tree in trees.items()
        for module in imports(tree)
        if room_of(path) == "plots" and re.match(r"dfkd_lib\.(?!plots\b)|torch\b", module)
    ]
    assert not wrong, "\n".join(wrong)


def test_some_libraries_have_one_importer(trees):
    wrong = [
        f"{name_of(path)} imports {module}"
        for path, tree in trees.items()
        for module in imports(tree)
        if room_of(path) != ONLY_IN.get(module.split(".")[0], room_of(path))
    ]
    assert not wrong, "\n".join(wrong)


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


@pytest.fixture(params=NOTEBOOK_FILES, ids=lambda path: path.stem)
def notebook(request):
    return request.param, nbformat.read(request.param, as_version=4)


def test_a_notebook_is_valid_and_without_outputs(notebook):
    _, node = notebook
    nbformat.validate(node)
    for cell in node.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


def test_a_notebook_opens_with_what_it_is(notebook):
    _, node = notebook
    assert node.cells[0].cell_type == "markdown" and node.cells[0].source.startswith("# ")


def test_cells_are_short(notebook):
    """A cell is short enough to read; one that defines a step may have 30 lines."""
    _, node = notebook
    for cell in (c for c in node.cells if c.cell_type == "code"):
        longest = 30 if "edit-me" in cell.metadata.get("tags", []) else 18
        lines = len(cell.source.splitlines())
        assert "parameters" in cell.metadata.get("tags", []) or lines <= longest, cell.source


def test_a_notebook_takes_nothing_from_globals(notebook):
    path, node = notebook
    converted = node.metadata.get("dfkd", {}).get("method")
    assert not converted or all("globals()" not in cell.source for cell in node.cells)


def test_a_notebook_of_a_method_has_few_parameters(notebook):
    path, _ = notebook
    declared = read_notebook(path)
    assert not declared.method or len(declared.parameters) <= 12


def test_parameters_have_help(notebook):
    path, _ = notebook
    declared = read_notebook(path)
    assert not [name for name in declared.parameters if not declared.help(name)]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_obeys_the_configurations(preset):
    assert list(make_plan(preset).notebooks) == [path.stem for path in NOTEBOOK_FILES]
