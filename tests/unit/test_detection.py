"""Detection: losses against torch's own, matching against brute force, pycocotools on a hand-made case, training."""

import itertools
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import generalized_box_iou

from dfkd_lib import detection, metrics, presets
from dfkd_lib.core import NotMade, WorkbenchError, artifacts, ledger
from dfkd_lib.datasets import (
    SCENES,
    SceneConfig,
    SceneSet,
    generate_scenes,
    open_scenes,
    write_coco,
)
from dfkd_lib.detection import (
    VARIANTS,
    Batch,
    DetectionStudy,
    DetectionWeights,
    DetectorConfig,
    Queries,
    SceneBatches,
    answers,
    detection_step,
    padded,
)
from dfkd_lib.detection.batches import augmented
from dfkd_lib.detection.matching import (
    PAIRINGS,
    expanded_targets,
    hungarian_targets,
    matching_cost,
    paired_queries,
    pairwise_giou,
)
from dfkd_lib.detection.overfit import overfit, spread
from dfkd_lib.detection.step import confident
from dfkd_lib.losses import TeacherTargets, detection_losses, distillation_loss
from dfkd_lib.models import WeightsMissing, count_parameters, create_detector, detector_names
from dfkd_lib.models.detectors import Detections

CLASSES = ("bird", "helicopter", "drone", "plane")


def random_predictions(seed=0, batch=3, queries=5, classes=5):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, queries, classes, generator=generator)
    boxes = torch.rand(batch, queries, 4, generator=generator) * 0.3 + torch.tensor(
        [0.3, 0.3, 0.1, 0.1]
    )
    return logits, boxes


# Losses


def test_classification_is_bce_against_one_hot_targets_per_object():
    logits, _ = random_predictions()
    labels = torch.tensor([[0, 4, 4, 2, 4], [4, 4, 4, 4, 4], [1, 1, 3, 4, 4]])
    by_hand = -sum(
        torch.log(torch.sigmoid(x) if k == labels[b, q] else 1 - torch.sigmoid(x))
        for b in range(3)
        for q in range(5)
        for k, x in enumerate(logits[b, q])
    )
    got = detection_losses(logits, torch.rand(3, 5, 4), labels, torch.rand(3, 5, 4))[
        "classification"
    ]
    assert got.item() == pytest.approx(by_hand.item() / 5, rel=1e-5)


def test_boxes_are_smooth_l1_of_the_objects():
    logits, boxes = random_predictions()
    targets = boxes + 0.1
    targets[0, 0, 0] = boxes[0, 0, 0] + 3.0  # beyond the transition: |d| - 1/2
    labels = torch.full((3, 5), 4)
    labels[0, 0], labels[2, 3] = 1, 0
    got = detection_losses(logits, boxes, labels, targets)["boxes"]
    assert got.item() == pytest.approx((2.5 + 7 * 0.5 * 0.1**2) / 2, rel=1e-4)
    torch_own = F.smooth_l1_loss(boxes[labels < 4], targets[labels < 4])
    assert got.item() == pytest.approx(4 * torch_own.item(), rel=1e-5)


def test_giou_is_one_less_the_overlap_of_the_objects():
    logits, _ = random_predictions(batch=1, queries=2)
    boxes = torch.tensor([[[0.4, 0.5, 0.4, 0.4], [0.5, 0.5, 0.1, 0.1]]])
    targets = torch.tensor([[[0.6, 0.5, 0.4, 0.4], [0.9, 0.9, 0.1, 0.1]]])
    got = detection_losses(logits, boxes, torch.tensor([[2, 4]]), targets)["giou"]
    # The second pair holds nothing. Of the first, half of each box is shared: IoU 1/3, and the hull has no waste.
    assert got.item() == pytest.approx(1 - 1 / 3, rel=1e-4)


def test_distillation_is_kl_of_softened_logits():
    student, boxes = random_predictions(0)
    teacher, _ = random_predictions(1)
    labels = torch.full((3, 5), 4)
    every = torch.ones(3, 5, dtype=torch.bool)
    got = detection_losses(
        student, boxes, labels, boxes, TeacherTargets(teacher, boxes, every), temperature=3.0
    )["distillation"]
    p, q = torch.softmax(teacher / 3, -1), torch.softmax(student / 3, -1)
    assert got.item() == pytest.approx((9 * (p * (p / q).log()).sum(-1).mean()).item(), rel=1e-5)
    same = detection_losses(
        student, boxes, labels, boxes, TeacherTargets(student, boxes, every), temperature=3.0
    )["distillation"]
    assert same.item() == pytest.approx(0, abs=1e-6)


def test_scenes_without_objects_have_finite_losses():
    logits, boxes = random_predictions()
    losses = detection_losses(logits, boxes, torch.full((3, 5), 4), torch.zeros(3, 5, 4))
    assert losses["boxes"] == losses["giou"] == 0 and torch.isfinite(losses["classification"])


# Matching


