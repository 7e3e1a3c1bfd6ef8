"""The makers' losses against values worked out by hand, and who receives their gradients."""

import math

import pytest
import torch
from torch import nn

from dfkd_lib.core import WorkbenchError
from dfkd_lib.losses import (
    attention_outputs,
    batch_norm_losses,
    contrastive_loss,
    decision_adversarial_loss,
    disagreement,
    diversity_loss,
    ink,
    intra_divergence_loss,
    logit_distance,
    patch_similarity_entropy,
    patch_similarity_loss,
    total_variation,
)
from dfkd_lib.models import create_model


def test_total_variation_and_ink_by_hand():
    image = torch.tensor([[0.0, 1.0], [3.0, 7.0]])[None, None]
    assert total_variation(image).item() == pytest.approx((3 + 6) / 2 + (1 + 4) / 2)
    assert total_variation(torch.full((2, 3, 5, 5), 0.3)).item() == 0
    assert ink(image, 1.0).tolist() == pytest.approx([(1 + 0 + 4 + 36) / 16])


def test_the_contrast_by_hand():
    """Orthonormal views: each is like its own at 1/T and like all others at 0; an earlier copy halves the odds."""
    views, none = 3.0 * torch.eye(4), torch.zeros(0, 4)
    own = math.exp(1 / 0.5)
    found = contrastive_loss(views, views, none, 0.5).item()
    assert found == pytest.approx(math.log((own + 3) / own), rel=1e-5)
    found = contrastive_loss(views, views, torch.eye(4), 0.5).item()
    assert found == pytest.approx(math.log((2 * own + 6) / own), rel=1e-5)
    alike = torch.ones(4, 4)
    assert contrastive_loss(alike, alike, none).item() == pytest.approx(math.log(4), rel=1e-5)


def test_diversity_sees_shapes_not_brightness_and_only_within_a_class():
    left, top = torch.zeros(1, 8, 8), torch.zeros(1, 8, 8)
    left[:, :, :4], top[:, :4] = 1.0, 1.0
    same = torch.zeros(2, dtype=torch.long)
    for other, labels, expected in (
        (0.3 * left + 0.2, same, 1),
        (top, same, 0),
        (1 - left, same, 0),  # opposite is not alike
        (left, torch.arange(2), 0),
    ):
        found = diversity_loss(torch.stack([left, other]), labels).item()
        assert found == pytest.approx(expected, abs=5e-3)


def test_decisions_count_where_both_name_one_class():
    student = torch.tensor([[2.0, 1.0], [1.0, 2.0]]).log()
    teacher = torch.tensor([[3.0, 1.0], [3.0, 1.0]]).log()
    by_hand = 0.75 * math.log(0.75 * 3 / 2) + 0.25 * math.log(0.25 * 3)
    found = decision_adversarial_loss(student + 5, teacher).item()
    assert found == pytest.approx(-by_hand / 2, rel=1e-5)
    assert decision_adversarial_loss(teacher, teacher).item() == pytest.approx(0, abs=1e-7)


def test_disagreement_is_0_for_equal_and_1_for_opposite_outputs():
    logits, far = torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([[60.0, -60.0]])
    assert disagreement(logits, logits + 3).item() == pytest.approx(0, abs=1e-6)
    assert disagreement(far, -far).item() == pytest.approx(1, abs=1e-6)
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1])
    m = (p + q) / 2
    expected = ((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2 / math.log(2)
    found = disagreement(p.log()[None], q.log()[None]).item()
    assert found == pytest.approx(expected.item(), rel=1e-5)


def test_logit_distance_forgets_a_constant_of_each_row():
    a, b = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 0.0]])
    assert logit_distance(a, b).item() == pytest.approx(1)
    assert logit_distance(a + 5, b - 2).item() == pytest.approx(1)


