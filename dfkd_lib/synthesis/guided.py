"""Makers 2 and 3c: a generator trained against the frozen teacher, without any real pixel.

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

from dfkd_lib import training
from dfkd_lib.attention import capture_attention, probe_from_rows
from dfkd_lib.attention.sites import class_token
from dfkd_lib.core import WorkbenchError, artifacts, processes
from dfkd_lib.core.artifacts import Artifact, Store
from dfkd_lib.datasets import random_shift, to_float
from dfkd_lib.losses import (
    attention_consistency_loss,
    diversity_loss,
    intra_divergence_loss,
    kd_loss,
    logit_distance,
    total_variation,
)
from dfkd_lib.metrics import scores_and_features
from dfkd_lib.models import MODELS, FieldGenerator, create_model
from dfkd_lib.synthesis.canvas import Draws, fit_to_last_good, generate, kept_states
from dfkd_lib.synthesis.given import Given
from dfkd_lib.training import Precision, TrainConfig
from dfkd_lib.training.config import Share


class MemoryBank(nn.Module):
    """Images the student has seen, with the teacher's answers; the oldest give way. Kept with a training's checkpoint.

    Args:
        size: images it holds. shape: (C, S, S). num_classes: K.
    """

    def __init__(self, size: int, shape: tuple[int, int, int], num_classes: int):
        super().__init__()
        self.register_buffer("images", torch.zeros(size, *shape, dtype=torch.uint8))
        self.register_buffer("logits", torch.zeros(size, num_classes))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self._held = 0  # min(seen, size) on the host: to ask the device at every draw would be to wait for it
        self.register_load_state_dict_post_hook(lambda bank, _: bank._count())

    def _count(self) -> None:
        self._held = min(int(self.seen), len(self.images))

    @torch.no_grad()
    def add(self, images: Tensor, logits: Tensor) -> None:
        """Keep float images (B, C, S, S) in [-1, 1] and logits (B, K), of all processes that part a batch among them."""
        # Bad numbers are for the training loop to tell, which then goes back to a bank without them.
        pixels = (
            images.float().nan_to_num().clamp(-1, 1).add(1.0).mul(127.5).round().to(torch.uint8)
        )
        pixels, logits = processes.gathered(pixels), processes.gathered(logits.float())
        rows = (self.seen + torch.arange(len(pixels), device=self.seen.device)) % len(self.images)
        self.images[rows], self.logits[rows] = pixels, logits
        self.seen += len(pixels)
        self._held = min(self._held + len(pixels), len(self.images))

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """`count` random (images float, logits) of those kept."""
        rows = torch.randint(self._held, (count,), device=self.seen.device)
        return to_float(self.images[rows]), self.logits[rows]


class GuidedGenerator(TrainConfig):
    """A generator that learns from the frozen teacher alone, or from its class probes too.

    An epoch has `steps` steps. With `restart` each epoch trains a new generator, which inherits from the one before how to
    draw but not what, so that the images come from as many as there are epochs; else one is trained throughout. No source
    gives sizes: the defaults are ours.

    Source: the losses' own; a generator against a student: Fang et al., Data-Free Adversarial Distillation (2019);
        memory: Binici et al., Preventing Catastrophic Forgetting in Data-Free KD (WACV 2022).
    """

    shard: ClassVar[int] = 2048

    epochs: int = Field(
        96,
        ge=1,
        le=10_000,
        description="generators trained one after another",
        json_schema_extra={"also": "generators"},
    )
    steps: int = Field(
        100, ge=1, description="steps of each", json_schema_extra={"also": "maker_steps"}
    )
    batch_size: int = Field(
        128, ge=2, le=4096, description="images a step", json_schema_extra={"also": "maker_batch"}
    )
    lr: float = Field(
        3e-3,
        gt=0,
        le=1,
        description="learning rate of Adam",
        json_schema_extra={"also": "maker_lr"},
    )
    optimizer: Literal["adam", "adamw"] = Field("adam", description="optimizer")
    betas: tuple[Share, Share] = Field((0.5, 0.999), description="of Adam")
    schedule: Literal["cosine", "constant"] = Field("constant", description="of the learning rate")
    grad_clip: float | None = Field(5.0, gt=0, description="largest gradient norm, or none")
    precision: Precision = Field(
        "bf16", description="arithmetic", json_schema_extra={"also": "maker_precision"}
    )
    restart: bool = Field(True, description="whether each epoch trains a new generator")
    width: int = Field(128, ge=4, description="of the generator")
    latent: int = Field(100, ge=1, description="dimensions of the noise")
    texture: float = Field(1.0, ge=0, le=100, description="strength of the random texture")
    bend: float = Field(1.0, ge=0, description="how far shapes are bent")
    ce: float = Field(1.0, ge=0, description="weight of the cross entropy to the class asked for")
    enough: float = Field(0.1, ge=0, description="nats of it from where on it asks for no more")
    attention: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="weight of the attention consistency with class probes (A eq. 4; maker 2)",
    )
    tv: float = Field(
        0.0, ge=0, description="weight of total variation", json_schema_extra={"also": "tv_weight"}
    )
    ink: float = Field(
        2.0,
        ge=0,
        description="weight of an image's ink, the mean of (x − background)² / 4",
        json_schema_extra={"also": "ink_weight"},
    )
    blank: float = Field(3.0, ge=0, description="weight of what the ink falls short of `least`")
    least: float = Field(0.05, gt=0, description="ink that an image has at least")
    diversity: float = Field(
        1.0,
        ge=0,
        description="weight of how alike images of a class are",
        json_schema_extra={"also": "diversity_weight"},
    )
    background: float = Field(-1.0, ge=-1, le=1, description="value of an empty pixel")
    intra: float = Field(
        0.0,
        ge=0,
        description="weight of DF-DearKD's intra-divergence",
        json_schema_extra={"also": "intra_weight"},
    )
    easy: float = Field(0.5, ge=0, le=1, description="share of easy images in it")
    margin: float = Field(0.5, ge=0, description="margin of it")
    adversarial: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="weight of the disagreement of teacher and student (maker 3c)",
    )
    student_model: str = Field("", description="the student to disagree with")
    temperature: float = Field(4.0, gt=0, description="of that student's distillation")
    bank: int = Field(20_000, ge=1, description="images its memory holds")
    rehearsal: int = Field(1, ge=0, description="remembered images a step, in batches")
    jitter: int = Field(2, ge=0, description="pixels of the random shift before the teacher")

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        weights = ("ce", "attention", "tv", "ink", "blank", "diversity", "intra", "adversarial")
        if not any(getattr(self, name) for name in weights):
            raise ValueError("the weight of at least one loss above 0")
        if self.adversarial and not self.student_model:
            raise ValueError("student_model, a name for models.create_model, where adversarial > 0")
        if self.adversarial and self.bank < self.batch_size:
            raise ValueError(f"a bank of at least a batch, {self.batch_size}")
        return self

    @property
    def sees(self) -> tuple[str, ...]:
        return ("class probes",) if self.attention else ()

    @property
    def budget(self) -> str:
        return "class probes" if self.attention else "nothing but the teacher"

    def parents(self, given: Given) -> list[Artifact]:
        return []

    def train(self, store: Store, given: Given) -> Artifact:
        """The trained generator: generator-<epoch>.safetensors and history.json; metrics "stopped", "images_per_second".

        Raises:
            WorkbenchError: if teacher, probes and images do not fit, or a probe is asked of a teacher without class token.
            DivergedError: if it diverges before any epoch is done. LedgerError: if anything real is read.
        """
        settings = {**self.as_dict(), "classes": list(given.classes), "shape": list(given.shape)}
        parents = [given.teacher, *([given.probes] if self.attention and given.probes else [])]
        return store.get_or_make(
            "guided_generator",
            settings,
            lambda work: self._fit(work, given),
            parents,
            code=[MODELS.get(self.student_model)] if self.adversarial else [],
        )

    def _fit(self, work: Path, given: Given) -> dict:
        teacher, config = given.load_teacher(), self.training()
        probes = given.load_probes(teacher) if self.attention else None
        torch.manual_seed(config.seed)
        generator = nn.ModuleList(
            self._generator(given.classes, given.shape)
            for _ in range(config.epochs if self.restart else 1)
        )
        modules, optimizers = {"generator": generator}, {"generator": ["generator"]}
        if self.adversarial:
            modules["student"] = create_model(
                self.student_model,
                num_classes=len(given.classes),
                img_size=given.shape[1],
                in_chans=given.shape[0],
            )
            if isinstance(
                modules["student"](torch.zeros(2, given.shape[0], *given.shape[1:])), tuple
            ):
                raise WorkbenchError(
                    "the student of an adversarial generator has two outputs in training",
                    expected="one: a model without a distillation token",
                    got=self.student_model,
                    fix="name another student_model",
                )
            modules["bank"] = MemoryBank(self.bank, given.shape, len(given.classes))
            optimizers["student"] = ["student"]
        batches = Draws(self.steps, config.batch_size, len(given.classes), generator[0].noise)
        history, stopped = fit_to_last_good(
            work,
            modules,
            self._step(modules, teacher, probes),
            batches,
            config,
            f"generator, {self.budget}, seed {config.seed}",
            optimizers,
        )
        artifacts.save_json(work / "history.json", history)
        return {"images_per_second": history[-1]["images_per_second"], "stopped": stopped}

    def _step(self, modules: dict, teacher: nn.Module, probes: Tensor | None) -> Callable:
        generators, student, bank = (modules.get(name) for name in ("generator", "student", "bank"))

        def step(batch, progress: float) -> Iterator[tuple[str, dict]]:
            labels, *noise = batch
            # Those of other epochs get no gradient, so that the optimizer leaves them and their moments alone.
            done = round(progress * self.epochs * self.steps)
            generator = generators[done // self.steps if self.restart else 0]
            if self.restart and done % self.steps == 0:
                generators.requires_grad_(
                    False
                )  # several processes would exchange gradients of all that could have one
                generator.requires_grad_(True)
                if done:
                    generator.inherit(generators[done // self.steps - 1])
            images = generator(labels, *noise)
            seen = _shift(images, self.jitter)
            logits, features, probe = _look(teacher, seen, probes is not None)
            ce = F.cross_entropy(logits.float(), labels, reduction="none")
            ink = (images.float() - self.background).square().flatten(1).mean(1) / 4
            losses = {
                "ce": F.relu(ce - self.enough).mean(),
                "tv": total_variation(images),
                "ink": ink.mean(),
                "blank": F.relu(1 - ink / self.least).mean(),
                "diversity": diversity_loss(images, labels),
            }
            if probes is not None:
                losses["attention"] = attention_consistency_loss(probe, probes[labels])
            if self.intra:
                losses["intra"] = intra_divergence_loss(
                    features, logits, labels, self.easy, self.margin
                )
            if student is not None:
                losses["adversarial"] = -torch.log1p(logit_distance(_held(student, seen), logits))
            yield (
                "generator",
                {
                    "loss": sum(getattr(self, name) * loss for name, loss in losses.items()),
                    **losses,
                },
            )
            if student is not None:
                bank.add(seen.detach().clamp(-1, 1), logits.detach())
                old, answers = bank.draw(self.rehearsal * len(labels))
                shown, asked = (
                    torch.cat([seen.detach().float(), old]),
                    torch.cat([logits.detach().float(), answers]),
                )
                yield "student", {"loss": kd_loss(student(shown), asked, self.temperature)}

        return step

    def _generator(self, classes, shape) -> FieldGenerator:
        return FieldGenerator(
            len(classes), shape[0], shape[1], self.latent, self.width, self.texture, self.bend
        )

    def generators(self, trained: Artifact, epoch: int | None = None) -> list[FieldGenerator]:
        """The generators that images are drawn from: with restarts, all those kept; else the last, or that of `epoch`."""
        states = kept_states(trained)
        chosen = [epoch] if epoch else list(states) if self.restart else [max(states)]
        made = []
        for number in chosen:
            model = self._generator(trained.settings["classes"], trained.settings["shape"])
            model.load_state_dict(trained.tensors(states[number]))
            made.append(model.eval().to(training.device()))
        return made

    def drawing(
        self, trained: Artifact, given: Given, epoch: int | None = None
    ) -> Callable[[Tensor, int], Tensor]:
        """(labels (N,), seed) → uint8 images (N, C, S, S), from all generators in turn."""
        models = self.generators(trained, epoch)

        def draw(labels: Tensor, seed: int) -> Tensor:
            images = torch.empty(len(labels), *given.shape, dtype=torch.uint8)
            # Which generator makes which image is drawn, so that every class comes from every generator.
            which = torch.randint(
                len(models), (len(labels),), generator=torch.Generator().manual_seed(seed)
            )
            for number, model in enumerate(models):
                rows = (which == number).nonzero().flatten()
                if len(rows):
                    images[rows] = generate(
                        model, labels[rows], seed * 1000 + number, given.shape[1]
                    )
            return images

        return draw


def _shift(images: Tensor, pixels: int) -> Tensor:
    # The moves come from torch's global generator, which the loop seeds for every epoch.
    own = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
    return random_shift(images, pixels, own)


def _held(student: nn.Module, images: Tensor) -> Tensor:
    """The student's logits with gradients to the images, none to its weights, as it will be used."""
    student.eval().requires_grad_(False)
    logits = student(images)
    student.train().requires_grad_(True)
    return logits


def _look(teacher: nn.Module, images: Tensor, probe: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits, last features and, where asked for, the attention probe of the last block, in one pass."""
    if not probe:
        return *scores_and_features(teacher, images), None
    with capture_attention(teacher, (-1,), class_token(teacher)) as rows:
        logits, features = scores_and_features(teacher, images)
    return logits, features, probe_from_rows(teacher, rows[-1])