def test_giou_is_torchvisions():
    _, a = random_predictions(0)
    _, b = random_predictions(1, queries=4)
    from torchvision.ops import box_convert

    for row in range(3):
        expected = generalized_box_iou(*(box_convert(x[row], "cxcywh", "xyxy") for x in (a, b)))
        assert torch.allclose(pairwise_giou(a, b)[row], expected, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_hungarian_finds_what_brute_force_finds(seed):
    logits, boxes = random_predictions(seed)
    labels = torch.tensor([[0, 3, 1], [2, -1, -1], [-1, -1, -1]])
    _, objects = random_predictions(seed + 50, queries=3)
    cost = matching_cost(logits, boxes, labels, objects)
    target_labels, target_boxes = hungarian_targets(logits, boxes, labels, objects)
    for row, count in enumerate((3, 1, 0)):
        best = min(
            sum(cost[row, q, m].item() for m, q in enumerate(chosen))
            for chosen in itertools.permutations(range(5), count)
        )
        given = (target_labels[row] < 4).nonzero().flatten().tolist()
        assert len(given) == count
        owner = {
            q: next(m for m in range(count) if torch.equal(objects[row, m], target_boxes[row, q]))
            for q in given
        }
        assert sorted(owner.values()) == list(range(count))
        assert all(target_labels[row, q] == labels[row, m] for q, m in owner.items())
        assert sum(cost[row, q, m].item() for q, m in owner.items()) == pytest.approx(
            best, abs=1e-4
        )


def test_more_objects_than_queries():
    logits, boxes = random_predictions(queries=2)
    labels = torch.tensor([[0, 1, 2]]).repeat(3, 1)
    found, _ = hungarian_targets(logits, boxes, labels, torch.rand(3, 3, 4))
    assert (found < 4).all()


def test_the_papers_pairing_repeats_the_objects_in_order():
    logits, boxes = random_predictions()
    labels = torch.tensor([[3, 1, -1], [-1, -1, -1], [2, 2, 0]])
    objects = torch.rand(3, 3, 4)
    found, where = expanded_targets(logits, boxes, labels, objects)
    assert found.tolist() == [[3, 1, 3, 1, 3], [4, 4, 4, 4, 4], [2, 2, 0, 2, 2]]
    assert torch.equal(where[0, 2], objects[0, 0]) and torch.equal(where[2, 2], objects[2, 2])


def test_teacher_queries_are_found_again_in_another_order():
    logits, boxes = random_predictions(3, queries=6)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    assert torch.equal(
        order[paired_queries(logits, boxes, logits[:, order], boxes[:, order])],
        torch.arange(6).repeat(3, 1),
    )


def test_a_smaller_student_is_paired_with_what_the_teacher_is_sure_of():
    logits, boxes = random_predictions(3, batch=1, queries=6)
    logits[..., :4], logits[0, 2, 1], logits[0, 5, 3] = -6.0, 5.0, 5.0
    assert sorted(
        paired_queries(*random_predictions(9, batch=1, queries=2), logits, boxes)[0].tolist()
    ) == [2, 5]


def test_a_student_with_more_queries_keeps_some_to_itself():
    teacher, places = random_predictions(3, batch=1, queries=2)
    student, boxes = random_predictions(9, batch=1, queries=4)
    student[0, 1], boxes[0, 1], student[0, 2], boxes[0, 2] = (
        teacher[0, 1],
        places[0, 1],
        teacher[0, 0],
        places[0, 0],
    )
    assert paired_queries(student, boxes, teacher, places).tolist() == [[-1, 1, 0, -1]]
    found = Queries(student.requires_grad_()[None], boxes[None])
    like = detection.pair_teacher(found, Queries(1.5 * teacher[None], places[None]))
    distillation_loss(found.logits, like.logits, 2.0, like.paired).sum().backward()
    assert (student.grad[0].abs().sum(-1) > 0).tolist() == [False, True, True, False]


def test_a_teacher_of_other_classes_is_refused():
    with pytest.raises(WorkbenchError, match="do not fit"):
        paired_queries(*random_predictions(), *random_predictions(classes=4))


class Predicted(torch.nn.Module):
    """A detector whose predictions, in every decoder layer, are given."""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, images, earlier=False):
        return Detections(*self.layers[-1], tuple(self.layers[:-1]) if earlier else ())


def losses_of(layers, labels, objects, taught, weights):
    """What the library's step makes of a student's and a teacher's predictions."""
    batch = Batch(torch.zeros(len(labels), 3, 8, 8), labels, objects)
    return detection_step(weights)(Predicted(layers), batch, answers(Predicted([taught])))


