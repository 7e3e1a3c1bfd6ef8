"""Scenes drawn for a layout: they hold what was asked for, the two arms differ in λ alone, and all is kept and counted."""

import json
import math
from dataclasses import replace

import pytest
import torch
from PIL import Image

from dfkd_lib.core import WorkbenchError, artifacts
from dfkd_lib.datasets import SceneSet, generate_scenes, write_coco
from dfkd_lib.detection import DetectionRecipe, SceneSource, measures_table, seen_table
from dfkd_lib.detection.batches import SceneBatches, open_scenes
from dfkd_lib.detection.measure import consistency, scene_features
from dfkd_lib.detection.probes import (
    SIDE,
    class_object_probes,
    object_consistency_loss,
    object_probes,
)
from dfkd_lib.detection.synthesis import SceneGAN, moved_layouts, scene_gan_step
from dfkd_lib.models.detectors import create_detector
from dfkd_lib.models.scene_gan import (
    SceneDiscriminator,
    SceneGenerator,
    layout_planes,
    object_boxes,
)
from dfkd_lib.training import TrainConfig

LABELS = torch.tensor([[1, 0], [2, -1], [-1, -1]])
BOXES = torch.tensor(
    [
        [[0.25, 0.5, 0.5, 0.25], [0.75, 0.75, 0.25, 0.5]],
        [[0.5, 0.5, 0.2, 0.2], [0, 0, 0, 0]],
        [[0, 0, 0, 0], [0, 0, 0, 0]],
    ]
)


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    return create_detector("detr_nano", 4).eval().requires_grad_(False)


def test_planes_cover_boxes_by_their_share_of_each_pixel():
    planes = layout_planes(LABELS, BOXES, 3, 16)
    assert planes.shape == (3, 3, 16, 16)
    areas = planes.sum((2, 3)) / 256
    expected = torch.zeros(3, 3)
    expected[0, 1], expected[0, 0], expected[1, 2] = 0.125, 0.125, 0.04
    torch.testing.assert_close(areas, expected)
    assert planes[0, 1, 6:10, :8].eq(1).all() and planes[0, 1, :, 8:].eq(0).all()


def test_objects_are_cut_where_they_are_in_their_own_image():
    regions = object_boxes(BOXES, LABELS, 1.0, 32, 64)
    assert regions.tolist()[:2] == [[0, 0, 12, 32, 20], [0, 40, 16, 56, 32]] and regions[2, 0] == 1
    wide = object_boxes(BOXES, LABELS, 2.0, 32, 64)
    torch.testing.assert_close(wide[:, 3:] - wide[:, 1:3], 2 * (regions[:, 3:] - regions[:, 1:3]))


def test_an_object_changes_its_box_and_little_else():
    torch.manual_seed(0)
    model = SceneGenerator(4, 48, width=16).eval()
    noise = model.noise(3, 2, torch.Generator().manual_seed(1))
    with torch.no_grad():
        with_objects, empty = (
            model(LABELS, BOXES, *noise),
            model(torch.full_like(LABELS, -1), BOXES, *noise),
        )
    assert (
        with_objects.shape == (3, 3, 48, 48) and 0 <= with_objects.min() and with_objects.max() <= 1
    )
    changed = (with_objects - empty).abs().amax(1) > 1e-4
    assert not changed[2].any(), "a scene without objects is its background"
    assert (
        changed[1, 20:28, 20:28].all()
        and not changed[1, :12].any()
        and not changed[1, :, :12].any()
    )
    other = model(LABELS.where(LABELS != 2, 3), BOXES, *noise)
    assert (other[1] - with_objects[1]).abs().max() > 1e-4 and torch.equal(
        other[0], with_objects[0]
    )


