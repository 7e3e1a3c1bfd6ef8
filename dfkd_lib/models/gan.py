"""The conditional GAN of METHODS A2: generator and discriminator for 32 × 32 images."""

import torch
from torch import Tensor, nn

SIDE = 32  # pixels; smaller data sets are padded to it and cropped back


def _normal_weights(module: nn.Module) -> None:
    # DCGAN's initialisation (Radford et al. 2016): without it the adversarial game often stalls at these settings.
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


class Generator(nn.Module):
    """Noise and a class → an image; four transposed convolutions, the class as a 5-d embedding beside the noise.

    Args:
        num_classes: K. channels: of the image. latent: length of the noise vector. width: channels after the first
            layer, halved by each of the next two (the paper's 512, 256, 128).
    """

    def __init__(self, num_classes: int, channels: int, latent: int = 100, width: int = 512):
        super().__init__()
        self.latent = latent
        self.embed = nn.Embedding(num_classes, 5)
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(latent + 5, width, 4, 2, bias=False), nn.BatchNorm2d(width), nn.ReLU(True),
            nn.ConvTranspose2d(width, width // 2, 4, 2, 1, bias=False), nn.BatchNorm2d(width // 2), nn.ReLU(True),
            nn.ConvTranspose2d(width // 2, width // 4, 4, 2, 1, bias=False), nn.BatchNorm2d(width // 4), nn.ReLU(True),
            nn.ConvTranspose2d(width // 4, channels, 4, 2, 1), nn.Tanh())
        self.apply(_normal_weights)

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Noise (B, latent), labels int64 (B,) → images (B, C, 32, 32) in [-1, 1]."""
        return self.layers(torch.cat([noise, self.embed(labels)], 1)[:, :, None, None])


class Discriminator(nn.Module):
    """An image and a class → one logit (real if positive); the class as a 32 × 32 plane beside the image.

    Args:
        num_classes: K. channels: of the image. width: channels after the first layer, doubled by each of the next two
            (the paper's 64, 128, 256). dropout: probability after each of the three.
    """

    def __init__(self, num_classes: int, channels: int, width: int = 64, dropout: float = 0.25):
        super().__init__()
        self.embed = nn.Embedding(num_classes, SIDE * SIDE)
        self.layers = nn.Sequential(
            nn.Conv2d(channels + 1, width, 4, 2, 1), nn.LeakyReLU(0.2, True), nn.Dropout2d(dropout),
            nn.Conv2d(width, width * 2, 4, 2, 1, bias=False), nn.BatchNorm2d(width * 2), nn.LeakyReLU(0.2, True),
            nn.Dropout2d(dropout),
            nn.Conv2d(width * 2, width * 4, 4, 2, 1, bias=False), nn.BatchNorm2d(width * 4), nn.LeakyReLU(0.2, True),
            nn.Dropout2d(dropout),
            nn.Conv2d(width * 4, 1, 4))
        self.apply(_normal_weights)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Images (B, C, 32, 32) in [-1, 1], labels int64 (B,) → logits (B,)."""
        plane = self.embed(labels).view(-1, 1, SIDE, SIDE).to(images.dtype)
        return self.layers(torch.cat([images, plane], 1)).flatten()
