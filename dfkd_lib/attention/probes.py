"""Attention probes: where the class token looks, for one image and for a class (A eq. 1, 2)."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfkd_lib.attention.capture import capture_attention
from dfkd_lib.attention.moments import ClassMoments
from dfkd_lib.attention.sites import class_token, first, patch_grid, pick, token_layout
from dfkd_lib.core import WorkbenchError
from dfkd_lib.datasets import to_float

# Images, uint8 (B, C, H, W) or float as the model wants them; labels (B,).
Batches = Iterable[tuple[Tensor, Tensor]]


def reduce_heads(rows: Tensor) -> Tensor:
    """The class token's attention on the patches, (B, heads, N), as a probe (B, N): the mean over heads (A eq. 1)."""
    return rows.mean(1)


def on_patches(model: nn.Module, attention: Tensor, images: Tensor) -> Tensor:
    """Attention (B, ..., S) of images (B, C, H, W) → on their patches alone, (B, ..., N).

    Raises:
        WorkbenchError: if it is of windows, or the tokens that are not known to be others do not form a grid.
    """
    if len(attention) != len(images):
        raise WorkbenchError(
            "attention within windows is no map over the image",
            expected=f"{len(images)} maps of {len(images)} images",
            got=f"{len(attention)} windows",
            where=type(model).__name__,
            fix="choose a block whose window is the whole grid, often the last; or read windows by capture_attention",
        )
    if model.training and getattr(first(model, "patch_drop"), "prob", False):
        raise WorkbenchError(
            "some patches are left out at random",
            expected="every patch in its place",
            got="training with patch dropout",
            where=type(model).__name__,
            fix="call model.eval(), or make the model with patch_drop_rate=0",
        )
    found = attention[..., token_layout(model).patches]
    patch_grid(model, found.shape[-1], *images.shape[-2:])
    return found


def alike(model: nn.Module, found: Iterable[Tensor]) -> list[Tensor]:
    """The same maps (B, heads, T, S) or rows of all blocks; WorkbenchError if blocks differ, or T is not S."""
    maps = list(found)
    sizes = {tuple(each.shape[1:]) for each in maps}
    if len(sizes) > 1 or any(len(size) == 3 and size[1] != size[2] for size in sizes):
        heads = "heads x queries x keys" if maps[0].ndim == 4 else "heads x keys"
        raise WorkbenchError(
            "this model's blocks do not share one set of tokens",
            expected="in every block as many tokens and heads, each token looking at all",
            got=f"{heads}: {', '.join(' x '.join(map(str, size)) for size in sorted(sizes))}",
            where=type(model).__name__,
            fix="look at one block, by attention_probe or attention_map",
        )
    return maps


def whole_maps(model: nn.Module, found: dict[int, Tensor], images: Tensor) -> list[Tensor]:
    """Every block's map over the same patches of images; WorkbenchError if a block has none."""
    for attention in found.values():
        on_patches(model, attention, images)
    return alike(model, found.values())


def probe_from_rows(model: nn.Module, rows: Tensor, images: Tensor) -> Tensor:
    """A token's rows (B, heads, T) → probes (B, N): patches only, heads averaged."""
    return on_patches(model, reduce_heads(rows), images)


def usual_token(model: nn.Module) -> str:
    """Whose attention stands for a model's: "class" where it has a class token, else "mean"."""
    return "mean" if token_layout(model).class_token is None else "class"


def token_rows(model: nn.Module, maps: Tensor, token: str | int) -> Tensor:
    """The attention of a token, as `attention_probe` names it, on the patches: maps (..., T, S) → (..., N)."""
    patches = token_layout(model).patches
    if token == "mean":
        return maps[..., patches, patches].mean(-2)
    return maps[..., pick(query_token(model, token), maps.shape[-2], "token"), patches]


