"""What a run's notebooks leave behind, for an experiment tracker: through its own library, offline unless the user says else."""

import base64
import importlib
import io
import json
import os
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from dfkd_lib.core import WorkbenchError, is_number, one_of, provenance
from dfkd_lib.reporting.results import metrics_of

PROJECT = "dfkd"
# Each is an extra of pyproject.toml too. What its users set stands: WANDB_MODE=online, TRACKIO_SPACE_ID=owner/name.
TRACKERS = ("trackio", "tensorboard", "wandb")


def check_tracker(name: str) -> None:
    """Raise WorkbenchError unless this is a tracker whose library is installed; imports nothing."""
    one_of("tracker", name, TRACKERS)
    if find_spec(name) is None:
        raise WorkbenchError(
            f"{name} is not installed",
            expected="the library of the tracker",
            where="--log",
            fix=f"run .venv/bin/pip install -e '.[{name}]'",
        )


def track(tracker: str, out: Path, notebook: str, result: dict) -> None:
    """Send a notebook's parameters, histories by epoch, metrics and figures to a tracker, as one run of its own.

    Args:
        tracker: one of TRACKERS, installed. out: the folder of the run. result: of the notebook, as in results.json.
    """
    metrics = dict(metrics_of(result["metrics"]))
    settings = {name: entry[0] for name, entry in result["settings"].items()}
    texts = {name: value for name, value in metrics.items() if isinstance(value, str)}
    about = {"status": result["status"], "commit": provenance.commit()}
    config = {**result["parameters"], **settings, **texts, **about}
    run = (_TensorBoard if tracker == "tensorboard" else _Logged)(tracker, out, notebook, config)
    for key, rows in _histories(result):
        run.history(key, [{k: v for k, v in row.items() if is_number(v)} for row in rows])
    for name in [name for name in metrics if name not in texts]:
        values = metrics[name]
        several = len(values) > 1  # one a seed
        run.values({f"metrics/{name}" + f"/{i}" * several: v for i, v in enumerate(values)})
    for name, png in _figures(out / f"{notebook}.ipynb"):
        run.figure(f"figures/{name}", png)
    run.end()


def _histories(result: dict) -> Iterator[tuple[str, list[dict]]]:
    """(key, one line an epoch) of every artifact of a notebook that was trained."""
    for artifact in result["artifacts"]:
        path = Path(result["parameters"]["artifacts_dir"]) / artifact["key"] / "history.json"
        if path.is_file():
            yield artifact["key"], json.loads(path.read_text())


def _figures(notebook: Path) -> Iterator[tuple[str, bytes]]:
    """(name, PNG) of every figure of an executed notebook."""
    cells = json.loads(notebook.read_text())["cells"] if notebook.is_file() else []
    for output in (output for cell in cells for output in cell.get("outputs", ())):
        about = output.get("metadata", {}).get("dfkd", {})
        png = output.get("data", {}).get("image/png")
        if about.get("kind") == "figures" and png:
            yield about["name"], base64.b64decode("".join(png))


def _picture(png: bytes):
    from PIL import Image

    return Image.open(io.BytesIO(png)).convert("RGB")


class _TensorBoard:
    """A folder of event files below `tensorboard` in the run's folder."""

    def __init__(self, _: str, out: Path, notebook: str, config: dict):
        from torch.utils.tensorboard import SummaryWriter

        folder = out / "tensorboard" / f"{notebook}-{time.strftime('%Y%m%d-%H%M%S')}"
        self.writer = SummaryWriter(str(folder))
        lines = (f"    {name} = {value}" for name, value in config.items())  # Markdown's code
        self.writer.add_text("parameters", "\n".join(lines))

    def history(self, name: str, rows: list[dict]) -> None:
        for row in rows:
            for key, value in row.items():
                self.writer.add_scalar(f"{name}/{key}", value, row["epoch"])

    def values(self, values: dict) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value)

    def figure(self, name: str, png: bytes) -> None:
        import numpy as np

        self.writer.add_image(name, np.asarray(_picture(png)), dataformats="HWC")

    def end(self) -> None:
        self.writer.close()


class _Logged:
    """A run of wandb, or of trackio, which has the same calls."""

    def __init__(self, library: str, out: Path, notebook: str, config: dict):
        os.environ.setdefault("WANDB_MODE", "offline")
        self.library = importlib.import_module(library)
        name, where = f"{out.name}/{notebook}", {"dir": str(out)} if library == "wandb" else {}
        self.run = self.library.init(
            project=PROJECT, group=out.name, name=name, config=config, **where
        )

    def history(self, name: str, rows: list[dict]) -> None:
        if hasattr(self.run, "define_metric"):  # else the horizontal axis counts calls
            self.run.define_metric(f"{name}/*", step_metric=f"{name}/epoch")
        for row in rows:
            self.values({f"{name}/{key}": value for key, value in row.items()})

    def values(self, values: dict) -> None:
        self.run.log(values)

    def figure(self, name: str, png: bytes) -> None:
        self.run.log({name: self.library.Image(_picture(png))})

    def end(self) -> None:
        self.run.finish()
