"""Detectors in the store: a teacher trained on labelled scenes, students distilled from it (METHODS A4)."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from dfkd_lib import training
from dfkd_lib.attention import capture_attention, patch_grid
from dfkd_lib.core import WorkbenchError, artifacts, ledger
from dfkd_lib.core.artifacts import Artifact, Store
from dfkd_lib.datasets.scenes import SceneSet
from dfkd_lib.detection.batches import SceneBatches, open_scenes
from dfkd_lib.detection.evaluate import THRESHOLD, average_precision, predict, sure
from dfkd_lib.detection.matching import PAIRINGS, paired_queries
from dfkd_lib.detection.source import SceneSource
from dfkd_lib.losses.detection import (
    TeacherTargets,
    attention_distillation_loss,
    box_distillation_loss,
    detection_losses,
    objectness,
)
from dfkd_lib.models.create import count_parameters
from dfkd_lib.models.detectors import SPECS, Detections, Detector, create_detector

PREDICTIONS = "predictions.safetensors"


@dataclass(frozen=True)
class DetectionTerms:
    """Weights of the named losses (≥ 0), the temperature T (> 0) of eq. 14, and the pairing of predictions and objects.

    Smooth L1 of coordinates in [0, 1] is quadratic and small, which is why its weight is large. giou is DETR's term and
    0 in the paper: from nothing and in a few minutes it makes the difference, so it is on by default.
    distillation, box_distillation, attention_distillation: towards the logits, box and last cross-attention of the
    teacher's query paired with the student's. pairing: "hungarian" (DETR's own) or "expanded" (the paper's).
    """

    classification: float = 2.0
    boxes: float = 100.0
    giou: float = 2.0
    distillation: float = 1.0
    temperature: float = 2.0
    pairing: str = "hungarian"
    box_distillation: float = 0.0
    attention_distillation: float = 0.0

    def __post_init__(self):
        weights = (
            self.classification,
            self.boxes,
            self.giou,
            self.distillation,
            self.box_distillation,
            self.attention_distillation,
        )
        if (
            min(weights) < 0
            or max(weights) == 0
            or not self.temperature > 0
            or self.pairing not in PAIRINGS
        ):
            raise WorkbenchError(
                "impossible terms of the detection loss",
                got=str(self),
                where="DetectionTerms",
                expected=f"weights >= 0, not all 0; temperature > 0; pairing {' or '.join(PAIRINGS)}",
                fix="correct the value that is out of range",
            )

    def losses(
        self,
        found: Detections,
        labels: Tensor,
        target_boxes: Tensor,
        said: Detections | None = None,
        maps: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted total over all decoder layers (deep supervision), and the last layer's named losses.

        Args:
            found: the student's. labels (B, M), target_boxes (B, M, 4): padded objects. said: the teacher's, or None.
            maps: cross-attention of both in the last layer, (B, Q, h, w), where attention is distilled.
        """
        logits, boxes = (
            torch.stack(parts) for parts in zip(*found.earlier, found[:2], strict=True)
        )
        layers, rows = len(logits), (logits.flatten(0, 1), boxes.flatten(0, 1))
        targets = PAIRINGS[self.pairing](
            *rows, labels.repeat(layers, 1), target_boxes.repeat(layers, 1, 1)
        )
        taught, more = (None, {}) if said is None else self._taught(logits, boxes, said, maps)
        named = detection_losses(
            logits,
            boxes,
            *(t.unflatten(0, (layers, -1)) for t in targets),
            taught,
            self.temperature,
        )
        named |= more
        return sum(getattr(self, name) * value.sum() for name, value in named.items()), {
            name: value[-1] for name, value in named.items()
        }

    def _taught(
        self, logits: Tensor, boxes: Tensor, said: Detections, maps: tuple[Tensor, Tensor] | None
    ):
        """What the teacher says to each query of every layer, and the losses beyond the paper's that weigh anything."""
        layers = len(logits)
        every = (part.repeat(layers, 1, 1) for part in said[:2])
        query = paired_queries(logits.flatten(0, 1), boxes.flatten(0, 1), *every).unflatten(
            0, (layers, -1)
        )
        scene, paired, index = (
            torch.arange(query.shape[1], device=query.device)[:, None],
            query >= 0,
            query.clamp(min=0),
        )
        taught = TeacherTargets(said.logits[scene, index], said.boxes[scene, index], paired)
        sure, more = torch.where(paired, objectness(taught.logits), 0.0), {}
        if self.box_distillation:
            more["box_distillation"] = box_distillation_loss(boxes, taught.boxes, sure)
        if self.attention_distillation:
            its = maps[1][scene, index[-1]]
            more["attention_distillation"] = attention_distillation_loss(maps[0], its, sure[-1])[
                None
            ]
        return taught, more


