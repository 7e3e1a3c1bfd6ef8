"""The folder that runs without PyTorch: made, copied, and run as a user would run it."""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert

from dfkd_lib.core import Artifact, WorkbenchError, resolve, save_json
from dfkd_lib.deploy.tasks import Classification

SIZES = """
A detector finds what fills about as much of its input as the objects it was trained on: cut a large photograph of small
objects into overlapping windows first.
"""


def pack(folder: Path, model: Path, task: Classification, student: Artifact) -> None:
    """Write the folder that labels images, or finds objects in them, with onnxruntime, numpy and pillow alone."""
    folder.mkdir(exist_ok=True)
    shutil.copyfile(model, folder / "model.onnx")
    for name in ("predict.py", "example.py"):
        shutil.copyfile(Path(__file__).with_name(name), folder / name)
    shape = dict(zip(("channels", "height", "width"), task.test.images.shape[1:], strict=True))
    save_json(folder / "labels.json", list(task.test.classes))
    save_json(folder / "preprocess.json", {**shape, **task.preprocessing(student)})
    text = Path(__file__).with_name("readme.txt").read_text(encoding="utf-8")
    text = text.format(kind=task.kind, **shape) + (SIZES if "fill" in task.preprocess else "")
    (folder / "README.txt").write_text(text, encoding="utf-8")


def copy_package(deployed: Artifact, folder: str | Path) -> Path:
    """Copy the package out of the store; returns its folder."""
    folder = resolve(folder)
    shutil.copytree(deployed.path / "package", folder, dirs_exist_ok=True)
    return folder


def predict_with(package: str | Path, images: Tensor, *options: str) -> list[list[list[str]]]:
    """What the package's own script prints of uint8 images (N, C, H, W), written as PNG: for each image its lines, each
    [label, probability], or [label, score, x0, y0, x1, y1] of an object found; WorkbenchError if the script fails."""
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
    found, size = [], np.array(images.shape[:1:-1] * 2)  # width, height, width, height
    for lines in predict_with(package, images, "--threshold", str(threshold)):
        places = [[float(place) for place in line[2:]] for line in lines]
        corners = torch.tensor(places, dtype=torch.float64).reshape(len(lines), 4)
        boxes = box_convert(corners, "xyxy", "cxcywh").numpy() / size
        names, scores = [line[0] for line in lines], [line[1] for line in lines]
        found.append(
            {
                "boxes": boxes,
                "labels": np.array([labels.index(name) for name in names], int),
                "scores": np.array(scores, float),
            }
        )
    return found
