"""What the detection browser shows: detections and true boxes of every scene, what became of each, no widget in it."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dfkd_lib.attention.sites import attention_sites
from dfkd_lib.core import WorkbenchError
from dfkd_lib.datasets.scenes import SceneSet
from dfkd_lib.detection import matched, predict, same_classes, sure
from dfkd_lib.models.detectors import Detector
from dfkd_lib.widgets.look import Choice, Looker

FAINT = 0.05  # score below which a detection is never shown
SAME = 0.02  # how far a box may be from what its detector says of the scene now
Found = tuple[Tensor, Tensor]  # scores (N, Q, classes), boxes (N, Q, 4)


@dataclass(frozen=True)
class View:
    """What is looked at, as plain scalars.

    Args:
        data: name of the set of scenes; "" is the first. scene: its place there.
        threshold: score from which a detection counts, 0..1; what is below 0.05 is not shown.
        outcome: "" for every scene, or those with "missed" objects, "false" detections, a "wrong" class, and "right" for
            those with none of these. of: the detector whose outcome is meant; "" is any of them.
        label: scenes with this class alone, -1: all. chosen: detector whose detection's attention is shown, "" for none;
            query: that detection's. block: of the decoder, from the last (-1) backwards. head: -1 is the mean.
    """

    data: str = ""
    scene: int = 0
    threshold: float = 0.5
    outcome: str = ""
    of: str = ""
    label: int = -1
    chosen: str = ""
    query: int = 0
    block: int = -1
    head: int = -1


OUTCOMES = ("", "missed", "false", "wrong", "right")


class Look(NamedTuple):
    """Where a detector's queries look in one scene.

    Args:
        weights: float32 (Q, rows · columns). grid: (rows, columns). block, head: from 0, head -1 for the mean. blocks: how
            many there are. why: in words, why there is no attention to show; weights are empty then.
    """

    weights: np.ndarray
    grid: tuple[int, int] = (0, 0)
    block: int = 0
    head: int = -1
    blocks: int = 0
    why: str = ""


class Browse:
    """Detections of several detectors in several sets of scenes.

    Args:
        detectors: {name: detector, or None where only predictions are at hand}. data: {name: SceneSet}.
        predictions: {name of a set: {name of a detector: (scores, boxes)}}; what is missing is detected when asked for.

    Raises:
        WorkbenchError: if there is nothing to browse, or detectors, predictions and scenes do not fit together.
    """

    def __init__(
        self,
        detectors: dict[str, Detector | None],
        data: dict[str, SceneSet],
        predictions: dict[str, dict[str, Found]],
    ):
        if not detectors or not data:
            raise WorkbenchError(
                "nothing to browse",
                expected="at least one detector and one set of scenes",
                got=f"{len(detectors)} detectors, {len(data)} sets",
                where="detection_browser",
                fix="give detection_browser({name: detector}, scenes)",
            )
        for name, detector in detectors.items():
            for scenes in data.values():
                if detector is not None:
                    same_classes(detector.num_labels, scenes, name)
        self.detectors, self.data = detectors, data
        self._found = {name: dict(predictions.get(name, {})) for name in data}
        for name, scenes in data.items():
            for whose, (scores, boxes) in self._found[name].items():
                _check(scenes, scores, boxes, f"predictions of {whose} on {name}")
        models = {name: detector for name, detector in detectors.items() if detector is not None}
        self.looker = Looker(models, data) if models else None

    def settle(self, view: View) -> View:
        """The view with its defaults filled in and everything checked; WorkbenchError if it cannot be had."""
        data = view.data or next(iter(self.data))
        for what, value, known in (
            ("set of scenes", data, self.data),
            ("outcome", view.outcome, OUTCOMES),
            ("detector", view.of, ("", *self.detectors)),
            ("detector", view.chosen, ("", *self.detectors)),
        ):
            if value not in known:
                raise WorkbenchError(
                    f"no such {what}",
                    expected=", ".join(filter(None, known)),
                    got=value,
                    fix="choose one of the expected",
                )
        scenes = self.data[data]
        for what, value, low, high in (
            ("scene", view.scene, 0, len(scenes) - 1),
            ("threshold", view.threshold, 0, 1),
            ("class", view.label, -1, len(scenes.classes) - 1),
        ):
            if not low <= value <= high:
                raise WorkbenchError(
                    f"no such {what}",
                    expected=f"{low}..{high}",
                    got=value,
                    where=data,
                    fix="choose one within these bounds",
                )
        return replace(view, data=data)

    def found(self, data: str) -> dict[str, Found]:
        """{detector: (scores, boxes)} of a set of scenes, detected now where they were not given."""
        kept = self._found[data]
        for name, detector in self.detectors.items():
            if name not in kept:
                if detector is None:
                    raise WorkbenchError(
                        "there is nothing to show of a detector",
                        expected="a detector, or its predictions",
                        got="neither",
                        where=f"{name} on {data}",
                        fix="give predictions=",
                    )
                kept[name] = predict(detector, self.data[data].images)
        return {name: kept[name] for name in self.detectors}

    def scene(self, data: str, rows: list[int], threshold: float) -> dict:
        """Arguments of `plots.detection_compare` for some scenes."""
        scenes = self.data[data]
        found = {
            name: [sure(scores[i], boxes[i], threshold) for i in rows]
            for name, (scores, boxes) in self.found(data).items()
        }
        return {
            "images": scenes.pixels[rows].numpy(),
            "classes": scenes.classes,
            "found": found,
            "truth": [
                {"boxes": scenes.boxes[i].numpy(), "labels": scenes.labels[i].numpy()} for i in rows
            ],
        }

    def disagreement(self, data: str, threshold: float) -> np.ndarray:
        """How differently the detectors do in each scene, int64 (N,): by how much their numbers of right, wrong, false and
        missed differ; of a single detector, how many it has of the last three."""
        each = np.array(
            [
                [
                    self._outcomes(data, scores[i], boxes[i], i, threshold)
                    for i in range(len(scores))
                ]
                for scores, boxes in self.found(data).values()
            ]
        )
        return np.ptp(each, axis=0).sum(-1) if len(each) > 1 else each[0, :, 1:].sum(-1)

    def _outcomes(
        self, data: str, scores: Tensor, boxes: Tensor, scene: int, threshold: float
    ) -> tuple[int, ...]:
        """Numbers of right, wrong, false detections and missed objects of one scene."""
        found, truth = sure(scores, boxes, threshold), self.data[data].labels[scene].numpy()
        pairs, false, missed = matched(
            torch.from_numpy(found["boxes"]), self.data[data].boxes[scene]
        )
        right = int((found["labels"][pairs[:, 0]] == truth[pairs[:, 1]]).sum())
        return right, len(pairs) - right, len(false), len(missed)

    def looks(self, data: str, scene: int, block: int, head: int) -> dict[str, Look]:
        """Where each detector's queries look; a detector with fewer blocks or heads shows its first block, its mean."""
        return {name: self._look(name, data, scene, block, head) for name in self.detectors}

    def _look(self, name: str, data: str, scene: int, block: int, head: int) -> Look:
        detector, (scores, boxes) = self.detectors[name], self.found(data)[name]
        if detector is None:
            return Look(
                np.zeros((0, 0), np.float32), why="only its predictions are here, not the detector"
            )
        sites = attention_sites(detector, "cross")
        block = max(-len(sites), block)
        head = head if head < (sites[block].heads or 0) else -1
        choice = Choice(name, data, scene, block, head, "0", "cross", threshold=0.0)
        (panel,) = self.looker.look(choice)
        if scores.shape[1] != len(panel.queries) or not _same(panel, scores[scene], boxes[scene]):
            return Look(
                np.zeros((0, 0), np.float32),
                why="these are not its own detections in the whole scene (tiles or "
                "another model made them), so no query's attention belongs to them",
            )
        return Look(panel.weights, panel.grid, panel.block, panel.head, panel.blocks)

    def heads(self) -> tuple[int, int]:
        """The most decoder blocks and heads that a detector has."""
        sites = [attention_sites(d, "cross") for d in self.detectors.values() if d is not None]
        return max((len(s) for s in sites), default=0), max(
            (s[-1].heads or 0 for s in sites), default=0
        )


