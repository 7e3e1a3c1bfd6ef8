"""Any COCO folder as a `SceneSet`, checked before training; ground truth for pycocotools."""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from dfkd_lib.core import WorkbenchError, ledger, resolve
from dfkd_lib.datasets.coco_check import check_coco, frame
from dfkd_lib.datasets.coco_read import has_split
from dfkd_lib.datasets.coco_report import CocoReport
from dfkd_lib.datasets.frames import Frames, View, inside, resized, shares, windows
from dfkd_lib.datasets.scenes import SceneSet

# Bytes of a split that are held in memory: of a larger one, frames are read when they are needed.
HELD = 1 << 29


def load_coco(
    folder: str | Path,
    split: str,
    size: int | None = None,
    crop: float | None = None,
    shortest: int | None = None,
    longest: int = 1333,
    seed: int = 0,
    crops: int = 1,
    crop_spread: float = 1.0,
    crop_anywhere: float = 0.0,
    crop_whole: float = 0.0,
    empty: bool = False,
    held_back: float = 0.0,
    calibrating: bool = False,
) -> SceneSet:
    """A split of a COCO folder (`<split>.json` beside `<split>/`) or of a YOLO one (`data.yaml`), checked and resized; in
    memory if it takes at most `HELD` bytes, else read from disk whenever scenes are asked for.

    Args:
        folder: absolute, or relative to the repository.
        split: "train", "val" or "test"; "test" falls back to "val".
        size: side of square scenes: the longer side is resized to it and the rest filled.
        shortest, longest: DETR's own resizing instead of size, pixels.
        seed: of the crops.
        crop, crops, crop_spread, crop_anywhere, crop_whole: with size, cut squares first; see `frames.windows`.
        empty: crops that show no part of an object alone, anywhere on their frames.
        held_back: share of videos (see `video_of`), 0..1, drawn by chance that is always the same, whose frames are left
            out.
        calibrating: these videos' frames alone.

    Returns:
        SceneSet of split "<folder name>/<split>", classes in the order of the category ids. Crowd regions are left out.
        Frames of several sizes are filled at right and bottom to the largest. `rows` is the place of a scene's frame in
        the file, the same for all of its crops.

    Raises:
        WorkbenchError: on all that `check_coco` calls fatal (but what only its thorough look finds), in one error.
    """
    folder = resolve(folder)
    if split == "test" and not has_split(folder, split):
        split = "val"
    report = check_coco(folder, split, thorough=False)
    if report.fatal:
        raise report.error()
    chosen, rng = _chosen(report, held_back, calibrating), np.random.default_rng(seed)
    cut = {"crop": crop, "crops": crops, "spread": crop_spread, "anywhere": crop_anywhere}
    seen = _seen(report, chosen, rng, empty, **cut, whole=crop_whole)
    return _scene_set(report, seen, size, shortest, longest)


def _scene_set(
    report: CocoReport, seen: Iterator[tuple], size: int | None, shortest: int | None, longest: int
) -> SceneSet:
    """Scenes of what `_seen` gives, in memory if they are small enough."""
    views, rows, boxes, labels, scale = [], [], [], [], []
    for row, shape, window, found, classes in seen:
        sides, factor = resized(shape, size, shortest, longest)
        views.append(View(report.path(row), sides, window))
        boxes.append(found * (np.array(sides * 2) / (shape[1::-1] * 2)))
        rows.append(row)
        labels.append(torch.from_numpy(classes))
        scale.append(1 / factor)
    if not views:
        raise WorkbenchError(
            "no window of the frames is without an object",
            where=report.file,
            expected="empty ground",
            got="an object in each window",
            fix="leave such windows out (empty=0), or lower crop",
        )
    height, width = (size or max(view.size[axis] for view in views) for axis in (1, 0))
    frames, folder = Frames(views, height, width), report.folder.name
    return SceneSet(
        _held(frames, report) if frames.shape.numel() <= HELD else frames,
        [shares(found, (height, width)) for found in boxes],
        labels,
        tuple(c["name"] for c in report.categories.values()),
        f"COCO folder {folder}",
        f"{folder}/{report.split}",
        np.array(rows),
        torch.tensor(scale),
        frames.identity,
    )


