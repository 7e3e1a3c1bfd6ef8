"""Numbers on attention, streamed over images: how far it looks, how sharp it is, how heads differ, how two models agree."""

from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor, nn

from dfkd_lib.attention.capture import capture_attention
from dfkd_lib.attention.moments import ClassMoments, Moments
from dfkd_lib.attention.probes import (
    Batches,
    attention_probe,
    model_inputs,
    resize_probe,
    usual_token,
    whole_maps,
)
from dfkd_lib.attention.sites import patch_grid, token_layout


class AttentionStatistics(NamedTuple):
    """Of each block and head, the mean over images, float32.

    Args:
        distance: (blocks, heads), pixels between a patch and where it looks.
        entropy: (blocks, heads), nats.
        diversity: (blocks,), nats.
    """

    distance: Tensor
    entropy: Tensor
    diversity: Tensor


@torch.no_grad()
def attention_statistics(model: nn.Module, batches: Batches) -> AttentionStatistics:
    """Attention distance, entropy and head diversity of every block, in memory of one batch's maps.

    Attention among patches alone, each patch's row made to sum to 1. Distance: between the centres of a patch and of those
    it looks at, weighted by attention, mean over patches. Entropy: of a patch's row, mean over patches; ln N if it looks
    everywhere alike. Diversity: the mean Jensen-Shannon divergence between two heads' probes (the class token's, or where
    there is none, the mean patch's); 0 for equal heads, at most ln 2, NaN for a single head.

    Args:
        model: a ViT-like model.
        batches: (images, labels) pairs.

    Raises:
        WorkbenchError: for a model without attention, one whose blocks do not all have the same tokens, or no image.

    Source: distance: Dosovitskiy et al., An Image is Worth 16x16 Words (ICLR 2021), section 4.5.
    """
    layout, moments = token_layout(model), [Moments() for _ in range(3)]
    for images, _ in model_inputs(model, batches):
        with capture_attention(model, None, None, stop=True) as maps:
            model(images)
        far = _distances(model, whole_maps(model, maps, images)[0], *images.shape[-2:])
        found = [_of_block(maps.pop(block), layout, far) for block in list(maps)]
        for moment, values in zip(moments, zip(*found, strict=True), strict=True):
            moment.add(torch.stack(values, 1))
    return AttentionStatistics(*(moment.mean.float() for moment in moments))


def _distances(model: nn.Module, attention: Tensor, height: int, width: int) -> Tensor:
    """Pixels between the centres of any two patches (N, N)."""
    count = len(range(attention.shape[-1])[token_layout(model).patches])
    rows, columns = patch_grid(model, count, height, width)
    places = torch.cartesian_prod(
        torch.arange(rows) * (height / rows), torch.arange(columns) * (width / columns)
    )
    return torch.cdist(places, places).to(attention.device)


def _of_block(attention: Tensor, layout, far: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distance (B, heads), entropy (B, heads) and diversity (B,) of one block's maps (B, heads, T, T)."""
    among = attention[:, :, layout.patches, layout.patches]
    among = among / among.sum(-1, keepdim=True)
    probes = among.mean(2)
    if layout.class_token is not None:
        probes = attention[:, :, layout.class_token, layout.patches]
    return (among * far).sum(-1).mean(-1), entropy(among).mean(-1), _between_heads(probes)


def entropy(shares: Tensor) -> Tensor:
    """Entropy in nats along the last axis of shares that sum to 1; 0 ln 0 = 0."""
    return torch.special.entr(shares).sum(-1)


def jensen_shannon(a: Tensor, b: Tensor) -> Tensor:
    """Jensen-Shannon divergence in nats (0..ln 2) along the last axis; each is made to sum to 1."""
    a, b = (x / x.sum(-1, keepdim=True).clamp(min=1e-30) for x in (a, b))
    return (entropy((a + b) / 2) - (entropy(a) + entropy(b)) / 2).clamp(min=0)


def _between_heads(probes: Tensor) -> Tensor:
    """Mean Jensen-Shannon divergence over the pairs of heads of probes (B, heads, N) → (B,)."""
    first, second = torch.triu_indices(probes.shape[1], probes.shape[1], offset=1)
    return jensen_shannon(probes[:, first], probes[:, second]).mean(1)  # the mean of no pair is NaN


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rank correlation in [-1, 1] along the last axis; NaN where one is constant."""
    a, b = (torch.from_numpy(stats.rankdata(x.detach().cpu(), axis=-1) - 0.5).to(x) for x in (a, b))
    a, b = (ranks - ranks.mean(-1, keepdim=True) for ranks in (a, b))
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))


MEASURES = ("cosine", "rank correlation", "Jensen-Shannon divergence")


class Agreement(NamedTuple):
    """How alike two models' probes are, by class.

    Args:
        mean: float32 (measures, K), in the order of `MEASURES`.
        half: half width of its 95 % interval over images, of the same shape.
        count: number of images of each class, int64 (K,).
    """

    mean: Tensor
    half: Tensor
    count: Tensor  # type: ignore[assignment]


@torch.no_grad()
def probe_agreement(
    student: nn.Module,
    teacher: nn.Module,
    batches: Batches,
    num_classes: int,
    student_block: int = -1,
    teacher_block: int = -1,
) -> Agreement:
    """Agreement of two models' attention probes on the same images: cosine, rank correlation, Jensen-Shannon divergence.

    Args:
        student: a model whose probe is its class token's, or without one the mean over patches.
        teacher: likewise; its probe on another grid is resized to the student's.
        batches: (images, labels) pairs.

    Raises:
        WorkbenchError: if a class has no image.
    """
    moments = ClassMoments(num_classes)
    for images, labels in model_inputs(student, batches):
        mine = attention_probe(student, images, student_block, token=usual_token(student))
        other = attention_probe(teacher, images, teacher_block, token=usual_token(teacher))
        other = resize_probe(other, mine.shape[1])
        measures = (torch.cosine_similarity, rank_correlation, jensen_shannon)
        moments.add(torch.stack([measure(mine, other) for measure in measures], 1), labels)
    mean, std, count = moments.stacked()
    half = std.T * torch.from_numpy(stats.t.ppf(0.975, count - 1)) / count**0.5
    return Agreement(mean.T, half.float(), count)
