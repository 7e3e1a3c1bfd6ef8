"""A classifier's output and probe at a lower price: its last block computes only what its head reads.

A vision transformer that classifies by its class token (and distillation token) throws away what its last block makes of the
patches. There the patches are needed as keys and values alone: queries, projection and MLP of the prefix tokens do. In
a model of three blocks that is a quarter of the whole step; the result is the same but for rounding.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from dfkd_lib.attention.capture import capture_attention
from dfkd_lib.attention.probes import alike, logits_and_probe, probe_from_rows
from dfkd_lib.attention.sites import class_token, patch_tokens
from dfkd_lib.core import WorkbenchError

PLAIN = (VisionTransformer, VisionTransformerDistilled)
LAST = (-1,)


def outputs_and_probe(
    model: Any,
    images: Tensor,
    probe: bool = True,
    patches: Tensor | None = None,
    blocks: tuple[int, ...] = LAST,
) -> tuple:
    """What `model(images)` returns, and the probe of its last block; in timm's plain ViT and DeiT without needless work.

    Args:
        images: float (B, C, H, W) as the model wants them.
        probe: whether the probe is wanted.
        patches: int64 (B, n), the patches that are computed, the others as if they were not there; None: all N. A plain ViT's
            alone.
        blocks: others than the last whose probes are wanted, from the end if negative; no work is saved then.

    Returns:
        (the model's output, probe (B, N or n) float32 as of `attention_probe`, or None); of P > 1 blocks (B, P, N).
        Differentiable.

    Raises:
        WorkbenchError: if a probe is wanted of a model that has none, or some patches of one that is no plain ViT.
    """
    if probe and blocks != LAST:
        with capture_attention(model, blocks, class_token(model)) as rows:
            output = model(images)
        found = alike(model, (rows[block] for block in blocks))
        probes = [probe_from_rows(model, each, images) for each in found]
        return output, torch.stack(probes, 1) if len(probes) > 1 else probes[0]
    plain = is_plain(model)
    if not plain and patches is None:
        return logits_and_probe(model, images) if probe else (model(images), None)
    if type(model) not in PLAIN:
        raise WorkbenchError(
            "only a plain vision transformer computes some patches without the others",
            expected=" or ".join(kind.__name__ for kind in PLAIN),
            got=type(model).__name__,
            fix="give it all patches",
        )
    tokens = _embedded(model, images, patches)
    for block in model.blocks[:-1]:
        tokens = block(tokens)
    last, weights = tokens, tokens
    if plain or probe:
        last, weights = _last_block(model.blocks[-1], tokens, model.num_prefix_tokens)
    # Whoever looks into the last block is to see all of it.
    output = model.forward_head(model.norm(last if plain else model.blocks[-1](tokens)))
    return output, weights[:, :, 0].mean(1)[:, patch_tokens(model)] if probe else None


def _embedded(model: Any, images: Tensor, patches: Tensor | None) -> Tensor:
    """The tokens (B, T, width) that enter the first block: all, or those before the patches and some of these."""
    tokens = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
    if patches is None:
        return tokens
    first = model.num_prefix_tokens
    rows = patches[..., None].expand(-1, -1, tokens.shape[2])
    return torch.cat([tokens[:, :first], tokens[:, first:].gather(1, rows)], 1)


def compiled_parts(model: Any) -> list[nn.Module]:
    """What torch.compile is to be given of a model: in a plain ViT each block but the last, which share one compilation."""
    return list(model.blocks[:-1]) if is_plain(model) else [model]


def is_plain(model: Any) -> bool:
    """Whether a model is one of timm's whose head reads the prefix tokens alone, and whose last block has no peculiarity."""
    if type(model) not in PLAIN:
        return False
    block = model.blocks[-1]
    attention = getattr(block, "attn", None)
    return (
        model.global_pool == "token"
        and type(block) is Block
        and type(attention) is Attention
        and attention.gate is None
        and model.attn_pool is None
        and not model.grad_checkpointing
        # A hook, or another forward put in its place, wants to see the block at work.
        and not block._forward_hooks
        and not attention._forward_hooks
        and "forward" not in attention.__dict__
        and "forward" not in block.__dict__
    )


def _last_block(block: Any, tokens: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    """The prefix tokens (B, prefix, width) after the block, and their attention (B, heads, prefix, T), at least float32."""
    attention, (batch, length, _) = block.attn, tokens.shape
    heads, depth, width = attention.num_heads, attention.head_dim, attention.attn_dim
    weight, bias = attention.qkv.weight, attention.qkv.bias
    normed = block.norm1(tokens)
    query = F.linear(normed[:, :prefix], weight[:width], None if bias is None else bias[:width])
    query = attention.q_norm(query.view(batch, prefix, heads, depth).transpose(1, 2))
    pairs = F.linear(normed, weight[width:], None if bias is None else bias[width:])
    key, value = pairs.view(batch, length, 2, heads, depth).permute(2, 0, 3, 1, 4).unbind(0)
    scores = (query * attention.scale) @ attention.k_norm(key).transpose(-2, -1)
    weights = torch.softmax(scores, -1, dtype=torch.promote_types(scores.dtype, torch.float32))
    seen = F.dropout(weights, attention.attn_drop.p, attention.training).to(value.dtype) @ value
    seen = attention.norm(seen.transpose(1, 2).reshape(batch, prefix, width))
    mixed = attention.proj_drop(attention.proj(seen))
    result = tokens[:, :prefix] + block.drop_path1(block.ls1(mixed))
    return result + block.drop_path2(block.ls2(block.mlp(block.norm2(result)))), weights
