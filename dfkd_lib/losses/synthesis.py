"""Losses of the image makers: what an image, or a batch of them, should be like when no real image can be shown."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfkd_lib.attention import attention_sites, patch_tokens
from dfkd_lib.core import WorkbenchError
from dfkd_lib.losses.classification import same_shape
from dfkd_lib.models import hooked

PAIRS = 256  # pairs of patches behind an entropy: more change it little, and cost time and memory
GRID = 64  # points at which a density of cosine similarities is taken over [-1, 1]


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels, down and across.

    Args:
        images: (B, C, H, W).

    Returns:
        A scalar ≥ 0.

    Source: the smoothness prior of DeepInversion (B), in its absolute form.
    """
    return images.diff(dim=-2).abs().mean() + images.diff(dim=-1).abs().mean()


def ink(images: Tensor, background: float) -> Tensor:
    """How much an image has on its background: (B,), the mean of (x − background)² / 4 of images (B, C, H, W)."""
    return (images.float() - background).square().flatten(1).mean(1) / 4


def diversity_loss(images: Tensor, labels: Tensor) -> Tensor:
    """How alike the images of a class are in a batch: mean positive correlation of pairs, brightness and contrast taken off.

    Raw pixel distances are easily satisfied by brightness alone; a correlation of 2 × 2 means asks for other shapes.

    Args:
        images: (B, C, H, W).
        labels: int64 (B,).

    Returns:
        A scalar in [0, 1]; 0 where no class has two images.
    """
    flat = F.avg_pool2d(images.float(), 2).flatten(1)
    flat = flat - flat.mean(1, keepdim=True)
    unit = flat / (flat.norm(dim=1, keepdim=True) + 1e-3)
    pairs = (labels[:, None] == labels[None, :]).triu(1)
    # Picking the pairs out would be to wait for the device, which alone knows how many there are.
    return ((unit @ unit.mT).clamp(min=0) * pairs).sum() / pairs.sum().clamp(min=1)


