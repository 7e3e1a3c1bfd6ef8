"""A COCO folder from a clone of the Drone-detection-dataset: visible-light videos with MATLAB labels (optional extra).

F. Svanström, F. Alonso-Fernandez, C. Englund: A dataset for multi-sensor drone detection. Data in Brief 39, 2021.
`python data/aerial4.py CLONE OUT` builds the folder and checks it.
Each `Data/Video_V/V_<CLASS>_<number>.mp4` has a `..._LABELS.mat`, which keeps MATLAB's groundTruth object.
"""

import argparse
import csv
import importlib
import json
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from dfkd_lib.core import WorkbenchError, resolve
from dfkd_lib.datasets.coco_check import checked_box
from dfkd_lib.datasets.coco_repair import new_folder

CLASSES = ("airplane", "bird", "drone", "helicopter")
NAME = re.compile(rf"V_({'|'.join(CLASSES)})_(\d+)\.mp4", re.IGNORECASE)
FRAMES = 6  # frames of a video where no step is given
SPARE = 3  # frames by which a video and its labels may differ: decoders do not agree on a video's last ones
SOURCE = "https://github.com/DroneDetectionThesis/Drone-detection-dataset"
SKIPPED = "skipped.csv"
EXTRA = {"cv2": "opencv-python-headless", "mcos_decoder": "mcos-decoder"}
CELL, DOUBLE, MATRIX = (
    1,
    6,
    14,
)  # MAT-file format: classes of arrays, and the type of an element that is one
ABOUT = f"frames of the Drone-detection-dataset, visible-light videos, {SOURCE}"
CC0 = "https://creativecommons.org/publicdomain/zero/1.0/"
LISTS = {
    "licenses": [{"id": 1, "name": "CC0 1.0", "url": CC0}],
    "categories": [
        {"id": k, "name": name, "supercategory": "aerial"} for k, name in enumerate(CLASSES, 1)
    ],
}


@dataclass
class Aerial4:
    """What `build_aerial4` wrote: frames and videos of each split, and what was skipped, a row (video, frame, why) each."""

    frames: Counter = field(default_factory=Counter)
    videos: Counter = field(default_factory=Counter)
    skipped: list[tuple[str, int | str, str]] = field(default_factory=list)

    def text(self) -> str:
        lines = [f"{s}: {n} frames of {self.videos[s]} videos" for s, n in self.frames.items()]
        reasons = Counter(why for *_, why in self.skipped)
        return "\n".join(lines + [f"skipped, {why}: {n}" for why, n in reasons.most_common()])


@dataclass(frozen=True, eq=False)
class Video:
    """A video with the boxes of its frames, each float (n, 4): x, y, width, height in MATLAB's pixels, from 1."""

    path: Path
    label: int
    boxes: list[np.ndarray]

    @property
    def name(self) -> str:
        return self.path.stem


def build_aerial4(
    clone: str | Path, out: str | Path, every: int = 0, val_share: float = 0.2, seed: int = 0
) -> Aerial4:
    """Write `out/train`, `out/train.json`, `out/val`, `out/val.json` from the labelled frames of the visible videos.

    Args:
        clone: a clone of the data set, or its folder of visible videos. out: a folder that is not there; it appears when
            it is complete. every: one frame in so many; 0: six of each video, evenly. val_share: share of each class's
            videos in val, drawn by seed; a video is in one split only.

    Returns:
        Aerial4. Frames without a box, or with one that is not in the frame, are left out: `out/skipped.csv` says which.

    Raises:
        WorkbenchError: without the optional extra, without videos, if `out` is there, or if a split would be empty.
    """
    for module in EXTRA:
        _extra(module)
    if every < 0 or not 0 < val_share < 1:
        raise WorkbenchError(
            "impossible frames or split",
            expected="every from 0, val_share between 0 and 1",
            got=f"every {every}, val_share {val_share}",
            fix="correct the value out of range",
        )
    made = Aerial4()
    with new_folder(out) as work:
        videos = _labelled(_paths(resolve(clone)), made)
        val = _drawn(videos, val_share, seed)
        drawn = {"every": every, "val_share": val_share, "seed": seed}
        about = {"description": ABOUT, "version": "1.0", **drawn}
        for split in ("train", "val"):
            chosen = [video for video in videos if (video.path in val) == (split == "val")]
            content = _write(work / split, chosen, every, made)
            if not content["images"]:
                raise WorkbenchError(
                    f"no frame is left for {split}",
                    got=made.text() or "no video",
                    where=clone,
                    expected="two labelled videos or more of a class",
                    fix="fetch the data set again",
                )
            (work / f"{split}.json").write_text(json.dumps({"info": about, **content}))
        with open(work / SKIPPED, "w", newline="") as file:
            csv.writer(file).writerows([("video", "frame", "why"), *made.skipped])
    return made


