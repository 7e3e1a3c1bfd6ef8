"""The step of a detector: queries paired with objects and with the teacher's queries, named losses, weighted and summed."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from dfkd_lib.attention import capture_attention, patch_grid
from dfkd_lib.core import Config, processes
from dfkd_lib.detection.aligned import QueryAligner, inputs_if_shared, shared_losses
from dfkd_lib.detection.batches import Batch, SceneBatches
from dfkd_lib.detection.matching import PAIRINGS, paired_queries
from dfkd_lib.losses import (
    TeacherTargets,
    attention_distillation_loss,
    box_distillation_loss,
    detection_losses,
    distillation_loss,
    feature_distillation_loss,
    objectness,
    own_loss,
)
from dfkd_lib.metrics import THRESHOLD
from dfkd_lib.models import Detector, RealTimeDetector, hooked
from dfkd_lib.training import Share

# Losses in `DetectionWeights` towards the teacher's query that is nearest, and towards its answers to queries put to both.
MATCHED = ("distillation", "box_distillation", "attention_distillation")
SHARED = ("query_logits", "query_boxes", "query_features", "query_attention")
FEATURES = ("feature_distillation", "features_first")
STORED_BYTES = 1 << 29  # that a teacher's answers to all scenes may take


def _weight(default: float, description: str) -> float:
    return Field(default, ge=0, le=100_000, description=description)


class DetectionWeights(Config):
    """Weights of a detector's losses by their names in `losses.DETECTION_LOSSES`; the defaults are paper A's terms alone.

    Smooth L1 of coordinates in [0, 1] is quadratic and small, which is why its weight is large.
    """

    also: ClassVar[dict[str, str]] = {
        "classification": "class_weight",
        "boxes": "box_weight",
        "giou": "giou_weight",
        "distillation": "distillation_weight",
    }

    classification: float = _weight(2.0, "of the classification loss (eq. 11)")
    boxes: float = _weight(100.0, "of Smooth L1 (eq. 12, 13)")
    giou: float = _weight(0.0, "of DETR's GIoU loss, which the paper does not use")
    distillation: float = _weight(1.0, "of the teacher's softened logits (eq. 14)")
    box_distillation: float = _weight(0.0, "of the teacher's boxes, which are not the paper's")
    attention_distillation: float = _weight(0.0, "of its cross-attention, likewise")
    feature_distillation: float = _weight(
        0.0, "of what its backbone gives its encoder, likewise, to a student as wide"
    )
    features_first: Share = Field(
        0.0, description="share of the training in which the backbone alone learns, these features"
    )
    query_logits: float = _weight(0.0, "of the teacher's logits at queries that both are asked")
    query_boxes: float = _weight(0.0, "of its boxes at these queries")
    query_features: float = _weight(0.0, "of its decoder's features at these queries")
    query_attention: float = _weight(0.0, "of its cross-attention at these queries, in each layer")
    general: int = Field(
        1, ge=0, le=64, description="groups of random queries that both are asked beside its own"
    )
    own: float = _weight(
        1.0,
        "of D-FINE's, DEIMv2's, RT-DETR's, RF-DETR's own losses, for classification, boxes, giou",
    )
    temperature: float = Field(2.0, ge=0.01, le=1000, title="T", description="T of eq. 14")
    pairing: Literal["hungarian", "expanded"] = Field(
        "hungarian", description="of predictions and objects: DETR's own, or the paper's"
    )

    @model_validator(mode="after")
    def _some(self) -> Self:
        others = ("own", "temperature", "pairing", "general", "features_first")
        if not any(self[name] for name in self.keys() if name not in others):
            raise ValueError("a weight above 0: at least one loss must count")
        return self

    @property
    def matched(self) -> bool:
        """Whether the teacher's nearest queries are distilled."""
        return any(self[name] for name in MATCHED)

    @property
    def shared(self) -> int | None:
        """The groups of general queries of query-aligned distillation; None where it has no weight."""
        return self.general if any(self[name] for name in SHARED) else None

    @property
    def aligned(self) -> Self:
        """With query-aligned distillation in place of the matched: its own weights, or 1 each where all are 0."""
        weights = {name: self[name] if self.shared is not None else 1.0 for name in SHARED}
        return self.replace(**dict.fromkeys(MATCHED, 0.0), **weights)

    def total(self, named: dict[str, Tensor]) -> dict[str, Tensor]:
        """What a step returns: "loss", weighted and summed over decoder layers, and the last layer's named losses, of losses
        by name, (L,) each, or (1,) for those of the last decoder layer alone."""
        loss = sum(self[name] * value.sum() for name, value in named.items())
        return {"loss": loss, **{name: value[-1] for name, value in named.items()}}


