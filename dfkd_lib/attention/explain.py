"""What an output rests on: attention followed through all blocks, plain (rollout) or weighted by gradients, or gradients alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dfkd_lib.attention.capture import capture_attention
from dfkd_lib.attention.features import block_of
from dfkd_lib.attention.probes import logits_of, token_rows, whole_maps
from dfkd_lib.attention.sites import attention_sites, patch_tokens, pick, unread_attention
from dfkd_lib.core import WorkbenchError
from dfkd_lib.models import hooked


def attention_rollout(model: nn.Module, images: Tensor, token: str | int = "class") -> Tensor:
    """Attention rollout: the share of each patch in a token after all blocks, if every block only mixed tokens.

    Heads are averaged, half of each token stays where it is (the residual), and the blocks' matrices are multiplied.

    Args:
        model: a ViT-like model.
        images: float (B, C, H, W) as the model wants them.
        token: as for `attention_probe`.

    Returns:
        (B, N) float32 ≥ 0; each row sums to at most 1.

    Raises:
        WorkbenchError: for a model whose blocks do not all mix the same tokens (windows, stages, class attention).

    Source: Abnar and Zuidema, Quantifying Attention Flow in Transformers (ACL 2020), section 3.
    """
    with capture_attention(model, None, None, stop=True) as found:
        model(images)
    maps = _followed(model, found, images)
    rolled = kept = torch.eye(maps[0].shape[-1], device=images.device)
    for attention in maps:
        rolled = (attention.mean(1) + kept) / 2 @ rolled
    return token_rows(model, rolled, token)


def gradient_attention(
    model: nn.Module, images: Tensor, target: int | Tensor | None = None, token: str | int = "class"
) -> Tensor:
    """Gradient-weighted attention: the relevance of each patch for a class, followed from block to block.

    R ← R + Ā R with Ā the mean over heads of (∂y/∂A ⊙ A)⁺, from R = I. Gradients of the model's weights are left alone.

    Args:
        model: a ViT-like classifier, in evaluation mode, frozen or not.
        images: float (B, C, H, W).
        target: class whose logit y is explained, int or (B,); None: the predicted one.
        token: as for `attention_probe`.

    Returns:
        (B, N) float32 ≥ 0, of no particular sum.

    Raises:
        WorkbenchError: if the model has no classifier, and as `attention_rollout`.

    Source: Chefer, Gur and Wolf, Generic Attention-model Explainability (ICCV 2021), eq. 5, 6.
    """
    # Callers may be in inference mode, whose tensors know no gradients.
    with torch.inference_mode(False), torch.enable_grad():
        pixels = images.clone().requires_grad_()
        with capture_attention(model, None, None, through=True) as found:
            logits = logits_of(model, pixels)
        steps = _weighted(_chosen(logits, target), _followed(model, found, images))
        reached = _identity(steps[0])
        for step in steps:
            reached = reached + step @ reached
    return token_rows(model, reached, token)


def legrad(model: nn.Module, images: Tensor, target: int | Tensor | None = None) -> Tensor:
    """LeGrad: how much more attention to each patch would raise a class's logit, block by block.

    Each block's tokens are classified as if they were the last's; the positive part of the gradient of that logit by the
    block's map is averaged over heads and queries, then over blocks. Gradients of the model's weights are left alone.

    Args:
        model: a ViT-like classifier, in evaluation mode, frozen or not.
        images: float (B, C, H, W).
        target: class whose logit is explained, int or (B,); None: the predicted one.

    Returns:
        (B, N) float32 ≥ 0, of no particular sum.

    Raises:
        WorkbenchError: if the model has no classifier, and as `attention_rollout`.

    Source: Bousselham et al., LeGrad (ICCV 2025), section 3, without the scaling to [0, 1] at its end.
    """
    blocks = _stacked_blocks(model)
    outputs: list = []
    with torch.inference_mode(False), torch.enable_grad():
        pixels = images.clone().requires_grad_()
        with (
            capture_attention(model, None, None, through=True) as found,
            hooked(blocks, lambda _, __, output: outputs.append(output)),
        ):
            logits = logits_of(model, pixels)
        label = logits.argmax(1) if target is None else target
        total = torch.zeros((), device=images.device)
        maps = _followed(model, found, images)
        for output, attention in zip(outputs, maps, strict=True):
            with _giving(blocks, output):
                score = _chosen(logits_of(model, pixels), label)
            (gradient,) = torch.autograd.grad(score, [attention])
            total = total + gradient.float().clamp(min=0).mean((1, 2))
    return total[:, patch_tokens(model)] / len(blocks)


def _stacked_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of a model, each of one attention; WorkbenchError if they are no stack of such."""
    blocks = [block_of(model, site) for site in attention_sites(model)]
    if len(set(blocks)) < len(blocks) or model in blocks:
        raise WorkbenchError(
            "this model is no stack of blocks with one attention each",
            expected="a list of blocks, as in a plain vision transformer",
            got=f"{len(blocks)} attentions in {len(set(blocks))} blocks of {type(model).__name__}",
            fix="look at rollout or gradient-weighted attention",
        )
    return blocks


