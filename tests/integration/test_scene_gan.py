"""Scenes drawn for a layout: they hold what was asked for, the two variants differ in λ alone, and all is counted."""

import itertools
import json
import math
from dataclasses import replace

import pytest
import torch
from cells import edit_cell, run_cell
from folders import write_coco
from PIL import Image
from torch.optim.swa_utils import AveragedModel
from torchvision.ops import box_convert

from dfkd_lib import detection, losses, presets, training
from dfkd_lib.core import Store, WorkbenchError
from dfkd_lib.datasets import (
    SceneConfig,
    Scenes,
    SceneSet,
    generate_scenes,
    open_scenes,
)
from dfkd_lib.detection import (
    DetectionStudy,
    SceneBatches,
    SceneGAN,
    SceneInversion,
    SceneNetworks,
    measures_table,
    padded,
    sampled_layouts,
    scene_gan_step,
    seen_table,
)
from dfkd_lib.detection.__main__ import main as command_line
from dfkd_lib.detection.inversion import hidden
from dfkd_lib.detection.layouts import STATISTICS, _statistics
from dfkd_lib.detection.measure import consistency, scene_features
from dfkd_lib.detection.probes import (
    SIDE,
    class_object_probes,
    object_consistency_loss,
    object_probes,
)
from dfkd_lib.detection.scene_gan import moved_layouts
from dfkd_lib.models import SceneDiscriminator, SceneEncoder, SceneGenerator, create_detector
from dfkd_lib.models.scene_gan import layout_planes, object_boxes
from dfkd_lib.reporting.published import readme
from dfkd_lib.synthesis import Canvas

LABELS = torch.tensor([[1, 0], [2, -1], [-1, -1]])
BOXES = torch.zeros(3, 2, 4)
BOXES[0] = torch.tensor([[0.25, 0.5, 0.5, 0.25], [0.75, 0.75, 0.25, 0.5]])
BOXES[1, 0] = torch.tensor([0.5, 0.5, 0.2, 0.2])
NO_LABELS = torch.full_like(LABELS, -1)


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
    model = SceneGenerator(4, 48, width=16).eval().requires_grad_(False)
    noise = model.noise(3, 2, torch.Generator().manual_seed(1))
    drawn, empty = (model(labels, BOXES, *noise) for labels in (LABELS, NO_LABELS))
    assert drawn.shape == (3, 3, 48, 48) and 0 <= drawn.min() and drawn.max() <= 1
    changed = (drawn - empty).abs().amax(1) > 1e-4
    assert not changed[2].any(), "a scene without objects is its background"
    assert changed[1, 20:28, 20:28].all()
    assert not changed[1, :12].any() and not changed[1, :, :12].any()
    other = model(LABELS.where(LABELS != 2, 3), BOXES, *noise)
    assert (other[1] - drawn[1]).abs().max() > 1e-4 and torch.equal(other[0], drawn[0])


def test_the_discriminator_judges_parts_and_each_object_with_its_class():
    torch.manual_seed(0)
    judge, images = SceneDiscriminator(4, 8).eval(), torch.rand(3, 3, 48, 48)
    parts, objects = judge(images, LABELS, BOXES)
    assert parts.shape == (3, 1, 6, 6) and objects.shape == (3,)
    relabelled = judge(images, LABELS.where(LABELS != 2, 3), BOXES)[1]
    assert (relabelled[:2] == objects[:2]).all() and relabelled[2] != objects[2]
    assert judge(images, NO_LABELS, BOXES)[1].shape == (0,)
    judge.train()(images, NO_LABELS, BOXES)  # batch norms have nothing to count then


