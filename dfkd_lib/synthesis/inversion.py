"""Maker 3a, 3b: images found by gradient descent on their own pixels, until the teacher is sure of them (DeepInversion).

The CNN form matches the teacher's batch-norm statistics. A vision transformer has none: its form asks instead for a high
entropy of the similarities between patches, as natural images have it and noise has not (PSAQ-ViT).
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from dfkd_lib import training
from dfkd_lib.core import Artifact, Store
from dfkd_lib.datasets import random_flip, random_shift, to_uint8
from dfkd_lib.losses import (
    MAKER_LOSSES,
    attention_outputs,
    batch_norm_losses,
    disagreement,
    ink,
    patch_similarity_loss,
    total_variation,
    weights_of,
)
from dfkd_lib.metrics import scores_and_features
from dfkd_lib.synthesis.canvas import Draws
from dfkd_lib.synthesis.from_teacher import FromTeacher
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


InversionWeights = weights_of(
    MAKER_LOSSES, ce=1.0, tv=1.0, l2=0.5, batch_norm=0.0, patch_entropy=0.0, compete=0.0, intra=0.0
)


class Inversion(FromTeacher, InversionWeights):
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
    flip: bool = Field(False, description="mirror at random (not for digits)")
    precision: Precision = Field("fp32", description="arithmetic: fp32, or bf16 by autocast")

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
                self.step(canvas, teacher, student),
                Draws(self.steps, lambda random: (labels, random)),
                config,
                label=f"inversion of {len(labels)} images, seed {seed}",
                split=False,
            )
            with torch.no_grad():
                return to_uint8(canvas()).cpu()

        return draw

    def step(self, canvas: Canvas, teacher: nn.Module, student: nn.Module | None) -> Callable:
        """The step for `training.fit`: one update of the pixels."""

        def step(batch: tuple, progress: float) -> dict[str, Tensor]:
            labels, random = batch
            images = canvas()
            seen = random_shift(images, self.jitter, random)
            seen = random_flip(seen, random) if self.flip else seen
            with ExitStack() as inside:
                norms = inside.enter_context(batch_norm_losses(teacher)) if self.batch_norm else []
                outputs = (
                    inside.enter_context(attention_outputs(teacher)) if self.patch_entropy else []
                )
                logits, features = scores_and_features(teacher, seen)
            named = {
                "ce": F.cross_entropy(logits.float(), labels),
                "tv": total_variation(images),
                "l2": ink(images, self.background).mean(),
            }
            if self.batch_norm:
                named["batch_norm"] = torch.stack(norms).sum()
            if self.patch_entropy:
                named["patch_entropy"] = patch_similarity_loss(teacher, outputs)
            if self.compete:
                named["compete"] = 1 - disagreement(student(seen), logits)
            if self.intra:
                named["intra"] = self.intra_loss(features, logits, labels)
            return self.total(named)

        return step
