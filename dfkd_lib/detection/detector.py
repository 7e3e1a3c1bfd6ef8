"""Detectors in the store: trained by a step on scenes, measured on test scenes, opened again (METHODS A4)."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from dfkd_lib import training
from dfkd_lib.core import Artifact, Store, WorkbenchError, artifacts, ledger, processes, resolve
from dfkd_lib.datasets import FILL, Frames, Scenes, SceneSet, check_classes_agree, in_turn
from dfkd_lib.detection.aligned import QueryAligner, check_shareable
from dfkd_lib.detection.batches import SceneBatches
from dfkd_lib.detection.step import kept_answers
from dfkd_lib.metrics import THRESHOLD, average_precision, same_classes, sure
from dfkd_lib.models import (
    NARROW,
    Detector,
    count_parameters,
    create_detector,
    detector_names,
    pixel_mask,
)
from dfkd_lib.models.detectors import SPECS, known_classes
from dfkd_lib.training import Precision, TrainConfig

PREDICTIONS = "predictions.safetensors"
LAYER = re.compile(r"(encoder|decoder)\.layers\.(\d+)\.")
PIXELS = 4_000_000  # of a batch that is predicted
FOLDER = "data/teachers"  # of detectors that come with the workbench

Passes = Annotated[int, Field(ge=1, le=100_000, description="passes over its scenes")]
Name = Annotated[str, Field(description=f"one of {', '.join(detector_names())}")]


class DetectorConfig(TrainConfig):
    """A detector and its training; the defaults are DETR's where paper A names none."""

    model: Name = "detr_resnet50"
    epochs: Passes
    batch_size: int = Field(16, ge=1, le=65_536, description="scenes a step")
    lr: float = Field(1e-4, gt=0, le=1, description="peak learning rate of AdamW")
    weight_decay: float = Field(1e-4, ge=0, description="weight decay")
    warmup_epochs: float = Field(0.5, ge=0, description="epochs of linear warm-up")
    grad_clip: float | None = Field(1.0, gt=0, description="largest gradient norm, or none")
    precision: Precision = Field("bf16", description="arithmetic: fp32, or bf16 by autocast")
    augment: float | None = Field(
        1.0,
        ge=0,
        le=2,
        description="of scaling, shifting, change of light; 0: mirroring, none: not",
    )
    pretrained: bool = Field(
        False, description="start from published weights, if need be downloaded"
    )
    weights: str = Field(
        "", description="start from a .safetensors file or folder in transformers' format"
    )
    backbone_weights: str = Field(
        "", description="start the backbone from timm's .safetensors file"
    )


def train(
    store: Store,
    config: DetectorConfig,
    step: Callable[..., dict[str, Tensor]],
    scenes: Scenes | SceneSet | Artifact,
    test: Scenes,
    teacher: Artifact | None = None,
    seed: int | None = None,
    start: Artifact | None = None,
    empty: Scenes | None = None,
    shared: int | None = None,
) -> Artifact:
    """A detector trained by a step on scenes, measured after every epoch on test scenes that choose nothing.

    Args:
        step: `step(student, batch, teacher)` → {"loss": scalar to minimise, other names: scalars to log}; part of the key.
            `batch` is a `Batch`, without labels where scenes belong to no data set; `teacher(batch, attention)` gives `Queries`.
        scenes: what it learns from, named, in memory, or drawn by a generator.
        teacher: a detector's artifact to distil from; without it the detector is a teacher itself.
        seed: of weights, order, augmentation and dropout; config.seed by default.
        start: an artifact of such a detector, whose weights are the first.
        empty: scenes without objects; those that the detector fires on at the beginning of an epoch are learned in it.
        shared: the step is given an `aligner`, a `QueryAligner` with so many groups of general queries.

    Returns:
        Artifact with model.safetensors, history.json, predictions.safetensors; metrics of `save_detector`,
        "images_per_second", "train_scenes", where they apply "classes_kept" (`Detector.kept`), "inherited" (of `inherit`).

    Raises:
        WorkbenchError: if classes differ, nobody labels the scenes, queries cannot be shared, or the step is refused.
    """
    scenes, role = Scenes.of(scenes), "teacher" if teacher is None else "student"
    label, labelled = f"{role} {config.model}", scenes.split is not None
    run = config.training(**({} if seed is None else {"seed": seed}))
    _check(config.model, scenes, test, teacher, shared)
    inherits = getattr(config, "inherit", False) and teacher is not None and start is None
    files = (config.weights, config.backbone_weights)
    weights, backbone = (resolve(file) if file else None for file in files)
    more = {"empty": empty and empty.identity, "shared": shared, "inherit": inherits or None}
    settings = {
        **{name: config[name] for name in ("model", "augment", "pretrained")},
        "weights": {"artifact": start.key} if start else _identity(weights),
        **{"backbone_weights": _identity(backbone), "config": run.as_dict()},
        **{"labelled": labelled, "train": scenes.identity, "test": test.identity},
        **{name: value for name, value in more.items() if value is not None},
    }
    reads = {test.split: ledger.EVALUATION, **({scenes.split: "training"} if labelled else {})}

    def make(work: Path) -> dict:
        torch.manual_seed(run.seed)
        first = start.path / "model.safetensors" if start else weights
        own = config.pretrained, first, backbone, test.classes
        detector = create_detector(config.model, len(test.classes), *own)
        inherited = {"inherited": inherit(detector, load_detector(teacher))} if inherits else {}
        batches = _batches(detector, scenes, config, labelled, empty)
        asked = teacher and load_detector(teacher)
        return inherited | _fitted(work, detector, step, asked, shared, batches, run, test, label)

    parents, code = [*filter(None, (teacher, scenes.parent, start))], [SPECS.get(config.model)]
    return store.get_or_make(f"detection-{role}", settings, make, parents, reads, code=code)