def test_codes_of_new_scenes_lie_as_those_of_real_ones():
    """Mean and covariance of codes are those of the mixture of normal distributions that the prior was fitted to."""
    torch.manual_seed(0)
    model, mixed = SceneGenerator(4, 48, latent=3, width=16), torch.randn(3, 3)
    skies = torch.randn(4000, 3) @ mixed + 1, torch.full((4000, 3), math.log(0.25))
    things = torch.cat([torch.full((2, 3), 2.0), torch.zeros(2, 3)]), torch.full((4, 3), -9.0)
    model.fit_prior(skies, things, torch.tensor([1, 1, 2, 2]))
    noise = torch.randn(4000, 3), torch.randn(4000, 2, 3), torch.zeros(1)
    sky, drawn, _ = model.codes(torch.tensor([[1, -1]]).expand(4000, -1), *noise)
    expected = skies[0].T.cov() + 0.25 * torch.eye(3)
    torch.testing.assert_close(sky.T.cov(), expected, rtol=0.1, atol=0.15)
    torch.testing.assert_close(sky.mean(0), skies[0].mean(0), rtol=0.1, atol=0.1)
    assert (drawn[:, 0] - 2).abs().max() < 0.1, "the codes of class 1 are all 2"
    untouched = model.codes(torch.tensor([[0, 3]]).expand(4000, -1), *noise)[1]
    assert torch.equal(untouched, noise[1]), (
        "a class without objects keeps the standard distribution"
    )


def test_the_likeness_and_the_divergence_are_a_vaes(detector):
    nets = SceneNetworks(
        **SceneGAN(width=16, d_width=8).networks(4, 48), teacher=detector, probes=None
    )
    batch = SceneBatches(generate_scenes(3, 48), 3).rows(torch.arange(3))
    codes, apart = nets.encode(batch)
    skies, things = nets.encoder(*batch[:3])
    normals = [torch.distributions.Normal(m, (v / 2).exp()) for m, v in (skies, things)]
    own = [
        torch.distributions.kl_divergence(n, torch.distributions.Normal(0.0, 1.0)) for n in normals
    ]
    assert codes[1].shape == (*batch.labels.shape, 32) and things[0].shape[0] == sum(
        batch.labels.ge(0).flatten()
    )
    torch.testing.assert_close(apart, sum(one.sum() for one in own) / 3)
    drawn = torch.zeros_like(batch.images)
    given = torch.distributions.Normal(drawn, 0.1)
    expected = given.log_prob(drawn) - given.log_prob(batch.images)
    torch.testing.assert_close(detection.likeness_loss(drawn, batch.images), expected.sum() / 3)
    nothing = nets.encode(batch._replace(labels=torch.full_like(batch.labels, -1)))
    assert not nothing[0][1].any()


def test_probes_are_shares_read_in_the_frame_of_the_box(detector):
    images = torch.rand(3, 3, 48, 48, requires_grad=True)
    probes, found = object_probes(detector, images, LABELS, BOXES)
    assert probes.shape == (3, SIDE * SIDE) and found.logits.shape[0] == 3
    torch.testing.assert_close(probes.sum(1), torch.ones(3))
    classes = class_object_probes(detector, [detection.Batch(images.detach(), LABELS, BOXES)], 3)
    torch.testing.assert_close(classes[1], probes[0].detach())  # the one object of class 1
    known = LABELS[LABELS >= 0]
    assert object_consistency_loss(probes, classes, known).item() == pytest.approx(0, abs=1e-6)
    loss = object_consistency_loss(probes, classes.flip(1), known)
    loss.backward()
    assert 0 < loss <= 1 and images.grad[:2].abs().sum() > 0 and images.grad[2].abs().sum() == 0
    assert object_consistency_loss(probes[:0], classes, LABELS[:0, 0]) == 0


def test_moved_layouts_stay_in_their_scene_and_keep_their_classes():
    count = 500
    labels, boxes = LABELS[:1].expand(count, -1), BOXES[:1].expand(count, -1, -1)
    same, moved = moved_layouts(labels, boxes, torch.Generator().manual_seed(0))
    corners = box_convert(moved, "cxcywh", "xyxy")
    assert torch.equal(same, labels) and corners.min() >= -1e-6 and corners.max() <= 1 + 1e-6
    near = (moved[:, 0, 0] - 0.25).abs() < 0.15
    assert 0.4 < near.float().mean() < 0.6, "half of them are mirrored"
    assert moved_layouts(LABELS[2:], BOXES[2:], torch.Generator())[1].eq(0).all()


