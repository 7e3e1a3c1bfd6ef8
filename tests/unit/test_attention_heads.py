"""Ablation of heads, and what patches' features say, against models and numbers whose answer is known."""

import copy

import families
import pytest
import timm
import torch
import transformers
from eager import sharpen
from torch import nn

from dfkd_lib import attention, plots
from dfkd_lib.core import WorkbenchError
from dfkd_lib.models import create_model

TINY = {**families.TINY, "num_classes": 5}
PROJECTIONS = {
    "ViT": "blocks.{}.attn.proj",
    "EVA-02": "blocks.{}.attn.proj",
    "Swin": "layers.{}.blocks.0.attn.proj",
}


def classifiers():
    """Name, model, two images, and the name of the projection behind a block's attention."""
    for name, projection in PROJECTIONS.items():
        yield name, *families.in_timm(name), projection
    for way in ("sdpa", "eager"):
        config = transformers.ViTConfig(**families.SIZES, num_labels=5, attn_implementation=way)
        model = sharpen(transformers.ViTForImageClassification(config))
        linear = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
        first = (name for name in linear if "attention" in name and "0" in name)
        name = next(name for name in first if "output" in name or "o_proj" in name)
        yield way, model, torch.randn(2, 3, 32, 32), name.replace("0", "{}", 1)


CLASSIFIERS = list(classifiers())


def ignoring(model, projection, block, head):
    """The model with a projection that ignores a head of a block, or all of its heads."""
    other = copy.deepcopy(model)
    weight = other.get_submodule(projection.format(block)).weight
    width = weight.shape[1] // attention.attention_sites(model)[block].heads
    own = slice(None) if head is None else slice(head * width, (head + 1) * width)
    with torch.no_grad():
        weight[:, own] = 0
    return other


def logits(model, images):
    output = model(images)
    return getattr(output, "logits", output)


@torch.no_grad()
@pytest.mark.parametrize("name, model, images, projection", CLASSIFIERS)
def test_accuracies_are_those_of_a_model_whose_projection_ignores_the_head(
    name, model, images, projection
):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(40, *images.shape[1:], generator=generator)
    labels = torch.arange(40) % 3
    found = attention.head_ablation(model, attention.in_batches(images, labels, 25))
    assert found.images == 40

    def accuracy(one):
        return pytest.approx((logits(one, images).argmax(1) == labels).float().mean().item())

    assert found.whole == accuracy(model)
    for block in range(2):
        heads = attention.attention_sites(model)[block].heads
        assert found.blocks[block].item() == accuracy(ignoring(model, projection, block, None))
        for head in range(heads):
            other = ignoring(model, projection, block, head)
            assert found.heads[block, head].item() == accuracy(other), (block, head)
        assert found.heads[block, heads:].isnan().all()


def test_only_the_head_that_carries_the_answer_is_missed():
    torch.manual_seed(0)
    model = create_model("vit_mnist_smoke", num_classes=4).eval()
    # The class token reads nothing but the second head of the first block.
    width = model.blocks[0].attn.head_dim
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
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
    one = torch.tensor([[1.0, 0.0]])
    found = attention.nearest_patches(torch.cat([one, one + 0.1]), one)
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
@pytest.mark.parametrize("name, model, images, projection", CLASSIFIERS)
@pytest.mark.parametrize("head", [1, None])
def test_without_attention_is_a_model_whose_projection_ignores_it(
    name, model, images, projection, head
):
    """Captured within, the weights of what is gone are 0, and those of the next block are that model's."""
    other = ignoring(model, projection, 0, head)

    def looked(one, token):
        with attention.capture_attention(one, (0, 1), token) as maps:
            return logits(one, images), maps

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
    model = sharpen(create_model("vit_mnist_smoke", num_classes=4))
    images = torch.rand(2, 1, 28, 28)
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
