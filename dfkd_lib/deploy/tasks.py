"""What the deployment of a classifier and of a detector do not share: images, scores, where the student comes from."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfkd_lib import presets
from dfkd_lib.core import WorkbenchError
from dfkd_lib.core.artifacts import Artifact, Store, resolve
from dfkd_lib.datasets import ImageSet, SceneConfig, to_float
from dfkd_lib.datasets.frames import FILL
from dfkd_lib.datasets.scenes import SceneSet
from dfkd_lib.deploy.export import check_export
from dfkd_lib.detection import DetectionStudy, load_detector
from dfkd_lib.distill import Study
from dfkd_lib.metrics import average_precision
from dfkd_lib.models import create_detector, create_model, detector_names
from dfkd_lib.synthesis import open_images
from dfkd_lib.training import check_fit, load_trained


@dataclass(frozen=True)
class Task:
    """One kind of student.

    Args:
        measures: names of its scores in [0, 1], the one that is plotted first.
        classes: an artifact's class names.
        load: artifact, test set → frozen model on the processor.
        prepare: uint8 images (N, C, H, W) → what the model wants; the same as pixels × scale + offset.
        score: outputs and the test set → {measure: value}.
        calibration: store, student, count, test set → uint8 images of no data set, like those it learned
            from.
        script: of the package.
        preprocess: more for its preprocess.json.
    """

    kind: str
    measures: tuple[str, ...]
    classes: Callable[[Artifact], list[str]]
    load: Callable[[Artifact, ImageSet | SceneSet], nn.Module]
    prepare: Callable[[Tensor], Tensor]
    score: Callable[[tuple[Tensor, ...], ImageSet | SceneSet], dict[str, float]]
    calibration: Callable[[Store, Artifact, int, ImageSet | SceneSet], Tensor]
    script: str
    preprocess: dict


def task_of(test_set: ImageSet | SceneSet) -> Task:
    """Detection for scenes with boxes, classification for images with labels."""
    return DETECTION if isinstance(test_set, SceneSet) else CLASSIFICATION


def check_exportable(name: str, classes: int, shape: tuple[int, int, int] = (3, 64, 64)) -> float:
    """`check_export` of an untrained model by name, to be asked before it is trained; changes no random state.

    Args:
        name: for `create_model` or `create_detector`.
        shape: (C, H, W); a detector's operators are the same at any size.

    Raises:
        WorkbenchError: on an unknown name, or if the model cannot be exported as it is; says what stands in the way.
    """
    with torch.random.fork_rng(devices=[]):
        model = (
            create_detector(name, classes)
            if name in detector_names()
            else create_model(name, num_classes=classes, img_size=shape[1], in_chans=shape[0])
        )
        return check_export(model, shape)


def find_student(
    store: Store, out_dir: str | Path, profile: str, kind: str = "classification"
) -> Artifact:
    """The student of notebook 30's (classification: that on synthetic images) or 40's (detection) report in `out_dir`;
    the profile's own one (made) if none is.

    Raises:
        WorkbenchError: on an unknown profile or kind.
    """
    if kind not in FOUND:
        raise WorkbenchError(
            "no such kind of student",
            expected=", ".join(FOUND),
            got=kind,
            where="students",
            fix="choose one of them",
        )
    notebook, metric, make = FOUND[kind]
    report = resolve(out_dir) / "metrics" / f"{notebook}.json"
    if report.is_file():
        found = store.find(json.loads(report.read_text())["metrics"].get(metric) or "none")
        if found is not None:
            return found
    return make(profile, store)


FOUND = {  # kind: (notebook, its metric that names the student, how the student of its parameters is made)
    "classification": (
        "30_classification_kd",
        "student_synthetic_key",
        lambda preset, store: Study(store, presets.of_preset("classification", preset)).student(
            "synthetic"
        ),
    ),
    "detection": (
        "40_detection_kd",
        "student_key",
        lambda preset, store: DetectionStudy(store, presets.of_preset("detection", preset)).student(
            "synthetic"
        ),
    ),
}


def scenes_of(student: Artifact) -> SceneSet:
    """The test scenes that a detection student was measured on, from its own record.

    Raises:
        WorkbenchError: if they are no longer the same, or no longer there.
    """
    recorded = student.settings["test"]
    if "generated" in recorded:
        own = {"test_scenes": recorded["count"], "size": recorded["size"], "seed": recorded["seed"]}
    else:
        own = {name: value for name, value in recorded.items() if name != "scenes"}
    test = SceneConfig(**own).scenes("test")
    if test.identity != recorded:
        raise WorkbenchError(
            "the test scenes have changed since the student was made",
            expected=recorded["scenes"],
            got=test.identity["scenes"],
            where=own.get("name", "generated scenes"),
            fix="run notebook 40 again",
        )
    return test.load()


def parent_of(
    store: Store, artifact: Artifact, wanted: Callable[[Artifact], bool]
) -> Artifact | None:
    """The artifact's first parent of that kind in the store, or None."""
    parents = (store.find(key) for key in artifact.parents)
    return next((parent for parent in parents if parent is not None and wanted(parent)), None)


