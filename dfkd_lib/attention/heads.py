"""What a head carries: a classifier's accuracy without the attention of one head, or of a whole block."""

from contextlib import contextmanager
from typing import NamedTuple

import torch
from timm.layers import Attention
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from dfkd_lib.attention.capture import _LOOKING, _Catch, _watched, capture_attention
from dfkd_lib.attention.features import block_of
from dfkd_lib.attention.probes import Batches, logits_of, model_inputs
from dfkd_lib.attention.sites import attention_sites, pick

ROWS = 256  # images, each once for every head, that go through a block at a time


class HeadAblation(NamedTuple):
    """Accuracies in [0, 1] with parts of the attention taken away.

    Args:
        whole: with all of it.
        heads: float32 (blocks, heads), without this head; NaN where a block has no such head.
        blocks: float32 (blocks,), without any head of this block.
        images: how many.
    """

    whole: float
    heads: Tensor
    blocks: Tensor
    images: int


class _Without(_Catch):
    """Attention weights of some heads are 0; `kept` is 1 or 0, (variants, heads), of a batch that is repeated so often."""

    def __init__(self, kept: Tensor):
        super().__init__(lambda _: None, None, through=True)
        self.kept = kept

    def _reachable(self, weights: Tensor) -> Tensor:
        kept = self.kept.repeat_interleave(len(weights) // len(self.kept), 0)
        weights = weights * kept[:, :, None, None].to(weights)
        for mode in _get_current_function_mode_stack():  # whoever looks on sees what is left
            if isinstance(mode, _Catch):
                weights = mode._reachable(weights)
                mode.softmax = mode.weights = None
                mode._find(mode._row(weights), *weights.shape[1:])
        return weights


class _SeenAttention(Attention):
    """timm's plain attention where the weights are to be had in the module alone, not off its projection."""


@contextmanager
def without_attention(model: nn.Module, block: int, head: int | None = None, kind: str = "encoder"):
    """While it is open, the model runs without the attention of one head of a block, or of all its heads.

    A head that is taken away gives 0 in place of its mean of values, as in `head_ablation`; `capture_attention` within sees
    weights of 0.

    Args:
        block: index among the attention modules of that kind, from the end if negative.
        head: likewise; None for all of the block.
        kind: see `Site`.

    Raises:
        WorkbenchError: if there is no such block or head; when the model runs, if that module computes no map.
    """
    sites = attention_sites(model, kind)
    site = sites[pick(block, len(sites), "block")]
    kept = torch.zeros(1, 1)
    if head is not None:
        kept = 1 - torch.eye(site.heads or 1)[None, pick(head, site.heads or 1, "head")]
    known = type(site.module)
    with _LOOKING, _watched(model, site, _Without(kept)):
        site.module.__class__ = _SeenAttention if known is Attention else known
        try:
            yield
        finally:
            site.module.__class__ = known


@torch.inference_mode()
def head_ablation(model: nn.Module, batches: Batches) -> HeadAblation:
    """The accuracy of a classifier without the attention of each head, and of each block.

    A head that is taken away gives 0 in place of its mean of values; what the projection after it adds by its bias stays, and
    so do the residual and the MLP. The blocks before are computed once for all heads of a block.

    Args:
        model: a ViT-like classifier in evaluation mode; labels are places among its outputs.
        batches: (images, labels) pairs.

    Raises:
        WorkbenchError: for a model without classifier or with a block whose attention cannot be read, and if there is no image.

    Source: Michel, Levy and Neubig, Are Sixteen Heads Really Better than One? (NeurIPS 2019), section 3.
    """
    heads: list[int] = []
    count = whole = 0
    for images, labels in model_inputs(model, batches):
        if not heads:
            with capture_attention(model, None, 0) as rows:
                model(images[:1])
            heads = [each.shape[1] for each in rows.values()]
            right = torch.zeros(len(heads), max(heads) + 1)
        size = max(1, ROWS // (max(heads) + 1))
        for part, wanted in zip(
            images.split(size), labels.to(images.device).split(size), strict=True
        ):
            count += len(part)
            whole += int((logits_of(model, part).argmax(1) == wanted).sum())
            for block, n in enumerate(heads):
                # Without each head in turn, then without all of them.
                kept = torch.cat([1 - torch.eye(n), torch.zeros(1, n)])
                found = (_lesioned(model, part, block, kept) == wanted).sum(1).cpu()
                right[block, :n] += found[:-1]
                right[block, -1] += found[-1]
    for block, n in enumerate(heads):
        right[block, n:-1] = torch.nan
    return HeadAblation(whole / count, right[:, :-1] / count, right[:, -1] / count, count)


def _lesioned(model: nn.Module, images: Tensor, block: int, kept: Tensor) -> Tensor:
    """The classes (variants, B) that a model gives images (B, C, H, W) with only the kept heads of a block."""
    site = attention_sites(model)[block]

    def repeated(_: nn.Module, args: tuple, named: dict) -> tuple[tuple, dict]:
        def each(value: object) -> object:
            if not isinstance(value, Tensor) or value.ndim < 3 or len(value) != len(images):
                return value
            return value.repeat(len(kept), *[1] * (value.ndim - 1))

        return tuple(map(each, args)), {name: each(value) for name, value in named.items()}

    hook = block_of(model, site).register_forward_pre_hook(repeated, with_kwargs=True)
    try:
        with _LOOKING, _watched(model, site, _Without(kept)):
            return logits_of(model, images).argmax(1).view(len(kept), len(images))
    finally:
        hook.remove()