def test_the_variants_differ_in_lambda_alone(detector):
    """From one seed a GAN without weight on attention takes the very steps of one that never looks."""
    scenes = generate_scenes(8, 48)
    probes = torch.rand(4, SIDE * SIDE)

    def trained(lam):
        torch.manual_seed(0)
        networks = SceneGenerator(4, 48, width=16), SceneDiscriminator(4, 8)
        nets = SceneNetworks(*networks, detector, probes, encoder=SceneEncoder(4, 48))
        torch.manual_seed(1)
        found = {}
        for batch in SceneBatches(scenes, 4, 0.0)(0, torch.Generator().manual_seed(0)):
            for name, named in scene_gan_step(nets, batch, lam):
                found |= {f"{name} {key}": value.item() for key, value in named.items()}
                named["loss"].backward()
        return found, nets.generator.embed.weight.grad

    (vanilla, plain), (augmented, guided), (again, twice) = trained(0.0), trained(1.0), trained(0.0)
    assert vanilla == again and torch.equal(plain, twice)
    for name in ("discriminator loss", "generator adversarial", "generator attention"):
        assert vanilla[name] == pytest.approx(augmented[name], rel=1e-5)
    loss = vanilla["generator likeness"] + vanilla["generator divergence"]
    loss = vanilla["generator adversarial"] + 1e-3 * loss
    assert vanilla["generator loss"] == pytest.approx(loss, rel=1e-5)
    expected = vanilla["generator loss"] + augmented["generator attention"]
    assert augmented["generator loss"] == pytest.approx(expected, abs=1e-5)
    assert not torch.equal(plain, guided)


def test_features_are_of_scenes_and_of_objects(detector):
    scenes = generate_scenes(5, 48, seed=2)
    whole, objects = scene_features(detector, scenes)
    assert whole.shape == (5, 96) and objects.shape == (sum(map(len, scenes.labels)), 96)
    brighter = replace(scenes, pixels=255 - scenes.pixels)
    assert not torch.allclose(scene_features(detector, brighter)[0], whole)
    loss, *found = consistency(detector, scenes, torch.rand(4, SIDE * SIDE))
    assert 0 <= loss <= 1
    for mine, same in zip(found, detection.predict(detector, scenes.images), strict=True):
        torch.testing.assert_close(mine, same, atol=1e-5, rtol=1e-4)


def shown(name, cfg):
    """A step as a cell of notebook 40 defines it."""
    names = {
        "__name__": "__main__",
        "detection": detection,
        "losses": losses,
        "torch": torch,
        "cfg": cfg,
    }
    return run_cell(edit_cell("40_detection_kd.ipynb", f"{name}("), names)[name]


BATCH = SceneBatches(generate_scenes(4, 48), 4).rows(torch.arange(4))


PLAIN = "box_distillation=0 attention_distillation=0 feature_distillation=0 giou=0"


@pytest.mark.parametrize("overrides", ["", PLAIN])
def test_the_notebooks_step_is_the_librarys(detector, overrides):
    """Equal losses and gradients on a batch, with labels, without a teacher, and with the teacher's finds as objects."""
    cfg = presets.load("detection", "quick", overrides)
    step, same = shown("step", cfg), detection.detection_step(cfg.losses)
    teacher = detection.answers(detector)
    cases = (BATCH, teacher), (BATCH, None), (detection.Batch(BATCH.images, None, None), teacher)
    for (batch, its_teacher), progress in itertools.product(cases, (0.0, 1.0)):
        values, gradients = [], []
        for one in (step, same):
            torch.manual_seed(3)
            student = create_detector("detr_nano", 4)
            found = one(student, batch, its_teacher, progress=progress)
            found["loss"].backward()
            values.append({name: value.item() for name, value in found.items()})
            gradients.append([p.grad for p in student.parameters() if p.grad is not None])
        assert values[0] == values[1] and list(values[0]) == list(values[1])
        assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_the_notebooks_gan_step_is_the_librarys(detector, lam):
    cfg = presets.load("detection", "quick", gan_batch=4)
    values = []
    own = shown("scene_gan_step", cfg)
    assert cfg.gan.with_step(own)._step is None, "what it trains is found by all who want it"
    for step in (own, scene_gan_step):
        torch.manual_seed(0)
        networks = SceneGAN(width=16, d_width=8).networks(4, 48)
        nets = SceneNetworks(**networks, teacher=detector, probes=torch.ones(4, SIDE * SIDE))
        updates = [(name, dict(named)) for name, named in step(nets, BATCH, lam)]
        found = {(name, key): v.item() for name, named in updates for key, v in named.items()}
        values.append(found)
    assert values[0] == values[1] and ("generator", "attention") in values[0]