def test_the_discriminator_judges_parts_and_each_object_with_its_class():
    torch.manual_seed(0)
    judge, images = SceneDiscriminator(4, 8).eval(), torch.rand(3, 3, 48, 48)
    parts, objects = judge(images, LABELS, BOXES)
    assert parts.shape == (3, 1, 6, 6) and objects.shape == (3,)
    relabelled = judge(images, LABELS.where(LABELS != 2, 3), BOXES)[1]
    assert (relabelled[:2] == objects[:2]).all() and relabelled[2] != objects[2]
    assert judge(images, torch.full_like(LABELS, -1), BOXES)[1].shape == (0,)
    judge.train()(
        images, torch.full_like(LABELS, -1), BOXES
    )  # batch norms have nothing to count then


def test_probes_are_shares_read_in_the_frame_of_the_box(detector):
    images = torch.rand(3, 3, 48, 48, requires_grad=True)
    probes, found = object_probes(detector, images, LABELS, BOXES)
    assert probes.shape == (3, SIDE * SIDE) and found.logits.shape[0] == 3
    torch.testing.assert_close(probes.sum(1), torch.ones(3))
    classes = class_object_probes(detector, [(images.detach(), LABELS, BOXES)], 3)
    torch.testing.assert_close(classes[1], probes[0].detach())  # the one object of class 1
    assert object_consistency_loss(probes, classes, LABELS[LABELS >= 0]).item() == pytest.approx(
        0, abs=1e-6
    )
    loss = object_consistency_loss(probes, classes.flip(1), LABELS[LABELS >= 0])
    loss.backward()
    assert 0 < loss <= 1 and images.grad[:2].abs().sum() > 0 and images.grad[2].abs().sum() == 0
    assert object_consistency_loss(probes[:0], classes, LABELS[:0, 0]) == 0


def test_class_probes_need_objects_of_every_class(detector):
    with pytest.raises(WorkbenchError, match=r"no object of class \[3\]"):
        class_object_probes(detector, [(torch.rand(3, 3, 48, 48), LABELS, BOXES)], 4)


def test_moved_layouts_stay_in_their_scene_and_keep_their_classes():
    count = 500
    labels, boxes = LABELS[:1].expand(count, -1), BOXES[:1].expand(count, -1, -1)
    same, moved = moved_layouts(labels, boxes, torch.Generator().manual_seed(0))
    low, high = moved[..., :2] - moved[..., 2:] / 2, moved[..., :2] + moved[..., 2:] / 2
    assert torch.equal(same, labels) and low.min() >= -1e-6 and high.max() <= 1 + 1e-6
    near = (moved[:, 0, 0] - 0.25).abs() < 0.15
    assert 0.4 < near.float().mean() < 0.6, "half of them are mirrored"
    assert moved_layouts(LABELS[2:], BOXES[2:], torch.Generator())[1].eq(0).all()


def test_the_arms_differ_in_lambda_alone(detector):
    """From one seed a GAN without weight on attention takes the very steps of one that never looks."""
    scenes = generate_scenes(8, 48)
    probes = torch.rand(4, SIDE * SIDE)

    def trained(lam):
        torch.manual_seed(0)
        modules = SceneGenerator(4, 48, width=16), SceneDiscriminator(4, 8)
        step = scene_gan_step(*modules, detector, probes, lam, 8)
        torch.manual_seed(1)
        losses = {}
        for batch in SceneBatches(scenes, 4, 0.0)(0, torch.Generator().manual_seed(0)):
            for name, said in step(batch, 0.0):
                losses |= {f"{name} {key}": value.item() for key, value in said.items()}
                said["loss"].backward()
        return losses, modules[0].embed.weight.grad

    (vanilla, plain), (augmented, guided), (again, twice) = trained(0.0), trained(1.0), trained(0.0)
    assert vanilla == again and torch.equal(plain, twice)
    for name in ("discriminator loss", "generator adversarial", "generator attention"):
        assert vanilla[name] == pytest.approx(augmented[name], rel=1e-5)
    expected = vanilla["generator loss"] + augmented["generator attention"]
    assert augmented["generator loss"] == pytest.approx(expected, abs=1e-5)
    assert not torch.equal(plain, guided)


