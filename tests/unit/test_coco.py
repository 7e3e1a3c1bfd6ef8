"""COCO folders: written and read back, resized, cropped, and every bad input refused with its place and its fix."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from fixes import run_fix
from folders import write_coco
from PIL import ExifTags, Image, ImageOps
from transformers import DetrImageProcessor

from dfkd_lib.core import WorkbenchError, ledger
from dfkd_lib.datasets import (
    FILL,
    Frames,
    SceneConfig,
    check_coco,
    coco,
    frames,
    generate_scenes,
    ground_truth,
    load_coco,
    repair_coco,
    scene_source,
)
from dfkd_lib.datasets.__main__ import main
from dfkd_lib.datasets.coco import video_of
from dfkd_lib.datasets.coco_report import KINDS, LINES
from dfkd_lib.datasets.frames import resized
from dfkd_lib.deploy import predict


@pytest.fixture
def folder(tmp_path):
    """Two frames of 40 x 20 pixels with a white object each: at (4, 6), 8 x 4, and at (20, 2), 10 x 12."""
    (tmp_path / "train").mkdir()
    (tmp_path / "train.json").write_text('{"categories": [], "images": [], "annotations": []}')
    add(tmp_path, "categories", id=7, name="plane")
    add(tmp_path, "categories", id=3, name="bird")
    for key, (x, y, width, height), category in ((11, (4, 6, 8, 4), 7), (12, (20, 2, 10, 12), 3)):
        frame = np.zeros((20, 40, 3), np.uint8)
        frame[y : y + height, x : x + width] = 255
        Image.fromarray(frame).save(tmp_path / "train" / f"{key}.png")
        add(tmp_path, "images", id=key, file_name=f"{key}.png", width=40, height=20)
        box = {"bbox": [x, y, width, height], "area": width * height, "iscrowd": 0}
        add(tmp_path, "annotations", id=key * 10, image_id=key, category_id=category, **box)
    return tmp_path


def read(folder, split="train"):
    return json.loads((folder / f"{split}.json").read_text())


def add(folder, key, **entry):
    content = read(folder)
    content[key].append(entry)
    (folder / "train.json").write_text(json.dumps(content))


def change(folder, key, place=0, **values):
    content = read(folder)
    content[key][place].update(values)
    (folder / "train.json").write_text(json.dumps(content))


def cut_short(folder, *names):
    for name in names:
        path = folder / "train" / name
        path.write_bytes(path.read_bytes()[:60])


def test_frames_boxes_and_classes(folder):
    scenes = load_coco(folder, "train")
    assert scenes.pixels.shape == (2, 3, 20, 40) and scenes.classes == ("bird", "plane")
    assert [labels.tolist() for labels in scenes.labels] == [[1], [0]]
    assert scenes.boxes[0].tolist() == [pytest.approx([8 / 40, 8 / 20, 8 / 40, 4 / 20])]
    assert scenes.split == f"{folder.name}/train"


@pytest.mark.parametrize(
    "layout",
    [
        ("valid/_annotations.coco.json", "valid"),
        ("annotations/instances_val2017.json", "val2017"),
        ("annotations/instances_val2017.json", "images/val2017"),
    ],
)
def test_the_layouts_of_others_hold_the_same_scenes(folder, tmp_path, layout):
    file, pictures = (tmp_path / "other" / name for name in layout)
    for place in (file.parent, pictures.parent):
        place.mkdir(parents=True, exist_ok=True)
    shutil.copytree(folder / "train", pictures, dirs_exist_ok=True)
    shutil.copy(folder / "train.json", file)
    own, theirs = load_coco(folder, "train"), load_coco(tmp_path / "other", "val")
    assert torch.equal(own.pixels, theirs.pixels) and own.classes == theirs.classes
    assert all(torch.equal(*pair) for pair in zip(own.boxes, theirs.boxes, strict=True))
    assert check_coco(tmp_path / "other", "val").faults == []


def test_of_two_annotation_files_none_is_chosen(folder):
    (folder / "annotations").mkdir()
    for year in (2014, 2017):
        (folder / f"val{year}").mkdir()
        shutil.copy(folder / "train.json", folder / "annotations" / f"instances_val{year}.json")
    (fault,) = check_coco(folder, "val").faults
    assert fault.kind == "file" and "instances_val2014.json" in fault.found


RESIZED = [{"size": 32}, {"shortest": 30, "longest": 50}, {"size": 32, "crop": 2.0}]


@pytest.mark.parametrize("settings", RESIZED)
def test_boxes_follow_their_objects_through_resizing_and_cropping(folder, settings):
    scenes = load_coco(folder, "train", **settings)
    for image, boxes in zip(scenes.pixels, scenes.boxes, strict=True):
        rows, columns = (image.min(dim=0).values > 160).nonzero(as_tuple=True)
        low, high = boxes[0, :2] - boxes[0, 2:] / 2, boxes[0, :2] + boxes[0, 2:] / 2
        scale = torch.tensor([image.shape[2], image.shape[1]])
        assert torch.tensor([columns.min(), rows.min()]).sub(low * scale).abs().max() <= 2
        assert torch.tensor([columns.max() + 1, rows.max() + 1]).sub(high * scale).abs().max() <= 2


@pytest.mark.parametrize("seed", range(3))
def test_frames_have_the_size_that_the_processor_gives_them(seed):
    """To the pixel: a third of all frames was one off, where a side was rounded that the processor cuts off."""
    shapes = np.random.default_rng(seed).integers(20, 120, (40, 2)).tolist()
    shapes += [[27, 40], [18, 71], [22, 71], [60, 20]]
    sizes = {"shortest_edge": 27, "longest_edge": 59}
    processor = DetrImageProcessor(size=sizes, do_pad=False)
    how = {"shortest": 27, "longest": 59, "width": 200, "height": 200}
    for shape in shapes:
        known = processor(images=np.zeros((*shape, 3), np.uint8))["pixel_values"][0].shape[1:]
        assert resized(shape, None, 27, 59)[0][::-1] == tuple(known), shape
        assert predict.fitted(tuple(shape[::-1]), how)[0] == list(known)[::-1], shape


def test_written_scenes_come_back(folder, tmp_path):
    cropped = load_coco(folder, "train", size=32, crop=2.0)
    for name, scenes in (("made", generate_scenes(6, size=64, seed=1)), ("cropped", cropped)):
        write_coco(scenes, tmp_path / name, "train")
        back = load_coco(tmp_path / name, "train")
        assert torch.equal(back.pixels, scenes.pixels) and back.classes == scenes.classes
        for ours, theirs in zip(scenes.boxes, back.boxes, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5)
        assert [x.tolist() for x in back.labels] == [x.tolist() for x in scenes.labels]


@pytest.mark.parametrize("settings", [{}, *RESIZED])
def test_ground_truth_measures_objects_in_the_pixels_of_their_frames(folder, settings):
    scenes = load_coco(folder, "train", **settings)
    truth = ground_truth(scenes)
    boxes = [annotation["bbox"] for annotation in truth["annotations"]]
    assert [box[2:] for box in boxes] == [pytest.approx([8, 4]), pytest.approx([10, 12])]
    if "crop" not in settings:
        assert [box[:2] for box in boxes] == [pytest.approx([4, 6]), pytest.approx([20, 2])]
    assert [a["area"] for a in truth["annotations"]] == pytest.approx([32, 120])
    assert truth["images"][0]["width"] == round(scenes.pixels.shape[3] * float(scenes.scale[0]))


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
        assert columns.min() == pytest.approx(x - width / 2, abs=1.5)
        assert columns.max() + 1 == pytest.approx(x + width / 2, abs=1.5)
        assert rows.min() == pytest.approx(y - height / 2, abs=1.5)
        assert rows.max() + 1 == pytest.approx(y + height / 2, abs=1.5)
    assert (scenes.pixels[4:, 2] == 255).all()  # inside the empty frame: nothing is filled


def test_crops_of_many_sizes(wide):
    crops = load_coco(wide, "train", size=32, crop=4.0, crops=200, crop_spread=2.0)
    found = crops.subset(range(0, 200, 2))
    factors = found.scale.numpy() * 32 / 10  # crop sides in sides of the first object
    assert factors.min() >= 1.9 and factors.max() <= 8.1
    shares = np.quantile(np.log2(factors / 4), [0.1, 0.5, 0.9])
    assert shares == pytest.approx([-0.8, 0, 0.8], abs=0.25)
    assert all(0 in labels for labels in found.labels)


def test_crops_anywhere_show_the_sky_too(wide):
    scenes = load_coco(wide, "train", size=32, crop=3.0, crops=100, crop_anywhere=0.5)
    assert 30 <= sum(not len(labels) for labels in scenes.labels[:100]) <= 60


def test_crops_show_whole_frames_too(wide):
    whole = load_coco(wide, "train", size=32, crop=3.0, crops=100, crop_whole=0.5)
    shown = (whole.scale * 32 == 200).numpy() & (whole.rows == 0)
    assert 30 <= shown.sum() <= 70
    one = whole.subset([int(np.flatnonzero(shown)[0])])
    assert one.labels[0].tolist() == [0, 1]
    x, y, width, height = (one.boxes[0][1] * 200).tolist()
    assert (x, y, width, height) == pytest.approx((160, 106, 20, 12), abs=0.5)
    assert tuple(one.pixels[0, :, -1, 0]) == FILL, "a frame is wider than high: below it is filled"


def test_empty_ground_shows_no_part_of_an_object(wide):
    crowd = {"id": 3, "image_id": "b", "category_id": 1, "bbox": [0, 0, 200, 80], "iscrowd": 1}
    add(wide, "annotations", **crowd)
    scenes = load_coco(wide, "train", size=16, crop=3.0, crops=200, empty=True)
    assert not any(map(len, scenes.labels)) and set(scenes.rows.tolist()) == {0, 1}
    of_a, of_b = (scenes.pixels[torch.from_numpy(scenes.rows == row)] for row in (0, 1))
    assert not of_a.any(), "the frame is black but for its objects"
    assert 0 < len(of_b) < 100, "nothing that a crowd region covers is empty"
    add(wide, "annotations", **crowd | {"id": 4, "bbox": [0, 0, 200, 160]})
    add(wide, "annotations", **crowd | {"id": 5, "image_id": "a", "bbox": [0, 0, 200, 160]})
    with pytest.raises(WorkbenchError, match="no window of the frames is without an object"):
        load_coco(wide, "train", size=16, crop=3.0, empty=True)


@pytest.mark.parametrize(
    "entry, video",
    [
        ({"file_name": "v_drone_001_0042.jpg"}, "v_drone_001"),
        ({"file_name": "a/clip-7.frame12.png"}, "clip-7.frame"),
        ({"file_name": "000123.jpg"}, "000123"),
        ({"file_name": "x.jpg", "video_id": 7}, "7"),
    ],
)
def test_frames_belong_to_videos(entry, video):
    assert video_of(entry) == video


def test_videos_are_held_back_whole_and_always_the_same(tmp_path):
    write_coco(generate_scenes(12, size=32), tmp_path, "train")
    content = read(tmp_path)
    for k, image in enumerate(content["images"]):
        image["video_id"] = k // 3
    (tmp_path / "train.json").write_text(json.dumps(content))
    kept = load_coco(tmp_path, "train", held_back=0.5)
    back = load_coco(tmp_path, "train", held_back=0.5, calibrating=True)
    assert sorted([*kept.rows, *back.rows]) == [*range(12)] and len(kept) == len(back) == 6
    assert {row // 3 for row in kept.rows}.isdisjoint({row // 3 for row in back.rows})
    assert load_coco(tmp_path, "train", held_back=0.5).fingerprint == kept.fingerprint
    for share in (0.05, 0.95):
        with pytest.raises(WorkbenchError, match="no such share of the videos"):
            load_coco(tmp_path, "train", held_back=share)


def test_frames_are_decoded_once_and_counted_once(wide, monkeypatch):
    opened, read_image = [], frames.read_image

    def remember(path, mode):
        opened.append(path.name)
        return read_image(path, mode)

    monkeypatch.setattr(frames, "read_image", remember)
    scenes = load_coco(wide, "train", size=32, crop=3.0, crops=5)
    assert sorted(opened) == ["a.png", "b.png"] and len(scenes) == 10
    with ledger.stage("teacher", {scenes.split: "training"}) as seen:
        _ = scenes.images
    assert seen.entries()[0]["images"] == 2


@pytest.mark.parametrize("crop, spread", [(0.5, 1.0), (3.0, 4.0)])
def test_crops_smaller_than_objects_are_refused(crop, spread):
    with pytest.raises(WorkbenchError, match="set crop above crop_spread"):
        SceneConfig(name="mine", shortest=0, crop=crop, crop_spread=spread)


def test_the_ledger_knows_the_folder_and_loading_a_split_reads_no_other(folder):
    scenes = load_coco(folder, "train")
    with ledger.stage("data-free"):
        with pytest.raises(ledger.LedgerError):
            _ = scenes.images
        with pytest.raises(ledger.LedgerError):
            (folder / "train" / "11.png").read_bytes()
    as_val(folder)
    with ledger.stage("teacher", {f"{folder.name}/train": "training"}):
        load_coco(folder, "train")
        with pytest.raises(ledger.LedgerError):
            check_coco(folder, "train")  # the thorough look compares the splits


def test_a_box_may_leave_its_image_by_rounding(folder):
    change(folder, "annotations", bbox=[30.3, 6, 10, 4])
    assert float(load_coco(folder, "train").boxes[0][0, 2]) == pytest.approx(9.7 / 40)


def test_frames_of_several_sizes_are_filled_to_the_largest(folder):
    Image.new("RGB", (30, 30)).save(folder / "train" / "12.png")
    change(folder, "images", 1, width=30, height=30)
    assert load_coco(folder, "train", size=32).pixels.shape == (2, 3, 32, 32)
    filled = load_coco(folder, "train")
    assert filled.pixels.shape == (2, 3, 30, 40)
    assert tuple(filled.pixels[1, :, 29, 39]) == FILL and not filled.pixels[1, :, 29, 29].any()
    found = [annotation["bbox"] for annotation in ground_truth(filled)["annotations"]]
    assert found[0] == pytest.approx([4, 6, 8, 4], abs=1e-4)
    assert found[1] == pytest.approx([20, 2, 10, 12], abs=1e-4)


def as_val(folder, **categories):
    """The folder's first frame under another name as its val split."""
    content = read(folder)
    (folder / "val").mkdir()
    (folder / "val" / "other.png").write_bytes((folder / "train" / "11.png").read_bytes())
    content["images"] = [{**content["images"][0], "file_name": "other.png"}]
    content["annotations"] = content["annotations"][:1]
    content["categories"][0].update(categories)
    (folder / "val.json").write_text(json.dumps(content))


