"""The short last block gives what the whole one gives: outputs, probes and gradients, in every plain ViT and DeiT."""

import pytest
import torch
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer

from dfkd_lib.attention import attention_probe, logits_and_probe, outputs_and_probe
from dfkd_lib.attention.prefix import is_plain
from dfkd_lib.core import WorkbenchError
from dfkd_lib.models import create_model

SMALL = {"img_size": 28, "patch_size": 7, "in_chans": 1, "num_classes": 10}
SMALL |= {"embed_dim": 32, "depth": 3, "num_heads": 2}


def models():
    torch.manual_seed(0)
    yield "library's", create_model("vit_mnist_smoke")
    yield "distilled", create_model("deit_small_28")
    for name, more in (
        ("plain", {}),
        ("qk norm, layer scale", {"qk_norm": True, "init_values": 0.5}),
        ("no bias, no_embed_class", {"qkv_bias": False, "no_embed_class": True}),
        ("registers", {"reg_tokens": 2}),
        ("scale norms", {"scale_attn_norm": True, "scale_mlp_norm": True}),
        ("one block", {"depth": 1}),
    ):
        yield name, VisionTransformer(**{**SMALL, **more})


def flat(output):
    return torch.cat(output) if isinstance(output, tuple) else output


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name, model", models(), ids=lambda v: v if isinstance(v, str) else "")
def test_outputs_probe_and_gradients_are_those_of_the_whole_block(name, model, training):
    model.train(training)
    images = torch.randn(5, 1, 28, 28)
    found = []
    for of in (logits_and_probe, outputs_and_probe):
        model.zero_grad()
        output, probe = of(model, images)
        (flat(output).square().sum() + (probe * torch.arange(probe.shape[1])).sum()).backward()
        found.append((flat(output), probe, [p.grad.clone() for p in model.parameters()]))
    assert is_plain(model)
    output, none = outputs_and_probe(model, images, probe=False)
    assert none is None
    torch.testing.assert_close(flat(output), found[0][0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1][0], found[0][0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1][1], found[0][1], atol=1e-6, rtol=1e-5)
    for mine, whole in zip(found[1][2], found[0][2], strict=True):
        torch.testing.assert_close(mine, whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["vit_mnist_smoke", "deit_small_28", "dearkd_small"])
def test_probes_of_chosen_blocks_are_those_of_each_alone(name):
    torch.manual_seed(0)
    model, images = create_model(name).eval(), torch.randn(3, 1, 28, 28)
    output, probes = outputs_and_probe(model, images, blocks=(-1, 0, 1))
    torch.testing.assert_close(output, model(images))
    each = [attention_probe(model, images, block) for block in (-1, 0, 1)]
    torch.testing.assert_close(probes, torch.stack(each, 1))
    torch.testing.assert_close(outputs_and_probe(model, images, blocks=(0,))[1], each[1])


@pytest.mark.parametrize(
    "make",
    [
        lambda: VisionTransformer(**SMALL, global_pool="avg"),
        lambda: VisionTransformer(**SMALL, global_pool="map"),
        lambda: create_model("titn_small"),
        lambda: create_model("cnn_small"),
        lambda: create_model("dearkd_small"),
        lambda: create_model("dearkd_small", distilled=False),
    ],
)
def test_other_models_go_their_own_way(make):
    torch.manual_seed(0)
    model, images = make().eval(), torch.randn(2, 1, 28, 28)
    assert not is_plain(model)
    torch.testing.assert_close(outputs_and_probe(model, images, probe=False)[0], model(images))


@pytest.mark.parametrize("patches, tokens", [(None, 50), (torch.arange(6).expand(2, -1), 7)])
def test_who_looks_into_the_last_block_sees_all_of_it(patches, tokens):
    model, images, seen = create_model("vit_mnist_smoke").eval(), torch.randn(2, 1, 28, 28), []
    alone = outputs_and_probe(model, images, patches=patches)[0]
    for part in (model.blocks[-1], model.blocks[-1].attn):
        handle = part.register_forward_hook(lambda *given: seen.append(given[2].shape))
        torch.testing.assert_close(outputs_and_probe(model, images, patches=patches)[0], alone)
        handle.remove()
    assert seen == [(2, tokens, 16)] * 2 and is_plain(model)


@pytest.mark.parametrize("name, model", models(), ids=lambda v: v if isinstance(v, str) else "")
def test_some_patches_are_computed_as_if_the_others_were_not_there(name, model):
    """timm's own blocks on the tokens that are left; all of them in any order are the whole."""
    model.eval()
    images, count = torch.randn(3, 1, 28, 28), 49 if name == "library's" else 16
    chosen = torch.stack([torch.randperm(count)[:5] for _ in range(3)])
    tokens, first = model._pos_embed(model.patch_embed(images)), model.num_prefix_tokens
    rows = [torch.cat([t[:first], t[first:][c]]) for t, c in zip(tokens, chosen, strict=True)]
    wanted = model.forward_head(model.norm(model.blocks(torch.stack(rows))))
    output, probe = outputs_and_probe(model, images, patches=chosen)
    torch.testing.assert_close(output, wanted, atol=1e-5, rtol=1e-5)
    assert probe.shape == (3, 5)
    every = torch.stack([torch.randperm(count) for _ in range(3)])
    output, probe = outputs_and_probe(model, images, patches=every)
    whole, in_order = outputs_and_probe(model, images)
    torch.testing.assert_close(output, whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(probe, in_order.gather(1, every), atol=1e-6, rtol=1e-5)


def test_some_patches_of_a_vit_with_other_blocks():
    model = VisionTransformer(**SMALL, block_fn=ParallelScalingBlock).eval()
    images, every = torch.randn(2, 1, 28, 28), torch.arange(16).expand(2, -1)
    output, _ = outputs_and_probe(model, images, False, every)
    torch.testing.assert_close(output, model(images))


def test_other_models_refuse_some_patches():
    images, chosen = torch.zeros(1, 1, 28, 28), torch.zeros(1, 2, dtype=torch.long)
    with pytest.raises(WorkbenchError, match="plain vision transformer"):
        outputs_and_probe(create_model("cnn_small"), images, False, chosen)
