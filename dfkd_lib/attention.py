"""Attention probes and maps of vision transformers, captured while fused attention stays on.

A hook on the projection of each wanted block sees queries and keys as the model computes them; the rows asked for are
then softmax(q Kᵀ/√d) of those. One token's row costs O(N), and nothing is changed in the model.
"""

from collections.abc import Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dfkd_lib.datasets import to_float
from dfkd_lib.errors import WorkbenchError


def attention_blocks(model: nn.Module) -> list[nn.Module]:
    """The attention modules of the model's blocks in order; WorkbenchError if it has none that can be read."""
    found = []
    for block in getattr(model, "blocks", ()):
        attn = getattr(block, "attn", None) or getattr(block, "attn_out", None)  # attn_out: TNT's outer attention
        if attn is not None and hasattr(attn, "num_heads") and (hasattr(attn, "qkv") or hasattr(attn, "qk")):
            found.append(attn)
    if not found:
        raise WorkbenchError("no attention to look at in this model", got=type(model).__name__,
                             expected="model.blocks[i].attn with qkv (or attn_out with qk) and num_heads",
                             mend="use a vision transformer of timm's kind (ViT, DeiT, TNT)")
    return found


def prefix_tokens(model: nn.Module) -> int:
    """Number of tokens before the patches; the first is the class token. WorkbenchError if there is none."""
    count = getattr(model, "num_prefix_tokens", None)
    if count is None:
        count = 1 if getattr(model, "cls_token", None) is not None else 0
    if count == 0 or getattr(model, "cls_token", None) is None:
        raise WorkbenchError("this model has no class token, so it has no attention probe", got=type(model).__name__,
                             expected="a model with cls_token", mend="use attention_map, or a model with a class token")
    return count


def patch_tokens(model: nn.Module) -> slice:
    """Where the patches stand among the tokens, of a model with a class token (TITN has a token after them too)."""
    return slice(prefix_tokens(model), -getattr(model, "num_suffix_tokens", 0) or None)


def _pick(index: int, count: int, what: str) -> int:
    if not -count <= index < count:
        raise WorkbenchError(f"no such {what}", expected=f"{-count}..{count - 1}", got=index, where=f"attention {what}",
                             mend=f"the model has {count}")
    return index % count


