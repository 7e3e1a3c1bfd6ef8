"""Scenes found by gradient descent on their own pixels, until a detector finds in them the layout that was asked for.

This maker sees no image: the layouts come from what the teacher expects in noise, all else from its losses, and from priors.
"""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from dfkd_lib import training
from dfkd_lib.core import Artifact, Config, Store, artifacts
from dfkd_lib.datasets import SCENES, to_uint8
from dfkd_lib.detection.detector import load_detector
from dfkd_lib.detection.layouts import STATISTICS, sampled_layouts
from dfkd_lib.detection.step import DetectionWeights, pair_objects, queries
from dfkd_lib.losses import batch_norm_losses, detection_losses, total_variation
from dfkd_lib.models import Detector
from dfkd_lib.synthesis import Canvas, Draws
from dfkd_lib.training import Precision, TrainConfig

PATCH = 8  # side in pixels of what is dropped
START = 0.2  # of the canvas' own noise, which fills its range, and from which priors take long to come back


class SceneInversion(Config):
    """Inversion of a detector: its own losses at a layout, total variation, l2, its batch norms' statistics where it has any.

    Source: Yin et al. (CVPR 2020) for the priors and the statistics; the losses are the detector's own (A eq. 11-13, GIoU;
        of a `RealTimeDetector` theirs); dropping patches keeps an object from resting on a few pixels.
    """

    steps: int = Field(150, ge=1, le=100_000, description="steps of Adam for each batch")
    batch_size: int = Field(64, ge=1, le=4096, description="scenes optimised together")
    lr: float = Field(0.1, gt=0, le=10, description="learning rate of Adam on pixels")
    precision: Precision = Field("fp32", description="arithmetic: fp32, or bf16 by autocast")
    tv: float = Field(10.0, ge=0, le=1000, description="weight of total variation")
    l2: float = Field(1.0, ge=0, le=1000, description="weight of the mean square about mid grey")
    batch_norm: float = Field(
        0.3, ge=0, le=1000, description="weight of the batch norms' statistics"
    )
    drop: float = Field(0.1, ge=0, lt=1, description="share of patches that a step hides")
    coarse: int = Field(
        4, ge=1, le=8, description="pixels of a scene to one that learns, along a side"
    )

    def draw(
        self,
        store: Store,
        teacher: Artifact,
        layouts: Artifact,
        weights: DetectionWeights,
        side: int,
        count: int,
        seed: int = 0,
    ) -> Artifact:
        """So many square scenes as an artifact for `open_scenes`: pixels uint8 (N, 3, side, side), and the layout asked for.

        Args:
            layouts: of `layout_statistics`; made from noise, no image stands behind these scenes but those of the teacher.
            weights: of the teacher's losses of classes and boxes.
        """
        own = {name: weights[name] for name in ("classification", "boxes", "giou", "own")}
        classes = teacher.metrics["classes"]
        settings = {**self.as_dict(), **own, "classes": classes, "side": side}

        def make(work: Path) -> dict:
            random = torch.Generator().manual_seed(seed)
            labels, boxes = sampled_layouts(layouts.tensors(STATISTICS), count, random)
            detector, pixels = load_detector(teacher), []
            for number, rows in enumerate(torch.arange(count).split(self.batch_size)):
                part = work / f"part{number}.safetensors"  # a kill costs one batch
                if not part.exists():
                    layout = labels[rows], boxes[rows]
                    made = self.invert(detector, *layout, side, own, seed * 100_003 + number)
                    artifacts.save_tensors(part, {"pixels": made})
                pixels.append(artifacts.load_tensors(part)["pixels"])
            drawn = {"pixels": torch.cat(pixels), "labels": labels, "boxes": boxes}
            artifacts.save_tensors(work / SCENES, drawn)
            for part in work.glob("part*.safetensors"):
                part.unlink()
            return {"scenes": count}

        settings |= {"count": count, "seed": seed}
        return store.get_or_make("inverted_scenes", settings, make, [teacher, layouts])

    def invert(
        self, teacher: Detector, labels: Tensor, boxes: Tensor, side: int, weights: dict, seed: int
    ) -> Tensor:
        """Scenes uint8 (B, 3, side, side) for a padded layout, labels (B, M) and boxes (B, M, 4)."""
        count, random = len(labels), torch.Generator().manual_seed(seed)
        canvas = Canvas(count, (3, side, side), random, self.coarse, 0.0)
        with torch.no_grad():
            canvas.pixels.mul_(START)
        own = {"epochs": 1, "batch_size": count, "lr": self.lr, "precision": self.precision}
        training.fit(
            {"canvas": canvas},
            self.step(canvas, teacher, weights),
            Draws(
                self.steps, lambda random: (labels, boxes, hidden(count, side, self.drop, random))
            ),
            TrainConfig(**own, optimizer="adam", betas=(0.5, 0.9), seed=seed),
            label=f"inversion of {count} scenes, seed {seed}",
            split=False,
        )
        with torch.no_grad():
            return to_uint8(canvas()).cpu()

    def step(self, canvas: Canvas, teacher: Detector, weights: dict) -> Callable:
        """The step for `training.fit`: one update of the pixels."""
        batch_norms = any(isinstance(part, nn.BatchNorm2d) for part in teacher.modules())
        norms = batch_norms and self.batch_norm > 0

        def step(batch: tuple, progress: float) -> dict[str, Tensor]:
            *layout, dropped = batch
            images = canvas()
            seen = (images.masked_fill(dropped, 0.0) + 1) / 2
            total = self.tv * total_variation(images) + self.l2 * images.square().mean()
            with ExitStack() as inside:
                statistics = inside.enter_context(batch_norm_losses(teacher)) if norms else []
                found = queries(teacher, seen, objects=tuple(layout))
            if norms:
                total = total + self.batch_norm * torch.stack(statistics).sum()
            if found.own is None:
                target = pair_objects(found, *layout)
                named = detection_losses(*found[:2], target.labels, target.boxes)
            else:
                named = {"own": found.own}
            total = total + sum(weights[name] * value.sum() for name, value in named.items())
            return {"loss": total, **{name: value[-1] for name, value in named.items()}}

        return step


def hidden(count: int, side: int, share: float, random: torch.Generator) -> Tensor:
    """Which pixels are hidden, bool (count, 1, side, side): patches by chance, that share of them."""
    cells = torch.rand(count, 1, -(-side // PATCH), -(-side // PATCH), generator=random) < share
    return F.interpolate(cells.float(), scale_factor=PATCH)[..., :side, :side].bool()
