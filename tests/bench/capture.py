"""The price of attention: our capture against timm's AttentionExtract and transformers' eager attention.

All read the same attention off the same weights before they are timed.
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
from transformers import ViTConfig, ViTModel

from bench.comparison import Comparison, Pair, Ways, agree
from dfkd_lib import training
from dfkd_lib.attention import attention_sites, capture_attention, token_layout

TOLERANCE = 1e-4
OURS, PLAIN, EXTRACT = "probes of all blocks", "plain fused forward", "timm AttentionExtract, fx"
HUB_OURS, EAGER = "probes of all blocks, transformers' ViT", "transformers, eager attention"
QUERIES_KEYS = ("qkv.weight", "query.weight", "key.weight", "q_proj.weight", "k_proj.weight")


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
        for name, weight in site.module.named_parameters():
            if any(part in name for part in QUERIES_KEYS):
                weight.mul_(5)
    return model


def transformers_vit(attention: str, like: nn.Module) -> ViTModel:
    """transformers' ViT of a timm model's size."""
    blocks, patches = like.blocks, like.patch_embed
    config = ViTConfig(
        hidden_size=like.embed_dim,
        num_hidden_layers=len(blocks),
        image_size=patches.img_size[0],
        num_attention_heads=blocks[0].attn.num_heads,
        intermediate_size=blocks[0].mlp.fc1.out_features,
        patch_size=patches.patch_size[0],
        attn_implementation=attention,
    )
    return ViTModel(config, add_pooling_layer=False).eval()


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


def readings(case: Case, **size) -> dict[str, Callable[[Tensor], Tensor]]:
    """Every way to a case's attention by name, on the same random weights; `size` changes timm's model."""
    torch.manual_seed(0)
    device = training.device()
    plain = peaked(timm.create_model(case.name, img_size=case.side, **size)).eval().to(device)
    extract, prefix = extraction(plain, case, **size), plain.num_prefix_tokens
    sdpa = peaked(transformers_vit("sdpa", plain)).to(device)
    eager = transformers_vit("eager", plain).to(device)
    eager.load_state_dict(sdpa.state_dict())
    return {
        PLAIN: plain,
        OURS: lambda images: captured(plain, images),
        EXTRACT: lambda images: torch.stack(
            [maps[:, :, 0, prefix:] for maps in extract(images).values()]
        ),
        HUB_OURS: lambda images: captured(sdpa, images),
        EAGER: lambda images: torch.stack(eager(images, output_attentions=True).attentions)[
            :, :, :, 0, 1:
        ],
    }


@contextmanager
def ways(case: Case, names: tuple[str, ...], **size) -> Iterator[Ways]:
    """These readings of a case, which find the same attention."""
    device = training.device()
    images = torch.randn(case.batch, 3, case.side, case.side, device=device)
    with torch.inference_mode():
        known = readings(case, **size)
        found = {name: known[name](images[:1]) for name in (OURS, EXTRACT, HUB_OURS, EAGER)}
        notes = [
            agree({ours: found[ours], peer: found[peer]}, TOLERANCE, f"{case.name}, {device}")
            for ours, peer in ((OURS, EXTRACT), (HUB_OURS, EAGER))
        ]
        yield Ways({name: partial(known[name], images) for name in names}, "; ".join(notes))


# The price of our probes is the figure asked for, and small: beside the plain forward pass alone there are more rounds.
COMPARISONS = tuple(
    Comparison(
        "capture",
        f"{case.name.partition('_patch')[0]}/{case.side}, batch {case.batch}, fp32",
        partial(ways, case, names),
        pairs,
        seconds=case.seconds,
        least=5,
    )
    for case in CASES
    for names, pairs in (
        ((PLAIN, OURS), (Pair(OURS, PLAIN, "price <= 5 %: >= 0.95"),)),
        ((OURS, EXTRACT, HUB_OURS, EAGER), (Pair(OURS, EXTRACT), Pair(HUB_OURS, EAGER))),
    )
)