def test_features_are_of_scenes_and_of_objects(detector):
    scenes = generate_scenes(5, 48, seed=2)
    whole, objects = scene_features(detector, scenes)
    assert whole.shape == (5, 96) and objects.shape == (sum(map(len, scenes.labels)), 96)
    brighter = replace(scenes, pixels=255 - scenes.pixels)
    assert not torch.allclose(scene_features(detector, brighter)[0], whole)
    assert 0 <= consistency(detector, scenes, torch.rand(4, SIDE * SIDE)) <= 1


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    recipe = DetectionRecipe(
        size=48,
        train_scenes=24,
        test_scenes=8,
        teacher="train",
        teacher_model="detr_nano",
        teacher_epochs=1,
        student_epochs=1,
        batch_size=8,
        gan_epochs=1,
        gan_width=16,
        gan_d_width=8,
        gan_scenes=12,
        precision="fp32",
    )
    return artifacts.Store(tmp_path_factory.mktemp("store")), recipe


def test_a_student_of_drawn_scenes_is_data_free_and_what_is_behind_it_is_told(made):
    store, recipe = made
    student = recipe.student(store, "synthetic")
    drawn, gan = recipe.drawn(store, "synthetic"), recipe.trained_gan(store, "synthetic")
    assert drawn.key in student.parents and gan.key in drawn.parents
    assert [row["split"] for row in gan.ledger] == ["aerial/train"] and gan.ledger[0][
        "images"
    ] == 24
    assert drawn.ledger == [] and {row["purpose"] for row in student.ledger} == {"evaluation"}
    scenes = open_scenes(drawn)
    assert len(scenes) == 12 and scenes.split is None and isinstance(scenes, SceneSet)
    history = gan.json("history.json")[0]
    assert {"discriminator_loss", "adversarial", "attention"} <= set(history) and math.isfinite(
        history["attention"]
    )
    assert recipe.drawn(store, "synthetic").cached and recipe.student(store, "synthetic").cached
    gan, vanilla = (
        store.find(recipe.trained_gan(store, arm).key) for arm in ("synthetic", "vanilla")
    )
    assert {k for k in gan.settings if gan.settings[k] != vanilla.settings[k]} == {"lam"}


def test_measures_of_drawn_and_of_real_scenes(made):
    store, recipe = made
    found = recipe.measured(store, "vanilla")
    assert (
        found.metrics["scenes"] == 12
        and found.metrics["frechet"] > 0
        and 0 <= found.metrics["found"] <= 1
    )
    real = recipe.measured(store, None)
    assert {row["split"] for row in real.ledger} == {
        "aerial/train",
        "aerial/test",
    } and real.metrics["scenes"] == 8
    assert {row["purpose"] for row in real.ledger + found.ledger} == {"evaluation"}
    table = measures_table({"vanilla GAN": [found], "real test scenes": [real]})
    assert (
        list(table["scenes"]) == ["vanilla GAN", "real test scenes"]
        and "distance of scenes" in table
    )


def test_detectors_of_a_folder_start_from_generated_scenes(made, tmp_path):
    store, recipe = made
    for split, count in (("train", 12), ("val", 6)):
        write_coco(generate_scenes(count, 96, seed=5), tmp_path / "mine", split)
    mine = replace(
        recipe,
        data=str(tmp_path / "mine"),
        crop=3.0,
        crops=2,
        crop_spread=1.5,
        start="generated",
        augment=1.0,
        teacher_model="detr_micro",
    )
    teacher, student = mine.teacher_artifact(store), mine.student(store, "plain")
    assert teacher.metrics["train_scenes"] == 24 and {
        r["split"]: r["images"] for r in teacher.ledger
    } == {"mine/train": 12, "mine/val": 6}
    assert store.find(teacher.parents[0]).metrics["shipped"] == "detr_micro_scenes"
    assert store.find(student.parents[0]).settings["train"]["count"] == 24, (
        "of the generated scenes"
    )
    assert store.find(student.parents[0]).stage == "detection-teacher", "plain never has a teacher"
    assert mine.student_start(store, "synthetic").stage == "detection-student"
    assert list(
        seen_table({"student": student, "teacher": recipe.teacher_artifact(store)})["started from"]
    ) == ["a detector of the generated scenes", "nothing"]
    assert replace(mine, start="nothing").student(store, "plain").key != student.key
    assert replace(recipe, start="generated").student_start(store, "train") is None, (
        "those are the generated scenes"
    )
    with pytest.raises(WorkbenchError, match="nothing or generated"):
        replace(recipe, start="there").student(store, "plain")


