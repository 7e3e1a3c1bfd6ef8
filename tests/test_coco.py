"""COCO folders: written and read back, resized, cropped, and every bad input refused with its place and its mend."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from dfkd_lib import ledger
from dfkd_lib.datasets import coco, generate_scenes, ground_truth, load_coco, write_coco
from dfkd_lib.errors import WorkbenchError


@pytest.fixture
def folder(tmp_path):
    """Two frames of 40 x 20 pixels with a white object each: at (4, 6), 8 x 4, and at (20, 2), 10 x 12."""
    (tmp_path / "train").mkdir()
    content = {"categories": [{"id": 7, "name": "plane"}, {"id": 3, "name": "bird"}], "images": [], "annotations": []}
    for key, (x, y, width, height), category in ((11, (4, 6, 8, 4), 7), (12, (20, 2, 10, 12), 3)):
        frame = np.zeros((20, 40, 3), np.uint8)
        frame[y:y + height, x:x + width] = 255
        Image.fromarray(frame).save(tmp_path / "train" / f"{key}.png")
        content["images"].append({"id": key, "file_name": f"{key}.png", "width": 40, "height": 20})
        content["annotations"].append({"id": key * 10, "image_id": key, "category_id": category,
                                       "bbox": [x, y, width, height], "area": width * height, "iscrowd": 0})
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


@pytest.mark.parametrize("settings", [{"size": 32}, {"shortest": 30, "longest": 50}, {"size": 32, "crop": 2.0}])
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


@pytest.mark.parametrize("settings", [{}, {"size": 32}, {"shortest": 30, "longest": 50}, {"size": 32, "crop": 2.0}])
def test_ground_truth_measures_objects_in_the_pixels_of_their_frames(folder, settings):
    scenes = load_coco(folder, "train", **settings)
    truth = ground_truth(scenes)
    assert [a["bbox"][2:] for a in truth["annotations"]] == [pytest.approx([8, 4]), pytest.approx([10, 12])]
    assert [a["area"] for a in truth["annotations"]] == pytest.approx([32, 120])
    assert truth["images"][0]["width"] == round(scenes.pixels.shape[3] * float(scenes.scale[0]))


def test_scenes_are_written_at_their_own_size(folder, tmp_path):
    scenes = load_coco(folder, "train", size=32, crop=2.0)
    write_coco(scenes, tmp_path / "again", "train")
    back = load_coco(tmp_path / "again", "train")
    assert back.pixels.shape == scenes.pixels.shape and torch.allclose(back.boxes[0], scenes.boxes[0], atol=1e-5)


@pytest.fixture
def wide(tmp_path):
    """A frame of 200 x 160 with objects at (20, 30), 10 x 6, red, and (150, 100), 20 x 12, green; one without any."""
    (tmp_path / "train").mkdir()
    frame = np.zeros((160, 200, 3), np.uint8)
    frame[30:36, 20:30], frame[100:112, 150:170] = (255, 0, 0), (0, 255, 0)
    Image.fromarray(frame).save(tmp_path / "train" / "a.png")
    Image.new("RGB", (200, 160), (0, 0, 255)).save(tmp_path / "train" / "b.png")
    content = {"categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "green"}],
               "images": [{"id": k, "file_name": f"{k}.png", "width": 200, "height": 160} for k in "ab"],
               "annotations": [{"id": 1, "image_id": "a", "category_id": 1, "bbox": [20, 30, 10, 6]},
                               {"id": 2, "image_id": "a", "category_id": 2, "bbox": [150, 100, 20, 12]}]}
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
        assert [columns.min(), columns.max() + 1] == pytest.approx([x - width / 2, x + width / 2], abs=1.5)
        assert [rows.min(), rows.max() + 1] == pytest.approx([y - height / 2, y + height / 2], abs=1.5)
    assert (scenes.pixels[4:, 2] == 255).all()  # inside the empty frame: nothing is filled


def test_crops_of_many_sizes(wide):
    found = load_coco(wide, "train", size=32, crop=4.0, crops=200, crop_spread=2.0).subset(range(0, 200, 2))
    factors = found.scale.numpy() * 32 / 10  # crop sides in sides of the first object
    assert factors.min() >= 1.9 and factors.max() <= 8.1
    assert np.quantile(np.log2(factors / 4), [0.1, 0.5, 0.9]) == pytest.approx([-0.8, 0, 0.8], abs=0.25)
    assert all(0 in labels for labels in found.labels)


def test_crops_anywhere_show_the_sky_too(wide):
    scenes = load_coco(wide, "train", size=32, crop=3.0, crops=100, crop_anywhere=0.5).subset(range(100))
    empty = sum(not len(labels) for labels in scenes.labels)
    assert 30 <= empty <= 60


def test_frames_are_decoded_once_and_counted_once(wide, monkeypatch):
    opened = []
    read_image = coco.read_image
    monkeypatch.setattr(coco, "read_image", lambda path, mode: opened.append(path.name) or read_image(path, mode))
    scenes = load_coco(wide, "train", size=32, crop=3.0, crops=5)
    assert opened == ["a.png", "b.png"] and len(scenes) == 10
    with ledger.stage("teacher", {scenes.split: "training"}) as seen:
        _ = scenes.images
    assert seen.entries()[0]["images"] == 2


@pytest.mark.parametrize("settings", [
    {"crops": 2}, {"size": 32, "crop_spread": 2.0}, {"crop": 3.0}, {"size": 32, "crop": 0.5},
    {"size": 32, "crop": 3.0, "crops": 0}, {"size": 32, "crop": 3.0, "crop_spread": 4.0},
    {"size": 32, "crop": 3.0, "crop_anywhere": 1.5}])
def test_impossible_crops_are_refused(wide, settings):
    with pytest.raises(WorkbenchError, match="crops") as caught:
        load_coco(wide, "train", **settings)
    assert "mend" in str(caught.value)


def test_the_ledger_knows_the_folder(folder):
    scenes = load_coco(folder, "train")
    with ledger.stage("data-free"), pytest.raises(ledger.LedgerError):
        _ = scenes.images
    with ledger.stage("data-free"), pytest.raises(ledger.LedgerError):
        (folder / "train" / "11.png").read_bytes()


@pytest.mark.parametrize("box, words", [
    ([35, 2, 10, 4], "outside its image"), ([-3, 2, 10, 4], "outside its image"), ([4, 6, 0, 4], "no area"),
    ([4, 6, 8, -1], "no area"), ([4, float("nan"), 8, 4], "not a number"), ([4, 6, 8], "not four numbers"),
    (None, "not four numbers"),
])
def test_bad_boxes(folder, box, words):
    change(folder, "annotations", bbox=box)
    with pytest.raises(WorkbenchError, match=words) as caught:
        load_coco(folder, "train")
    assert "annotation 110" in str(caught.value) and "train.json" in str(caught.value) and "mend" in str(caught.value)


@pytest.mark.parametrize("values, words", [({"category_id": 99}, "unknown category"), ({"image_id": 5}, "no image")])
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


@pytest.mark.parametrize("content, words", [
    ('{"images": [{"id": 1}], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "no annotations"),
    ('{"images": [', "cannot be read"), ("[]", "no images"),
    ('{"images": [{"id": 1}], "annotations": [{}], "categories": [{"id": 1, "name": "a"}]}', "not whole")])
def test_a_file_that_is_no_coco_file(folder, content, words):
    (folder / "train.json").write_text(content)
    with pytest.raises(WorkbenchError, match=words):
        load_coco(folder, "train")


def test_no_file_at_all(tmp_path):
    with pytest.raises(WorkbenchError, match="missing"):
        load_coco(tmp_path, "train")