def plain_losses(logits, boxes, labels, objects, taught, temperature=2.0):
    """The losses of one decoder layer, scene by scene and pair by pair."""
    from scipy.optimize import linear_sum_assignment
    from torchvision.ops import box_convert

    sums, count, nothing = (
        dict.fromkeys(("classification", "boxes", "giou", "distillation"), 0.0),
        0,
        logits.shape[-1] - 1,
    )
    for row in range(len(logits)):
        p, there = logits[row].detach().sigmoid(), labels[row] >= 0
        wanted = torch.full((len(p),), nothing)
        corners = [box_convert(x, "cxcywh", "xyxy") for x in (boxes[row], objects[row][there])]
        overlap = generalized_box_iou(*corners)
        cost = (
            -2 * p[:, labels[row][there]]
            + 5 * torch.cdist(boxes[row], objects[row][there], p=1)
            - 2 * overlap
        )
        for query, of in zip(*linear_sum_assignment(cost.detach()), strict=True):
            wanted[query], count = labels[row][there][of], count + 1
            sums["boxes"] += F.smooth_l1_loss(
                boxes[row][query], objects[row][there][of], reduction="sum"
            )
            sums["giou"] += 1 - overlap[query, of]
        sums["classification"] += F.binary_cross_entropy_with_logits(
            logits[row], F.one_hot(wanted, nothing + 1).float(), reduction="sum"
        )
        t = taught[0][row].sigmoid()
        near = 25 - 5 * torch.cdist(boxes[row], taught[1][row], p=1) - torch.cdist(p, t, p=1)
        for mine, its in zip(
            *linear_sum_assignment(((t[:, :-1].amax(1) + 0.01) * near).detach(), maximize=True),
            strict=True,
        ):
            q, p = (
                torch.log_softmax(x / temperature, 0)
                for x in (logits[row][mine], taught[0][row][its])
            )
            sums["distillation"] += (
                temperature**2
                * (p.exp() * (p - q)).sum()
                / (len(logits) * min(len(t), len(wanted)))
            )
    return {
        name: value if name == "distillation" else value / max(count, 1)
        for name, value in sums.items()
    }


@pytest.mark.parametrize("queries, others", [(5, 5), (5, 8), (8, 5)])
def test_all_layers_together_have_the_losses_of_each_by_itself(queries, others):
    layers = [random_predictions(seed, queries=queries) for seed in range(3)]
    inputs = [part.requires_grad_() for layer in layers for part in layer]
    taught = random_predictions(7, queries=others)
    labels, objects = (
        torch.tensor([[0, 3, 1], [2, -1, -1], [-1, -1, -1]]),
        random_predictions(8, queries=3)[1],
    )
    weights = DetectionWeights(giou=2.0)
    named = losses_of(layers, labels, objects, taught, weights)
    total = named.pop("loss")
    plain = [plain_losses(*layer, labels, objects, taught) for layer in layers]
    whole = sum(weights[name] * value for each in plain for name, value in each.items())
    assert total.item() == pytest.approx(whole.item(), rel=1e-6)
    assert {name: value.item() for name, value in named.items()} == pytest.approx(
        {name: value.item() for name, value in plain[-1].items()}, rel=1e-6
    )
    for ours, theirs in zip(
        torch.autograd.grad(total, inputs), torch.autograd.grad(whole, inputs), strict=True
    ):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_diverged_predictions_do_not_crash_the_matching():
    logits, boxes = random_predictions()
    logits[0] = float("nan")
    labels, _ = hungarian_targets(logits, boxes, torch.tensor([[0, 1]] * 3), torch.rand(3, 2, 4))
    assert (labels < 4).sum(1).tolist() == [2, 2, 2]


# Batches


def test_augmented_boxes_follow_their_objects():
    """A white rectangle on black: after any augmentation the box still frames the white pixels."""
    images, boxes = torch.zeros(40, 3, 64, 64), torch.zeros(40, 2, 4)
    images[:, :, 20:36, 12:44] = 1
    boxes[:, 0] = torch.tensor([28 / 64, 28 / 64, 32 / 64, 16 / 64])
    labels = torch.tensor([[2, -1]]).repeat(40, 1)
    for strength in (0.0, 1.0):
        batch = Batch(images, labels, boxes)
        moved, kept, where = augmented(batch, torch.Generator().manual_seed(0), strength)
        assert (kept == labels).all()
        for image, box in zip(moved, where[:, 0] * 64, strict=True):
            rows, columns = (image.mean(0) > 0.5).nonzero(as_tuple=True)
            drawn = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert (
                drawn - torch.cat([box[:2] - box[2:] / 2, box[:2] + box[2:] / 2])
            ).abs().max() <= 1


def test_an_object_moved_out_of_view_is_dropped():
    boxes = torch.tensor([[[0.02, 0.5, 0.04, 0.1], [0.5, 0.5, 0.2, 0.2]]]).repeat(64, 1, 1)
    batch = Batch(torch.zeros(64, 3, 32, 32), torch.tensor([[1, 3]]).repeat(64, 1), boxes)
    _, labels, where = augmented(batch, torch.Generator().manual_seed(0))
    gone = labels[:, 1] < 0
    assert gone.any() and not gone.all()
    assert (labels[gone, 0] == 3).all() and (where[gone, 1] == 0).all()
    low, high = where[..., :2] - where[..., 2:] / 2, where[..., :2] + where[..., 2:] / 2
    assert low.min() >= -1e-6 and high.max() <= 1 + 1e-6