def test_a_clean_folder(folder):
    report = check_coco(folder)
    assert not report.faults and not report.fatal
    assert list(report.counts().values()) == [2, 0, 2, 0]
    table = report.table()
    assert list(table.index) == ["bird", "plane", "all"] and table["objects"].tolist() == [1, 1, 2]
    assert table.loc["all", "width median"] == 9 and table.loc["plane", "height 95 %"] == 4
    assert "nothing wrong was found" in report.text() and "40 x 20 (2)" in report.text()


def edit(key, place=0, **values):
    return lambda folder: change(folder, key, place, **values)


def another(key, **entry):
    return lambda folder: add(folder, key, **entry)


def box(*numbers):
    return edit("annotations", bbox=list(numbers))


def text(content):
    return lambda folder: (folder / "train.json").write_text(content)


def write_same(folder):
    (folder / "train" / "12.png").write_bytes((folder / "train" / "11.png").read_bytes())


def tag(orientation):
    """The first picture gets an EXIF rotation, as a phone writes one."""

    def spoil(folder):
        exif, path = Image.Exif(), folder / "train" / "11.png"
        exif[ExifTags.Base.Orientation] = orientation
        Image.open(path).save(path, exif=exif)

    return spoil


WARNINGS = {"turned", "annotation_id", "twice", "near", "class", "same"}
BOTH_SPLITS = {"leak", "classes"}  # which one split does not know of
FRAME = {"file_name": "12.png", "width": 40, "height": 20}
ODD = {"id": 1, "image_id": 12, "category_id": 7, "bbox": [20, 2, 10, 12]}
NO_ENTRIES = '{"images": [{"id": 1}], "annotations": [], "categories": []}'
NO_PARTS = '{"images": [{"id": 1}], "annotations": [{}], "categories": [{}]}'
# Kind of fault, what brings it about, and what the report shows of it, its place among that.
FAULTS = [
    ("image_id", another("images", id=11, **FRAME), "images, entry 2"),
    ("category_id", another("categories", id=3, name="drone"), "categories, entry 2"),
    ("annotation_id", edit("annotations", 1, id=110), "annotations, entry 1"),
    ("file_name", edit("images", 1, file_name="./11.png"), "images, entry 1"),
    ("category_name", edit("categories", 1, name="plane"), "categories, entry 1"),
    ("no_image", edit("annotations", image_id=5), "annotation 110"),
    ("category", edit("annotations", category_id=99), "one of [3, 7], found 99"),
    ("numbers", box(4, 6, 8), "annotation 110, image 11.png"),
    ("numbers", box(4, float("nan"), 8, 4), "annotation 110"),
    ("numbers", box(1, 2, float("inf"), 4), "annotation 110"),
    ("numbers", edit("annotations", bbox=None), "annotation 110"),
    ("no_area", box(4, 6, 0, 4), "annotation 110"),
    ("no_area", box(4, 6, 8, -1), "annotation 110"),
    ("outside", box(35, 2, 10, 4), "within 40 x 20 pixels, found [35, 2, 10, 4]"),
    ("outside", box(-3, 2, 10, 4), "annotation 110"),
    ("twice", another("annotations", **ODD | {"category_id": 3}), "annotation 1,"),
    ("near", another("annotations", **ODD | {"bbox": [20, 2, 10, 11.5]}), "120 and 1"),
    ("class", another("categories", id=9, name="drone"), "category drone"),
    ("entry", edit("images", width="wide"), "images, entry 0"),
    ("entry", text(NO_PARTS), "annotations, entry 0"),
    ("missing", lambda folder: (folder / "train" / "11.png").unlink(), "11.png"),
    ("unreadable", lambda folder: cut_short(folder, "11.png"), "11.png"),
    ("size", edit("images", width=41), "41 x 20 (from train.json), found 40 x 20"),
    ("lying", tag(6), "11.png: expected 40 x 20 (from train.json), found 20 x 40"),
    ("turned", tag(3), "11.png"),
    ("same", write_same, "the same as 11.png"),
    ("leak", lambda folder: as_val(folder), "11.png: expected in one split only"),
    ("classes", lambda folder: as_val(folder, name="glider"), "glider"),
    ("list", text(NO_ENTRIES), "no annotations"),
    ("list", text("[]"), "found no images"),
    ("file", text('{"images": ['), "whole JSON"),
    ("file", text('{"images": [], "images": []}'), "given twice"),
    ("file", lambda folder: (folder / "train.json").unlink(), "no such file"),
]