def test_whole_frames_by_tiles(made, tmp_path):
    store, recipe = made
    write_coco(generate_scenes(3, 96, seed=6), tmp_path / "mine", "val")
    mine = replace(recipe, data=str(tmp_path / "mine"))
    entry = json.loads((tmp_path / "mine" / "val.json").read_text())
    entry["images"][0]["width"] = 120  # frames of two sizes
    (tmp_path / "mine" / "val.json").write_text(json.dumps(entry))
    Image.new("RGB", (120, 96)).save(tmp_path / "mine" / "val" / entry["images"][0]["file_name"])
    found = mine.tiled(store, recipe.teacher_artifact(store), 48)
    assert (
        found.metrics["test_scenes"] == 3
        and 0 <= found.metrics["AP50"] <= 1
        and "AP_small" in found.metrics
    )
    assert found.tensors("predictions.safetensors")["boxes"].shape == (3, 100, 4)


def test_impossible_gans_are_refused(made):
    store, recipe = made
    with pytest.raises(WorkbenchError, match="λ >= 0"):
        SceneGAN(TrainConfig(epochs=1, batch_size=4, lr=1e-3), lam=-1.0)
    with pytest.raises(WorkbenchError, match="0 < attention_share <= 1"):
        SceneGAN(TrainConfig(epochs=1, batch_size=4, lr=1e-3), attention_share=0.0)
    with pytest.raises(WorkbenchError, match="no such GAN"):
        recipe.gan("plain")
    with pytest.raises(WorkbenchError, match="16 divides"):
        replace(recipe, size=56).trained_gan(store, "vanilla")


def test_the_first_of_the_gans_seeds_teaches_students(made):
    store, recipe = made
    other = replace(recipe, seed=3, gan_seeds="5,0")
    assert other.gan("synthetic").config.seed == 5 and other.gan("vanilla", 0).config.seed == 0
    assert replace(recipe, seed=3).gan("vanilla") == recipe.gan("vanilla"), (
        "the detectors' seed is another matter"
    )


def test_what_would_stop_the_notebook_later_is_said_first(made, tmp_path):
    store, recipe = made
    for split, count in (("train", 12), ("val", 6)):
        write_coco(generate_scenes(count, 96, seed=5), tmp_path / "mine", split)
    mine = replace(recipe, data=str(tmp_path / "mine"), crop=3.0)
    mine.check()
    with pytest.raises(WorkbenchError, match="16 divides"):
        replace(mine, size=56).check()
    for split in ("train", "val"):
        file = tmp_path / "mine" / f"{split}.json"
        content = json.loads(file.read_text())
        file.write_text(
            json.dumps(
                {**content, "categories": [*content["categories"], {"id": 9, "name": "kite"}]}
            )
        )
    with pytest.raises(WorkbenchError, match="none of kite"):
        replace(mine, seed=1).check()  # another seed: folders are read once
    with pytest.raises(WorkbenchError, match="both cut around objects and resized whole"):
        replace(mine, shortest=64).check()
    start = replace(mine, start="generated")
    with pytest.raises(WorkbenchError, match="teacher_model='detr_micro'"):
        start.teacher_artifact(store)
    with pytest.raises(WorkbenchError, match="start='generated' and pretrained, student_backbone"):
        replace(start, pretrained=True, student_backbone="x.safetensors").student(store, "plain")


def test_a_folder_that_changes_is_read_again(tmp_path):
    source = SceneSource(str(tmp_path / "mine"), 48)
    before = None
    for seed in (0, 1):
        write_coco(generate_scenes(2, 96, seed=seed), tmp_path / "mine", "train")
        loaded = source.load("train")
        assert source.load("train") is loaded, "and only then"
        if seed:
            assert loaded.fingerprint != before
        before = loaded.fingerprint
