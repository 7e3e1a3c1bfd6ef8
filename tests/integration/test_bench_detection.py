"""The bench of the detection step: both train the same network, and are timed only if both read the same off it."""

import pytest
import torch
from bench import detection
from bench.rows import Effort

from dfkd_lib.core import WorkbenchError

CASE = detection.Case("detr_nano", "detr_micro", 48, 4, 0.0)


@pytest.mark.parametrize("precision", detection.PRECISIONS)
def test_both_ways_train_a_copy_of_the_student(precision):
    student, teacher, batch = detection.prepared(CASE)
    before = [p.clone() for p in student.parameters()]
    for way in (detection.ours, detection.theirs):
        module, loss = way(student, teacher, batch)
        assert all(map(torch.equal, before, module.parameters()))
        torch.manual_seed(0)
        first, step = loss().item(), detection.trainer(module, loss, precision)
        for _ in range(4):
            step()
        assert loss().item() < first
        moved = {
            name
            for (name, p), was in zip(module.named_parameters(), before, strict=True)
            if not torch.equal(p, was)
        }
        assert {
            "network.bbox_predictor.layers.0.weight",
            "network.class_labels_classifier.weight",
        } <= moved
    assert all(map(torch.equal, before, student.parameters()))


def test_transformers_answers_for_every_decoder_layer():
    student, teacher, batch = detection.prepared(CASE)
    module, _ = detection.theirs(student, teacher, batch)
    labels = [
        {"class_labels": names[names >= 0], "boxes": where[names >= 0]}
        for names, where in zip(*batch[1:])
    ]
    losses = module.network(pixel_values=batch[0], labels=labels).loss_dict
    assert {"loss_ce", "loss_ce_0", "loss_bbox", "loss_bbox_0"} <= set(losses)


def test_another_reading_of_the_network_is_refused(monkeypatch):
    student, _, (images, *_) = detection.prepared(CASE)
    assert detection.difference(student, images) < detection.TOLERANCE
    monkeypatch.setattr(detection, "_pixels", lambda detector, images: images)
    with pytest.raises(WorkbenchError, match="does not say what transformers reads"):
        detection.difference(student, images)


def test_there_is_a_row_for_each_case_and_precision(monkeypatch):
    monkeypatch.setattr(detection, "CASES", (CASE,))
    monkeypatch.setattr(detection, "LEAST", 3)
    rows = list(detection.rows(Effort()))
    assert [row.setting for row in rows] == [
        f"detr_nano <- detr_micro, 4 x 48 px, {p}" for p in detection.PRECISIONS
    ]
    assert all(row.rounds == 3 and 0 < row.ratio[0] <= row.ratio[1] <= row.ratio[2] for row in rows)