def read_labels(path: str | Path) -> list[np.ndarray]:
    """The boxes of each frame in a MATLAB groundTruth file: float (n, 4), x, y, width, height in pixels counted from 1.

    The object lies in the file as a tree of arrays: the labels are the one cell array, a cell for each frame, in which
    some cell is a matrix of four columns. (mcos_decoder 0.1's own `load_groundtruth` goes by the cells' sizes in bytes: it
    takes a frame with two boxes for an empty one, and loses frames whose box is kept as whole numbers.)

    Raises:
        WorkbenchError: if no cell array or several have boxes, or the file keeps no MATLAB object.
    """
    import scipy.io

    workspace = scipy.io.loadmat(str(path)).get("__function_workspace__")
    found, todo = {}, []
    if workspace is not None:
        todo = list(_extra("mcos_decoder").MatStream(workspace.tobytes()).walk())
    while todo:
        element = todo.pop()
        todo += element.children
        if _shape(element)[0] == CELL:
            frames = [_boxes(cell) for cell in element.children[3:]]
            if any(len(boxes) for boxes in frames):  # by content: a column may lie there twice
                found[str([boxes.tolist() for boxes in frames])] = frames
    if len(found) != 1:
        raise WorkbenchError(
            "a label file has not one column of boxes",
            expected="a MATLAB groundTruth object with one",
            got=f"{len(found)} in {'an object' if workspace is not None else 'no object'}",
            where=path,
            fix="fetch the file again",
        )
    return next(iter(found.values()))


def _shape(element) -> tuple[int, tuple[int, ...]]:
    """The class and the dimensions of an array in a MAT-file; (0, ()) for an element that is none."""
    if element.type_id != MATRIX or len(element.children) < 3:
        return 0, ()
    flags, dims = (child.as_array() for child in element.children[:2])
    if flags is None or dims is None:
        return 0, ()
    return int(flags[0]) & 0xFF, tuple(map(int, dims))


def _boxes(cell) -> np.ndarray:
    """The boxes (n, 4) in a cell; none unless it is a matrix of numbers with four columns."""
    kind, shape = _shape(cell)
    values = cell.children[3].as_array() if kind == DOUBLE and len(cell.children) > 3 else None
    if len(shape) != 2 or shape[1] != 4 or values is None or len(values) != 4 * shape[0]:
        return np.empty((0, 4))
    return values.astype(float).reshape(shape, order="F")