def test_batch_norm_statistics_by_hand():
    model = nn.Sequential(nn.Identity(), nn.BatchNorm2d(1)).eval()
    x = torch.tensor([1.0, 3.0, 5.0, 7.0]).view(1, 1, 2, 2).requires_grad_()
    with batch_norm_losses(model) as found:
        model(x)
    assert found[0].item() == pytest.approx(4 + 4)  # mean 4 against 0; variance 5 against 1
    found[0].backward()
    model(x)
    assert x.grad.abs().sum() > 0 and len(found) == 1
    with pytest.raises(WorkbenchError, match="no batch-norm statistics"):
        with batch_norm_losses(create_model("vit_mnist_smoke")):
            pass


def test_entropy_of_patches_is_low_for_equal_and_high_for_spread_similarities():
    generator = torch.Generator().manual_seed(0)
    equal = torch.ones(2, 16, 8) + 0.001 * torch.randn(2, 16, 8, generator=generator)
    angles = torch.linspace(0, math.pi, 16)
    spread = torch.stack([angles.cos(), angles.sin()], -1).expand(2, 16, 2)
    low, high = patch_similarity_entropy(equal), patch_similarity_entropy(spread)
    # The uniform density on [-1, 1] has entropy ln 2.
    assert low < -1 < 0 < high <= math.log(2) + 1e-4
    with pytest.raises(WorkbenchError, match="needs patches"):
        patch_similarity_entropy(torch.ones(1, 2, 4))


def test_patch_similarity_reaches_the_pixels_through_every_block():
    model = create_model("vit_mnist_smoke").eval().requires_grad_(False)
    images = torch.randn(2, 1, 28, 28, requires_grad=True)
    with attention_outputs(model) as outputs:
        model(images)
    assert len(outputs) == 2 and outputs[0].shape[:2] == (2, 50)
    patch_similarity_loss(model, outputs).backward()
    model(images)
    assert images.grad.abs().sum() > 0 and len(outputs) == 2


def four_of_a_class():
    """Features of one class on a line of directions, with falling confidence in class 0."""
    angles = torch.tensor([0.0, 0.2, 0.6, 1.2])
    features = torch.stack([angles.cos(), angles.sin()], 1).requires_grad_()
    logits = torch.tensor([[5.0, 0.0], [4.0, 0.0], [1.0, 0.0], [0.5, 0.0]])
    return features, logits, torch.zeros(4, dtype=torch.long)


def test_easy_images_are_pushed_apart_and_hard_ones_are_left_where_they_are():
    features, logits, labels = four_of_a_class()
    loss = intra_divergence_loss(features, logits, labels, easy=0.5, margin=0.5)
    # Both easy ones are each other's nearest, 0.2 apart in angle.
    assert loss.item() == pytest.approx(0.5 - (1 - math.cos(0.2)), rel=1e-4)
    loss.backward()
    assert (features.grad[:2].abs().sum(1) > 0).all() and (features.grad[2:] == 0).all()
    moved = features.detach() - 0.1 * features.grad
    assert torch.cosine_similarity(moved[0], moved[1], dim=0) < math.cos(0.2)


def test_half_of_a_class_is_easy_also_where_the_teacher_is_sure_of_all():
    features = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logits = torch.zeros(6, 10)
    logits[:, 0] = torch.tensor([41.0, 44.0, 40.0, 45.0, 42.0, 43.0])
    assert (logits.softmax(1)[:, 0] == 1).all()
    intra_divergence_loss(features, logits, torch.zeros(6, dtype=torch.long), margin=2.0).backward()
    assert (features.grad.abs().sum(1) > 0).tolist() == [False, True, False, True, False, True]


def test_intra_divergence_without_pairs_or_with_wide_ones_is_0():
    features, logits, labels = four_of_a_class()
    assert intra_divergence_loss(features, torch.eye(4), torch.arange(4)).item() == 0
    assert intra_divergence_loss(features, logits, labels, margin=0.0).item() == 0
    assert intra_divergence_loss(features, logits, labels, easy=0.0).item() == 0
