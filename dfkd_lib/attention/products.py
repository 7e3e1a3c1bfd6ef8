"""Attention as two matrix products and a softmax where those are quicker than PyTorch's fused kernel: in bf16 on a CPU.

There the fused kernel takes, with its backward pass, six times as long on some 50 tokens and twice on 200 (`make bench`): a
third of a small transformer's whole step. The results differ by rounding alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dfkd_lib.attention.capture import attended, attention_weights

LARGEST = 2**26  # elements of all maps of a call; beyond, their memory is worth more than the time


class AttentionAsProducts(TorchFunctionMode):
    """While active, `scaled_dot_product_attention` of bf16 tensors on a CPU is computed as products.

    Left alone are maps of more than `LARGEST` elements, what torch.compile traces, blocks of a model with gradient
    checkpointing, which are computed a second time where this is not active, and torch's own `MultiheadAttention`, which calls
    it out of sight.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and _quicker(*args, **kwargs):
            weights = attention_weights(*args, dtype=torch.bfloat16, **kwargs)
            return attended(weights, *args, **kwargs)
        return func(*args, **kwargs)


def _quicker(
    query: Tensor,
    key: Tensor,
    value: Tensor | None = None,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **_,
) -> bool:
    on_cpu = query.device.type == "cpu" and query.dtype == torch.bfloat16
    small = query.shape[:-1].numel() * key.shape[-2] <= LARGEST
    refused = is_causal and attn_mask is not None  # by torch, in its own words
    return on_cpu and small and not (refused or torch.compiler.is_compiling() or _checkpointing())


def _checkpointing() -> bool:
    """Whether torch.utils.checkpoint is at work here: it keeps nothing, but compares what is kept when it computes again."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return bool(hooks) and "_checkpoint_hook" in getattr(hooks[0], "__qualname__", "")