def inherit(student: Detector, teacher: Detector) -> bool:
    """Let a student start as its teacher in all but the backbone: queries, encoder, decoder and heads; of more layers than it
    has, the first, the last and those evenly between (after DistilBERT, Sanh et al. 2019). Whether it does: only where all of
    them have the same shape."""
    own, theirs = student.state_dict(), teacher.state_dict()

    def layers(names: dict, part: str) -> int:
        return len({found[2] for found in map(LAYER.search, names) if found and found[1] == part})

    def source(found: re.Match) -> str:
        count, others = (layers(names, found[1]) for names in (own, theirs))
        return f"{found[1]}.layers.{round(int(found[2]) * (others - 1) / max(count - 1, 1))}."

    kept = [name for name in own if "backbone" not in name and "input_projection" not in name]
    taken = {name: theirs.get(LAYER.sub(source, name)) for name in kept}
    fits = all(one is not None and one.shape == own[name].shape for name, one in taken.items())
    if fits:
        student.load_state_dict(taken, strict=False)
    return fits


def _batches(
    detector: Detector, scenes: Scenes, config: DetectorConfig, labelled: bool, empty: Scenes | None
) -> SceneBatches:
    """What a detector learns, with the empty scenes that it fires on itself."""
    ground = empty and empty.load()

    def fires() -> Tensor:
        # All processes must take the same scenes, and one that rounds otherwise would order them otherwise.
        return processes.from_main(lambda: predict(detector, ground.images)[0].amax((1, 2)))

    sizes = config.batch_size, config.augment
    return SceneBatches(scenes.load(), *sizes, labelled, ground, fires)


def _fitted(
    work: Path,
    detector: Detector,
    step: Callable,
    teacher: Detector | None,
    shared: int | None,
    batches: SceneBatches,
    config: TrainConfig,
    scenes: Scenes,
    label: str,
) -> dict:
    """Train a detector and what is trained beside it, write its files into `work`, return its metrics."""
    modules: dict[str, Any] = {"detector": detector}
    if teacher and shared is not None:
        modules["aligner"] = QueryAligner(detector, teacher, shared)
    answer = teacher and kept_answers(teacher, batches, config.epochs)
    test, kept = scenes.load(), detector.kept
    if kept is not None and processes.is_main():
        print(f"{label} starts with the rows of {', '.join(kept) or 'no class'} in its head")

    def measured(epoch: int) -> dict[str, float]:
        measures = average_precision(test, *predict(detector, test.images))
        return {name: value for name, value in measures.items() if name != "per_class"}

    saved = work / "checkpoint"
    history = training.fit(
        modules,
        training.bound(step, detector, answer, modules),
        batches,
        config,
        checkpoint=saved,
        evaluate=measured,
        label=f"detection {label}",
    )
    speed = {"images_per_second": history[-1]["images_per_second"]}
    metrics = save_detector(work, detector, test, history)
    own = {"train_scenes": len(batches.images), "test_folder": scenes.folder}
    return {**metrics, **own, **speed, **({} if kept is None else {"classes_kept": list(kept)})}


