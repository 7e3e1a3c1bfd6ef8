"""What the deployment of a classifier and of a detector do not share: images, scores, where the student comes from."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfkd_lib import presets
from dfkd_lib.core import Artifact, Store, WorkbenchError
from dfkd_lib.datasets import FILL, SCENES, ImageSet, SceneConfig, SceneSet
from dfkd_lib.deploy.export import check_export
from dfkd_lib.detection import DetectionStudy, load_detector
from dfkd_lib.distill import Study
from dfkd_lib.metrics import average_precision
from dfkd_lib.models import create_detector, create_model, detector_names
from dfkd_lib.synthesis import open_images
from dfkd_lib.training import check_fit, load_trained


class Classification:
    """A classifier and labelled images that measure it."""

    kind = "classification"
    measures: tuple[str, ...] = ("accuracy",)  # in [0, 1], the one that is plotted first
    preprocess: dict = {"scale": 1 / 127.5, "offset": -1.0}

    def __init__(self, test: ImageSet | SceneSet):
        self.test = test

    def prepare(self, pixels: Tensor) -> Tensor:
        """uint8 images (N, C, H, W) as the model wants them."""
        return pixels.float() * self.preprocess["scale"] + self.preprocess["offset"]

    def preprocessing(self, student: Artifact) -> dict:
        """How an image file becomes what the student has learned from, as `predict.py` reads it."""
        return self.preprocess

    def classes(self, artifact: Artifact) -> list[str]:
        """The class names of such a model's artifact; a line in their place if it is of another kind."""
        return artifact.settings.get("classes") or ["none: it is of another kind"]

    def load(self, artifact: Artifact) -> nn.Module:
        """The frozen model on the processor."""
        model = load_trained(artifact)
        check_fit(model, self.test, f"{artifact.stage} {artifact.settings['model']}")
        return model.cpu()

    def score(self, outputs: tuple[Tensor, ...]) -> dict[str, float]:
        """Each of the measures."""
        return {"accuracy": float((outputs[0].argmax(1) == self.test.labels).double().mean())}

    def calibration(self, store: Store, student: Artifact, count: int) -> Tensor:
        """uint8 images of no data set, of those that the student learned from."""
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


class Detection(Classification):
    """A detector and scenes that measure it."""

    kind = "detection"
    measures = ("AP50", "AP")
    preprocess = {"scale": 1 / 255, "offset": 0.0, "fill": list(FILL)}

    def preprocessing(self, student: Artifact) -> dict:
        shortest = student.settings["test"].get("shortest")
        return {**self.preprocess, **({"shortest": shortest} if shortest else {})}

    def classes(self, artifact: Artifact) -> list[str]:
        return artifact.metrics.get("classes") or ["none: it is of another kind"]

    def load(self, artifact: Artifact) -> nn.Module:
        return load_detector(artifact).cpu()

    def score(self, outputs: tuple[Tensor, ...]) -> dict[str, float]:
        found = average_precision(self.test, outputs[0].sigmoid()[..., :-1], outputs[1])
        return {name: found[name] for name in self.measures}

    def calibration(self, store: Store, student: Artifact, count: int) -> Tensor:
        """Of the scenes that were drawn for the student; generated scenes of no data set if it learned from others."""
        shape = self.test.shape[1:]
        drawn = parent_of(store, student, lambda parent: (parent.path / SCENES).is_file())
        if drawn is not None:
            pixels = _some(drawn.tensors(SCENES)["pixels"], count)
        else:
            source = SceneConfig(size=max(shape), train_scenes=count)
            pixels = source.scenes("synthetic").load().images
        if pixels.shape[2:] == shape:
            return pixels
        return F.interpolate(pixels.float(), shape, mode="area").to(torch.uint8)


def task_of(test: ImageSet | SceneSet) -> Classification:
    """Detection for scenes with boxes, classification for images with labels."""
    return Detection(test) if isinstance(test, SceneSet) else Classification(test)


def _some(pixels: Tensor, count: int) -> Tensor:
    return pixels[torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))[:count]]


