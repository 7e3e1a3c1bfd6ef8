"""Makers 2 and 3c: a generator trained against the frozen teacher, without any real pixel.

Its images are strokes unless `strokes` is off: level sets of smooth fields, bent and textured, with ink asked for. That is
knowledge of digits and drawings which no teacher gives, a prior; without it the generator is the paper's (A2).
With class probes it is maker 2 (their attention consistency beside cross entropy). With a student to disagree with it is
maker 3c: the generator looks for images on which student and teacher differ, the student learns them, and a memory bank
keeps what it learnt before from being forgotten.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from dfkd_lib.core import Artifact, Store
from dfkd_lib.datasets import random_shift
from dfkd_lib.losses import (
    MAKER_LOSSES,
    attention_consistency_loss,
    diversity_loss,
    ink,
    kd_loss,
    logit_distance,
    total_variation,
    weights_of,
)
from dfkd_lib.models import FieldGenerator, Generator
from dfkd_lib.synthesis.canvas import (
    Draws,
    FromTeacher,
    GeneratorMaker,
    fit_to_last_good,
    held_logits,
    kept_states,
    local_random,
    plain_generator,
    scores_features_probe,
)
from dfkd_lib.synthesis.given import Given
from dfkd_lib.synthesis.rival import Rival
from dfkd_lib.training import Precision, Share, TrainConfig

GuidedWeights = weights_of(
    MAKER_LOSSES,
    ce=1.0,
    attention=0.0,
    tv=0.0,
    ink=2.0,
    blank=3.0,
    diversity=1.0,
    intra=0.0,
    adversarial=0.0,
)


class GuidedGenerator(GeneratorMaker, FromTeacher, Rival, GuidedWeights, TrainConfig):
    """A generator that learns from the frozen teacher, or from its class probes too, with a prior of strokes or without.

    Each epoch, of `steps` steps, begins with new classes and a new first layer, so that the generator goes on knowing how
    to draw but not what, and the images come from as many of its states as there are epochs. No source gives sizes: the
    defaults are ours.

    Source: the losses' own; a generator against a student: Fang et al., Data-Free Adversarial Distillation (2019);
        memory: Binici et al., Preventing Catastrophic Forgetting in Data-Free KD (WACV 2022).
    """

    also: ClassVar[dict[str, str]] = {
        "epochs": "generators",
        "steps": "maker_steps",
        "batch_size": "maker_batch",
        "lr": "maker_lr",
        "precision": "maker_precision",
    }

    epochs: int = Field(96, ge=1, le=10_000, description="generators trained one after another")
    steps: int = Field(100, ge=1, description="steps of each")
    batch_size: int = Field(128, ge=2, le=4096, description="images a step")
    lr: float = Field(3e-3, gt=0, le=1, description="of Adam")
    optimizer: Literal["adam", "adamw"] = Field("adam", description="optimizer")
    betas: tuple[Share, Share] = Field((0.5, 0.999), description="of Adam")
    schedule: Literal["cosine", "constant"] = Field("constant", description="of the learning rate")
    grad_clip: float | None = Field(5.0, gt=0, description="largest gradient norm, or none")
    precision: Precision = Field("bf16", description="arithmetic")
    strokes: bool = Field(
        True,
        title="prior of strokes",
        description="whether images are drawn as strokes (level sets, bent and textured) with ink, a prior; else by the "
        "paper's generator",
    )
    width: int = Field(128, ge=4, description="of the generator")
    latent: int = Field(100, ge=1, description="dimensions of the noise")
    texture: float = Field(1.0, ge=0, le=100, description="strength of the random texture")
    bend: float = Field(1.0, ge=0, description="how far shapes are bent")
    drawn_texture: float | None = Field(
        None, ge=0, le=100, description="texture of the images that are made, none: as in training"
    )
    drawn_bend: float | None = Field(None, ge=0, description="bend of these, likewise")
    enough: float = Field(0.1, ge=0, description="nats of CE from where on it asks for no more")
    least: float = Field(0.05, gt=0, description="ink that an image has at least")
    rehearsal: int = Field(1, ge=0, description="remembered images a step, in batches")

    @model_validator(mode="after")
    def _strokes_have_ink(self) -> Self:
        if not self.strokes and (self.ink or self.blank):
            raise ValueError("ink=0 and blank=0 without strokes: both are of that prior")
        return self

    @property
    def rivalry(self) -> float:
        return self.adversarial

    @property
    def sees(self) -> tuple[str, ...]:
        return ("class probes",) if self.attention else ()

    @property
    def budget(self) -> str:
        if self.strokes:
            return f"{'class probes' if self.attention else 'the teacher'} and a prior of strokes"
        return "class probes" if self.attention else "nothing but the teacher"

    def train(self, store: Store, given: Given) -> Artifact:
        """The trained generator: generator-<epoch>.safetensors and history.json; metrics "stopped", "images_per_second".

        Raises:
            WorkbenchError: if teacher, probes and images do not fit, or a probe is asked of a teacher without class token.
            DivergedError: if it diverges before any epoch is done. LedgerError: if anything real is read.
        """
        return store.get_or_make(
            "guided_generator",
            {**self.as_dict(), **given.wanted},
            lambda work: self._fit(work, given),
            [given.teacher, *([given.probes] if self.attention and given.probes else [])],
            code=self.code,
        )

    def _fit(self, work: Path, given: Given) -> dict:
        teacher, config = given.load_teacher(), self.training()
        probes = given.load_probes(teacher) if self.attention else None
        torch.manual_seed(config.seed)
        modules, count = self.networks(given), config.batch_size
        noise = modules["generator"].noise

        def draw(random: torch.Generator) -> tuple[Tensor, ...]:
            labels = torch.randint(len(given.classes), (count,), generator=random)
            return labels, *noise(count, random)

        step, label = self.step(modules, teacher, probes), f"generator, {self.budget}"
        optimizers = {name: [name] for name in modules if name != "bank"}
        batches, label = Draws(self.steps, draw), f"{label}, seed {config.seed}"
        how = {"states": self.epochs, "renewed": ["generator"]}
        return fit_to_last_good(work, modules, step, batches, config, label, optimizers, **how)

    def networks(self, given: Given) -> dict[str, nn.Module]:
        """What is trained: a generator, and the student it works against with its memory."""
        return {"generator": self.new_generator(given.classes, given.shape), **self.rival(given)}

    def new_generator(
        self, classes: tuple[str, ...], shape: tuple[int, int, int]
    ) -> FieldGenerator | Generator:
        """A generator for such images, untrained."""
        if not self.strokes:
            return plain_generator(len(classes), shape, self.latent, self.width)
        sizes = self.latent, self.width, self.texture, self.bend
        return FieldGenerator(len(classes), *shape[:2], *sizes)

    def generator(self, trained: Artifact, epoch: int | None = None) -> nn.Module:
        """The generator after that epoch, with texture and bend of the images that are made."""
        model = super().generator(trained, epoch)
        for name in ("texture", "bend"):
            value = self[f"drawn_{name}"]
            if self.strokes and value is not None:
                setattr(model, name, value)
        return model

    def drawn_from(self, trained: Artifact, epoch: int | None) -> list[nn.Module]:
        """The generators that images come from in turn: all those kept, or the one after `epoch`."""
        epochs = list(kept_states(trained)) if epoch is None else [epoch]
        return [self.generator(trained, one) for one in epochs]

    def step(self, modules: dict, teacher: nn.Module, probes: Tensor | None) -> Callable:
        """The step for `training.fit`: the generator's update, then that of the student it works against."""
        generator, student, bank = (modules.get(name) for name in ("generator", "student", "bank"))

        def step(batch: tuple, progress: float) -> Iterator[tuple[str, dict]]:
            labels, *noise = batch
            done = round(progress * self.epochs * self.steps)
            if done and done % self.steps == 0:
                generator.renew(self.seed * 100_003 + done // self.steps)
            images = generator(labels, *noise)
            seen = random_shift(images, self.jitter, local_random())
            logits, features, probe = scores_features_probe(teacher, seen, probes is not None)
            ce = F.cross_entropy(logits.float(), labels, reduction="none")
            drawn = ink(images, self.background)
            named = {
                "ce": F.relu(ce - self.enough).mean(),
                "tv": total_variation(images),
                "ink": drawn.mean(),
                "blank": F.relu(1 - drawn / self.least).mean(),
                "diversity": diversity_loss(images, labels),
            }
            if probes is not None:
                named["attention"] = attention_consistency_loss(probe, probes[labels])
            if self.intra:
                named["intra"] = self.intra_loss(features, logits, labels)
            if student is not None:
                apart = logit_distance(held_logits(student, seen), logits)
                named["adversarial"] = -torch.log1p(apart)
            yield "generator", self.total(named)
            if student is not None:
                shown, answers = seen.detach().float(), logits.detach().float()
                bank.add(shown, answers)
                old, old_answers = bank.draw(self.rehearsal * len(labels))
                logits = student(torch.cat([shown, old]))
                answers = torch.cat([answers, old_answers])
                yield "student", {"loss": kd_loss(logits, answers, self.temperature)}

        return step