def _check(
    model: str, scenes: Scenes, test: Scenes, teacher: Artifact | None, shared: int | None
) -> None:
    """Raise unless the scenes are labelled by somebody, all name the classes of the test scenes, in their order, and queries
    that are to be shared can be."""
    if shared is not None:
        check_shareable(*([teacher.settings["model"]] if teacher else []), model)
    if scenes.split is None and teacher is None:
        raise WorkbenchError(
            "scenes of no data set carry no labels",
            expected="a teacher to label them",
            got="none",
            where=f"detector {model}",
            fix="give teacher=, or train on labelled scenes",
        )
    who = "the drawn scenes" if scenes.parent else "the training scenes"
    check_classes_agree(test.classes, scenes.classes, f"the test scenes and {who}")
    if teacher is not None:
        known = teacher.metrics["classes"]
        check_classes_agree(known, test.classes, "the teacher and the test scenes")


def _identity(path: Path | None) -> str | None:
    """A hash of a weights file, or of the weights in a folder of transformers' format, and the classes that it names."""
    if path is None:
        return None
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise WorkbenchError(
            "the weights to start from are missing",
            where=path,
            expected="a .safetensors file, or a folder with one",
            fix="check the path",
        )
    hashes, known = " ".join(artifacts.file_hash(file) for file in files), known_classes(path)
    return f"{hashes} of {', '.join(known)}" if known else hashes


def check_weights(config: DetectorConfig, classes: Sequence[str]) -> None:
    """WorkbenchError if what a detector of these classes is to start from is missing or does not fit it; published weights
    are downloaded for it. Changes no random state."""
    files = [resolve(file) if file else None for file in (config.weights, config.backbone_weights)]
    for file in files:
        _identity(file)
    if config.pretrained or any(files):
        with torch.random.fork_rng(devices=[]):
            create_detector(config.model, len(classes), config.pretrained, *files, classes)


def save_detector(work: Path, detector: Detector, test: SceneSet, history: list[dict]) -> dict:
    """Measure a finished detector and write its files into `work`; returns metrics as of `save_predictions`."""
    artifacts.save_tensors(work / "model.safetensors", detector.state_dict())
    artifacts.save_json(work / "history.json", history)
    return save_predictions(work, detector, test, *predict(detector, test.images))


def save_predictions(
    work: Path, detector: Detector, test: SceneSet, scores: Tensor, boxes: Tensor
) -> dict:
    """Write a detector's predictions; returns metrics as of `average_precision`, "parameters", "classes", "test_scenes"."""
    artifacts.save_tensors(work / PREDICTIONS, {"scores": scores, "boxes": boxes})
    return {
        **average_precision(test, scores, boxes, by_size=True),
        "parameters": count_parameters(detector),
        "classes": list(test.classes),
        "test_scenes": len(test),
    }


def load_detector(artifact: Artifact) -> Detector:
    """The detector of an artifact, frozen, in evaluation mode, on the training device; `classes` names its classes."""
    weights, classes = artifact.path / "model.safetensors", artifact.metrics["classes"]
    return _named(
        create_detector(artifact.settings["model"], len(classes), weights=weights), classes
    )


def _named(detector: Detector, classes: Sequence[str]) -> Detector:
    """A finished detector, frozen, with the names of its classes."""
    detector.classes = tuple(classes)
    return training.frozen(detector)


def predictions(artifact: Artifact) -> tuple[Tensor, Tensor]:
    """The artifact's predictions on the test scenes, from disk: scores (N, Q, classes), boxes (N, Q, 4)."""
    saved = artifact.tensors(PREDICTIONS)
    return saved["scores"], saved["boxes"]


