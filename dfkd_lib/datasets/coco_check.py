"""Checks of a COCO folder before training: of its file's lists, its boxes, its image files, and between its splits."""

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import torch

from dfkd_lib.core import WorkbenchError, file_hash, is_number, ledger, printable, resolve
from dfkd_lib.datasets.coco_read import has_split, inside, is_file, places, read_content
from dfkd_lib.datasets.coco_report import CocoReport
from dfkd_lib.datasets.sources import open_image, read_image, upright_size

SPLITS = ("train", "val", "test")
TINY = 1e-3  # pixels: what is narrower has no area
SLACK = 0.5  # pixels by which a box may leave its image through rounding
NEAR = 0.9  # intersection over union from which two boxes are taken for one object
# What an entry of each list needs: the names of its parts, and the rule in words.
NEEDED = {
    "images": (
        {"id", "file_name", "width", "height"},
        "id, file_name within the split's folder, width and height above 0",
    ),
    "categories": ({"id", "name"}, "id, and a name without control characters"),
    "annotations": (
        {"image_id"},
        "image_id, ids that are whole numbers or words, and iscrowd 0 or 1",
    ),
}
# What no two entries of a list may share, and the kind of fault if they do.
UNIQUE = {
    ("images", "id"): "image_id",
    ("images", "file_name"): "file_name",
    ("categories", "id"): "category_id",
    ("categories", "name"): "category_name",
    ("annotations", "id"): "annotation_id",
}