def test_every_kind_of_fault_has_its_test():
    assert {kind for kind, *_ in FAULTS} == set(KINDS) - set(LINES)  # which are test_yolo.py's


@pytest.mark.parametrize("kind, spoil, shown", FAULTS)
def test_a_fault_is_found_with_its_place(folder, kind, spoil, shown):
    spoil(folder)
    report = check_coco(folder)
    assert kind in report.grouped() and report.fatal == (kind not in WARNINGS)
    for fault in report.grouped()[kind]:
        assert fault.place and fault.expected and fault.found
    what, fix = KINDS[kind]["what"], KINDS[kind]["fix"]
    assert what in report.text() and fix in report.text() and shown in report.text()
    if kind in WARNINGS:
        load_coco(folder, "train")
    elif kind not in BOTH_SPLITS:
        with pytest.raises(WorkbenchError, match=what) as caught:
            load_coco(folder, "train")
        assert "train.json" in str(caught.value) and shown in str(caught.value)
        if "--repair" in caught.value.fix:
            run_fix(caught.value, OUT=str(folder / "copy"))
            assert len(load_coco(folder / "copy", "train"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_lie_on_the_upright_picture(folder, orientation):
    path, exif = folder / "train" / "11.png", Image.Exif()
    # A picture is stored as the opposite turn leaves it, with the tag that undoes that.
    exif[ExifTags.Base.Orientation] = {6: 8, 8: 6}.get(orientation, orientation)
    upright = Image.open(path)
    upright.info["exif"] = exif.tobytes()
    stored = ImageOps.exif_transpose(upright)
    exif[ExifTags.Base.Orientation] = orientation
    stored.save(path, exif=exif)
    assert load_coco(folder, "train").pixels[0].float().mean((0, 2)).nonzero().min() == 6
    assert (load_coco(folder, "train").pixels[0, :, 6:10, 4:12] == 255).all()


def test_without_its_exif_tag_a_picture_lies_as_it_is_stored(folder):
    tag(6)(folder)
    Image.open(folder / "train" / "11.png").save(folder / "train" / "11.png", exif=b"")
    assert (load_coco(folder, "train").pixels[0, :, 6:10, 4:12] == 255).all()


@pytest.mark.parametrize("sizes", [{"size": 16}, {"size": 64}, {"shortest": 27, "longest": 59}])
def test_the_deployed_package_reads_frames_as_training_read_them(folder, sizes):
    tag(6)(folder)
    change(folder, "images", width=20, height=40)
    change(folder, "annotations", bbox=[4, 6, 4, 8])
    Image.new("RGB", (71, 22), (9, 8, 7)).save(folder / "train" / "13.png")
    add(folder, "images", id=13, file_name="13.png", width=71, height=22)
    trained = load_coco(folder, "train", **sizes).pixels.numpy()
    how = {"channels": 3, "scale": 1.0, "offset": 0.0, "fill": FILL, **sizes}
    how |= dict(zip(("height", "width"), trained.shape[2:], strict=True))
    for pixels, name in zip(trained, ("11.png", "12.png", "13.png"), strict=True):
        assert np.array_equal(predict.load(str(folder / "train" / name), how)[1], pixels)


def drop(folder, key, *names):
    content = read(folder)
    for entry in content[key]:
        for name in names:
            del entry[name]
    (folder / "train.json").write_text(json.dumps(content))


def outline(folder):
    drop(folder, "annotations", "bbox", "area", "iscrowd", "id")
    for place, (x, y) in enumerate(((4, 6), (20, 2))):
        far = (12, 10) if not place else (30, 14)
        parts = [[x, y, far[0], y, x, far[1] - 1], [x, y, *far, x, far[1]]]
        change(folder, "annotations", place, segmentation=parts)


def as_text(folder):
    content = read(folder)
    for key, names in (("images", ("id", "width")), ("annotations", ("category_id", "iscrowd"))):
        for entry in content[key]:
            entry.update((name, str(entry[name])) for name in names)
    for annotation in content["annotations"]:
        annotation["bbox"] = [f"{value}.0" for value in annotation["bbox"]]
    (folder / "train.json").write_text(json.dumps(content))


def from_windows(folder):
    (folder / "train" / "sub").mkdir()
    (folder / "train" / "11.png").rename(folder / "train" / "sub" / "11.png")
    change(folder, "images", 0, file_name="sub\\11.png")
    change(folder, "images", 1, file_name=".\\train\\12.png")
    file = folder / "train.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b", ", b",\r\n"))


WRITTEN = {
    "Windows": from_windows,
    "utf-16": lambda f: (f / "train.json").write_text((f / "train.json").read_text(), "utf-16"),
    "numbers as text": as_text,
    "pandas": lambda f: change(f, "images", 0, id=11.0, width=40.0),
    "a backslash in a name": lambda f: [
        (f / "train" / "11.png").rename(f / "train" / "a\\b.png"),
        change(f, "images", 0, file_name="a\\b.png"),
    ],
    "no sizes": lambda f: drop(f, "images", "width", "height"),
    "polygons for boxes": outline,
    "no area": lambda f: drop(f, "annotations", "area"),
}


@pytest.mark.parametrize("how", WRITTEN)
def test_what_others_write_means_the_same(folder, how):
    meant = load_coco(folder, "train")
    WRITTEN[how](folder)
    found, report = load_coco(folder, "train"), check_coco(folder)
    assert not report.faults, report.text()
    assert torch.equal(found.pixels, meant.pixels) and found.classes == meant.classes
    for name in ("boxes", "labels"):
        assert all(map(torch.equal, getattr(found, name), getattr(meant, name)))
    repair_coco(folder, folder / "copy", ("train",))
    assert torch.equal(load_coco(folder / "copy", "train").pixels, meant.pixels)


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda f: change(f, "categories", 0, id="3"), "two categories have one id"),
        (lambda f: change(f, "annotations", 0, category_id="plane"), "found 'plane'"),
        (
            lambda f: change(f, "annotations", 0, bbox=None, segmentation={"counts": "zz"}),
            "polygons",
        ),
        (lambda f: change(f, "annotations", 0, bbox=None, segmentation=[[1, 2, 3]]), "polygons"),
        (
            lambda f: (f / "train.json").rename(f / "instances_train2017.json"),
            "instances_train2017",
        ),
    ],
)
def test_what_does_not_say_enough_is_named(folder, spoil, words):
    spoil(folder)
    assert words in check_coco(folder).text()