def test_batches_are_padded_and_repeat_with_the_seed():
    scenes = generate_scenes(10, size=32)
    labels, boxes = padded(scenes)
    assert labels.shape == (10, 4) and [int((row >= 0).sum()) for row in labels] == [
        len(x) for x in scenes.labels
    ]
    batches = SceneBatches(scenes, 4, augment=1.0)
    assert len(batches) == 2
    first, again = (list(batches(0, torch.Generator().manual_seed(5))) for _ in range(2))
    assert all(
        torch.equal(a, b)
        for x, y in zip(first, again, strict=True)
        for a, b in zip(x, y, strict=True)
    )


# Detectors


@pytest.mark.parametrize(
    "name, parameters", [("detr_resnet50", 41_502_409), ("detr_resnet18_2x2", 17_245_897)]
)
def test_the_papers_parameter_counts(name, parameters):
    assert count_parameters(create_detector(name, 4)) == parameters


def test_the_small_ones_are_small():
    assert count_parameters(create_detector("detr_micro", 4)) <= 1_700_000
    assert count_parameters(create_detector("detr_nano", 4)) <= 700_000


@pytest.mark.parametrize(
    "name", ["detr_micro", "detr_nano", "detr_resnet18_2x2", "conditional_detr_resnet18_2x2"]
)
def test_a_detector_learns_in_every_layer_and_in_its_norms(name):
    detector = create_detector(name, 4).train()
    found = detector(torch.rand(2, 3, 64, 64), earlier=True)
    assert found.logits.shape == (2, detector.num_queries, 5) and found.boxes.shape == (
        2,
        detector.num_queries,
        4,
    )
    assert ((found.boxes >= 0) & (found.boxes <= 1)).all()
    layers = detector.network.config.decoder_layers
    assert len(found.earlier) == layers - 1
    layers_said = ((found.logits, found.boxes), *found.earlier)
    sum(logits.square().mean() + boxes.mean() for logits, boxes in layers_said).backward()
    backbone = detector.network.model.backbone.model
    assert all(p.grad is not None for p in backbone.parameters())
    norm = next(m for m in backbone.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert (
        norm.running_mean.abs().sum() > 0
    )  # it has learned from the batch; a frozen norm would not


def test_queries_start_spread_over_the_scene():
    boxes = create_detector("detr_micro", 4).eval()(torch.rand(1, 3, 96, 96)).boxes[0, :, :2]
    assert (
        boxes.min() < 0.2
        and boxes.max() > 0.8
        and torch.cdist(boxes, boxes).fill_diagonal_(1).min() > 0.15
    )


def test_unknown_detectors_and_bad_sizes():
    with pytest.raises(WorkbenchError, match="did you mean detr_micro"):
        create_detector("detr_mikro", 4)
    with pytest.raises(WorkbenchError, match="num_labels"):
        create_detector("detr_micro", 0)
    with pytest.raises(WorkbenchError, match="no pretrained weights"):
        create_detector("detr_nano", 4, pretrained=True)
    assert detector_names() == [
        "conditional_detr_resnet18_2x2",
        "conditional_detr_resnet50",
        "detr_micro",
        "detr_nano",
        "detr_resnet18_2x2",
        "detr_resnet50",
    ]


def test_weights_go_round(tmp_path):
    detector = create_detector("detr_nano", 4).eval()
    artifacts.save_tensors(tmp_path / "nano.safetensors", detector.state_dict())
    again = create_detector("detr_nano", 4, weights=tmp_path / "nano.safetensors").eval()
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(detector(images).logits, again(images).logits)
    with pytest.raises(WorkbenchError, match="do not fit"):
        create_detector("detr_micro", 4, weights=tmp_path / "nano.safetensors")
    with pytest.raises(WorkbenchError, match="missing"):
        create_detector("detr_nano", 4, weights=tmp_path / "none.safetensors")


def test_weights_of_other_classes_keep_all_but_the_class_head(tmp_path):
    saved = create_detector("detr_nano", 4).state_dict()
    artifacts.save_tensors(tmp_path / "nano.safetensors", saved)
    other = create_detector("detr_nano", 7, weights=tmp_path / "nano.safetensors").eval()
    assert other(torch.rand(1, 3, 64, 64)).logits.shape == (1, 10, 8)
    kept = {
        name
        for name, value in other.state_dict().items()
        if value.shape == saved[name].shape and torch.equal(value, saved[name])
    }
    head = {f"network.class_labels_classifier.{part}" for part in ("weight", "bias")}
    assert set(saved) - kept == head
    assert (
        other.state_dict()["network.class_labels_classifier.bias"][-1]
        > 0
        > other.state_dict()["network.class_labels_classifier.bias"][0]
    )  # it starts by saying "no object"
    artifacts.save_tensors(tmp_path / "less.safetensors", {name: saved[name] for name in kept})
    with pytest.raises(
        WorkbenchError, match="2 of them missing"
    ):  # no head at all is another thing
        create_detector("detr_nano", 7, weights=tmp_path / "less.safetensors")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A stand-in for the hub: what was asked of it (True: of the cache alone), and what it says."""
    import huggingface_hub

    state = {"asked": [], "cached": False, "online": True, "folder": tmp_path / "snapshot"}

    def snapshot(repository, revision, allow_patterns, local_files_only):
        state["asked"].append((repository, local_files_only))
        if not state["cached"] and (local_files_only or not state["online"]):
            raise huggingface_hub.errors.LocalEntryNotFoundError("not here")
        state["cached"] = True
        return str(state["folder"])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    return state


def timm_backbone(folder):
    """The weights timm publishes of ResNet-18, as far as their form goes: with a classifier's head and batch counts."""
    import timm

    folder.mkdir()
    model = timm.create_model("resnet18", num_classes=3)
    artifacts.save_tensors(folder / "model.safetensors", model.state_dict())
    return model


@pytest.mark.parametrize("name", ["detr_resnet18_2x2", "conditional_detr_resnet18_2x2"])
def test_a_backbone_is_downloaded_only_if_allowed_and_not_on_disk(hub, name):
    model, repository = timm_backbone(hub["folder"]), "timm/resnet18.a1_in1k"
    create_detector(name, 4)
    assert hub["asked"] == []
    detector = create_detector(name, 4, pretrained=True)
    assert hub["asked"] == [(repository, True), (repository, False)]
    hub.update(online=False, asked=[])
    create_detector(name, 4, pretrained=True)
    assert hub["asked"] == [(repository, True)]  # it is on disk now
    backbone = detector.network.model.backbone.model
    assert torch.equal(backbone.layer3[1].conv1.weight, model.layer3[1].conv1.weight)
    assert {n.split(".")[0] for n, p in backbone.named_parameters() if not p.requires_grad} == {
        "conv1",
        "layer1",
    }
    hub["cached"] = False
    with pytest.raises(WeightsMissing, match="the download failed") as told:
        create_detector(name, 4, pretrained=True)
    assert repository in str(told.value)


def test_a_published_detector_comes_from_the_hub(hub, monkeypatch):
    from dataclasses import replace

    from dfkd_lib.models import detectors

    known, small = detectors.SPECS, "conditional_detr_resnet18_2x2"
    repository = known["conditional_detr_resnet50"].hub
    assert (
        repository == "microsoft/conditional-detr-resnet-50"
        and known["conditional_detr_resnet50"].queries == 300
    )
    monkeypatch.setitem(
        known, small, replace(known[small], hub=repository)
    )  # the same way, for less
    published = detectors._network(known[small], 90)
    published.save_pretrained(hub["folder"])
    detector = create_detector(small, 4, pretrained=True)
    assert {asked for asked, _ in hub["asked"]} == {repository}
    queries = (
        network.model.query_position_embeddings.weight for network in (detector.network, published)
    )
    assert torch.equal(*queries) and detector.network.class_labels_classifier.out_features == 5


def test_a_backbones_own_file(hub, tmp_path):
    file = hub["folder"] / "model.safetensors"
    model = timm_backbone(hub["folder"])
    detector = create_detector("detr_resnet18_2x2", 4, backbone_weights=file)
    backbone = detector.network.model.backbone.model
    assert torch.equal(backbone.layer1[0].bn2.weight, model.layer1[0].bn2.weight)
    assert not backbone.conv1.weight.requires_grad
    assert count_parameters(detector) == 17_245_897 and hub["asked"] == []
    artifacts.save_tensors(tmp_path / "all.safetensors", detector.state_dict())
    again = create_detector("detr_resnet18_2x2", 4, weights=tmp_path / "all.safetensors").eval()
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(detector.eval()(images).boxes, again(images).boxes)
    small = create_detector("detr_nano", 4).network.model.backbone.model.state_dict()
    artifacts.save_tensors(tmp_path / "small.safetensors", small)
    nano = create_detector("detr_nano", 4, backbone_weights=tmp_path / "small.safetensors")
    first = nano.network.model.backbone.model.layer1[0].conv1.weight
    assert torch.equal(first, small["layer1.0.conv1.weight"]) and first.requires_grad
    with pytest.raises(WorkbenchError, match="(?s)do not fit.*resnet50.*the backbone it is of"):
        create_detector("detr_resnet50", 4, backbone_weights=file)
    with pytest.raises(WorkbenchError, match="two kinds"):
        create_detector("detr_resnet18_2x2", 4, pretrained=True, backbone_weights=file)
    with pytest.raises(WorkbenchError, match="two kinds"):
        create_detector("detr_resnet18_2x2", 4, pretrained=True, weights=file)


def test_a_folder_in_transformers_format_keeps_all_but_another_head(tmp_path):
    """What a published 91-class detector goes through: its norms and stem stay frozen, its class head is made anew."""
    from dfkd_lib.models import detectors

    published = detectors._network(detectors.SPECS["detr_resnet18_2x2"], 91)
    published.save_pretrained(tmp_path)
    ours = create_detector("detr_resnet18_2x2", 4, weights=tmp_path)
    kept = ours.network.bbox_predictor.layers[0].weight
    assert torch.equal(kept, published.bbox_predictor.layers[0].weight)
    assert ours.network.class_labels_classifier.out_features == 5
    assert count_parameters(ours) == 17_245_897
    stem = [name for name, p in ours.named_parameters() if not p.requires_grad]
    assert stem and all("conv1" in name or "layer1" in name for name in stem)
    artifacts.save_tensors(tmp_path / "tuned.safetensors", ours.state_dict())
    again = create_detector("detr_resnet18_2x2", 4, weights=tmp_path / "tuned.safetensors").eval()
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(ours.eval()(images).logits, again(images).logits)
    with pytest.raises(WorkbenchError, match="cannot be loaded|does not fit"):
        create_detector("detr_resnet50", 4, weights=tmp_path)


# COCO measures


def hand_made_scenes():
    """Three scenes of 100 x 100: a bird and a plane; a bird; nothing."""
    boxes = [
        torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2]]),
        torch.tensor([[0.5, 0.5, 0.4, 0.4]]),
        torch.zeros(0, 4),
    ]
    labels = [torch.tensor([0, 3]), torch.tensor([0]), torch.zeros(0, dtype=torch.int64)]
    return SceneSet(torch.zeros(3, 3, 100, 100, dtype=torch.uint8), boxes, labels, CLASSES)


