"""Probes and maps against a plain softmax(QKᵀ/√d), with fused attention left on."""

import pytest
import timm
import torch
from eager import eager, sharpen

from dfkd_lib import attention
from dfkd_lib.core import WorkbenchError
from dfkd_lib.models import create_model


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    return sharpen(create_model("vit_mnist_smoke"), 0.2)


IMAGES = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("block", [0, 1, -1])
def test_maps_and_probes_equal_eager_attention(vit, block):
    expected = eager(vit, IMAGES)[1][block]
    maps = attention.attention_map(vit, IMAGES, block)
    assert maps.shape == (3, 2, 50, 50) and (maps - expected).abs().max() < 1e-5
    assert expected.std() > 1e-3
    probe = attention.attention_probe(vit, IMAGES, block)
    assert probe.shape == (3, 49) and (probe - expected.mean(1)[:, 0, 1:]).abs().max() < 1e-5
    head = attention.attention_probe(vit, IMAGES, block, head=1)
    assert (head - expected[:, 1, 0, 1:]).abs().max() < 1e-5
    assert (probe.sum(1) <= 1).all()
    assert torch.allclose(probe.sum(1), 1 - maps.mean(1)[:, 0, 0], atol=1e-5)


def test_checkpointed_blocks_are_looked_into_and_keep_their_gradients(vit):
    found = []
    for checkpointed in (False, True):
        vit.set_grad_checkpointing(checkpointed)
        images = IMAGES.clone().requires_grad_()
        attention.attention_probes(vit, images)[..., 0].sum().backward()
        found.append(images.grad)
    assert vit.grad_checkpointing
    vit.set_grad_checkpointing(False)
    assert torch.allclose(*found, atol=1e-7) and found[0].abs().max() > 1e-6


def test_the_model_is_left_as_it_was_found(vit):
    before = [len(m._forward_hooks) for m in vit.modules()]
    with torch.inference_mode():
        plain = vit(IMAGES)
        logits, _ = attention.logits_and_probe(vit, IMAGES)
        attention.attention_probe(vit, IMAGES, 0)
        assert torch.equal(plain, logits) and torch.equal(plain, vit(IMAGES))
    assert before == [len(m._forward_hooks) for m in vit.modules()]
    assert all(block.attn.fused_attn for block in vit.blocks)


def test_a_probe_stops_at_its_block(vit):
    ran = []
    handle = vit.head.register_forward_hook(lambda *_: ran.append(1))
    attention.attention_probe(vit, IMAGES)
    handle.remove()
    assert not ran


NO_TOKEN = "no attention|no class token"


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda m: attention.attention_probe(m, IMAGES, block=2), "no such block"),
        (lambda m: attention.attention_probe(m, IMAGES, head=2), "no such head"),
        (lambda m: attention.attention_map(m, IMAGES, block=-3), "no such block"),
        (lambda m: attention.attention_probe(torch.nn.Linear(2, 2), IMAGES), NO_TOKEN),
        (lambda m: attention.attention_probe(create_model("cnn_small"), IMAGES), NO_TOKEN),
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
