"""The house order: data flows one way through the rooms, and notebooks stay thin."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

from dfkd_lib.pipeline.parameters import OWN, parse_cell, read_notebook
from dfkd_lib.profiles import NOTEBOOKS, PROFILES

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "dfkd_lib"
# A room imports only rooms named before it.
ROOMS = ("errors", "profiles", "ledger", "artifacts", "datasets", "models", "attention", "losses", "intervals", "fid",
         "training", "distill", "synthesis", "recipes", "laboratory", "ablation", "detection", "deploy", "plots", "report", "summary", "widgets",
         "environment", "bench", "pipeline", "__main__")
ONLY_IN = {"ipywidgets": "widgets", "anywidget": "widgets", "papermill": "pipeline", "nbconvert": "pipeline"}
MODULES = sorted(LIBRARY.rglob("*.py"))
NOTEBOOK_FILES = sorted((ROOT / "notebooks").glob("*.ipynb"))
WORKING_TEXT = [*MODULES, *sorted((ROOT / "tests").glob("*.py")), *NOTEBOOK_FILES,
                *(p for p in (ROOT / "README.md", ROOT / "Makefile", ROOT / "pyproject.toml") if p.exists())]


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
            found += [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "dfkd_lib" else [node.module]
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


def test_some_libraries_have_one_importer(trees):
    wrong = [f"{name_of(path)} imports {module}" for path, tree in trees.items() for module in imports(tree)
             if room_of(path) != ONLY_IN.get(module.split(".")[0], room_of(path))]
    assert not wrong, "\n".join(wrong)


def test_nothing_loads_a_pickle(trees):
    wrong = []
    for path, tree in trees.items():
        wrong += [f"{name_of(path)}: imports {m}" for m in imports(tree) if m.split(".")[0] in ("dill", "joblib")]
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            called, keywords = ast.unparse(call.func), {k.arg: ast.unparse(k.value) for k in call.keywords}
            if called.endswith("torch.load") and keywords.get("weights_only") != "True":
                wrong.append(f"{name_of(path)}:{call.lineno}: torch.load without weights_only=True")
            if called.startswith("pickle."):
                wrong.append(f"{name_of(path)}:{call.lineno}: {called}")
            if keywords.get("allow_pickle") == "True" or called.split(".")[-1] == "read_pickle":
                wrong.append(f"{name_of(path)}:{call.lineno}: reads pickles")
    assert not wrong, "\n".join(wrong)


def test_modules_and_functions_stay_short(trees):
    wrong = []
    for path, tree in trees.items():
        lines = path.read_text().splitlines()
        wrong += [f"{name_of(path)}: {len(lines)} lines"] if len(lines) > 400 else []
        wrong += [f"{name_of(path)}:{i}: {len(line)} characters" for i, line in enumerate(lines, 1) if len(line) > 125]
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno - node.lineno >= 60:
                wrong.append(f"{name_of(path)}:{node.lineno}: {node.name} has {node.end_lineno - node.lineno + 1} lines")
    assert not wrong, "\n".join(wrong)


def test_every_module_says_what_it_is(trees):
    assert not [name_of(path) for path, tree in trees.items() if not ast.get_docstring(tree)]


def test_no_argument_has_a_mutable_default(trees):
    wrong = [f"{name_of(path)}:{node.lineno}" for path, tree in trees.items() for node in ast.walk(tree)
             if isinstance(node, (ast.FunctionDef, ast.Lambda))
             for default in [*node.args.defaults, *node.args.kw_defaults]
             if isinstance(default, (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp))]
    assert not wrong, wrong


def test_no_file_names_a_folder_of_one_machine():
    home = re.compile(r"[\"' (](/work/|/root/|/home/|/tmp/|/Users/)")
    assert not [name_of(path) for path in WORKING_TEXT if path != Path(__file__) and home.search(path.read_text())]


def test_profiles_and_notebooks_name_each_other():
    names = [path.stem for path in NOTEBOOK_FILES]
    assert names == list(NOTEBOOKS)
    assert all(list(profile) == names for profile in PROFILES.values()) and set(PROFILES) == {"smoke", "quick", "paper"}


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


def test_cells_and_their_functions_are_short(notebook):
    _, node = notebook
    for cell in (c for c in node.cells if c.cell_type == "code"):
        # The parameters are a list, one a line, as long as there are parameters.
        assert "parameters" in cell.metadata.get("tags", []) or len(cell.source.splitlines()) <= 15, cell.source
        for function in ast.walk(ast.parse(cell.source)):
            if isinstance(function, ast.FunctionDef):
                assert function.end_lineno - function.lineno < 5, function.name


def test_the_first_cell_after_the_parameters_imports_the_library(notebook):
    _, node = notebook
    code = [c for c in node.cells if c.cell_type == "code"]
    assert "parameters" in code[0].metadata.get("tags", [])
    assert code[1].source.startswith("from dfkd_lib")


def test_parameters_are_scalars_with_help_and_range(notebook):
    path, node = notebook
    (cell,) = [c for c in node.cells if "parameters" in c.metadata.get("tags", [])]
    declared = parse_cell(cell.source, path.stem)
    assert {*OWN, "seed"} <= set(declared)
    for parameter in declared.values():
        assert parameter.help, f"{parameter.name} needs a help text"
        numeric = type(parameter.default) in (int, float)
        assert parameter.rule or not numeric, f"{parameter.name} needs a range, as in `# help; 1..100`"
        assert ";" not in parameter.help or isinstance(parameter.default, bool), f"no rule: {parameter.help}"
        if parameter.name != "out_dir":
            parameter.check(parameter.default)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_obeys_the_notebooks(profile):
    from dfkd_lib.pipeline import make_plan

    plan = make_plan(profile)
    assert list(plan.notebooks) == list(NOTEBOOKS)


def test_a_notebook_alone_has_the_quick_values():
    """Its own defaults are the quick ones, so opening it in JupyterLab shows what `make report` ran."""
    for path in NOTEBOOK_FILES:
        declared = read_notebook(path)
        assert declared["profile"].default == "quick" and declared["out_dir"].default == "reports/quick"
        assert all(value == declared[name].default for name, value in PROFILES["quick"][path.stem].items())
