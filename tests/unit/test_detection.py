"""Detection: losses against torch's own, matching against brute force, COCO AP by hand, detectors, training."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from families import same_outputs
from folders import write_coco
from hubs import stand_in
from scipy.optimize import linear_sum_assignment
from torchvision.ops import box_convert, generalized_box_iou

from dfkd_lib import detection, metrics, presets
from dfkd_lib.core import NotMade, WorkbenchError, artifacts, ledger, only_finding
from dfkd_lib.datasets import (
    SCENES,
    SceneConfig,
    Scenes,
    SceneSet,
    coco,
    generate_scenes,
    load_coco,
    open_scenes,
)
from dfkd_lib.detection import (
    VARIANTS,
    Batch,
    DetectionConfig,
    DetectionStudy,
    DetectionWeights,
    DetectorConfig,
    Queries,
    SceneBatches,
    answers,
    detection_step,
    padded,
)
from dfkd_lib.detection.__main__ import DEFAULTS, overfit
from dfkd_lib.detection.batches import augmented
from dfkd_lib.detection.detector import inherit
from dfkd_lib.detection.matching import (
    PAIRINGS,
    expanded_targets,
    hungarian_targets,
    paired_queries,
)
from dfkd_lib.detection.measure import measure_scenes
from dfkd_lib.detection.scene_gan import object_probe_artifact
from dfkd_lib.detection.step import confident, kept_answers, mirrored_answers
from dfkd_lib.losses import detection_losses
from dfkd_lib.models import (
    Detections,
    WeightsMissing,
    count_parameters,
    create_detector,
    detector_names,
)
from dfkd_lib.models.realtime import REALTIME

CLASSES = ("bird", "helicopter", "drone", "plane")


def random_predictions(seed=0, batch=3, queries=5, classes=5):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, queries, classes, generator=generator)
    boxes = torch.rand(batch, queries, 4, generator=generator) * 0.3
    return logits, boxes + torch.tensor([0.3, 0.3, 0.1, 0.1])


def corners(boxes):
    return box_convert(boxes, "cxcywh", "xyxy")


# Losses


def test_scenes_without_objects_have_finite_losses():
    logits, boxes = random_predictions()
    losses = detection_losses(logits, boxes, torch.full((3, 5), 4), torch.zeros(3, 5, 4))
    assert losses["boxes"] == losses["giou"] == 0 and torch.isfinite(losses["classification"])


# Matching


def test_more_objects_than_queries_and_diverged_predictions_are_matched():
    labels, objects = torch.tensor([[0, 1, 2]]).repeat(3, 1), torch.rand(3, 3, 4)
    found, _ = hungarian_targets(*random_predictions(queries=2), labels, objects)
    assert (found < 4).all()
    logits, boxes = random_predictions()
    logits[0] = float("nan")
    found, _ = hungarian_targets(logits, boxes, labels[:, :2], objects[:, :2])
    assert (found < 4).sum(1).tolist() == [2, 2, 2]


def test_the_papers_pairing_repeats_the_objects_in_order():
    logits, boxes = random_predictions()
    labels = torch.tensor([[3, 1, -1], [-1, -1, -1], [2, 2, 0]])
    objects = torch.rand(3, 3, 4)
    found, where = expanded_targets(logits, boxes, labels, objects)
    assert found.tolist() == [[3, 1, 3, 1, 3], [4, 4, 4, 4, 4], [2, 2, 0, 2, 2]]
    assert torch.equal(where[0, 2], objects[0, 0]) and torch.equal(where[2, 2], objects[2, 2])


def test_a_smaller_student_is_paired_with_what_the_teacher_is_sure_of():
    logits, boxes = random_predictions(3, batch=1, queries=6)
    logits[..., :4], logits[0, 2, 1], logits[0, 5, 3] = -6.0, 5.0, 5.0
    found = paired_queries(*random_predictions(9, batch=1, queries=2), logits, boxes)
    assert sorted(found[0].tolist()) == [2, 5]


class Predicted(torch.nn.Module):
    """A detector whose predictions, in every decoder layer, are given."""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, images, earlier=False):
        return Detections(*self.layers[-1], tuple(self.layers[:-1]) if earlier else ())


def plain_losses(logits, boxes, labels, objects, taught, temperature=2.0):
    """The losses of one decoder layer, scene by scene and pair by pair."""
    names, nothing, count = ("classification", "boxes", "giou", "distillation"), 4, 0
    sums = dict.fromkeys(names, 0.0)
    for row, true in enumerate(labels):
        p, true, things = logits[row].detach().sigmoid(), true[true >= 0], objects[row][true >= 0]
        wanted = torch.full((len(p),), nothing)
        overlap = generalized_box_iou(corners(boxes[row]), corners(things))
        cost = 5 * torch.cdist(boxes[row], things, p=1) - 2 * p[:, true] - 2 * overlap
        for query, of in zip(*linear_sum_assignment(cost.detach()), strict=True):
            wanted[query], count = true[of], count + 1
            sums["boxes"] += F.smooth_l1_loss(boxes[row][query], things[of], reduction="sum")
            sums["giou"] += 1 - overlap[query, of]
        hot = F.one_hot(wanted, nothing + 1).float()
        bce = F.binary_cross_entropy_with_logits(logits[row], hot, reduction="sum")
        sums["classification"] += bce
        t = taught[0][row].sigmoid()
        near = 25 - 5 * torch.cdist(boxes[row], taught[1][row], p=1) - torch.cdist(p, t, p=1)
        worth = ((t[:, :-1].amax(1) + 0.01) * near).detach()
        for pair in zip(*linear_sum_assignment(worth, maximize=True), strict=True):
            both = (x[row][query] for x, query in zip((logits, taught[0]), pair, strict=True))
            q, p_taught = (torch.log_softmax(x / temperature, 0) for x in both)
            kl = temperature**2 * (p_taught.exp() * (p_taught - q)).sum()
            sums["distillation"] += kl / (len(logits) * min(len(t), len(wanted)))
    shared = {name: value / max(count, 1) for name, value in sums.items()}
    return {**shared, "distillation": sums["distillation"]}


@pytest.mark.parametrize("queries, others", [(5, 5), (5, 8), (8, 5)])
def test_all_layers_together_have_the_losses_of_each_by_itself(queries, others):
    layers = [random_predictions(seed, queries=queries) for seed in range(3)]
    inputs = [part.requires_grad_() for layer in layers for part in layer]
    taught = random_predictions(7, queries=others)
    labels = torch.tensor([[0, 3, 1], [2, -1, -1], [-1, -1, -1]])
    objects, weights = random_predictions(8, queries=3)[1], DetectionWeights(giou=2.0)
    batch = Batch(torch.zeros(3, 3, 8, 8), labels, objects)
    named = detection_step(weights)(Predicted(layers), batch, answers(Predicted([taught])))
    total = named.pop("loss")
    plain = [plain_losses(*layer, labels, objects, taught) for layer in layers]
    whole = sum(weights[name] * value for each in plain for name, value in each.items())
    assert total.item() == pytest.approx(whole.item(), rel=1e-6)
    assert set(named) == set(plain[-1])
    for name, value in named.items():
        assert value.item() == pytest.approx(plain[-1][name].item(), rel=1e-5), name
    gradients = (torch.autograd.grad(loss, inputs) for loss in (total, whole))
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


# Batches


def test_augmented_boxes_follow_their_objects():
    """A white rectangle on black: after any augmentation the box still frames the white pixels."""
    images, boxes = torch.zeros(40, 3, 64, 64), torch.zeros(40, 2, 4)
    images[:, :, 20:36, 12:44] = 1
    boxes[:, 0] = torch.tensor([28 / 64, 28 / 64, 32 / 64, 16 / 64])
    labels = torch.tensor([[2, -1]]).repeat(40, 1)
    scenes = SceneSet(
        (255 * images).to(torch.uint8),
        [boxes[0, :1]] * 40,
        [torch.tensor([2])] * 40,
        ("a", "b", "c"),
    )
    mirrored = next(SceneBatches(scenes, 40)(0, torch.Generator().manual_seed(0)))
    assert 0 < (mirrored.places >= 40).sum() < 40
    assert (mirrored.places % 40).sort().values.tolist() == list(range(40))
    zoomed = augmented(Batch(images, labels, boxes), torch.Generator().manual_seed(0))
    for moved, found, where, _ in (mirrored, zoomed):
        assert (found[:, 0] == 2).all() and (found[:, 1:] == -1).all()
        for image, box in zip(moved, corners(where[:, 0] * 64), strict=True):
            rows, columns = (image.mean(0) > 0.5).nonzero(as_tuple=True)
            drawn = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert (drawn - box).abs().max() <= 1


@pytest.mark.parametrize("room", [959, 960])  # two answers of 5 × 4 floats to each of 6 scenes
def test_a_teachers_answers_are_kept_where_scenes_are_only_mirrored(monkeypatch, room):
    """Each scene is asked once, as it is, though this teacher does not know left from right; without room, live."""
    monkeypatch.setattr("dfkd_lib.detection.step.STORED_BYTES", room)
    torch.manual_seed(0)
    pixels = torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8)
    objects = [torch.rand(1, 4) / 4 + 0.3] * 6, [torch.tensor([k % 3]) for k in range(6)]
    batches = SceneBatches(SceneSet(pixels, *objects, ("a", "b", "c")), 4)

    class Teacher(torch.nn.Module):
        asked = 0

        def forward(self, images, every_layer):
            self.asked += len(images)
            return Detections(images.mean(1)[:, :5, :4], images.mean(1)[:, 5:10, :4])

    teacher = Teacher()
    answer, live = kept_answers(teacher, batches, 4), kept_answers(Teacher(), batches, 1)
    for epoch in range(4):
        for batch in batches(epoch, torch.Generator().manual_seed(epoch)):
            torch.testing.assert_close(answer(batch)[:2], live(batch)[:2])
    assert teacher.asked == (6 if room == 960 else 4 + 4 * 4)
    for changed in (
        batch._replace(images=batch.images.flip(-1)),
        batch._replace(images=batch.images + 0.01 * torch.randn_like(batch.images)),
        batch._replace(places=None),
    ):
        torch.testing.assert_close(answer(changed).boxes, live(changed).boxes)


def test_a_student_starts_as_its_teacher_but_for_the_backbone():
    """Its layers are the teacher's first and last; where widths differ it starts as it was."""
    torch.manual_seed(0)
    teacher, student = create_detector("detr_micro", 4), create_detector("detr_mini", 4)
    fresh = copy.deepcopy(student.state_dict())
    assert inherit(student, teacher)
    theirs, own = teacher.network.model, student.network.model
    for mine, its in ((0, 0), (1, 2)):
        pair = [one.decoder.layers[i].state_dict() for one, i in ((own, mine), (theirs, its))]
        assert pair[0].keys() == pair[1].keys() and all(
            torch.equal(v, pair[1][k]) for k, v in pair[0].items()
        )
    for layer in (own.encoder.layers[0], student.network.class_labels_classifier):
        its = dict(teacher.named_modules())[
            next(n for n, m in student.named_modules() if m is layer)
        ]
        assert all(map(torch.equal, layer.state_dict().values(), its.state_dict().values()))
    backbone = [name for name in fresh if "backbone" in name or "input_projection" in name]
    assert backbone and all(
        torch.equal(student.state_dict()[name], fresh[name]) for name in backbone
    )
    narrow = create_detector("detr_nano", 4)
    before = copy.deepcopy(narrow.state_dict())
    assert not inherit(narrow, teacher)
    assert all(torch.equal(value, before[name]) for name, value in narrow.state_dict().items())


