"""Maker 3a, 3b: images found by gradient descent on their own pixels, until the teacher is sure of them (DeepInversion).

The CNN form matches the teacher's batch-norm statistics. A vision transformer has none: its form asks instead for a high
entropy of the similarities between patches, as natural images have it and noise has not (PSAQ-ViT). A plain one may be
shown ever fewer patches, those that it attends to (sparse inversion): the others are left to the priors on images.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from functools import lru_cache
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from dfkd_lib.attention import outputs_and_probe
from dfkd_lib.core import Artifact, Store
from dfkd_lib.datasets import random_flip, random_shift, to_float, to_uint8
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
from dfkd_lib.synthesis.canvas import Draws, FromTeacher, fit_images, scores_features_probe
from dfkd_lib.synthesis.given import Given
from dfkd_lib.training import Precision

WARM_SEED = 1_000_003  # of the images whose means others start from: of no batch


class Canvas(nn.Module):
    """Images (B, C, S, S) in [-1, 1] that learn: their pixels, or a field `coarse` times coarser along a side, which is
    interpolated and squashed. Without fine patterns a teacher is not so easily fooled.

    Args:
        background: value of an empty pixel; a field starts half way to it.
        start: images to start from, beside noise.
    """

    GAIN = 2.0

    def __init__(
        self,
        count: int,
        shape: tuple[int, int, int],
        generator: torch.Generator,
        coarse: int = 1,
        background: float = -1.0,
        start: Tensor | None = None,
    ):
        super().__init__()
        self.coarse, self.side = coarse, shape[1:]
        few = [-(-side // coarse) for side in self.side]
        pixels = 0.5 * torch.randn(count, shape[0], *few, generator=generator)
        if start is not None:
            pixels += F.interpolate(start, few, mode="area")
        elif coarse > 1:
            pixels += background / 2
        self.pixels = nn.Parameter(pixels)

    def forward(self) -> Tensor:
        if self.coarse > 1:
            field = F.interpolate(self.pixels, self.side, mode="bicubic")
            return torch.tanh(self.GAIN * field)
        with torch.no_grad():
            self.pixels.clamp_(-1, 1)
        return self.pixels


InversionWeights = weights_of(
    MAKER_LOSSES, ce=1.0, tv=1.0, l2=0.5, batch_norm=0.0, patch_entropy=0.0, intra=0.0
)


class InversionLosses(FromTeacher, InversionWeights):
    """What makers share whose images are fitted to the teacher: CE to the asked class, priors on images, its statistics."""

    flip: bool = Field(False, description="mirror at random (not for digits)")

    @property
    def sees(self) -> tuple[str, ...]:
        return ()

    @property
    def budget(self) -> str:
        return f"nothing but {'a CNN' if self.batch_norm else 'the'} teacher"

    @property
    def shard(self) -> int:
        return self.batch_size

    def train(self, store: Store, given: Given) -> Artifact | None:
        """Nothing has to be trained first."""
        return None

    def named(
        self,
        images: Tensor,
        labels: Tensor,
        random: torch.Generator,
        teacher: nn.Module,
        student: nn.Module | None = None,
        patches: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The losses of images (B, C, S, S) in [-1, 1], and the teacher's last features (B, D) of them."""
        seen = random_shift(images, self.jitter, random)
        seen = random_flip(seen, random) if self.flip else seen
        with ExitStack() as inside:
            norms = inside.enter_context(batch_norm_losses(teacher)) if self.batch_norm else []
            outputs = inside.enter_context(attention_outputs(teacher)) if self.patch_entropy else []
            logits, features, _ = scores_features_probe(teacher, seen, False, patches)
        named = {
            "ce": F.cross_entropy(logits.float(), labels),
            "tv": total_variation(images),
            "l2": ink(images, self.background).mean(),
        }
        if self.batch_norm:
            named["batch_norm"] = torch.stack(norms).sum()
        if self.patch_entropy:
            named["patch_entropy"] = patch_similarity_loss(teacher, outputs)
        if student is not None:
            named |= self.against(student, seen, logits)
        if self.intra:
            named["intra"] = self.intra_loss(features, logits, labels)
        return named, features

    @abstractmethod
    def against(self, student: nn.Module, images: Tensor, logits: Tensor) -> dict[str, Tensor]:
        """The loss by a student's answers to images (B, C, S, S), and the teacher's (B, K), by its name."""


