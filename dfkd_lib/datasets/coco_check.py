"""Checks of a COCO folder before training: of its file's lists, its boxes, its image files, and between its splits."""

import hashlib
import json
from collections import Counter, defaultdict
from pathlib import Path, PureWindowsPath

import numpy as np

from dfkd_lib.core import WorkbenchError, is_number, ledger, printable
from dfkd_lib.core.artifacts import resolve
from dfkd_lib.datasets.coco_report import CocoReport
from dfkd_lib.datasets.sources import open_image, read_image

SPLITS = ("train", "val", "test")
TINY = 1e-3  # pixels: what is narrower has no area
SLACK = 0.5  # pixels by which a box may leave its image through rounding
NEAR = 0.9  # intersection over union from which two boxes are taken for one object
NEEDED = {
    "images": {"id", "file_name", "width", "height"},
    "categories": {"id", "name"},
    "annotations": {"image_id"},
}
WANTED = {
    "images": "id, file_name within the split's folder, width and height above 0",
    "categories": "id, and a name without control characters",
    "annotations": "image_id, ids that are whole numbers or words, and iscrowd 0 or 1",
}


def check_coco(folder: str | Path, split: str = "train", thorough: bool = True) -> CocoReport:
    """Look at a split of a COCO folder (`<split>.json` beside `<split>/`) and report all that is wrong with it.

    Args:
        folder: absolute, or relative to the repository.
        thorough: also decode every image, find pictures that lie there twice or in another split of the
            folder, and compare the splits' categories. Without it, only the annotation file is read and each
            image's header: what `load_coco` does before it decodes.

    Returns:
        CocoReport: `.fatal` says whether the split is unfit for training; `.text()`, `.table()` and `.problems()` show it.
    """
    folder = resolve(folder)
    if split != Path(split).name or not split or not printable(split):
        raise WorkbenchError(
            "no such split",
            expected="a name, as in train: train.json beside train/",
            got=split,
            where=folder,
            fix="name the split alone, and its folder as the folder",
        )
    ledger.register_files(
        {
            folder / f"{s}{end}": f"{folder.name}/{s}"
            for s in {*SPLITS, split}
            for end in ("", ".json")
        }
    )
    report = CocoReport(folder, split)
    if _read(report):
        _check_images(report)
        _check_categories(report)
        _check_annotations(report)
        for index, entry in enumerate(report.content["images"]):
            if _whole(entry, "images") and report.images.get(entry["id"]) is entry:
                _check_file(report, index, entry, thorough)
        if thorough:
            _compare_splits(report)
    return report


