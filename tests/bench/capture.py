"""The price of attention: our capture beside a plain forward pass and timm's AttentionExtract.

Both read the same attention off the same weights before they are timed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import timm
import torch
from timm import layers
from timm.utils import AttentionExtract
from torch import Tensor, nn

from bench.comparison import Comparison, Pair, Ways, agree
from dfkd_lib import training
from dfkd_lib.attention import attention_sites, capture_attention, token_layout

TOLERANCE = 1e-4
OURS, MAPS = "probes of all blocks", "whole maps of all blocks"
PLAIN, EXTRACT = "plain fused forward", "timm AttentionExtract, fx"


class Case(NamedTuple):
    """A DeiT (timm's name), the side of its images, how many at once, and for how many seconds to measure."""

    name: str
    side: int
    batch: int
    seconds: float


CASES = (
    Case("deit_tiny_patch16_224", 224, 1, 6),
    Case("deit_tiny_patch16_224", 224, 8, 12),
    Case("deit_small_patch16_224", 448, 1, 16),
    Case("deit_small_patch16_224", 448, 4, 30),
)


@torch.no_grad()
def peaked(model: nn.Module) -> nn.Module:
    """The model with larger queries and keys: as initialised, attention is so even that any two captures would agree."""
    for site in attention_sites(model):
        site.module.qkv.weight.mul_(5)
    return model


def extraction(model: nn.Module, case: Case, **size) -> AttentionExtract:
    """timm's own capture on a copy of a model, which must be made without fused attention."""
    before = layers.use_fused_attn()
    layers.set_fused_attn(False)
    try:
        copied = timm.create_model(case.name, img_size=case.side, **size).eval()
    finally:
        layers.set_fused_attn(before)
    copied.load_state_dict(model.state_dict())
    return AttentionExtract(copied.to(training.device()), method="fx")


def captured(model: nn.Module, images: Tensor) -> Tensor:
    """Ours: class tokens' attention to patches, (blocks, B, heads, N)."""
    with capture_attention(model, None, 0) as found:
        model(images)
    return torch.stack(list(found.values()))[..., token_layout(model).patches]


def mapped(model: nn.Module, images: Tensor) -> Tensor:
    """The same from whole maps."""
    with capture_attention(model, None, None) as found:
        model(images)
    patches = token_layout(model).patches
    return torch.stack([maps[:, :, 0, patches] for maps in found.values()])


def readings(case: Case, **size) -> dict[str, Callable[[Tensor], Tensor]]:
    """Every way to a case's attention by name, on the same random weights; `size` changes timm's model."""
    torch.manual_seed(0)
    plain = peaked(timm.create_model(case.name, img_size=case.side, **size)).eval()
    plain = plain.to(training.device())
    extract, prefix = extraction(plain, case, **size), plain.num_prefix_tokens
    return {
        PLAIN: plain,
        OURS: lambda images: captured(plain, images),
        MAPS: lambda images: mapped(plain, images),
        EXTRACT: lambda images: torch.stack(
            [maps[:, :, 0, prefix:] for maps in extract(images).values()]
        ),
    }


@contextmanager
def ways(case: Case, names: tuple[str, ...], **size) -> Iterator[Ways]:
    """These readings of a case, which find the same attention."""
    device = training.device()
    images = torch.randn(case.batch, 3, case.side, case.side, device=device)
    with torch.inference_mode():
        known = readings(case, **size)
        found = {name: known[name](images[:1]) for name in (OURS, MAPS, EXTRACT)}
        note = agree(found, TOLERANCE, f"{case.name}, {device}")
        yield Ways({name: partial(known[name], images) for name in names}, note)


# The price of our probes is the figure asked for, and small: beside the plain forward pass alone there are more rounds.
COMPARISONS = tuple(
    Comparison(
        "capture",
        f"{case.name.partition('_patch')[0]}/{case.side}, batch {case.batch}, fp32",
        partial(ways, case, (what, peer)),
        (Pair(what, peer, asked),),
        seconds=case.seconds,
        least=5,
    )
    for case in CASES
    for what, peer, asked in (
        (OURS, PLAIN, "price <= 5 %: >= 0.95"),
        (OURS, EXTRACT, ""),
        (MAPS, EXTRACT, ">= 1"),
    )
)
