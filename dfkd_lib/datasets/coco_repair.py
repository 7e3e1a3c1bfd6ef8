"""A cleaned copy of a COCO folder, with a list of all that was left out, cut or moved."""

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

from dfkd_lib.core import WorkbenchError, resolve
from dfkd_lib.datasets.coco_check import check_coco, check_content, checked_box, identity
from dfkd_lib.datasets.coco_report import LINES, CocoReport, Fault

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
            content, changes = _repaired(report)
            for fault, how in changes:
                what = {name: getattr(fault, name) for name in ("what", "place", "image", "found")}
                done.append({"split": split, **what, "done": how})
            for entry in content["images"]:
                target = work / split / entry["file_name"]
                target.parent.mkdir(parents=True, exist_ok=True)
                _link(report.place / entry["file_name"], target)
            (work / f"{split}.json").write_text(json.dumps(content))
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


def _repaired(report: CocoReport) -> tuple[dict, list[tuple[Fault, str]]]:
    """The content of a split's file without its faults; each fault that was repaired, and how.

    First images and categories are left out or joined; what that does to the annotations, another check finds.
    """
    names = [fault.found for fault in report.faults if fault.kind == "category_id"]
    if names or not (report.images and report.categories):
        raise WorkbenchError(
            "a COCO file cannot be repaired",
            expected="images, and categories with an id each",
            got=names[0] if names else report.error().got,
            where=report.file,
            fix="write it again",
        )
    _join(report)
    again = CocoReport(report.folder, report.split, content=report.content)
    done = [(fault, "left out") for fault in report.faults if fault.kind in LINES]
    done += _leave_out(again.content, report)
    check_content(again)
    kept = dict(enumerate(again.content["annotations"]))
    for fault in again.faults:
        key, index = fault.entry or ("", 0)
        if key != "annotations" or not (fault.fatal or fault.kind == "twice"):
            continue
        annotation, box = kept.pop(index), None
        if fault.kind == "outside":
            *_, box = checked_box(annotation["bbox"], again.images[annotation["image_id"]])
        if box:
            area = {} if annotation.get("segmentation") else {"area": box[2] * box[3]}
            kept[index] = annotation | {"bbox": list(box)} | area
        done.append((fault, f"cut to {list(box)}" if box else "left out"))
    if not kept:
        raise WorkbenchError(
            "nothing would be left of a COCO file", where=report.file, fix="write it again"
        )
    return {**again.content, "annotations": [kept[index] for index in sorted(kept)]}, done


def _join(report: CocoReport) -> None:
    """Let annotations of a thing that has several ids name the first of them."""
    for key, of, name in (
        ("images", "image_id", "file_name"),
        ("categories", "category_id", "name"),
    ):
        first: dict = {}
        ids: dict = {}
        for entry in report.whole[key].values():  # in the file's order, as `_leave_out` has it
            ids.setdefault(entry["id"], first.setdefault(identity(entry, name), entry["id"]))
        for annotation in report.whole["annotations"].values():
            annotation[of] = ids.get(annotation.get(of), annotation.get(of))


def _leave_out(content: dict, report: CocoReport) -> list[tuple[Fault, str]]:
    """Take images and categories with a fatal fault from `content`; the faults, and what was done."""
    gone, done = {"images": set(), "categories": set()}, []
    for fault in report.faults:
        key, index = fault.entry or ("", 0)
        if key not in gone or not fault.fatal:
            continue
        if fault.kind == "leak" and report.split != "train":
            continue
        gone[key].add(index)
        how = "left out"
        if fault.kind in ("file_name", "category_name"):
            how = "joined with the first"
        elif fault.kind == "image_id":
            entry = report.whole["images"][index]
            first = report.images[entry["id"]]
            if first["file_name"] != entry["file_name"]:  # nothing says whose the annotations are
                gone["images"].add(content["images"].index(first))
                how = "left out, and the first"
        done.append((fault, how))
    for key, indices in gone.items():
        content[key] = [e for index, e in enumerate(content[key]) if index not in indices]
    return done
