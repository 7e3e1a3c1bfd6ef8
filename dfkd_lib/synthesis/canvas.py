"""Where images are made, and what makers share: the GAN's plane, labels, noise, states to draw from, the teacher's look."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from dfkd_lib import training
from dfkd_lib.attention import outputs_and_probe
from dfkd_lib.core import Config, WorkbenchError, artifacts
from dfkd_lib.core.artifacts import Artifact
from dfkd_lib.datasets import to_uint8
from dfkd_lib.losses import intra_divergence_loss
from dfkd_lib.metrics import scores_and_features
from dfkd_lib.models import Generator
from dfkd_lib.models.gan import SIDE
from dfkd_lib.synthesis.given import Given
from dfkd_lib.training import DivergedError, TrainConfig

KEPT = 10  # states of a generator that are kept over its training: enough for a curve, small enough for a disk


def pad_to_gan(images: Tensor) -> Tensor:
    """Float images (B, C, S, S) in [-1, 1], S ≤ 32 → (B, C, 32, 32), black around them (A2)."""
    before = (SIDE - images.shape[-1]) // 2
    after = SIDE - images.shape[-1] - before
    return F.pad(images, (before, after, before, after), value=-1.0)


def crop_middle(images: Tensor, side: int) -> Tensor:
    """The middle (B, C, side, side) of images (B, C, S, S), S ≥ side; of 32 pixels the inverse of `pad_to_gan`."""
    before = (images.shape[-1] - side) // 2
    return images[..., before : before + side, before : before + side]


def balanced_labels(count: int, num_classes: int) -> Tensor:
    """0, 1, …, K−1, 0, 1, … : `count` labels, as even over the classes as can be."""
    return torch.arange(count) % num_classes


def plain_generator(
    num_classes: int, shape: tuple[int, int, int], latent: int, width: int
) -> Generator:
    """The paper's generator (A2) for images (C, S, S); WorkbenchError if they are larger than 32 × 32."""
    channels, side, _ = shape
    if side > SIDE:
        raise WorkbenchError(
            "images are larger than this maker's generator draws",
            expected=f"at most {SIDE} x {SIDE} pixels",
            got=f"{side} x {side}",
            where="Given.shape",
            fix="resize the images (size=…), or choose another maker",
        )
    return Generator(num_classes, channels, latent, width, side)


class Draws:
    """Batches for the training loop of a maker that reads no images: `steps` an epoch, each `draw(random generator)`."""

    def __init__(self, steps: int, draw: Callable[[torch.Generator], tuple]):
        self.steps, self.draw = steps, draw

    def __len__(self) -> int:
        return self.steps

    def __call__(self, epoch: int, generator: torch.Generator) -> Iterator[tuple]:
        for _ in range(self.steps):
            yield self.draw(generator)


def kept_epochs(epochs: int, count: int = KEPT) -> list[int]:
    """At most `count` epochs of 1..epochs, evenly spread, the last among them."""
    return sorted({round(epochs * (i + 1) / count) for i in range(count)} - {0} | {epochs})


def keep_state(work: Path, generator: nn.Module, epoch: int) -> None:
    """Write the generator's state after that epoch."""
    path = work / f"generator-{epoch:05d}.safetensors"
    artifacts.save_tensors(path, generator.state_dict())
    # A resumed training will not write those of its finished epochs again.
    artifacts.note_whole(work, path)


def kept_states(trained: Artifact) -> dict[int, str]:
    """{epoch: file name} of the states that a generator's training kept, in order."""
    names = sorted(path.name for path in trained.path.glob("generator-*.safetensors"))
    return {int(name[len("generator-") :].split(".")[0]): name for name in names}


def fit_to_last_good(
    work: Path,
    modules: dict[str, nn.Module],
    step: Callable,
    batches: training.Batches,
    config: TrainConfig,
    label: str,
    optimizers: dict[str, list[str]],
    states: int = KEPT,
    renewed: Collection[str] = (),
) -> dict:
    """`training.fit` for a generator: its states and history.json in `work`; if it diverges, its last good epoch is taken.

    Args:
        states: how many are kept, evenly over the epochs. renewed: see `training.fit`.

    Returns:
        {"images_per_second", "stopped": what stopped it, "" if nothing did}.

    Raises:
        DivergedError: if it diverged in its first epoch, so that there is no good state.
    """
    generator, checkpoint, stopped = modules["generator"], work / "checkpoint", ""
    wanted = kept_epochs(config.epochs, states)

    def keep(epoch: int) -> dict:
        if epoch in wanted:
            keep_state(work, generator, epoch)
        return {}

    try:
        how = {"checkpoint": checkpoint, "label": label, "renewed": renewed}
        history = training.fit(modules, step, batches, config, optimizers, keep, **how)
    except DivergedError as error:
        history = training.restore(checkpoint, modules)
        if not history:
            raise
        done = len(history)
        stopped = f"diverged in epoch {done + 1} of {config.epochs}; epoch {done} is used"
        print(f"{label}: {stopped}\n{error}", flush=True)
        keep_state(work, generator, done)
    artifacts.save_json(work / "history.json", history)
    return {"images_per_second": history[-1]["images_per_second"], "stopped": stopped}


def fit_images(
    modules: dict[str, nn.Module], step: Callable, batches: Draws, label: str, **config: object
) -> None:
    """One epoch of Adam on what images are made from, or a student of them; each process does all of it, none is kept."""
    chosen = TrainConfig(epochs=1, optimizer="adam", **config)
    training.fit(modules, step, batches, chosen, label=label, split=False)


