"""Small notebooks for the tests of the pipeline: a title, a parameters cell, and the cells that are given."""

from pathlib import Path
from typing import Literal

import nbformat
from pydantic import Field

from dfkd_lib import presets
from dfkd_lib.core import Config, Seeds

OWN = """\
preset = "quick"  # which set of settings
out_dir = "reports/quick"  # where reports go
artifacts_dir = "data/artifacts"  # where trained things are kept
interactive = True  # draw widgets
"""
PARAMETERS = (
    OWN
    + """\
seed = 0
epochs = 3
rate = 0.5
teacher = "shipped"
seeds = ""
overrides = ""
quiet = False  # print less
part = 0.5  # a share"""
)
NEEDS = {"30_classification_kd": ["20_gan_fid"], "90_summary": ["*"]}


class SmallConfig(Config):
    """The configuration of the method "small", which is these notebooks' unless they are given another."""

    seed: int = Field(0, ge=0, description="of everything random")
    epochs: int = Field(3, ge=1, le=100, description="passes over the data")
    rate: float = Field(0.5, ge=0, le=1, description="learning rate")
    teacher: Literal["shipped", "train"] = Field("shipped", description="where it comes from")
    seeds: Seeds = Field((0, 1, 2), description="seeds of the repeats")
    width: int = Field(8, ge=1, description="channels")


presets.METHODS["small"] = "small_notebooks:SmallConfig"


def write_notebooks(
    folder: Path,
    notebooks: dict[str, list[str]],
    parameters: str = PARAMETERS,
    method: str = "small",
) -> Path:
    folder.mkdir(exist_ok=True)
    for name, sources in notebooks.items():
        cells = [
            nbformat.v4.new_markdown_cell(f"# About {name}\n\n$\\frac{{a}}{{b}}$"),
            nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
            *map(nbformat.v4.new_code_cell, sources),
        ]
        about = {"title": f"About {name}", "needs": NEEDS.get(name, []), "method": method}
        notebook = nbformat.v4.new_notebook(cells=cells, metadata={"dfkd": about})
        nbformat.write(notebook, folder / f"{name}.ipynb")
    return folder
