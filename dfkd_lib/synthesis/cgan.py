"""Maker 1: the conditional GAN on real images, vanilla and transformer-augmented (METHODS A2)."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfkd_lib import training
from dfkd_lib.attention import attention_probe
from dfkd_lib.core import WorkbenchError, artifacts
from dfkd_lib.core.artifacts import Artifact, Store
from dfkd_lib.datasets import to_float
from dfkd_lib.distill.runner import check_classes_agree
from dfkd_lib.losses import attention_consistency_loss
from dfkd_lib.models import Discriminator, Generator
from dfkd_lib.models.gan import SIDE
from dfkd_lib.synthesis.canvas import (
    crop_middle,
    fit_to_last_good,
    generate,
    kept_states,
    pad_to_gan,
)
from dfkd_lib.synthesis.given import Given
from dfkd_lib.training import TrainConfig

WATCH_EVERY = (
    8  # steps between looks at the attention loss of a vanilla GAN, which does not learn from it
)


def gan_step(
    generator: Generator,
    discriminator: Discriminator,
    teacher: nn.Module,
    probes: Tensor,
    lam: float,
    side: int,
    steps: int = 1,
    epochs: int = 1,
    share: float = 1.0,
) -> Callable:
    """The step of the conditional GAN: L_D, then L_G = L_adv + λ L_attention (A eq. 5).

    λ = 0 is the vanilla GAN: the attention loss is then measured but has no gradient. Both arms draw the same random
    numbers in the same order, so from one seed they differ in λ alone.

    Args:
        teacher: frozen ViT with a class token for side × side images. probes: its class probes (K, N). lam: λ ≥ 0.
        steps, epochs: of the training, for knowing the place of a step in its epoch.
        share: of a batch, (0, 1], that the attention loss is taken on: as the images of a batch are independent, a part of
            them gives the same loss and gradient in the mean, at its share of the teacher's cost.
    """

    def attention(fake: Tensor, labels: Tensor) -> Tensor:
        some = max(1, round(share * len(fake)))
        fake, labels = fake[:some], labels[:some]
        return attention_consistency_loss(
            attention_probe(teacher, crop_middle(fake, side)), probes[labels]
        )

    @torch.no_grad()
    def watched(fake: Tensor, labels: Tensor, progress: float) -> dict[str, Tensor]:
        # The vanilla arm does not learn from it, so a look now and then is enough for its curve.
        place = round(progress * epochs * steps) % steps
        return {"attention": attention(fake, labels)} if place % WATCH_EVERY == 0 else {}

    def step(batch, progress: float) -> Iterator[tuple[str, dict]]:
        real, labels = batch[:2]
        noise = torch.randn(len(real), generator.latent, device=real.device)
        wanted = torch.randint(len(probes), (len(real),), device=real.device)
        fake = generator(wanted, noise)
        on_real, on_fake = discriminator(real, labels), discriminator(fake.detach(), wanted)
        d_loss = F.binary_cross_entropy_with_logits(
            on_real.float(), torch.ones_like(on_real.float())
        ) + F.binary_cross_entropy_with_logits(on_fake.float(), torch.zeros_like(on_fake.float()))
        yield "discriminator", {"loss": d_loss}
        discriminator.requires_grad_(
            False
        )  # its weights need no gradient while the generator learns
        verdict = discriminator(fake, wanted).float()
        adversarial = F.binary_cross_entropy_with_logits(verdict, torch.ones_like(verdict))
        if lam > 0:
            consistency = attention(fake, wanted)
            loss = adversarial + lam * consistency
            yield "generator", {"loss": loss, "adversarial": adversarial, "attention": consistency}
        else:
            yield (
                "generator",
                {
                    "loss": adversarial,
                    "adversarial": adversarial,
                    **watched(fake, wanted, progress),
                },
            )
        discriminator.requires_grad_(True)

    return step


@dataclass(frozen=True)
class CGAN:
    """The conditional GAN: reads real images, and class probes for its attention loss; λ = 0 is the vanilla one.

    Args:
        config: of the training (the paper: Adam, lr 1e-4, betas (0.5, 0.999), weight decay 2e-5).
        lam: λ ≥ 0 of the attention loss (A eq. 5). attention_share: of each batch, (0, 1], that it is taken on.
        width, d_width, latent, dropout: of generator and discriminator.
    """

    config: TrainConfig
    lam: float = 1.0
    width: int = 512
    d_width: int = 64
    latent: int = 100
    dropout: float = 0.25
    attention_share: float = 1.0
    budget = "real images and class probes"
    shard = 2048

    def __post_init__(self):
        if not self.lam >= 0:
            raise WorkbenchError(
                "the weight of the attention loss is impossible",
                expected="λ >= 0",
                got=self.lam,
                where="CGAN.lam",
                fix="give 0 for the vanilla GAN",
            )
        if not 0 < self.attention_share <= 1:
            raise WorkbenchError(
                "the share of a batch is impossible",
                expected="0 < attention_share <= 1",
                got=self.attention_share,
                where="CGAN.attention_share",
                fix="give 1 for whole batches",
            )

    def train(self, store: Store, given: Given) -> Artifact:
        """The trained GAN: generator-<epoch>.safetensors and history.json (losses, "attention"); metrics "stopped",
        "images_per_second".

        Raises:
            WorkbenchError: without real images, or if images are larger than 32 × 32; if teacher, probes and images do
                not fit. DivergedError: if it diverges before any epoch is done.
        """
        real = given.real
        if real is None:
            raise WorkbenchError(
                "the conditional GAN needs real images",
                expected="Given(real=…)",
                got=None,
                fix="give a training set, or use a maker that reads none",
            )
        if given.shape[1] > SIDE or real.shape != given.shape:
            raise WorkbenchError(
                "the conditional GAN makes the images it is shown, at most 32 × 32",
                expected=f"{given.shape}, at most {SIDE} pixels",
                got=real.shape,
                where=real.name,
                fix="resize the images (size=32)",
            )
        check_classes_agree(given.classes, real.classes, real.name)
        settings = {
            "data": real.fingerprint,
            "classes": list(given.classes),
            "shape": list(given.shape),
            **self.settings(),
        }
        parents = [given.teacher, *([given.probes] if given.probes else [])]
        return store.get_or_make(
            "cgan",
            settings,
            lambda work: self._fit(work, given),
            parents,
            {real.split: "training the discriminator"} if real.real else {},
        )

    def _fit(self, work: Path, given: Given) -> dict:
        teacher, real, config = given.load_teacher(), given.real, self.config
        probes = given.load_probes(teacher)
        torch.manual_seed(config.seed)
        modules = {
            "generator": self._generator(given.classes, given.shape),
            "discriminator": Discriminator(
                len(given.classes), given.shape[0], self.d_width, self.dropout
            ),
        }
        batches = training.TensorBatches(
            (real.images, real.labels),
            config.batch_size,
            lambda batch, _: (pad_to_gan(to_float(batch[0])), batch[1]),
        )
        step = gan_step(
            *modules.values(),
            teacher,
            probes,
            self.lam,
            given.shape[1],
            len(batches),
            config.epochs,
            self.attention_share,
        )
        history, stopped = fit_to_last_good(
            work,
            modules,
            step,
            batches,
            config,
            f"cGAN λ={self.lam:g} seed {config.seed}",
            {name: [name] for name in modules},
        )
        artifacts.save_json(work / "history.json", history)
        return {"images_per_second": history[-1]["images_per_second"], "stopped": stopped}

    def settings(self) -> dict:
        return {**asdict(self), "config": self.config.as_dict()}

    def parents(self, given: Given) -> list[Artifact]:
        return []

    def _generator(self, classes, shape) -> Generator:
        return Generator(len(classes), shape[0], self.latent, self.width)

    def generator(self, trained: Artifact, epoch: int | None = None) -> Generator:
        """The generator after that epoch (one of `kept_states`; the last by default), on the training device."""
        states = kept_states(trained)
        model = self._generator(trained.settings["classes"], trained.settings["shape"])
        model.load_state_dict(trained.tensors(states[epoch or max(states)]))
        return model.eval().to(training.device())

    def drawing(
        self, trained: Artifact, given: Given, epoch: int | None = None
    ) -> Callable[[Tensor, int], Tensor]:
        """(labels (N,), seed) → uint8 images (N, C, S, S)."""
        model = self.generator(trained, epoch)
        return lambda labels, seed: generate(model, labels, seed, given.shape[1])