class Queries(NamedTuple):
    """What a detector predicts at each of its L decoder layers."""

    logits: Tensor  # (L, B, Q, K), the last of K classes "no object"
    boxes: Tensor  # (L, B, Q, 4), cxcywh in [0, 1]
    maps: Tensor | None = None  # the last layer's cross-attention (B, Q, h, w), mean over heads
    own: Tensor | None = None  # (1,), the loss of objects that a detector of its own loss was given
    features: Tensor | None = None  # what the backbone gives the encoder (B, D, h, w)


class ObjectTargets(NamedTuple):
    """The object that each query answers for."""

    labels: Tensor  # int64 (L, B, Q); the last class, "no object", where there is none
    boxes: Tensor  # (L, B, Q, 4), cxcywh in [0, 1], 0 where there is none
    present: Tensor  # bool (L, B, Q)


def queries(
    detector: Detector,
    images: Tensor,
    attention: bool = False,
    every_layer: bool = True,
    objects: tuple[Tensor, Tensor] | None = None,
    features: bool = False,
) -> Queries:
    """The predictions on float images (B, 3, H, W) in [0, 1] of every decoder layer (deep supervision), or of the last
    alone; `attention` reads the last layer's cross-attention too, where there are maps (not of deformable attention),
    `features` what such a detector's backbone gives its encoder.
    Of `objects` (padded labels (B, M), boxes (B, M, 4)) a `RealTimeDetector` computes its own loss, with matching, denoising
    and all layers in it."""
    maps, blocks, seen_tokens, noting = None, nullcontext(), [], nullcontext()
    dense = not isinstance(detector, RealTimeDetector)
    attention, features = attention and dense, features and dense
    if features:
        noting = hooked([detector.projection], lambda module, inputs, out: seen_tokens.append(out))
    if attention:
        blocks = capture_attention(detector.network, (-1,), token=None, kind="cross")
    given = (objects,) if objects and isinstance(detector, RealTimeDetector) else ()
    with blocks as captured, noting:
        found = detector(images, every_layer, *given)
    if attention:
        seen = captured[-1].mean(1)
        maps = seen.unflatten(-1, patch_grid(detector.network, seen.shape[-1], *images.shape[-2:]))
    layers = (*found.earlier, found[:2])
    logits, boxes = (torch.stack(parts) for parts in zip(*layers, strict=True))
    own = own_loss(found.own) if given else None
    return Queries(logits, boxes, maps, own, seen_tokens[0] if features else None)


def objects(batch: Batch, answer: Queries | None) -> tuple[Tensor, Tensor]:
    """The objects to find, padded: the batch's labels (B, M) and boxes, or, where these are not read, the teacher's finds."""
    return (batch.labels, batch.boxes) if batch.labels is not None else confident(answer)


def confident(found: Queries) -> tuple[Tensor, Tensor]:
    """A detector's own detections as padded objects, best first: labels (B, Q), -1 for none, boxes (B, Q, 4)."""
    score, label = found.logits[-1].sigmoid()[..., :-1].max(dim=-1)
    order = score.argsort(dim=1, descending=True)
    label = torch.where(score >= THRESHOLD, label, -1).gather(1, order)
    return label, found.boxes[-1].gather(1, order[..., None].expand(-1, -1, 4))


def pair_objects(
    found: Queries, labels: Tensor, boxes: Tensor, pairing: str = "hungarian"
) -> ObjectTargets:
    """The object of padded labels (B, M) and boxes (B, M, 4) that each query of each decoder layer answers for, by a name
    in `matching.PAIRINGS`."""
    layers, _, _, classes = found.logits.shape
    predicted = found.logits.flatten(0, 1), found.boxes.flatten(0, 1)
    targets = PAIRINGS[pairing](*predicted, labels.repeat(layers, 1), boxes.repeat(layers, 1, 1))
    target_labels, target_boxes = (part.unflatten(0, (layers, -1)) for part in targets)
    return ObjectTargets(target_labels, target_boxes, target_labels < classes - 1)


