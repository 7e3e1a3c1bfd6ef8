"""COCO folders: written and read back, resized, cropped, and every bad input refused with its place and its fix."""

import csv
import json
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

from dfkd_lib.core import WorkbenchError, ledger
from dfkd_lib.datasets import (
    check_coco,
    coco,
    generate_scenes,
    ground_truth,
    load_coco,
    repair_coco,
    write_coco,
)
from dfkd_lib.datasets.__main__ import main
from dfkd_lib.datasets.coco_report import KINDS


@pytest.fixture
def folder(tmp_path):
    """Two frames of 40 x 20 pixels with a white object each: at (4, 6), 8 x 4, and at (20, 2), 10 x 12."""
    (tmp_path / "train").mkdir()
    content = {
        "categories": [{"id": 7, "name": "plane"}, {"id": 3, "name": "bird"}],
        "images": [],
        "annotations": [],
    }
    for key, (x, y, width, height), category in ((11, (4, 6, 8, 4), 7), (12, (20, 2, 10, 12), 3)):
        frame = np.zeros((20, 40, 3), np.uint8)
        frame[y : y + height, x : x + width] = 255
        Image.fromarray(frame).save(tmp_path / "train" / f"{key}.png")
        content["images"].append({"id": key, "file_name": f"{key}.png", "width": 40, "height": 20})
        content["annotations"].append(
            {
                "id": key * 10,
                "image_id": key,
                "category_id": category,
                "bbox": [x, y, width, height],
                "area": width * height,
                "iscrowd": 0,
            }
        )
    (tmp_path / "train.json").write_text(json.dumps(content))
    return tmp_path


def change(folder, key, place=0, **values):
    content = json.loads((folder / "train.json").read_text())
    content[key][place].update(values)
    (folder / "train.json").write_text(json.dumps(content))


def test_frames_boxes_and_classes(folder):
    scenes = load_coco(folder, "train")
    assert scenes.pixels.shape == (2, 3, 20, 40) and scenes.classes == ("bird", "plane")
    assert [labels.tolist() for labels in scenes.labels] == [[1], [0]]
    assert scenes.boxes[0].tolist() == [pytest.approx([8 / 40, 8 / 20, 8 / 40, 4 / 20])]
    assert scenes.split == f"{folder.name}/train"


@pytest.mark.parametrize(
    "settings", [{"size": 32}, {"shortest": 30, "longest": 50}, {"size": 32, "crop": 2.0}]
)
def test_boxes_follow_their_objects_through_resizing_and_cropping(folder, settings):
    scenes = load_coco(folder, "train", **settings)
    for image, boxes in zip(scenes.pixels, scenes.boxes, strict=True):
        rows, columns = (image.min(dim=0).values > 160).nonzero(as_tuple=True)
        low, high = boxes[0, :2] - boxes[0, 2:] / 2, boxes[0, :2] + boxes[0, 2:] / 2
        scale = torch.tensor([image.shape[2], image.shape[1]])
        assert torch.tensor([columns.min(), rows.min()]).sub(low * scale).abs().max() <= 2
        assert torch.tensor([columns.max() + 1, rows.max() + 1]).sub(high * scale).abs().max() <= 2


def test_detr_sizes(folder):
    assert load_coco(folder, "train", shortest=30, longest=50).pixels.shape == (2, 3, 25, 50)
    assert load_coco(folder, "train", shortest=20, longest=50).pixels.shape == (2, 3, 20, 40)