def test_a_file_name_stays_in_its_folder(folder):
    """Else a repaired copy could be written anywhere."""
    for name in ("../train/11.png", str(folder / "train" / "11.png")):
        change(folder, "images", file_name=name)
        assert "entry" in check_coco(folder).grouped()


def test_one_error_names_all_that_is_wrong(folder):
    change(folder, "annotations", bbox=[35, 2, 10, 4])
    change(folder, "annotations", 1, category_id=99)
    for key in range(5):
        add(folder, "annotations", id=key, image_id=80 + key, category_id=7, bbox=[1, 1, 2, 2])
    (folder / "train" / "12.png").unlink()
    with pytest.raises(WorkbenchError) as caught:
        load_coco(folder, "train")
    message = str(caught.value)
    for part in (
        "annotation 110, image 11.png: expected within 40 x 20 pixels, found [35, 2, 10, 4]",
        "expected one of [3, 7], found 99",
        "12.png",
        "5 x",
        "and 2 more",
        "python -m dfkd_lib.datasets check",
        "--repair",
    ):
        assert part in message


def test_all_images_that_cannot_be_read_are_named(folder):
    cut_short(folder, "11.png", "12.png")
    with pytest.raises(WorkbenchError, match="2 x") as caught:
        load_coco(folder, "train")
    assert "11.png" in str(caught.value) and "12.png" in str(caught.value)


