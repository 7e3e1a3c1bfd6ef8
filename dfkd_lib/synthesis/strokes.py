"""Maker 3f: drawings of a pen, out of which the frozen teacher picks its classes; nothing is trained, no real pixel is seen.

A path is lines and arcs, joined smoothly or at corners; a drawing is one path, or some that touch. Few drawings at random
are digits, and a teacher is certain of many that are none. But its logit is higher for what looks like what it has learnt,
so of the drawings that it takes for a class the higher ones are picked, and lower ones too, less often: where a class ends
is worth as much to a student as what it looks like.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from dfkd_lib.attention import outputs_and_probe
from dfkd_lib.core import Artifact, Config, Store
from dfkd_lib.datasets import to_float, to_uint8
from dfkd_lib.synthesis.given import Given
from dfkd_lib.training import Precision, arithmetic

POINTS, ARCS = 36, 4  # of a path
BATCH = 128  # drawings a pass: larger ones leave a CPU's cache
LEAST = 0.15  # weight of the lowest logit of a class; that of the highest is 1 more


class Drawing(NamedTuple):
    """Paths of a pen: points (B, P, 2) as (x, y), the image from −1 to 1; which of them are drawn (B, P); radius (B, 1, 1)."""

    points: Tensor
    drawn: Tensor
    radius: Tensor


class PenStrokes(Config):
    """Random drawings of a pen, picked by the teacher's answers so that classes are even. No source gives sizes: they are ours."""

    background: float = Field(-1.0, ge=-1, le=1, description="value of an empty pixel")
    candidates: int = Field(
        4,
        ge=1,
        le=1000,
        description="random drawings for each that is picked",
    )
    paths: int = Field(2, ge=1, le=8, description="most paths of a drawing")
    precision: Precision = Field("bf16", description="arithmetic of the teacher: fp32 or bf16")

    @property
    def sees(self) -> tuple[str, ...]:
        return ()

    @property
    def budget(self) -> str:
        return "the teacher and a prior of pen strokes"

    @property
    def shard(self) -> int:
        return 2048

    def train(self, store: Store, given: Given) -> Artifact | None:
        """Nothing has to be trained first."""
        return None

    def parents(self, given: Given) -> list[Artifact]:
        return [given.teacher]

    def drawing(self, trained: None, given: Given) -> Callable[[Tensor, int], Tensor]:
        """(labels (N,), seed) → uint8 images (N, C, S, S), picked out of N · `candidates` random drawings."""
        teacher = given.load_teacher()
        device, (channels, side, _) = next(teacher.parameters()).device, given.shape

        @torch.inference_mode()
        def draw(labels: Tensor, seed: int) -> Tensor:
            random, images, logits = torch.Generator().manual_seed(seed), [], []
            for _ in range(math.ceil(len(labels) * self.candidates / BATCH)):
                drawn = self.painted(random_drawing(BATCH, self.paths, random), channels, side)
                images.append(to_uint8(drawn))
                shown = to_float(images[-1]).to(device)
                with arithmetic(self.precision):
                    answers, _ = outputs_and_probe(teacher, shown, probe=False)
                logits.append(answers.float().cpu())
            return torch.cat(images)[picked(torch.cat(logits), labels, random)]

        return draw

    def painted(self, drawing: Drawing, channels: int, side: int) -> Tensor:
        """Its ink on an empty ground: float (B, channels, side, side), as far from `background` as can be."""
        ink = painted(drawing, side)[:, None].expand(-1, channels, -1, -1)
        full = -1.0 if self.background > 0 else 1.0
        return self.background + (full - self.background) * ink


