"""Maker 1: the conditional GAN on real images, vanilla and transformer-augmented (METHODS A2)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dfkd_lib import attention, losses, training
from dfkd_lib.core import Artifact, Store, WorkbenchError
from dfkd_lib.datasets import check_classes_agree, to_float
from dfkd_lib.models import Discriminator, Generator
from dfkd_lib.models.gan import SIDE
from dfkd_lib.synthesis.canvas import GeneratorMaker, crop_middle, fit_to_last_good, pad_to_gan
from dfkd_lib.synthesis.given import Given
from dfkd_lib.training import Precision, Share, StepConfig

WATCH_EVERY = 8  # steps between measurements of the attention loss of a vanilla GAN, which does not learn from it


@dataclass
class Networks:
    """What the step of the conditional GAN works on.

    Args:
        generator, discriminator: trained.
        teacher: frozen ViT with a class token for side × side images.
        probes: its class probes (K, N).
        side: pixels of the images that the teacher takes.
        attention_share: of a batch, (0, 1], that the attention loss is taken on: as the images of a batch are independent,
            a part of them gives the same loss and gradient in the mean, at its share of the teacher's cost.
        watching: whether the attention loss is measured in this step though λ is 0.
    """

    generator: nn.Module
    discriminator: Discriminator
    teacher: nn.Module
    probes: Tensor
    side: int
    attention_share: float = 1.0
    watching: bool = True

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Noise (count, latent) and class labels (count,) at random."""
        device = self.probes.device
        noise = torch.randn(count, self.generator.latent, device=device)
        return noise, torch.randint(len(self.probes), (count,), device=device)

    def part(self, images: Tensor) -> slice:
        """The part of a batch that the attention loss is taken on."""
        return slice(max(1, round(self.attention_share * len(images))))

    def crop(self, images: Tensor) -> Tensor:
        """The middle of the GAN's 32 × 32 plane, at the size the teacher takes."""
        return crop_middle(images, self.side)

    @contextmanager
    def judging(self) -> Iterator[nn.Module]:
        """The discriminator while the generator learns from it: its weights need no gradient then."""
        self.discriminator.requires_grad_(False)
        yield self.discriminator
        self.discriminator.requires_grad_(True)


def gan_step(
    nets: Networks, real: Tensor, labels: Tensor, lam: float
) -> Iterator[tuple[str, dict]]:
    """The step of the conditional GAN: L_D, then L_G = L_adv + λ L_attention (A eq. 5).

    λ = 0 is the vanilla GAN: the attention loss is then measured now and then but has no gradient. Both variants draw the
    same random numbers in the same order, so from one seed they differ in λ alone.

    Args:
        real: float (B, C, 32, 32) in [-1, 1].
        labels: int64 (B,).
        lam: λ ≥ 0.

    Yields:
        (optimizer's name, named losses with "loss").
    """
    noise, wanted = nets.draw(len(real))
    fake = nets.generator(wanted, noise)
    on_real = nets.discriminator(real, labels).float()
    on_fake = nets.discriminator(fake.detach(), wanted).float()
    d_loss = bce(on_real, torch.ones_like(on_real)) + bce(on_fake, torch.zeros_like(on_fake))
    yield "discriminator", {"loss": d_loss}
    with nets.judging() as discriminator:
        score = discriminator(fake, wanted).float()
        adversarial = bce(score, torch.ones_like(score))
        found, total = {"adversarial": adversarial}, adversarial
        if lam > 0 or nets.watching:
            part = nets.part(fake)
            with torch.set_grad_enabled(lam > 0):
                probe = attention.attention_probe(nets.teacher, nets.crop(fake[part]))
                consistency = losses.attention_consistency_loss(probe, nets.probes[wanted[part]])
            found["attention"], total = consistency, adversarial + lam * consistency
        yield "generator", {"loss": total, **found}


