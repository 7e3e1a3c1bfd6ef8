"""DearKD: its attention can be a convolution, its losses are what they say, and nothing is left out of training."""

import pytest
import torch
import torch.nn.functional as F
from steps import distill_step
from timm.models.convit import GPSA

from dfkd_lib import attention, presets
from dfkd_lib.distill import KDWeights, LiveTeacher, early_tokens
from dfkd_lib.distill.early import ARMS
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


SIZES = {("quick", "mnist"): (1, 28), ("quick", "cifar10"): (3, 32), ("paper", "cifar10"): (3, 32)}
TOKEN = {"dist_token", "head_dist.weight", "head_dist.bias"}
# (an arm, its neighbour) -> what the neighbour has besides.
NEIGHBOURS = {
    ("plain", "DeiT"): "token",
    ("plain", "early features"): "",
    ("plain", "convolutional attention"): "attention",
    ("convolutional attention", "DearKD"): "token",
    ("DeiT", "DearKD"): "attention",
    ("DearKD, stage 1 alone", "DearKD"): "",
}


def arm_model(name, preset, data):
    """The model of an arm of table B."""
    architecture, overrides = presets.of_preset("early", preset, data).architecture(ARMS[name])
    channels, side = SIZES[preset, data]
    return create_model(architecture, img_size=side, in_chans=channels, **overrides)


def parts(model):
    """{a parameter's name, blocks counted throughout: its shape}, and how many blocks are convolutional."""
    count, found = len(getattr(model, "early_blocks", ())), {}
    for name, value in model.named_parameters():
        if name.startswith("blocks."):
            _, place, rest = name.split(".", 2)
            name = f"blocks.{int(place) + count}.{rest}"
        found[name.removeprefix("early_")] = tuple(value.shape)
    return found, count


@pytest.mark.parametrize("preset, data", SIZES)
@pytest.mark.parametrize("one, other", NEIGHBOURS)
def test_models_of_neighbouring_arms_differ_in_what_their_name_says(one, other, preset, data):
    models = [arm_model(name, preset, data) for name in (one, other)]
    (before, none), (after, count) = map(parts, models)
    what = NEIGHBOURS[one, other]
    changed = before.keys() ^ after.keys()
    if what == "attention":  # of the first half of the blocks alone
        assert count and not none
        early = {
            name for name in before if name.startswith(tuple(f"blocks.{i}." for i in range(count)))
        }
        assert changed and all(".attn." in name for name in changed)
        assert changed & before.keys() <= early
    else:
        assert changed == (TOKEN if what == "token" else set()) and count == none
    # A token has a place among the embeddings where it is in the sequence from the first block on.
    shapes = {name for name in before.keys() & after.keys() if before[name] != after[name]}
    assert {name for name in shapes if ".attn." not in name} <= {"pos_embed"}
    norms = [
        {m.eps for m in model.modules() if isinstance(m, torch.nn.LayerNorm)} for model in models
    ]
    assert norms[0] == norms[1]


@pytest.mark.parametrize("preset, data", SIZES)
@pytest.mark.parametrize("name", ARMS)
def test_an_arm_has_a_second_head_where_it_learns_the_cnns_label(name, preset, data):
    model, (channels, side) = arm_model(name, preset, data), SIZES[preset, data]
    two, images = ARMS[name].hard, torch.zeros(2, channels, side, side)
    assert isinstance(model.train()(images), tuple) == two
    layout = attention.token_layout(model)
    assert (layout.prefix, layout.distillation) == ((2, 1) if two else (1, None))
    assert model.eval()(images).shape == (2, 10)


def aligned_blocks(model, images):
    """(blocks in front of the tokens that early features align, all blocks)."""
    seen = []
    with early_tokens(model) as found, torch.no_grad():
        for block in [*getattr(model, "early_blocks", ()), *model.blocks]:
            block.register_forward_hook(lambda *given: seen.append(len(found)))
        model(images)
    return seen.index(1) + 1, len(seen)


@pytest.mark.parametrize("preset, data", SIZES)
def test_early_features_are_aligned_behind_half_of_the_blocks_in_every_arm(preset, data):
    channels, side = SIZES[preset, data]
    for name in ARMS:
        model = arm_model(name, preset, data)
        early, whole = aligned_blocks(model, torch.zeros(1, channels, side, side))
        assert 2 * early == whole, name
