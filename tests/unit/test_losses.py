"""The classification losses against hand-computed values and torch's own; the tables of named losses."""

import math

import pytest
import scipy.stats
import torch
import torch.nn.functional as F

from dfkd_lib import losses
from dfkd_lib.attention import resize_probe
from dfkd_lib.core import WorkbenchError
from dfkd_lib.losses import detection
from dfkd_lib.training import Batch


def test_kd_loss_by_hand():
    # One image, two classes, T = 2: q = softmax([2, 0]/2), p = softmax([0, 0]/2) = (1/2, 1/2).
    q = math.e / (1 + math.e)
    by_hand = 4 * (q * math.log(q / 0.5) + (1 - q) * math.log((1 - q) / 0.5))
    found = losses.kd_loss(torch.zeros(1, 2), torch.tensor([[2.0, 0.0]]), 2.0)
    assert found.item() == pytest.approx(by_hand, rel=1e-6)


def test_kd_loss_is_zero_only_in_agreement_and_teacher_comes_first():
    a, b = torch.randn(5, 7), torch.randn(5, 7)
    assert losses.kd_loss(a, a + 3.0, 4.0).item() == pytest.approx(0, abs=1e-6)
    one, other = losses.kd_loss(a, b, 4.0).item(), losses.kd_loss(b, a, 4.0).item()
    assert one > 0 and one != pytest.approx(other, rel=1e-4)


def test_kd_loss_keeps_its_gradient_scale_over_temperature():
    # T² is there so that the gradient does not vanish as 1/T² (Hinton et al. 2015).
    student, teacher = torch.randn(64, 10), torch.randn(64, 10)
    norms = []
    for temperature in (20.0, 40.0):
        s = student.clone().requires_grad_()
        losses.kd_loss(s, teacher, temperature).backward()
        norms.append(s.grad.norm().item())
    assert norms[1] / norms[0] == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize(
    "classes, temperature, words",
    [(2, 0.0, "temperature"), (2, -1.0, "temperature"), (2, math.nan, "temperature")]
    + [(3, 1.0, "do not fit")],
)
def test_impossible_distillation(classes, temperature, words):
    with pytest.raises(WorkbenchError, match=words):
        losses.kd_loss(torch.zeros(1, 2), torch.zeros(1, classes), temperature)


def test_cosines_of_probes_by_hand():
    probe, wanted = torch.tensor([[1.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 1.0], [3.0, 4.0]])
    for loss in (losses.attention_consistency_loss, losses.patch_probe_loss):
        assert loss(probe, wanted).item() == pytest.approx(0.5)
        assert loss(probe, probe * 7).item() == pytest.approx(0, abs=1e-6)


def test_patch_probe_loss_over_different_grids():
    teacher = torch.rand(3, 49)
    same = resize_probe(teacher, 16)
    assert same.shape == (3, 16) and torch.allclose(same.sum(1), teacher.sum(1))
    assert losses.patch_probe_loss(same, teacher).item() == pytest.approx(0, abs=1e-6)
    assert torch.allclose(resize_probe(torch.ones(1, 4), 9), torch.full((1, 9), 4 / 9))
    with pytest.raises(WorkbenchError, match="not square"):
        losses.patch_probe_loss(torch.rand(1, 15), teacher[:1])


def test_cutmix_loss_against_soft_targets():
    logits, a, b, share = torch.randn(6, 5), torch.randint(5, (6,)), torch.randint(5, (6,)), 0.3
    for lam in (share, torch.rand(6)):
        each = torch.as_tensor(lam).expand(6)[:, None]
        soft = each * F.one_hot(a, 5) + (1 - each) * F.one_hot(b, 5)
        found = losses.cutmix_loss(logits, a, b, lam).item()
        assert found == pytest.approx(F.cross_entropy(logits, soft).item(), rel=1e-5)


def test_boxes_are_distilled_where_the_teacher_finds_an_object():
    # Half of each box is shared: IoU 1/3 without waste; two coordinates would differ by 0.2 and 0 elsewhere.
    boxes = torch.tensor([[[0.4, 0.5, 0.4, 0.4], [0.1, 0.1, 0.1, 0.1]]], requires_grad=True)
    teacher = torch.tensor([[[0.6, 0.5, 0.4, 0.4], [0.9, 0.9, 0.1, 0.1]]])
    weights = torch.tensor([[1.0, 0.0]])
    found = losses.box_distillation_loss(boxes, teacher, weights)
    assert found.item() == pytest.approx(detection.SMOOTH * 0.2**2 / 2 + 2 / 3, rel=1e-4)
    found.backward()
    assert boxes.grad[0, 0].abs().sum() > 0 and boxes.grad[0, 1].abs().sum() == 0
    same = losses.box_distillation_loss(teacher, teacher, torch.ones(1, 2))
    assert same.item() == pytest.approx(0, abs=2e-5)
    twice = losses.box_distillation_loss(
        *(t.repeat(1, 2, 1) for t in (boxes, teacher)), weights.repeat(1, 2)
    )
    assert twice.item() == pytest.approx(found.item(), rel=1e-5)  # per object


def test_attention_is_distilled_by_cosine_on_the_students_grid():
    maps, teacher = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 4, 4)
    maps[0, :, 0, 0] = 1.0
    # The same corner, and the opposite one.
    teacher[0, 0, :2, :2] = teacher[0, 1, 2:, 2:] = 0.25
    for weights, expected in (([1, 0], 0), ([0, 1], 1), ([1, 1], 0.5), ([0, 0], 0)):
        weights = torch.tensor([weights], dtype=torch.float32)
        found = losses.attention_distillation_loss(maps, teacher, weights)
        assert found.item() == pytest.approx(expected, abs=1e-6)
    assert losses.resize_maps(torch.rand(2, 3, 5, 7), (4, 6)).shape == (2, 3, 4, 6)
    assert torch.allclose(losses.resize_maps(teacher, (3, 3)).sum((-2, -1)), torch.ones(1, 2))


