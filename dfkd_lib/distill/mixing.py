"""Batch augmentation of the early-KD and TITN students: shifts or AutoAugment, then CutMix or MixUp."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from dfkd_lib.datasets import random_flip, random_shift, to_float
from dfkd_lib.errors import WorkbenchError

AUGMENTATIONS = ("none", "shift", "autoaugment")
MIXES = ("none", "cutmix", "mixup")


def beta_sample(alpha: float, generator: torch.Generator) -> float:
    """One draw of Beta(alpha, alpha), a number in [0, 1], from the given generator."""
    # torch has no beta distribution that takes a generator; numpy's is seeded from it.
    seed = int(torch.randint(2**31, (1,), generator=generator))
    return float(np.random.default_rng(seed).beta(alpha, alpha))


def cutmix(images: Tensor, labels: Tensor, lam: float, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Paste one rectangle, of a share 1 - lam of the area before clipping, from a shuffled batch into each image.

    Args:
        images: (B, C, H, W). labels: (B,) int64. lam: share in [0, 1] of the image that stays.

    Returns:
        (images, labels, labels of the pasted images, lam): lam (B,) float, the share that stays after clipping.
    Source: Yun et al. 2019; TITN paper, section 3.5.2.
    """
    batch, _, height, width = images.shape
    order = torch.randperm(batch, generator=generator)
    centre = torch.rand(2, generator=generator).tolist()
    share = (1 - lam) ** 0.5
    (top, bottom), (left, right) = (
        (max(0, round(at * side - share * side / 2)), min(side, round(at * side + share * side / 2)))
        for at, side in zip(centre, (height, width), strict=True))
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[order, :, top:bottom, left:right]
    stays = 1 - (bottom - top) * (right - left) / (height * width)
    return mixed, labels, labels[order], torch.full((batch,), stays)


def mixup(images: Tensor, labels: Tensor, lam: float, generator: torch.Generator) -> tuple[Tensor, ...]:
    """lam * image + (1 - lam) * image of a shuffled batch; shapes as in `cutmix` (Zhang et al. 2018)."""
    order = torch.randperm(len(images), generator=generator)
    return lam * images + (1 - lam) * images[order], labels, labels[order], torch.full((len(images),), float(lam))


def auto_augment(images: Tensor) -> Tensor:
    """AutoAugment's CIFAR-10 policy drawn anew for each image, uint8 (B, C, H, W) with 1 or 3 channels.

    Reads torch's global generator, which the training loop seeds at each epoch. Source: Cubuk et al. 2019.
    """
    from torchvision.transforms import v2

    policy = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
    return torch.stack([policy(image) for image in images])


def batch_transform(augmentation: str = "shift", mix: str = "none", alpha: float = 0.5) -> Callable:
    """A transform for `training.TensorBatches` over (uint8 images, labels).

    Args:
        augmentation: "none"; "shift", up to 2 pixels; "autoaugment": shift by up to 4, flip, AutoAugment (for colour
            photographs). mix: "none", "cutmix" or "mixup". alpha: of Beta(alpha, alpha), from which lam is drawn.

    Returns:
        (batch, generator) -> (images float in [-1, 1], labels), and with a mix also (labels of the others, lam).

    Raises:
        WorkbenchError: on an unknown name.
    """
    for name, known, where in ((augmentation, AUGMENTATIONS, "augmentation"), (mix, MIXES, "mix")):
        if name not in known:
            raise WorkbenchError("unknown batch transform", expected=", ".join(known), got=name, where=where)

    def transform(batch: tuple[Tensor, Tensor], generator: torch.Generator) -> tuple[Tensor, ...]:
        images, labels = batch
        if augmentation == "shift":
            images = random_shift(images, 2, generator)
        elif augmentation == "autoaugment":
            images = auto_augment(random_flip(random_shift(images, 4, generator), generator))
        images = to_float(images)
        if mix == "none":
            return images, labels
        lam = beta_sample(alpha, generator)
        return (cutmix if mix == "cutmix" else mixup)(images, labels, lam, generator)

    return transform
