"""Attention by timm's own unfused path, to compare what is captured with, and models whose attention is far from even."""

import torch
from torch import nn

from dfkd_lib.attention import attention_sites


def sharpen(model: nn.Module, least: float = 0.05) -> nn.Module:
    """Weights that make attention far from even: a test that cannot tell tokens apart proves nothing."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = parameter.std().nan_to_num(0.1).clamp(min=least)
            parameter.add_(torch.randn_like(parameter) * spread)
    return model.eval()


def fused(model: nn.Module, on: bool) -> None:
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = on


def eager(model: nn.Module, images: torch.Tensor, build_graph: bool = False) -> tuple:
    """The model's output, and every block's softmax(QKᵀ/√d), read where the dropout behind it takes it in."""
    maps = []
    fused(model, False)
    handles = [
        site.module.attn_drop.register_forward_hook(lambda _, inputs, __: maps.append(inputs[0]))
        for site in attention_sites(model)
    ]
    with torch.set_grad_enabled(build_graph):
        output = model(images.clone().requires_grad_(build_graph))
    for handle in handles:
        handle.remove()
    fused(model, True)
    return output, maps