def test_the_backbone_learns_the_teachers_features_first():
    """Until `features_first` of the training they are the whole loss and the transformer has no gradient; then one of all.
    They are what the teacher's projection gives, squared difference over variance; a student of another width has none."""
    torch.manual_seed(0)
    teacher, student = (
        create_detector("detr_micro", 4).eval(),
        create_detector("detr_mini", 4).eval(),
    )
    batch = SceneBatches(generate_scenes(4, 48), 4).rows(torch.arange(4))
    weights = DetectionWeights(feature_distillation=5.0, features_first=0.5)
    step, ask = detection_step(weights), answers(teacher)
    theirs, own = (one.features(batch.images) for one in (teacher, student))
    assert torch.equal(ask(batch, False, True).features, theirs)
    spread = theirs.transpose(0, 1).flatten(1).var(1, correction=0).mean()
    expected = (own - theirs).square().mean() / spread
    first, later = (step(student, batch, ask, progress=share) for share in (0.2, 0.6))
    assert set(first) == {"loss", "feature_distillation"}
    torch.testing.assert_close(first["feature_distillation"], expected)
    torch.testing.assert_close(first["loss"], 5 * expected)
    torch.testing.assert_close(later["feature_distillation"], expected)
    assert {"classification", "distillation"} < set(later)
    first["loss"].backward()
    learned = {name for name, one in student.named_parameters() if one.grad is not None}
    assert learned and all("backbone" in name or "input_projection" in name for name in learned)
    narrow = step(create_detector("detr_nano", 4), batch, ask, progress=0.2)
    assert "feature_distillation" not in narrow and "classification" in narrow