def _held(frames: Frames, report: CocoReport) -> Tensor:
    """All frames in memory; an error names all that cannot be read."""
    try:
        return frames[:]
    except ledger.LedgerError:
        raise
    except WorkbenchError:
        for row in report.whole["images"]:
            frame(report, row)
        if report.fatal:
            raise report.error() from None
        raise


def video_of(image: dict) -> str:
    """The video that an entry of 'images' is a frame of: its "video_id", or its file's name without the number at its end."""
    if image.get("video_id") is not None:
        return str(image["video_id"])
    name = PurePosixPath(image["file_name"]).with_suffix("")
    return re.sub(r"[\W_]*\d+$", "", name.name) or str(name)


def _chosen(report: CocoReport, held_back: float, calibrating: bool) -> set[int]:
    """The places of the frames whose videos are not held back, or of those alone whose videos are."""
    of = [video_of(image) for image in report.images.values()]
    videos = sorted(set(of))
    count = round(held_back * len(videos))
    if not (0 <= count < len(videos)) or (held_back and not count):
        raise WorkbenchError(
            "no such share of the videos can be held back",
            expected="some of them, not all",
            got=f"{held_back:g} of {len(videos)}",
            where=report.file,
            fix="give another share (calibration), or a test split of its own beside val",
        )
    back = {videos[i] for i in np.random.default_rng(0).permutation(len(videos))[:count]}
    return {row for row, video in enumerate(of) if (video in back) == calibrating}


def _seen(
    report: CocoReport, chosen: set[int], rng: np.random.Generator, empty: bool, **cut
) -> Iterator[tuple]:
    """(row in the file, (height, width), window or None, boxes (n, 4) in pixels, classes int64 (n,)) of every chosen frame,
    of its crops, or of those without any object. Crowd regions are left out, but are not empty."""
    order = {key: k for k, key in enumerate(report.categories)}
    found = {key: [] for key in report.images}
    for _, annotation, box in report.annotations:
        label = -1 if annotation.get("iscrowd") else order[annotation["category_id"]]
        found[annotation["image_id"]].append((*box, label))
    every = [np.array(some, float).reshape(-1, 5) for some in found.values()]
    objects = [some[some[:, 4] >= 0] for some in every]
    sides = np.concatenate(objects)[:, 2:4].max(axis=1) if any(map(len, objects)) else [8.0]
    for row, (image, some) in enumerate(zip(report.images.values(), objects, strict=True)):
        if row not in chosen:
            continue
        shape = image["height"], image["width"]
        boxes, labels = some[:, :4], some[:, 4].astype(int)
        if not cut["crop"]:
            yield row, shape, None, boxes, labels
            continue
        about = boxes[:0] if empty else boxes
        for corner, side in windows(shape, about, sides, rng, **cut):
            kept, shown = inside(boxes, corner, side)
            if not empty or not len(inside(every[row][:, :4], corner, side, 0)[1]):
                yield row, (side, side), (*corner.tolist(), side), kept, labels[shown]


def ground_truth(scenes: SceneSet) -> dict:
    """The data set as pycocotools wants it, ids from 1; boxes, areas and sizes in pixels of the ORIGINAL images.

    Scene pixels times `scenes.scale`: COCO's small, medium and large mean what they mean in the frames, not in a crop
    that was enlarged.
    """
    images, annotations = [], []
    for place, (boxes, labels, scale) in enumerate(
        zip(scenes.boxes, scenes.labels, scenes.scale.tolist(), strict=True)
    ):
        height, width = (side * scale for side in scenes.shape[1:])
        entry = {"id": place + 1, "file_name": f"{place:06d}.png"}
        images.append(entry | {"width": round(width), "height": round(height)})
        pixels = boxes.double() * torch.tensor([width, height, width, height], dtype=torch.float64)
        pixels[:, :2] -= pixels[:, 2:] / 2
        for box, label in zip(pixels.tolist(), labels.tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": place + 1,
                    "category_id": label + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
    categories = [
        {"id": k + 1, "name": name, "supercategory": ""} for k, name in enumerate(scenes.classes)
    ]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}