def test_written_scenes_come_back(tmp_path):
    scenes = generate_scenes(6, size=64, seed=1)
    write_coco(scenes, tmp_path / "made", "train")
    back = load_coco(tmp_path / "made", "train")
    assert torch.equal(back.pixels, scenes.pixels) and back.classes == scenes.classes
    for ours, theirs in zip(scenes.boxes, back.boxes, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert [x.tolist() for x in back.labels] == [x.tolist() for x in scenes.labels]


def test_ground_truth_is_in_pixels():
    scenes = generate_scenes(5, size=80, seed=2)
    truth = ground_truth(scenes)
    assert len(truth["images"]) == 5 and len(truth["annotations"]) == sum(map(len, scenes.labels))
    first = next(i for i, labels in enumerate(scenes.labels) if len(labels))
    centre_x, centre_y, width, height = (scenes.boxes[first][0] * 80).tolist()
    expected = [centre_x - width / 2, centre_y - height / 2, width, height]
    assert truth["annotations"][0]["bbox"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "settings", [{}, {"size": 32}, {"shortest": 30, "longest": 50}, {"size": 32, "crop": 2.0}]
)
def test_ground_truth_measures_objects_in_the_pixels_of_their_frames(folder, settings):
    scenes = load_coco(folder, "train", **settings)
    truth = ground_truth(scenes)
    assert [a["bbox"][2:] for a in truth["annotations"]] == [
        pytest.approx([8, 4]),
        pytest.approx([10, 12]),
    ]
    assert [a["area"] for a in truth["annotations"]] == pytest.approx([32, 120])
    assert truth["images"][0]["width"] == round(scenes.pixels.shape[3] * float(scenes.scale[0]))


def test_scenes_are_written_at_their_own_size(folder, tmp_path):
    scenes = load_coco(folder, "train", size=32, crop=2.0)
    write_coco(scenes, tmp_path / "again", "train")
    back = load_coco(tmp_path / "again", "train")
    assert back.pixels.shape == scenes.pixels.shape and torch.allclose(
        back.boxes[0], scenes.boxes[0], atol=1e-5
    )


@pytest.fixture
def wide(tmp_path):
    """A frame of 200 x 160 with objects at (20, 30), 10 x 6, red, and (150, 100), 20 x 12, green; one without any."""
    (tmp_path / "train").mkdir()
    frame = np.zeros((160, 200, 3), np.uint8)
    frame[30:36, 20:30], frame[100:112, 150:170] = (255, 0, 0), (0, 255, 0)
    Image.fromarray(frame).save(tmp_path / "train" / "a.png")
    Image.new("RGB", (200, 160), (0, 0, 255)).save(tmp_path / "train" / "b.png")
    content = {
        "categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "green"}],
        "images": [{"id": k, "file_name": f"{k}.png", "width": 200, "height": 160} for k in "ab"],
        "annotations": [
            {"id": 1, "image_id": "a", "category_id": 1, "bbox": [20, 30, 10, 6]},
            {"id": 2, "image_id": "a", "category_id": 2, "bbox": [150, 100, 20, 12]},
        ],
    }
    (tmp_path / "train.json").write_text(json.dumps(content))
    return tmp_path


def test_crops_take_the_objects_of_a_frame_in_turn(wide):
    scenes = load_coco(wide, "train", size=32, crop=3.0, crops=4)
    assert scenes.rows.tolist() == [0] * 4 + [1] * 4
    assert [labels.tolist() for labels in scenes.labels] == [[0], [1], [0], [1], [], [], [], []]
    assert scenes.scale[:4].tolist() == pytest.approx([30 / 32, 60 / 32] * 2)
    assert not torch.equal(scenes.boxes[0], scenes.boxes[2])  # drawn anew
    for image, boxes, label in zip(scenes.pixels[:4], scenes.boxes[:4], (0, 1, 0, 1), strict=True):
        rows, columns = (image[label] > 128).nonzero(as_tuple=True)
        x, y, width, height = (boxes[0] * 32).tolist()
        assert [columns.min(), columns.max() + 1] == pytest.approx(
            [x - width / 2, x + width / 2], abs=1.5
        )
        assert [rows.min(), rows.max() + 1] == pytest.approx(
            [y - height / 2, y + height / 2], abs=1.5
        )
    assert (scenes.pixels[4:, 2] == 255).all()  # inside the empty frame: nothing is filled


def test_crops_of_many_sizes(wide):
    found = load_coco(wide, "train", size=32, crop=4.0, crops=200, crop_spread=2.0).subset(
        range(0, 200, 2)
    )
    factors = found.scale.numpy() * 32 / 10  # crop sides in sides of the first object
    assert factors.min() >= 1.9 and factors.max() <= 8.1
    assert np.quantile(np.log2(factors / 4), [0.1, 0.5, 0.9]) == pytest.approx(
        [-0.8, 0, 0.8], abs=0.25
    )
    assert all(0 in labels for labels in found.labels)


def test_crops_anywhere_show_the_sky_too(wide):
    scenes = load_coco(wide, "train", size=32, crop=3.0, crops=100, crop_anywhere=0.5).subset(
        range(100)
    )
    empty = sum(not len(labels) for labels in scenes.labels)
    assert 30 <= empty <= 60


def test_frames_are_decoded_once_and_counted_once(wide, monkeypatch):
    opened = []
    read_image = coco.read_image
    monkeypatch.setattr(
        coco, "read_image", lambda path, mode: opened.append(path.name) or read_image(path, mode)
    )
    scenes = load_coco(wide, "train", size=32, crop=3.0, crops=5)
    assert opened == ["a.png", "b.png"] and len(scenes) == 10
    with ledger.stage("teacher", {scenes.split: "training"}) as seen:
        _ = scenes.images
    assert seen.entries()[0]["images"] == 2


@pytest.mark.parametrize(
    "settings",
    [
        {"crops": 2},
        {"size": 32, "crop_spread": 2.0},
        {"crop": 3.0},
        {"size": 32, "crop": 0.5},
        {"size": 32, "crop": 3.0, "crops": 0},
        {"size": 32, "crop": 3.0, "crop_spread": 4.0},
        {"size": 32, "crop": 3.0, "crop_anywhere": 1.5},
    ],
)
def test_impossible_crops_are_refused(wide, settings):
    with pytest.raises(WorkbenchError, match="crops") as caught:
        load_coco(wide, "train", **settings)
    assert "fix" in str(caught.value)


def test_the_ledger_knows_the_folder(folder):
    scenes = load_coco(folder, "train")
    with ledger.stage("data-free"), pytest.raises(ledger.LedgerError):
        _ = scenes.images
    with ledger.stage("data-free"), pytest.raises(ledger.LedgerError):
        (folder / "train" / "11.png").read_bytes()


def test_loading_a_split_reads_no_other(folder):
    as_val(folder)
    with ledger.stage("teacher", {f"{folder.name}/train": "training"}):
        load_coco(folder, "train")
        with pytest.raises(ledger.LedgerError):
            check_coco(folder, "train")  # the thorough look compares the splits


@pytest.mark.parametrize(
    "box, words",
    [
        ([35, 2, 10, 4], "outside its image"),
        ([-3, 2, 10, 4], "outside its image"),
        ([4, 6, 0, 4], "no area"),
        ([4, 6, 8, -1], "no area"),
        ([4, float("nan"), 8, 4], "not a number"),
        ([4, 6, 8], "not four numbers"),
        (None, "not four numbers"),
    ],
)
def test_bad_boxes(folder, box, words):
    change(folder, "annotations", bbox=box)
    with pytest.raises(WorkbenchError, match=words) as caught:
        load_coco(folder, "train")
    assert (
        "annotation 110" in str(caught.value)
        and "train.json" in str(caught.value)
        and "fix" in str(caught.value)
    )


@pytest.mark.parametrize(
    "values, words", [({"category_id": 99}, "unknown category"), ({"image_id": 5}, "no image")]
)
def test_annotations_that_point_nowhere(folder, values, words):
    change(folder, "annotations", **values)
    with pytest.raises(WorkbenchError, match=words) as caught:
        load_coco(folder, "train")
    assert "annotation 110" in str(caught.value)


def test_a_box_may_leave_its_image_by_rounding(folder):
    change(folder, "annotations", bbox=[30.3, 6, 10, 4])
    assert float(load_coco(folder, "train").boxes[0][0, 2]) == pytest.approx(9.7 / 40)


def test_a_missing_image(folder):
    (folder / "train" / "11.png").unlink()
    with pytest.raises(WorkbenchError, match="an image is missing") as caught:
        load_coco(folder, "train")
    assert "11.png" in str(caught.value)


def test_a_truncated_image(folder):
    path = folder / "train" / "11.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(WorkbenchError, match="cannot be read") as caught:
        load_coco(folder, "train")
    assert "11.png" in str(caught.value)


def test_another_image_size_than_the_file_says(folder):
    change(folder, "images", width=41)
    with pytest.raises(WorkbenchError, match="another size") as caught:
        load_coco(folder, "train")
    assert "41 x 20" in str(caught.value) and "40 x 20" in str(caught.value)


def test_images_of_several_sizes(folder):
    Image.new("RGB", (30, 30)).save(folder / "train" / "12.png")
    change(folder, "images", 1, width=30, height=30)
    with pytest.raises(WorkbenchError, match="several sizes"):
        load_coco(folder, "train")
    assert load_coco(folder, "train", size=32).pixels.shape == (2, 3, 32, 32)
    filled = load_coco(folder, "train", fill=True)
    assert filled.pixels.shape == (2, 3, 30, 40)
    wanted = [a["bbox"] for a in json.loads((folder / "train.json").read_text())["annotations"]]
    assert [a["bbox"] for a in ground_truth(filled)["annotations"]] == [
        pytest.approx(box, abs=1e-4) for box in wanted
    ]


@pytest.mark.parametrize(
    "content, words",
    [
        (
            '{"images": [{"id": 1}], "annotations": [], "categories": [{"id": 1, "name": "a"}]}',
            "found no annotations",
        ),
        ('{"images": [', "cannot be read"),
        ("[]", "found no images"),
        (
            '{"images": [{"id": 1}], "annotations": [{}], "categories": [{"id": 1, "name": "a"}]}',
            "not whole",
        ),
    ],
)
def test_a_file_that_is_no_coco_file(folder, content, words):
    (folder / "train.json").write_text(content)
    with pytest.raises(WorkbenchError, match=words):
        load_coco(folder, "train")


def test_no_file_at_all(tmp_path):
    with pytest.raises(WorkbenchError, match="missing"):
        load_coco(tmp_path, "train")


def add(folder, key, **entry):
    content = json.loads((folder / "train.json").read_text())
    content[key].append(entry)
    (folder / "train.json").write_text(json.dumps(content))


def as_val(folder, **categories):
    """The folder's first frame under another name as its val split."""
    content = json.loads((folder / "train.json").read_text())
    (folder / "val").mkdir()
    (folder / "val" / "other.png").write_bytes((folder / "train" / "11.png").read_bytes())
    content["images"] = [{**content["images"][0], "file_name": "other.png"}]
    content["annotations"] = content["annotations"][:1]
    content["categories"][0].update(categories)
    (folder / "val.json").write_text(json.dumps(content))


def test_a_clean_folder(folder):
    report = check_coco(folder)
    assert not report.faults and not report.fatal and report.problems().empty
    assert report.counts() == {
        "images": 2,
        "images without annotations": 0,
        "annotations": 2,
        "crowd regions": 0,
    }
    assert report.sizes() == {(40, 20): 2}
    table = report.table()
    assert list(table.index) == ["bird", "plane", "all"] and table["objects"].tolist() == [1, 1, 2]
    assert table.loc["all", "width median"] == 9 and table.loc["plane", "height 95 %"] == 4
    assert "nothing wrong was found" in report.text()


def small(folder):
    Image.new("RGB", (4, 4)).save(folder / "train" / "11.png")


FAULTS = {
    "image_id": (True, lambda f: add(f, "images", id=11, file_name="12.png", width=40, height=20)),
    "category_id": (True, lambda f: add(f, "categories", id=3, name="drone")),
    "annotation_id": (False, lambda f: change(f, "annotations", 1, id=110)),
    "file_name": (True, lambda f: change(f, "images", 1, file_name="11.png")),
    "category_name": (True, lambda f: change(f, "categories", 1, name="plane")),
    "no_image": (True, lambda f: change(f, "annotations", image_id=5)),
    "category": (True, lambda f: change(f, "annotations", category_id=99)),
    "numbers": (True, lambda f: change(f, "annotations", bbox=[1, 2, 3])),
    "finite": (True, lambda f: change(f, "annotations", bbox=[1, 2, float("inf"), 4])),
    "no_area": (True, lambda f: change(f, "annotations", bbox=[1, 2, 3, 0])),
    "outside": (True, lambda f: change(f, "annotations", bbox=[35, 2, 10, 4], area=40)),
    "twice": (
        False,
        lambda f: add(f, "annotations", id=1, image_id=11, category_id=7, bbox=[4, 6, 8, 4]),
    ),
    "near": (
        False,
        lambda f: add(f, "annotations", id=1, image_id=12, category_id=7, bbox=[20, 2, 10, 11.5]),
    ),
    "area": (False, lambda f: change(f, "annotations", area=50)),
    "class": (False, lambda f: add(f, "categories", id=9, name="drone")),
    "entry": (True, lambda f: add(f, "images", id=13, file_name="11.png", width="wide", height=20)),
    "missing": (True, lambda f: (f / "train" / "11.png").unlink()),
    "unreadable": (
        True,
        lambda f: (f / "train" / "11.png").write_bytes((f / "train" / "11.png").read_bytes()[:60]),
    ),
    "size": (True, small),
    "same": (
        False,
        lambda f: (f / "train" / "12.png").write_bytes((f / "train" / "11.png").read_bytes()),
    ),
    "leak": (True, as_val),
    "classes": (True, lambda f: as_val(f, name="glider")),
    "list": (
        True,
        lambda f: (f / "train.json").write_text(
            '{"images": [], "annotations": [], "categories": []}'
        ),
    ),
    "file": (True, lambda f: (f / "train.json").unlink()),
}


def test_every_kind_of_fault_has_its_test():
    assert set(FAULTS) == set(KINDS)


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_is_found_with_its_place(folder, kind):
    fatal, spoil = FAULTS[kind]
    spoil(folder)
    report = check_coco(folder)
    assert kind in report.grouped() and report.fatal == fatal
    for fault in report.grouped()[kind]:
        assert fault.place and fault.expected and fault.found
    rows = report.problems()
    assert KINDS[kind].what in set(rows["what"]) and KINDS[kind].what in report.text()
    if not fatal:
        load_coco(folder, "train")
    elif kind not in ("leak", "classes"):  # one split does not know of the others
        with pytest.raises(WorkbenchError, match=KINDS[kind].what):
            load_coco(folder, "train")


def test_a_file_name_stays_in_its_folder(folder):
    """Else a repaired copy could be written anywhere."""
    for name in ("../train/11.png", str(folder / "train" / "11.png")):
        change(folder, "images", file_name=name)
        assert "entry" in check_coco(folder).grouped()
        assert json.loads((folder / "train.json").read_text())["images"][0]["file_name"] == name


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_no_broken_value_breaks_the_check(folder, key):
    """It is reported, loading agrees with the report, and a repair leaves nothing that is fatal or says that it cannot."""
    good = (folder / "train.json").read_text()
    for name in json.loads(good)[key][0]:
        for number, value in enumerate(
            (None, "x", -1, float("nan"), float("inf"), [], {}, [None] * 4, [1e308] * 4, 10**30)
        ):
            (folder / "train.json").write_text(good)
            change(folder, key, **{name: value})
            report = check_coco(folder)
            assert report.text() and len(report.problems()) == len(report.faults)
            if not report.fatal:
                load_coco(folder, "train")
                continue
            with pytest.raises(WorkbenchError):
                load_coco(folder, "train")
            try:
                repair_coco(folder, folder / f"{name}{number}", ("train",))
                assert not check_coco(folder / f"{name}{number}").fatal
            except WorkbenchError as error:
                assert "cannot be repaired" in error.what or "nothing would be left" in error.what


def test_one_error_says_all_that_is_wrong(folder):
    change(folder, "annotations", bbox=[35, 2, 10, 4])
    change(folder, "annotations", 1, category_id=99)
    for key in range(5):
        add(folder, "annotations", id=key, image_id=80 + key, category_id=7, bbox=[1, 1, 2, 2])
    (folder / "train" / "12.png").unlink()
    with pytest.raises(WorkbenchError) as caught:
        load_coco(folder, "train")
    said = str(caught.value)
    assert (
        "annotation 110, image 11.png: expected within 40 x 20 pixels, found [35, 2, 10, 4]" in said
    )
    assert (
        "expected one of [3, 7], found 99" in said
        and "12.png" in said
        and "5 x" in said
        and "and 2 more" in said
    )
    assert "python -m dfkd_lib.datasets check" in said and "--repair" in said


def test_all_images_that_cannot_be_read_are_named(folder):
    for name in ("11.png", "12.png"):
        (folder / "train" / name).write_bytes((folder / "train" / name).read_bytes()[:60])
    with pytest.raises(WorkbenchError, match="2 x") as caught:
        load_coco(folder, "train")
    assert "11.png" in str(caught.value) and "12.png" in str(caught.value)


def test_a_frame_without_annotations_and_a_crowd_are_fine(folder):
    Image.new("RGB", (40, 20), (9, 9, 9)).save(folder / "train" / "13.png")
    add(folder, "images", id=13, file_name="13.png", width=40, height=20)
    change(folder, "annotations", 1, iscrowd=1)
    report = check_coco(folder)
    assert (
        not report.fatal
        and report.counts()["images without annotations"] == 1
        and report.counts()["crowd regions"] == 1
    )
    assert [len(labels) for labels in load_coco(folder, "train").labels] == [1, 0, 0]


def test_the_check_command(folder, capsys):
    assert main(["check", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "nothing wrong was found" in said and "note: no split but train" in said
    change(folder, "annotations", area=50)
    assert main(["check", str(folder), "--split", "train"]) == 0  # a warning
    change(folder, "annotations", bbox=[35, 2, 10, 4])
    assert main(["check", str(folder)]) == 1
    said = capsys.readouterr().out
    assert (
        "FATAL: a box lies outside its image, 1 x" in said
        and "annotation 110, image 11.png" in said
    )
    assert main(["check", str(folder / "nowhere")]) == 1


def test_repair_leaves_out_what_is_wrong_and_says_so(folder, capsys):
    change(folder, "annotations", bbox=[35, 2, 10, 4])
    add(folder, "annotations", id=1, image_id=12, category_id=3, bbox=[20, 2, 10, 12])  # twice
    add(folder, "annotations", id=2, image_id=5, category_id=3, bbox=[20, 2, 10, 12])
    add(folder, "annotations", id=3, image_id=12, category_id=3, bbox=[50, 2, 10, 12])
    add(folder, "images", id=13, file_name="13.png", width=40, height=20)  # missing
    add(folder, "images", id=14, file_name="12.png", width=40, height=20)  # the file of image 12
    add(folder, "annotations", id=4, image_id=14, category_id=8, bbox=[1, 1, 3, 4])
    add(folder, "categories", id=8, name="plane")
    before = (folder / "train.json").read_bytes()
    out = folder / "clean"
    assert main(["check", str(folder), "--repair", str(out)]) == 0, capsys.readouterr()
    assert not check_coco(out).faults and (folder / "train.json").read_bytes() == before
    content = json.loads((out / "train.json").read_text())
    assert [
        (a["id"], a["image_id"], a["category_id"], a["bbox"]) for a in content["annotations"]
    ] == [(110, 11, 7, [35, 2, 5, 4]), (120, 12, 3, [20, 2, 10, 12]), (4, 12, 7, [1, 1, 3, 4])]
    assert [i["id"] for i in content["images"]] == [11, 12] and content["annotations"][0][
        "area"
    ] == 20
    with open(out / "repairs.csv") as file:
        done = {(row["place"], row["done"]) for row in csv.DictReader(file)}
    assert {
        ("annotation 110", "cut to [35.0, 2.0, 5.0, 4.0]"),
        ("annotation 1", "left out"),
        ("annotation 2", "left out"),
        ("annotation 3", "left out"),
        ("13.png", "left out"),
    } <= done and len(done) == 7
    assert not (out / "train" / "12.png").is_symlink()
    assert main(["check", str(folder), "--repair", str(out)]) == 1  # it is there already
    assert "is there already" in capsys.readouterr().err


def test_repair_takes_a_leak_out_of_training_and_gives_up_what_is_hopeless(folder):
    as_val(folder)
    repair_coco(folder, folder / "clean", ("train", "val"))
    assert (
        not check_coco(folder / "clean", "train").fatal
        and not check_coco(folder / "clean", "val").fatal
    )
    assert [p.name for p in (folder / "clean" / "train").iterdir()] == ["12.png"]
    add(folder, "images", id=11, file_name="12.png", width=40, height=20)
    repair_coco(
        folder, folder / "one", ("train",)
    )  # nothing says whose the annotations of id 11 are
    assert [i["id"] for i in json.loads((folder / "one" / "train.json").read_text())["images"]] == [
        12
    ]
    (folder / "train" / "12.png").unlink()
    with pytest.raises(WorkbenchError, match="nothing would be left"):
        repair_coco(folder, folder / "again", ("train",))
    (folder / "train.json").write_text("{")
    with pytest.raises(WorkbenchError, match="cannot be repaired"):
        repair_coco(folder, folder / "again", ("train",))
    assert not list(folder.glob("*again*")) and not list(folder.glob(".*again*"))


def png16(path, channels, values):
    """A 16-bit PNG file (H, W, channels), which Pillow itself cannot write in colour."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = [
        (
            b"IHDR",
            struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0),
        ),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d))
            for t, d in parts
        )
    )


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK", "YCbCr"])
def test_images_of_every_mode_become_rgb(folder, mode):
    colour = {"L": (90, 90, 90), "1": (255, 255, 255), "LA": (90, 90, 90)}.get(mode, (204, 51, 51))
    Image.new("RGB", (40, 20), colour).convert(mode).save(folder / "train" / "11.tif")
    change(folder, "images", file_name="11.tif")
    assert (
        np.abs(load_coco(folder, "train").pixels[0, :, 5, 5].numpy().astype(int) - colour).max()
        <= 2
    )
    assert not check_coco(folder).fatal


@pytest.mark.parametrize("adobe", [True, False])
def test_cmyk_photographs(folder, adobe):
    """Adobe's CMYK JPEG files hold inverted values; those without its marker do not."""
    inked = Image.new("RGB", (40, 20), (200, 60, 30)).convert("CMYK")
    path = folder / "train" / "11.jpg"
    (inked if adobe else ImageChops.invert(inked)).save(
        path, quality=95
    )  # Pillow writes inverted values, and the marker
    if not adobe:
        data = path.read_bytes()
        start = data.index(b"\xff\xee")
        path.write_bytes(
            data[:start] + data[start + 2 + struct.unpack(">H", data[start + 2 : start + 4])[0] :]
        )
    assert ("adobe" in Image.open(path).info) == adobe
    change(folder, "images", file_name="11.jpg")
    assert (
        np.abs(
            load_coco(folder, "train").pixels[0, :, 5, 5].numpy().astype(int) - [200, 60, 30]
        ).max()
        <= 4
    )


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_images_keep_their_upper_bits(folder, channels):
    values = (
        np.linspace(0, 65535, 800).astype(np.uint16).reshape(20, 40, 1).repeat(channels, axis=2)
    )
    if channels in (2, 4):
        values[..., -1] = 65535
    png16(folder / "train" / "11.png", channels, values)
    assert (
        np.abs(
            load_coco(folder, "train").pixels[0, 1].numpy().astype(int) - (values[..., 0] >> 8)
        ).max()
        <= 1
    )


def test_transparent_pixels_are_black(folder):
    frame = Image.new("RGBA", (40, 20), (200, 60, 30, 255))
    frame.paste((255, 255, 255, 0), (0, 0, 10, 10))
    frame.save(folder / "train" / "11.png")
    pixels = load_coco(folder, "train").pixels[0]
    assert pixels[:, 2, 2].tolist() == [0, 0, 0] and pixels[:, 15, 30].tolist() == [200, 60, 30]