def test_answers_are_mirrored_as_scenes_are():
    """A teacher's map and box of one query move to where the flipped scene has them; others stay."""
    maps = torch.zeros(2, 1, 2, 4)
    maps[..., 0] = 1
    found = detection.Queries(torch.ones(1, 2, 1, 3), torch.full((1, 2, 1, 4), 0.2), maps)
    logits, boxes, seen, *_ = mirrored_answers(found, torch.tensor([True, False]))
    assert torch.equal(logits, found.logits) and torch.equal(seen[1], maps[1])
    assert torch.equal(seen[0], maps[0].flip(-1)) and boxes[0, 0, 0].tolist() == pytest.approx(
        [0.8, 0.2, 0.2, 0.2]
    )
    assert torch.equal(boxes[0, 1], found.boxes[0, 1])


def test_an_object_moved_out_of_view_is_dropped():
    boxes = torch.tensor([[[0.02, 0.5, 0.04, 0.1], [0.5, 0.5, 0.2, 0.2]]]).repeat(64, 1, 1)
    batch = Batch(torch.zeros(64, 3, 32, 32), torch.tensor([[1, 3]]).repeat(64, 1), boxes)
    _, labels, where, _ = augmented(batch, torch.Generator().manual_seed(0))
    gone = labels[:, 1] < 0
    assert gone.any() and not gone.all()
    assert (labels[gone, 0] == 3).all() and (where[gone, 1] == 0).all()
    assert corners(where).min() >= -1e-6 and corners(where).max() <= 1 + 1e-6


