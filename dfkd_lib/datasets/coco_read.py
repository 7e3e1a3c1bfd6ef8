"""A COCO annotation file as its writer meant it: numbers as text, names from Windows, and what it leaves to the images."""

import json
import re
from collections import Counter
from functools import partial
from pathlib import Path, PureWindowsPath

from dfkd_lib.core import is_number, ledger
from dfkd_lib.datasets.coco_report import ROBOFLOW, YOLO, CocoReport
from dfkd_lib.datasets.sources import size_of
from dfkd_lib.datasets.yolo import read_yolo, yolo_places

WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})(\.0*)?")
DECIMAL = re.compile(r"-?\d{1,17}\.?\d{0,17}(e-?\d\d?)?")
# What is a whole number in an entry, however it is written.
NUMBERS = {"id", "width", "height", "image_id", "category_id", "iscrowd"}


def places(folder: Path, split: str) -> list[Path]:
    """The files and folders of a split that hold real data, whether they are there or not."""
    report = CocoReport(folder, split)
    return yolo_places(folder, split) if report.file.name == YOLO else [report.place, report.file]


def changing(folder: Path) -> list[Path]:
    """The files and folders whose times say whether a folder's splits are as they were."""
    found = [place for split in ("train", "val", "test") for place in places(folder, split)]
    yolo = folder / YOLO
    return [*found, yolo, *folder.rglob("*.txt")] if yolo.is_file() else found


def has_split(folder: Path, split: str) -> bool:
    """Whether a COCO or YOLO folder has this split."""
    return any(place.exists() for place in places(folder, split)[-1:])


def read_content(report: CocoReport, lean: bool = False) -> bool:
    """Read the file into `report.content`; False if there is nothing to look at. `lean` forgets outlines of objects that
    have boxes: of COCO itself they are most of the file."""
    if report.file.name == YOLO:
        read_yolo(report)
        return not any(fault.kind == "file" for fault in report.faults)
    try:
        # Of bytes, json finds the encoding, a byte order mark or none.
        entry = partial(_entry, lean=lean)
        report.content = json.loads(report.file.read_bytes(), object_pairs_hook=entry)
    except FileNotFoundError:
        expected = (
            f"{report.split}.json beside {report.split}/, {report.split}/{ROBOFLOW}, "
            f"annotations/instances_{report.split}2017.json beside {report.split}2017/, or {YOLO}"
        )
        pattern = f"*{report.split}*.json"
        others = [*report.folder.glob(pattern), *report.folder.glob(f"*/{pattern}")]
        names = ", ".join(str(path.relative_to(report.folder)) for path in sorted(others)[:3])
        report.add("file", expected, f"no such file{names and f', but {names}'}")
    except ledger.LedgerError:
        raise
    # ValueError: no JSON, no UTF-8, numbers of thousands of digits.
    except (ValueError, OSError, RecursionError) as error:
        report.add("file", "whole JSON", error)
    else:
        images = report.content.get("images") if isinstance(report.content, dict) else None
        for entry in images if isinstance(images, list) else ():
            if isinstance(entry, dict) and isinstance(entry.get("file_name"), str):
                entry["file_name"] = _name(report, entry["file_name"])
                _add_size(report, entry)
    return not report.faults


def _entry(pairs: list[tuple], lean: bool) -> dict:
    """A JSON object with its numbers as numbers, an annotation's with a box; none of its names stands there twice: the
    first of two would be lost in silence."""
    entry = dict(pairs)
    if len(entry) < len(pairs):
        name = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{name!r} is given twice in one entry")
    entry.update((name, _whole(entry[name])) for name in NUMBERS & entry.keys())
    if "image_id" in entry:
        _add_box(entry)
    if lean and entry.get("bbox"):
        entry.pop("segmentation", None)
    return entry


def _whole(value: object) -> object:
    """A whole number where text or a float (as pandas writes ids) means one; anything else as it is."""
    if isinstance(value, str) and (found := WHOLE.fullmatch(value.strip())):
        return int(found[0].partition(".")[0])
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _name(report: CocoReport, name: str) -> str:
    """A file name as it is below the split's folder: Windows' backslashes are /, a leading name of the folder goes."""
    place = report.place
    posix = PureWindowsPath(name).as_posix() if "\\" in name else name
    below = posix.removeprefix("./").removeprefix(f"{place.name}/")
    return next((one for one in (name, posix, below) if is_file(place / one)), posix)


def _add_size(report: CocoReport, entry: dict) -> None:
    """Width and height of the upright picture where an entry has none, and the picture can be read."""
    path = report.place / entry["file_name"]
    missing = [side for side in ("width", "height") if entry.get(side) is None]
    if missing and inside(entry["file_name"]) and is_file(path) and (size := size_of(path)):
        own = dict(zip(("width", "height"), size, strict=True))
        entry |= {side: own[side] for side in missing}


def _add_box(annotation: dict) -> None:
    """A box of numbers written as text, or about the polygons of an object that has none.

    Not about a run-length encoded mask: pycocotools takes a damaged one for another, or ends the process.
    """
    box, outline = annotation.get("bbox"), annotation.get("segmentation")
    if isinstance(box, list):
        text = [isinstance(v, str) and DECIMAL.fullmatch(v.strip()) for v in box]
        annotation["bbox"] = [
            float(v) if is_text else v for v, is_text in zip(box, text, strict=True)
        ]
    elif box is None and isinstance(outline, list) and outline:
        whole = all(isinstance(part, list) and len(part) % 2 == 0 and part for part in outline)
        if whole and all(is_number(value) for part in outline for value in part):
            xs, ys = ([v for part in outline for v in part[axis::2]] for axis in (0, 1))
            annotation["bbox"] = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def inside(name: str) -> bool:
    """Whether a file name that an annotation file gives stays within its split's folder, on any system."""
    path = PureWindowsPath(name)
    return not (path.anchor or name.startswith("/") or ".." in path.parts)


def is_file(path: Path) -> bool:
    """Whether there is such a file; False also for a name that is too long."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