def _extra(module: str):
    """An optional library, or the error that says how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise WorkbenchError(
            "building aerial4 needs an optional extra that is not installed",
            expected=f"{module} (package {EXTRA[module]})",
            fix='pip install -e ".[aerial4]"',
        ) from None


def _paths(clone: Path) -> list[Path]:
    """The videos of a clone, by name."""
    for folder in (clone / "Data" / "Video_V", clone / "Video_V", clone):
        paths = sorted(path for path in folder.glob("*") if NAME.fullmatch(path.name))
        if paths:
            return paths
    raise WorkbenchError(
        "no visible-light video is there",
        expected="Data/Video_V/V_AIRPLANE_001.mp4 and the like",
        where=clone,
        fix=f"git clone {SOURCE}",
    )


def _labelled(paths: list[Path], made: Aerial4) -> list[Video]:
    """The videos whose labels can be read and are as long as they are."""
    cv2, videos = _extra("cv2"), []
    for path in paths:
        labels, capture = path.with_name(f"{path.stem}_LABELS.mat"), cv2.VideoCapture(str(path))
        count, boxes, why = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), [], ""
        capture.release()
        if not labels.exists():
            why = "a video without labels"
        elif count < 1:
            why = "a video that cannot be read"
        else:
            try:
                boxes = read_labels(labels)
            except Exception as error:  # noqa: BLE001 - a broken file of a binary format may fail anywhere
                why = f"labels that cannot be read ({getattr(error, 'what', type(error).__name__)})"
        if not why and abs(len(boxes) - count) > SPARE:
            why = "labels of another length than their video"
        if why:
            made.skipped.append((path.stem, "", why))
        else:
            label = CLASSES.index(NAME.fullmatch(path.name)[1].lower())
            videos.append(Video(path, label, boxes[:count]))
    return videos


def _drawn(videos: list[Video], share: float, seed: int) -> set[Path]:
    """The videos of val: `share` of each class, at least one where there are two, drawn by `seed`."""
    rng, drawn = np.random.default_rng(seed), set()
    for label in range(len(CLASSES)):
        paths = [video.path for video in videos if video.label == label]
        count = min(max(round(share * len(paths)), 1), len(paths) - 1)
        drawn |= {paths[i] for i in rng.permutation(len(paths))[: max(count, 0)]}
    return drawn


def _write(folder: Path, videos: list[Video], every: int, made: Aerial4) -> dict:
    """Write the chosen frames of a split as JPEG files; the lists of its COCO file."""
    folder.mkdir()
    images, annotations = [], []
    for video in videos:
        before, length = len(images), len(video.boxes)
        chosen = {round(length * k / (FRAMES + 1)) for k in range(1, FRAMES + 1)}
        if every:
            chosen = set(range(0, length, every))
        for index, pixels in _frames(video.path, chosen):
            name = f"{video.name.lower()}_{index:04d}.jpg"
            entry = {"id": len(images) + 1, "file_name": name, "license": 1}
            if pixels is None:
                boxes, why = [], "a frame that cannot be read"
            else:
                entry |= {"width": pixels.shape[1], "height": pixels.shape[0]}
                boxes, why = _in_frame(video.boxes[index], entry)
            if why:
                made.skipped.append((video.name, index, why))
                continue
            Image.fromarray(pixels).save(folder / name, quality=95)
            images.append(entry)
            for box in boxes:
                of = {"id": len(annotations) + 1, "image_id": entry["id"], "iscrowd": 0}
                area = round(box[2] * box[3], 1)
                annotations.append(of | {"category_id": video.label + 1, "bbox": box, "area": area})
        made.videos[folder.name] += len(images) > before
    made.frames[folder.name] = len(images)
    return {**LISTS, "images": images, "annotations": annotations}


def _in_frame(boxes: np.ndarray, entry: dict) -> tuple[list[list[float]], str]:
    """A frame's boxes in COCO's pixels (from 0), and why the frame is left out ("" if it is not)."""
    found = []
    for x, y, width, height in boxes:
        wrong, _, box = checked_box((x - 1, y - 1, width, height), entry)
        if wrong:
            return [], "a frame with a broken box"
        found.append([round(v, 1) for v in box])
    return found, "" if found else "a frame without a box"


def _frames(path: Path, chosen: set[int]):
    """(index, uint8 (H, W, 3) or None) of the chosen frames; read in order, since seeking is not exact."""
    cv2 = _extra("cv2")
    capture = cv2.VideoCapture(str(path))
    for index in range(max(chosen, default=-1) + 1):
        whole = capture.grab()
        if index in chosen:
            whole, pixels = capture.retrieve() if whole else (False, None)
            yield index, cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB) if whole else None
    capture.release()


def main(argv: list[str]) -> int:
    """Build a folder and check it; the exit code: 0, or 1 if it is unfit for training or could not be built."""
    from dfkd_lib.datasets.__main__ import main as datasets

    parser = argparse.ArgumentParser(prog="python data/aerial4.py", description=__doc__)
    parser.add_argument("clone")
    parser.add_argument("out")
    parser.add_argument("--every", type=int, default=0, help="one frame in so many (default: six)")
    parser.add_argument("--val-share", type=float, default=0.2, help="share of videos in val")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    try:
        print(build_aerial4(args.clone, args.out, args.every, args.val_share, args.seed).text())
    except WorkbenchError as error:
        print(error, file=sys.stderr)
        return 1
    return datasets(["check", args.out])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