def random_drawing(count: int, paths: int, random: torch.Generator) -> Drawing:
    """`count` drawings of 1 to `paths` paths each (fewer are likelier): slanted, wide or narrow, of random size, near the middle."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=random)

    def normal(*shape: int) -> Tensor:
        return torch.randn(count, *shape, generator=random)

    def some(path: Tensor) -> Tensor:
        """One point (count, 1, 2) of each."""
        at = torch.randint(POINTS, (count,), generator=random)
        return path[torch.arange(count), at][:, None]

    first, there = random_path(count, random), torch.ones(count, 1)
    parts, drawn = [first], [there]
    for _ in range(paths - 1):
        path = random_path(count, random) * (0.2 + 0.6 * uniform(1, 1))
        # With its end or its middle it touches the first, or all but does.
        joint = torch.where(uniform(1, 1) < 0.5, path[:, :1], some(path))
        near = 0.08 * normal(1, 2) * (uniform(1, 1) < 0.5)
        parts.append(path - joint + some(first) + near)
        there = there * (uniform(1) < 0.35)
        drawn.append(there)
    points = torch.cat(parts, 1)
    visible = torch.cat(drawn, 1).repeat_interleave(POINTS, 1).bool()
    wide = torch.exp(0.175 * normal(1))
    across, down = points[..., 0] / wide, points[..., 1] * wide
    points = torch.stack([across + 0.25 * normal(1) * down, down], -1)
    hidden = ~visible[..., None]
    low = points.masked_fill(hidden, math.inf).amin(1, keepdim=True)
    high = points.masked_fill(hidden, -math.inf).amax(1, keepdim=True)
    size = (1.0 + 0.6 * uniform(1, 1)) / (high - low).amax(-1, keepdim=True)
    points = (points - (low + high) / 2) * size + 0.08 * normal(1, 2)
    return Drawing(points, visible, 0.045 + 0.06 * uniform(1, 1))


def random_path(count: int, random: torch.Generator) -> Tensor:
    """Points (count, POINTS, 2) of pens that move at one speed, one unit in all, from any direction on.

    A path is one to four lines or arcs of up to 0.85 turns, at three of five joints with a corner of up to 0.9 half
    turns, and bends a little besides.
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=random)

    there = (uniform(ARCS) < torch.tensor([1.0, 0.75, 0.6, 0.4])).cumprod(1)
    share = (uniform(ARCS) + 0.15) * there
    share = share / share.sum(1, keepdim=True)
    middles = (torch.arange(POINTS) + 0.5) / POINTS
    place = (middles[:, None] > share.cumsum(1)[:, None, :-1]).sum(-1)  # the arc that a point is of
    turning = 1.7 * math.pi * (2 * uniform(ARCS) - 1) * (uniform(ARCS) > 0.35)
    corner = 0.9 * math.pi * (2 * uniform(ARCS) - 1) * (uniform(ARCS) < 0.6)
    begins = F.pad(place[:, 1:] != place[:, :-1], (1, 0))
    knots = torch.randn(count, 1, 5, generator=random)
    slowly = F.interpolate(knots, POINTS, mode="linear", align_corners=True)[:, 0]
    bend = (turning / (share + 1e-6)).gather(1, place) + 3.6 * uniform(1) * slowly
    heading = bend / POINTS + begins * corner.gather(1, place)
    heading = 2 * math.pi * uniform(1) + heading.cumsum(1)
    return torch.stack([heading.cos(), heading.sin()], -1).cumsum(1) / POINTS


def painted(drawing: Drawing, side: int) -> Tensor:
    """The ink (B, side, side) in [0, 1] of a drawing: 1 within the pen's radius of a point, falling to 0 over a pixel."""
    centres = (torch.arange(side) + 0.5) / side * 2 - 1
    # Squared distances to points that are not drawn are too large to matter.
    across = (centres - drawing.points[..., :1]) ** 2 + ~drawing.drawn[..., None] * 100.0
    down = (centres - drawing.points[..., 1:]) ** 2
    nearest = (down[:, :, :, None] + across[:, :, None, :]).amin(1).sqrt()
    return ((drawing.radius + 1.26 / side - nearest) * side / 2).clamp(0, 1)


def picked(logits: Tensor, labels: Tensor, random: torch.Generator) -> Tensor:
    """Which candidate (N,) is each label's, none twice for a class: one that the teacher takes for that class, by chance, the
    likelier the higher its logit ranks among those; where there are too few, all of them and others of the highest logits.

    Args:
        logits: (M, K) of the candidates. labels: int64 (N,), N ≤ M.
    """
    answers, rows = logits.argmax(1), torch.empty_like(labels)
    for label in labels.unique().tolist():
        places, score = (labels == label).nonzero().flatten(), logits[:, label]
        own = (answers == label).nonzero().flatten()
        if len(own) > len(places):
            rank = score[own].argsort().argsort() / len(own)
            chosen = own[torch.multinomial(LEAST + rank**2, len(places), generator=random)]
        else:
            chosen = (score + 1e6 * (answers == label)).topk(len(places)).indices
            chosen = chosen[torch.randperm(len(chosen), generator=random)]
        rows[places] = chosen
    return rows