@torch.no_grad()
def predict(detector: Detector, images: Tensor | Frames) -> tuple[Tensor, Tensor]:
    """Scores (N, Q, classes) in [0, 1] and boxes (N, Q, 4) of uint8 images (N, 3, H, W), on the CPU, in eval mode.

    A DETR, which masks what fills a frame up to an image, is given frames of one size together, without it.
    """
    was_training, target = detector.training, training.device()
    detector.eval().to(target)
    whole = torch.tensor(images.shape[2:])
    sizes = frame_sizes(images) if type(detector) is Detector else whole.expand(len(images), 2)
    alike, of = sizes.unique(dim=0, return_inverse=True)
    chunks = [
        rows
        for group, size in enumerate(alike)
        for rows in (of == group).nonzero().flatten().split(max(1, PIXELS // int(size.prod())))
    ]
    scores = torch.zeros(len(images), detector.num_queries, detector.num_labels)
    boxes = torch.zeros(len(images), detector.num_queries, 4)
    for rows, batch in zip(chunks, in_turn(images, chunks), strict=True):
        high, wide = sizes[rows[0]]
        found = detector(batch[..., :high, :wide].to(target).float() / 255)
        scores[rows] = found.logits.sigmoid()[..., :-1].cpu()
        boxes[rows] = found.boxes.cpu() * (sizes[rows[0]] / whole).flip(0).repeat(2)
    detector.train(was_training)
    return scores, boxes


def frame_sizes(images: Tensor | Frames) -> Tensor:
    """Height and width (N, 2) in pixels of frames that may be filled up at right and bottom to uint8 images (N, 3, H, W)."""
    whole = torch.tensor(images.shape[2:])
    if isinstance(images, Frames):
        sizes = torch.tensor([view.size[::-1] for view in images.views])
        return sizes.where(sizes >= whole.clamp(max=NARROW), whole)  # as `pixel_mask` has it
    sizes = whole.repeat(len(images), 1)
    fill = torch.tensor(FILL, dtype=torch.uint8).view(3, 1)
    ends = (images[:, :, -1] == fill).all(2).all(1) | (images[..., -1] == fill).all(2).all(1)
    for rows in ends.nonzero().flatten().split(64):
        frame = pixel_mask(images[rows].float() / 255)[1]
        found = (frame[:, 2:].flip(1) * sizes[rows]).round().long()
        sizes[rows] = found.where((frame[:, :2] == 0).all(1, keepdim=True), sizes[rows])
    return sizes


def detections(detector: Detector, scenes: SceneSet, threshold: float = THRESHOLD) -> list[dict]:
    """What a detector finds in each scene, as `sure` gives it; WorkbenchError if it has not the scenes' classes."""
    same_classes(detector.classes or detector.num_labels, scenes, "the detector")
    found = zip(*predict(detector, scenes.images), strict=True)
    return [sure(scores, boxes, threshold) for scores, boxes in found]


def ship_detector(artifact: Artifact, name: str, command: str, folder: str | Path = FOLDER) -> Path:
    """Write a detector's weights and its record to `folder`; returns the weights' path."""
    known = {"settings": artifact.settings, "metrics": artifact.metrics}
    return training.write_shipped(artifact, name, command, folder, **known)


def shipped_detector(
    store: Store, name: str, test: Scenes, folder: str | Path = FOLDER
) -> Artifact:
    """A detector that `ship_detector` wrote, measured on test scenes and put in the store.

    Raises:
        WorkbenchError: if a file is missing or damaged, or the detector knows other classes than the scenes have.
    """
    weights, record = training.read_shipped(name, folder)
    model, known = record["model"], record["metrics"]["classes"]
    check_classes_agree(known, test.classes, f"{weights.name} and the test scenes")
    settings = {"model": model, "record": record["settings"], "test": test.identity}
    settings["shipped"] = artifacts.file_hash(weights)

    def make(work: Path) -> dict:
        detector = create_detector(model, len(known), weights=weights)
        metrics = save_detector(work, detector, test.load(), record["history"])
        return {**metrics, "train_scenes": record["metrics"]["train_scenes"], "shipped": name}

    reads = {test.split: ledger.EVALUATION}
    more = {"inherited": record["ledger"], "code": [SPECS.get(model)]}
    return store.get_or_make("detection-teacher", settings, make, reads=reads, **more)


def open_shipped(name: str, folder: str | Path = FOLDER) -> Detector:
    """A shipped detector by itself, frozen, on the training device; it is neither measured nor put in a store."""
    weights, record = training.read_shipped(name, folder)
    classes = record["metrics"]["classes"]
    return _named(create_detector(record["model"], len(classes), weights=weights), classes)