def test_a_query_without_an_object_counts_for_nothing():
    # A bird, nothing, both at once.
    logits = torch.tensor([[4.0, -4.0, -4.0], [-4.0, -4.0, 4.0], [4.0, -4.0, 4.0]])
    bird, nothing, both = losses.objectness(logits)
    assert bird > 0.95 and nothing < 1e-3 and both < 0.02


def test_other_distances_of_probes_are_those_of_shares_over_patches():
    student, teacher = torch.rand(6, 9), torch.rand(6, 9)
    p, q = (one / one.sum(1, keepdim=True) for one in (student, teacher))
    entropy = scipy.stats.entropy(q.numpy(), p.numpy(), axis=1).mean()
    assert losses.patch_kl_loss(student, 7 * teacher).item() == pytest.approx(entropy, rel=1e-4)
    mse = 81 * F.mse_loss(p, q)
    assert losses.patch_mse_loss(5 * student, teacher).item() == pytest.approx(mse.item(), rel=1e-4)
    for loss in (losses.patch_kl_loss, losses.patch_mse_loss):
        assert loss(student, 3 * student).item() == pytest.approx(0, abs=1e-6)
    one, other = torch.eye(4)[:1], torch.eye(4)[1:2]
    assert losses.patch_mse_loss(one, other).item() == pytest.approx(16 * 2 / 4)


def test_patch_losses_over_blocks_are_weighted_means_of_each_blocks():
    """Of the first block equal probes, of the second all in one patch against all in another."""
    one, other = torch.eye(4)[:1], torch.eye(4)[1:2]
    student, teacher = torch.stack([one, one], 1), torch.stack([one, other], 1)
    for loss, apart in ((losses.patch_probe_loss, 1.0), (losses.patch_mse_loss, 16 * 2 / 4)):
        assert loss(student, teacher).item() == pytest.approx(apart / 2)
        assert loss(student, teacher, (1.0, 3.0)).item() == pytest.approx(apart * 3 / 4)
    student, teacher = torch.rand(6, 2, 9), torch.rand(6, 2, 16)
    for loss in (losses.patch_probe_loss, losses.patch_mse_loss, losses.patch_kl_loss):
        each = [loss(student[:, block], teacher[:, block]).item() for block in (0, 1)]
        found = loss(student, teacher, (2.0, 0.5)).item()
        assert found == pytest.approx((2 * each[0] + 0.5 * each[1]) / 2.5, rel=1e-5)
    with pytest.raises(WorkbenchError, match="probes of student and teacher do not fit"):
        losses.patch_probe_loss(student, teacher[:, :1])


def outputs(classes=5, grid=9, batch=4, **more):
    return losses.StudentOutputs(
        torch.randn(batch, classes), torch.rand(batch, grid), torch.randn(batch, classes), **more
    )


def test_the_table_computes_what_its_functions_compute():
    early = torch.randn(4, 3, 2, 2)
    student, teacher = outputs(early=early), outputs(grid=16, early=early + 2)
    batch = Batch(torch.zeros(4, 1, 2, 2), torch.arange(4), torch.arange(4))
    found = {
        name: loss.compute(student, teacher, batch, 3.0).item()
        for name, loss in losses.LOSSES.items()
    }
    assert found == pytest.approx(
        {
            "kd": losses.kd_loss(student.logits, teacher.logits, 3.0).item(),
            "ce": F.cross_entropy(student.logits, batch.labels).item(),
            "patch": losses.patch_probe_loss(student.probe, teacher.probe).item(),
            "patch_mse": losses.patch_mse_loss(student.probe, teacher.probe).item(),
            "patch_kl": losses.patch_kl_loss(student.probe, teacher.probe).item(),
            "hard": F.cross_entropy(student.distilled, teacher.logits.argmax(1)).item(),
            "soft": losses.kd_loss(student.distilled, teacher.logits, 3.0).item(),
            "early": 4.0,
        }
    )


def test_the_table_mixes_labels_where_images_are_mixed():
    student, a, b = outputs(), torch.arange(4), torch.arange(1, 5)
    share = torch.tensor([0.1, 0.5, 0.9, 1.0])
    batch = Batch(torch.zeros(4, 1, 2, 2), a, a, b, share)
    found = losses.LOSSES["ce"].compute(student, None, batch, 1.0)
    assert found == losses.cutmix_loss(student.logits, a, b, share)


@pytest.mark.parametrize(
    "table", [losses.LOSSES, losses.DETECTION_LOSSES, losses.MAKER_LOSSES], ids=len
)
def test_weights_have_their_names_labels_and_defaults_from_the_table(table):
    settings = losses.weights_of(table, **{name: 1.0 for name in table})().settings()
    assert list(settings) == list(table)
    for name, loss in table.items():
        assert set(loss.needs) <= set(losses.NEEDS) and loss.label and loss.help and loss.equation
        assert settings[name].label == loss.label and settings[name].also == f"{name}_weight"
        assert loss.help in settings[name].help and settings[name].low == 0
    with pytest.raises(WorkbenchError, match="at least one above 0"):
        losses.weights_of(table, **{name: 0.0 for name in table})()