def test_batches_are_padded_and_repeat_with_the_seed():
    scenes = generate_scenes(10, size=32)
    labels, boxes = padded(scenes)
    assert labels.shape == (10, 4)
    assert (labels >= 0).sum(1).tolist() == [len(x) for x in scenes.labels]
    batches = SceneBatches(scenes, 4, augment=1.0)
    assert len(batches) == 2
    first, again = (list(batches(0, torch.Generator().manual_seed(5))) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert all(map(torch.equal, one[:3], other[:3])) and one.places is other.places is None


# Detectors


SIZES = {
    "detr_resnet50": 41_502_409,
    "detr_resnet18_2x2": 17_245_897,
    "detr_micro": 1_519_659,
    "detr_mini": 779_687,
    "detr_nano": 623_063,
}


@pytest.mark.parametrize("name", SIZES)
def test_the_papers_parameter_counts_and_ours(name):
    assert count_parameters(create_detector(name, 4)) == SIZES[name]


@pytest.mark.parametrize(
    "name", ["detr_micro", "detr_nano", "detr_resnet18_2x2", "conditional_detr_resnet18_2x2"]
)
def test_a_detector_learns_in_every_layer_and_in_its_norms(name):
    detector = create_detector(name, 4).train()
    found = detector(torch.rand(2, 3, 64, 64), earlier=True)
    assert found.logits.shape == (2, detector.num_queries, 5)
    assert found.boxes.shape == (2, detector.num_queries, 4)
    assert ((found.boxes >= 0) & (found.boxes <= 1)).all()
    assert len(found.earlier) == detector.network.config.decoder_layers - 1
    layers = (found[:2], *found.earlier)
    sum(logits.square().mean() + boxes.mean() for logits, boxes in layers).backward()
    backbone = detector.network.model.backbone.model
    assert all(p.grad is not None for p in backbone.parameters())
    norm = next(m for m in backbone.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert norm.running_mean.abs().sum() > 0  # learned from the batch, as a frozen norm would not


def test_queries_start_spread_over_the_scene():
    boxes = create_detector("detr_micro", 4).eval()(torch.rand(1, 3, 96, 96)).boxes[0, :, :2]
    assert boxes.min() < 0.2 and boxes.max() > 0.8
    assert torch.cdist(boxes, boxes).fill_diagonal_(1).min() > 0.15


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"name": "detr_mikro"}, "did you mean 'detr_micro"),
        ({"num_labels": 0}, "num_labels"),
        ({"pretrained": True}, "no pretrained weights"),
        ({"pretrained": True, "backbone_weights": "x"}, "two kinds"),
        ({"pretrained": True, "weights": "x"}, "two kinds"),
        ({"weights": "/nowhere/none.safetensors"}, "missing"),
    ],
)
def test_impossible_detectors(wrong, message):
    with pytest.raises(WorkbenchError, match=message):
        create_detector(**{"name": "detr_nano", "num_labels": 4, **wrong})
    conditional = {"conditional_detr_resnet18_2x2", "conditional_detr_resnet50"}
    assert set(detector_names()) == {*SIZES, *conditional, *REALTIME}


def saved(detector, file):
    artifacts.save_tensors(file, detector.state_dict())
    return file


def backbone_of(detector):
    return detector.network.model.backbone.model


def test_weights_of_other_classes_keep_all_but_the_class_head(tmp_path):
    detector = create_detector("detr_nano", 4)
    was = detector.state_dict()
    other = create_detector("detr_nano", 7, weights=saved(detector, tmp_path / "nano.safetensors"))
    assert other.eval()(torch.rand(1, 3, 64, 64)).logits.shape == (1, 10, 8)
    now = other.state_dict()
    same = {name for name in now if now[name].shape == was[name].shape}
    same = {name for name in same if torch.equal(now[name], was[name])}
    head = {f"network.class_labels_classifier.{part}" for part in ("weight", "bias")}
    assert set(was) - same == head
    bias = now["network.class_labels_classifier.bias"]
    assert bias[-1] > 0 > bias[0]  # it starts by answering "no object"
    artifacts.save_tensors(tmp_path / "less.safetensors", {name: was[name] for name in same})
    with pytest.raises(WorkbenchError, match="2 of them missing"):  # no head at all: another thing
        create_detector("detr_nano", 7, weights=tmp_path / "less.safetensors")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    return stand_in(monkeypatch, tmp_path / "snapshot")


def timm_backbone(folder):
    """The weights timm publishes of ResNet-18, as far as their form goes: with a classifier's head and batch counts."""
    folder.mkdir(parents=True)
    model = timm.create_model("resnet18", num_classes=3)
    saved(model, folder / "model.safetensors")
    return model


@pytest.mark.parametrize("name", ["detr_resnet18_2x2", "conditional_detr_resnet18_2x2"])
def test_a_backbone_is_downloaded_only_if_allowed_and_not_on_disk(hub, name):
    model, repository = timm_backbone(hub["folder"]), "timm/resnet18.a1_in1k"
    create_detector(name, 4)
    assert hub["asked"] == []
    backbone = backbone_of(create_detector(name, 4, pretrained=True))
    assert hub["asked"] == [(repository, True), (repository, False)]
    hub.update(online=False, asked=[])
    create_detector(name, 4, pretrained=True)
    assert hub["asked"] == [(repository, True)]  # it is on disk now
    assert torch.equal(backbone.layer3[1].conv1.weight, model.layer3[1].conv1.weight)
    frozen = {n.split(".")[0] for n, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "layer1"}
    hub["cached"] = False
    with pytest.raises(WeightsMissing, match=f"(?s){repository}.*the download failed"):
        create_detector(name, 4, pretrained=True)


def published(name, classes, folder):
    """A detector in transformers' format with frozen norms, as published ones have them, written to a folder."""
    timm_backbone(folder / "backbone")
    file = folder / "backbone" / "model.safetensors"
    network = create_detector(name, classes, backbone_weights=file).network
    network.save_pretrained(folder)
    return network


