"""YOLO-format folders (data.yaml, images/, labels/*.txt) as the content of a COCO file, for the same check."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

import yaml

from dfkd_lib.core import ledger
from dfkd_lib.datasets.coco_report import YOLO, CocoReport
from dfkd_lib.datasets.sources import IMAGE_SUFFIXES, size_of

SLACK = 1e-6  # by which a share may leave [0, 1] through rounding
LINE = "class and 4 shares of a box, or class and the points of an outline"


def read_yolo(report: CocoReport) -> None:
    """Fill `report.content` from data.yaml and the label files of the report's split; faults of these are reported.

    An image without a label file, or with an empty one, is a scene without objects. Objects may be boxes (class, centre x,
    centre y, width, height) or outlines (class, x, y, x, y, ...), all as shares of the image; of poses the box is read.
    """
    try:
        about = _about(report.folder)
    except ledger.LedgerError:
        raise
    except (yaml.YAMLError, ValueError, OSError) as error:
        report.add("file", "a data.yaml with names, train and val", error)
        return
    names, split = about.get("names"), report.split
    names = dict(enumerate(names)) if isinstance(names, list) else names
    files = _images(report.folder, about, split)
    if not isinstance(names, dict) or not all(type(k) is int for k in names):
        report.add("file", "names: a list, or {0: name, ...}", names)
    elif about.get("nc", len(names)) != len(names):
        report.add("file", f"nc: {len(names)}, as many as names", about["nc"])
    elif not files:
        expected = f"{split}: folders of images within {report.folder}"
        report.add("file", expected, about.get(split))
    if report.faults:
        return
    images: list[dict] = []
    annotations: list[dict] = []
    for number, file in enumerate(files, 1):
        name = file.relative_to(report.folder).as_posix()
        images.append({"id": number, "file_name": name, "width": 1, "height": 1})
        size = size_of(file)
        if size is None:
            continue
        images[-1].update(zip(("width", "height"), size, strict=True))
        labels = _labels(report.folder, file)
        for label, box in _objects(report, labels, name, names, "kpt_shape" in about):
            left, right = box[0] - box[2] / 2, box[1] - box[3] / 2
            pixels = [v * size[k % 2] for k, v in enumerate((left, right, *box[2:]))]
            of = {"id": len(annotations) + 1, "image_id": number, "category_id": label}
            annotations.append({**of, "bbox": pixels, "area": pixels[2] * pixels[3], "iscrowd": 0})
    categories = [{"id": key, "name": name} for key, name in names.items()]
    report.content = {"images": images, "annotations": annotations, "categories": categories}


def yolo_places(folder: Path, split: str) -> list[Path]:
    """The folders of a split's label files and images, the images' last; its files where another split's lie there too; []
    where data.yaml names none."""
    try:
        about = _about(folder)
    except (yaml.YAMLError, ValueError, OSError):
        return []
    own, others = [], set()
    for name in {*about} & {"train", "val", "valid", "test", split}:
        images = _images(folder, about, name)
        files = [*(_labels(folder, image) for image in images), *images]
        if name == split or (name == "valid" and split == "val"):
            own = files
        else:
            others |= {file.parent for file in files}
    return [*dict.fromkeys(f if f.parent in others else f.parent for f in own)]


def _about(folder: Path) -> dict:
    """The content of data.yaml."""
    about = yaml.safe_load((folder / YOLO).read_text(encoding="utf-8"))
    if not isinstance(about, dict):
        raise ValueError(f"{type(about).__name__} in place of names and values")
    return about


def _images(folder: Path, about: dict, split: str) -> list[Path]:
    """The image files of a split, sorted: of the folders and lists of files that data.yaml gives, if within its own folder."""
    named = about.get(split) or (about.get("valid") if split == "val" else None) or []
    roots = [folder / str(about.get("path") or ""), folder]
    found: list[Path] = []
    for value in map(str, named if isinstance(named, list) else [named]):
        # Exports often name "../train/images", which is meant to be "train/images".
        tries = [
            _within(folder, root / one)
            for one in (value, value.removeprefix("../"))
            for root in roots
        ]
        place = next((one for one in tries if one and one.exists()), None)
        if place and place.suffix == ".txt":
            lines = place.read_text(encoding="utf-8").split("\n")
            listed = (
                _within(folder, place.parent / line.strip()) for line in lines if line.strip()
            )
            found += [file for file in listed if file]
        elif place:
            found += [
                f for f in place.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES and f.is_file()
            ]
    return sorted(dict.fromkeys(found))


def _within(folder: Path, path: Path) -> Path | None:
    """The path without "..", if it is in the folder."""
    path = Path(os.path.normpath(path))
    return path if path.is_relative_to(folder) else None


def _labels(folder: Path, image: Path) -> Path:
    """The label file of an image: beside it, or in "labels" where its folder is in "images"."""
    below = f"/{image.relative_to(folder).as_posix()}"
    return Path(f"{folder}{'/labels/'.join(below.rsplit('/images/', 1))}").with_suffix(".txt")


def _objects(
    report: CocoReport, file: Path, image: str, names: dict, pose: bool
) -> Iterator[tuple[int, list[float]]]:
    """(class, box cxcywh as shares) of each line of a label file; faults are reported with their line."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return
    except ValueError as error:
        report.add("line", "text", error, file.name, image)
        return
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{file.relative_to(report.folder)}, line {number}"
        try:
            label, *values = map(float, line.split())
        except ValueError:
            report.add("line", LINE, line, place, image)
            continue
        values = values[:4] if pose else values
        if len(values) != 4 and (len(values) < 6 or len(values) % 2):
            report.add("line", LINE, line, place, image)
        elif label not in names:
            report.add("line_class", f"one of {sorted(names)}", line.split()[0], place, image)
        elif not all(math.isfinite(v) and -SLACK <= v <= 1 + SLACK for v in values):
            report.add("share", "numbers in [0, 1]", line, place, image)
        else:
            yield int(label), values if len(values) == 4 else _about_points(values)


def _about_points(values: list[float]) -> list[float]:
    """The box cxcywh about points x, y, x, y, ..."""
    (left, right), (top, low) = ((min(v), max(v)) for v in (values[::2], values[1::2]))
    return [(left + right) / 2, (top + low) / 2, right - left, low - top]