def test_a_frame_without_annotations_and_a_crowd_are_fine(folder):
    Image.new("RGB", (40, 20), (9, 9, 9)).save(folder / "train" / "13.png")
    add(folder, "images", id=13, file_name="13.png", width=40, height=20)
    change(folder, "annotations", 1, iscrowd=1)
    report = check_coco(folder)
    assert not report.fatal and list(report.counts().values()) == [3, 1, 2, 1]
    assert [len(labels) for labels in load_coco(folder, "train").labels] == [1, 0, 0]


def test_the_check_command(folder, capsys):
    assert main(["check", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "nothing wrong was found" in shown and "note: no split but train" in shown
    add(folder, "categories", id=9, name="drone")
    assert main(["check", str(folder), "--split", "train"]) == 0  # a warning
    change(folder, "annotations", bbox=[35, 2, 10, 4])
    assert main(["check", str(folder)]) == 1
    shown = capsys.readouterr().out
    assert "FATAL: a box lies outside its image, 1 x" in shown
    assert "annotation 110, image 11.png" in shown
    assert main(["check", str(folder / "nowhere")]) == 1


def test_repair_leaves_out_what_is_wrong_and_lists_it(folder, capsys):
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
    content, names = read(out), ("id", "image_id", "category_id", "bbox")
    assert [[a[name] for name in names] for a in content["annotations"]] == [
        [110, 11, 7, [35, 2, 5, 4]],
        [120, 12, 3, [20, 2, 10, 12]],
        [4, 12, 7, [1, 1, 3, 4]],
    ]
    assert [i["id"] for i in content["images"]] == [11, 12]
    assert content["annotations"][0]["area"] == 20
    with open(out / "repairs.csv") as file:
        done = {(row["place"], row["done"]) for row in csv.DictReader(file)}
    assert ("annotation 110", "cut to [35.0, 2.0, 5.0, 4.0]") in done and len(done) == 7
    for place in ("annotation 1", "annotation 2", "annotation 3", "13.png"):
        assert (place, "left out") in done
    assert not (out / "train" / "12.png").is_symlink()
    assert main(["check", str(folder), "--repair", str(out)]) == 1  # it is there already
    assert "is there already" in capsys.readouterr().err


def test_repair_takes_a_leak_out_of_training_and_gives_up_what_is_hopeless(folder):
    as_val(folder)
    repair_coco(folder, folder / "clean", ("train", "val"))
    assert not any(check_coco(folder / "clean", split).fatal for split in ("train", "val"))
    assert [p.name for p in (folder / "clean" / "train").iterdir()] == ["12.png"]
    add(folder, "images", id=11, file_name="12.png", width=40, height=20)
    repair_coco(folder, folder / "one", ("train",))
    # Nothing says whose the annotations of id 11 are.
    assert [i["id"] for i in read(folder / "one")["images"]] == [12]
    (folder / "train" / "12.png").unlink()
    with pytest.raises(WorkbenchError, match="nothing would be left"):
        repair_coco(folder, folder / "again", ("train",))
    (folder / "train.json").write_text("{")
    with pytest.raises(WorkbenchError, match="cannot be repaired"):
        repair_coco(folder, folder / "again", ("train",))
    assert not list(folder.glob("*again*")) and not list(folder.glob(".*again*"))


# Folders larger than memory


@pytest.mark.parametrize(
    "settings",
    [{}, {"size": 32}, {"shortest": 27, "longest": 59}, {"size": 32, "crop": 3.0, "crops": 3}],
)
def test_frames_read_on_demand_are_those_held_in_memory(folder, monkeypatch, settings):
    held = load_coco(folder, "train", **settings)
    monkeypatch.setattr(coco, "HELD", 0)
    streamed = load_coco(folder, "train", **settings)
    assert isinstance(held.pixels, torch.Tensor) and isinstance(streamed.pixels, Frames)
    assert streamed.pixels.shape == held.pixels.shape and streamed.fingerprint == held.fingerprint
    for rows in (slice(None), [1, 0, 1], torch.tensor([1]), slice(-1, None), 0, -1):
        assert torch.equal(streamed.pixels[rows], held.pixels[rows])
    assert torch.equal(torch.cat([*streamed.pixels.split(2)]), held.pixels)
    assert torch.equal(torch.stack([*streamed.images]), held.pixels)
    one, other = streamed.subset([1, 1]), held.subset([1, 1])
    assert torch.equal(torch.from_numpy(one.pixels.numpy()), other.pixels)
    assert one.fingerprint == other.fingerprint != held.fingerprint
    with pytest.raises(IndexError):
        _ = streamed.pixels[len(streamed)]


def test_the_ledger_counts_frames_read_on_demand(folder, monkeypatch):
    monkeypatch.setattr(coco, "HELD", 0)
    scenes = load_coco(folder, "train")
    with ledger.stage("data-free"), pytest.raises(ledger.LedgerError):
        _ = scenes.pixels[0]
    with ledger.stage("teacher", {scenes.split: "training"}) as seen:
        assert torch.equal(scenes.images[[0, 1]], scenes.pixels[:])
    assert seen.entries()[0]["images"] == 2


def test_a_frame_that_broke_after_the_check_is_named_when_it_is_read(folder, monkeypatch):
    monkeypatch.setattr(coco, "HELD", 0)
    scenes = load_coco(folder, "train")
    cut_short(folder, "12.png")
    with pytest.raises(WorkbenchError, match="cannot be read") as caught:
        _ = scenes.pixels[:]
    assert "12.png" in str(caught.value)


def test_a_moved_folder_is_the_same_folder_and_a_changed_one_is_not(folder):
    def identity(place):
        source = SceneConfig(name=str(place), size=32, shortest=0, crop=3.0, crops=2)
        return source.scenes("train").identity

    first, place = folder / "first", folder / "elsewhere" / "renamed"
    write_coco(load_coco(folder, "train"), first, "train")
    before = identity(first)
    place.parent.mkdir()
    first.rename(place)
    assert identity(place) == before
    image = place / "train" / "000000.png"
    Image.new("RGB", (40, 20), (1, 2, 3)).save(image)
    scene_source._load.cache_clear()  # as a new process begins
    assert identity(place) != before