def test_a_backbones_own_file(hub, tmp_path):
    name, file = "detr_resnet18_2x2", hub["folder"] / "model.safetensors"
    model = timm_backbone(hub["folder"])
    detector = create_detector(name, 4, backbone_weights=file)
    backbone = backbone_of(detector)
    assert torch.equal(backbone.layer1[0].bn2.weight, model.layer1[0].bn2.weight)
    assert not backbone.conv1.weight.requires_grad
    assert count_parameters(detector) == SIZES[name] and hub["asked"] == []
    whole = saved(detector, tmp_path / "all.safetensors")
    assert same_outputs(detector, create_detector(name, 4, weights=whole))
    small = backbone_of(create_detector("detr_nano", 4))
    file_of_small = saved(small, tmp_path / "small.safetensors")
    first = (
        backbone_of(create_detector("detr_nano", 4, backbone_weights=file_of_small)).layer1[0].conv1
    )
    assert torch.equal(first.weight, small.layer1[0].conv1.weight) and first.weight.requires_grad
    with pytest.raises(WorkbenchError, match="(?s)does not fit.*resnet50.*the backbone it is of"):
        create_detector("detr_resnet50", 4, backbone_weights=file)


def test_a_folder_in_transformers_format_keeps_all_but_another_head(tmp_path):
    """What a published 91-class detector goes through: its norms and stem stay frozen, its class head is made anew."""
    name = "detr_resnet18_2x2"
    network = published(name, 91, tmp_path)
    ours = create_detector(name, 4, weights=tmp_path)
    first = (n.bbox_predictor.layers[0].weight for n in (ours.network, network))
    assert torch.equal(*first) and ours.network.class_labels_classifier.out_features == 5
    assert count_parameters(ours) == SIZES[name]
    stem = [name for name, p in ours.named_parameters() if not p.requires_grad]
    assert stem and all("conv1" in name or "layer1" in name for name in stem)
    tuned = saved(ours, tmp_path / "tuned.safetensors")
    assert same_outputs(ours, create_detector(name, 4, weights=tuned))
    with pytest.raises(WorkbenchError, match="cannot be loaded|does not fit"):
        create_detector("detr_resnet50", 4, weights=tmp_path)


# COCO measures


def test_average_precision_of_a_case_worked_out_by_hand():
    """Birds: a false alarm outranks one of two hits, AP50 = (51 · 1 + 50 · 2/3) / 101. Plane: IoU 2/3, so it counts up
    to 0.65 alone: AP50 1, AP75 0. Precision at score 0.5: 3 of 4."""
    boxes = [torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2]])]
    boxes += [torch.tensor([[0.5, 0.5, 0.4, 0.4]]), torch.zeros(0, 4)]
    labels = [torch.tensor([0, 3]), torch.tensor([0]), torch.zeros(0, dtype=torch.int64)]
    scenes = SceneSet(torch.zeros(3, 3, 100, 100, dtype=torch.uint8), boxes, labels, CLASSES)
    scores, places = torch.zeros(3, 2, 4), torch.full((3, 2, 4), 0.1)
    for scene, query, label, score, box in (
        (0, 0, 0, 0.9, [0.3, 0.3, 0.2, 0.2]),
        (2, 0, 0, 0.8, [0.5, 0.5, 0.2, 0.2]),
        (1, 0, 0, 0.7, [0.5, 0.5, 0.4, 0.4]),
        (0, 1, 3, 0.6, [0.74, 0.7, 0.2, 0.2]),
    ):
        scores[scene, query, label], places[scene, query] = score, torch.tensor(box)
    measures = metrics.average_precision(scenes, scores, places)
    birds, plane = (51 + 50 * 2 / 3) / 101, {"AP": pytest.approx(0.4), "AP50": pytest.approx(1)}
    assert measures["per_class"]["bird"]["AP50"] == pytest.approx(birds, abs=1e-6)
    assert measures["per_class"]["plane"] == {**plane, "AP75": 0}
    assert measures["per_class"]["drone"] == {"AP": None, "AP50": None, "AP75": None}
    assert measures["AP75"] == pytest.approx(birds / 2, abs=1e-6)
    assert measures["precision"] == pytest.approx(3 / 4) and measures["recall"] == pytest.approx(1)


def test_confident_detections_become_objects():
    logits = torch.full((1, 3, 5), -4.0)
    logits[0, 1, 2], logits[0, 2, 0], logits[0, 0, 4] = 3.0, 4.0, 9.0
    labels, boxes = confident(Queries(logits[None], torch.arange(12.0).view(1, 1, 3, 4)))
    assert labels.tolist() == [[0, 2, -1]] and boxes[0, 0].tolist() == [8, 9, 10, 11]


# Training


def test_ten_scenes_can_be_learned_by_heart():
    scenes = generate_scenes(40, size=64, seed=3)
    few = scenes.subset(detection.with_objects(scenes, 10))
    assert {int(labels[0]) for labels in few.labels} == {0, 1, 2, 3} and len(few) == 10
    # Machines round differently: 0.87 on one after 300 steps, 0.93 with other kernels after 450, 1.0 with both after 700.
    found = overfit("detr_nano", few, steps=700, lr=2e-3)
    assert found["AP50"] >= 0.9 and found["curve"][-1] == (700, found["AP50"])
    assert found["curve"][0][1] < 0.5


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_a_step_names_its_losses(pairing):
    detector, teacher = create_detector("detr_nano", 4), create_detector("detr_micro", 4).eval()
    batch = next(SceneBatches(generate_scenes(4, size=64), 4)(0, torch.Generator()))
    weights = DetectionWeights(classification=1.5, boxes=10.0, distillation=0.5, pairing=pairing)
    losses = detection_step(weights)(detector, batch, answers(teacher))
    assert set(losses) == {"loss", "classification", "boxes", "giou", "distillation"}
    weighted = 1.5 * losses["classification"] + 10 * losses["boxes"] + 0.5 * losses["distillation"]
    assert losses["loss"] > weighted