SMALL = (
    "data.size=48 train_scenes=24 test_scenes=8 teacher=train teacher.model=detr_nano teacher.epochs=1 "
    "student.epochs=1 teacher.batch_size=8 batch_size=8 gan.epochs=2 gan.width=16 gan.d_width=8 "
    "gan_scenes=12 gan.precision=fp32 precision=fp32 teacher.precision=fp32 inverted_scenes=6 "
    "inversion.steps=2 inversion.batch_size=4"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store"))
    return DetectionStudy(store, presets.load("detection", "quick", SMALL))


def changed(study, overrides):
    return DetectionStudy(study.store, study.config.override(overrides))


@pytest.fixture
def mine(tmp_path):
    """A COCO folder of generated scenes: 12 to train on, 6 to test."""
    for split, count in (("train", 12), ("val", 6)):
        write_coco(generate_scenes(count, 96, seed=5), tmp_path / "mine", split)
    return tmp_path / "mine"


def test_a_student_of_drawn_scenes_is_data_free_and_what_is_behind_it_is_counted(made):
    student, augmented = made.student("synthetic"), made.config.gan
    drawn, gan = made.drawn(augmented), made.gan(augmented)
    assert drawn.key in student.parents and gan.key in drawn.parents
    assert [row["split"] for row in gan.ledger] == ["aerial/train"]
    assert gan.ledger[0]["images"] == 24
    assert drawn.ledger == [] and {row["purpose"] for row in student.ledger} == {"evaluation"}
    scenes = open_scenes(drawn)
    assert len(scenes) == 12 and scenes.split is None and isinstance(scenes, SceneSet)
    history = gan.json("history.json")[-1]
    assert {"discriminator_loss", "adversarial", "attention"} <= set(history)
    assert math.isfinite(history["attention"])
    assert made.drawn(augmented).cached and made.student("synthetic").cached
    vanilla = made.gan(augmented.replace(lam=0.0))
    assert {k for k in gan.settings if gan.settings[k] != vanilla.settings[k]} == {"lam"}


def test_measures_of_drawn_and_of_real_scenes(made):
    judge = made.student("plain")
    found = made.measured(made.drawn(made.config.gan.replace(lam=0.0)), judge)
    assert found.metrics["scenes"] == 12 and found.metrics["frechet"] > 0
    assert 0 <= found.metrics["found"] <= 1
    real = made.measured(None, judge)
    assert {row["split"] for row in real.ledger} == {"aerial/train", "aerial/test"}
    assert real.metrics["scenes"] == 8
    assert {row["purpose"] for row in real.ledger + found.ledger} == {"evaluation"}
    table = measures_table({"vanilla GAN": [found], "real test scenes": [real]})
    assert list(table["scenes"]) == ["vanilla GAN", "real test scenes"]
    assert "distance of scenes" in table


def test_detectors_of_a_folder_start_from_generated_scenes(made, mine):
    store, cut = made.store, "crop=3 crops=2 crop_spread=1.5"
    augmented = "augment=1 teacher.augment=1 teacher.model=detr_micro"
    study = changed(made, f"data={mine} {cut} start=generated {augmented}")
    teacher, student = study.teacher, study.student("plain")
    assert teacher.metrics["train_scenes"] == 24
    assert {r["split"]: r["images"] for r in teacher.ledger} == {"mine/train": 12, "mine/val": 6}
    assert store.find(teacher.parents[0]).metrics["shipped"] == "detr_micro_scenes"
    first = store.find(student.parents[0])
    assert first.settings["train"]["count"] == 24, "of the generated scenes"
    assert first.stage == "detection-teacher", "plain never has a teacher"
    step = detection.detection_step(study.config.losses)
    assert study.start(teacher, step).stage == "detection-student"
    seen = seen_table({"student": student, "teacher": made.teacher})["started from"]
    kept = "with bird, helicopter, drone, plane of its classes"
    assert list(seen) == [f"a detector of the generated scenes, {kept}", "nothing"]
    assert changed(study, "start=nothing").student("plain").key != student.key
    own = changed(made, "start=generated")
    assert own.start(made.teacher, step) is None, "those are the generated scenes"
    with pytest.raises(WorkbenchError, match="nothing|generated"):
        changed(study, "start=there")


def test_whole_frames_by_tiles(made, mine):
    file = mine / "val.json"
    entry = json.loads(file.read_text())
    entry["images"][0]["width"] = 120  # frames of two sizes
    file.write_text(json.dumps(entry))
    Image.new("RGB", (120, 96)).save(mine / "val" / entry["images"][0]["file_name"])
    found = changed(made, f"data={mine} tile=48,64").whole(made.teacher)
    assert found.metrics["test_scenes"] == 6 and 0 <= found.metrics["AP50"] <= 1
    assert "AP_small" in found.metrics
    assert found.tensors("predictions.safetensors")["boxes"].shape == (6, 100, 4)


def test_detectors_of_crops_are_measured_on_whole_frames_and_learn_empty_ground(made, mine):
    study = changed(made, f"data={mine} crop=1.2 crops=2 crop_whole=0.2 empty=8 calibration=0.5")
    teacher, whole = study.teacher, study.whole(study.teacher)
    assert teacher.settings["empty"]["empty"] == 8
    side = study.scenes("train").load().scale.median() * study.config.data.size
    assert study.tile == (round(float(side)),) == tuple(whole.settings["tile"])
    assert study.looks == (1.2,) == tuple(whole.settings["looks"])
    wide = changed(study, "crop=3 crop_spread=1.5")
    assert wide.looks == (2, 4.5) and changed(wide, "second_look=false").looks == ()
    assert {row["split"]: row["images"] for row in whole.ledger} == {"mine/val": 6}
    found = study.calibrated(teacher)
    assert found.metrics["temperature"] > 0 and 0 <= found.metrics["ECE"] <= 1
    table = detection.calibration_table({"teacher": found})
    assert list(table.columns) == ["detector", "ECE", "ECE, scaled", "T", "shift"]
    rows = study.scenes("train").load().rows, study.scenes("calibration").load().rows
    assert set(rows[0]).isdisjoint(rows[1]) and len(set(rows[0])) == len(set(rows[1])) == 6
    assert set(study.empty.load().rows) <= set(rows[0])
    plain = made.whole(made.teacher)
    assert plain is made.teacher and made.tile == made.looks == (), (
        "generated scenes are measured as they are"
    )
    assert not made.config.data.calibrates
    with pytest.raises(WorkbenchError, match="set crop, or empty to 0"):
        changed(made, f"data={mine} empty=2")


def test_a_folders_students_by_one_command(mine, tmp_path, monkeypatch):
    """Without GANs and pages: the names of notebook 40's metrics, a value a seed, in a file that can be published."""
    monkeypatch.setattr("dfkd_lib.detection.__main__.Store", lambda: Store(tmp_path / "store"))
    sizes = "data.size=48 data.crop=1.2 tile=48,96 seeds=0,1,2 students=plain,train"
    small = "teacher.model=detr_nano student.model=detr_nano teacher.epochs=1 student.epochs=1"
    out = tmp_path / "published" / "results.json"
    command = ["students", "--out", str(out), f"data={mine}", *sizes.split(), *small.split()]
    command_line(command)
    written = json.loads(out.read_text())
    found = written["notebooks"]["40_detection_kd"]["metrics"]
    assert found["measured_on"] == "whole frames" and len(found["teacher_AP50"]) == 1
    for part in ("AP50", "crops_AP50"):
        both = [found[f"student_{name}_{part}"] for name in ("plain", "train")]
        assert [len(values) for values in both] == [3, 3]
    gains = found["student_train_over_plain_AP50"]
    before, after = (found[f"student_{name}_AP50"] for name in ("plain", "train"))
    assert gains == pytest.approx([b - a for a, b in zip(before, after, strict=True)])
    assert "student_train_over_plain_AP50_p" in found and found["student_train_train_scenes"] == 12
    written["provenance"]["git"] = {"commit": 40 * "0", "dirty": False}
    out.write_text(json.dumps(written))
    assert "detection student, labels + teacher, AP50 on whole frames" in readme(out.parent)


def test_scores_are_calibrated_on_val_where_there_is_a_test_split(made, mine):
    write_coco(generate_scenes(4, 96, seed=9), mine, "test")
    study = changed(made, f"data={mine}")
    assert study.config.data.calibrates
    found = study.calibrated(study.teacher)
    read = {row["split"]: row["images"] for row in found.ledger}
    assert set(read) == {"mine/val", "mine/test"}


def test_the_first_of_the_gans_seeds_teaches_students(made, monkeypatch):
    asked = []
    monkeypatch.setattr(SceneGAN, "train", lambda gan, *_: asked.append(gan.seed))
    other = changed(made, "seed=3 gan_seeds=5,0")
    other.gan(other.config.gan)
    other.gan(other.config.gan, 0)
    assert asked == [5, 0]


def test_a_gan_with_a_step_keeps_it_when_its_settings_change():
    def step(nets, batch, lam):
        yield from scene_gan_step(nets, batch, lam)

    gan = SceneGAN().with_step(step).replace(lam=0.0)
    assert gan._step is step and gan.lam == 0.0 and SceneGAN()._step is None


def test_what_would_stop_the_notebook_later_is_refused_first(made, mine):
    study = changed(made, f"data={mine} crop=3")
    study.check()
    start = changed(study, "start=generated")
    for refused, message in (
        (lambda: changed(study, "data.size=56").check(), "16 divides"),
        (lambda: changed(study, "teacher.model=deimv2_atto").check(), "cannot be guided by deform"),
        (lambda: changed(study, "shortest=64"), "both cut around objects and resized whole"),
        (lambda: start.teacher, "teacher.model=detr_micro"),
        (
            lambda: changed(start, "pretrained=true student_backbone=x.safetensors"),
            "start=generated and teacher.pretrained, student.b",
        ),
    ):
        with pytest.raises(WorkbenchError, match=message):
            refused()
    for split in ("train", "val"):
        file = mine / f"{split}.json"
        content = json.loads(file.read_text())
        content["categories"].append({"id": 9, "name": "kite"})
        file.write_text(json.dumps(content))
    for ask in (study.check, lambda: study.probes):
        with pytest.raises(WorkbenchError, match="none of kite"):
            ask()
    file.write_text(file.read_text().replace("kite", "dragon"))
    with pytest.raises(WorkbenchError, match="no kite, also dragon"):
        study.check()


def test_a_folder_that_changes_is_read_again(tmp_path):
    source = SceneConfig(name=str(tmp_path / "mine"), size=48, shortest=0)
    before = None
    for seed in (0, 1):
        write_coco(generate_scenes(2, 96, seed=seed), tmp_path / "mine", "train")
        loaded = source.scenes("train").load()
        assert source.scenes("train").load() is loaded, "and only then"
        if seed:
            assert loaded.fingerprint != before
        before = loaded.fingerprint


# Layouts after a teacher's statistics, inversion of a detector, the moving average of the generator


def test_statistics_are_those_of_the_finds():
    """Three of class 0 with boxes of one size at three places, one of class 1, none of class 2."""
    labels = torch.tensor([[0, 0, 1], [0, 2, 2]])
    weights = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]).double()
    boxes = torch.full((2, 3, 4), 0.2).double()
    boxes[0, :, 0], boxes[1, 0, 0] = torch.tensor([0.3, 0.5, 0.8]).double(), 0.7
    found = _statistics(weights, labels, boxes, 3)
    torch.testing.assert_close(found["classes"], torch.tensor([3, 1, 1]) / 5)
    size = torch.full((3, 2), 0.2).log()
    torch.testing.assert_close(found["mean"][:, 2:], size)
    places = torch.logit(torch.tensor([[0.3, 0.5, 0.7], [0.8] * 3, [0.3, 0.5, 0.7]]))
    torch.testing.assert_close(found["mean"][:2, 0], places[:2].mean(1), atol=1e-5, rtol=0)
    spread = found["factor"][0] @ found["factor"][0].mT - 0.01 * torch.eye(4)
    assert float(spread[0, 0]) == pytest.approx(float(places[0].var(unbiased=False)), abs=1e-5)
    every = torch.logit(torch.tensor([0.3, 0.5, 0.7, 0.8]))
    assert float(found["mean"][2, 0]) == pytest.approx(float(every.mean()), abs=1e-5)