def _synthetic_images(store: Store, student: Artifact, count: int, test_set: ImageSet) -> Tensor:
    drawn = parent_of(store, student, lambda parent: parent.stage == "synthetic")
    if drawn is None:
        raise WorkbenchError(
            "there are no synthetic images to calibrate with",
            where=student.path,
            expected="a student made from an artifact of stage synthetic",
            got=", ".join(student.parents) or "no parents",
            fix="give a student of synthetic images",
        )
    return _some(open_images(drawn).images, count)


def _synthetic_scenes(store: Store, student: Artifact, count: int, test_set: SceneSet) -> Tensor:
    """Of the scenes that were drawn for the student; generated scenes of no data set if it learned from others."""
    shape = test_set.pixels.shape[2:]
    drawn = parent_of(store, student, lambda parent: (parent.path / "scenes.safetensors").is_file())
    if drawn is not None:
        pixels = _some(drawn.tensors("scenes.safetensors")["pixels"], count)
    else:
        pixels = SceneConfig(size=max(shape), train_scenes=count).scenes("synthetic").load().images
    return (
        pixels
        if pixels.shape[2:] == shape
        else F.interpolate(pixels.float(), shape, mode="area").to(torch.uint8)
    )


def _some(pixels: Tensor, count: int) -> Tensor:
    return pixels[torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))[:count]]


def _accuracy(outputs: tuple[Tensor], test_set: ImageSet) -> dict[str, float]:
    return {"accuracy": float((outputs[0].argmax(1) == test_set.labels).double().mean())}


def _precision(outputs: tuple[Tensor, Tensor], test_set: SceneSet) -> dict[str, float]:
    found = average_precision(test_set, outputs[0].sigmoid()[..., :-1], outputs[1])
    return {name: found[name] for name in ("AP50", "AP")}


def _classifier(artifact: Artifact, test_set: ImageSet) -> nn.Module:
    model = load_trained(artifact)
    check_fit(model, test_set, f"{artifact.stage} {artifact.settings['model']}")
    return model.cpu()


CLASSIFICATION = Task(
    "classification",
    ("accuracy",),
    lambda artifact: artifact.settings.get("classes"),
    _classifier,
    to_float,
    _accuracy,
    _synthetic_images,
    "predict.py",
    {"scale": 1 / 127.5, "offset": -1.0},
)
DETECTION = Task(
    "detection",
    ("AP50", "AP"),
    lambda artifact: artifact.metrics.get("classes"),
    lambda artifact, test_set: load_detector(artifact).cpu(),
    lambda pixels: pixels.float() / 255,
    _precision,
    _synthetic_scenes,
    "predict_detection.py",
    {"scale": 1 / 255, "offset": 0.0, "fill": list(FILL)},
)
