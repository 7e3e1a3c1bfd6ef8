"""What makers share that see no real image: settings of priors on images, and the teacher's look at them."""

import torch
from pydantic import Field
from torch import Tensor, nn

from dfkd_lib.attention import outputs_and_probe
from dfkd_lib.core import Config
from dfkd_lib.losses import intra_divergence_loss
from dfkd_lib.metrics import scores_and_features


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