def query_token(model: nn.Module, token: str | int) -> int:
    """The index of "class", "distillation", or of patch i (0..N-1, by its number); WorkbenchError if there is none."""
    if token == "class":
        return class_token(model)
    layout = token_layout(model)
    if token == "distillation" and layout.distillation is not None:
        return layout.distillation
    if not isinstance(token, int) or token < 0:
        raise WorkbenchError(
            "no such token",
            got=f"{token!r} of {type(model).__name__}",
            expected="class, distillation (DeiT, TITN), mean, or the number of a patch from 0",
            where="token",
            fix="ask for the mean over patches, or a patch",
        )
    return layout.prefix + token


def model_inputs(model: nn.Module, batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches with their images as the model takes them, on its device; WorkbenchError if there is no image."""
    device, count = next(model.parameters()).device, 0
    for images, labels in batches:
        count += len(images)
        yield (to_float(images) if images.dtype == torch.uint8 else images).to(device), labels
    if not count:
        raise WorkbenchError(
            "there is no image to look at", got="no batch", fix="give at least one batch of images"
        )


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """A classifier's logits (B, K), of transformers' too; WorkbenchError for a backbone, which has no classes."""
    output = model(images)
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or not getattr(model, "classifies", True):
        raise WorkbenchError(
            "a backbone has no class to explain, and none to be right about",
            expected="a model with a classifier",
            got=getattr(model, "source", type(model).__name__),
            fix="load a classifier, or look at attention, rollout and patch features",
        )
    return logits


def logits_and_probe(model: nn.Module, images: Tensor):
    """One forward pass giving both: whatever the model returns, and its last block's attention probe (B, N)."""
    with capture_attention(model, (-1,), class_token(model)) as rows:
        output = model(images)
    return output, probe_from_rows(model, rows[-1], images)


def attention_probe(
    model: nn.Module,
    images: Tensor,
    block: int = -1,
    head: int | None = None,
    token: str | int = "class",
) -> Tensor:
    """The attention of the class token, or of another one, on each patch (A eq. 1).

    Args:
        model: a ViT-like model.
        images: float (B, C, H, W) as the model wants them.
        block: index, from the end if negative.
        head: index, or None for the mean over heads.
        token: "class", "distillation", the number of a patch, or "mean", the mean over patches.

    Returns:
        (B, N) float32 ≥ 0; each row sums to the token's attention on patches (≤ 1). Differentiable.

    Raises:
        WorkbenchError: for a model without attention or that token, a block or head out of range, a block of windows.
    """
    (rows,) = _rows(model, images, (block,), token)
    return reduce_heads(rows) if head is None else rows[:, pick(head, rows.shape[1], "head")]


def attention_probes(model: nn.Module, images: Tensor, token: str | int = "class") -> Tensor:
    """The probes of every block and head in one forward pass: (blocks, B, heads, N); see `attention_probe`.

    Raises:
        WorkbenchError: if blocks differ in tokens or heads, beside the errors of `attention_probe`.
    """
    return torch.stack(alike(model, _rows(model, images, None, token)))


def _rows(
    model: nn.Module, images: Tensor, blocks: tuple[int] | None, token: str | int
) -> list[Tensor]:
    """The attention (B, heads, N) of a token of each of these blocks."""
    row = None if token == "mean" else query_token(model, token)
    with capture_attention(model, blocks, row, stop=True) as found:
        model(images)
    seen = [on_patches(model, each, images) for each in found.values()]
    if row is None:
        seen = [each[:, :, token_layout(model).patches].mean(2) for each in seen]
    return seen


def attention_map(
    model: nn.Module, images: Tensor, block: int = -1, kind: str = "encoder"
) -> Tensor:
    """The whole attention softmax(QKᵀ/√d) of one block: (B, heads, T, S) float32, rows summing to 1.

    S = T for self-attention; T = 1 where the class token alone attends (CaiT). For kind "cross" the T object queries of a
    DETR look at the S tokens of its encoder, for "pool" the learned query of a pooling head at the patches.

    Raises:
        WorkbenchError: for a block without a map of queries by keys (sampling points, channels) over the whole grid of
            patches (windows), and as `capture_attention`.
    """
    with capture_attention(model, (block,), token=None, stop=True, kind=kind) as maps:
        model(images)
    if kind == "encoder":
        on_patches(model, maps[block], images)
    return maps[block]


def resize_probe(probe: Tensor, patches: int) -> Tensor:
    """Probes (..., M) on a square grid → (..., patches) on another, bilinear, each row's sum kept.

    Raises:
        WorkbenchError: if M or `patches` is not a square number (the grid would be a guess).
    """
    if probe.shape[-1] == patches:
        return probe
    old, new = round(probe.shape[-1] ** 0.5), round(patches**0.5)
    if old * old != probe.shape[-1] or new * new != patches:
        raise WorkbenchError(
            "patch grids differ and are not square",
            expected="square numbers of patches",
            got=f"{probe.shape[-1]} and {patches}",
            where="resize_probe",
            fix="use models with square inputs",
        )
    grid = F.interpolate(probe.reshape(-1, 1, old, old), (new, new), mode="bilinear")
    grid = grid.view(*probe.shape[:-1], patches)
    return grid * (probe.sum(-1, keepdim=True) / grid.sum(-1, keepdim=True))


class ClassProbes(NamedTuple):
    """The probes of each class over its images.

    Args:
        mean: float32 (K, N), or (K, blocks, N) where they are of every block.
        std: of the same shape; NaN for a class of one image.
        count: number of images, int64 (K,).
    """

    mean: Tensor
    std: Tensor
    count: Tensor  # type: ignore[assignment]


@torch.no_grad()
def class_probe_statistics(
    model: nn.Module,
    batches: Batches,
    num_classes: int,
    block: int | None = -1,
    probe: Callable[[Tensor], Tensor] = reduce_heads,
    token: str = "class",
) -> ClassProbes:
    """Mean and spread of the attention probes of each class in one pass, in memory that does not grow with the images.

    Args:
        batches: (images, labels) pairs, each any number of images.
        num_classes: K.
        block: as for `attention_probe`; None: every block.
        probe: attention of the token on the patches, (B, heads, N), to probes (B, N).
        token: "class", or "mean" for a model without class token.

    Returns:
        ClassProbes; the standard deviation is that of the images (n - 1), NaN for a class of one image.

    Raises:
        WorkbenchError: if a class has no image or a label is out of range, beside the errors of `attention_probe`.

    Source: A eq. 2.
    """
    moments = ClassMoments(num_classes)
    for images, labels in model_inputs(model, batches):
        if block is None:
            rows = attention_probes(model, images, token)
            moments.add(torch.stack([_checked(probe, each) for each in rows], 1), labels)
        else:
            moments.add(_checked(probe, _rows(model, images, (block,), token)[0]), labels)
    return ClassProbes(*moments.stacked())


def _checked(probe: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """`probe(rows)`, refused unless it is a number for each image and patch."""
    found, expected = probe(rows), (rows.shape[0], rows.shape[2])
    if not isinstance(found, Tensor) or found.shape != expected:
        raise WorkbenchError(
            "a probe is one number for each image and patch",
            expected=f"a tensor of shape {expected}",
            got=tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__,
            where=getattr(probe, "__name__", "probe"),
            fix="reduce the heads, dimension 1 of (images, heads, patches)",
        )
    return found


def in_batches(images: Tensor, labels: Tensor, batch_size: int = 256) -> Batches:
    """(images, labels) pairs of at most `batch_size`, in order."""
    return zip(images.split(batch_size), labels.split(batch_size), strict=True)


def class_attention_probe(
    model: nn.Module, images: Tensor, labels: Tensor, num_classes: int
) -> Tensor:
    """The mean attention probe of each class (A eq. 2): (K, N) float32; see `class_probe_statistics`.

    Args:
        images: uint8 (M, C, H, W), or float as the model wants them.
        labels: int64 (M,).
        num_classes: K.
    """
    return class_probe_statistics(model, in_batches(images, labels), num_classes).mean