def _same(panel, scores: Tensor, boxes: Tensor) -> bool:
    """Whether the boxes that are shown are those that the queries say now."""
    shown = [i for i, q in enumerate(panel.queries) if scores[q].max() >= FAINT]
    kept = boxes[[panel.queries[i] for i in shown]].numpy()
    return not len(shown) or float(np.abs(panel.boxes[shown] - kept).max()) <= SAME


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
    return _packed(
        [len(b) for b in scenes.boxes], torch.cat(scenes.boxes), torch.cat(scenes.labels)
    )


def pack_found(scores: Tensor, boxes: Tensor) -> list[bytes]:
    """As `pack_truth` for detections that may be shown, each scene's best first, with scores float32 and queries int32."""
    best, label = scores.max(-1)
    order = best.argsort(dim=1, descending=True)
    best = best.gather(1, order)
    keep = best >= FAINT
    rows = torch.arange(len(scores))[:, None].expand_as(order)[keep]
    queries = order[keep]
    return [
        *_packed(keep.sum(1).tolist(), boxes[rows, queries], label[rows, queries]),
        best[keep].float().numpy().tobytes(),
        queries.to(torch.int32).numpy().tobytes(),
    ]


def _packed(counts: list[int], boxes: Tensor, labels: Tensor) -> list[bytes]:
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return [
        starts.tobytes(),
        boxes.float().contiguous().numpy().tobytes(),
        labels.to(torch.int32).numpy().tobytes(),
    ]
