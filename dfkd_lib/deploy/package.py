"""The folder that runs without PyTorch: made, copied, and run as a user would run it."""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from torch import Tensor

from dfkd_lib.core import WorkbenchError
from dfkd_lib.core.artifacts import Artifact, resolve, save_json
from dfkd_lib.datasets import ImageSet
from dfkd_lib.datasets.scenes import SceneSet
from dfkd_lib.deploy.tasks import Task

README = """This folder runs without PyTorch: with Python 3.10 or later, onnxruntime, numpy and pillow.

    pip install onnxruntime numpy pillow
    python predict.py image.png [more.png ...]

model.onnx       {kind}, one input "images": float32 (batch, {channels}, {height}, {width})
labels.json      names of the classes, in the order of the model's outputs
preprocess.json  how an image's pixels (0-255) become that input: resized, then pixels * scale + offset
predict.py       an example to copy from; `python predict.py --help` says what it prints
"""
SIZES = """
A detector finds what fills about as much of its input as the objects it was trained on: cut a large photograph of small
objects into overlapping windows first.
"""


def pack(folder: Path, model: Path, task: Task, test_set: ImageSet | SceneSet) -> None:
    """Write the folder that labels images, or finds objects in them, with onnxruntime, numpy and pillow alone."""
    folder.mkdir(exist_ok=True)
    shutil.copyfile(model, folder / "model.onnx")
    shutil.copyfile(Path(__file__).with_name(task.script), folder / "predict.py")
    shape = dict(zip(("channels", "height", "width"), test_set.images.shape[1:], strict=True))
    save_json(folder / "labels.json", list(test_set.classes))
    save_json(folder / "preprocess.json", {**shape, **task.preprocess})
    (folder / "README.txt").write_text(
        README.format(kind=task.kind, **shape) + (SIZES if task.kind == "detection" else ""),
        encoding="utf-8",
    )


def copy_package(deployed: Artifact, folder: str | Path) -> Path:
    """Copy the package out of the store; returns its folder."""
    folder = resolve(folder)
    shutil.copytree(deployed.path / "package", folder, dirs_exist_ok=True)
    return folder


def predict_with(package: str | Path, images: Tensor, *options: str) -> list[list[list[str]]]:
    """What the package's own script prints of uint8 images (N, C, H, W), written as PNG: for each image its lines, each
    [label, probability], or [label, score, x0, y0, x1, y1] of an object found.

    Raises:
        WorkbenchError: if the script fails; carries its message.
    """
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / f"{i}.png") for i in range(len(images))]
        for path, image in zip(paths, images, strict=True):
            Image.fromarray(image.permute(1, 2, 0).numpy().squeeze()).save(path)
        done = subprocess.run(
            [sys.executable, str(Path(package) / "predict.py"), *options, *paths],
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise WorkbenchError(
            "the package does not run",
            got=done.stderr[-400:],
            where=package,
            fix="install onnxruntime, numpy and pillow",
        )
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    return [[rest for name, *rest in lines if name == path] for path in paths]


def objects_found(
    package: str | Path, images: Tensor, threshold: float = 0.5
) -> list[dict[str, np.ndarray]]:
    """What a detector's package finds in each image, in the form of `detection.detections`."""
    labels = json.loads((Path(package) / "labels.json").read_text(encoding="utf-8"))
    height, width = images.shape[2:]
    found = []
    for lines in predict_with(package, images, "--threshold", str(threshold)):
        corners = np.array([line[2:] for line in lines], float).reshape(-1, 4) / [
            width,
            height,
            width,
            height,
        ]
        boxes = np.concatenate(
            [(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], axis=1
        )
        found.append(
            {
                "boxes": boxes,
                "labels": np.array([labels.index(line[0]) for line in lines], int),
                "scores": np.array([line[1] for line in lines], float),
            }
        )
    return found
