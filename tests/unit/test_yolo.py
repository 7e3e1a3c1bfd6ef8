"""YOLO-format folders: read as the COCO folder of the same scenes, every bad line named with its place."""

import os

import numpy as np
import pytest
import torch
import yaml
from fixes import run_fix
from folders import write_coco
from PIL import Image

from dfkd_lib.core import WorkbenchError, ledger
from dfkd_lib.datasets import SceneConfig, check_coco, generate_scenes, load_coco
from dfkd_lib.datasets.__main__ import main
from dfkd_lib.datasets.coco_report import KINDS, LINES

ABOUT = {
    "path": ".",
    "train": "images/train",
    "val": "images/val",
    "names": {0: "bird", 1: "plane"},
}
LABELS = {"train/a": "1 0.2 0.4 0.2 0.2\n\n0 0.625 0.4 0.25 0.6\n", "val/c": "0 .5 .5 .5 .5"}


@pytest.fixture
def folder(tmp_path):
    """Frames of 40 x 20: train/a with a plane at (4, 6), 8 x 4, and a bird at (20, 2), 10 x 12; train/b without a label
    file; val/c with a bird."""
    root = tmp_path / "mine"
    for name, colour in (("train/a", 80), ("train/b", 120), ("val/c", 200)):
        image = root / "images" / f"{name}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 20), (colour, 0, 0)).save(image)
    for name, text in LABELS.items():
        label(root, text, name)
    about(root)
    return root


def about(folder, **changes):
    (folder / "data.yaml").write_text(yaml.safe_dump({**ABOUT, **changes}))


def label(folder, text, name="train/a"):
    file = folder / "labels" / f"{name}.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def objects(scenes, row=0):
    """(class, x, y, width, height) in pixels of a scene of 40 x 20."""
    pixels = scenes.boxes[row].double() * torch.tensor([40, 20, 40, 20])
    pixels[:, :2] -= pixels[:, 2:] / 2
    names = [scenes.classes[k] for k in scenes.labels[row]]
    return [(n, *np.round(p, 4)) for n, p in zip(names, pixels.tolist(), strict=True)]


def test_boxes_classes_and_scenes_without_a_label_file(folder):
    scenes = load_coco(folder, "train")
    assert scenes.classes == ("bird", "plane") and len(scenes) == 2
    assert objects(scenes) == [("plane", 4, 6, 8, 4), ("bird", 20, 2, 10, 12)]
    assert objects(scenes, 1) == []
    assert scenes.pixels[:, 0, 0, 0].tolist() == [80, 120]
    label(folder, "", "train/b")
    assert objects(load_coco(folder, "train"), 1) == []
    assert len(load_coco(folder, "test")) == 1, "test falls back to val"


def test_outlines_become_the_boxes_about_them_and_poses_keep_theirs(folder):
    label(folder, "1 0.1 0.3 0.3 0.3 0.3 0.5 0.1 0.5\n0 0.5 0.1 0.75 0.1 0.6 0.7")
    assert objects(load_coco(folder, "train")) == [("plane", 4, 6, 8, 4), ("bird", 20, 2, 10, 12)]
    about(folder, kpt_shape=[2, 3])
    label(folder, "1 0.2 0.4 0.2 0.2 0.3 0.3 2 0.1 0.1 0")
    assert objects(load_coco(folder, "train")) == [("plane", 4, 6, 8, 4)]


@pytest.mark.parametrize(
    "changes",
    [
        {"names": ["bird", "plane"], "nc": 2},
        {"path": "/nowhere/mine"},
        {"train": "../images/train"},
        {"train": ["images/train"]},
        {"train": "train.txt"},
    ],
)
def test_what_others_write_means_the_same(folder, changes):
    (folder / "train.txt").write_text("./images/train/a.png\nimages/train/b.png\n")
    meant = load_coco(folder, "train").fingerprint
    about(folder, **changes)
    assert load_coco(folder, "train").fingerprint == meant


def test_label_files_lie_beside_images_where_no_folder_is_named_images(folder):
    place = folder / "train"
    (folder / "images" / "train").rename(place)
    (place / "a.txt").write_text(LABELS["train/a"])
    about(folder, train="train")
    assert [len(found) for found in load_coco(folder, "train").labels] == [2, 0]