def check_exportable(name: str, classes: int, shape: tuple[int, int, int] = (3, 64, 64)) -> float:
    """`check_export` of an untrained model by name, to be asked before it is trained; changes no random state.

    Args:
        name: for `create_model` or `create_detector`.
        shape: (C, H, W); a detector's operators are the same at any size.
    """
    channels, side, _ = shape
    with torch.random.fork_rng(devices=[]):
        # Of some random weights tokens are so alike that chance says which become queries.
        torch.manual_seed(0)
        if name in detector_names():
            model = create_detector(name, classes)
        else:
            model = create_model(name, num_classes=classes, img_size=side, in_chans=channels)
        return check_export(model, shape)


# kind: (notebook, its metric that names the student, whose configuration makes one)
STUDENTS = {
    "classification": ("30_classification_kd", "student_synthetic_key", Study),
    "detection": ("40_detection_kd", "student_key", DetectionStudy),
}


def find_student(
    store: Store,
    places: Sequence[Path],
    profile: str,
    kind: str = "classification",
    fallback: bool = False,
) -> tuple[Artifact, str]:
    """The student of notebook 30's (classification: that on synthetic images) or 40's (detection) report; prints which.

    Args:
        places: folders of reports; the first whose report names a student that is in the store counts.
        fallback: where no report names one that is in the store, the profile's own student is made.

    Returns:
        The student, and in words what is missing where it is the profile's own; "" where a report names it.

    Raises:
        WorkbenchError: if no report names a student that is in the store, without `fallback`.
    """
    notebook, metric, study = STUDENTS[kind]
    reports = [Path(place) / "metrics" / f"{notebook}.json" for place in places]
    named = {
        report: json.loads(report.read_text())["metrics"].get(metric)
        for report in reports
        if report.is_file()
    }
    for key in named.values():
        if key and (found := store.find(key)) is not None:
            print(f"{kind}: the student of notebook {notebook}'s report, {key}")
            return found, ""
    report, key = next(iter(named.items()), (reports[0], None))
    config = presets.of_preset(kind, profile)
    error = WorkbenchError(
        f"there is no {kind} student to deploy",
        expected=f"a report of notebook {notebook}, and the student it names",
        got=f"{key}, which is not in {store.root}" if key else "no such report",
        where=report,
        fix=f"run notebook {notebook[:2]} first, with the same folders (dfkd run --only {notebook[:2]},70), leave it out "
        f"(students={'detection' if kind == 'classification' else 'classification'}), or have the preset's own "
        "student trained (fallback=True)",
    )
    if not fallback:
        raise error
    return study(store, config).student("synthetic"), (
        f"{error.what}, so the preset's own is: no report names one in {report.parent.parent}"
    )


def scenes_of(student: Artifact, folder: str = "") -> SceneSet:
    """The test scenes that a detection student was measured on, from its own record, or from where their folder lies now;
    WorkbenchError if they have changed."""
    recorded = student.settings["test"]
    if "generated" in recorded:
        own = {"test_scenes": recorded["count"], "size": recorded["size"], "seed": recorded["seed"]}
    else:
        own = {name: value for name, value in recorded.items() if name != "scenes"}
        own["name"] = folder or student.metrics.get("test_folder") or own.get("name", "")
    test = SceneConfig(**own).scenes("test")
    if test.identity != recorded:
        raise WorkbenchError(
            "the test scenes have changed since the student was made",
            expected=recorded["scenes"],
            got=test.identity["scenes"],
            where=own.get("name", "generated scenes"),
            fix="run notebook 40 again; if the folder was moved, give its place as scenes=FOLDER",
        )
    return test.load()


def parent_of(store: Store, artifact: Artifact, wanted: Callable) -> Artifact | None:
    """The artifact's first parent in the store of which `wanted(parent)` holds, or None."""
    parents = (store.find(key) for key in artifact.parents)
    return next((parent for parent in parents if parent is not None and wanted(parent)), None)


TEACHERS = ("teacher", "detection-teacher")  # stages of models trained without a teacher


def teacher_of(store: Store, student: Artifact) -> Artifact:
    """The teacher that a student learned from; WorkbenchError if the store no longer holds it."""
    teacher = parent_of(store, student, lambda parent: parent.stage in TEACHERS)
    if teacher is None or student.stage in TEACHERS:
        raise WorkbenchError(
            "the store has no teacher of the student to compare it with",
            expected="a distilled student, and its parent of stage teacher",
            got=f"a {student.stage} of {', '.join(student.parents) or 'no parents'}",
            where=student.path,
            fix="run the notebook that makes a distilled student, as synthetic, with this store",
        )
    return teacher
