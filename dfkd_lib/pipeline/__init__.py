"""The notebooks as one parametrised run into HTML reports; the only importer of papermill and nbconvert.

    plan = make_plan("quick", only="10,20", settings=["10.block=-2"])   # checks everything, starts nothing
    results = run(plan)                                                  # what reports/quick/results.json holds

How a notebook declares its parameters, and how they are checked: `pipeline.parameters`.
"""

from typing import TYPE_CHECKING

from dfkd_lib.pipeline.parameters import Declared, Parameter, find_notebook, read_notebook
from dfkd_lib.pipeline.plan import Plan, make_plan, notebook_files

if TYPE_CHECKING:
    from dfkd_lib.pipeline.here import train
    from dfkd_lib.pipeline.runs import exit_code, run

__all__ = [
    "Declared",
    "Parameter",
    "Plan",
    "asked",
    "compare",
    "exit_code",
    "find_notebook",
    "make_plan",
    "notebook_files",
    "read_notebook",
    "run",
    "tables",
    "train",
]


def __getattr__(name: str) -> object:
    # What runs notebooks imports torch, papermill and nbconvert: not before a plan is checked.
    if name == "train":
        from dfkd_lib.pipeline.here import train

        return train
    if name in ("exit_code", "run"):
        from dfkd_lib.pipeline import runs

        return getattr(runs, name)
    raise AttributeError(name)