def said(*rows):
    """Scores (3, 2, 4) and boxes (3, 2, 4) from (scene, query, class, score, box) rows."""
    scores, boxes = torch.zeros(3, 2, 4), torch.full((3, 2, 4), 0.1)
    for scene, query, label, score, box in rows:
        scores[scene, query, label], boxes[scene, query] = score, torch.tensor(box)
    return scores, boxes


def test_perfect_detections():
    scores, boxes = said(
        (0, 0, 0, 0.9, [0.3, 0.3, 0.2, 0.2]),
        (0, 1, 3, 0.8, [0.7, 0.7, 0.2, 0.2]),
        (1, 0, 0, 0.7, [0.5, 0.5, 0.4, 0.4]),
    )
    measures = metrics.average_precision(hand_made_scenes(), scores, boxes)
    assert measures["AP"] == measures["AP50"] == measures["AP75"] == pytest.approx(1)
    assert measures["precision"] == measures["recall"] == 1
    assert measures["per_class"]["drone"] == {"AP": None, "AP50": None, "AP75": None}


def test_a_case_worked_out_by_hand():
    """Birds: a false alarm outranks one of two hits, AP50 = (51 · 1 + 50 · 2/3) / 101. Plane: IoU 2/3, so it counts up
    to 0.65 alone: AP50 1, AP75 0. Precision at score 0.5: 3 of 4."""
    scores, boxes = said(
        (0, 0, 0, 0.9, [0.3, 0.3, 0.2, 0.2]),
        (2, 0, 0, 0.8, [0.5, 0.5, 0.2, 0.2]),
        (1, 0, 0, 0.7, [0.5, 0.5, 0.4, 0.4]),
        (0, 1, 3, 0.6, [0.74, 0.7, 0.2, 0.2]),
    )
    measures = metrics.average_precision(hand_made_scenes(), scores, boxes)
    birds = (51 + 50 * 2 / 3) / 101
    assert measures["per_class"]["bird"]["AP50"] == pytest.approx(birds, abs=1e-6)
    assert measures["per_class"]["plane"] == {
        "AP": pytest.approx(0.4),
        "AP50": pytest.approx(1),
        "AP75": 0,
    }
    assert measures["AP75"] == pytest.approx(birds / 2, abs=1e-6)
    assert measures["precision"] == pytest.approx(3 / 4) and measures["recall"] == pytest.approx(1)


