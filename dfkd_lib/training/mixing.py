"""What is done to a batch of images before a student sees it: shifts or a policy, erasing, then CutMix or MixUp."""

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from dfkd_lib.core import Config, Registry
from dfkd_lib.datasets import random_flip, random_shift, to_float
from dfkd_lib.training.augment import (
    auto_augment,
    rand_augment,
    random_affine,
    random_jitter,
)
from dfkd_lib.training.config import Share

ALPHA = 0.5  # of Beta(alpha, alpha), the share of a mix


class Batch(NamedTuple):
    """What a step receives.

    Args:
        images: float (B, C, H, W) in [-1, 1] (uint8 before augmentation).
        labels: int64 (B,).
        rows: int64 (B,), places of the images in their set.
        others, share: labels of what was mixed in, int64 (B,), and the share of each image that is its own, float (B,); both
            None where nothing is mixed.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor
    others: Tensor | None = None
    share: Tensor | None = None


def beta_sample(alpha: float, generator: torch.Generator) -> float:
    """One draw of Beta(alpha, alpha), a number in [0, 1], from the given generator."""
    # torch has no beta distribution that takes a generator; numpy's is seeded from it.
    seed = int(torch.randint(2**31, (1,), generator=generator))
    return float(np.random.default_rng(seed).beta(alpha, alpha))


def cutmix(
    images: Tensor, labels: Tensor, lam: float, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Paste one rectangle, of a share 1 - lam of the area before clipping, from a shuffled batch into each image.

    Args:
        images: (B, C, H, W).
        labels: (B,) int64.
        lam: share in [0, 1] of the image that stays.

    Returns:
        (images, labels of the pasted images, lam): lam (B,) float, the share that stays after clipping.
    Source: Yun et al. 2019; TITN paper, section 3.5.2.
    """
    batch, _, height, width = images.shape
    order = torch.randperm(batch, generator=generator).to(images.device, non_blocking=True)
    centre, half = torch.rand(2, generator=generator).tolist(), (1 - lam) ** 0.5 / 2

    def span(at: float, side: int) -> slice:
        return slice(max(0, round((at - half) * side)), min(side, round((at + half) * side)))

    down, across = span(centre[0], height), span(centre[1], width)
    mixed = images.clone()
    mixed[:, :, down, across] = images[order, :, down, across]
    stays = 1 - mixed[0, 0, down, across].numel() / (height * width)
    return mixed, labels[order], torch.full((batch,), stays, device=images.device)


def mixup(
    images: Tensor, labels: Tensor, lam: float, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """lam * image + (1 - lam) * image of a shuffled batch; shapes as in `cutmix` (Zhang et al. 2018)."""
    order = torch.randperm(len(images), generator=generator)
    order = order.to(images.device, non_blocking=True)
    share = torch.full((len(images),), float(lam), device=images.device)
    return lam * images + (1 - lam) * images[order], labels[order], share


def erased(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Each image, with probability `share`, with a rectangle of 2 to 33 % of its area made grey.

    Args:
        images: float (B, C, H, W) in [-1, 1].

    Source: Zhong et al. 2020, random erasing.
    """
    (batch, _, height, width), where = images.shape, images.device
    drawn = torch.rand(5, batch, generator=generator)
    area, ratio = 0.02 + 0.31 * drawn[0], torch.exp((2 * drawn[1] - 1) * math.log(3.3))
    sides = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    inside = (drawn[4] < share)[:, None, None].to(where, non_blocking=True)
    for side, at, pixels, axis in zip(sides, drawn[2:4], (height, width), (1, 2), strict=True):
        first = (at * (1 - side) * pixels).round()
        last = first + (side * pixels).round()
        place = torch.arange(pixels)
        within = (place >= first[:, None]) & (place < last[:, None])
        inside = inside & within.unsqueeze(3 - axis).to(where, non_blocking=True)
    return images.masked_fill(inside[:, None], 0.0)


Kind = Literal["none", "shift", "flip", "randaugment", "autoaugment", "affine", "jitter"]
Mix = Literal["none", "cutmix", "mixup", "either"]


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    return random_shift(images, 2, generator)


def _flipped(images: Tensor, generator: torch.Generator) -> Tensor:
    return random_flip(random_shift(images, 4, generator), generator)


# What is done to a batch of uint8 images, one after another.
KINDS = Registry(
    {
        "none": (),
        "shift": (_shifted,),
        "flip": (_flipped,),
        "randaugment": (_flipped, rand_augment),
        "autoaugment": (_flipped, auto_augment),
        "affine": (random_affine,),
        "jitter": (random_affine, random_jitter),
    }
)


class Augmentation(Config):
    """What is done to each batch; called with (Batch of uint8 images, generator) it gives the batch of a step.

    "shift" moves by up to 2 pixels; "flip" by up to 4, and mirrors half of the images; "randaugment" and "autoaugment" do so
    too, then the policy (for colour photographs). For images that mirroring would change into others, such as digits:
    "affine" turns each by up to 15°, scales it by 0.9 to 1.1, shears it by up to 10° and moves it by up to 2 pixels;
    "jitter" does so too, then draws brightness and contrast within ± 40 %. Erasing and mixing follow: the share of a mix is
    drawn from Beta(0.5, 0.5); "either" takes CutMix or MixUp, a batch at a time.
    """

    kind: Kind = Field("none", description="what is done to each image")
    mix: Mix = Field("none", description="how images are mixed")
    erase: Share = Field(0.0, description="share of the images in which a rectangle is made grey")

    @property
    def keeps_images(self) -> bool:
        """Whether every image stays as it is, so that a teacher's targets of it can be used at every epoch."""
        return (self.kind, self.mix, self.erase) == ("none", "none", 0)

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        images = batch.images
        for change in KINDS[self.kind]:
            images = change(images, generator)
        images = to_float(images)
        if self.erase:
            images = erased(images, self.erase, generator)
        if self.mix == "none":
            return batch._replace(images=images)
        lam = beta_sample(ALPHA, generator)
        chosen = self.mix
        if chosen == "either":
            chosen = ("cutmix", "mixup")[int(torch.randint(2, (1,), generator=generator))]
        mixing = cutmix if chosen == "cutmix" else mixup
        images, others, share = mixing(images, batch.labels, lam, generator)
        return Batch(images, batch.labels, batch.rows, others, share)
