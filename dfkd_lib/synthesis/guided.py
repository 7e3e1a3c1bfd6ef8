"""Makers 2 and 3c: a generator trained against the frozen teacher, without any real pixel.

With class probes it is maker 2 (their attention consistency beside cross entropy). With a student to disagree with it is
maker 3c: the generator looks for images on which student and teacher differ, the student learns them, and a memory bank
keeps what it learnt before from being forgotten.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
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
from dfkd_lib.models import FieldGenerator, create_model
from dfkd_lib.synthesis.canvas import Draws, fit_to_last_good, generate, kept_states
from dfkd_lib.synthesis.given import Given
from dfkd_lib.training import TrainConfig


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


@dataclass(frozen=True)
class GuidedGenerator:
    """A generator that learns from the frozen teacher alone, or from its class probes too.

    Args:
        config: of the training; an epoch has `steps` steps. restart: each epoch trains a new generator, which inherits
            from the one before how to draw but not what, so that the images come from as many as there are epochs; else
            one is trained throughout.
        width, latent, texture, bend: of the `FieldGenerator`.
        ce: weight of the cross entropy to the asked class, less `enough` nats, from where on it asks for no more.
        attention: weight of the attention consistency with the class probes (A eq. 4; maker 2).
        tv, ink, diversity: weights of total variation, of an image's ink, the mean of (x − background)² / 4, and of
            `diversity_loss`. blank: weight of what an image's ink falls short of `least`, in parts of it: an empty image
            is often told as some class, and teaches nothing about it.
        background: the value, -1..1, of an empty pixel; the one thing said about the images from outside.
        intra: weight of the intra-divergence loss (DF-DearKD), with `easy` and `margin`.
        adversarial: weight of log(1 + logit distance) between teacher and student, to be large (maker 3c).
        student_model: the student of maker 3c, trained by KD at `temperature` and the generator's learning rate.
        bank: images it remembers.
        rehearsal: remembered images a step, as a multiple of the batch.
        jitter: pixels of the random shift before the teacher looks.

    Source: the losses' own; a generator against a student: Fang et al., Data-Free Adversarial Distillation (2019);
        memory: Binici et al., Preventing Catastrophic Forgetting in Data-Free KD (WACV 2022).
    """

    config: TrainConfig
    steps: int = 150
    restart: bool = True
    width: int = 128
    latent: int = 100
    texture: float = 1.0
    bend: float = 1.0
    ce: float = 1.0
    enough: float = 0.1
    attention: float = 0.0
    tv: float = 0.0
    ink: float = 3.0
    blank: float = 3.0
    least: float = 0.05
    diversity: float = 1.0
    background: float = -1.0
    intra: float = 0.0
    easy: float = 0.5
    margin: float = 0.5
    adversarial: float = 0.0
    student_model: str = ""
    temperature: float = 4.0
    bank: int = 20_000
    rehearsal: int = 1
    jitter: int = 2
    shard = 2048

    def __post_init__(self):
        names = ("ce", "attention", "tv", "ink", "blank", "diversity", "intra", "adversarial")
        weights = {name: getattr(self, name) for name in names}
        if min(weights.values()) < 0 or max(weights.values()) == 0:
            raise WorkbenchError(
                "the weights of a generator's losses are impossible",
                expected="each >= 0, one above 0",
                got=weights,
                where="GuidedGenerator",
                fix="give at least one loss a positive weight",
            )
        if self.adversarial and not self.student_model:
            raise WorkbenchError(
                "an adversarial generator needs a student to disagree with",
                where="GuidedGenerator",
                expected="student_model, a name for models.create_model",
                got=self.student_model,
                fix="name a student_model, or set the weight adversarial to 0",
            )
        if not -1 <= self.background <= 1:
            raise WorkbenchError(
                "the background is no pixel value",
                expected="-1..1",
                got=self.background,
                where="GuidedGenerator",
                fix="give -1 for black, 1 for white, 0 where no value is empty",
            )
        if self.steps < 1:
            raise WorkbenchError(
                "an epoch of a generator has no steps",
                expected="at least 1",
                got=self.steps,
                where="GuidedGenerator",
                fix="give steps",
            )
        if self.adversarial and self.bank < self.config.batch_size:
            raise WorkbenchError(
                "the bank is smaller than a batch",
                expected=f"at least {self.config.batch_size}",
                got=self.bank,
                where="GuidedGenerator",
                fix="give a larger bank, or a smaller batch",
            )

    @property
    def budget(self) -> str:
        return "class probes" if self.attention else "nothing but the teacher"

    def settings(self) -> dict:
        return {**asdict(self), "config": self.config.as_dict()}

    def parents(self, given: Given) -> list[Artifact]:
        return []

    def train(self, store: Store, given: Given) -> Artifact:
        """The trained generator: generator-<epoch>.safetensors and history.json; metrics "stopped", "images_per_second".

        Raises:
            WorkbenchError: if teacher, probes and images do not fit, or a probe is asked of a teacher without class token.
            DivergedError: if it diverges before any epoch is done. LedgerError: if anything real is read.
        """
        settings = {**self.settings(), "classes": list(given.classes), "shape": list(given.shape)}
        parents = [given.teacher, *([given.probes] if self.attention and given.probes else [])]
        return store.get_or_make(
            "guided_generator", settings, lambda work: self._fit(work, given), parents
        )

    def _fit(self, work: Path, given: Given) -> dict:
        teacher, config = given.load_teacher(), self.config
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
            done = round(progress * self.config.epochs * self.steps)
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
