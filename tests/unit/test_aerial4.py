"""A COCO folder from a small clone laid out as the Drone-detection-dataset: OpenCV's videos, label files byte by byte.

No label file that MATLAB wrote is here: these are built after the MAT-file format and the tree that mcos_decoder documents.
"""

import csv
import itertools
import json
import struct

import aerial4
import numpy as np
import pytest
from aerial4 import build_aerial4, main
from PIL import Image

from dfkd_lib.core import WorkbenchError
from dfkd_lib.datasets import check_coco, load_coco

CELL, DOUBLE, UINT8 = 1, 6, 9
CLASSES = ["airplane", "bird", "drone", "helicopter"]


def element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + b"\0" * (-len(data) % 8)


def array(kind: int, shape: tuple, *content: bytes) -> bytes:
    flags, dims = struct.pack("<II", kind, 0), struct.pack("<ii", *shape)
    head = element(6, flags) + element(5, dims) + element(1, b"")
    return element(14, head + b"".join(content))


def numbers(values, stored: int = 9, dtype: str = "<f8") -> bytes:
    values = np.asarray(values, float)
    return array(DOUBLE, values.shape, element(stored, values.astype(dtype).tobytes(order="F")))


def label_file(path, *columns: list[bytes]) -> None:
    """A MAT-file whose hidden workspace keeps columns of cells, as deep in the tree as in a groundTruth object."""
    cells = [array(CELL, (len(column), 1), *column) for column in columns]
    table = array(CELL, (1, len(columns)), *cells)
    text = array(4, (1, 2), element(4, "ab".encode("utf-16-le")))
    for _ in range(3):
        table = array(CELL, (1, 2), table, array(CELL, (1, 2), numbers([[3.0]]), text))
    workspace = b"\0\1IM\0\0\0\0" + table
    head = b"MATLAB 5.0 MAT-file".ljust(124, b" ") + struct.pack("<H", 0x0100) + b"IM"
    path.write_bytes(head + array(UINT8, (1, len(workspace)), element(2, workspace)))


BOX = numbers([[1.0, 21.0, 12.0, 10.0]])  # MATLAB counts pixels from 1
EMPTY = array(DOUBLE, (0, 0))


@pytest.fixture
def extra():
    pytest.importorskip("mcos_decoder")
    return pytest.importorskip("cv2")


@pytest.fixture
def clone(tmp_path, extra):
    """Three videos a class, 20 frames of 64 x 48 with a white square that moves; returns the clone."""
    folder = tmp_path / "clone" / "Data" / "Video_V"
    folder.mkdir(parents=True)
    codec = extra.VideoWriter_fourcc(*"mp4v")
    for k, (name, number) in enumerate(itertools.product(CLASSES, (1, 2, 3))):
        video = f"V_{name.upper()}_00{number}"
        writer = extra.VideoWriter(str(folder / f"{video}.mp4"), codec, 30, (64, 48))
        for index in range(20):
            frame = np.full((48, 64, 3), 40 + 10 * k, np.uint8)
            frame[20:30, index : index + 12] = (0, 0, 255)  # blue, green, red
            writer.write(frame)
        writer.release()
        boxes = [numbers([[index + 1.0, 21.0, 12.0, 10.0]]) for index in range(20)]
        label_file(folder / f"{video}_LABELS.mat", boxes)
    (folder / "readme.txt").write_text("not a video")
    return tmp_path / "clone"


def labels_of(clone, name):
    return clone / "Data" / "Video_V" / f"V_{name}_LABELS.mat"


def content(out, split):
    return json.loads((out / f"{split}.json").read_text())


def files(out, split):
    return [entry["file_name"] for entry in content(out, split)["images"]]


def test_a_folder_is_built_split_by_video_and_loads(clone, tmp_path):
    made, out = build_aerial4(clone, tmp_path / "out"), tmp_path / "out"
    assert made.frames == {"train": 48, "val": 24} and made.videos == {"train": 8, "val": 4}
    assert not made.skipped
    train, val = ({name[:-9] for name in files(out, split)} for split in ("train", "val"))
    assert not train & val and sorted(video.split("_")[1] for video in val) == CLASSES
    first = sorted(val)[0]
    evenly = [f"{first}_{k:04d}.jpg" for k in (3, 6, 9, 11, 14, 17)]  # of twenty
    assert [name for name in files(out, "val") if name.startswith(first)] == evenly
    assert not check_coco(out, "train").fatal
    assert load_coco(out, "train").classes == tuple(CLASSES)