def test_layouts_follow_the_statistics_and_stay_in_their_scenes():
    counts, classes = torch.tensor([0.25, 0.0, 0.5, 0.25]), torch.tensor([0.75, 0.25])
    mean = torch.tensor([[0.0, 0.0, -2.0, -2.0], [3.0, 3.0, -1.0, -1.0]])
    statistics = {"counts": counts, "classes": classes, "mean": mean}
    statistics["factor"] = torch.eye(4).expand(2, -1, -1) * 0.1
    labels, boxes = sampled_layouts(statistics, 8000, torch.Generator().manual_seed(0))
    there = labels >= 0
    assert labels.shape == (8000, 3) and (there.int().diff(dim=1) <= 0).all(), "objects come first"
    shares = there.sum(1).bincount(minlength=4) / 8000
    torch.testing.assert_close(shares, counts, atol=0.02, rtol=0)
    torch.testing.assert_close(labels[there].bincount() / there.sum(), classes, atol=0.02, rtol=0)
    assert not boxes[~there].any()
    low, high = boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2
    assert low[there].min() >= -1e-6 and high[there].max() <= 1 + 1e-6
    own = boxes[labels == 0]
    torch.testing.assert_close(own.log().mean(0)[2:], torch.full((2,), -2.0), atol=0.02, rtol=0)
    torch.testing.assert_close(own.mean(0)[:2], torch.full((2,), 0.5), atol=0.01, rtol=0)


