"""Query-aligned distillation: queries that teacher and student are both asked, and what their answers differ by."""

import math
from types import SimpleNamespace

import pytest
import torch

from dfkd_lib import detection, losses, presets
from dfkd_lib.core import WorkbenchError
from dfkd_lib.datasets import generate_scenes
from dfkd_lib.detection import DetectionWeights, QueryAligner, SceneBatches, answers, detection_step
from dfkd_lib.detection.aligned import decode_queries, decoder_inputs
from dfkd_lib.detection.step import MATCHED, SHARED
from dfkd_lib.models import create_detector

BATCH = SceneBatches(generate_scenes(2, size=64), 2).rows(torch.arange(2))
LABELS_ALONE = dict.fromkeys(MATCHED, 0.0)


def pair(student, teacher="detr_micro", seed=0):
    """An untrained student and a teacher that is sure of everything, for whose confidence all queries count."""
    torch.manual_seed(seed)
    made, frozen = create_detector(student, 4), create_detector(teacher, 4).eval()
    frozen.requires_grad_(False)
    frozen.network.class_labels_classifier.bias[:] = torch.tensor([3.0, -3.0, -3.0, -3.0, -3.0])
    return made, frozen


def compared(student, teacher, general=1):
    aligner = QueryAligner(student, teacher, general)
    with decoder_inputs(student) as given:
        student(BATCH.images)
    return aligner, *aligner(student, given, BATCH.images)


# Losses


def test_logits_of_shared_queries_by_hand():
    student, teacher = torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)
    teacher[0, 0, 0] = 2 * math.log(3)  # at T = 2: 3/4 against 1/2
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    got = losses.query_logit_loss(student, teacher, torch.tensor([[2.0, 1.0]]), 2.0)
    assert got.item() == pytest.approx(4 * kl * 2 / 3, rel=1e-5)
    assert losses.query_logit_loss(teacher, teacher, torch.ones(1, 2), 2.0).item() == 0


def test_boxes_of_shared_queries_by_hand():
    one = torch.tensor([[[0.4, 0.5, 0.4, 0.4], [0.5, 0.5, 0.1, 0.1]]])
    other = torch.tensor([[[0.6, 0.5, 0.4, 0.4], [0.9, 0.9, 0.1, 0.1]]])
    # Half of the first boxes is shared: IoU 1/3, no waste in the hull. The teacher sees nothing at the second.
    got = losses.query_box_loss(one, other, torch.tensor([[1.0, 0.0]]))
    assert got.item() == pytest.approx(5 * 0.2 + 2 * (1 - 1 / 3), rel=1e-4)


def test_features_of_shared_queries_by_hand():
    one, other = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]]), torch.tensor([[[0.0, 2.0], [3.0, 3.0]]])
    got = losses.query_feature_loss(one, other, torch.tensor([[0.5, 1.5]]))
    assert got.item() == pytest.approx(0.5 / 2, abs=1e-6)


# Queries


@pytest.mark.parametrize("name", ["detr_micro", "detr_resnet18_2x2"])
def test_a_copy_of_the_teacher_answers_as_the_teacher_does(name):
    """Conditional DETR and DETR: to its own queries as it always does, and every loss is 0."""
    student, teacher = pair(name, name)
    student.load_state_dict(teacher.state_dict())
    aligner, found, target = compared(student.eval(), teacher, general=2)
    for one, other in zip(found, target, strict=True):
        torch.testing.assert_close(one, other)
    own = detection.queries(teacher, BATCH.images, attention=True)
    torch.testing.assert_close(found.logits[:, : len(BATCH.images)], own.logits)
    torch.testing.assert_close(found.boxes[:, : len(BATCH.images)], own.boxes)
    torch.testing.assert_close(found.maps[-1, : len(BATCH.images)], own.maps)
    assert not torch.equal(*found.boxes.unflatten(1, (3, -1))[-1, 1:])  # two other draws
    named = detection.shared_losses(found, target, dict.fromkeys(SHARED, 1.0), 2.0)
    assert list(named) == list(SHARED)
    for value in named.values():
        torch.testing.assert_close(value, torch.zeros(len(found.logits)), atol=1e-5, rtol=0)


def test_layers_are_compared_where_they_are_as_deep():
    student, teacher = pair("detr_nano")  # two layers against three
    _, found, target = compared(student, teacher, general=0)
    every = detection.queries(teacher, BATCH.images)
    assert found.logits.shape == target.logits.shape
    torch.testing.assert_close(target.logits, every.logits[[1, 2]])
    assert found.features.shape == target.features.shape and target.features.shape[-1] == 112