def test_boxes_lie_on_their_objects(clone, tmp_path):
    build_aerial4(clone, tmp_path / "out", every=5)
    train = content(tmp_path / "out", "train")
    shown = {entry["file_name"][-8:-4] for entry in train["images"]}
    assert shown == {"0000", "0005", "0010", "0015"}
    for entry, annotation in zip(train["images"], train["annotations"], strict=True):
        index = int(entry["file_name"][-8:-4])
        assert annotation["bbox"] == [index, 20, 12, 10] and annotation["area"] == 120
        pixels = np.asarray(Image.open(tmp_path / "out" / "train" / entry["file_name"])).astype(int)
        # Red: the channels are in order.
        rows, columns = np.nonzero(pixels[..., 0] - pixels[..., 2] > 100)
        ends = np.array([columns.min(), columns.max(), rows.min(), rows.max()])
        assert np.abs(ends - [index, index + 11, 20, 29]).max() <= 2


def test_what_cannot_be_used_is_skipped_and_counted(clone, tmp_path, capsys):
    label_file(labels_of(clone, "BIRD_001"), [EMPTY] * 10 + [BOX] * 10)
    label_file(labels_of(clone, "BIRD_002"), [numbers([[60.0, 21.0, 12.0, 10.0]])] + [BOX] * 19)
    label_file(labels_of(clone, "DRONE_001"), [BOX] * 12)
    labels_of(clone, "DRONE_002").write_bytes(b"nothing")
    labels_of(clone, "AIRPLANE_001").unlink()
    (clone / "Data" / "Video_V" / "V_HELICOPTER_001.mp4").write_bytes(b"nothing")
    assert main([str(clone), str(tmp_path / "out"), "--every", "10", "--val-share", "0.3"]) == 0
    shown = capsys.readouterr().out
    for why in (
        "a frame without a box: 1",
        "a frame with a broken box: 1",
        "labels of another length than their video: 1",
        "labels that cannot be read (",
        "a video without labels: 1",
        "a video that cannot be read: 1",
    ):
        assert f"skipped, {why}" in shown
    assert "nothing wrong was found" in shown
    with open(tmp_path / "out" / "skipped.csv") as file:
        skipped = {row["video"] + ":" + row["frame"] for row in csv.DictReader(file)}
    expected = "BIRD_001:0 BIRD_002:0 DRONE_001: DRONE_002: AIRPLANE_001: HELICOPTER_001:"
    assert skipped == {f"V_{name}" for name in expected.split()}


def test_a_folder_is_complete_or_not_there(clone, tmp_path, monkeypatch, capsys, extra):
    (tmp_path / "there").mkdir()
    assert main([str(clone), str(tmp_path / "there")]) == 1
    assert "is there already" in capsys.readouterr().err
    capture = extra.VideoCapture

    def fail_on_drones(path):
        if next(opened) > 15:  # all twelve are opened once before the first is read
            raise ZeroDivisionError
        return capture(path)

    opened = itertools.count(1)
    monkeypatch.setattr(extra, "VideoCapture", fail_on_drones)
    with pytest.raises(ZeroDivisionError):
        build_aerial4(clone, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clone", "there"]


def test_labels_of_none_one_and_several_boxes_in_every_storage(tmp_path, extra):
    two = [[1.5, 2, 3, 4], [5, 6, 7, 8]]
    # MATLAB keeps whole numbers in as few bytes as it can.
    whole = numbers([[300, 200, 30, 20]], stored=4, dtype="<u2")
    zero = array(DOUBLE, (0, 0), element(9, b""))
    empty = [array(DOUBLE, (0, 4)), zero, struct.pack("<II", 14, 0), array(CELL, (0, 0))]
    label_file(tmp_path / "a.mat", [BOX, numbers(two), whole, *empty], [EMPTY] * 7)
    found = aerial4.read_labels(tmp_path / "a.mat")
    expected = [[[1, 21, 12, 10]], two, [[300, 200, 30, 20]], [], [], [], []]
    assert [boxes.tolist() for boxes in found] == expected


def test_labels_of_several_classes_or_none_are_refused(tmp_path, extra):
    one, other = (numbers([[x, 2.0, 3.0, 4.0]]) for x in (1.0, 5.0))
    for columns in ([[one], [other]], [[EMPTY]]):
        label_file(tmp_path / "a.mat", *columns)
        with pytest.raises(WorkbenchError, match="not one column"):
            aerial4.read_labels(tmp_path / "a.mat")


def test_a_clone_without_videos_and_impossible_settings(tmp_path, extra):
    with pytest.raises(WorkbenchError, match="no visible-light video") as caught:
        build_aerial4(tmp_path, tmp_path / "out")
    assert "git clone" in str(caught.value)
    for wrong in ({"every": -1}, {"val_share": 0.0}, {"val_share": 1.0}):
        with pytest.raises(WorkbenchError, match="impossible"):
            build_aerial4(tmp_path, tmp_path / "out", **wrong)


def test_the_extra_is_named_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(aerial4, "EXTRA", {"no_such_library": "no-such-library"})
    with pytest.raises(WorkbenchError, match="optional extra") as caught:
        build_aerial4(tmp_path, tmp_path / "out")
    assert "no-such-library" in str(caught.value) and ".[aerial4]" in str(caught.value)
