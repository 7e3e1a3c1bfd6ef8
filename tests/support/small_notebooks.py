"""Small notebooks for the tests of the pipeline: a title, a parameters cell, and the cells that are given."""

from pathlib import Path

import nbformat

PARAMETERS = """\
profile = "quick"  # which set of settings
out_dir = "reports/quick"  # where reports go
artifacts_dir = "data/artifacts"  # where trained things are kept
interactive = True  # draw widgets
seed = 0  # of everything random; 0..1000000
epochs = 3  # passes over the data; 1..100
rate = 0.5  # learning rate; 0..1
teacher = "shipped"  # where it comes from; one of shipped|train
seeds = "0,1,2"  # seeds of the repeats; list of 0..9
quiet = False  # say less"""


NEEDS = {"30_classification_kd": ["20_gan_fid"], "90_summary": ["*"]}


def write_notebooks(
    folder: Path, notebooks: dict[str, list[str]], parameters: str = PARAMETERS
) -> Path:
    folder.mkdir(exist_ok=True)
    for name, sources in notebooks.items():
        cells = [
            nbformat.v4.new_markdown_cell(f"# About {name}\n\n$\\frac{{a}}{{b}}$"),
            nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
            *map(nbformat.v4.new_code_cell, sources),
        ]
        about = {"title": f"About {name}", "needs": NEEDS.get(name, []), "headline": []}
        notebook = nbformat.v4.new_notebook(cells=cells, metadata={"dfkd": about})
        nbformat.write(notebook, folder / f"{name}.ipynb")
    return folder
