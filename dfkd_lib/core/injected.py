"""Parameters that papermill has put into the running notebook."""

import ast
import sys
from collections.abc import Collection
from contextlib import suppress

from dfkd_lib.core.errors import WorkbenchError


def injected(known: Collection[str]) -> dict[str, object]:
    """What papermill set beyond the parameters that the running notebook declares and the `known` ones; {} elsewhere."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    cells = shell.user_ns.get("In", []) if shell else []
    declared: set[str] = set()
    found: dict[str, object] = {}
    for source in cells:
        values = _literals(source)
        if source.startswith("# Parameters"):
            if isinstance(word := values.get("interactive"), str):
                raise WorkbenchError(
                    "the parameter 'interactive' cannot have this value",
                    expected="True or False",
                    got=repr(word),
                    fix="write it with a capital letter: papermill takes false for a word, which would count as True",
                )
            found |= {name: value for name, value in values.items() if name not in declared}
        declared |= set(values)
    return {name: value for name, value in found.items() if name not in known}


def _literals(source: str) -> dict[str, object]:
    """{name: value} of the `name = literal` lines of a cell."""
    try:
        statements = ast.parse(source).body
    except (SyntaxError, ValueError):  # of IPython's own magic
        return {}
    values = {}
    for statement in statements:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            with suppress(ValueError):
                values[statement.targets[0].id] = ast.literal_eval(statement.value)
    return values
