"""Attention probes: where the class token looks, for one image and for a class (A eq. 1, 2)."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dfkd_lib.attention.capture import capture_attention
from dfkd_lib.attention.sites import class_token, pick, token_layout
from dfkd_lib.datasets import to_float
from dfkd_lib.errors import WorkbenchError


def probe_from_rows(model: nn.Module, rows: Tensor, head: int | None = None) -> Tensor:
    """A token's rows (B, heads, T) → probes (B, N): patches only, heads averaged unless one is asked for."""
    rows = rows.mean(1) if head is None else rows[:, pick(head, rows.shape[1], "head")]
    return rows[:, token_layout(model).patches]


def query_token(model: nn.Module, token: str | int) -> int:
    """The index of "class", "distillation", or of patch i (0..N-1, by its number); WorkbenchError if there is none."""
    if token == "class":
        return class_token(model)
    layout = token_layout(model)
    if token == "distillation":
        if layout.distillation is None:
            raise WorkbenchError("this model has no distillation token", got=type(model).__name__,
                                 expected="a distilled model (DeiT, TITN)", mend="ask for the class token or a patch")
        return layout.distillation
    if not isinstance(token, int) or token < 0:
        raise WorkbenchError("no such token", expected="class, distillation, or the number of a patch from 0", got=token,
                             where="token")
    return layout.prefix + token


def logits_and_probe(model: nn.Module, images: Tensor, block: int = -1, head: int | None = None):
    """One forward pass giving both: whatever the model returns, and its attention probe (B, N)."""
    token = class_token(model)
    with capture_attention(model, (block,), token) as rows:
        output = model(images)
    return output, probe_from_rows(model, rows[block], head)


def attention_probe(model: nn.Module, images: Tensor, block: int = -1, head: int | None = None,
                    token: str | int = "class") -> Tensor:
    """The attention of the class token, or of another one, on each patch (A eq. 1).

    Args:
        model: a ViT-like model. images: float (B, C, H, W) as the model wants them.
        block: index, from the end if negative. head: index, or None for the mean over heads.
        token: "class", "distillation", or the number of a patch.

    Returns:
        (B, N) float32 ≥ 0; each row sums to the token's attention on patches (≤ 1). Differentiable.

    Raises:
        WorkbenchError: for a model without attention or that token, a block or head out of range.
    """
    row = query_token(model, token)
    with capture_attention(model, (block,), row, stop=True) as rows:
        model(images)
    return probe_from_rows(model, rows[block], head)


def attention_probes(model: nn.Module, images: Tensor, token: str | int = "class") -> Tensor:
    """The probes of every block and head in one forward pass: (blocks, B, heads, N); see `attention_probe`."""
    row = query_token(model, token)
    with capture_attention(model, None, row, stop=True) as rows:
        model(images)
    return torch.stack(list(rows.values()))[..., token_layout(model).patches]


def attention_map(model: nn.Module, images: Tensor, block: int = -1, kind: str = "encoder") -> Tensor:
    """The whole attention softmax(QKᵀ/√d) of one block: (B, heads, T, S) float32, rows summing to 1.

    S = T for self-attention; for kind "cross" the T object queries of a DETR look at the S tokens of its encoder.
    """
    with capture_attention(model, (block,), token=None, stop=True, kind=kind) as maps:
        model(images)
    return maps[block]


class ClassProbes(NamedTuple):
    """The probes of each class over its images: mean and standard deviation, float32 (K, N), or (K, blocks, N) where they
    are of every block; and the number of images, int64 (K,)."""

    mean: Tensor
    std: Tensor
    count: Tensor


@torch.no_grad()
def class_probe_statistics(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], num_classes: int,
                           block: int | None = -1, head: int | None = None) -> ClassProbes:
    """Mean and spread of the attention probes of each class in one pass, in memory that does not grow with the images.

    Args:
        batches: (images, labels) pairs, each any number of images: uint8 (B, C, H, W), or float as the model wants them;
            labels int64 (B,). num_classes: K. block, head: as for `attention_probe`; block None: every block.

    Returns:
        ClassProbes; the standard deviation is that of the images (n - 1), NaN for a class of one image.

    Raises:
        WorkbenchError: if a class has no image or a label is out of range, beside the errors of `attention_probe`.
    Source: A eq. 2; the update of mean and sum of squares after Chan, Golub and LeVeque (1983).
    """
    device = next(model.parameters()).device
    count = torch.zeros(num_classes, dtype=torch.float64)
    mean = squares = None
    for images, labels in batches:
        images = to_float(images) if images.dtype == torch.uint8 else images
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            raise WorkbenchError("a label is out of range", expected=f"0..{num_classes - 1}", where="class probes",
                                 got=f"{int(labels.min())}..{int(labels.max())}", mend="give the right number of classes")
        probe = _probes(model, images.to(device), block, head).double().cpu()
        if mean is None:
            mean, squares = (torch.zeros(num_classes, *probe.shape[1:], dtype=torch.float64) for _ in range(2))
        for k in labels.unique().tolist():
            _merge(count, mean, squares, k, probe[labels.cpu() == k])
    if mean is None or (count == 0).any():
        raise WorkbenchError("class probes need images of every class", expected=f"labels 0..{num_classes - 1}, each used",
                             got=f"no image of class {(count == 0).nonzero().flatten().tolist()}", where="class probes",
                             mend="give more images, or the right number of classes")
    # 0/0 for one image: NaN, its spread is not known.
    std = (squares / (count - 1).view(-1, *[1] * (squares.ndim - 1))).sqrt()
    return ClassProbes(mean.float(), std.float(), count.long())


def _probes(model: nn.Module, images: Tensor, block: int | None, head: int | None) -> Tensor:
    """Probes (B, N) of one block, or (B, blocks, N) of all."""
    if block is not None:
        return attention_probe(model, images, block, head)
    rows = attention_probes(model, images)
    rows = rows.mean(2) if head is None else rows[:, :, pick(head, rows.shape[2], "head")]
    return rows.transpose(0, 1)


def _merge(count: Tensor, mean: Tensor, squares: Tensor, k: int, probe: Tensor) -> None:
    """Take the probes (n, N) of class k into its running count, mean and sum of squared deviations."""
    n, total = len(probe), float(count[k]) + len(probe)
    new = probe.mean(0)
    squares[k] += ((probe - new) ** 2).sum(0) + (new - mean[k]) ** 2 * (float(count[k]) * n / total)
    mean[k] += (new - mean[k]) * (n / total)
    count[k] = total


def in_batches(images: Tensor, labels: Tensor, batch_size: int = 256) -> Iterable[tuple[Tensor, Tensor]]:
    """(images, labels) pairs of at most `batch_size`, in order."""
    return zip(images.split(batch_size), labels.split(batch_size), strict=True)


def class_attention_probe(model: nn.Module, images: Tensor, labels: Tensor, num_classes: int, block: int = -1,
                          head: int | None = None, batch_size: int = 256) -> Tensor:
    """The mean attention probe of each class (A eq. 2): (K, N) float32; see `class_probe_statistics`.

    Args:
        images: uint8 (M, C, H, W), or float as the model wants them. labels: int64 (M,). num_classes: K.
    """
    return class_probe_statistics(model, in_batches(images, labels, batch_size), num_classes, block, head).mean