def pair_teacher(found: Queries, answer: Queries) -> TeacherTargets:
    """The teacher's query that is nearest to each of the student's, in every decoder layer of the student."""
    layers = len(found.logits)
    predicted = found.logits.flatten(0, 1), found.boxes.flatten(0, 1)
    logits, boxes = answer.logits[-1], answer.boxes[-1]
    index = paired_queries(*predicted, logits.repeat(layers, 1, 1), boxes.repeat(layers, 1, 1))
    index = index.unflatten(0, (layers, -1))
    paired, index = index >= 0, index.clamp(min=0)
    scene = torch.arange(len(logits), device=logits.device)[:, None]
    chosen = logits[scene, index]
    certain = torch.where(paired, objectness(chosen), 0.0)
    maps = None if answer.maps is None else answer.maps[scene, index[-1]]
    return TeacherTargets(chosen, boxes[scene, index], paired, certain, maps)


def answers(teacher: Detector) -> Callable[..., Queries]:
    """A frozen teacher as a step asks it: `teacher(batch, attention, features)` → `Queries` of its last decoder layer."""

    def answer(batch: Batch, attention: bool = False, features: bool = False) -> Queries:
        with torch.no_grad():
            return queries(teacher, batch.images, attention, every_layer=False, features=features)

    return answer


def _mark(images: Tensor) -> Tensor:
    """A number for each image (B,), that another image does not have, nor the same one turned or moved."""
    pixels = images.flatten(1)
    return (pixels * (torch.arange(pixels.shape[1], device=pixels.device) % 97 / 97)).sum(1)


def mirrored_answers(found: Queries, mirror: Tensor) -> Queries:
    """Answers to scenes as the answers to their mirror images, for those of a batch for which `mirror` (B,) is true."""
    middle = torch.where(mirror[:, None], 1 - found.boxes[..., 0], found.boxes[..., 0])
    boxes = torch.cat([middle[..., None], found.boxes[..., 1:]], -1)
    maps, features = (
        None if part is None else torch.where(mirror[:, None, None, None], part.flip(-1), part)
        for part in (found.maps, found.features)
    )
    return found._replace(boxes=boxes, maps=maps, features=features)


def kept_answers(teacher: Detector, batches: SceneBatches, epochs: int) -> Callable[..., Queries]:
    """`answers` of a frozen teacher in a training of so many epochs. Where these only mirror scenes, a mirror image is given the
    mirrored answer, whether it is kept or not; each scene is asked about once, at the first call, where that is less work
    and all answers take at most `STORED_BYTES`. Images that a step has changed are asked about anew."""
    plain, known, count = answers(teacher), {}, len(batches.images)
    marks: list[Tensor] = []  # of the images that were asked about
    keeps = batches.views and epochs > processes.count()

    def upright(batch: Batch) -> tuple[Batch, Tensor]:
        mirror = batch.places >= count
        images = torch.where(mirror[:, None, None, None], batch.images.flip(-1), batch.images)
        return batch._replace(images=images), mirror

    def ask(batch: Batch, *asked: bool) -> Queries:
        if batch.places is None:
            return plain(batch, *asked)
        seen, mirror = upright(batch)
        return mirrored_answers(plain(seen, *asked), mirror)

    def all_of(asked: tuple[bool, bool], device: torch.device) -> Queries | None:
        found: list[Queries] = []
        marks.clear()
        for seen in batches.in_order():
            found.append(plain(seen.to(device), *asked))
            marks.append(_mark(seen.images.to(device)))
            held = sum(part.nbytes for part in found[0] if part is not None)
            if held / len(marks[0]) * count > STORED_BYTES:
                return None
        marks[:] = [torch.cat(marks)]
        return Queries(
            *(
                None if parts[0] is None else torch.cat(parts, int(place < 2))
                for place, parts in enumerate(zip(*found, strict=True))
            )
        )

    def answer(batch: Batch, attention: bool = False, features: bool = False) -> Queries:
        asked = attention, features
        if asked not in known:
            known[asked] = all_of(asked, batch.images.device) if keeps else None
        stored, places = known[asked], batch.places
        if stored is None or places is None:
            return ask(batch, *asked)
        rows, (seen, mirror) = places % count, upright(batch)
        if not torch.allclose(_mark(seen.images), marks[0][rows], rtol=1e-4):
            return ask(batch, *asked)
        logits, boxes, *more = stored
        more = [None if part is None else part[rows] for part in more]
        return mirrored_answers(Queries(logits[:, rows], boxes[:, rows], *more), mirror)

    return answer