def confident(found: Detections, threshold: float = THRESHOLD) -> tuple[Tensor, Tensor]:
    """A detector's own detections as padded objects, best first: labels (B, Q), -1 for none, boxes (B, Q, 4)."""
    score, label = found.logits.sigmoid()[..., :-1].max(dim=-1)
    order = score.argsort(dim=1, descending=True)
    label = torch.where(score >= threshold, label, -1).gather(1, order)
    return label, found.boxes.gather(1, order[..., None].expand(-1, -1, 4))


def detection_step(
    detector: Detector, terms: DetectionTerms, teacher: Detector | None = None, truth: bool = True
) -> Callable:
    """A step for `training.fit`: every decoder layer answers for the objects (deep supervision), the last is logged.

    Args:
        teacher: frozen; adds eq. 14 against its logits, and what else of it the terms distil. truth: False takes the
            objects from the teacher's own confident detections in place of the labels.
    """
    looking = teacher is not None and terms.attention_distillation > 0

    def step(batch: tuple[Tensor, Tensor, Tensor], progress: float) -> dict[str, Tensor]:
        images, labels, boxes = batch
        (found, mine), said, its = _looked(detector, images, looking, earlier=True), None, None
        if teacher is not None:
            with torch.inference_mode():
                said, its = _looked(teacher, images, looking)
            if not truth:
                labels, boxes = confident(said)
        total, logged = terms.losses(found, labels, boxes, said, (mine, its) if looking else None)
        return {"loss": total, **logged}

    return step


def _looked(
    detector: Detector, images: Tensor, looking: bool, earlier: bool = False
) -> tuple[Detections, Tensor | None]:
    """What a detector says and, if wanted, its last cross-attention (B, Q, h, w), heads averaged."""
    if not looking:
        return detector(images, earlier), None
    with capture_attention(detector.network, (-1,), token=None, kind="cross") as maps:
        found = detector(images, earlier)
    seen = maps[-1].mean(1)
    return found, seen.unflatten(
        -1, patch_grid(detector.network, seen.shape[-1], *images.shape[-2:])
    )


def train_detector(
    store: Store,
    name: str,
    source: SceneSource,
    config: training.TrainConfig,
    terms: DetectionTerms = DetectionTerms(),
    teacher: Artifact | None = None,
    scenes: str | Artifact = "train",
    augment: float = 0.0,
    pretrained: bool = False,
    weights: str | Path | Artifact | None = None,
    backbone_weights: str | Path | None = None,
) -> Artifact:
    """Train a detector on scenes and keep it with its history, its measures and its detections on the test scenes.

    Args:
        name: for `create_detector`; its weights start from config.seed, or from pretrained / weights / backbone_weights
            (see there), or from those of an artifact of such a detector, which then is a parent.
        source: train, test and synthetic scenes. terms: losses and pairing.
        teacher: a detector's artifact to distil from; without it the detector is a teacher itself.
        scenes: "train", labelled scenes; or "synthetic", scenes of no data set whose labels are not read: the teacher's
            detections stand in for them, and the stage may read no training split. So it is with an artifact that keeps
            scenes (see `open_scenes`), which becomes a parent.
        augment: strength of scaling, shifting and change of light beside mirroring, see `batches.augmented`.

    Returns:
        Artifact with model.safetensors, history.json (test measures after every epoch), predictions.safetensors;
        metrics as of `evaluate_ap` (last epoch), "parameters", "images_per_second", "train_scenes", "classes".

    Raises:
        WorkbenchError: before training, if teacher and scenes do not name the same classes, or a teacher is wanting.
    """
    labelled, drawn = scenes == "train", isinstance(scenes, Artifact)
    if not labelled and teacher is None:
        raise WorkbenchError(
            "synthetic scenes carry no labels here",
            expected="a teacher to label them",
            got="none",
            where=f"detector {name}",
            fix="give teacher=, or train on scenes='train'",
        )
    stage = "detection-teacher" if teacher is None else "detection-student"
    test = source.load("test")
    _same_classes(test.classes, source, teacher, scenes)
    settings = {
        "model": name,
        "config": config.as_dict(),
        "terms": asdict(terms),
        "scenes": "synthetic" if drawn else scenes,
        "augment": augment,
        "train": {"artifact": scenes.key} if drawn else source.identity(scenes),
        "test": source.identity("test"),
        "pretrained": pretrained,
        "weights": _identity(weights),
    }
    if backbone_weights is not None:
        settings["backbone_weights"] = _identity(backbone_weights)
    reads = {test.split: ledger.EVALUATION}
    if labelled:
        reads[source.load("train").split if source.data != "scenes" else "aerial/train"] = (
            "training"
        )

    def make(work: Path) -> dict:
        torch.manual_seed(config.seed)
        start = weights.path / "model.safetensors" if isinstance(weights, Artifact) else weights
        detector = create_detector(name, len(test.classes), pretrained, start, backbone_weights)
        taught = None if teacher is None else load_detector(teacher)
        step = detection_step(detector, terms, taught, truth=labelled)
        batches = SceneBatches(
            open_scenes(scenes) if drawn else source.load(scenes), config.batch_size, augment
        )
        label = f"{stage} {name} on {'drawn scenes' if drawn else scenes}"
        history = training.fit(
            {"detector": detector},
            step,
            batches,
            config,
            checkpoint=work / "checkpoint",
            evaluate=lambda epoch: _measured(detector, test),
            label=label,
        )
        return {
            **keep_detector(work, detector, test, history),
            "train_scenes": len(batches.images),
            "images_per_second": history[-1]["images_per_second"],
        }

    parents = [a for a in (teacher, scenes, weights) if isinstance(a, Artifact)]
    code = [SPECS.get(name), PAIRINGS[terms.pairing]]
    return store.get_or_make(stage, settings, make, parents, reads, code=code)


