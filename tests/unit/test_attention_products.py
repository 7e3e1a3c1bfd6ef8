"""On a CPU in bf16 attention is two matrix products, whoever asks for it: the same but for rounding."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from dfkd_lib.attention import AttentionAsProducts, capture_attention, logits_and_probe, products
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


def call(dtype=torch.bfloat16, tokens=17, **how):
    random = torch.Generator().manual_seed(0)
    given = [torch.randn(2, 3, tokens, 8, generator=random).to(dtype) for _ in range(3)]
    for each in given:
        each.requires_grad_()
    with Kernels() as seen:
        output = F.scaled_dot_product_attention(*given, **how)
    output.float().square().sum().backward()
    return output, [each.grad for each in given], FUSED in seen.names


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"scale": 0.5},
        {"is_causal": True},
        {"attn_mask": torch.arange(17 * 17).view(17, 17) % 3 > 0},
        {"attn_mask": torch.linspace(-1, 1, 17 * 17, dtype=torch.bfloat16).view(17, 17)},
    ],
    ids=["plain", "scale", "causal", "mask", "bias"],
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
        monkeypatch.setattr(products, "LARGEST", 2 * 3 * 17 * 17 - 1)
        assert call()[2]


def test_a_training_in_bf16_computes_products_whatever_the_model_and_probes_are_seen():
    model = create_model("vit_cifar_conv_mini", num_classes=10, img_size=32, in_chans=3).eval()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), capture_attention(model, token=None) as exact:
        model(images)
    for precision, fused in (("fp32", True), ("bf16", False)):
        with Kernels() as seen, torch.no_grad(), arithmetic(precision):
            with capture_attention(model, token=None) as maps:
                model(images)
        assert (FUSED in seen.names) is fused
        torch.testing.assert_close(maps[-1], exact[-1], atol=5e-3, rtol=0.1)
        assert maps[-1].dtype == torch.float32


def test_the_class_tokens_probe_is_the_row_of_the_map_as_before():
    model = create_model("vit_mnist_smoke").eval()
    images = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        known = logits_and_probe(model, images)[1]
        with arithmetic("bf16"):
            found = logits_and_probe(model, images)[1]
    torch.testing.assert_close(found, known, atol=5e-3, rtol=0.1)
