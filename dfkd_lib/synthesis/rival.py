"""A student that a maker's images are to disagree with: it learns them from the teacher while they are made."""

from abc import abstractmethod
from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from dfkd_lib.core import Config, WorkbenchError, processes
from dfkd_lib.datasets import to_float
from dfkd_lib.losses import decision_adversarial_loss, kd_loss
from dfkd_lib.models import MODELS, create_model
from dfkd_lib.synthesis.canvas import held_logits
from dfkd_lib.synthesis.given import Given
from dfkd_lib.synthesis.inversion import InversionLosses
from dfkd_lib.training import shape_of


class MemoryBank(nn.Module):
    """Images the student has seen, with the teacher's answers; the oldest give way. Kept with a training's checkpoint.

    Args:
        size: images it holds.
        shape: (C, S, S).
        num_classes: K.
    """

    def __init__(self, size: int, shape: tuple[int, int, int], num_classes: int):
        super().__init__()
        self.register_buffer("images", torch.zeros(size, *shape, dtype=torch.uint8))
        self.register_buffer("logits", torch.zeros(size, num_classes))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        # min(seen, size) on the host: to ask the device at every draw would be to wait for it.
        self._held = 0
        self.register_load_state_dict_post_hook(lambda bank, _: bank._count())

    def _count(self) -> None:
        self._held = min(int(self.seen), len(self.images))

    @torch.no_grad()
    def add(self, images: Tensor, logits: Tensor) -> None:
        """Keep float images (B, C, S, S) in [-1, 1] and logits (B, K), of all processes that part a batch among them."""
        # Bad numbers are the training loop's to report, which then goes back to a bank without them.
        images = images.float().nan_to_num().clamp(-1, 1)
        pixels = processes.gathered(images.add(1.0).mul(127.5).round().to(torch.uint8))
        rows = (self.seen + torch.arange(len(pixels), device=self.seen.device)) % len(self.images)
        self.images[rows], self.logits[rows] = pixels, processes.gathered(logits.float())
        self.seen += len(pixels)
        self._held = min(self._held + len(pixels), len(self.images))

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """`count` random (images float, logits) of those kept."""
        rows = torch.randint(self._held, (count,), device=self.seen.device)
        return to_float(self.images[rows]), self.logits[rows]


class Rival(Config):
    """Settings of a student of the maker's own that its images are to disagree with, where `rivalry` is above 0."""

    student_model: str = Field("", description="that student, which learns the images made so far")
    temperature: float = Field(4.0, gt=0, description="of its distillation")
    bank: int = Field(20_000, ge=1, description="images its memory holds")

    @property
    @abstractmethod
    def rivalry(self) -> float:
        """λ of the disagreement."""

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.rivalry and not self.student_model:
            raise ValueError("student_model, a name for models.create_model, to disagree with")
        if self.rivalry and self.bank < self.batch_size:
            raise ValueError(f"a bank of at least a batch, {self.batch_size}")
        return self

    @property
    def code(self) -> list:
        """What images depend on beside the settings: the student's architecture."""
        return [MODELS.get(self.student_model)] if self.rivalry else []

    def rival(self, given: Given) -> dict[str, nn.Module]:
        """{"student": untrained, "bank": its memory}; none where the images need not disagree with it.

        Raises:
            WorkbenchError: if that model has two outputs in training.
        """
        if not self.rivalry:
            return {}
        student = create_model(self.student_model, **shape_of(given.blank))
        if isinstance(student(torch.zeros(2, *given.shape)), tuple):
            raise WorkbenchError(
                "the student of an adversarial maker has two outputs in training",
                expected="one: a model without a distillation token",
                got=self.student_model,
                fix="name another student_model",
            )
        bank = MemoryBank(self.bank, given.shape, len(given.classes))
        return {"student": student, "bank": bank}


class RivalLosses(Rival, InversionLosses):
    """Inversion's losses and, if `decision_adversarial` is above 0, the disagreement with a student of the maker's own."""

    losses: ClassVar[tuple[str, ...]] = (*InversionLosses.losses, "decision_adversarial")

    batch_size: int = Field(128, ge=2, description="images fitted together")
    decision_adversarial: float = Field(
        0.0,
        ge=0,
        title="disagreement",
        description="λ of minus the divergence of a student where it agrees with the teacher on the class (CMI, Fast)",
    )
    student_steps: int = Field(20, ge=1, description="the student's steps after each batch")

    @property
    def rivalry(self) -> float:
        return self.decision_adversarial

    def against(self, student: nn.Module, images: Tensor, logits: Tensor) -> dict[str, Tensor]:
        """The disagreement with the student, which is held."""
        loss = decision_adversarial_loss(held_logits(student, images), logits)
        return {"decision_adversarial": loss}

    def lesson(self, student: nn.Module, bank: MemoryBank) -> dict[str, Tensor]:
        """The student's loss on a batch out of its memory."""
        images, answers = bank.draw(self.batch_size)
        return {"loss": kd_loss(student(images), answers, self.temperature)}
