"""Any COCO folder as a `SceneSet`, checked before training; scenes written as COCO; ground truth for pycocotools."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dfkd_lib import ledger
from dfkd_lib.artifacts import resolve
from dfkd_lib.datasets.frames import cut, enlargement, resized, shares, stacked, windows
from dfkd_lib.datasets.scenes import SceneSet
from dfkd_lib.datasets.sources import read_image
from dfkd_lib.errors import WorkbenchError

SLACK = 0.5  # pixels by which a box may leave its image through rounding


def load_coco(folder: str | Path, split: str, size: int | None = None, crop: float | None = None,
              shortest: int | None = None, longest: int = 1333, seed: int = 0, crops: int = 1, crop_spread: float = 1.0,
              crop_anywhere: float = 0.0) -> SceneSet:
    """A split of a COCO folder (`<split>.json` beside `<split>/`), checked, resized and in memory.

    Args:
        folder: absolute, or relative to the repository. split: "train", "val" or "test"; "test" falls back to "val".
        size: side of square scenes: the longer side is resized to it and the rest filled. shortest, longest: DETR's own
            resizing instead.
        crop: with size, cut a square about an object first, `crop` times the object's longer side and off its middle by
            chance (seeded): for objects too small for a small detector. 1 or more.
        crops: crops a frame, about each of its objects in turn, each drawn anew; a frame without objects is cut anywhere.
        crop_spread: from 1 to crop; the factor is drawn log-uniformly from crop / crop_spread to crop * crop_spread:
            objects of many sizes. crop_anywhere: share of crops, 0..1, that lie anywhere on their frame: empty sky too.

    Returns:
        SceneSet of split "<folder name>/<split>", classes in the order of the category ids. Crowd regions are left out.
        `rows` is the place of a scene's frame in the file, the same for all of its crops.

    Raises:
        WorkbenchError: on missing or unreadable files, a box outside its image, without area or not finite, an unknown
            category or image, no annotations, an image of another size than its entry says; each names the file, the
            annotation, what was expected and found, and the mend. On crops that cannot be.
    """
    _check_crops(size, crop, crops, crop_spread, crop_anywhere)
    folder = resolve(folder)
    if split == "test" and not (folder / "test.json").exists():
        split = "val"
    file = folder / f"{split}.json"
    name = f"{folder.name}/{split}"
    ledger.register_files({folder / split: name, file: name})
    content = _read(file)
    categories = sorted(content["categories"], key=lambda c: c["id"])
    order = {c["id"]: k for k, c in enumerate(categories)}
    objects = _objects(content, order, file)
    usual = np.array([max(box[2:]) for found in objects.values() for box, _ in found] or [8.0])
    rng = np.random.default_rng(seed)
    images, boxes, labels, scale, rows = [], [], [], [], []
    for row, entry in enumerate(content["images"]):
        found = objects[entry["id"]]
        frame = _image(folder / split / entry["file_name"], entry, file)
        corners = np.array([f[0] for f in found], dtype=np.float64).reshape(-1, 4)
        cuts = [(frame, corners, range(len(found)))] if not crop else [cut(frame, corners, *window) for window in windows(
            frame.shape, corners, usual, rng, crop=crop, crops=crops, spread=crop_spread, anywhere=crop_anywhere)]
        for pixels, inside, keep in cuts:
            factor = enlargement(pixels.shape, size, shortest, longest)
            pixels, inside = resized(pixels, inside, factor, size)
            images.append(pixels)
            boxes.append(shares(inside, pixels.shape))
            labels.append(torch.tensor([found[k][1] for k in keep], dtype=torch.int64))
            scale.append(1 / factor)
            rows.append(row)
    if shortest is None:
        _check_sizes(images, file)
    pixels = stacked(images)
    if shortest is not None:  # the shares are of each image; the padded batch is larger
        boxes = [b * torch.tensor([i.shape[1] / pixels.shape[3], i.shape[0] / pixels.shape[2]]).repeat(2)
                 for b, i in zip(boxes, images, strict=True)]
    return SceneSet(pixels, boxes, labels, tuple(c["name"] for c in categories), f"COCO folder {folder.name}", name,
                    np.array(rows), torch.tensor(scale))


def _check_crops(size, crop, crops, spread, anywhere) -> None:
    if not crop and (crops != 1 or spread != 1 or anywhere):
        raise WorkbenchError("crops of frames that are not cut", expected="crop=..., the crop's side in object sides",
                             got=f"crops {crops}, crop_spread {spread}, crop_anywhere {anywhere}", mend="give crop=4.0")
    if crop and not (size and crops >= 1 and crop >= spread >= 1 and 0 <= anywhere <= 1):
        raise WorkbenchError("impossible crops", got=f"size {size}, crop {crop}, crops {crops}, crop_spread {spread}, "
                             f"crop_anywhere {anywhere}", mend="correct the value out of range",
                             expected="a size, crops and crop_spread from 1, crop >= crop_spread, crop_anywhere 0..1")


def _check_sizes(images: list[np.ndarray], file: Path) -> None:
    sizes = {image.shape for image in images}
    if len(sizes) > 1:
        few = ", ".join(f"{w} x {h}" for h, w, _ in sorted(sizes)[:3])
        raise WorkbenchError("the images of a COCO folder have several sizes", expected="one size", got=few, where=file,
                             mend="give size=... (square scenes) or shortest=... (DETR's resizing)")


def _read(file: Path) -> dict:
    """The JSON of a COCO file with its three lists, or the error that says what is missing."""
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError:
        raise WorkbenchError("a COCO annotation file is missing", expected=file.name, where=file.parent,
                             mend="a COCO folder holds train/ and train.json, val/ and val.json") from None
    except (ValueError, OSError) as error:
        raise WorkbenchError("a COCO annotation file cannot be read", expected="whole JSON", got=error, where=file,
                             mend="fetch or write the file again") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list) or not content[key]:
            raise WorkbenchError(f"a COCO file has no {key}", expected=f"a list '{key}' with at least one entry",
                                 got="none", where=file, mend="write images, annotations and categories into the file")
    for key, needed in (("images", {"id", "file_name", "width", "height"}), ("categories", {"id", "name"})):
        for place, entry in enumerate(content[key]):
            if not isinstance(entry, dict) or needed - set(entry):
                raise WorkbenchError(f"an entry of '{key}' in a COCO file is not whole",
                                     expected=", ".join(sorted(needed)), got=str(entry)[:100],
                                     where=f"{file}, entry {place}", mend="write the file again")
    return content


def _objects(content: dict, order: dict, file: Path) -> dict[int, list]:
    """{image id: [((x, y, width, height) in pixels, class index)]} of all checked annotations."""
    images = {entry["id"]: entry for entry in content["images"]}
    objects = {key: [] for key in images}
    for annotation in content["annotations"]:
        where = f"{file}, annotation {annotation.get('id')}"
        if annotation.get("image_id") not in images:
            raise WorkbenchError("an annotation belongs to no image", got=f"image id {annotation.get('image_id')}",
                                 expected="the id of an entry of 'images'", where=where, mend="remove the annotation")
        if annotation.get("category_id") not in order:
            raise WorkbenchError("an annotation has an unknown category", where=where,
                                 expected=f"one of {sorted(order)}", got=annotation.get("category_id"),
                                 mend="add the category to 'categories', or correct the annotation")
        box = _checked_box(annotation.get("bbox"), images[annotation["image_id"]], where)
        if not annotation.get("iscrowd"):
            objects[annotation["image_id"]].append((box, order[annotation["category_id"]]))
    return objects


def _checked_box(box, image: dict, where: str) -> tuple[float, float, float, float]:
    """The box (x, y, width, height) cut to its image, which it may leave by SLACK pixels at most."""
    mend = "correct the annotation: bbox is [x, y, width, height] in pixels from the top left"
    try:
        x, y, width, height = (float(v) for v in box)
    except (TypeError, ValueError):
        raise WorkbenchError("a box is not four numbers", expected="[x, y, width, height]", got=box, where=where,
                             mend=mend) from None
    if not all(math.isfinite(v) for v in (x, y, width, height)):
        raise WorkbenchError("a box holds a value that is not a number", expected="four finite numbers", got=box,
                             where=where, mend=mend)
    if width <= 0 or height <= 0:
        raise WorkbenchError("a box has no area", expected="width and height above 0", got=box, where=where, mend=mend)
    if x < -SLACK or y < -SLACK or x + width > image["width"] + SLACK or y + height > image["height"] + SLACK:
        raise WorkbenchError("a box lies outside its image", where=f"{where}, image {image['file_name']}", got=box,
                             expected=f"within {image['width']} x {image['height']} pixels", mend=mend)
    left, top = max(x, 0.0), max(y, 0.0)
    return left, top, min(x + width, image["width"]) - left, min(y + height, image["height"]) - top


def _image(path: Path, entry: dict, file: Path) -> np.ndarray:
    if not path.exists():
        raise WorkbenchError("an image is missing", expected=path.name, where=f"{file}, image {entry['id']}",
                             mend=f"put the file into {path.parent}, or remove its entry")
    pixels = read_image(path, "RGB")
    if pixels.shape[:2] != (entry["height"], entry["width"]):
        raise WorkbenchError("an image has another size than its annotation file says", where=path,
                             expected=f"{entry['width']} x {entry['height']} (from {file.name})",
                             got=f"{pixels.shape[1]} x {pixels.shape[0]}",
                             mend="correct width and height in the file, or restore the image the boxes were drawn on")
    return pixels


def ground_truth(scenes: SceneSet) -> dict:
    """The data set as pycocotools wants it, ids from 1; boxes, areas and sizes in pixels of the ORIGINAL images.

    Scene pixels times `scenes.scale`: COCO's small, medium and large mean what they mean in the frames, not in a crop
    that was enlarged.
    """
    images, annotations = [], []
    for place, (boxes, labels, scale) in enumerate(zip(scenes.boxes, scenes.labels, scenes.scale.tolist(), strict=True)):
        height, width = (side * scale for side in scenes.pixels.shape[2:])
        images.append({"id": place + 1, "width": round(width), "height": round(height), "file_name": f"{place:06d}.png"})
        pixels = boxes.double() * torch.tensor([width, height, width, height], dtype=torch.float64)
        pixels[:, :2] -= pixels[:, 2:] / 2
        for box, label in zip(pixels.tolist(), labels.tolist(), strict=True):
            annotations.append({"id": len(annotations) + 1, "image_id": place + 1, "category_id": label + 1,
                                "bbox": box, "area": box[2] * box[3], "iscrowd": 0})
    categories = [{"id": k + 1, "name": name, "supercategory": ""} for k, name in enumerate(scenes.classes)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def write_coco(scenes: SceneSet, folder: str | Path, split: str) -> Path:
    """Write scenes as they are, at their own size, as `<folder>/<split>/*.png` and `<folder>/<split>.json` (returned)."""
    folder = resolve(folder)
    (folder / split).mkdir(parents=True, exist_ok=True)
    content = ground_truth(replace(scenes, scale=None))
    for entry, image in zip(content["images"], scenes.images.permute(0, 2, 3, 1).numpy(), strict=True):
        Image.fromarray(image).save(folder / split / entry["file_name"])
    file = folder / f"{split}.json"
    file.write_text(json.dumps(content))
    return file