def _read(report: CocoReport) -> bool:
    """Read the file into `report.content`, with its three lists; False if there is nothing to look at."""
    try:
        content = json.loads(report.file.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except FileNotFoundError:
        report.add(
            "file",
            report.file.name,
            "a COCO folder holds train/ and train.json, val/ and val.json",
            "no such file",
        )
        return False
    except ledger.LedgerError:
        raise
    except (
        ValueError,
        OSError,
        RecursionError,
    ) as error:  # ValueError: no JSON, no UTF-8, numbers of thousands of digits
        report.add("file", report.file.name, "whole JSON", error)
        return False
    content = content if isinstance(content, dict) else {}
    for key in NEEDED:
        if not isinstance(content.get(key), list) or not content[key]:
            report.add(
                "list", report.file.name, f"a list '{key}' with at least one entry", f"no {key}"
            )
            content[key] = []
        for index, entry in enumerate(content[key]):
            if not _whole(entry, key):
                report.add("entry", f"{key}, entry {index}", WANTED[key], entry, entry=(key, index))
    report.content = content
    return True


def _once(pairs: list[tuple]) -> dict:
    """A JSON object, none of whose names stands there twice: the first of two would be lost in silence."""
    if len(found := dict(pairs)) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(
            f"{next(n for n in names if names.count(n) > 1)!r} is given twice in one entry"
        )
    return found


def _inside(name: str) -> bool:
    """Whether a file name that an annotation file gives stays within its split's folder, on any system."""
    return not (
        PureWindowsPath(name).anchor or name.startswith("/") or ".." in PureWindowsPath(name).parts
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def _whole(entry, key: str) -> bool:
    """Whether an entry has all it needs, in the types it needs."""
    if not isinstance(entry, dict) or any(entry.get(name) is None for name in NEEDED[key]):
        return False
    ids = [entry[name] for name in ("id", "image_id", "category_id") if entry.get(name) is not None]
    names = [entry[name] for name in ("name", "file_name") if name in NEEDED[key]]
    sides = [entry[name] for name in ("width", "height") if name in NEEDED[key]]
    return (
        all(type(i) in (int, str) for i in ids)
        and all(is_number(s) and s > 0 for s in sides)
        and all(
            isinstance(n, str) and n.strip() and printable(n) and (_inside(n) or key != "images")
            for n in names
        )
        and entry.get("iscrowd") in (None, 0, 1)
    )


def _repeated(report: CocoReport, key: str, name: str, kind: str, expected: str) -> set[int]:
    """Report the later of two whole entries with one value of `name`; the indices of all such entries."""
    first, found = {}, set()
    for index, entry in enumerate(report.content[key]):
        if not _whole(entry, key) or entry.get(name) is None:
            continue
        value = str(Path(entry[name])) if name == "file_name" else entry[name]  # ./1.png is 1.png
        before = first.setdefault(value, index)
        if before != index:
            same = f"{name} {entry[name]!r}, as entry {before}"
            report.flag(kind, key, index, expected, same, f"{key}, entry {index}")
            found.add(index)
    return found


def _check_images(report: CocoReport) -> None:
    twice = _repeated(report, "images", "id", "image_id", "an id of its own")
    _repeated(report, "images", "file_name", "file_name", "one entry for each file")
    report.images = {
        entry["id"]: entry
        for index, entry in enumerate(report.content["images"])
        if index not in twice and _whole(entry, "images")
    }


def _check_categories(report: CocoReport) -> None:
    twice = _repeated(report, "categories", "id", "category_id", "an id of its own")
    _repeated(report, "categories", "name", "category_name", "a name of its own")
    whole = [
        entry
        for index, entry in enumerate(report.content["categories"])
        if index not in twice and _whole(entry, "categories")
    ]
    report.categories = {
        entry["id"]: entry
        for entry in sorted(whole, key=lambda c: (isinstance(c["id"], str), c["id"]))
    }


def _check_annotations(report: CocoReport) -> None:
    _repeated(report, "annotations", "id", "annotation_id", "an id of its own")
    for index, annotation in enumerate(report.content["annotations"]):
        if not _whole(annotation, "annotations"):
            continue
        image, category = report.images.get(annotation["image_id"]), annotation.get("category_id")
        if image is None:
            wrong, expected = "no_image", "the id of an entry of 'images'"
            found = f"image id {annotation['image_id']!r}"
        elif category not in report.categories:
            wrong, expected = "category", f"one of {sorted(report.categories, key=str)}"
            found = category
        else:
            found = annotation.get("bbox")
            wrong, expected, box = checked_box(found, image)
        if wrong:
            report.flag(wrong, "annotations", index, expected, found)
        else:
            report.annotations.append((index, annotation, box))
            _check_area(report, index, annotation)
    _check_doubles(report)
    used = {annotation["category_id"] for _, annotation, _ in report.annotations}
    for key in set(report.categories) - used if report.annotations else ():
        report.add(
            "class", f"category {report.categories[key]['name']}", "at least one object", "none"
        )


def checked_box(box, image: dict) -> tuple[str | None, str, tuple | None]:
    """(kind of fault or None, what was expected, the box cut to its image or None); it may leave it by SLACK pixels."""
    if (
        not isinstance(box, (list, tuple))
        or len(box) != 4
        or not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in box)
    ):
        return "numbers", "[x, y, width, height]", None
    if not all(map(is_number, box)):
        return "finite", "four finite numbers", None
    x, y, width, height = map(float, box)
    if width < TINY or height < TINY:
        return "no_area", f"width and height above 0 (at least {TINY})", None
    if min(x, y) >= 0 and x + width <= image["width"] and y + height <= image["height"]:
        return None, "", (x, y, width, height)
    left, top = max(x, 0.0), max(y, 0.0)
    cut = (left, top, min(x + width, image["width"]) - left, min(y + height, image["height"]) - top)
    outside = (
        x < -SLACK
        or y < -SLACK
        or x + width > image["width"] + SLACK
        or y + height > image["height"] + SLACK
    )
    if outside or min(cut[2:]) < TINY:
        return (
            "outside",
            f"within {image['width']} x {image['height']} pixels",
            cut if min(cut[2:]) >= TINY else None,
        )
    return None, "", cut


def _check_area(report: CocoReport, index: int, annotation: dict) -> None:
    area, (width, height) = annotation.get("area"), map(float, annotation["bbox"][2:])
    if area is None or annotation.get("segmentation"):  # then it is that of the outline
        return
    if not is_number(area) or not abs(area - width * height) <= 1 + 0.01 * width * height:
        expected = f"{width:g} x {height:g} = {width * height:g}"
        report.flag("area", "annotations", index, expected, area)


def _check_doubles(report: CocoReport) -> None:
    """Report annotations that are there twice, and boxes that almost are, image by image."""
    of_image = defaultdict(list)
    for index, annotation, box in report.annotations:
        if not annotation.get("iscrowd"):
            of_image[annotation["image_id"]].append((index, annotation, box))
    for found in of_image.values():
        first = {}
        for index, annotation, box in found:
            before = first.setdefault((annotation["category_id"], box), annotation)
            if before is not annotation:
                found_before = f"the box and category of annotation {before.get('id')}"
                report.flag("twice", "annotations", index, "each object once", found_before)
        overlaps = _overlaps(np.array([box for _, _, box in found]))
        for i, j in zip(*np.nonzero(np.triu(overlaps, 1) > NEAR), strict=True):
            (_, one, box), (index, other, again) = found[i], found[j]
            if one["category_id"] != other["category_id"] or box != again:
                classes = " and ".join(
                    report.categories[a["category_id"]]["name"] for a in (one, other)
                )
                report.flag(
                    "near",
                    "annotations",
                    index,
                    f"an overlap (IoU) up to {NEAR}",
                    f"{overlaps[i, j]:.2f}, {classes}",
                    f"annotations {one.get('id')} and {other.get('id')}",
                )


def _overlaps(boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (n, 4), x, y, width, height: (n, n)."""
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    shared = (np.minimum(high[:, None], high) - np.maximum(low[:, None], low)).clip(0).prod(axis=2)
    areas = boxes[:, 2:].prod(axis=1)
    return shared / (areas[:, None] + areas - shared)


def _check_file(report: CocoReport, index: int, entry: dict, decode: bool) -> None:
    path = report.folder / report.split / entry["file_name"]
    if not _is_file(path):
        report.flag("missing", "images", index, f"a file in {path.parent}", "none")
        return
    try:
        width, height = read_image(path, "RGB").shape[1::-1] if decode else _header(path)
    except ledger.LedgerError:
        raise
    # A broken file makes Pillow's readers raise whatever they stumble over.
    except Exception as error:
        found = error.got if isinstance(error, WorkbenchError) else error
        report.flag("unreadable", "images", index, "a whole image file", found)
        return
    if (width, height) != (entry["width"], entry["height"]):
        expected = f"{entry['width']} x {entry['height']} (from {report.file.name})"
        report.flag("size", "images", index, expected, f"{width} x {height}")


def _header(path: Path) -> tuple[int, int]:
    with open_image(path) as image:
        return image.size


def _compare_splits(report: CocoReport) -> None:
    """Report pictures that lie there twice, in this split or in another, and other categories than another split's."""
    files = [(report.split, entry["file_name"]) for entry in report.images.values()]
    classes = [(key, entry["name"]) for key, entry in report.categories.items()]
    for split in SPLITS:
        if split == report.split or not (report.folder / f"{split}.json").exists():
            continue
        other = CocoReport(report.folder, split)
        if _read(other):
            _check_images(other)
            _check_categories(other)
            files += [(split, entry["file_name"]) for entry in other.images.values()]
            theirs = [(key, entry["name"]) for key, entry in other.categories.items()]
            if theirs != classes:
                report.add("classes", report.file.name, f"as in {split}.json: {theirs}", classes)
    indices = {
        entry["file_name"]: index
        for index, entry in reversed(list(enumerate(report.content["images"])))
        if _whole(entry, "images")
    }
    for group in _same_bytes(report.folder, dict.fromkeys(files)):
        mine = [name for split, name in group if split == report.split]
        abroad = [f"{split}/{name}" for split, name in group if split != report.split]
        for place, name in enumerate(mine):
            if abroad:
                found = f"the same as {abroad[0]}"
                report.flag("leak", "images", indices[name], "in one split only", found)
            elif place:
                found = f"the same as {mine[0]}"
                report.flag("same", "images", indices[name], "another picture", found)


def _same_bytes(folder: Path, files) -> list[list[tuple[str, str]]]:
    """Groups of two files or more, (split, name), with the same content; only files of one length are read."""
    paths = {(split, name): folder / split / name for split, name in files}
    lengths = {key: path.stat().st_size for key, path in paths.items() if _is_file(path)}
    common = Counter(lengths.values())
    groups = defaultdict(list)
    for key, length in lengths.items():
        if common[length] > 1:
            groups[hashlib.sha256(paths[key].read_bytes()).digest()].append(key)
    return [group for group in groups.values() if len(group) > 1]
