"""Any COCO folder as a `SceneSet`, checked before training; scenes written as COCO; ground truth for pycocotools."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dfkd_lib.core import WorkbenchError, is_number, ledger
from dfkd_lib.core.artifacts import resolve
from dfkd_lib.datasets.coco_check import check_coco
from dfkd_lib.datasets.coco_report import CocoReport
from dfkd_lib.datasets.frames import cut, enlargement, resized, shares, stacked, windows
from dfkd_lib.datasets.scenes import SceneSet
from dfkd_lib.datasets.sources import LARGEST_SIDE, read_image


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
    fill: bool = False,
) -> SceneSet:
    """A split of a COCO folder (`<split>.json` beside `<split>/`), checked, resized and in memory.

    Args:
        folder: absolute, or relative to the repository.
        split: "train", "val" or "test"; "test" falls back to "val".
        size: side of square scenes: the longer side is resized to it and the rest filled.
        crop: with size, cut a square about an object first, `crop` times the object's longer side and off its middle by
            chance (seeded): for objects too small for a small detector. 1 or more.
        shortest: DETR's own resizing instead of size, pixels.
        longest: likewise, pixels.
        seed: of the crops.
        crops: crops a frame, about each of its objects in turn, each drawn anew; a frame without objects is cut anywhere.
        crop_spread: from 1 to crop; the factor is drawn log-uniformly from crop / crop_spread to crop * crop_spread:
            objects of many sizes.
        crop_anywhere: share of crops, 0..1, that lie anywhere on their frame: empty sky too.
        fill: without size, frames of several sizes are filled at right and bottom to the largest (always so with shortest).

    Returns:
        SceneSet of split "<folder name>/<split>", classes in the order of the category ids. Crowd regions are left out.
        `rows` is the place of a scene's frame in the file, the same for all of its crops.

    Raises:
        WorkbenchError: on all that `check_coco` calls fatal (but what only its thorough look finds): one error with the
            first few places of each kind, what was expected and found there, and how to fix it. On impossible crops.
    """
    view = _View(size, crop, shortest, longest, crops, crop_spread, crop_anywhere)
    view.check()
    folder = resolve(folder)
    if split == "test" and not (folder / "test.json").exists():
        split = "val"
    report = check_coco(folder, split, thorough=False)
    if report.fatal:
        raise report.error()
    return _scene_set(
        report, list(view.scenes(report, np.random.default_rng(seed))), fill or shortest is not None
    )


def _scene_set(report: CocoReport, scenes: list[tuple], fill: bool) -> SceneSet:
    """The scenes of a split; without `fill` they have to be of one size."""
    images = [pixels for _, pixels, *_ in scenes]
    if not fill:
        _check_sizes(images, report.file)
    stack = stacked(images)
    height, width = stack.shape[2:]
    # The shares are of each image; the filled batch may be larger.
    part = [torch.tensor([i.shape[1] / width, i.shape[0] / height]).repeat(2) for i in images]
    return SceneSet(
        stack,
        [boxes * share for (_, _, boxes, _, _), share in zip(scenes, part, strict=True)],
        [labels for *_, labels, _ in scenes],
        tuple(c["name"] for c in report.categories.values()),
        f"COCO folder {report.folder.name}",
        f"{report.folder.name}/{report.split}",
        np.array([row for row, *_ in scenes]),
        torch.tensor([1 / factor for *_, factor in scenes]),
    )


@dataclass(frozen=True)
class _View:
    """How frames become scenes; the arguments of `load_coco`."""

    size: int | None
    crop: float | None
    shortest: int | None
    longest: int
    crops: int
    spread: float
    anywhere: float

    def check(self) -> None:
        """WorkbenchError on impossible sizes or crops."""
        if self.size is not None and not is_number(self.size, 1, LARGEST_SIDE):
            raise WorkbenchError(
                "no such size of scenes",
                expected=f"1..{LARGEST_SIDE} pixels",
                got=self.size,
                where="size",
                fix="give another size, or none",
            )
        if not self.crop and (self.crops != 1 or self.spread != 1 or self.anywhere):
            raise WorkbenchError(
                "crops of frames that are not cut",
                expected="crop=..., the crop's side in object sides",
                got=str(self),
                fix="give crop=4.0",
            )
        if self.crop and not (
            self.size
            and self.crops >= 1
            and self.crop >= self.spread >= 1
            and 0 <= self.anywhere <= 1
        ):
            raise WorkbenchError(
                "impossible crops",
                got=str(self),
                fix="correct the value out of range",
                expected="a size, crops and crop_spread from 1, crop >= crop_spread, crop_anywhere 0..1",
            )

    def __str__(self) -> str:
        return f"size {self.size}, crop {self.crop}, crops {self.crops}, crop_spread {self.spread}, crop_anywhere {self.anywhere}"

    def scenes(self, report: CocoReport, rng: np.random.Generator):
        """(row in the file, pixels, boxes as shares, labels, enlargement) of every scene."""
        objects = _objects(report)
        sides = np.array([max(box[2:]) for found in objects.values() for box, _ in found] or [8.0])
        for row, entry, frame in _decoded(report):
            corners = np.array([box for box, _ in objects[entry["id"]]], float).reshape(-1, 4)
            classes = torch.tensor([label for _, label in objects[entry["id"]]], dtype=torch.int64)
            views = [(frame, corners, slice(None))]
            if self.crop:
                found = windows(
                    frame.shape,
                    corners,
                    sides,
                    rng,
                    crop=self.crop,
                    crops=self.crops,
                    spread=self.spread,
                    anywhere=self.anywhere,
                )
                views = [cut(frame, corners, *window) for window in found]
            for pixels, inside, kept in views:
                factor = enlargement(pixels.shape, self.size, self.shortest, self.longest)
                pixels, inside = resized(pixels, inside, factor, self.size)
                yield row, pixels, shares(inside, pixels.shape), classes[kept], factor


def _objects(report: CocoReport) -> dict:
    """{image id: [(box in pixels, class)]} of every image, crowd regions left out."""
    order = {key: k for k, key in enumerate(report.categories)}
    objects = {key: [] for key in report.images}
    for _, annotation, box in report.annotations:
        if not annotation.get("iscrowd"):
            objects[annotation["image_id"]].append((box, order[annotation["category_id"]]))
    return objects


def _check_sizes(images: list[np.ndarray], file: Path) -> None:
    sizes = {image.shape for image in images}
    if len(sizes) > 1:
        few = ", ".join(f"{w} x {h}" for h, w, _ in sorted(sizes)[:3])
        raise WorkbenchError(
            "the images of a COCO folder have several sizes",
            expected="one size",
            got=few,
            where=file,
            fix="give size=... (square scenes) or shortest=... (DETR's resizing)",
        )


def _decoded(report: CocoReport):
    """(row in the file, its entry, uint8 (H, W, 3)) of every image; raises what cannot be read when all were tried."""
    for row, entry in enumerate(report.images.values()):
        path = report.folder / report.split / entry["file_name"]
        try:
            pixels = read_image(path, "RGB")
        except ledger.LedgerError:
            raise
        except WorkbenchError as error:
            report.flag("unreadable", "images", row, "a whole image file", error.got)
            continue
        if not report.fatal:
            yield row, entry, pixels
    if report.fatal:
        raise report.error()


def ground_truth(scenes: SceneSet) -> dict:
    """The data set as pycocotools wants it, ids from 1; boxes, areas and sizes in pixels of the ORIGINAL images.

    Scene pixels times `scenes.scale`: COCO's small, medium and large mean what they mean in the frames, not in a crop
    that was enlarged.
    """
    images, annotations = [], []
    for place, (boxes, labels, scale) in enumerate(
        zip(scenes.boxes, scenes.labels, scenes.scale.tolist(), strict=True)
    ):
        height, width = (side * scale for side in scenes.pixels.shape[2:])
        images.append(
            {
                "id": place + 1,
                "width": round(width),
                "height": round(height),
                "file_name": f"{place:06d}.png",
            }
        )
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


def write_coco(scenes: SceneSet, folder: str | Path, split: str) -> Path:
    """Write scenes as they are, at their own size, as `<folder>/<split>/*.png` and `<folder>/<split>.json` (returned)."""
    folder = resolve(folder)
    (folder / split).mkdir(parents=True, exist_ok=True)
    content = ground_truth(replace(scenes, scale=None))
    for entry, image in zip(
        content["images"], scenes.images.permute(0, 2, 3, 1).numpy(), strict=True
    ):
        Image.fromarray(image).save(folder / split / entry["file_name"])
    file = folder / f"{split}.json"
    file.write_text(json.dumps(content))
    return file
