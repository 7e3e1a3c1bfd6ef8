"""The makers' losses against values worked out by hand, and who receives their gradients."""

import math

import pytest
import torch
from torch import nn

from dfkd_lib.core import WorkbenchError
from dfkd_lib.losses import (
    BatchNormStatistics,
    attention_outputs,
    disagreement,
    diversity_loss,
    intra_divergence_loss,
    logit_distance,
    patch_similarity_entropy,
    patch_similarity_loss,
    total_variation,
)
from dfkd_lib.models import create_model


def test_total_variation_by_hand():
    image = torch.tensor([[0.0, 1.0], [3.0, 7.0]])[None, None]
    assert total_variation(image).item() == pytest.approx((3 + 6) / 2 + (1 + 4) / 2)
    assert total_variation(torch.full((2, 3, 5, 5), 0.3)).item() == 0


def test_diversity_sees_shapes_not_brightness_and_only_within_a_class():
    left, top = torch.zeros(1, 8, 8), torch.zeros(1, 8, 8)
    left[:, :, :4], top[:, :4] = 1.0, 1.0
    same = torch.zeros(2, dtype=torch.long)
    assert diversity_loss(torch.stack([left, 0.3 * left + 0.2]), same).item() == pytest.approx(
        1, abs=5e-3
    )
    assert diversity_loss(torch.stack([left, top]), same).item() == pytest.approx(0, abs=1e-6)
    assert diversity_loss(torch.stack([left, 1 - left]), same).item() == 0  # opposite is not alike
    assert diversity_loss(torch.stack([left, left]), torch.arange(2)).item() == 0


def test_disagreement_is_0_for_equal_and_1_for_opposite_outputs():
    logits = torch.tensor([[2.0, -1.0, 0.5]])
    assert disagreement(logits, logits + 3).item() == pytest.approx(0, abs=1e-6)
    assert disagreement(
        torch.tensor([[60.0, -60.0]]), torch.tensor([[-60.0, 60.0]])
    ).item() == pytest.approx(1, abs=1e-6)
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1])
    m = (p + q) / 2
    expected = ((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2 / math.log(2)
    assert disagreement(p.log()[None], q.log()[None]).item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_logit_distance_forgets_a_constant_of_each_row():
    a, b = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 0.0]])
    assert logit_distance(a, b).item() == pytest.approx(1) and logit_distance(
        a + 5, b - 2
    ).item() == pytest.approx(1)


def test_batch_norm_statistics_by_hand():
    model = nn.Sequential(nn.Identity(), nn.BatchNorm2d(1)).eval()
    x = torch.tensor([1.0, 3.0, 5.0, 7.0]).view(1, 1, 2, 2).requires_grad_()
    norms = BatchNormStatistics(model)
    with norms.watching():
        model(x)
    assert norms.loss.item() == pytest.approx(4 + 4)  # mean 4 against 0; variance 5 against 1
    norms.loss.backward()
    assert x.grad.abs().sum() > 0 and not model[1]._forward_hooks
    with pytest.raises(WorkbenchError, match="no batch-norm statistics"):
        BatchNormStatistics(create_model("vit_mnist_smoke"))


def test_images_that_match_the_statistics_have_no_loss():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(2, momentum=1.0))
    x = torch.randn(64, 2, 8, 8) * torch.tensor([2.0, 0.5]).view(1, 2, 1, 1) + 1
    model.train()(x)
    norms = BatchNormStatistics(model.eval())
    with norms.watching():
        model(x)
    assert norms.loss.item() < 0.01
    with norms.watching():
        model(x * 2)
    assert norms.loss.item() > 1


def test_entropy_of_patches_is_low_for_equal_and_high_for_spread_similarities():
    generator = torch.Generator().manual_seed(0)
    equal = torch.ones(2, 16, 8) + 0.001 * torch.randn(2, 16, 8, generator=generator)
    angles = torch.linspace(0, math.pi, 16)
    spread = torch.stack([angles.cos(), angles.sin()], -1).expand(2, 16, 2)
    low, high = patch_similarity_entropy(equal), patch_similarity_entropy(spread)
    assert (
        low < -1 < 0 < high <= math.log(2) + 1e-4
    )  # the uniform density on [-1, 1] has entropy ln 2
    with pytest.raises(WorkbenchError, match="needs patches"):
        patch_similarity_entropy(torch.ones(1, 2, 4))


def test_patch_similarity_reaches_the_pixels_through_every_block():
    model = create_model("vit_mnist_smoke").eval().requires_grad_(False)
    images = torch.randn(2, 1, 28, 28, requires_grad=True)
    with attention_outputs(model) as outputs:
        model(images)
    assert len(outputs) == 2 and outputs[0].shape[:2] == (2, 50)
    patch_similarity_loss(model, outputs).backward()
    assert images.grad.abs().sum() > 0
    assert not any(m._forward_hooks for m in model.modules())


def four_of_a_class():
    """Features of one class on a line of directions, with falling confidence in class 0."""
    angles = torch.tensor([0.0, 0.2, 0.6, 1.2])
    features = torch.stack([angles.cos(), angles.sin()], 1).requires_grad_()
    logits = torch.tensor([[5.0, 0.0], [4.0, 0.0], [1.0, 0.0], [0.5, 0.0]])
    return features, logits, torch.zeros(4, dtype=torch.long)


def test_easy_images_are_pushed_and_hard_ones_are_left_where_they_are():
    features, logits, labels = four_of_a_class()
    loss = intra_divergence_loss(features, logits, labels, easy=0.5, margin=0.5)
    # Both easy ones are each other's nearest, 0.2 apart in angle.
    assert loss.item() == pytest.approx(0.5 - (1 - math.cos(0.2)), rel=1e-4)
    loss.backward()
    assert (features.grad[:2].abs().sum(1) > 0).all() and (features.grad[2:] == 0).all()


def test_a_step_against_intra_divergence_widens_the_easy_ones():
    features, logits, labels = four_of_a_class()
    before = 1 - torch.cosine_similarity(features[0], features[1], dim=0)
    intra_divergence_loss(features, logits, labels).backward()
    moved = features.detach() - 0.1 * features.grad
    assert 1 - torch.cosine_similarity(moved[0], moved[1], dim=0) > before


def test_intra_divergence_without_pairs_or_with_wide_ones_is_0():
    features, logits, labels = four_of_a_class()
    assert intra_divergence_loss(features, torch.eye(4), torch.arange(4)).item() == 0
    assert intra_divergence_loss(features, logits, labels, margin=0.0).item() == 0
    assert intra_divergence_loss(features, logits, labels, easy=0.0).item() == 0