class Inversion(InversionLosses):
    """Inversion of the teacher alone: CE to the asked class, priors on the image, statistics of the teacher.

    `batch_norm` matches the batch-norm statistics of a CNN (3a), `patch_entropy` asks a vision transformer for a high
    entropy of patch similarities (3b), `compete` is adaptive DeepInversion against `Given.student`. With fewer `patches`, at
    the beginning of each part of the steps a plain vision transformer's own attention chooses anew which it is shown.
    Source: Yin et al. (CVPR 2020) for 3a; Li et al. (ECCV 2022) for 3b; METHODS B; fewer patches: Hu et al. (ICML 2024),
        and arXiv 2509.23235, in which patches come back.
    """

    losses: ClassVar[tuple[str, ...]] = (*InversionLosses.losses, "compete")
    also: ClassVar[dict[str, str]] = {"compete": "compete_weight", "batch_size": "inversion_batch"}

    compete: float = Field(
        0.0,
        ge=0,
        title="competition",
        description="λ of 1 − disagreement of teacher and student (Yin et al. 2020)",
    )
    steps: int = Field(1000, ge=1, description="steps of Adam for each batch")
    batch_size: int = Field(128, ge=1, description="images optimised together")
    lr: float = Field(0.05, gt=0, le=10, description="learning rate of Adam on pixels")
    precision: Precision = Field("fp32", description="arithmetic: fp32, or bf16 by autocast")
    patches: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (1.0,),
        min_length=1,
        description="shares of the patches that the teacher is shown, in equal parts of the steps",
    )
    coarse: int = Field(
        1, ge=1, le=8, description="pixels of an image to one that learns, along a side"
    )
    warm: int = Field(
        0,
        ge=0,
        description="images a class made first, from whose mean all others start, 0: from noise",
    )

    def parents(self, given: Given) -> list[Artifact]:
        return [given.teacher, *([given.student] if self.compete and given.student else [])]

    def against(self, student: nn.Module, images: Tensor, logits: Tensor) -> dict[str, Tensor]:
        """The competition with `Given.student`."""
        return {"compete": 1 - disagreement(student(images), logits)}

    def drawing(self, trained: None, given: Given) -> Callable[[Tensor, int], Tensor]:
        """(labels (N,), seed) → uint8 images (N, C, S, S), N optimised together."""
        teacher = given.load_teacher()
        student = given.load_student() if self.compete else None

        @lru_cache(1)
        def means() -> Tensor:
            """The mean of a few images of each class, made as all are, but from noise."""
            classes = torch.arange(len(given.classes)).repeat(self.warm)
            made = self.replace(warm=0).drawing(None, given)(classes, WARM_SEED)
            return to_float(made).view(self.warm, -1, *given.shape).mean(0)

        def draw(labels: Tensor, seed: int) -> Tensor:
            generator = torch.Generator().manual_seed(seed)
            start = means()[labels] if self.warm else None
            how = (generator, self.coarse, self.background, start)
            canvas = Canvas(len(labels), given.shape, *how)
            fit_images(
                {"canvas": canvas},
                self.step(canvas, teacher, student),
                Draws(self.steps, lambda random: (labels, random)),
                f"inversion of {len(labels)} images, seed {seed}",
                batch_size=len(labels),
                lr=self.lr,
                betas=(0.5, 0.9),
                precision=self.precision,
                seed=seed,
            )
            with torch.no_grad():
                return to_uint8(canvas()).cpu()

        return draw

    def step(self, canvas: Canvas, teacher: nn.Module, student: nn.Module | None) -> Callable:
        """The step for `training.fit`: one update of the pixels."""

        shown: dict[int, Tensor | None] = {}

        def step(batch: tuple, progress: float) -> dict[str, Tensor]:
            labels, random = batch
            images, part = canvas(), int(progress * len(self.patches))
            if part not in shown:
                shown[part] = most_attended(teacher, images, self.patches[part])
            named, _ = self.named(images, labels, random, teacher, student, shown[part])
            return self.total(named)

        return step


@torch.no_grad()
def most_attended(teacher: nn.Module, images: Tensor, share: float) -> Tensor | None:
    """The patches (B, n) that the class token looks at most, int64, n a share of all; None for all of them.

    Raises:
        WorkbenchError: for a teacher that is no plain vision transformer.
    """
    if share == 1:
        return None
    every = outputs_and_probe(teacher, images)[1]
    return every.topk(math.ceil(share * every.shape[1]), 1).indices
