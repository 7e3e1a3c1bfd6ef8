"""Probes and maps against a plain softmax(QKᵀ/√d), with fused attention left on."""

import pytest
import timm
import torch

from dfkd_lib import attention
from dfkd_lib.core import WorkbenchError
from dfkd_lib.models import create_model


def eager_maps(model, images):
    """Every block's attention by timm's own unfused path: softmax(QKᵀ/√d) read off a dropout that follows it."""
    maps, handles = [], []
    for block in model.blocks:
        block.attn.fused_attn = False
        handles.append(
            block.attn.attn_drop.register_forward_hook(
                lambda _, inputs, __: maps.append(inputs[0].detach())
            )
        )
    model(images)
    for block, handle in zip(model.blocks, handles, strict=True):
        block.attn.fused_attn = True
        handle.remove()
    return maps


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    model = create_model("vit_mnist_smoke").eval()
    for p in model.parameters():
        p.data.add_(torch.randn_like(p) * 0.2)  # sharp attention: the test must tell tokens apart
    return model


IMAGES = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("block", [0, 1, -1])
def test_maps_and_probes_equal_eager_attention(vit, block):
    expected = eager_maps(vit, IMAGES)[block]
    maps = attention.attention_map(vit, IMAGES, block)
    assert maps.shape == (3, 2, 50, 50) and (maps - expected).abs().max() < 1e-5
    assert expected.std() > 1e-3
    probe = attention.attention_probe(vit, IMAGES, block)
    assert probe.shape == (3, 49) and (probe - expected.mean(1)[:, 0, 1:]).abs().max() < 1e-5
    head = attention.attention_probe(vit, IMAGES, block, head=1)
    assert (head - expected[:, 1, 0, 1:]).abs().max() < 1e-5
    assert (probe.sum(1) <= 1).all() and torch.allclose(
        probe.sum(1), 1 - maps.mean(1)[:, 0, 0], atol=1e-5
    )


@pytest.mark.parametrize(
    "name, options",
    [
        ("vit_tiny_patch16_224", {"img_size": 64}),
        ("deit_tiny_distilled_patch16_224", {"img_size": 64}),
        ("vit_small_patch16_18x2_224", {"img_size": 32, "qk_norm": True}),
    ],
)
def test_timm_families(name, options):
    model = timm.create_model(
        name.replace("vit_small_patch16_18x2_224", "vit_tiny_patch16_224"), **options
    ).eval()
    images = torch.randn(2, 3, options["img_size"], options["img_size"])
    expected = eager_maps(model, images)
    prefix = model.num_prefix_tokens
    for block in (0, -1):
        probe = attention.attention_probe(model, images, block)
        assert (probe - expected[block].mean(1)[:, 0, prefix:]).abs().max() < 1e-5


def test_tnt():
    model = create_model("titn", img_size=32).eval()
    images = torch.randn(1, 3, 32, 32)
    probe = attention.attention_probe(model, images)
    assert probe.shape == (1, 16) and 0 < probe.sum() <= 1


def test_the_model_is_left_as_it_was_found(vit):
    before = [len(m._forward_hooks) for m in vit.modules()]
    with torch.inference_mode():
        plain = vit(IMAGES)
        logits, _ = attention.logits_and_probe(vit, IMAGES)
        attention.attention_probe(vit, IMAGES, 0)
        assert torch.equal(plain, logits) and torch.equal(plain, vit(IMAGES))
    assert before == [len(m._forward_hooks) for m in vit.modules()]
    assert all(block.attn.fused_attn for block in vit.blocks)


def test_a_probe_has_gradients_in_images_and_weights(vit):
    images = IMAGES.clone().requires_grad_()
    attention.attention_probe(vit, images)[:, 3].sum().backward()
    assert images.grad.abs().sum() > 0 and vit.blocks[0].attn.qkv.weight.grad.abs().sum() > 0
    vit.zero_grad()


def test_a_probe_stops_at_its_block(vit):
    ran = []
    handle = vit.head.register_forward_hook(lambda *_: ran.append(1))
    attention.attention_probe(vit, IMAGES)
    handle.remove()
    assert not ran


def test_class_probes_are_class_means_however_batched(vit):
    images = (torch.rand(20, 1, 28, 28) * 255).to(torch.uint8)
    labels = torch.arange(20) % 3
    probes = attention.attention_probe(vit, images.float() / 127.5 - 1).detach()
    expected = torch.stack([probes[labels == k].mean(0) for k in range(3)])
    for batch_size in (1, 7, 256):
        found = attention.class_attention_probe(vit, images, labels, 3, batch_size=batch_size)
        assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda m: attention.attention_probe(m, IMAGES, block=2), "no such block"),
        (lambda m: attention.attention_probe(m, IMAGES, head=2), "no such head"),
        (lambda m: attention.attention_map(m, IMAGES, block=-3), "no such block"),
        (
            lambda m: attention.class_attention_probe(m, IMAGES, torch.tensor([0, 0, 1]), 3),
            "every class",
        ),
        (
            lambda m: attention.attention_probe(torch.nn.Linear(2, 2), IMAGES),
            "no attention|no class token",
        ),
        (
            lambda m: attention.attention_probe(create_model("cnn_small"), IMAGES),
            "no attention|no class token",
        ),
    ],
)
def test_bad_requests(vit, call, words):
    with pytest.raises(WorkbenchError, match=words):
        call(vit)


def test_a_model_without_class_token_says_so():
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, class_token=False, global_pool="avg"
    ).eval()
    with pytest.raises(WorkbenchError, match="no class token"):
        attention.attention_probe(model, torch.zeros(1, 3, 32, 32))
    assert attention.attention_map(model, torch.zeros(1, 3, 32, 32)).shape == (1, 3, 4, 4)
