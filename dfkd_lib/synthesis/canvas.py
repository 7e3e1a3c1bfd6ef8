"""Where images are made: the 32 × 32 plane of the GAN, labels, noise, and what training leaves behind to draw from."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfkd_lib import training
from dfkd_lib.core import artifacts
from dfkd_lib.core.artifacts import Artifact
from dfkd_lib.datasets import to_uint8
from dfkd_lib.models.gan import SIDE
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


class Draws:
    """Batches for the training loop of a generator that reads no images: labels and noise, drawn by the loop's generator.

    Args:
        steps: batches an epoch. batch_size: B. num_classes: K.
        noise: (B, random generator) → tuple of tensors.

    Yields:
        (labels int64 (B,), *noise).
    """

    def __init__(self, steps: int, batch_size: int, num_classes: int, noise: Callable):
        self.steps, self.batch_size, self.num_classes, self.noise = (
            steps,
            batch_size,
            num_classes,
            noise,
        )

    def __len__(self) -> int:
        return self.steps

    def __call__(self, epoch: int, generator: torch.Generator) -> Iterator[tuple[Tensor, ...]]:
        for _ in range(self.steps):
            labels = torch.randint(self.num_classes, (self.batch_size,), generator=generator)
            yield (labels, *self.noise(self.batch_size, generator))


def kept_epochs(epochs: int, count: int = KEPT) -> list[int]:
    """At most `count` epochs of 1..epochs, evenly spread, the last among them."""
    return sorted({round(epochs * (i + 1) / count) for i in range(count)} - {0} | {epochs})


def keep_state(work: Path, generator: nn.Module, epoch: int) -> None:
    """Write the generator's state after that epoch; of a list of generators that of the epoch's own, or the only one."""
    if isinstance(generator, nn.ModuleList):
        generator = generator[min(epoch, len(generator)) - 1]
    path = work / f"generator-{epoch:05d}.safetensors"
    artifacts.save_tensors(path, generator.state_dict())
    artifacts.note_whole(
        work, path
    )  # a resumed training will not write those of its finished epochs again


def kept_states(trained: Artifact) -> dict[int, str]:
    """{epoch: file name} of the states that a generator's training kept, in order."""
    return {
        int(path.stem.split("-")[1]): path.name
        for path in sorted(trained.path.glob("generator-*.safetensors"))
    }


def fit_to_last_good(
    work: Path,
    modules: dict[str, nn.Module],
    step: Callable,
    batches,
    config: TrainConfig,
    label: str,
    optimizers: dict[str, list[str]],
) -> tuple[list[dict], str]:
    """`training.fit` for a generator: its states kept in `work`; if it diverges, its last good epoch is taken instead.

    Returns:
        (history, what stopped it: "" if nothing did). The modules hold the last good state.

    Raises:
        DivergedError: if it diverged in its first epoch, so that there is no good state.
    """
    generator = modules["generator"]
    kept = kept_epochs(
        config.epochs, config.epochs if isinstance(generator, nn.ModuleList) else KEPT
    )

    def keep(epoch: int) -> dict:
        if epoch in kept:
            keep_state(work, generator, epoch)
        return {}

    try:
        return training.fit(
            modules,
            step,
            batches,
            config,
            optimizers,
            evaluate=keep,
            checkpoint=work / "checkpoint",
            label=label,
        ), ""
    except DivergedError as error:
        history = training.restore(work / "checkpoint", modules)
        if not history:
            raise
        stopped = (
            f"diverged in epoch {len(history) + 1} of {config.epochs}; epoch {len(history)} is used"
        )
        print(f"{label}: {stopped}\n{error}", flush=True)
        keep_state(work, generator, len(history))
        return history, stopped


def generate(
    generator: nn.Module, labels: Tensor, seed: int, side: int, batch_size: int = 500
) -> Tensor:
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
        for part in labels.split(batch_size):
            noise = [n.to(device) for n in generator.noise(len(part), source)]
            made.append(to_uint8(crop_middle(generator(part.to(device), *noise), side)).cpu())
    return torch.cat(made)


def latent_walk(generator: nn.Module, labels: Tensor, steps: int, seed: int, side: int) -> Tensor:
    """uint8 images (len(labels), steps, C, side, side): one class a row, from one noise to another, all else held.

    Between two latents the walk keeps to the sphere they lie near (Shoemake 1985): the middle of a straight line is
    shorter than any noise that the generator knows.
    """
    device, source = next(generator.parameters()).device, torch.Generator().manual_seed(seed)
    (first, *rest), (last, *_) = (
        generator.noise(len(labels), source),
        generator.noise(len(labels), source),
    )
    angle = torch.arccos(F.cosine_similarity(first, last).clamp(-0.999, 0.999))[:, None]
    generator.eval()
    with torch.inference_mode():
        shares = torch.linspace(0, 1, steps)
        walked = [
            (torch.sin((1 - t) * angle) * first + torch.sin(t * angle) * last) / torch.sin(angle)
            for t in shares
        ]
        made = [
            generator(labels.to(device), *(n.to(device) for n in (latent, *rest)))
            for latent in walked
        ]
    return torch.stack([to_uint8(crop_middle(images, side)).cpu() for images in made], 1)
