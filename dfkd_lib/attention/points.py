"""Deformable attention: the points of the image that each query samples, with their weights, in place of a map.

While such a module runs, a torch function mode sees where `grid_sample` reads the scales of the encoder, and the softmax
that weighs what was read. Nothing is changed in the model.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dfkd_lib.attention.capture import _LOOKING, _SOFTMAX, _replaced
from dfkd_lib.attention.sites import attention_sites, is_deformable, pick
from dfkd_lib.core import WorkbenchError


class SamplingPoints(NamedTuple):
    """What deformable attention reads, for each of the blocks asked for.

    Args:
        locations: (blocks, B, heads, Q, P, 2), x and y as shares of the image's width and height; beyond [0, 1] lies
            nothing, and zeros are read.
        weights: (blocks, B, heads, Q, P) ≥ 0, summing to 1 over the P points of all scales.
        levels: int64 (P,), the scale that each point is read from, 0 the finest.
        grids: (rows, columns) of each scale.
    """

    locations: Tensor
    weights: Tensor
    levels: Tensor
    grids: tuple[tuple[int, int], ...]


class _Watch(TorchFunctionMode):
    """Keeps the scales and places that a module samples, and its last softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[Tensor] = []
        self.grids: list[tuple[int, int]] = []
        self.weights = torch.empty(0)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is F.grid_sample:
            scale, where = (*args, *(kwargs or {}).values())[:2]
            self.places.append((where + 1) / 2)
            self.grids.append(tuple(scale.shape[-2:]))
        elif func in _SOFTMAX:
            self.weights = result
        return result

    def points(self) -> SamplingPoints:
        """Of one block: locations (B, heads, Q, P, 2), weights (B, heads, Q, P)."""
        batch, queries, heads = self.weights.shape[:3]
        weights = self.weights.reshape(batch, queries, heads, -1).transpose(1, 2)
        locations = torch.cat(self.places, -2).unflatten(0, (batch, heads))
        counts = torch.tensor([where.shape[-2] for where in self.places])
        levels = torch.arange(len(counts)).repeat_interleave(counts)
        return SamplingPoints(locations, weights, levels, tuple(self.grids))


def attention_points(
    model: nn.Module, images: Tensor, blocks: Sequence[int] | None = None, kind: str = "cross"
) -> SamplingPoints:
    """The sampling points of deformable attention: D-FINE, DEIMv2, RT-DETR, RF-DETR, Deformable DETR.

    What a module gives, before a projection that it may have after it, is the sum of the values at its points (bilinear
    between tokens), each times its weight, head by head.

    Args:
        model: a detector of `models.create_detector`, or a model of transformers, in evaluation mode: in training mode
            noisy objects are queries too.
        images: float (B, C, H, W) as the model wants them.
        blocks: indices among the decoder's layers, from the end if negative; None for all.
        kind: "cross", or "encoder" where tokens attend so among themselves (Deformable DETR).

    Returns:
        SamplingPoints on the images' device, differentiable.

    Raises:
        WorkbenchError: if the model's attention of that kind is no deformable one, or there is no such block.
    """
    sites = attention_sites(model, kind)
    wanted = [pick(block, len(sites), "block") for block in blocks or range(len(sites))]
    plain = [site for place in wanted if not is_deformable((site := sites[place]).module)]
    if plain:
        raise WorkbenchError(
            "this attention samples no points",
            expected="deformable attention",
            got=f"{plain[0].name} ({type(plain[0].module).__name__}) of {type(model).__name__}",
            fix=f"attention_map(model, images, kind={kind!r}) gives its map over all tokens",
        )
    seen = {place: _Watch() for place in wanted}
    with _LOOKING, ExitStack() as stack:
        for place, watch in seen.items():
            module = sites[place].module
            stack.enter_context(_replaced(module, _watched(module.forward, watch)))
        model(images)
    if any(not watch.weights.numel() or not watch.places for watch in seen.values()):
        raise WorkbenchError(
            "no sampling was seen",
            expected="torch.nn.functional.grid_sample in each deformable module",
            got=f"another operator in {type(model).__name__}",
            fix="build the model with decoder_method='default', and without custom kernels",
        )
    every = [seen[place].points() for place in wanted]
    locations = torch.stack([one.locations for one in every])
    weights = torch.stack([one.weights for one in every])
    return SamplingPoints(locations, weights, every[0].levels.to(images.device), every[0].grids)


def _watched(forward, watch: _Watch):
    def run(*args, **kwargs):
        with watch:
            return forward(*args, **kwargs)

    return run
