"""Cells of notebooks and examples of the guide, run as a notebook runs them."""

import json
import re
from itertools import count
from pathlib import Path
from types import SimpleNamespace

from dfkd_lib import attention, losses
from dfkd_lib.core import remember
from dfkd_lib.distill import KDWeights, StudentConfig
from dfkd_lib.training import label_loss

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
NUMBER = count()


def edit_cell(name: str, defined: str = "") -> str:
    """The source of the first cell marked as one to edit, that defines such a function."""
    cells = json.loads((NOTEBOOKS / name).read_text())["cells"]
    edited = ("".join(c["source"]) for c in cells if "edit-me" in c["metadata"].get("tags", []))
    return next(source for source in edited if f"def {defined}" in source or not defined)


def run_cell(source: str, names: dict) -> dict:
    """Execute a cell as a notebook does: in `__main__`, its source where `inspect` finds it."""
    file = remember(f"<cell {next(NUMBER)}>", source)
    exec(compile(source, file, "exec"), names)
    return names


def examples(heading: str) -> list[str]:
    """The Python blocks of the guide below a heading, up to the next one."""
    _, _, rest = (NOTEBOOKS / "README.md").read_text().partition(f"\n### {heading}\n")
    assert rest, f"the guide has no heading {heading!r}"
    return re.findall(r"```python\n(.*?)```", re.split(r"\n##+ ", rest)[0], re.DOTALL)


def names_of_30(student=StudentConfig(), **weights) -> dict:
    return {
        "__name__": "__main__",
        "attention": attention,
        "losses": losses,
        "label_loss": label_loss,
        "cfg": SimpleNamespace(student=student),
        "λ": KDWeights(**weights),
    }
