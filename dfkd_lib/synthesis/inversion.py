"""Maker 3a, 3b: images found by gradient descent on their own pixels, until the teacher is sure of them (DeepInversion).

The CNN form matches the teacher's batch-norm statistics. A vision transformer has none: its form asks instead for a high
entropy of the similarities between patches, as natural images have it and noise has not (PSAQ-ViT).
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfkd_lib import training
from dfkd_lib.core import WorkbenchError
from dfkd_lib.core.artifacts import Artifact, Store
from dfkd_lib.datasets import random_flip, random_shift, to_uint8
from dfkd_lib.losses import (
    BatchNormStatistics,
    attention_outputs,
    disagreement,
    intra_divergence_loss,
    patch_similarity_loss,
    total_variation,
)
from dfkd_lib.metrics import scores_and_features
from dfkd_lib.synthesis.given import Given
from dfkd_lib.training import TrainConfig


class Canvas(nn.Module):
    """Pixels (B, C, S, S) that learn, in [-1, 1]."""

    def __init__(self, count: int, shape: tuple[int, int, int], generator: torch.Generator):
        super().__init__()
        self.pixels = nn.Parameter(0.5 * torch.randn(count, *shape, generator=generator))

    def forward(self) -> Tensor:
        with torch.no_grad():
            self.pixels.clamp_(-1, 1)
        return self.pixels


class _Repeat:
    """The same batch, the labels that are asked for, `steps` times: the training loop of a canvas."""

    def __init__(self, labels: Tensor, steps: int):
        self.labels, self.steps = labels, steps

    def __len__(self) -> int:
        return self.steps

    def __call__(
        self, epoch: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, torch.Generator]]:
        for _ in range(self.steps):
            yield self.labels, generator


@dataclass(frozen=True)
class Inversion:
    """Inversion of the teacher alone: CE to the asked class, priors on the image, statistics of the teacher.

    Args:
        steps: of Adam for each batch. batch_size: images optimised together (statistics are theirs). lr: Adam's.
        ce, tv, l2: weights of cross entropy, total variation and mean (x − background)² / 4.
        background: the value, -1..1, that an empty pixel has (black for digits, 0 where there is none); the one thing
            said about the images from outside.
        batch_norm: weight of the batch-norm statistics (3a: a CNN). patch_entropy: weight of the patch-similarity
            entropy (3b: a vision transformer).
        compete: weight of 1 − disagreement with `Given.student` (adaptive DeepInversion). intra: weight of the
            intra-divergence loss (DF-DearKD), with its share `easy` and `margin`.
        jitter: pixels of the random shift before each look. flip: mirror at random (not for digits).

    Source: Yin et al. (CVPR 2020) for 3a; Li et al. (ECCV 2022) for 3b; METHODS B.
    """

    steps: int = 200
    batch_size: int = 128
    lr: float = 0.1
    ce: float = 1.0
    tv: float = 0.1
    l2: float = 0.1
    background: float = -1.0
    batch_norm: float = 0.0
    patch_entropy: float = 0.0
    compete: float = 0.0
    intra: float = 0.0
    easy: float = 0.5
    margin: float = 0.5
    jitter: int = 2
    flip: bool = False
    precision: str = "fp32"
    budget = "nothing but the teacher"

    def __post_init__(self):
        names = ("ce", "tv", "l2", "batch_norm", "patch_entropy", "compete", "intra")
        weights = {name: getattr(self, name) for name in names}
        if min(weights.values()) < 0 or max(weights.values()) == 0:
            raise WorkbenchError(
                "the weights of inversion are impossible",
                expected="each >= 0, one above 0",
                got=weights,
                where="Inversion",
                fix="give at least one loss a positive weight",
            )
        if not -1 <= self.background <= 1:
            raise WorkbenchError(
                "the background is no pixel value",
                expected="-1..1",
                got=self.background,
                where="Inversion",
                fix="give -1 for black, 1 for white, 0 where no value is empty",
            )
        if min(self.steps, self.batch_size) < 1:
            raise WorkbenchError(
                "inversion has no steps, or no images",
                expected="at least 1 of each",
                where="Inversion",
                got=f"{self.steps} steps, {self.batch_size} images",
                fix="give steps and batch_size",
            )

    @property
    def shard(self) -> int:
        return self.batch_size

    def train(self, store: Store, given: Given) -> Artifact | None:
        """Nothing has to be trained first."""
        return None

    def parents(self, given: Given) -> list[Artifact]:
        return [given.teacher, *([given.student] if self.compete and given.student else [])]

    def settings(self) -> dict:
        return asdict(self)

    def drawing(self, trained: None, given: Given) -> Callable[[Tensor, int], Tensor]:
        """(labels (N,), seed) → uint8 images (N, C, S, S), N optimised together."""
        teacher = given.load_teacher()
        student = given.load_student() if self.compete else None
        norms = BatchNormStatistics(teacher) if self.batch_norm else None

        def draw(labels: Tensor, seed: int) -> Tensor:
            canvas = Canvas(len(labels), given.shape, torch.Generator().manual_seed(seed))
            config = TrainConfig(
                epochs=1,
                batch_size=len(labels),
                lr=self.lr,
                optimizer="adam",
                betas=(0.5, 0.9),
                precision=self.precision,
                seed=seed,
            )
            training.fit(
                {"canvas": canvas},
                self._step(canvas, teacher, student, norms),
                _Repeat(labels, self.steps),
                config,
                label=f"inversion of {len(labels)} images, seed {seed}",
                split=False,
            )
            with torch.no_grad():
                return to_uint8(canvas()).cpu()

        return draw

    def _step(
        self,
        canvas: Canvas,
        teacher: nn.Module,
        student: nn.Module | None,
        norms: BatchNormStatistics | None,
    ):
        def step(batch, progress: float) -> dict[str, Tensor]:
            labels, generator = batch
            images = canvas()
            seen = random_shift(images, self.jitter, generator)
            seen = random_flip(seen, generator) if self.flip else seen
            with ExitStack() as watched:
                if norms:
                    watched.enter_context(norms.watching())
                outputs = (
                    watched.enter_context(attention_outputs(teacher)) if self.patch_entropy else []
                )
                logits, features = scores_and_features(teacher, seen)
            losses = {
                "ce": F.cross_entropy(logits.float(), labels),
                "tv": total_variation(images),
                "l2": (images - self.background).square().mean() / 4,
            }
            if norms:
                losses["batch_norm"] = norms.loss
            if self.patch_entropy:
                losses["patch_entropy"] = patch_similarity_loss(teacher, outputs)
            if self.compete:
                losses["compete"] = 1 - disagreement(student(seen), logits)
            if self.intra:
                losses["intra"] = intra_divergence_loss(
                    features, logits, labels, self.easy, self.margin
                )
            return {
                "loss": sum(getattr(self, name) * loss for name, loss in losses.items()),
                **losses,
            }

        return step
