"""The conditional GAN with a moving average of its generator, which draws in the generator's place."""

from pydantic import Field
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dfkd_lib.models import Generator
from dfkd_lib.synthesis.cgan import CGAN


class AveragedGenerator(nn.Module):
    """A generator that learns, and in evaluation draws by the moving average of its weights and statistics.

    The average takes the weights in at every pass in training: once a step, after the update of the step before.
    Source: Karras et al. (ICLR 2018), §A.
    """

    def __init__(self, live: Generator, decay: float):
        super().__init__()
        self.live, self.latent, self.noise = live, live.latent, live.noise
        averaging = get_ema_multi_avg_fn(decay)
        self.mean = AveragedModel(live, multi_avg_fn=averaging, use_buffers=True)
        self.mean.requires_grad_(False)

    def forward(self, labels: Tensor, noise: Tensor) -> Tensor:
        """Labels int64 (B,), noise (B, latent) → images (B, C, 32, 32) in [-1, 1]."""
        if not self.training:
            return self.mean.module(labels, noise)
        self.mean.update_parameters(self.live)
        return self.live(labels, noise)


class AveragedCGAN(CGAN):
    """`CGAN` with an averaged generator; a class of its own, so that a GAN without one keeps its key."""

    ema: float = Field(0.999, gt=0, lt=1, description="decay of the moving average")

    def new_generator(self, classes: tuple[str, ...], shape: tuple[int, int, int]) -> nn.Module:
        """A generator for such images, untrained."""
        return AveragedGenerator(super().new_generator(classes, shape), self.ema)