@pytest.mark.parametrize("student", ["detr_nano", "detr_resnet18_2x2"])
def test_boxes_and_cross_attention_are_distilled_too(student):
    """With a teacher of another grid as well: stage 3 of its backbone against the student's stage 4."""
    torch.manual_seed(0)
    detector, teacher = create_detector(student, 4), create_detector("detr_micro", 4).eval()
    teacher.requires_grad_(False)
    # Untrained, it is sure of nothing.
    teacher.network.class_labels_classifier.bias[:] = torch.tensor([3.0, -3.0, -3.0, -3.0, -3.0])
    batch = next(SceneBatches(generate_scenes(2, size=64), 2)(0, torch.Generator()))
    more = {"box_distillation": 0.5, "attention_distillation": 3.0}
    plain, with_both = (detection_step(DetectionWeights(**weights)) for weights in ({}, more))
    detector.eval()  # so that both see the same student
    before, losses = (step(detector, batch, answers(teacher)) for step in (plain, with_both))
    assert set(losses) - set(before) == set(more) and all(losses[name] > 0 for name in more)
    assert losses["loss"] > before["loss"] + 3 * losses["attention_distillation"]
    losses["attention_distillation"].backward()
    last = detector.network.model.decoder.layers[-1].encoder_attn
    seen = [p.grad for name, p in last.named_parameters() if "q_" in name and p.grad is not None]
    assert any(gradient.abs().sum() > 0 for gradient in seen)
    same = create_detector("detr_micro", 4).eval()
    same.load_state_dict(teacher.state_dict())
    alike = with_both(same, batch, answers(teacher))
    for name in (*more, "distillation"):
        assert alike[name].item() == pytest.approx(0, abs=1e-4), name


def test_a_detector_without_any_loss_is_refused():
    with pytest.raises(WorkbenchError, match="do not go together"):
        DetectionWeights(classification=0, boxes=0, giou=0, distillation=0)


