"""Ablation of heads, and what patches' features say, against models and numbers whose answer is known."""

import copy

import pytest
import timm
import torch
import transformers
from torch import nn

from dfkd_lib import attention, plots
from dfkd_lib.core import WorkbenchError
from dfkd_lib.models import create_model

TINY = {"embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5}


def sharpened(model):
    """A model in evaluation mode whose attention matters for its output."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model.eval()


def families():
    torch.manual_seed(0)
    yield (
        "ViT",
        timm.create_model("vit_tiny_patch16_224", img_size=64, **TINY),
        "blocks.{}.attn.proj",
        3,
    )
    yield (
        "EVA-02",
        timm.create_model("eva02_tiny_patch14_224", img_size=56, **TINY),
        "blocks.{}.attn.proj",
        3,
    )
    tiny = {
        "embed_dim": 24,
        "depths": (1, 1),
        "num_heads": (2, 4),
        "num_classes": 5,
        "window_size": 7,
    }
    swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=56, **tiny)
    yield "Swin", swin, "layers.{}.blocks.0.attn.proj", (2, 4)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_labels": 5}
    config = transformers.ViTConfig(**sizes, intermediate_size=64, image_size=32, patch_size=8)
    for way in ("sdpa", "eager"):
        config._attn_implementation = way
        made = transformers.ViTForImageClassification(config)
        found = [
            n for n, m in made.named_modules() if isinstance(m, nn.Linear) and "attention" in n
        ]
        name = next(n for n in found if "0" in n and ("output" in n or "o_proj" in n))
        yield f"transformers, {way}", made, name.replace("0", "{}", 1), 4


@pytest.mark.parametrize("name, model, projection, heads", list(families()))
def test_accuracies_are_those_of_a_model_whose_projection_ignores_the_head(
    name, model, projection, heads
):
    model = sharpened(model)
    side = getattr(getattr(model, "config", None), "image_size", None) or 64
    side = 56 if name in ("EVA-02", "Swin") else side
    images = torch.randn(40, 3, side, side, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(40) % 5
    found = attention.head_ablation(model, attention.in_batches(images, labels, 25))
    assert found.images == 40

    def accuracy(one):
        with torch.no_grad():
            output = one(images)
        return (getattr(output, "logits", output).argmax(1) == labels).float().mean().item()

    assert found.whole == pytest.approx(accuracy(model))
    for block in range(2):
        n = heads[block] if isinstance(heads, tuple) else heads
        for head in (*range(n), None):
            other = copy.deepcopy(model)
            weight = other.get_submodule(projection.format(block)).weight
            width = weight.shape[1] // n
            with torch.no_grad():
                weight[
                    :, slice(None) if head is None else slice(head * width, (head + 1) * width)
                ] = 0
            got = found.blocks[block] if head is None else found.heads[block, head]
            assert got.item() == pytest.approx(accuracy(other), abs=1e-6), (block, head)
        assert found.heads[block, n:].isnan().all()


def test_only_the_head_that_carries_the_answer_is_missed():
    torch.manual_seed(0)
    model = sharpened(create_model("vit_mnist_smoke", num_classes=4))
    # The class token reads nothing but the second head of the first block.
    width = model.blocks[0].attn.head_dim
    with torch.no_grad():
        for i, block in enumerate(model.blocks):
            for layer in (block.attn.proj, block.mlp.fc2):
                layer.bias.zero_()
                kept = layer.weight[:, width : 2 * width].clone()
                layer.weight.zero_()
                if i == 0 and layer is block.attn.proj:
                    layer.weight[:, width : 2 * width] = kept
    images = torch.randn(32, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        labels = model(images).argmax(1)
    assert len(labels.unique()) > 1
    found = attention.head_ablation(model, [(images, labels)])
    assert found.whole == 1 and found.blocks[1] == 1
    assert found.heads[0, 0] == 1 and found.heads[1].tolist() == [1, 1]
    # Without it all images look the same, so that all get one class.
    assert found.heads[0, 1] == found.blocks[0]
    assert 32 * found.blocks[0].item() in labels.bincount().tolist()


def test_the_model_is_left_as_it_was_and_what_has_no_accuracy_is_refused():
    model = create_model("vit_mnist_smoke").eval()
    images = torch.randn(6, 1, 28, 28)
    with torch.no_grad():
        before = model(images)
        attention.head_ablation(model, [(images, torch.zeros(6, dtype=torch.long))])
        assert torch.equal(model(images), before)
    assert not model.blocks[0]._forward_pre_hooks
    with pytest.raises(WorkbenchError, match="no image"):
        attention.head_ablation(model, [])
    model.classifies = False
    with pytest.raises(WorkbenchError, match="no class to explain"):
        attention.head_ablation(model, [(images, torch.zeros(6, dtype=torch.long))])


def test_features_are_the_blocks_own():
    torch.manual_seed(0)
    model = timm.create_model("vit_small_patch14_reg4_dinov2", img_size=56, **TINY).eval()
    images = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        last = model.forward_features(images)[:, 5:]
    found = attention.patch_features(model, images)
    torch.testing.assert_close(model.norm(found).detach(), last)
    assert attention.patch_features(model, images, 0).shape == (2, 16, 48)
    swin = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=56, embed_dim=24, depths=(1, 1), num_heads=(2, 4)
    )
    with pytest.raises(WorkbenchError, match="no sequence of tokens"):
        attention.patch_features(swin.eval(), images)


def test_components_are_those_of_points_made_from_known_axes():
    torch.manual_seed(0)
    axes = torch.linalg.qr(torch.randn(8, 8))[0][:, :3]
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    scores = torch.randn(60, 3)
    scores = torch.linalg.qr(scores - scores.mean(0))[0] * torch.tensor([5.0, 2.0, 1.0])
    features = (scores @ axes.T + 7).view(3, 20, 8)  # of three images
    found = attention.patch_components(features)
    low, high = scores.amin(0), scores.amax(0)
    torch.testing.assert_close(
        found.values.view(60, 3), (scores - low) / (high - low), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(found.shares, torch.tensor([25.0, 4.0, 1.0]) / 30)
    # One basis for all images: the same patch has the same colour wherever it is.
    again = attention.patch_components(torch.cat([features, features[:1]]))
    torch.testing.assert_close(again.values[0], again.values[3])
    with pytest.raises(WorkbenchError, match="too few"):
        attention.patch_components(torch.randn(1, 3, 8))


def test_the_nearest_patch_is_the_one_that_was_moved():
    torch.manual_seed(0)
    features, order = torch.randn(30, 16), torch.randperm(30)
    found = attention.nearest_patches(features, 3 * features[order])  # cosines know no length
    assert torch.equal(found.place, order.argsort()) and found.mutual.all()
    torch.testing.assert_close(found.similarity, torch.ones(30))
    found = attention.nearest_patches(
        torch.tensor([[1.0, 0.0], [0.9, 0.1]]), torch.tensor([[1.0, 0.0]])
    )
    assert found.place.tolist() == [0, 0] and found.mutual.tolist() == [True, False]
    with pytest.raises(WorkbenchError, match="cannot be compared"):
        attention.nearest_patches(features, features[:, :4])


def test_the_figures_say_what_is_lost_and_which_patches_belong_together():
    heads = torch.tensor([[0.9, 0.5], [0.8, torch.nan]])
    found = attention.HeadAblation(0.9, heads, torch.tensor([0.4, 0.8]), 10)
    texts = [t.get_text() for t in plots.head_ablation(found).axes[0].texts]
    assert texts == ["0.0", "40.0", "50.0", "10.0", "", "10.0"]
    near = attention.nearest_patches(torch.eye(4), torch.eye(4)[[1, 0, 2, 3]])
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    left, right = plots.nearest_patches(*images, near, [0, 3], (2, 2)).axes
    assert [t.get_position() for t in left.texts] == [(1.5, 1.5), (5.5, 5.5)]
    assert [t.get_position() for t in right.texts] == [(5.5, 1.5), (5.5, 5.5)]


@torch.no_grad()
@pytest.mark.parametrize("name, model, projection, heads", list(families()))
@pytest.mark.parametrize("head", [1, None])
def test_without_attention_is_a_model_whose_projection_ignores_it(
    name, model, projection, heads, head
):
    """Captured within, the weights of what is gone are 0, and those of the next block are that model's."""
    model, n = sharpened(model), heads[0] if isinstance(heads, tuple) else heads
    side = getattr(getattr(model, "config", None), "image_size", None) or 64
    side = 56 if name in ("EVA-02", "Swin") else side
    images, other = torch.randn(2, 3, side, side), copy.deepcopy(model)
    weight = other.get_submodule(projection.format(0)).weight
    width = weight.shape[1] // n
    weight[:, slice(None) if head is None else slice(head * width, (head + 1) * width)] = 0

    def looked(one, token):
        with attention.capture_attention(one, None, token) as maps:
            output = one(images)
        return getattr(output, "logits", output), maps

    plain, _ = looked(model, None)
    for token in (None,) if name == "Swin" else (None, 0):  # windows have no class token
        wanted, known = looked(other, token)
        with attention.without_attention(model, 0, head):
            found, maps = looked(model, token)
        apart = (found - wanted).abs().max()
        assert apart < 1e-4 and (found - plain).abs().max() > 10 * apart
        assert not maps[0][:, slice(None) if head is None else head].any()
        assert maps[0][:, 0].any() == (head is not None)
        assert torch.allclose(maps[1], known[1], atol=1e-4)
    assert torch.equal(looked(model, None)[0], plain)


def test_explanations_follow_a_model_without_attention():
    """Rollout multiplies the halves of the residual there; relevance is that of a model whose projection ignores it."""
    torch.manual_seed(0)
    model, images = (
        sharpened(create_model("vit_mnist_smoke", num_classes=4)),
        torch.rand(2, 1, 28, 28),
    )
    other, last = copy.deepcopy(model), len(model.blocks) - 1
    with torch.no_grad():
        other.blocks[last].attn.proj.weight.zero_()
    with attention.without_attention(model, last):
        found = attention.attention_rollout(model, images)
        graded = attention.gradient_attention(model, images)
    with attention.capture_attention(model, range(last), None) as maps:
        model(images)
    rolled = kept = torch.eye(maps[0].shape[-1])
    for block in range(last):
        rolled = (maps[block].mean(1) + kept) / 2 @ rolled
    assert torch.allclose(found, rolled[:, 0, 1:] / 2, atol=1e-6)
    assert torch.allclose(graded, attention.gradient_attention(other, images), atol=1e-6)
    heads = model.blocks[0].attn.num_heads
    with pytest.raises(WorkbenchError, match="no such head"):
        with attention.without_attention(model, 0, heads):
            pass