def disagreement(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Jensen-Shannon divergence of two models' outputs over ln 2, mean over images.

    1 − it is the competition loss of DeepInversion's adaptive form, and of an adversarial generator: bounded, so that the
    generator cannot win by pushing logits to infinity.

    Args:
        student_logits, teacher_logits: (B, K).

    Returns:
        A scalar in [0, 1].

    Source: Yin et al., Dreaming to Distill (CVPR 2020), adaptive DeepInversion.
    """
    same_shape(student_logits, teacher_logits, "logits")
    log_p = F.log_softmax(student_logits.float(), -1)
    log_q = F.log_softmax(teacher_logits.float(), -1)
    middle = torch.logsumexp(torch.stack([log_p, log_q]), 0) - torch.log(torch.tensor(2.0))
    both = (log_p.exp() * (log_p - middle) + log_q.exp() * (log_q - middle)).sum(-1) / 2
    return (both / torch.log(torch.tensor(2.0))).mean().clamp(min=0)


def decision_adversarial_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Minus KL(teacher ‖ student) where both name the same class, 0 elsewhere; arguments as of `disagreement`.

    So images move towards the student's decisions that it is least sure of, but not beyond them.

    Returns:
        A scalar ≤ 0.

    Source: CMI (Fang et al. 2021) and Fast (Fang et al. 2022), decision adversarial distillation.
    """
    same_shape(student_logits, teacher_logits, "logits")
    log_p, log_q = (F.log_softmax(x.float(), -1) for x in (student_logits, teacher_logits))
    apart = F.kl_div(log_p, log_q, log_target=True, reduction="none").sum(-1)
    return -(apart * (student_logits.argmax(-1) == teacher_logits.argmax(-1))).mean()


def logit_distance(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Mean absolute difference of logits, each row's mean taken off; arguments as of `disagreement`.

    Unlike that it has a gradient also where both models are confident.

    Returns:
        A scalar ≥ 0.

    Source: after Fang et al., Data-Free Adversarial Distillation (2019).
    """
    same_shape(student_logits, teacher_logits, "logits")
    centred = [
        x.float() - x.float().mean(-1, keepdim=True) for x in (student_logits, teacher_logits)
    ]
    return (centred[0] - centred[1]).abs().mean()


def contrastive_loss(
    first: Tensor, second: Tensor, earlier: Tensor, temperature: float = 0.1
) -> Tensor:
    """How hard an image's two views are to find among the views of other images, and among earlier images.

    L = mean over i of −log(exp(s(f_i, g_i)/T) / (Σ_j exp(s(f_i, g_j)/T) + Σ_m exp(s(f_i, e_m)/T))), s the cosine.

    Args:
        first, second: (B, D), features of the views, row by row of the same image.
        earlier: (M, D), of images made before, M ≥ 0.
        temperature: T > 0.

    Returns:
        A scalar ≥ 0.

    Source: Fang et al., Contrastive Model Inversion for Data-Free Knowledge Distillation (IJCAI 2021).
    """
    same_shape(first, second, "features of two views")
    unit = [F.normalize(x.float(), dim=-1) for x in (first, second, earlier)]
    similarity = unit[0] @ torch.cat(unit[1:]).mT / temperature
    return F.cross_entropy(similarity, torch.arange(len(first), device=first.device))


def batch_norm_loss(features: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
    """‖mean − running mean‖ + ‖variance − running variance‖ of one layer (DeepInversion's R_feature).

    Args:
        features: (B, C, h, w), the input of a batch norm.
        running_mean, running_var: (C,), its mean and variance over the training images.

    Returns:
        A scalar ≥ 0.

    Source: Yin et al., Dreaming to Distill (CVPR 2020), eq. 4 (B).
    """
    variance, mean = torch.var_mean(features.float(), (0, 2, 3), unbiased=False)
    return (mean - running_mean).norm() + (variance - running_var).norm()


@contextmanager
def batch_norm_losses(model: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, `batch_norm_loss` of every batch norm of a model in evaluation: a list filled by its forward pass.

    Raises:
        WorkbenchError: if it has none that tracks statistics.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.track_running_stats]
    if not norms:
        raise WorkbenchError(
            "this teacher has no batch-norm statistics to match",
            got=type(model).__name__,
            expected="a network with BatchNorm2d",
            fix="use a CNN teacher (vgg16_bn, cnn_small), or "
            "the transformer form of inversion, which uses the entropy of patch similarities",
        )
    found: list[Tensor] = []

    def note(norm: Any, inputs: tuple, _: Tensor) -> None:
        found.append(batch_norm_loss(inputs[0], norm.running_mean, norm.running_var))

    with hooked(norms, note):
        yield found


@contextmanager
def attention_outputs(model: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, the output (B, T, D) of every attention module of a ViT, in order: a list filled by its forward pass."""
    found: list[Tensor] = []

    def note(_: nn.Module, inputs: tuple, output: Tensor | tuple) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    with hooked([site.module for site in attention_sites(model)], note):
        yield found


def patch_similarity_entropy(tokens: Tensor, patches: slice = slice(None)) -> Tensor:
    """Differential entropy of the cosine similarities between the patches of an image, mean over images, in nats.

    High where patches fall into things and background, low for noise, whose patches are all alike. Its negative is a loss.
    The density is a kernel estimate: Gaussian, Silverman's bandwidth (at least 0.05, without gradient), on 64 points of
    [-1, 1], made to integrate to 1 there; of more than 256 pairs a fixed, even choice is used.

    Args:
        tokens: (B, T, D), a layer's attention output.
        patches: which of the T tokens are patches.

    Returns:
        A scalar ≤ ln 2.

    Raises:
        WorkbenchError: with fewer than three patches.

    Source: Li et al., Patch Similarity Aware Data-Free Quantization for Vision Transformers (ECCV 2022), eq. 4-7; the
        bandwidth and the grid are ours.
    """
    features = F.normalize(tokens[:, patches].float(), dim=-1)
    count = features.shape[1]
    if count < 3:
        raise WorkbenchError(
            "the entropy of patch similarities needs patches",
            expected="at least 3",
            got=count,
            where="patch_similarity_entropy",
            fix="use a model with smaller patches",
        )
    first, second = torch.triu_indices(count, count, offset=1, device=tokens.device)
    some = torch.linspace(0, len(first) - 1, min(PAIRS, len(first)), device=tokens.device)
    chosen = some.round().long()
    similarity = (features @ features.mT)[:, first[chosen], second[chosen]]
    spread = similarity.detach().std(1, keepdim=True)
    bandwidth = (1.06 * spread * similarity.shape[1] ** -0.2).clamp(min=0.05)[..., None]
    points = torch.linspace(-1, 1, GRID, device=tokens.device)
    width = 2 / (GRID - 1)
    apart = (points[:, None] - similarity[:, None, :]) / bandwidth
    density = torch.exp(-0.5 * apart**2).sum(-1)
    # Entropy has no gradient at 0.
    density = density / (density.sum(-1, keepdim=True) * width) + 1e-12
    return (torch.special.entr(density).sum(-1) * width).mean()


def patch_similarity_loss(model: nn.Module, outputs: list[Tensor]) -> Tensor:
    """Minus the mean over layers of `patch_similarity_entropy`.

    Args:
        model: a vision transformer.
        outputs: of `attention_outputs`, (B, T, D) each.

    Returns:
        A scalar ≥ −ln 2.
    """
    patches = patch_tokens(model)
    return -torch.stack([patch_similarity_entropy(out, patches) for out in outputs]).mean()


def intra_divergence_loss(
    features: Tensor, logits: Tensor, labels: Tensor, easy: float = 0.5, margin: float = 0.5
) -> Tensor:
    """DF-DearKD's boundary-preserving intra-divergence: easy images of a class move apart, hard ones stay where they are.

    L = mean over easy images i of max(0, m − d(f_i, f_n(i))), where d = 1 − cos is in [0, 2] and n(i) is i's nearest
    image of its class in the batch. Gradients reach f_i of easy images only; every neighbour's feature is held.

    The source at hand says what the loss does, not its formula. Our choices: features are what the teacher's classifier
    gets; easy is at least the median (share `easy`) of a class's confidence in the label it was asked for, taken within
    the batch, so that a half is always left alone; the nearest neighbour, because pushing all pairs would drive the
    features to the two ends of a line; a hinge, because distances that are large enough need no more.

    Args:
        features: (B, D), what the teacher's classifier reads.
        logits: (B, K), of the teacher.
        labels: int64 (B,), the classes asked for.
        easy: share of each class that counts as easy, 0..1.
        margin: m in 0..2.

    Returns:
        A scalar in [0, m]; 0 where no class has two images or nothing is easy.

    Source: DearKD (CVPR 2022), the data-free case (B).
    """
    with torch.no_grad():
        # Log odds have the order of probabilities, and keep it where those are all 1 in float32.
        own = labels[:, None] == torch.arange(logits.shape[1], device=labels.device)
        asked = logits.float().gather(1, labels[:, None]).squeeze(1)
        confidence = asked - logits.float().masked_fill(own, -torch.inf).logsumexp(1)
        same = labels[:, None] == labels[None, :]
        better = (same & (confidence[None, :] > confidence[:, None])).sum(1)
        chosen = (better < (easy * same.sum(1)).floor()) & (same.sum(1) > 1)
    unit = F.normalize(features.float(), dim=-1)
    distance = 1 - unit @ unit.detach().mT
    others = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    nearest = distance.masked_fill(~others, 3.0).min(1).values
    return (F.relu(margin - nearest) * chosen).sum() / chosen.sum().clamp(min=1)
