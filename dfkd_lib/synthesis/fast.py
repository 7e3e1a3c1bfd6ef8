"""Maker 3e: a generator that has learnt to be fitted to the teacher in a few steps (meta-learnt, as in "Fast").

What images of a teacher share is kept in the generator's starting weights: from there each batch takes a few steps of its
own, on a copy of the weights and on its latents. The starting weights learn from the gradient at the end of these steps.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from dfkd_lib.core import Artifact, Store, save_tensors
from dfkd_lib.datasets import to_uint8
from dfkd_lib.models import Generator
from dfkd_lib.synthesis.canvas import (
    Draws,
    fit_to_last_good,
    kept_states,
    local_random,
    plain_generator,
)
from dfkd_lib.synthesis.given import Given
from dfkd_lib.synthesis.rival import MemoryBank, RivalLosses
from dfkd_lib.training import Precision, TrainConfig, device

EPOCH = 25  # batches between checkpoints


class FastGenerator(RivalLosses):
    """A meta-learnt generator: `inner` steps for each batch from common starting weights, which learn over `rounds` batches.

    Source: Fang et al., Up to 100× Faster Data-Free Knowledge Distillation (AAAI 2022), in its first-order
        form (FOMAML). There images for the student are those that the starting weights learn from; here they are drawn
        afterwards, so that any number can be, for any student: without its adversarial term by default, else against a
        student of the maker's own, which learns beside the starting weights.
    """

    rounds: int = Field(400, ge=1, description="batches that the starting weights learn from")
    inner: int = Field(5, ge=1, le=1000, description="steps of each batch on weights and latents")
    lr: float = Field(1e-3, gt=0, le=1, description="of Adam on the starting weights")
    inner_lr: float = Field(5e-3, gt=0, le=1, description="of Adam on a batch's weights")
    latent_lr: float = Field(0.015, gt=0, le=10, description="of Adam on a batch's latents")
    precision: Precision = Field("fp32", description="arithmetic: fp32, or bf16 by autocast")
    latent: int = Field(256, ge=1, description="dimensions of the noise")
    width: int = Field(256, ge=4, description="of the generator")
    seed: int = Field(0, ge=0, lt=2**32, description="of weights and batches")

    def parents(self, given: Given) -> list[Artifact]:
        """Drawing is fitted to the teacher too."""
        return [given.teacher]

    def train(self, store: Store, given: Given) -> Artifact:
        """The starting weights: generator-<epoch>.safetensors and history.json; metrics "stopped", "images_per_second".

        Raises:
            WorkbenchError: if teacher and images do not fit, or images are larger than 32 × 32.
            DivergedError: if it diverges before any epoch is done. LedgerError: if anything real is read.
        """
        settings, parents = {**self.as_dict(), **given.wanted}, [given.teacher]
        return store.get_or_make(
            "meta_generator",
            settings,
            lambda work: self._fit(work, given),
            parents,
            code=self.code,
        )

    def _fit(self, work: Path, given: Given) -> dict:
        teacher = given.load_teacher()
        torch.manual_seed(self.seed)
        generator = plain_generator(len(given.classes), given.shape, self.latent, self.width)

        def draw(random: torch.Generator) -> tuple[Tensor, Tensor]:
            labels = torch.randint(len(given.classes), (self.batch_size,), generator=random)
            return labels, *generator.noise(len(labels), random)

        epochs = math.ceil(self.rounds / EPOCH)
        own = {name: self[name] for name in ("batch_size", "lr", "precision", "seed")}
        config = TrainConfig(epochs=epochs, optimizer="adam", **own)
        batches = Draws(math.ceil(self.rounds / epochs), draw)
        label = f"starting weights, {self.inner} steps a batch, seed {self.seed}"
        modules: dict[str, nn.Module] = {"generator": generator, **self.rival(given)}
        one, student, bank = {"main": ["generator"]}, modules.get("student"), modules.get("bank")
        step = self.step(generator, teacher, student, bank)
        if student is None:
            return fit_to_last_good(work, modules, step, batches, config, label, one)

        def both(batch: tuple, progress: float) -> Iterator[tuple[str, dict]]:
            yield "main", step(batch, progress)
            for _ in range(self.student_steps):
                yield "student", self.lesson(student, bank)

        each = {**one, "student": ["student"]}
        found = fit_to_last_good(work, modules, both, batches, config, label, each)
        save_tensors(work / "student.safetensors", student.state_dict())
        return found

    def step(
        self,
        generator: Generator,
        teacher: nn.Module,
        student: nn.Module | None = None,
        bank: MemoryBank | None = None,
    ) -> Callable:
        """The step for `training.fit`: the starting weights get the gradient where a batch's own steps have led.

        A `bank` keeps the batch's images for the student that they are to disagree with.
        """

        def step(batch: tuple, progress: float) -> dict[str, Tensor]:
            labels, noise = batch
            random = local_random()
            weights, latent = self.fitted(generator, teacher, labels, noise, random, student)
            images = functional_call(generator, weights, (labels, latent))
            losses = self.total(self.named(images, labels, random, teacher, student)[0])
            if bank is not None:
                with torch.no_grad():
                    bank.add(images, teacher(images))
            ends = torch.autograd.grad(losses["loss"], list(weights.values()))
            # Its gradient is that at the end, its value the loss there.
            pairs = zip(generator.parameters(), ends, strict=True)
            pull = sum((start * end).sum() for start, end in pairs)
            return losses | {"loss": pull - pull.detach() + losses["loss"].detach()}

        return step

    def fitted(
        self,
        generator: Generator,
        teacher: nn.Module,
        labels: Tensor,
        noise: Tensor,
        random: torch.Generator,
        student: nn.Module | None = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """A batch's weights by name and its latents (B, L), after its own steps from the generator's."""
        weights = {
            name: start.detach().clone().requires_grad_()
            for name, start in generator.named_parameters()
        }
        latent = noise.detach().clone().requires_grad_()
        groups = [{"params": [*weights.values()]}, {"params": [latent], "lr": self.latent_lr}]
        optimizer = torch.optim.Adam(groups, lr=self.inner_lr, betas=(0.5, 0.999))
        for _ in range(self.inner):
            images = functional_call(generator, weights, (labels, latent))
            named, _ = self.named(images, labels, random, teacher, student)
            optimizer.zero_grad()
            self.total(named)["loss"].backward()
            optimizer.step()
        return weights, latent

    def drawing(self, trained: Artifact, given: Given) -> Callable[[Tensor, int], Tensor]:
        """(labels (N,), seed) → uint8 images (N, C, S, S), N fitted together."""
        teacher, states = given.load_teacher(), kept_states(trained)
        generator = plain_generator(len(given.classes), given.shape, self.latent, self.width)
        generator.load_state_dict(trained.tensors(states[max(states)]))
        generator.to(device()).train()
        student = self.rival(given).get("student")
        if student is not None:
            student.load_state_dict(trained.tensors("student.safetensors"))
            student.to(device())

        def draw(labels: Tensor, seed: int) -> Tensor:
            random = torch.Generator().manual_seed(seed)
            (noise,) = generator.noise(len(labels), random)
            asked, noise = labels.to(device()), noise.to(device())
            weights, latent = self.fitted(generator, teacher, asked, noise, random, student)
            with torch.no_grad():
                return to_uint8(functional_call(generator, weights, (asked, latent))).cpu()

        return draw