def test_layouts_of_noise_read_no_image_and_those_of_scenes_say_so(made):
    noise, seen = made.layouts(None), made.layouts(made.scenes("train"))
    assert noise.ledger == [] and noise.manifest["data_free"]
    assert [(r["split"], r["purpose"]) for r in seen.ledger] == [
        ("aerial/train", "layout statistics")
    ]
    for one in (noise, seen):
        found = one.tensors(STATISTICS)
        assert float(found["counts"].sum()) == pytest.approx(1) and found["classes"].shape == (4,)
    assert float(noise.tensors(STATISTICS)["counts"][0]) == 0, "each scene has an object"


def test_inverted_scenes_read_no_image_and_teach_a_student(made):
    scenes, student = made.inverted(), made.student("inverted")
    assert scenes.ledger == [] and scenes.manifest["data_free"]
    parents = [made.store.find(key) for key in scenes.parents]
    assert [one.stage for one in parents] == ["detection-teacher", "layout_statistics"]
    assert open_scenes(scenes).pixels.shape == (6, 3, 48, 48)
    assert not list(scenes.path.glob("part*"))
    assert {row["split"] for row in student.ledger} == {"aerial/test"}
    assert scenes.key in student.parents
    assert made.inverted().cached


def test_a_gans_scenes_of_the_teachers_layouts(made):
    scenes = made.drawn(made.config.gan, layouts=True)
    assert scenes.key != made.drawn(made.config.gan).key and scenes.manifest["data_free"]
    statistics = made.layouts(made.scenes("train", True)).tensors(STATISTICS)
    random = torch.Generator().manual_seed(made.config.seed)
    labels, _ = sampled_layouts(statistics, 12, random)
    assert torch.equal(scenes.tensors("scenes.safetensors")["labels"], labels)


