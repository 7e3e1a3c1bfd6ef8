"""The notebooks as one parametrised run into HTML reports; the only importer of papermill and nbconvert.

    plan = make_plan("quick", only="10,20", settings=["10.block=-2"])   # checks everything, starts nothing
    results = run(plan)                                                  # what reports/quick/results.json holds

How a notebook declares its parameters, and how they are checked: `pipeline.parameters`.
"""

from importlib import import_module

from dfkd_lib.pipeline.parameters import Declared, Parameter, find_notebook, read_notebook
from dfkd_lib.pipeline.plan import Plan, make_plan, notebook_files

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


# What runs notebooks imports torch, papermill and nbconvert: not before a plan is checked.
LATER = {"train": "here", "run": "runs", "exit_code": "runs"}


def __getattr__(name: str) -> object:
    if name in LATER:
        return getattr(import_module(f"dfkd_lib.pipeline.{LATER[name]}"), name)
    raise AttributeError(name)
