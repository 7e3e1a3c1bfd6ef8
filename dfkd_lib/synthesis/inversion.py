"""Maker 3a, 3b: images found by gradient descent on their own pixels, until the teacher is sure of them (DeepInversion).

The CNN form matches the teacher's batch-norm statistics. A vision transformer has none: its form asks instead for a high
entropy of the similarities between patches, as natural images have it and noise has not (PSAQ-ViT).
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from dfkd_lib import training
from dfkd_lib.core import Config
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
from dfkd_lib.training import Precision, TrainConfig


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


class Inversion(Config):
    """Inversion of the teacher alone: CE to the asked class, priors on the image, statistics of the teacher.

    `batch_norm` matches the batch-norm statistics of a CNN (3a), `patch_entropy` asks a vision transformer for a high
    entropy of patch similarities (3b), `compete` is adaptive DeepInversion against `Given.student`.
    Source: Yin et al. (CVPR 2020) for 3a; Li et al. (ECCV 2022) for 3b; METHODS B.
    """

    sees: ClassVar[tuple[str, ...]] = ()

    steps: int = Field(1000, ge=1, description="steps of Adam for each batch")
    batch_size: int = Field(
        128,
        ge=1,
        description="images optimised together",
        json_schema_extra={"also": "inversion_batch"},
    )
    lr: float = Field(0.05, gt=0, le=10, description="learning rate of Adam on pixels")
    ce: float = Field(1.0, ge=0, description="weight of the cross entropy to the class asked for")
    tv: float = Field(1.0, ge=0, description="weight of total variation")
    l2: float = Field(0.5, ge=0, description="weight of the mean (x − background)² / 4")
    background: float = Field(-1.0, ge=-1, le=1, description="value of an empty pixel")
    batch_norm: float = Field(0.0, ge=0, description="weight of the batch-norm statistics (3a)")
    patch_entropy: float = Field(
        0.0, ge=0, description="weight of the patch-similarity entropy (3b)"
    )
    compete: float = Field(0.0, ge=0, description="weight of 1 − disagreement with a student")
    intra: float = Field(0.0, ge=0, description="weight of DF-DearKD's intra-divergence")
    easy: float = Field(0.5, ge=0, le=1, description="share of easy images in it")
    margin: float = Field(0.5, ge=0, description="margin of it")
    jitter: int = Field(2, ge=0, description="pixels of the random shift before the teacher")
    flip: bool = Field(False, description="mirror at random (not for digits)")
    precision: Precision = Field("fp32", description="arithmetic: fp32, or bf16 by autocast")

    @model_validator(mode="after")
    def _some_loss(self) -> Self:
        weights = ("ce", "tv", "l2", "batch_norm", "patch_entropy", "compete", "intra")
        if not any(getattr(self, name) for name in weights):
            raise ValueError("the weight of at least one loss above 0")
        return self

    @property
    def budget(self) -> str:
        return f"nothing but {'a CNN' if self.batch_norm else 'the'} teacher"

    @property
    def shard(self) -> int:
        return self.batch_size

    def train(self, store: Store, given: Given) -> Artifact | None:
        """Nothing has to be trained first."""
        return None

    def parents(self, given: Given) -> list[Artifact]:
        return [given.teacher, *([given.student] if self.compete and given.student else [])]

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