def test_descent_makes_a_detector_find_what_was_asked_for():
    real = generate_scenes(2, 48, seed=3)
    labels, boxes = padded(real)
    detector = detection.open_shipped("detr_micro_scenes")
    weights = {"classification": 2.0, "boxes": 100.0, "giou": 2.0}
    maker = SceneInversion(steps=25, lr=0.1, tv=1, batch_norm=0.1)

    def loss(images):
        found = detection.queries(detector, images.to(training.device()).float() / 255)
        device = found.logits.device
        target = detection.pair_objects(found, labels.to(device), boxes.to(device))
        named = losses.detection_losses(*found[:2], target.labels, target.boxes)
        return float(sum(weights[name] * value.sum() for name, value in named.items()))

    start = maker.replace(steps=1, lr=1e-6).invert(detector, labels, boxes, 48, weights, 0)
    made = maker.invert(detector, labels, boxes, 48, weights, 0)
    assert loss(made) < 0.7 * loss(start)
    again = maker.invert(detector, labels, boxes, 48, weights, 0)
    assert torch.equal(made, again)


def test_a_detector_with_a_loss_of_its_own_is_inverted_by_that():
    torch.manual_seed(0)
    detector = training.frozen(create_detector("deimv2_atto", 4)).cpu()
    layout = padded(generate_scenes(2, 64, seed=3))
    canvas = Canvas(2, (3, 64, 64), torch.Generator().manual_seed(0), 4, 0.0)
    step = SceneInversion(tv=0, l2=0, batch_norm=0).step(canvas, detector, {"own": 2.0})
    named = step((*layout, torch.zeros(2, 1, 64, 64, dtype=torch.bool)), 0.0)
    own = detection.queries(detector, (canvas() + 1) / 2, objects=layout).own
    torch.testing.assert_close(named["loss"], 2 * own.sum())
    named["loss"].backward()
    assert canvas.pixels.grad.abs().sum() > 0