def _same_classes(
    classes: tuple[str, ...], source: SceneSource, teacher: Artifact | None, scenes: str | Artifact
) -> None:
    """Raise unless all who name classes name those of the test scenes, in their order."""
    said = {"the teacher": teacher.metrics["classes"]} if teacher else {}
    if isinstance(scenes, Artifact):
        said["the drawn scenes"] = scenes.settings.get("classes")
    elif scenes == "train" and source.data != "scenes":
        said["the training scenes"] = source.load("train").classes
    for who, names in said.items():
        if tuple(names or ()) != tuple(classes):
            raise WorkbenchError(
                f"{who} and the test scenes do not name the same classes",
                where=source.data,
                expected=", ".join(classes),
                got=", ".join(names or ()) or "none",
                fix="use scenes of the same classes in the same order, or a teacher trained on these",
            )


def _identity(weights: str | Path | Artifact | None) -> str | dict | None:
    """A hash of a weights file, or of the weights in a folder of transformers' format; of an artifact its key."""
    if weights is None or isinstance(weights, Artifact):
        return weights and {"artifact": weights.key}
    path = Path(weights)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise WorkbenchError(
            "the weights to start from are missing",
            where=path,
            expected="a .safetensors file, or a folder with one",
            fix="check the path",
        )
    return " ".join(artifacts.file_hash(file) for file in files)


def _measured(detector: Detector, test: SceneSet) -> dict[str, float]:
    measures = average_precision(test, *predict(detector, test.images))
    return {name: value for name, value in measures.items() if name != "per_class"}


def keep_detector(work: Path, detector: Detector, test: SceneSet, history: list[dict]) -> dict:
    """Measure a finished detector, write its files into `work`, return its metrics."""
    scores, boxes = predict(detector, test.images)
    measures = average_precision(test, scores, boxes, by_size=True)
    artifacts.save_tensors(work / "model.safetensors", detector.state_dict())
    artifacts.save_tensors(work / PREDICTIONS, {"scores": scores, "boxes": boxes})
    artifacts.save_json(work / "history.json", history)
    return {
        **measures,
        "parameters": count_parameters(detector),
        "classes": list(test.classes),
        "test_scenes": len(test),
    }


def load_detector(artifact: Artifact) -> Detector:
    """The detector of an artifact, frozen, in evaluation mode, on the training device."""
    detector = create_detector(
        artifact.settings["model"],
        len(artifact.metrics["classes"]),
        weights=artifact.path / "model.safetensors",
    )
    return detector.eval().requires_grad_(False).to(training.device())


def predictions(artifact: Artifact) -> tuple[Tensor, Tensor]:
    """All that the artifact's detector said of the test scenes, from disk: scores (N, Q, classes), boxes (N, Q, 4)."""
    kept = artifact.tensors(PREDICTIONS)
    return kept["scores"], kept["boxes"]


def shown(artifact: Artifact, scenes: int, threshold: float = THRESHOLD) -> list[dict]:
    """The artifact's detections in the first `scenes` test scenes, as `evaluate.detections` gives them, from disk."""
    found = zip(*(part[:scenes] for part in predictions(artifact)), strict=True)
    return [sure(scores, boxes, threshold) for scores, boxes in found]
