"""What is done to a batch of images before a student sees it: shifts or AutoAugment, then CutMix or MixUp."""

from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from dfkd_lib.core import Config
from dfkd_lib.datasets import ImageSet, random_flip, random_shift, to_float


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
        (images, labels, labels of the pasted images, lam): lam (B,) float, the share that stays after clipping.
    Source: Yun et al. 2019; TITN paper, section 3.5.2.
    """
    batch, _, height, width = images.shape
    order = torch.randperm(batch, generator=generator).to(images.device)
    centre, half = torch.rand(2, generator=generator).tolist(), (1 - lam) ** 0.5 / 2

    def span(at: float, side: int) -> slice:
        return slice(max(0, round((at - half) * side)), min(side, round((at + half) * side)))

    down, across = span(centre[0], height), span(centre[1], width)
    mixed = images.clone()
    mixed[:, :, down, across] = images[order, :, down, across]
    stays = 1 - mixed[0, 0, down, across].numel() / (height * width)
    return mixed, labels, labels[order], torch.full((batch,), stays, device=images.device)


def mixup(
    images: Tensor, labels: Tensor, lam: float, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """lam * image + (1 - lam) * image of a shuffled batch; shapes as in `cutmix` (Zhang et al. 2018)."""
    order = torch.randperm(len(images), generator=generator).to(images.device)
    share = torch.full((len(images),), float(lam), device=images.device)
    return lam * images + (1 - lam) * images[order], labels, labels[order], share


def auto_augment(images: Tensor) -> Tensor:
    """AutoAugment's CIFAR-10 policy drawn anew for each image, uint8 (B, C, H, W) with 1 or 3 channels.

    Reads torch's global generator, which the training loop seeds at each epoch. Source: Cubuk et al. 2019.
    """
    from torchvision.transforms import v2

    policy = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
    return torch.stack([policy(image) for image in images])


class Augmentation(Config):
    """What is done to each batch; called with (Batch of uint8 images, generator) it gives the batch of a step.

    "shift" moves by up to `shift` pixels; "autoaugment" shifts by up to 4, flips and applies AutoAugment (for colour
    photographs). Mixing draws its share from Beta(alpha, alpha).
    """

    kind: Literal["none", "shift", "autoaugment"] = Field(
        "none",
        description="what is done to each image",
        json_schema_extra={"also": "augmentation"},
    )
    mix: Literal["none", "cutmix", "mixup"] = Field("none", description="how images are mixed")
    shift: int = Field(2, ge=0, description="pixels of the random shift")
    alpha: float = Field(0.5, gt=0, description="of Beta(alpha, alpha), the share of a mix")

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        images = batch.images
        if self.kind == "shift":
            images = random_shift(images, self.shift, generator)
        elif self.kind == "autoaugment":
            images = auto_augment(random_flip(random_shift(images, 4, generator), generator))
        images = to_float(images)
        if self.mix == "none":
            return batch._replace(images=images)
        lam = beta_sample(self.alpha, generator)
        mixed = (cutmix if self.mix == "cutmix" else mixup)(images, batch.labels, lam, generator)
        return Batch(mixed[0], batch.labels, batch.rows, mixed[2], mixed[3])


def keeps_images(augmentation: Augmentation, images: ImageSet, batch_size: int = 512) -> bool:
    """Whether every image leaves the augmentation as it is in the set, seen in one pass over all of them.

    Only then can a teacher's targets of the images be computed once and used at every epoch.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        for rows in torch.arange(len(images)).split(batch_size):
            batch = Batch(images.images[rows], images.labels[rows], rows)
            if not torch.equal(augmentation(batch, generator).images, to_float(batch.images)):
                return False
    return True