def test_patches_are_hidden_by_their_share():
    mask = hidden(50, 44, 0.25, torch.Generator().manual_seed(0))
    assert mask.shape == (50, 1, 44, 44) and abs(float(mask.float().mean()) - 0.25) < 0.03
    whole = mask[:, 0, :40, :40].unflatten(1, (5, 8)).unflatten(3, (5, 8)).float().mean((2, 4))
    assert set(whole.flatten().tolist()) == {0.0, 1.0}
    assert not hidden(2, 16, 0.0, torch.Generator()).any()


def test_the_moving_average_draws_and_leaves_the_training_as_it_is(made, tmp_path, monkeypatch):
    """Two steps: the mean is the generator after the first, then decay of it and the rest of the second."""
    states, update = [], AveragedModel.update_parameters

    def remember(mean, model):
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        update(mean, model)

    monkeypatch.setattr(AveragedModel, "update_parameters", remember)
    scenes = Scenes.of(generate_scenes(16, 48))
    own = {"epochs": 1, "batch_size": 8, "width": 16, "d_width": 8, "precision": "fp32", "lam": 0.0}
    drawing = {}
    for ema in (0.0, 0.75):
        gan = SceneGAN(**own, ema=ema)
        trained = gan.train(Store(tmp_path), scenes, made.teacher, made.probes)
        drawing[ema] = trained.tensors("generator.safetensors")
    first, second = states
    for name, value in drawing[0.75].items():
        if name.split("_")[-1] in ("mean", "spread") and "." not in name:
            continue  # where codes lie, which is fitted at the end
        assert torch.equal(drawing[0.0][name], second[name]), name
        if value.is_floating_point():
            meant = 0.75 * first[name] + 0.25 * second[name]
            torch.testing.assert_close(value, meant, atol=1e-6, rtol=1e-5)