SMALL = (
    "data.size=48 train_scenes=12 test_scenes=6 teacher=train teacher.model=detr_nano student.epochs=1 "
    "teacher.epochs=2 teacher.batch_size=6 batch_size=6 gan.epochs=1 gan.width=16 gan.d_width=8 "
    "inverted_scenes=4 inversion.steps=2"
)
ONE_EPOCH = DetectorConfig(model="detr_nano", epochs=1, batch_size=4, lr=1e-3, augment=0.0)
STEP = detection_step(DetectionWeights(giou=2.0))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny teacher and its students, in a store of their own."""
    store = artifacts.Store(tmp_path_factory.mktemp("store"))
    study = DetectionStudy(store, presets.load("detection", "quick", SMALL))
    students = {variant: study.student(variant) for variant in VARIANTS}
    return store, study, {"teacher": study.teacher, **students}


def test_what_each_detector_has_read(trained):
    _, _, made = trained
    read = {
        name: {row["split"]: (row["purpose"], row["images"]) for row in a.ledger}
        for name, a in made.items()
    }
    tested, learned = {"aerial/test": ("evaluation", 6)}, {"aerial/train": ("training", 12)}
    for name in ("teacher", "train", "plain"):
        assert read[name] == {**learned, **tested}, name
    assert read["synthetic"] == tested and made["synthetic"].manifest["data_free"]
    seen = detection.seen_table(made).set_index("detector")["of them from a data set"]
    assert seen["synthetic"] == 0 and seen["train"] == 12


def test_artifacts_hold_curves_measures_and_detections(trained):
    store, study, made = trained
    history = made["train"].json("history.json")
    assert {"AP", "AP50", "precision", "classification", "boxes", "distillation"} <= set(history[0])
    assert "distillation" not in made["teacher"].json("history.json")[0]
    aligned = made["aligned"].json("history.json")[0]
    assert aligned["query_features"] > 0 and "distillation" not in aligned
    assert made["aligned"].metrics["parameters"] == made["train"].metrics["parameters"]
    detector, test = detection.load_detector(made["train"]), study.scenes("test").load()
    found = metrics.average_precision(test, *detection.predict(detector, test.images))
    assert found["AP"] == pytest.approx(made["train"].metrics["AP"])
    examples = detection.compared({"student": made["train"]}, test, 3, 0.5)
    assert examples["images"].shape == (3, 3, 48, 48) and len(examples["found"]["student"]) == 3
    assert study.student("train").cached
    assert list(detection.ap_table(made)["detector"])[0] == "teacher (DETR nano)"


@pytest.mark.parametrize(
    "change", ["seed=1", "train_scenes=13", "student.lr=0.01", "augment=0.5", "box_weight=5"]
)
def test_a_changed_setting_makes_a_new_student(trained, change):
    store, study, made = trained
    again = DetectionStudy(store, study.config)
    with only_finding():
        assert again.student("plain").key == made["plain"].key
    other = DetectionStudy(store, study.config.override(change))
    with pytest.raises(NotMade), only_finding():
        other.student("plain")


@pytest.mark.parametrize("weight", ["distillation", "attention_distillation", "query_logits"])
def test_what_distils_into_students_makes_no_other_teacher(trained, weight):
    store, study, made = trained
    other = DetectionStudy(store, study.config.override(f"losses.{weight}=7 temperature=3"))
    with only_finding():
        assert other.teacher.key == made["teacher"].key
    with pytest.raises(NotMade), only_finding():
        other.student("train")
    with pytest.raises(NotMade), only_finding():
        _ = DetectionStudy(store, study.config.override("losses.giou=1")).teacher


def test_empty_ground_is_a_share_of_each_batch_and_the_hardest_of_it_comes_back():
    scenes = generate_scenes(12, size=32)
    pixels = torch.arange(20, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 32, 32)
    nothing = [torch.zeros(0, 4)] * 20, [torch.zeros(0, dtype=torch.int64)] * 20
    empty = SceneSet(pixels.contiguous(), *nothing, scenes.classes)
    fires = torch.rand(20, generator=torch.Generator().manual_seed(0))
    batches = SceneBatches(scenes, 8, 0.0, True, empty, lambda: fires)
    assert len(batches) == 2 and not batches.views
    for epoch in (0, 1):
        drawn = [*batches(epoch, torch.Generator().manual_seed(epoch))]
        assert [batch.images.shape for batch in drawn] == [(8, 3, 32, 32)] * 2
        shown = [int(v) for batch in drawn for v in 255 * batch.images[6:, 0, 0, 0]]
        assert all((batch.labels[6:] == -1).all() and not batch.boxes[6:].any() for batch in drawn)
        if epoch:
            assert sorted(shown) == sorted(fires.topk(4).indices.tolist())
    own = [*SceneBatches(scenes, 6)(0, torch.Generator().manual_seed(0))]
    assert all(batch.places is not None for batch in own)


@pytest.mark.parametrize("augment", [0.0, 1.0])
def test_frames_on_disk_give_the_batches_and_detections_of_those_in_memory(
    tmp_path, monkeypatch, augment
):
    write_coco(generate_scenes(12, size=48), tmp_path, "train")
    detector, seen = create_detector("detr_nano", len(CLASSES)), []
    for held in (coco.HELD, 0):
        monkeypatch.setattr(coco, "HELD", held)
        scenes = load_coco(tmp_path, "train")
        batches = SceneBatches(scenes, 5, augment)
        drawn = [*batches(0, torch.Generator().manual_seed(3)), *batches.in_order()]
        seen.append((drawn, detection.predict(detector, scenes.images)))
    (first, found), (second, again) = seen
    assert len(first) == len(second) == 2 + 3
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))
    assert all(map(torch.equal, found, again))


def test_unknown_students_and_teachers_are_refused(trained):
    store, study, _ = trained
    with pytest.raises(WorkbenchError, match="there is no student"):
        study.student("fake")
    with pytest.raises(WorkbenchError, match="there is no fake"):
        study.config.override("arms=train,fake")
    with pytest.raises(WorkbenchError, match="shipped|train"):
        study.config.override("teacher=none")


def test_a_shipped_teacher_comes_back_as_it_was(trained, tmp_path):
    store, study, made = trained
    path = detection.ship_detector(made["teacher"], "tiny", "the command", folder=tmp_path)
    back = detection.shipped_detector(store, "tiny", study.scenes("test"), folder=tmp_path)
    assert back.metrics["AP"] == pytest.approx(made["teacher"].metrics["AP"], abs=0.02)
    learned = [(row["split"], row["images"]) for row in back.ledger if row["purpose"] == "training"]
    assert learned == [("aerial/train", 12)]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(WorkbenchError, match="cannot be read"):
        detection.shipped_detector(store, "tiny", study.scenes("test"), folder=tmp_path)
    with pytest.raises(WorkbenchError, match="missing"):
        detection.shipped_detector(store, "none", study.scenes("test"), folder=tmp_path)


def test_a_coco_folder_trains_like_scenes(trained, tmp_path):
    store, study, _ = trained
    write_coco(generate_scenes(12, size=48), tmp_path / "mine", "train")
    write_coco(generate_scenes(6, size=48, split="test"), tmp_path / "mine", "val")
    source = SceneConfig(name=str(tmp_path / "mine"), size=48, shortest=0)
    scenes, test = source.scenes("train"), source.scenes("test")
    config = ONE_EPOCH.replace(batch_size=6, augment=1.0)
    made = detection.train(store, config, STEP, scenes, test)
    assert {row["split"]: row["images"] for row in made.ledger} == {"mine/train": 12, "mine/val": 6}
    backbone = detection.load_detector(made).network.model.backbone.model.state_dict()
    artifacts.save_tensors(tmp_path / "backbone.safetensors", backbone)
    config = config.replace(backbone_weights=str(tmp_path / "backbone.safetensors"))
    again = detection.train(store, config, STEP, scenes, test)
    assert again.key != made.key and len(again.settings["backbone_weights"]) == 64


def drawn(store, classes=CLASSES):
    """An artifact of scenes, as a generator leaves them."""
    scenes = generate_scenes(8, size=48, seed=3, split="synthetic")
    labels, boxes = padded(scenes)
    tensors = {"pixels": scenes.pixels, "labels": labels, "boxes": boxes}
    settings = {"classes": list(classes)}
    made = store.get_or_make(
        "drawn", settings, lambda work: artifacts.save_tensors(work / SCENES, tensors)
    )
    return scenes, made


def test_scenes_of_an_artifact_come_back_as_they_were(trained):
    scenes, made = drawn(trained[0])
    back = open_scenes(made)
    assert back.fingerprint == scenes.fingerprint and back.split is None and back.classes == CLASSES


def test_a_student_of_drawn_scenes_reads_no_data_set(trained):
    store, study, made = trained
    _, of = drawn(store)
    test = study.scenes("test")
    student = detection.train(store, ONE_EPOCH, STEP, of, test, made["teacher"])
    assert student.parents == [made["teacher"].key, of.key]
    assert student.settings["train"] == {"artifact": of.key}
    assert student.manifest["data_free"] and student.metrics["train_scenes"] == 8
    assert {row["split"] for row in student.ledger} == {"aerial/test"}
    for scenes in (of, study.scenes("synthetic")):
        with pytest.raises(WorkbenchError, match="expected: a teacher"):
            detection.train(store, ONE_EPOCH, STEP, scenes, test)


def test_scenes_in_memory_train_too(trained):
    store, study, made = trained
    few = study.scenes("train").load().subset(range(4))
    student = detection.train(store, ONE_EPOCH, STEP, few, study.scenes("test"), made["teacher"])
    read = {row["split"]: row["images"] for row in student.ledger}
    assert read == {"aerial/train": 4, "aerial/test": 6}


def test_a_step_that_cannot_be_trained_is_refused_with_its_place(trained):
    store, study, made = trained

    def no_gradient(student, batch, teacher):
        return {"loss": STEP(student, batch, teacher)["loss"].detach()}

    def changes_batch(student, batch, teacher):
        batch.images.zero_()
        return STEP(student, batch, teacher)

    def reads_labels(student, batch, teacher):
        assert batch.labels is None and batch.boxes is None
        return {"kd": 1.0}

    scenes, test = study.scenes("train"), study.scenes("test")
    for step, words in ((no_gradient, "without gradient"), (changes_batch, "changes its batch")):
        with pytest.raises(WorkbenchError, match=f"(?s){words}.*test_detection.py, line"):
            detection.train(store, ONE_EPOCH, step, scenes, test, made["teacher"])
    with pytest.raises(WorkbenchError, match="returns no loss"):
        drawn_scenes = study.scenes("synthetic")
        detection.train(store, ONE_EPOCH, reads_labels, drawn_scenes, test, made["teacher"])


def test_scenes_probes_and_measures_take_no_teacher_of_other_classes(trained):
    store, study, made = trained
    renamed = replace(study.scenes("train", True).load(), classes=CLASSES[::-1])
    scenes, teacher, probes = Scenes.of(renamed), made["teacher"], None
    for refused in (
        lambda: object_probe_artifact(store, scenes, teacher),
        lambda: detection.SceneGAN().train(store, scenes, teacher, probes),
        lambda: measure_scenes(store, None, teacher, teacher, probes, scenes, scenes),
    ):
        with pytest.raises(WorkbenchError, match="in another order"):
            refused()
    assert detection.load_detector(teacher).classes == CLASSES


def test_other_classes_are_refused_before_training(trained, tmp_path):
    store, study, made = trained
    others = ("bird", "drone", "helicopter", "plane")

    def refused(who, scenes, test=study.scenes("test"), teacher=made["teacher"]):
        with pytest.raises(WorkbenchError, match=f"(?s)class names differ.*{who}"):
            detection.train(store, ONE_EPOCH, STEP, scenes, test, teacher)

    refused("the drawn scenes", drawn(store, others)[1])
    for split, names in (("train", others), ("val", CLASSES[:3])):
        scenes = generate_scenes(4, size=48)
        labels = [row.clamp(max=2) for row in scenes.labels]
        write_coco(replace(scenes, classes=names, labels=labels), tmp_path, split)
    source = SceneConfig(name=str(tmp_path), size=48, shortest=0)
    test = source.scenes("test")
    refused("the training scenes", source.scenes("train"), test, None)
    refused("the teacher", test.load(), test)


def test_the_shipped_teacher_is_what_its_record_says():
    """The file in the repository: small, made from the recorded seed and command, right on its own test scenes."""
    base = artifacts.resolve("data/teachers/detr_micro_scenes")
    record = json.loads(base.with_suffix(".json").read_text())
    assert base.with_suffix(".safetensors").stat().st_size <= 4_000_000
    assert record["metrics"]["AP50"] >= 0.5 and record["metrics"]["test_scenes"] >= 300
    config = DetectionConfig().override(DEFAULTS)
    config = config.override(record["command"].partition(" train-teacher ")[2])
    assert config.teacher.training().as_dict() == record["settings"]["config"]
    test = record["settings"]["test"]
    test = generate_scenes(60, test["size"], test["seed"], "test")
    detector = create_detector(record["model"], 4, weights=base.with_suffix(".safetensors"))
    with ledger.stage("check", {"aerial/test": "evaluation"}):
        found = metrics.average_precision(test, *detection.predict(detector, test.images))
        assert found["AP50"] >= record["metrics"]["AP50"] - 0.15
    assert np.isfinite(record["seconds"]) and record["provenance"]["commit"] != "unknown"