def test_no_detections_at_all():
    measures = metrics.average_precision(hand_made_scenes(), *said())
    assert measures["AP"] == measures["AP50"] == measures["precision"] == measures["recall"] == 0


def test_scenes_without_objects():
    empty = hand_made_scenes().subset([2])
    measures = metrics.average_precision(
        empty, *(x[2:] for x in said((2, 0, 1, 0.9, [0.5, 0.5, 0.2, 0.2])))
    )
    assert (
        measures["AP"] == 0
        and measures["precision"] == 0
        and measures["per_class"]["bird"]["AP"] is None
    )


def test_confident_detections_become_objects():
    logits = torch.full((1, 3, 5), -4.0)
    logits[0, 1, 2], logits[0, 2, 0], logits[0, 0, 4] = 3.0, 4.0, 9.0
    labels, boxes = confident(Queries(logits[None], torch.arange(12.0).view(1, 1, 3, 4)))
    assert labels.tolist() == [[0, 2, -1]] and boxes[0, 0].tolist() == [8, 9, 10, 11]


# Training


def test_ten_scenes_can_be_learned_by_heart():
    scenes = spread(generate_scenes(40, size=64, seed=5), 10)
    assert {int(labels[0]) for labels in scenes.labels} == {0, 1, 2, 3} and len(
        scenes
    ) == 10 == len(set(scenes.rows))
    found = overfit("detr_nano", scenes, steps=300, lr=2e-3)
    assert (
        found["AP50"] >= 0.9
        and found["curve"][-1] == (300, found["AP50"])
        and found["curve"][0][1] < 0.5
    )
    assert len(spread(scenes, 99)) == 10


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_a_step_names_its_losses(pairing):
    detector, teacher = create_detector("detr_nano", 4), create_detector("detr_micro", 4).eval()
    batch = next(SceneBatches(generate_scenes(4, size=64), 4)(0, torch.Generator()))
    weights = DetectionWeights(classification=1.5, boxes=10.0, distillation=0.5, pairing=pairing)
    losses = detection_step(weights)(detector, batch, answers(teacher))
    assert set(losses) == {"loss", "classification", "boxes", "giou", "distillation"}
    assert (
        losses["loss"]
        > 1.5 * losses["classification"] + 10 * losses["boxes"] + 0.5 * losses["distillation"]
    )