class CGAN(GeneratorMaker, StepConfig):
    """The conditional GAN: reads real images, and class probes for its attention loss; λ = 0 is the vanilla one.

    The defaults are the paper's (A Table 1 and §A2); it names neither epochs nor λ.
    """

    sees: ClassVar[tuple[str, ...]] = ("real images", "class probes")
    own_step: ClassVar = staticmethod(gan_step)
    also: ClassVar[dict[str, str]] = {"batch_size": "gan_batch"}

    epochs: int = Field(50, ge=1, description="passes over the real images")
    batch_size: int = Field(128, ge=2, description="images a step")
    lr: float = Field(1e-4, gt=0, le=1, description="learning rate of Adam")
    optimizer: Literal["adam"] = Field("adam", description="optimizer")
    betas: tuple[Share, Share] = Field((0.5, 0.999), description="of Adam")
    weight_decay: float = Field(2e-5, ge=0, description="weight decay")
    schedule: Literal["cosine", "constant"] = Field("constant", description="of the learning rate")
    precision: Precision = Field("bf16", description="arithmetic: fp32, or bf16 by autocast")
    lam: float = Field(
        1.0, ge=0, le=1000, title="λ", description="weight of the attention loss (A eq. 5)"
    )
    attention_share: float = Field(
        1.0, gt=0, le=1, description="share of each batch the attention loss is taken on"
    )
    width: int = Field(512, ge=8, le=4096, description="channels after the generator's first layer")
    d_width: int = Field(64, ge=4, le=1024, description="channels after the discriminator's first")
    latent: int = Field(100, ge=1, description="dimensions of the noise")
    dropout: float = Field(0.25, ge=0, le=0.9, description="of the discriminator")
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay of a moving average of the generator that draws, 0: none",
    )

    @property
    def budget(self) -> str:
        return "real images and class probes" if self.lam else "real images"

    def train(self, store: Store, given: Given) -> Artifact:
        """The trained GAN: generator-<epoch>.safetensors and history.json (losses, "attention"); metrics "stopped",
        "images_per_second".

        Raises:
            WorkbenchError: without real images, or if images are larger than 32 × 32; if teacher, probes and images do
                not fit. DivergedError: if it diverges before any epoch is done.
        """
        real = given.needed("real", "use a maker that reads none")
        if given.shape[1] > SIDE or real.shape != given.shape:
            raise WorkbenchError(
                "the conditional GAN makes the images it is shown, at most 32 × 32",
                expected=f"{given.shape}, at most {SIDE} pixels",
                got=real.shape,
                where=real.name,
                fix="resize the images (size=32)",
            )
        check_classes_agree(given.classes, real.classes, real.name)
        return store.get_or_make(
            "cgan",
            {"data": real.fingerprint, **given.wanted, **self.as_dict()},
            lambda work: self._fit(work, given),
            [given.teacher, *([given.probes] if given.probes else [])],
            {real.split: "training the discriminator"} if real.real else {},
        )

    def _fit(self, work: Path, given: Given) -> dict:
        teacher, real, config = given.load_teacher(), given.real, self.training()
        probes = given.load_probes(teacher)
        torch.manual_seed(config.seed)
        modules = self.networks(given)
        batches = training.TensorBatches(
            (real.images, real.labels),
            config.batch_size,
            lambda batch, _: (pad_to_gan(to_float(batch[0])), batch[1]),
        )
        more = {"side": given.shape[1], "attention_share": self.attention_share}
        nets = Networks(**modules, teacher=teacher, probes=probes, **more)
        steps, chosen = len(batches), self._step or self.own_step

        def step(batch: tuple, progress: float) -> Iterator[tuple[str, dict]]:
            place = round(progress * config.epochs * steps) % steps
            nets.watching = place % WATCH_EVERY == 0
            yield from chosen(nets, *batch[:2], self.lam)

        label, optimizers = f"cGAN λ={self.lam:g} seed {config.seed}", {m: [m] for m in modules}
        return fit_to_last_good(work, modules, step, batches, config, label, optimizers)

    # No decorator, whose name would count in the key: what is checked decides no result.
    _fit = training.checks_step(_fit)

    def networks(self, given: Given) -> dict[str, nn.Module]:
        """A new generator and discriminator for such images, untrained."""
        generator = self.new_generator(given.classes, given.shape)
        judge = Discriminator(len(given.classes), given.shape[0], self.d_width, self.dropout)
        made = {"generator": generator, "discriminator": judge}
        return {name: one.to(memory_format=torch.channels_last) for name, one in made.items()}

    def new_generator(self, classes: tuple[str, ...], shape: tuple[int, int, int]) -> nn.Module:
        """A generator for such images, untrained."""
        generator = Generator(len(classes), shape[0], self.latent, self.width)
        return AveragedGenerator(generator, self.ema) if self.ema else generator


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