def test_a_student_is_asked_at_the_teachers_reference_points():
    student, teacher = pair("detr_nano")
    last = student.network.bbox_predictor.layers[-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)  # so that a box is centred where its query stands
    aligner, found, _ = compared(student, teacher)
    torch.manual_seed(1)
    queries, references = aligner.sampled()
    own = teacher.network.model.query_position_embeddings.weight
    assert torch.equal(queries[0], own) and queries.shape == (2, *own.shape)
    with decoder_inputs(student) as given:
        student(BATCH.images)
    got = decode_queries(student, given, BATCH.images, aligner.queries(queries), references).boxes[
        -1
    ]
    expected = references.sigmoid().repeat_interleave(2, 0)
    torch.testing.assert_close(got[..., :2], expected, atol=1e-4, rtol=0)


def test_detr_and_conditional_detr_teach_each_other():
    for names in (("detr_resnet18_2x2", "detr_micro"), ("detr_nano", "detr_resnet18_2x2")):
        _, found, target = compared(*pair(*names))
        named = detection.shared_losses(found, target, dict.fromkeys(SHARED, 1.0), 2.0)
        assert all(torch.isfinite(value).all() and (value > 0).all() for value in named.values())


# The step


@pytest.mark.parametrize("name", SHARED)
def test_each_loss_reaches_the_student_and_those_at_0_are_not_there(name):
    student, teacher = pair("detr_nano")
    weights = DetectionWeights(**LABELS_ALONE, **{name: 2.0})
    aligner = QueryAligner(student, teacher)
    named = detection_step(weights)(student, BATCH, answers(teacher), aligner)
    assert set(named) == {"loss", "classification", "boxes", "giou", name}
    named[name].backward()
    for part in (
        student.network.model.backbone,
        student.network.model.decoder.layers[0],
        aligner.queries,
    ):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
    mapped = aligner.features.weight.grad
    assert (mapped is not None and mapped.abs().sum() > 0) == (name == "query_features")
    assert len([*aligner.parameters()]) == 2 and all(p.grad is None for p in teacher.parameters())


def test_a_step_of_drawn_scenes_has_matched_and_shared_queries():
    student, teacher = pair("detr_nano")
    batch = BATCH._replace(labels=None, boxes=None)
    step = detection_step(DetectionWeights(query_boxes=1.0))
    named = step(student, batch, answers(teacher), QueryAligner(student, teacher))
    assert {"distillation", "query_boxes", "classification"} <= set(named)


def test_aligned_weights_stand_in_place_of_the_matched():
    weights = DetectionWeights(giou=2.0, box_distillation=1.0, general=3)
    aligned = weights.aligned
    assert aligned.giou == 2.0 and aligned.shared == 3 and not any(aligned[n] for n in MATCHED)
    assert [aligned[name] for name in SHARED] == [1.0] * 4
    own = weights.replace(query_boxes=0.5).aligned
    assert [own[name] for name in SHARED] == [0.0, 0.5, 0.0, 0.0]


def test_sampling_points_cannot_be_shared(tmp_path):
    config = presets.load("detection", "quick", "student.model=dfine_nano students=aligned,plain")
    study = detection.DetectionStudy(None, config)
    with pytest.raises(
        WorkbenchError, match=r"(?s)dfine_nano cannot be asked.*students=train,plain"
    ):
        study.check()


# The table


def test_gains_are_paired_by_seed():
    made = {
        name: [SimpleNamespace(metrics={"AP50": value}) for value in values]
        for name, values in {"without": [0.5, 0.6, 0.7], "with": [0.52, 0.61, 0.73]}.items()
    }
    (row,) = detection.gain_table(made).to_dict("records")
    assert (row["student"], row["against"]) == ("with", "without")
    assert row["difference"] == pytest.approx(0.02) and row["low"] < 0.02 < row["high"]
    assert row["low"] == pytest.approx(0.02 - 4.302653 * 0.01 / math.sqrt(3), abs=1e-6)
    few = {name: each[:2] for name, each in made.items()}
    assert math.isnan(detection.gain_table(few)["low"][0])
    assert presets.load("detection", "quick").compared == ()
    assert set(presets.load("detection", "night").compared) == {"plain", "train", "aligned"}