@pytest.mark.parametrize("students, size", [("detr_nano", 64), ("detr_resnet18_2x2", 64)])
def test_boxes_and_cross_attention_are_distilled_too(students, size):
    """With a teacher of another grid as well: stage 3 of its backbone against the student's stage 4."""
    torch.manual_seed(0)
    detector, teacher = (
        create_detector(students, 4),
        create_detector("detr_micro", 4).eval().requires_grad_(False),
    )
    with torch.no_grad():  # untrained, it is sure of nothing
        teacher.network.class_labels_classifier.bias[:] = torch.tensor(
            [3.0, -3.0, -3.0, -3.0, -3.0]
        )
    batch = next(SceneBatches(generate_scenes(2, size=size), 2)(0, torch.Generator()))
    more = {"box_distillation": 0.5, "attention_distillation": 3.0}
    plain, with_both = (detection_step(DetectionWeights(**weights)) for weights in ({}, more))
    detector.eval()  # so that both see the same student
    before, losses = (step(detector, batch, answers(teacher)) for step in (plain, with_both))
    assert set(losses) - set(before) == set(more) and all(losses[name] > 0 for name in more)
    assert losses["loss"] > before["loss"] + 3 * losses["attention_distillation"]
    losses["attention_distillation"].backward()
    last = detector.network.model.decoder.layers[-1].encoder_attn
    assert any(
        p.grad is not None and p.grad.abs().sum() > 0
        for name, p in last.named_parameters()
        if "q_" in name
    )
    same = create_detector("detr_micro", 4).eval()
    same.load_state_dict(teacher.state_dict())
    for name, weight in with_both(same, batch, answers(teacher)).items():
        assert name not in (*more, "distillation") or weight.item() == pytest.approx(0, abs=1e-4), (
            name
        )


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"boxes": -1.0}, "'boxes' is impossible"),
        ({"attention_distillation": -0.1}, "impossible"),
        ({"temperature": 0.0}, "impossible"),
        ({"pairing": "greedy"}, "hungarian"),
        ({"classification": 0, "boxes": 0, "giou": 0, "distillation": 0}, "do not go together"),
    ],
)
def test_impossible_weights_are_refused(wrong, message):
    with pytest.raises(WorkbenchError, match=message):
        DetectionWeights(**wrong)


