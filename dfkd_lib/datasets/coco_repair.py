"""A cleaned copy of a COCO folder, with a list of all that was left out, cut or moved."""

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

from dfkd_lib.core import WorkbenchError
from dfkd_lib.core.artifacts import resolve
from dfkd_lib.datasets.coco_check import check_coco, checked_box
from dfkd_lib.datasets.coco_report import KINDS, CocoReport

LIST = "repairs.csv"


@contextmanager
def new_folder(path: str | Path):
    """A folder to fill, which appears at `path` when the block ends without an error; WorkbenchError if it is there."""
    path = resolve(path)
    if path.exists():
        raise WorkbenchError(
            "the folder to write is there already",
            expected="a new folder",
            got=path,
            fix="name another, or remove it",
        )
    work = path.with_name(f".{path.name}.{os.getpid()}.part")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        yield work
        work.rename(path)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def repair_coco(folder: str | Path, out: str | Path, splits: tuple[str, ...]) -> list[dict]:
    """Write a copy of a COCO folder without what `check_coco` calls fatal, and without annotations that are there twice.

    Boxes are cut to their images; impossible annotations are left out, and so are images that are missing, unreadable or
    of another size (with their annotations), and from "train" pictures that another split has too. Two entries of one
    file, and two categories of one name, become one. Images are hard links where the disk allows them, else copies.

    Returns:
        What was done, a dict for each entry: split, what, place, image, found, done. Also `out/repairs.csv`.

    Raises:
        WorkbenchError: if a file cannot be repaired (unreadable, or nothing would be left), or `out` is there.
    """
    import pandas as pd

    folder, done = resolve(folder), []
    with new_folder(out) as work:
        for split in splits:
            report = check_coco(folder, split)
            kept, list_of_split = _repaired(report)
            done += [{"split": split, **row} for row in list_of_split]
            for entry in kept["images"]:
                target = work / split / entry["file_name"]
                target.parent.mkdir(parents=True, exist_ok=True)
                _link(folder / split / entry["file_name"], target)
            (work / f"{split}.json").write_text(json.dumps(kept))
        columns = ["split", "what", "place", "image", "found", "done"]
        pd.DataFrame(done, columns=columns).to_csv(work / LIST, index=False)
    return done


def _link(source: Path, target: Path) -> None:
    source = source.resolve()
    try:
        # Not a symbolic link: the ledger would take its end for another folder's file.
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _repaired(report: CocoReport) -> tuple[dict, list[dict]]:
    """The content of a split's file without its faults, and what was done."""
    names = [fault for fault in report.faults if fault.kind == "category_id"]
    if names or not (report.images and report.categories and report.annotations):
        raise WorkbenchError(
            "a COCO file cannot be repaired",
            expected="images, categories with an id each, annotations",
            got=names[0].found if names else report.error().got,
            where=report.file,
            fix="write it again",
        )
    gone, done = _faulty(report)
    kept = {
        key: [entry for index, entry in enumerate(report.content[key]) if index not in gone[key]]
        for key in ("images", "categories")
    }
    images = {entry["id"]: entry for entry in kept["images"]}
    categories = {entry["id"] for entry in kept["categories"]}
    join = {
        "image_id": _joined(report, "images", "file_name"),
        "category_id": _joined(report, "categories", "name"),
    }
    kept["annotations"] = []
    for index, old in enumerate(report.content["annotations"]):
        if index in gone["annotations"]:
            continue
        new = {**old, **{key: firsts.get(old[key], old[key]) for key, firsts in join.items()}}
        row = {
            "what": "its image or category was left out",
            "place": f"annotation {old.get('id')}",
            "image": "",
            "found": old["bbox"],
            "done": "left out",
        }
        if new["image_id"] in images and new["category_id"] in categories:
            image = images[new["image_id"]]
            box = checked_box(old["bbox"], image)[2]
            if box == tuple(map(float, old["bbox"])):
                kept["annotations"].append(new)
                continue
            row |= {"what": "a box leaves its image", "image": image["file_name"]}
            if box:
                row["done"] = f"cut to {list(box)}"
                area = {} if old.get("segmentation") else {"area": box[2] * box[3]}
                kept["annotations"].append(new | {"bbox": list(box)} | area)
        done.append(row)
    if not kept["annotations"]:
        raise WorkbenchError(
            "nothing would be left of a COCO file", where=report.file, fix="write it again"
        )
    return {**report.content, **kept}, done


def _faulty(report: CocoReport) -> tuple[dict[str, set], list[dict]]:
    """Indices of the entries of each list that go, and a row on each."""
    gone, done = {"images": set(), "categories": set(), "annotations": set()}, []
    for fault in report.faults:
        kind = KINDS[fault.kind]
        if not fault.entry or not (kind.fatal or fault.kind == "twice") or fault.kind == "outside":
            continue  # boxes outside are cut below
        if fault.kind == "leak" and report.split != "train":
            continue
        key, index = fault.entry
        gone[key].add(index)
        joined = fault.kind in ("file_name", "category_name")
        done.append(
            {
                "what": kind.what,
                "place": fault.place,
                "image": fault.image,
                "found": fault.found,
                "done": "joined with the first" if joined else "left out",
            }
        )
        if fault.kind == "image_id":
            entries = report.content["images"]
            first = next(
                i for i, entry in enumerate(entries) if entry is report.images[entries[index]["id"]]
            )
            # Nothing says whose the annotations are.
            if entries[first]["file_name"] != entries[index]["file_name"]:
                gone["images"].add(first)
                done.append(
                    {
                        **done[-1],
                        "place": f"images, entry {first}",
                        "image": entries[first]["file_name"],
                    }
                )
    return gone, done


def _joined(report: CocoReport, key: str, name: str) -> dict:
    """{id of an entry: id of the first with the same `name`} for entries that are one thing under two ids."""
    first, join = {}, {}
    for entry in (report.images if key == "images" else report.categories).values():
        before = first.setdefault(
            str(Path(entry[name])) if key == "images" else entry[name], entry["id"]
        )
        if before != entry["id"]:
            join[entry["id"]] = before
    return join