@contextmanager
def _giving(blocks: list[nn.Module], output: object) -> Iterator[None]:
    """Inside, every block gives this output and computes nothing."""
    for block in blocks:
        block.forward = lambda *_, **__: output
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _followed(model: nn.Module, found: dict[int, Tensor], images: Tensor) -> list[Tensor]:
    """The maps of all blocks, from the first to the last; WorkbenchError if one of them has none."""
    if unread := unread_attention(model):
        raise WorkbenchError(
            "some blocks of this model have no map to follow",
            expected="softmax attention among the same tokens in every block",
            got=f"{', '.join(unread[:3])} of {type(model).__name__}",
            fix="look at one block, by attention_probe or attention_map",
        )
    return whole_maps(model, found, images)


def detection_relevance(
    detector: nn.Module, images: Tensor, query: int, label: int | None = None
) -> Tensor:
    """The relevance of each encoder token for one detection of a DETR: encoder, decoder and cross-attention together.

    Args:
        detector: as `models.create_detector` makes them.
        images: float (B, 3, H, W) in [0, 1].
        query: its object query.
        label: class whose logit is explained; None: each image's likeliest.

    Returns:
        (B, S) float32 ≥ 0 over the encoder's tokens, row by row of its feature map.

    Raises:
        WorkbenchError: if there is no such query, or the model has no decoder.

    Source: Chefer, Gur and Wolf (ICCV 2021), section 3.2: eq. 5, 6 for self-attention, 8 to 10 for cross-attention.
    """
    with torch.inference_mode(False), torch.enable_grad():
        pixels = images.clone().requires_grad_()
        with (
            capture_attention(detector, None, None, kind="encoder", through=True) as encoder,
            capture_attention(detector, None, None, kind="decoder", through=True) as decoder,
            capture_attention(detector, None, None, kind="cross", through=True) as cross,
        ):
            logits = detector(pixels).logits
        logits = logits[:, pick(query, logits.shape[1], "query"), :-1]
        every = [*encoder.values(), *decoder.values(), *cross.values()]
        steps = _weighted(_chosen(logits, label), every)
        inner, over = steps[: len(encoder)], steps[-len(cross) :]
        own = steps[len(encoder) : -len(cross)]
        image = _identity(inner[0])
        for step in inner:
            image = image + step @ image
        queries = _identity(own[0])
        reached = torch.zeros_like(over[0])
        for step, look in zip(own, over, strict=True):
            queries, reached = queries + step @ queries, reached + step @ reached
            reached = reached + _normalised(queries).transpose(1, 2) @ look @ _normalised(image)
    return reached[:, query]


def _chosen(logits: Tensor, label: int | Tensor | None) -> Tensor:
    """The sum of one logit of each image: of the label, or the highest."""
    if label is None:
        label = logits.argmax(1)
    index = torch.as_tensor(label, device=logits.device).expand(len(logits))
    return logits.gather(1, index[:, None]).sum()


def _weighted(output: Tensor, maps: list[Tensor]) -> list[Tensor]:
    """The mean over heads of the positive part of gradient times attention, of each map (B, heads, T, S) → (B, T, S)."""
    # A map that the output does not depend on has no gradient: nothing rests on it.
    gradients = torch.autograd.grad(output, maps, allow_unused=True)
    return [
        (torch.zeros_like(a) if g is None else g * a).detach().clamp(min=0).mean(1)
        for g, a in zip(gradients, maps, strict=True)
    ]


def _identity(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], device=like.device).expand_as(like)


def _normalised(relevance: Tensor) -> Tensor:
    """Relevance beyond the identity with rows summing to 1, and the identity again: both count alike then (eq. 8, 9)."""
    beyond = relevance - _identity(relevance)
    return beyond / beyond.sum(-1, keepdim=True).clamp(min=1e-12) + _identity(relevance)