SMALL = (
    "data.size=48 train_scenes=12 test_scenes=6 teacher=train teacher.model=detr_nano student.epochs=1 "
    "teacher.epochs=2 teacher.batch_size=6 batch_size=6 gan.epochs=1 gan.width=16 gan.d_width=8"
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
    for name in ("teacher", "train", "plain"):
        assert read[name] == {"aerial/train": ("training", 12), "aerial/test": ("evaluation", 6)}, (
            name
        )
    assert (
        read["synthetic"] == {"aerial/test": ("evaluation", 6)}
        and made["synthetic"].manifest["data_free"]
    )
    seen = detection.seen_table(made).set_index("detector")
    assert (
        seen.loc["synthetic", "of them from a data set"] == 0
        and seen.loc["train", "of them from a data set"] == 12
    )


def test_artifacts_hold_curves_measures_and_detections(trained):
    store, study, made = trained
    history = made["train"].json("history.json")
    assert {"AP", "AP50", "precision", "classification", "boxes", "distillation"} <= set(history[0])
    assert "distillation" not in made["teacher"].json("history.json")[0]
    detector, test = detection.load_detector(made["train"]), study.scenes("test").load()
    found = metrics.average_precision(test, *detection.predict(detector, test.images))
    assert found["AP"] == pytest.approx(made["train"].metrics["AP"])
    examples = detection.compared({"student": made["train"]}, test, 3, 0.5)
    assert examples["images"].shape == (3, 3, 48, 48) and len(examples["found"]["student"]) == 3
    assert study.student("train").cached
    assert list(detection.ap_table(made)["detector"])[0] == "teacher (detr_nano)"


@pytest.mark.parametrize(
    "change", ["seed=1", "train_scenes=13", "student.lr=0.01", "augment=0.5", "box_weight=5"]
)
def test_a_changed_setting_makes_a_new_student(trained, change):
    store, study, made = trained
    again = DetectionStudy(store.find_only(), study.config)
    assert again.student("plain").key == made["plain"].key
    other = DetectionStudy(store.find_only(), study.config.override(change))
    with pytest.raises(NotMade):
        other.student("plain")


def test_unknown_students_and_teachers_are_refused(trained):
    store, study, _ = trained
    with pytest.raises(WorkbenchError, match="no such student"):
        study.student("fake")
    with pytest.raises(WorkbenchError, match="there is no fake"):
        study.config.override("arms=train,fake")
    with pytest.raises(WorkbenchError, match="shipped|train"):
        study.config.override("teacher=none")
    with pytest.raises(WorkbenchError, match="expected: a teacher"):
        synthetic, test = study.scenes("synthetic"), study.scenes("test")
        detection.train(store, ONE_EPOCH, STEP, synthetic, test)


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


def drawn(store, classes=CLASSES, **tensors):
    """An artifact of scenes, as a generator would keep them."""
    scenes = generate_scenes(8, size=48, seed=3, split="synthetic")
    labels, boxes = padded(scenes)
    tensors = tensors or {"pixels": scenes.pixels, "labels": labels, "boxes": boxes}
    return scenes, store.get_or_make(
        "drawn",
        {"classes": list(classes), "of": sorted(tensors)},
        lambda work: artifacts.save_tensors(work / SCENES, tensors),
    )


def test_scenes_of_an_artifact_come_back_as_they_were(trained):
    scenes, kept = drawn(trained[0])
    back = open_scenes(kept)
    assert back.fingerprint == scenes.fingerprint and back.split is None and back.classes == CLASSES
    with pytest.raises(WorkbenchError, match="holds no scenes"):
        open_scenes(drawn(trained[0], pixels=scenes.pixels)[1])


def test_a_student_of_drawn_scenes_reads_no_data_set(trained):
    store, study, made = trained
    _, kept = drawn(store)
    test = study.scenes("test")
    student = detection.train(store, ONE_EPOCH, STEP, kept, test, made["teacher"])
    assert student.parents == [made["teacher"].key, kept.key] and student.settings["train"] == {
        "artifact": kept.key
    }
    assert student.manifest["data_free"] and student.metrics["train_scenes"] == 8
    assert {row["split"] for row in student.ledger} == {"aerial/test"}
    with pytest.raises(WorkbenchError, match="expected: a teacher"):
        detection.train(store, ONE_EPOCH, STEP, kept, test)


def test_scenes_in_memory_train_too(trained):
    store, study, made = trained
    few = study.scenes("train").load().subset(range(4))
    student = detection.train(store, ONE_EPOCH, STEP, few, study.scenes("test"), made["teacher"])
    assert {row["split"]: row["images"] for row in student.ledger} == {
        "aerial/train": 4,
        "aerial/test": 6,
    }


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


def test_other_classes_are_refused_before_training(trained, tmp_path):
    from dataclasses import replace

    store, study, made = trained
    others = ("bird", "drone", "helicopter", "plane")

    def refused(who, scenes, test=study.scenes("test"), teacher=None):
        with pytest.raises(
            WorkbenchError, match=f"{who} and the test scenes do not name the same classes"
        ):
            detection.train(store, ONE_EPOCH, STEP, scenes, test, teacher)

    refused("the drawn scenes", drawn(store, others)[1], teacher=made["teacher"])
    for split, names in (("train", others), ("val", CLASSES[:3])):
        scenes = generate_scenes(4, size=48)
        write_coco(
            replace(scenes, classes=names, labels=[row.clamp(max=2) for row in scenes.labels]),
            tmp_path,
            split,
        )
    source = SceneConfig(name=str(tmp_path), size=48, shortest=0)
    refused("the training scenes", source.scenes("train"), source.scenes("test"))
    same = source.scenes("test").load()
    refused("the teacher", same, source.scenes("test"), teacher=made["teacher"])


def test_the_shipped_teacher_is_what_its_record_says():
    """The file in the repository: small, made from the recorded seed and command, right on its own test scenes."""
    base = artifacts.resolve("data/teachers/detr_micro_scenes")
    record = json.loads(base.with_suffix(".json").read_text())
    assert base.with_suffix(".safetensors").stat().st_size <= 4_000_000
    assert record["metrics"]["AP50"] >= 0.5 and record["metrics"]["test_scenes"] >= 300
    assert "train-teacher" in record["command"]
    settings = record["settings"]
    test = generate_scenes(60, settings["test"]["size"], settings["test"]["seed"], "test")
    detector = create_detector(record["model"], 4, weights=base.with_suffix(".safetensors"))
    with ledger.stage("check", {"aerial/test": "evaluation"}):
        found = metrics.average_precision(test, *detection.predict(detector, test.images))
        assert found["AP50"] >= record["metrics"]["AP50"] - 0.15
    assert np.isfinite(record["seconds"]) and record["provenance"]["commit"] != "unknown"
