"""What the detection browser shows: detections and true boxes of every scene, what became of each, no widget in it."""

from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from dfkd_lib.attention import (
    attention_points,
    attention_sites,
    capture_attention,
    is_deformable,
    patch_grid,
)
from dfkd_lib.core import Config, WorkbenchError, one_of
from dfkd_lib.datasets.scenes import SceneSet
from dfkd_lib.detection import predict
from dfkd_lib.metrics import confusion, same_classes, sure
from dfkd_lib.models import Detector
from dfkd_lib.widgets.fitting import batch_of
from dfkd_lib.widgets.viewer import within

FAINT = 0.05  # score below which a detection is never shown
SAME = 0.02  # how far a box may be from what its detector predicts for the scene now
Found = tuple[Tensor, Tensor]  # scores (N, Q, classes), boxes (N, Q, 4)


class View(Config):
    """What the browser shows, as plain scalars."""

    data: str = Field("", description="name of the set of scenes; '' is the first")
    scene: int = Field(0, description="its place there")
    threshold: float = Field(
        0.5, ge=0, le=1, description="score from which a detection counts; below 0.05 none is shown"
    )
    outcome: Literal["", "missed", "false", "wrong", "right"] = Field(
        "",
        description="scenes with missed objects, false detections, a wrong class, or none of these; '' is all of them",
    )
    of: str = Field("", description="the detector whose outcome is meant; '' is any")
    label: int = Field(-1, description="scenes with this class alone, -1: all")
    chosen: str = Field("", description="detector of the detection whose attention is shown")
    query: int = Field(0, ge=0, description="that detection's query")
    block: int = Field(-1, description="of the decoder, from the last (-1) backwards")
    head: int = Field(-1, description="-1 is the mean")


class QueryAttention(NamedTuple):
    """The attention of a detector's queries in one scene.

    Args:
        weights: float32 (Q, rows · columns), or, of deformable attention, (Q, 4 · points): x, y as shares of the image,
            weight and scale (0 the finest) of each. grid: (rows, columns). block, head: from 0, head -1 for the mean. blocks: how
            many there are. why: in words, why there is no attention to show; weights are empty then.
    """

    weights: np.ndarray = np.zeros((0, 0), np.float32)
    grid: tuple[int, int] = (0, 0)
    block: int = 0
    head: int = -1
    blocks: int = 0
    why: str = ""
    points: int = 0  # 0 where there is a map


ONLY_FOUND = QueryAttention(why="only its predictions are here, not the detector")
NOT_ITS_OWN = QueryAttention(
    why="these are not its own detections in the whole scene (tiles or another model made them), so no query's attention "
    "belongs to them"
)