def asked(teacher: Callable | None, batch: Batch, weights: DetectionWeights) -> Queries | None:
    """The teacher's answer with what these losses read of it; None where no loss does."""
    features = weights.feature_distillation > 0
    if teacher is None or not (weights.matched or features or batch.labels is None):
        return None
    return teacher(batch, weights.attention_distillation > 0, features)


def same_parts(answer: Queries | None) -> dict[str, bool]:
    """What `queries` is to read of a student, to be compared with a teacher's answer."""
    parts = {"attention": answer and answer.maps, "features": answer and answer.features}
    return {name: part is not None for name, part in parts.items()}


def feature_losses(features: Tensor | None, answer: Queries | None) -> dict[str, Tensor]:
    """ "feature_distillation", (1,), where student and teacher have features of one shape (B, D, h, w); else nothing."""
    target = None if answer is None else answer.features
    if features is None or target is None or features.shape != target.shape:
        return {}
    return {"feature_distillation": feature_distillation_loss(features, target)[None]}


def features_first(
    student: Detector,
    batch: Batch,
    answer: Queries | None,
    weights: DetectionWeights,
    progress: float,
) -> dict[str, Tensor]:
    """The whole step while a backbone alone learns the teacher's features; nothing later, or where they cannot be compared."""
    if (
        answer is None
        or progress >= weights.features_first
        or isinstance(student, RealTimeDetector)
    ):
        return {}
    first = feature_losses(student.features(batch.images), answer)
    return weights.total(first) if first else {}


def detection_step(weights: DetectionWeights) -> Callable:
    """The weighted losses of objects (A eq. 11-13) and, with a teacher, of distillation (eq. 14), as a step for `train`.

    Every decoder layer of the student answers for the objects (deep supervision); the last one's losses are logged. Of a
    student with a loss of its own (D-FINE, DEIMv2, RT-DETR, RF-DETR) that one stands in place of eq. 11-13. Query-aligned
    distillation needs the `aligner` that `train(…, shared=weights.shared)` gives.
    """

    def step(
        student: Detector,
        batch: Batch,
        teacher: Callable | None,
        aligner: QueryAligner | None = None,
        progress: float = 1.0,
    ) -> dict[str, Tensor]:
        answer = asked(teacher, batch, weights)
        if first := features_first(student, batch, answer, weights, progress):
            return first
        known = objects(batch, answer)
        with inputs_if_shared(aligner, student) as given:
            found = queries(student, batch.images, objects=known, **same_parts(answer))
        like = pair_teacher(found, answer) if answer and weights.matched else None
        if found.own is None:
            target = pair_objects(found, *known, weights.pairing)
            named = detection_losses(*found[:2], target.labels, target.boxes)
        else:
            named = {"own": found.own}
        if like is not None:
            softened = found.logits, like.logits, weights.temperature, like.paired
            named["distillation"] = distillation_loss(*softened)
        if like is not None and weights.box_distillation:
            boxes = found.boxes, like.boxes, like.objectness
            named["box_distillation"] = box_distillation_loss(*boxes)
        if like is not None and found.maps is not None and like.maps is not None:
            attention = attention_distillation_loss(found.maps, like.maps, like.objectness[-1])
            named["attention_distillation"] = attention[None]
        named |= feature_losses(found.features, answer)
        if aligner is not None:
            both = aligner(student, given, batch.images)
            named |= shared_losses(*both, weights, weights.temperature)
        return weights.total(named)

    return step
