"""On a CPU in bf16 attention is two matrix products: the fused kernel's but for rounding."""

import pytest
import torch
import torch.nn.functional as F
from eager import sharpen
from torch.utils._python_dispatch import TorchDispatchMode

from dfkd_lib.attention import AttentionAsProducts, capture_attention, products
from dfkd_lib.models import create_model
from dfkd_lib.training import arithmetic

FUSED = "aten::_scaled_dot_product_flash_attention_for_cpu"


class Kernels(TorchDispatchMode):
    """The names of the kernels that run while it is active."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def call(dtype=torch.bfloat16, keys=17, heads=6, **how):
    random, shapes = torch.Generator().manual_seed(0), [(6, 17), *[(heads, keys)] * 2]
    given = [torch.randn(2, *shape, 8, generator=random).to(dtype) for shape in shapes]
    for each in given:
        each.requires_grad_()
    with Kernels() as seen:
        output = F.scaled_dot_product_attention(*given, **how)
    output.float().square().sum().backward()
    return output, [each.grad for each in given], FUSED in seen.names


EVERY_THIRD = torch.arange(17 * 17).view(17, 17) % 3 > 0
NOWHERE = EVERY_THIRD & (torch.arange(17) != 4)[:, None]  # one query may look at nothing


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"scale": 0.5},
        {"is_causal": True},
        {"is_causal": True, "keys": 9},
        {"keys": 9, "enable_gqa": True, "heads": 3},
        {"attn_mask": EVERY_THIRD},
        {"attn_mask": NOWHERE},
        {"attn_mask": torch.linspace(-1, 1, 17 * 17, dtype=torch.bfloat16).view(17, 17)},
    ],
    ids=["plain", "scale", "causal", "causal, fewer keys", "groups", "mask", "nowhere", "bias"],
)
def test_products_are_the_fused_kernel_but_for_rounding(how):
    exact = {
        key: value.float() if key == "attn_mask" and value.is_floating_point() else value
        for key, value in how.items()
    }
    known, gradients, _ = call(torch.float32, **exact)
    fused, fused_gradients, used = call(**how)
    with AttentionAsProducts():
        found, found_gradients, not_used = call(**how)
    assert (used, not_used) == (True, False) and found.dtype == torch.bfloat16

    def error(given, right):
        return (given.float() - right).abs().max()

    assert error(found, known) < 2 * error(fused, known) + 0.01
    for ours, theirs, right in zip(found_gradients, fused_gradients, gradients, strict=True):
        assert error(ours, right) < 2 * error(theirs, right) + 0.02 * right.abs().max()


def test_other_types_and_large_maps_are_left_to_the_kernel(monkeypatch):
    with AttentionAsProducts():
        assert call(torch.float32)[2]
        monkeypatch.setattr(products, "LARGEST", 2 * 6 * 17 * 17 - 1)
        assert call()[2]


def test_what_torch_refuses_is_refused_in_its_words():
    with AttentionAsProducts(), pytest.raises(RuntimeError, match="is_causal"):
        call(attn_mask=EVERY_THIRD, is_causal=True)


def test_dropout_leaves_out_a_share_of_the_weights():
    torch.manual_seed(0)
    ones = torch.ones(8, 4, 64, 64, dtype=torch.bfloat16)
    with AttentionAsProducts():
        seen = F.scaled_dot_product_attention(ones, ones, ones, dropout_p=0.5).float()
    assert 0.9 < seen.mean() < 1.1 and seen.std() > 0.05


def model_and_images():
    model = sharpen(create_model("vit_cifar_conv_mini", num_classes=10, img_size=32, in_chans=3))
    return model, torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_maps_captured_in_the_arithmetic_of_a_training_are_the_exact_ones_but_for_rounding():
    model, images = model_and_images()
    with torch.no_grad(), capture_attention(model, token=None) as exact:
        model(images)
    for precision, fused in (("fp32", True), ("bf16", False)):
        with Kernels() as seen, torch.no_grad(), arithmetic(precision):
            with capture_attention(model, token=None) as maps:
                model(images)
        assert (FUSED in seen.names) is fused and maps[-1].dtype == torch.float32
        apart = (maps[-1] - exact[-1]).abs()
        assert apart.mean() < 0.1 * (exact[-1] - exact[-1].mean(-1, keepdim=True)).abs().mean()


def test_a_model_with_gradient_checkpointing_trains_as_without():
    model, images = model_and_images()
    found = []
    for on in (False, True):
        model.set_grad_checkpointing(on)
        with arithmetic("bf16"):
            loss = model(images).float().square().sum()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        found.append(torch.cat([each.flatten() for each in gradients]))
    assert F.cosine_similarity(*found, dim=0) > 0.99