class Browse:
    """Detections of several detectors in several sets of scenes.

    Args:
        detectors: {name: detector, or None where only predictions are at hand}. data: {name: SceneSet}.
        predictions: {name of a set: {name of a detector: (scores, boxes)}}; what is missing is detected when asked for.

    Raises:
        WorkbenchError: if detectors, predictions and scenes do not fit together.
    """

    def __init__(
        self,
        detectors: dict[str, Detector | None],
        data: dict[str, SceneSet],
        predictions: dict[str, dict[str, Found]],
    ):
        for name, detector in detectors.items():
            for scenes in data.values() if detector is not None else ():
                same_classes(detector.classes or detector.num_labels, scenes, name)
        self.detectors, self.data = detectors, data
        self._found = {name: dict(predictions.get(name, {})) for name in data}
        for name, scenes in data.items():
            for whose, (scores, boxes) in self._found[name].items():
                _check(scenes, scores, boxes, f"predictions of {whose} on {name}")

    def settle(self, view: View) -> View:
        """The view with its defaults filled in and everything checked; WorkbenchError if it cannot be had."""
        data = view.data or next(iter(self.data))
        one_of("set of scenes", data, self.data)
        for name in (view.of, view.chosen):
            one_of("detector", name, ("", *self.detectors))
        scenes = self.data[data]
        within(view.scene, 0, len(scenes) - 1, "scene", data)
        within(view.label, -1, len(scenes.classes) - 1, "class", data)
        return view.replace(data=data)

    def found(self, data: str) -> dict[str, Found]:
        """{detector: (scores, boxes)} of a set of scenes, detected now where they were not given."""
        known = self._found[data]
        for name, detector in self.detectors.items():
            if name not in known:
                if detector is None:
                    raise WorkbenchError(
                        "there is nothing to show of a detector",
                        expected="a detector, or its predictions",
                        got="neither",
                        where=f"{name} on {data}",
                        fix="give predictions=",
                    )
                known[name] = predict(detector, self.data[data].images)
        return {name: known[name] for name in self.detectors}

    def scene(self, data: str, rows: list[int], threshold: float) -> dict:
        """Arguments of `plots.detection_compare` for some scenes."""
        scenes = self.data[data]
        return {
            "images": scenes.pixels[rows].numpy(),
            "classes": scenes.classes,
            "found": {
                name: [sure(scores[i], boxes[i], threshold) for i in rows]
                for name, (scores, boxes) in self.found(data).items()
            },
            "truth": [
                {"boxes": scenes.boxes[i].numpy(), "labels": scenes.labels[i].numpy()} for i in rows
            ],
        }

    def disagreement(self, data: str, threshold: float) -> np.ndarray:
        """How differently the detectors do in each scene, int64 (N,): by how much their numbers of right, wrong, false and
        missed differ; of a single detector, how many it has of the last three."""
        scenes, each = self.data[data], []
        for found in self.found(data).values():
            for i, (scores, boxes) in enumerate(zip(*found, strict=True)):
                m = confusion(scenes.subset([i]), scores[None], boxes[None], threshold)
                right, paired = m.trace(), m[:-1, :-1].sum()
                each.append((right, paired - right, m[-1].sum(), m[:, -1].sum()))
        each = np.reshape(each, (-1, len(scenes), 4))
        return np.ptp(each, axis=0).sum(-1) if len(each) > 1 else each[0, :, 1:].sum(-1)

    def attention(self, data: str, scene: int, block: int, head: int) -> dict[str, QueryAttention]:
        """The attention of each detector's queries; one with fewer blocks or heads shows its first block, its mean."""
        return {name: self._attention(name, data, scene, block, head) for name in self.detectors}

    def _attention(self, name: str, data: str, scene: int, block: int, head: int) -> QueryAttention:
        detector, (scores, boxes) = self.detectors[name], self.found(data)[name]
        if detector is None:
            return ONLY_FOUND
        sites = attention_sites(detector, "cross")
        block = max(-len(sites), block)
        own = {"block": block % len(sites), "blocks": len(sites)}
        own["head"] = head if head < (sites[block].heads or 0) else -1
        pixels = self.data[data].subset([scene]).images
        if not _alike(scores[scene], boxes[scene], *predict(detector, pixels)):
            return NOT_ITS_OWN
        look = _sampled if is_deformable(sites[block].module) else _mapped
        return look(detector, batch_of(detector, pixels), own)

    def shown_attention(self, view: View) -> dict[str, list] | None:
        """{detector: [look]}, of the chosen detection or of its partner, as `plots.detection_compare` takes them; None if none
        is chosen."""
        if not view.chosen:
            return None
        found, shown = self.found(view.data), {}
        box = found[view.chosen][1][view.scene, view.query]
        for name, look in self.attention(view.data, view.scene, view.block, view.head).items():
            scores, boxes = (t[view.scene] for t in found[name])
            own = name == view.chosen
            query = view.query if own else partner(scores, boxes, box, view.threshold)
            if query is not None and len(look.weights):
                values = look.weights[query].reshape((-1, 4) if look.points else look.grid)
                own = (None, values) if look.points else (values, None)
                shown[name] = [(own[0], boxes[query].numpy(), own[1])]
        return shown

    def heads(self) -> tuple[int, int]:
        """The most decoder blocks and heads that a detector has."""
        sites = [attention_sites(d, "cross") for d in self.detectors.values() if d is not None]
        return max(map(len, sites), default=0), max((s[-1].heads or 0 for s in sites), default=0)