FAULTS = [
    ("line", "0 0.5 0.5 0.2", "line 1"),
    ("line", "0 0.5 0.5 0.2 0.2 0.9", "0.9"),
    ("line", "bird 0.5 0.5 0.2 0.2", "bird"),
    ("line_class", "2 0.5 0.5 0.2 0.2", "one of [0, 1], found 2"),
    ("line_class", "0.5 0.5 0.5 0.2 0.2", "one of [0, 1]"),
    ("line_class", "-1 0.5 0.5 0.2 0.2", "one of [0, 1]"),
    ("share", "0 20 10 8 4", "numbers in [0, 1], found 0 20 10 8 4"),
    ("share", "0 -0.1 0.5 0.2 0.2", "-0.1"),
    ("share", "0 nan 0.5 0.2 0.2", "nan"),
    ("outside", "0 0.99 0.5 0.2 0.2", "within 40 x 20"),
    ("no_area", "0 0.5 0.5 0 0.2", "width and height above 0"),
]


@pytest.mark.parametrize("kind, line, shown", FAULTS)
def test_a_bad_line_is_an_error_with_its_place_and_a_copy_without_it(folder, kind, line, shown):
    label(folder, f"{line}\n{LABELS['train/a']}")
    report = check_coco(folder)
    assert [*report.grouped()] == [kind] and report.fatal
    with pytest.raises(WorkbenchError, match=KINDS[kind]["what"]) as caught:
        load_coco(folder, "train")
    text = str(caught.value)
    assert shown in text and "a.png" in text and "data.yaml" in text
    assert kind not in LINES or "labels/train/a.txt, line 1" in text
    run_fix(caught.value, OUT=str(folder.parent / "copy"))
    kept = load_coco(folder.parent / "copy", "train")
    assert objects(kept)[-2:] == [("plane", 4, 6, 8, 4), ("bird", 20, 2, 10, 12)]
    assert (
        line.split()[0] in (folder.parent / "copy" / "repairs.csv").read_text() or kind not in LINES
    )


@pytest.mark.parametrize(
    "changes, shown",
    [
        ({"names": "bird"}, "names: a list"),
        ({"nc": 3}, "nc: 2, as many as names"),
        ({"train": "nowhere"}, "train: folders of images within"),
        ({"train": "/etc"}, "train: folders of images within"),
        ({"train": "../../other/images"}, "train: folders of images within"),
    ],
)
def test_a_data_yaml_that_cannot_be_read_says_what_it_lacks(folder, changes, shown):
    about(folder, **changes)
    with pytest.raises(WorkbenchError, match="cannot be read") as caught:
        load_coco(folder, "train")
    assert shown in str(caught.value)


def test_images_that_cannot_be_read_are_named_and_leaks_found(folder, capsys):
    image = folder / "images" / "train" / "b.png"
    image.write_bytes(image.read_bytes()[:40])
    with pytest.raises(WorkbenchError, match="an image cannot be read") as caught:
        load_coco(folder, "train")
    assert "images/train/b.png" in str(caught.value)
    image.write_bytes((folder / "images" / "val" / "c.png").read_bytes())
    assert [*check_coco(folder).grouped()] == ["leak"]
    assert not check_coco(folder, thorough=False).fatal
    assert main(["check", str(folder)]) == 1
    assert "images/val/c.png" in capsys.readouterr().out


def test_the_ledger_knows_its_files(folder):
    load_coco(folder, "train")
    with ledger.stage("teacher", {"mine/train": "training"}):
        load_coco(folder, "train")
    for file in ("images/train/a.png", "labels/val/c.txt", "images/val/c.png"):
        with ledger.stage("data-free"), pytest.raises(ledger.LedgerError):
            (folder / file).read_bytes()


def test_it_is_the_coco_folder_of_the_same_scenes(tmp_path):
    scenes = generate_scenes(6, size=48)
    write_coco(scenes, tmp_path / "coco", "train")
    for i, (boxes, labels) in enumerate(zip(scenes.boxes, scenes.labels, strict=True)):
        rows = zip(labels.tolist(), boxes.tolist(), strict=True)
        label(
            tmp_path / "yolo",
            "\n".join(f"{k} {' '.join(map(str, b))}" for k, b in rows),
            f"train/{i:06d}",
        )
    place = tmp_path / "yolo" / "images"
    place.mkdir(parents=True)
    (tmp_path / "coco" / "train").rename(place / "train")
    about(tmp_path / "yolo", names=[*scenes.classes])
    back = load_coco(tmp_path / "yolo", "train", size=48)
    assert torch.equal(back.pixels, scenes.pixels) and back.classes == scenes.classes
    for mine, theirs in zip(back.boxes, scenes.boxes, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=0)


def test_a_changed_label_is_read_again(folder):
    source = SceneConfig(name=str(folder), size=32, shortest=0)
    assert source.scenes("train").load() is source.scenes("train").load()
    label(folder, "0 0.5 0.5 0.5 0.5")
    os.utime(folder / "labels/train/a.txt", (1, 1))
    assert [len(found) for found in source.scenes("train").load().labels] == [1, 0]