def generate(generator: nn.Module, labels: Tensor, seed: int, side: int) -> Tensor:
    """uint8 images (N, C, side, side) of the classes asked for; the noise comes from `seed` alone.

    Args:
        generator: with `noise(count, random generator)` → tuple of tensors, called as generator(labels, *noise).

    Raises:
        WorkbenchError: if its images are not finite numbers.
    """
    device = next(generator.parameters()).device
    source = torch.Generator().manual_seed(seed)
    generator.eval()
    made = []
    with torch.inference_mode():
        for part in labels.split(500):
            noise = [n.to(device) for n in generator.noise(len(part), source)]
            made.append(to_uint8(crop_middle(generator(part.to(device), *noise), side)).cpu())
    return torch.cat(made)


class GeneratorMaker(ABC):
    """What makers share whose images come from a trained generator."""

    shard: ClassVar[int] = 2048

    @abstractmethod
    def new_generator(self, classes: tuple[str, ...], shape: tuple[int, int, int]) -> nn.Module:
        """A generator for such images, untrained."""

    def parents(self, given: Given) -> list[Artifact]:
        """Drawing uses nothing beside the trained generator."""
        return []

    def generator(self, trained: Artifact, epoch: int | None = None) -> nn.Module:
        """The generator after that epoch (one of `kept_states`; the last by default), on the training device."""
        states = kept_states(trained)
        model = self.new_generator(trained.settings["classes"], trained.settings["shape"])
        model.load_state_dict(trained.tensors(states[epoch or max(states)]))
        return training.frozen(model)

    def drawn_from(self, trained: Artifact, epoch: int | None) -> list[nn.Module]:
        """The generators that images come from in turn: the one after `epoch`."""
        return [self.generator(trained, epoch)]

    def drawing(
        self, trained: Artifact, given: Given, epoch: int | None = None
    ) -> Callable[[Tensor, int], Tensor]:
        """(labels (N,), seed) → uint8 images (N, C, S, S), after that epoch or at the end."""
        models, side = self.drawn_from(trained, epoch), given.shape[1]

        def draw(labels: Tensor, seed: int) -> Tensor:
            if len(models) == 1:
                return generate(models[0], labels, seed, side)
            images = torch.empty(len(labels), *given.shape, dtype=torch.uint8)
            # Which generator makes which image is drawn, so that every class comes from every generator.
            random = torch.Generator().manual_seed(seed)
            which = torch.randint(len(models), (len(labels),), generator=random)
            for number, model in enumerate(models):
                rows = (which == number).nonzero().flatten()
                if len(rows):
                    images[rows] = generate(model, labels[rows], seed * 1000 + number, side)
            return images

        return draw


def latent_walk(generator: nn.Module, labels: Tensor, steps: int, seed: int, side: int) -> Tensor:
    """uint8 images (len(labels), steps, C, side, side): one class a row, from one noise to another, all else held.

    Between two latents the walk keeps to the sphere they lie near (Shoemake 1985): the middle of a straight line is
    shorter than any noise that the generator knows.
    """
    device, source = next(generator.parameters()).device, torch.Generator().manual_seed(seed)
    first, *rest = generator.noise(len(labels), source)
    last, *_ = generator.noise(len(labels), source)
    angle = torch.arccos(F.cosine_similarity(first, last).clamp(-0.999, 0.999))[:, None]
    generator.eval()
    made = []
    with torch.inference_mode():
        for t in torch.linspace(0, 1, steps):
            latent = torch.sin((1 - t) * angle) * first + torch.sin(t * angle) * last
            noise = [n.to(device) for n in (latent / torch.sin(angle), *rest)]
            images = generator(labels.to(device), *noise)
            made.append(to_uint8(crop_middle(images, side)).cpu())
    return torch.stack(made, 1)


class FromTeacher(Config):
    """Settings of a maker that learns from the frozen teacher alone, or from its class probes too."""

    background: float = Field(-1.0, ge=-1, le=1, description="value of an empty pixel")
    easy: float = Field(0.5, ge=0, le=1, description="share of easy images in intra-divergence")
    margin: float = Field(0.5, ge=0, description="margin of intra-divergence")
    jitter: int = Field(2, ge=0, description="pixels of the random shift before the teacher")

    def intra_loss(self, features: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """DF-DearKD's intra-divergence with these settings."""
        return intra_divergence_loss(features, logits, labels, self.easy, self.margin)


def scores_features_probe(
    teacher: nn.Module, images: Tensor, probe: bool, patches: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits, last features and, where asked for, the attention probe of the last block, in one pass over all or some patches."""
    probes = []

    def forward(images: Tensor) -> Tensor:
        logits, found = outputs_and_probe(teacher, images, probe, patches)
        probes.append(found)
        return logits

    return *scores_and_features(teacher, images, forward), probes[0]


def held_logits(student: nn.Module, images: Tensor) -> Tensor:
    """The student's logits with gradients to the images, none to its weights, as it will be used."""
    student.eval().requires_grad_(False)
    logits = student(images)
    student.train().requires_grad_(True)
    return logits


def local_random() -> torch.Generator:
    """A generator seeded from torch's global one, which the training loop seeds for every epoch."""
    return torch.Generator().manual_seed(int(torch.randint(2**31, ())))