def partner(scores, boxes, box, threshold: float, iou: float = 0.5) -> int | None:
    """The query of another detector that answers for the same object: of those above the threshold the one that overlaps most."""
    above = (scores.amax(-1) >= threshold).nonzero().flatten()
    if not len(above):
        return None
    corners = (box_convert(b, "cxcywh", "xyxy") for b in (boxes[above], torch.as_tensor(box)[None]))
    overlap = box_iou(*corners)
    return int(above[overlap.argmax()]) if float(overlap.max()) >= iou else None


@torch.inference_mode()
def _mapped(detector: Detector, images: Tensor, own: dict) -> QueryAttention:
    """The attention map of every query in one scene, (1, 3, H, W) in [0, 1]."""
    block, head = own["block"], own["head"]
    with capture_attention(detector, (block,), None, kind="cross") as maps:
        detector(images)
    weights = maps[block][0].float().cpu()  # (heads, Q, N)
    chosen = weights.mean(0) if head < 0 else weights[head]
    grid = patch_grid(detector, chosen.shape[-1], *images.shape[-2:])
    return QueryAttention(chosen.numpy(), grid, **own)


@torch.no_grad()
def _sampled(detector: Detector, images: Tensor, own: dict) -> QueryAttention:
    """The sampling points of every query in one scene, (1, 3, H, W) in [0, 1]; of all heads for their mean."""
    head, found = own["head"], attention_points(detector, images, [own["block"]])
    weights, scale = found.weights[0, 0], found.levels.expand_as(found.weights[0, 0])
    if head < 0:
        weights = weights / len(weights)
    every = torch.cat([found.locations[0, 0], torch.stack([weights, scale], -1)], -1)
    every = every if head < 0 else every[head : head + 1]
    flat = every.transpose(0, 1).flatten(1).float().cpu().numpy()  # (Q, heads · points · 4)
    return QueryAttention(flat, found.grids[0], **own, points=flat.shape[1] // 4)


def _alike(scores: Tensor, boxes: Tensor, now_scores: Tensor, now_boxes: Tensor) -> bool:
    """Whether what is shown of a scene is what its detector finds now, (1, Q, ...)."""
    if scores.shape != now_scores.shape[1:]:
        return False
    shown = scores.amax(-1) >= FAINT
    apart = (boxes - now_boxes[0])[shown].abs(), (scores - now_scores[0])[shown].abs()
    return not shown.any() or max(float(part.max()) for part in apart) <= SAME


def _check(scenes: SceneSet, scores: Tensor, boxes: Tensor, where: str) -> None:
    same_classes(scores.shape[-1], scenes, where)
    if scores.ndim != 3 or boxes.shape != (*scores.shape[:2], 4) or len(scores) != len(scenes):
        raise WorkbenchError(
            "predictions and scenes do not fit together",
            where=where,
            expected=f"scores ({len(scenes)}, Q, classes), boxes ({len(scenes)}, Q, 4)",
            got=f"{tuple(scores.shape)}, {tuple(boxes.shape)}",
            fix="give those of these scenes",
        )


def pack_truth(scenes: SceneSet) -> list[bytes]:
    """Where each scene's boxes begin int32 (N + 1,), boxes float32 (n, 4), labels int32 (n,), as bytes."""
    counts = [len(boxes) for boxes in scenes.boxes]
    return _packed(counts, torch.cat(scenes.boxes), torch.cat(scenes.labels))


def pack_found(scores: Tensor, boxes: Tensor) -> list[bytes]:
    """As `pack_truth` for detections that may be shown, each scene's best first, with scores float32 and queries int32."""
    best, label = scores.max(-1)
    best, queries = best.sort(dim=1, descending=True)
    keep = best >= FAINT
    rows = torch.arange(len(scores))[:, None].expand_as(queries)[keep]
    counts, queries = keep.sum(1).tolist(), queries[keep]
    packed = _packed(counts, boxes[rows, queries], label[rows, queries])
    return [*packed, best[keep].float().numpy().tobytes(), queries.int().numpy().tobytes()]


def _packed(counts: list[int], boxes: Tensor, labels: Tensor) -> list[bytes]:
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    flat = boxes.float().contiguous().numpy()
    return [starts.tobytes(), flat.tobytes(), labels.int().numpy().tobytes()]
