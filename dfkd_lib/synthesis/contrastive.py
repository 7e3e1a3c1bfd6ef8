"""Maker 3d: images made once, batch by batch, each unlike all that were made before (contrastive model inversion).

A batch comes from a generator of its own and from latents, both fitted to the teacher. A contrastive loss on two views of
each image asks that no image be taken for another of the batch or for an earlier one, which a memory holds.
"""

from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from dfkd_lib.core import Artifact
from dfkd_lib.datasets import to_float, to_uint8
from dfkd_lib.losses import contrastive_loss
from dfkd_lib.models import Generator
from dfkd_lib.synthesis.canvas import Draws, fit_images, plain_generator, scores_features_probe
from dfkd_lib.synthesis.given import Given
from dfkd_lib.synthesis.rival import MemoryBank, RivalLosses
from dfkd_lib.training import Precision

PROJECTED = 128  # dimensions that views are compared in
SMALLEST = 0.5  # side of a local view, as a share of the image's


class Batch(nn.Module):
    """A batch of images on their way: a generator, a latent of each, and the projection that their views are compared in."""

    def __init__(self, generator: Generator, labels: Tensor, features: int, random):
        super().__init__()
        self.generator, self.labels = generator, labels
        (noise,) = generator.noise(len(labels), random)
        self.latent = nn.Parameter(noise)
        layers = nn.Linear(features, PROJECTED), nn.ReLU(), nn.Linear(PROJECTED, PROJECTED)
        self.projection = nn.Sequential(*layers)

    def forward(self) -> Tensor:
        """Images (B, C, S, S) in [-1, 1]."""
        return self.generator(self.labels.to(self.latent.device), self.latent)


class ContrastiveInversion(RivalLosses):
    """Inversion with a memory: a generator and latents for each batch, fitted to the teacher, and told from earlier images.

    Source: Fang et al., Contrastive Model Inversion for Data-Free Knowledge Distillation (IJCAI 2021). Images are made once,
        for any student: without its adversarial term by default, else against a student of the maker's own, which learns
        after each batch. Our choices: the projection and that student's optimizer start anew with each batch, and the
        memory holds the teacher's features of the last images.
    """

    losses: ClassVar[tuple[str, ...]] = (*RivalLosses.losses, "contrast")

    steps: int = Field(1000, ge=1, description="steps of Adam for each batch")
    precision: Precision = Field("fp32", description="arithmetic: fp32, or bf16 by autocast")
    lr: float = Field(1e-3, gt=0, le=10, description="learning rate of Adam on generator, latents")
    contrast: float = Field(
        0.8,
        ge=0,
        title="contrast",
        description="λ of finding an image's views among other images (Fang et al. 2021)",
    )
    warmth: float = Field(0.1, gt=0, description="temperature of the contrast")
    memory: int = Field(2048, ge=0, description="earlier images that a batch is told from")
    latent: int = Field(256, ge=1, description="dimensions of the noise")
    width: int = Field(256, ge=4, description="of the generator")

    @property
    def budget(self) -> str:
        return f"{super().budget}, and what it made before"

    def parents(self, given: Given) -> list[Artifact]:
        return [given.teacher]

    def drawing(self, trained: None, given: Given) -> Callable[[Tensor, int], Tensor]:
        """(labels (N,), seed) → uint8 images (N, C, S, S), N fitted together; `earlier(images)` puts some into its memory."""
        teacher = given.load_teacher()
        device = next(teacher.parameters()).device
        blank = torch.zeros(1, *given.shape, device=device)
        with torch.no_grad():
            memory = [scores_features_probe(teacher, blank, False)[1][:0].float()]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # whatever the images' seeds, one student
            rival = {name: part.to(device) for name, part in self.rival(given).items()}

        def earlier(images: Tensor) -> None:
            seen = to_float(images).to(device)
            with torch.no_grad():
                logits, features, _ = scores_features_probe(teacher, seen, False)
            memory.append(features.float())
            kept = torch.cat(memory)
            memory[:] = [kept[max(0, len(kept) - self.memory) :]]
            if rival:
                rival["bank"].add(seen, logits)
                self._teach(**rival)

        def draw(labels: Tensor, seed: int) -> Tensor:
            random = torch.Generator().manual_seed(seed)
            torch.manual_seed(seed)
            generator = plain_generator(len(given.classes), given.shape, self.latent, self.width)
            batch = Batch(generator, labels, memory[0].shape[1], random)
            fit_images(
                {"batch": batch},
                self.fitting(batch, teacher, memory[0], rival.get("student")),
                Draws(self.steps, lambda random: (labels, random)),
                f"{len(labels)} images beside {len(memory[0])} earlier ones, seed {seed}",
                batch_size=len(labels),
                lr=self.lr,
                precision=self.precision,
                seed=seed,
            )
            batch.train()  # as it was fitted: its norms are those of the batch
            with torch.no_grad():
                made = to_uint8(batch()).cpu()
            earlier(made)
            return made

        draw.earlier = earlier  # type: ignore[attr-defined]
        return draw

    def _teach(self, student: nn.Module, bank: MemoryBank) -> None:
        """Some steps of the student on what its memory holds."""
        seen, size = int(bank.seen), self.batch_size
        fit_images(
            {"student": student},
            lambda batch, progress: self.lesson(student, bank),
            Draws(self.student_steps, lambda random: (torch.empty(size),)),
            f"student of {seen} images",
            batch_size=size,
            lr=1e-3,
            seed=seen,
        )

    def fitting(
        self, batch: Batch, teacher: nn.Module, memory: Tensor, student: nn.Module | None
    ) -> Callable:
        """The step for `training.fit`: one update of generator, latents and projection."""

        def step(given: tuple, progress: float) -> dict[str, Tensor]:
            labels, random = given
            images = batch()
            named, features = self.named(images, labels, random, teacher, student)
            if self.contrast:
                _, local, _ = scores_features_probe(teacher, local_view(images, random), False)
                views = (batch.projection(x.float()) for x in (features, local, memory))
                named["contrast"] = contrastive_loss(*views, self.warmth)
            return self.total(named)

        return step


def local_view(images: Tensor, random: torch.Generator) -> Tensor:
    """A square of each image (B, C, S, S), at least half its side and the same of all, as large as the image."""
    side = images.shape[-1]
    share = SMALLEST + (1 - SMALLEST) * float(torch.rand((), generator=random))
    part = max(1, round(share * side))
    top, left = (int(torch.randint(side - part + 1, (), generator=random)) for _ in range(2))
    view = images[..., top : top + part, left : left + part]
    return F.interpolate(view, (side, side), mode="bilinear", align_corners=False)