def attention_rows(attn: nn.Module, projected: Tensor, token: int | None) -> Tensor:
    """softmax(q Kᵀ/√d) of one token's row (B, heads, T), or of all (B, heads, T, T), from a block's projection.

    Args:
        attn: the attention module. projected: output of its qkv (B, T, 3·D) or qk (B, T, 2·D) layer. token: row, or
            None for all.
    """
    parts = 3 if hasattr(attn, "qkv") else 2
    batch, tokens, width = projected.shape
    split = projected.reshape(batch, tokens, parts, attn.num_heads, width // parts // attn.num_heads)
    q, k = split[:, :, 0].transpose(1, 2), split[:, :, 1].transpose(1, 2)
    if token is not None:
        q = q[:, :, token:token + 1]
    q, k = getattr(attn, "q_norm", nn.Identity())(q), getattr(attn, "k_norm", nn.Identity())(k)
    rows = torch.softmax((q @ k.transpose(-2, -1)).float() * q.shape[-1] ** -0.5, dim=-1)
    return rows[:, :, 0] if token is not None else rows


class _Enough(Exception):
    """Ends a forward pass whose only purpose was the attention captured so far."""


@contextmanager
def capture_attention(model: nn.Module, blocks: Sequence[int] = (-1,), token: int | None = 0, stop: bool = False):
    """Collect attention of chosen blocks while the model runs; the model is left as it was found.

    Args:
        model: a ViT-like model. blocks: indices. token: the query whose row is kept; None keeps the whole map.
        stop: end the forward pass at the last wanted block's projection; the `with` body then goes no further either.

    Yields:
        dict {block index as given: (B, heads, T) rows or (B, heads, T, T) maps}, filled by each forward pass;
        differentiable.

    Raises:
        WorkbenchError: for a model without attention, or a block out of range.
    """
    modules = attention_blocks(model)
    captured: dict[int, Tensor] = {}
    handles = []

    def hook(index, attn):
        def keep(_, __, output):
            captured[index] = attention_rows(attn, output, token)
            if stop and attn is last:
                raise _Enough
        return keep

    picked = {index: _pick(index, len(modules), "block") for index in blocks}
    last = modules[max(picked.values())]
    try:
        for index, place in picked.items():
            attn = modules[place]
            layer = attn.qkv if hasattr(attn, "qkv") else attn.qk
            handles.append(layer.register_forward_hook(hook(index, attn)))
        yield captured
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()


def probe_from_rows(model: nn.Module, rows: Tensor, head: int | None = None) -> Tensor:
    """The class token's rows (B, heads, T) → probes (B, N): patches only, heads averaged unless one is asked for."""
    rows = rows.mean(1) if head is None else rows[:, _pick(head, rows.shape[1], "head")]
    return rows[:, patch_tokens(model)]


def logits_and_probe(model: nn.Module, images: Tensor, block: int = -1, head: int | None = None):
    """One forward pass giving both: whatever the model returns, and its attention probe (B, N)."""
    prefix_tokens(model)
    with capture_attention(model, (block,)) as rows:
        output = model(images)
    return output, probe_from_rows(model, rows[block], head)


def attention_probe(model: nn.Module, images: Tensor, block: int = -1, head: int | None = None) -> Tensor:
    """The class token's attention on each patch (A eq. 1).

    Args:
        model: a ViT-like model with a class token. images: float (B, C, H, W) as the model wants them.
        block: index, from the end if negative. head: index, or None for the mean over heads.

    Returns:
        (B, N) float32 ≥ 0; each row sums to the class token's attention on patches (≤ 1). Differentiable.

    Raises:
        WorkbenchError: for a model without attention or class token, a block or head out of range.
    """
    prefix_tokens(model)
    with capture_attention(model, (block,), stop=True) as rows:
        model(images)
    return probe_from_rows(model, rows[block], head)


def attention_map(model: nn.Module, images: Tensor, block: int = -1) -> Tensor:
    """The whole attention softmax(QKᵀ/√d) of one block: (B, heads, T, T) float32, rows summing to 1."""
    with capture_attention(model, (block,), token=None, stop=True) as maps:
        model(images)
    return maps[block]


@torch.no_grad()
def class_attention_probe(model: nn.Module, images: Tensor, labels: Tensor, num_classes: int, block: int = -1,
                          head: int | None = None, batch_size: int = 256) -> Tensor:
    """The mean attention probe of each class (A eq. 2), streamed over the images.

    Args:
        model: as for `attention_probe`. images: uint8 (M, C, H, W), or float as the model wants them.
        labels: int64 (M,). num_classes: K.

    Returns:
        (K, N) float32.

    Raises:
        WorkbenchError: if a class has no image, beside the errors of `attention_probe`.
    """
    device, labels = next(model.parameters()).device, labels.cpu()
    counts = torch.bincount(labels, minlength=num_classes)
    if (counts == 0).any() or len(counts) > num_classes:
        raise WorkbenchError("class probes need images of every class", expected=f"labels 0..{num_classes - 1}, each used",
                             got=f"counts {counts.tolist()}", where="class_attention_probe",
                             mend="give more images, or the right number of classes")
    sums = None
    for batch, target in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        batch = to_float(batch) if batch.dtype == torch.uint8 else batch
        probe = attention_probe(model, batch.to(device), block, head).double().cpu()
        sums = torch.zeros(num_classes, probe.shape[1], dtype=torch.float64) if sums is None else sums
        sums.index_add_(0, target, probe)
    return (sums / counts[:, None]).float()
