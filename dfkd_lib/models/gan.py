"""Generators: the conditional GAN of METHODS A2 for 32 × 32 images, and one for learning from a teacher alone."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 32  # pixels; smaller data sets are padded to it and cropped back


def normal_weights(module: nn.Module) -> None:
    """DCGAN's initialisation, for `Module.apply` (Radford et al. 2016): without it the adversarial game often stalls."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


class Generator(nn.Module):
    """Noise and a class → an image; four transposed convolutions, the class as a 5-d embedding beside the noise.

    Args:
        num_classes: K.
        channels: of the image.
        latent: length of the noise vector.
        width: channels after the first layer, halved by each of the next two (the paper's 512, 256, 128).
    """

    def __init__(self, num_classes: int, channels: int, latent: int = 100, width: int = 512):
        super().__init__()
        self.latent = latent
        self.embed = nn.Embedding(num_classes, 5)
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(latent + 5, width, 4, 2, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(True),
            nn.ConvTranspose2d(width, width // 2, 4, 2, 1, bias=False),
            nn.BatchNorm2d(width // 2),
            nn.ReLU(True),
            nn.ConvTranspose2d(width // 2, width // 4, 4, 2, 1, bias=False),
            nn.BatchNorm2d(width // 4),
            nn.ReLU(True),
            nn.ConvTranspose2d(width // 4, channels, 4, 2, 1),
            nn.Tanh(),
        )
        self.apply(normal_weights)

    def noise(self, count: int, generator: torch.Generator | None = None) -> tuple[Tensor]:
        """What `forward` wants beside labels: noise (count, latent), standard normal."""
        return (torch.randn(count, self.latent, generator=generator),)

    def forward(self, labels: Tensor, noise: Tensor) -> Tensor:
        """Labels int64 (B,), noise (B, latent) → images (B, C, 32, 32) in [-1, 1]."""
        return self.layers(torch.cat([noise, self.embed(labels)], 1)[:, :, None, None])


class Discriminator(nn.Module):
    """An image and a class → one logit (real if positive); the class as a 32 × 32 plane beside the image.

    Args:
        num_classes: K.
        channels: of the image.
        width: channels after the first layer, doubled by each of the next two (the paper's 64, 128, 256).
        dropout: probability after each of the three.
    """

    def __init__(self, num_classes: int, channels: int, width: int = 64, dropout: float = 0.25):
        super().__init__()
        self.embed = nn.Embedding(num_classes, SIDE * SIDE)
        self.layers = nn.Sequential(
            nn.Conv2d(channels + 1, width, 4, 2, 1),
            nn.LeakyReLU(0.2, True),
            nn.Dropout2d(dropout),
            nn.Conv2d(width, width * 2, 4, 2, 1, bias=False),
            nn.BatchNorm2d(width * 2),
            nn.LeakyReLU(0.2, True),
            nn.Dropout2d(dropout),
            nn.Conv2d(width * 2, width * 4, 4, 2, 1, bias=False),
            nn.BatchNorm2d(width * 4),
            nn.LeakyReLU(0.2, True),
            nn.Dropout2d(dropout),
            nn.Conv2d(width * 4, 1, 4),
        )
        self.apply(normal_weights)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Images (B, C, 32, 32) in [-1, 1], labels int64 (B,) → logits (B,)."""
        plane = self.embed(labels).view(-1, 1, SIDE, SIDE).to(images.dtype)
        return self.layers(torch.cat([images, plane], 1)).flatten()


class FieldGenerator(nn.Module):
    """Noise and a class → an image, drawn as the level set of a smooth field that is bent and textured at random.

    Without a discriminator nothing keeps a generator from a few shapes per class, or from patterns that only fool the
    teacher. So the network draws at half the resolution, which leaves it no fine patterns, and every image is bent
    (rotation, scale, shear, a smooth displacement), textured (smooth noise) and thinned or thickened at random after it:
    shapes that the teacher is to recognise must survive that.

    Args:
        num_classes: K.
        channels: C.
        side: S, pixels.
        latent: length of the noise.
        width: channels of the first layer, halved by each of the next.
        texture: strength of the smooth noise beside a field within ±2.5.
        bend: strength of the random deformation, 0: none; 1: up to 0.2 rad, a fifth in scale, some 2.5 of 32
            pixels.
    """

    BOUND, GAIN, OCTAVES = 2.5, 2.0, (3, 5, 7, 10, 14)

    def __init__(
        self,
        num_classes: int,
        channels: int,
        side: int,
        latent: int = 100,
        width: int = 128,
        texture: float = 2.0,
        bend: float = 1.0,
    ):
        super().__init__()
        self.latent, self.channels, self.side = latent, channels, side
        self.texture, self.bend = texture, bend
        self.embed = nn.Embedding(num_classes, latent)
        layers = [nn.ConvTranspose2d(2 * latent, width, 4)]
        for _ in range(max(0, math.ceil(math.log2(side / 8)))):
            narrower = max(width // 2, 16)
            layers += [
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.ConvTranspose2d(width, narrower, 4, 2, 1),
            ]
            width = narrower
        self.layers = nn.Sequential(
            *layers, nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, channels, 3, 1, 1)
        )

    @torch.no_grad()
    def inherit(self, other: "FieldGenerator") -> None:
        """Take over how another one draws, all but its classes and its first layer: those are what it draws."""
        for mine, its in zip(self.layers[1:], other.layers[1:], strict=True):
            mine.load_state_dict(its.state_dict())

    def noise(self, count: int, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        """What `forward` wants beside labels: latent (n, L), texture (n, C, S, S), where to look (n, S, S, 2), offsets
        (n, 1, 1, 1)."""

        def uniform(*shape):
            return 2 * torch.rand(*shape, generator=generator) - 1

        def smooth(channels, points):
            drawn = torch.randn(count, channels, points, points, generator=generator)
            return F.interpolate(drawn, (self.side, self.side), mode="bicubic", align_corners=False)

        texture = sum(
            smooth(self.channels, points) * uniform(count, 1, 1, 1).abs() for points in self.OCTAVES
        )
        texture = (
            texture / texture.flatten(1).std(1)[:, None, None, None] * uniform(count, 1, 1, 1).abs()
        )
        turn, shear = 0.2 * self.bend * uniform(count), 0.2 * self.bend * uniform(count)
        wide, high = 1 + 0.2 * self.bend * uniform(count), 1 + 0.2 * self.bend * uniform(count)
        affine = torch.zeros(count, 2, 3)
        affine[:, 0, 0], affine[:, 0, 1] = turn.cos() * wide, shear - turn.sin() * wide
        affine[:, 1, 0], affine[:, 1, 1] = turn.sin() * high, turn.cos() * high
        grid = F.affine_grid(affine, [count, 1, self.side, self.side], align_corners=False)
        moved = 0.23 * self.bend * uniform(count, 1, 1, 1).abs() * smooth(2, 4).movedim(1, -1)
        latent = torch.randn(count, self.latent, generator=generator)
        return latent, texture, grid + moved, 0.7 * uniform(count, 1, 1, 1) - 0.5

    def forward(
        self, labels: Tensor, latent: Tensor, texture: Tensor, grid: Tensor, offset: Tensor
    ) -> Tensor:
        """Labels int64 (B,) and `noise` → images (B, C, S, S) in [-1, 1]."""
        field = self.layers(torch.cat([latent, self.embed(labels)], 1)[:, :, None, None]).float()
        field = F.interpolate(field, (self.side, self.side), mode="bicubic", align_corners=False)
        field = F.grid_sample(
            self.BOUND * torch.tanh(field / self.BOUND),
            grid,
            padding_mode="border",
            align_corners=False,
        )
        return torch.tanh(self.GAIN * (field + self.texture * texture + offset))
