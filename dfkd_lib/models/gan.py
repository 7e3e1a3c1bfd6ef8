"""Generators: the conditional GAN of METHODS A2 for 32 × 32 images, and one for learning from a teacher alone."""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 32  # pixels; smaller data sets are padded to it and cropped back
SLOPE = 0.2  # of a discriminator's leaky ReLU


def normal_weights(module: nn.Module) -> None:
    """DCGAN's initialisation, for `Module.apply` (Radford et al. 2016): without it the adversarial game often stalls."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def down(
    before: int, after: int, dropout: float, norm: bool = True, bias: bool = True
) -> list[nn.Module]:
    """A layer of a discriminator: half the side, batch norm unless it is the first, leaky ReLU, dropout."""
    return [
        nn.Conv2d(before, after, 4, 2, 1, bias=bias),
        *([nn.BatchNorm2d(after)] if norm else []),
        nn.LeakyReLU(SLOPE, True),
        nn.Dropout2d(dropout),
    ]


class _FromPoint(nn.ConvTranspose2d):
    """The transposed convolution of a single point, as the matrix product that it is: on a CPU many times as fast."""

    def forward(self, point: Tensor) -> Tensor:
        """Points (B, C, 1, 1) → maps (B, C', k, k)."""
        drawn = (point.flatten(1) @ self.weight.flatten(1)).unflatten(1, self.weight.shape[1:])
        return drawn if self.bias is None else drawn + self.bias[:, None, None].to(drawn.dtype)


class _Renewed(nn.Module):
    """A generator that can forget what it draws, but not how."""

    def started(self, layer: nn.Module) -> None:
        """What is done to a layer when it is made."""

    def renew(self, seed: int) -> None:
        """Give it new classes and a new first layer, which are what it draws, the same of a seed on every device."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for part in (self.embed, self.layers[0]):
                fresh = copy.deepcopy(part).cpu()
                fresh.reset_parameters()
                self.started(fresh)
                part.load_state_dict(fresh.state_dict())


class Generator(_Renewed):
    """Noise and a class → an image; four transposed convolutions, the class as a 5-d embedding beside the noise.

    `width`: channels after the first layer, halved by each of the next two (the paper's 512, 256, 128). `side` ≤ 32: of its
    images, the middle of what it draws.
    """

    def __init__(
        self, num_classes: int, channels: int, latent: int = 100, width: int = 512, side: int = SIDE
    ):
        super().__init__()
        self.latent, self.side = latent, side
        self.embed = nn.Embedding(num_classes, 5)
        layers: list[nn.Module] = [_FromPoint(latent + 5, width, 4, 2, bias=False)]
        for before in (width, width // 2):
            up = nn.ConvTranspose2d(before, before // 2, 4, 2, 1, bias=False)
            layers += [nn.BatchNorm2d(before), nn.ReLU(True), up]
        last = nn.ConvTranspose2d(width // 4, channels, 4, 2, 1)
        layers += [nn.BatchNorm2d(width // 4), nn.ReLU(True), last, nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        self.apply(normal_weights)

    def noise(self, count: int, generator: torch.Generator | None = None) -> tuple[Tensor]:
        """What `forward` wants beside labels: noise (count, latent), standard normal."""
        return (torch.randn(count, self.latent, generator=generator),)

    def forward(self, labels: Tensor, noise: Tensor) -> Tensor:
        """Labels int64 (B,), noise (B, latent) → images (B, C, side, side) in [-1, 1]."""
        images = self.layers(torch.cat([noise, self.embed(labels)], 1)[:, :, None, None])
        first = (SIDE - self.side) // 2
        return images[..., first : first + self.side, first : first + self.side]

    def started(self, layer: nn.Module) -> None:
        normal_weights(layer)


class Discriminator(nn.Module):
    """An image and a class → one logit (real if positive); the class as a 32 × 32 plane beside the image.

    `width`: channels after the first layer, doubled by each of the next two (the paper's 64, 128, 256).
    """

    def __init__(self, num_classes: int, channels: int, width: int = 64, dropout: float = 0.25):
        super().__init__()
        self.embed = nn.Embedding(num_classes, SIDE * SIDE)
        self.layers = nn.Sequential(
            *down(channels + 1, width, dropout, norm=False),
            *down(width, width * 2, dropout, bias=False),
            *down(width * 2, width * 4, dropout, bias=False),
            nn.Conv2d(width * 4, 1, 4),
        )
        self.apply(normal_weights)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Images (B, C, 32, 32) in [-1, 1], labels int64 (B,) → logits (B,)."""
        plane = self.embed(labels).view(-1, 1, SIDE, SIDE).to(images.dtype)
        return self.layers(torch.cat([images, plane], 1)).flatten()


class FieldGenerator(_Renewed):
    """Noise and a class → an image, drawn as the level set of a smooth field that is bent and textured at random.

    Without a discriminator nothing keeps a generator from a few shapes per class, or from patterns that only fool the
    teacher. So the network draws at half the resolution, which leaves it no fine patterns, and every image is bent,
    textured and thinned or thickened at random: shapes that the teacher is to recognise must survive that.

    Args:
        width: channels of the first layer, halved by each of the next.
        texture: strength of the smooth noise beside a field within ±2.5.
        bend: strength of the random deformation, 0: none; 1: up to 0.2 rad, a fifth in scale, some 2.5 of 32 pixels.
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
        layers: list[nn.Module] = [_FromPoint(2 * latent, width, 4)]
        for _ in range(max(0, math.ceil(math.log2(side / 8)))):
            before, width = width, max(width // 2, 16)
            up = nn.ConvTranspose2d(before, width, 4, 2, 1)
            layers += [nn.BatchNorm2d(before), nn.ReLU(), up]
        last = nn.Conv2d(width, channels, 3, 1, 1)
        self.layers = nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU(), last)

    def noise(self, count: int, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        """What `forward` wants beside labels: latent (n, L), texture (n, C, S, S), places (n, S, S, 2), offsets (n, 1, 1, 1)."""

        def uniform(*shape):
            return 2 * torch.rand(*shape, generator=generator) - 1

        def smooth(channels, points):
            drawn = torch.randn(count, channels, points, points, generator=generator)
            return F.interpolate(drawn, (self.side, self.side), mode="bicubic", align_corners=False)

        octaves = (smooth(self.channels, n) * uniform(count, 1, 1, 1).abs() for n in self.OCTAVES)
        texture = sum(octaves)
        spread = texture.flatten(1).std(1)[:, None, None, None]
        texture = texture / spread * uniform(count, 1, 1, 1).abs()
        turn, shear, wide, high = (0.2 * self.bend * uniform(count) for _ in range(4))
        wide, high = 1 + wide, 1 + high
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
        field = self.BOUND * torch.tanh(field / self.BOUND)
        field = F.grid_sample(field, grid, padding_mode="border", align_corners=False)
        return torch.tanh(self.GAIN * (field + self.texture * texture + offset))
