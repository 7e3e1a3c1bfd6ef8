"""COCO evaluation: ours against pycocotools as its demo drives it, and against torchmetrics, on the same detections.

All three match by pycocotools; what differs is what is put round it and how often it is asked.
"""

import contextlib
import io
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bench.rows import Effort, Row, compared, take_turns
from dfkd_lib.core import WorkbenchError
from dfkd_lib.datasets import SceneSet, generate_scenes, ground_truth
from dfkd_lib.metrics import average_precision

SCENES, SIDE, QUERIES = 1000, 48, 20  # AP depends on boxes alone, so small pictures do
SECONDS, TOLERANCE = 20, 1e-6
NAMES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
Found = dict[str, float | None]


def detections(scenes: SceneSet, queries: int = QUERIES) -> tuple[Tensor, Tensor]:
    """Scores (N, queries, classes) and boxes (N, queries, 4): every object, moved and named with some doubt, and noise."""
    draw = torch.Generator().manual_seed(0)
    scores = torch.rand(len(scenes), queries, len(scenes.classes), generator=draw) ** 6 * 0.6
    boxes = torch.rand(len(scenes), queries, 4, generator=draw) * 0.3 + 0.2
    for place, (true, labels) in enumerate(zip(scenes.boxes, scenes.labels, strict=True)):
        count = min(len(true), queries)
        noise = torch.randn(count, 4, generator=draw)
        boxes[place, :count] = (true[:count] * (1 + 0.12 * noise)).clamp(0.01, 0.99)
        scores[place, torch.arange(count), labels[:count]] = 0.3 + 0.6 * torch.rand(
            count, generator=draw
        )
    return scores, boxes


def by_pycocotools(scenes: SceneSet, scores: Tensor, boxes: Tensor) -> Found:
    """As pycocotools' demo: detections as a list of dicts, COCOeval with its own settings, summarised."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    height, width = scenes.pixels.shape[2:]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = ground_truth(scenes)
        truth.createIndex()
        told = []
        for image, (score, box) in enumerate(
            zip(scores.tolist(), boxes.double().tolist(), strict=True), 1
        ):
            for each, (x, y, w, h) in zip(score, box, strict=True):
                corner = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
                told += [
                    {"image_id": image, "category_id": k, "bbox": corner, "score": one}
                    for k, one in enumerate(each, 1)
                    if one > 0.01
                ]
        evaluation = COCOeval(truth, truth.loadRes(told), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {
        name: None if value == -1 else float(value)
        for name, value in zip(NAMES, evaluation.stats, strict=False)
    }


def by_torchmetrics(scenes: SceneSet, scores: Tensor, boxes: Tensor) -> Found:
    """torchmetrics' MeanAveragePrecision, scene by scene."""
    from torchmetrics.detection import MeanAveragePrecision

    metric, (height, width) = MeanAveragePrecision(box_format="cxcywh"), scenes.pixels.shape[2:]
    size = torch.tensor([width, height, width, height])
    for place in range(len(scenes)):
        query, label = (scores[place] > 0.01).nonzero(as_tuple=True)
        metric.update(
            [
                {
                    "boxes": boxes[place, query] * size,
                    "scores": scores[place, query, label],
                    "labels": label,
                }
            ],
            [{"boxes": scenes.boxes[place] * size, "labels": scenes.labels[place]}],
        )
    found = metric.compute()
    keys = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large")
    return {
        name: None if found[key] == -1 else float(found[key])
        for name, key in zip(NAMES, keys, strict=True)
    }


PEERS: dict[str, Callable[..., Found]] = {
    "pycocotools COCOeval": by_pycocotools,
    "torchmetrics": by_torchmetrics,
}


def compare(count: int = SCENES, limit: float = SECONDS) -> list[Row]:
    """A row for each peer.

    Raises:
        WorkbenchError: if a peer finds another AP.
    """
    scenes = generate_scenes(count, size=SIDE, split="synthetic")
    given = scenes, *detections(scenes)
    ways = {
        "ours": lambda: average_precision(*given, by_size=True),
        **{name: lambda way=way: way(*given) for name, way in PEERS.items()},
    }
    found = {name: way() for name, way in ways.items()}
    far = {
        name: max(abs((found["ours"][key] or 0) - (found[name][key] or 0)) for key in NAMES)
        for name in PEERS
    }
    worst = max(far, key=far.get)
    if not far[worst] <= TOLERANCE:
        raise WorkbenchError(
            "our evaluation's AP is not what another way finds",
            got=f"{far[worst]:.2g} apart",
            expected=f"at most {TOLERANCE}",
            where=f"{worst}, {count} scenes",
        )
    rounds = take_turns(ways, limit)
    return [
        compared(
            rounds,
            "ours",
            name,
            "coco",
            "AP by size",
            f"{count:,} scenes, {QUERIES} queries, 4 classes",
            "s",
            1,
            note=f"AP {found['ours']['AP']:.3f}, equal to {far[name]:.0e}",
        )
        for name in PEERS
    ]


def rows(effort: Effort) -> Iterator[Row]:
    """Ours, with AP by size, precision and recall, beside either peer."""
    yield from compare(limit=SECONDS * effort.seconds)