def check_coco(folder: str | Path, split: str = "train", thorough: bool = True) -> CocoReport:
    """Look at a split of a COCO folder (laid out as this project's, Roboflow's or COCO's) or of a YOLO one, and report
    all that is wrong with it.

    Args:
        folder: absolute, or relative to the repository.
        thorough: also decode every image, find pictures that lie there twice or in another split of the
            folder, and compare the splits' categories. Without it, only the annotation file is read and each
            image's header: what `load_coco` does before it decodes.

    Returns:
        CocoReport: `.fatal` says whether the split is unfit for training; `.text()` and `.table()` show it.
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
    for name in {*SPLITS, split}:
        ledger.register_files(dict.fromkeys(places(folder, name), f"{folder.name}/{name}"))
    report = CocoReport(folder, split)
    if read_content(report, lean=not thorough):
        check_content(report)
        for index, entry in report.whole["images"].items():
            if report.images[entry["id"]] is entry:
                frame(report, index, thorough)
        if thorough:
            _compare_splits(report)
    return report


def check_content(report: CocoReport) -> None:
    """Check the three lists of `report.content`, and fill the report with their entries."""
    if not isinstance(report.content, dict):
        report.content = {}
    for key, (_, rule) in NEEDED.items():
        entries = report.content.get(key)
        if not isinstance(entries, list) or not entries:
            report.add("list", f"a list '{key}' with at least one entry", f"no {key}")
            entries = report.content[key] = []
        report.whole[key] = {i: entry for i, entry in enumerate(entries) if _whole(entry, key)}
        for index in sorted(set(range(len(entries))) - set(report.whole[key])):
            place = f"{key}, entry {index}"
            report.add("entry", rule, entries[index], place, entry=(key, index))
    _check_unique(report)
    report.images = _by_id(report, "images")
    by_id = _by_id(report, "categories")
    report.categories = dict(sorted(by_id.items(), key=lambda c: (isinstance(c[0], str), c[0])))
    _check_annotations(report)


def _whole(entry, key: str) -> bool:
    """Whether an entry has all it needs, in the types it needs."""
    needed = NEEDED[key][0]
    if not isinstance(entry, dict) or any(entry.get(name) is None for name in needed):
        return False
    ids = [entry[name] for name in ("id", "image_id", "category_id") if entry.get(name) is not None]
    names = [entry[name] for name in needed & {"name", "file_name"}]
    return (
        all(type(value) in (int, str) for value in ids)
        and all(isinstance(name, str) and name.strip() and printable(name) for name in names)
        and ("file_name" not in needed or inside(entry["file_name"]))
        and all(is_number(entry[side]) and entry[side] > 0 for side in needed & {"width", "height"})
        and entry.get("iscrowd") in (None, 0, 1)
    )


def _check_unique(report: CocoReport) -> None:
    for (key, name), kind in UNIQUE.items():
        first: dict = {}
        for index, entry in report.whole[key].items():
            if entry.get(name) is None:
                continue
            before = first.setdefault(identity(entry, name), index)
            if before != index:
                found = f"{name} {entry[name]!r}, as entry {before}"
                report.flag(kind, key, index, "one of its own", found, f"{key}, entry {index}")


def identity(entry: dict, name: str):
    """The value that tells entries apart: ./1.png is 1.png."""
    return str(Path(entry[name])) if name == "file_name" else entry[name]


def _by_id(report: CocoReport, key: str) -> dict:
    """{id: the first whole entry of a list that has it}."""
    first: dict = {}
    for entry in report.whole[key].values():
        first.setdefault(entry["id"], entry)
    return first


def _check_annotations(report: CocoReport) -> None:
    for index, annotation in report.whole["annotations"].items():
        image, category = report.images.get(annotation["image_id"]), annotation.get("category_id")
        if image is None:
            wrong, expected = "no_image", "the id of an entry of 'images'"
            found = f"image id {annotation['image_id']!r}"
        elif category not in report.categories:
            wrong, expected = "category", f"one of {sorted(report.categories, key=str)}"
            found = repr(category)
        else:
            found = annotation.get("bbox")
            wrong, expected, box = checked_box(found, image)
        if wrong:
            report.flag(wrong, "annotations", index, expected, found)
        else:
            report.annotations.append((index, annotation, box))
    _check_doubles(report)
    used = {annotation["category_id"] for _, annotation, _ in report.annotations}
    for key in set(report.categories) - used if report.annotations else ():
        place = f"category {report.categories[key]['name']}"
        report.add("class", "at least one object", "none", place)


def checked_box(box, image: dict) -> tuple[str | None, str, tuple | None]:
    """(kind of fault or None, what was expected, the box cut to its image or None); it may leave it by SLACK pixels."""
    if not isinstance(box, (list, tuple)) or len(box) != 4 or not all(map(is_number, box)):
        return "numbers", "[x, y, width, height], finite, or polygons", None
    x, y, width, height = map(float, box)
    if width < TINY or height < TINY:
        return "no_area", f"width and height above 0 (at least {TINY})", None
    beyond = max(-x, -y, x + width - image["width"], y + height - image["height"])
    if beyond <= 0:
        return None, "", (x, y, width, height)
    left, top = max(x, 0.0), max(y, 0.0)
    cut = (left, top, min(x + width, image["width"]) - left, min(y + height, image["height"]) - top)
    empty = min(cut[2:]) < TINY
    if empty or beyond > SLACK:
        expected = f"within {image['width']} x {image['height']} pixels"
        return "outside", expected, None if empty else cut
    return None, "", cut


def _check_doubles(report: CocoReport) -> None:
    """Report annotations that are there twice, and boxes that almost are, image by image."""
    from torchvision.ops import box_convert, box_iou

    of_image = defaultdict(list)
    for index, annotation, box in report.annotations:
        if not annotation.get("iscrowd"):
            of_image[annotation["image_id"]].append((index, annotation, box))
    for found in of_image.values():
        boxes = torch.tensor([box for *_, box in found], dtype=torch.float64)
        corners = box_convert(boxes, "xywh", "xyxy")
        overlaps = box_iou(corners, corners).triu(1)
        doubles = set()
        for i, j in (overlaps > NEAR).nonzero().tolist():
            (_, one, box), (index, other, again) = found[i], found[j]
            same = one["category_id"] == other["category_id"] and box == again
            if same and j not in doubles:
                doubles.add(j)
                before = f"the box and category of annotation {one.get('id')}"
                report.flag("twice", "annotations", index, "each object once", before)
            elif not same:
                pair = [report.categories[a["category_id"]]["name"] for a in (one, other)]
                place = f"annotations {one.get('id')} and {other.get('id')}"
                expected = f"an overlap (IoU) up to {NEAR}"
                shown = f"{overlaps[i, j]:.2f}, {' and '.join(pair)}"
                report.flag("near", "annotations", index, expected, shown, place)


def frame(report: CocoReport, index: int, decode: bool = True) -> np.ndarray | None:
    """An image's pixels, upright, uint8 (H, W, 3), or None; a file that is missing, broken or of another size is reported.

    Without `decode` only its header is read, and there are no pixels.
    """
    entry, pixels = report.whole["images"][index], None
    path = report.path(index)
    if not is_file(path):
        report.flag("missing", "images", index, f"a file in {path.parent}", "none")
        return None
    try:
        with open_image(path) as image:
            stored, (size, turned) = image.size, upright_size(image)
        if decode:
            pixels = read_image(path, "RGB")
            size = pixels.shape[1::-1]
    except ledger.LedgerError:
        raise
    except WorkbenchError as error:
        report.flag("unreadable", "images", index, "a whole image file", error.got)
        return None
    wanted = (entry["width"], entry["height"])
    if size != wanted:
        kind = "lying" if stored == wanted else "size"
        expected = f"{wanted[0]} x {wanted[1]} (from {report.file.name})"
        report.flag(kind, "images", index, expected, f"{size[0]} x {size[1]}")
    elif turned and stored == wanted:
        report.flag("turned", "images", index, "a picture without an EXIF rotation", "one with it")
    return pixels


def _compare_splits(report: CocoReport) -> None:
    """Report pictures that lie there twice, in this split or in another, and other categories than another split's."""
    indices: dict[str, int] = {}
    for index, entry in report.whole["images"].items():
        indices.setdefault(entry["file_name"], index)
    files = {(report.split, name): report.place / name for name in indices}
    classes = [(key, entry["name"]) for key, entry in report.categories.items()]
    for split in SPLITS:
        other = CocoReport(report.folder, split)
        there = split != report.split and has_split(report.folder, split)
        if not there or not read_content(other):
            continue
        check_content(other)
        names = (entry["file_name"] for entry in other.images.values())
        files |= {(split, name): other.place / name for name in names}
        theirs = [(key, entry["name"]) for key, entry in other.categories.items()]
        if theirs != classes:
            report.add("classes", f"as in {other.file.name} of {split}: {theirs}", classes)
    for group in _same_bytes(files):
        mine = [name for split, name in group if split == report.split]
        abroad = [f"{split}/{name}" for split, name in group if split != report.split]
        for place, name in enumerate(mine):
            if abroad:
                found = f"the same as {abroad[0]}"
                report.flag("leak", "images", indices[name], "in one split only", found)
            elif place:
                found = f"the same as {mine[0]}"
                report.flag("same", "images", indices[name], "another picture", found)


def _same_bytes(paths: dict[tuple[str, str], Path]) -> list[list[tuple[str, str]]]:
    """Groups of two files or more, (split, name), with the same content; only files of one length are read."""
    lengths = {key: path.stat().st_size for key, path in paths.items() if is_file(path)}
    common = Counter(lengths.values())
    groups = defaultdict(list)
    for key, length in lengths.items():
        if common[length] > 1:
            groups[file_hash(paths[key])].append(key)
    return [group for group in groups.values() if len(group) > 1]
