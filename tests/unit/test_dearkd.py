"""DearKD: its attention can be a convolution, its losses are what they say, and nothing is left out of training."""

import pytest
import torch
import torch.nn.functional as F
from steps import distill_step
from timm.models.convit import GPSA

from dfkd_lib.distill import KDWeights, LiveTeacher
from dfkd_lib.models import create_model
from dfkd_lib.models.cnn import early_channels, logits_and_early_map
from dfkd_lib.models.dearkd import EarlyAligner
from dfkd_lib.training import Batch


@pytest.fixture
def small():
    torch.manual_seed(0)
    student = create_model("dearkd_small")
    teacher = create_model("cnn_small").eval()
    aligner = EarlyAligner(student.embed_dim, early_channels(teacher, 1, 28, 1))
    return student, aligner, teacher


def early_step(student, aligner, teacher, hard=1.0, early=1.0):
    weights = KDWeights(kd=0, patch=0, hard=hard, early=early)
    return distill_step(student, LiveTeacher(teacher, early=True), weights, aligner)


def test_gated_attention_is_a_convolution_when_sharp_and_ungated():
    """9 heads that look at 9 neighbours, values passed on, outputs mixed: a 3x3 convolution with repeated edges."""
    torch.manual_seed(0)
    side, heads, width = 5, 9, 18
    attention = GPSA(width, num_heads=heads, locality_strength=40.0)
    attention.pos_proj.bias.data.zero_()
    attention.pos_proj.weight.data.zero_()
    attention.local_init()
    attention.gating_param.data.fill_(40.0)  # sigmoid = 1: place alone decides
    tokens = torch.randn(2, side * side, width)
    got = attention(tokens).transpose(1, 2).unflatten(2, (side, side))
    # Head h = dx + 3 dy carries its own channels from the neighbour at (dy - 1, dx - 1): one tap of the kernel each.
    kernel = torch.zeros(width, width, 3, 3)
    mixing = attention.proj.weight.detach()
    for head in range(heads):
        channels = slice(head * width // heads, (head + 1) * width // heads)
        # Position scores are 80 (dx, dy, …): 2 · locality_strength.
        dx, dy = (attention.pos_proj.weight[head, :2] / 80).round().long().tolist()
        row, column = dy + 1, dx + 1
        kernel[:, channels, row, column] = mixing[:, channels]
    grid = tokens.transpose(1, 2).unflatten(2, (side, side))
    expected = F.conv2d(F.pad(grid, (1, 1, 1, 1), mode="replicate"), kernel, attention.proj.bias)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_early_heads_start_at_different_neighbours(small):
    scores = small[0].early_blocks[0].attn.pos_proj.weight[:, :2].round()
    assert len({tuple(row) for row in scores.tolist()}) == 9


def test_aligner_meets_the_cnn_map_at_its_own_size(small):
    student, aligner, teacher = small
    images = torch.randn(2, 1, 28, 28)
    logits, early = logits_and_early_map(teacher, images, stage=1)
    assert (
        early.shape == (2, 32, 14, 14)
        and aligner(student.forward_early(images), (14, 14)).shape == early.shape
    )
    torch.testing.assert_close(logits, teacher(images))


def test_aligner_keeps_places():
    """A token at row r, column c answers for that place of the map and no other (1x1 path, no resizing)."""
    aligner = EarlyAligner(4, 3).eval()
    aligner.mix[3].weight.data[:, :, [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = 0
    tokens = torch.zeros(1, 9, 4)
    tokens[0, 5] = 1.0  # row 1, column 2
    change = (aligner(tokens, (3, 3)) - aligner(torch.zeros(1, 9, 4), (3, 3))).abs().sum(1)[0]
    assert change[1, 2] > 0 and change.sum() == change[1, 2]


def test_stage_one_is_its_three_losses_by_hand(small):
    student, aligner, teacher = small
    images, labels = torch.randn(4, 1, 28, 28), torch.tensor([0, 3, 3, 9])
    student.train(), aligner.train()
    losses = early_step(student, aligner, teacher, 2.0, 0.5)(Batch(images, labels, labels), 0.0)
    class_logits, dist_logits = student(images)
    logits, early = logits_and_early_map(teacher, images, 1)
    ce = F.cross_entropy(class_logits, labels)
    hard = F.cross_entropy(dist_logits, logits.argmax(1))
    mse = (aligner(student.forward_early(images), (14, 14)) - early).square().mean()
    expected = {"loss": ce + 2 * hard + 0.5 * mse, "ce": ce, "hard": hard, "early": mse}
    torch.testing.assert_close(losses, expected)


def test_stage_one_reaches_every_parameter_but_the_teachers(small):
    student, aligner, teacher = small
    student.train()
    images, labels = torch.randn(4, 1, 28, 28), torch.arange(4)
    early_step(student, aligner, teacher)(Batch(images, labels, labels), 0.0)["loss"].backward()
    missing = [
        n
        for m in (student, aligner)
        for n, p in m.named_parameters()
        if p.grad is None or p.grad.abs().sum() == 0
    ]
    # A bias of a head's place scores shifts all scores alike, which a softmax does not see.
    assert {n.split(".", 2)[2] for n in missing} <= {"attn.pos_proj.bias"}
    assert all(p.grad is None for p in teacher.parameters())
