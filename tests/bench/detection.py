"""The price of a detector's distillation step: ours against transformers' own DETR training step plus a teacher's forward.

Both train copies of one network, on one batch, by one optimizer, beside one frozen teacher; transformers by its own loss
(`labels=`, auxiliary losses of all decoder layers, its matcher), which leaves the teacher's words unused. They take turns,
a step each, and are compared within a turn, as in `bench.attention`.
"""

import copy
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.rows import Effort, Row, compared, take_turns
from bench.students import PRECISIONS
from dfkd_lib import training
from dfkd_lib.core import WorkbenchError
from dfkd_lib.datasets import generate_scenes
from dfkd_lib.detection import Batch, DetectionWeights, SceneBatches, answers, detection_step
from dfkd_lib.models import create_detector
from dfkd_lib.models.detectors import Detector

LR, LEAST, WARM = 1e-4, 5, 2  # rounds at least, and steps before the first
TOLERANCE = 1e-4  # of what both read off the same network


class Case(NamedTuple):
    """Student, teacher, side of the scenes, scenes a step, seconds of measuring at each precision."""

    student: str
    teacher: str
    side: int
    batch: int
    seconds: float


CASES = (
    Case("detr_nano", "detr_micro", 80, 32, 15),
    Case("detr_resnet18_2x2", "detr_resnet50", 192, 4, 25),
)


def prepared(case: Case) -> tuple[Detector, Detector, Batch]:
    """Student and frozen teacher with random weights, and a batch of generated scenes, all on the training device."""
    torch.manual_seed(0)
    student, teacher = (
        create_detector(name, 4).to(training.device()) for name in (case.student, case.teacher)
    )
    scenes = SceneBatches(
        generate_scenes(case.batch, size=case.side, split="synthetic"), case.batch
    )
    batch = next(scenes(0, torch.Generator().manual_seed(0)))
    return (
        student,
        teacher.eval().requires_grad_(False),
        tuple(part.to(training.device()) for part in batch),
    )


def _pixels(detector: Detector, images: Tensor) -> Tensor:
    return ((images - detector.mean) / detector.std).contiguous(memory_format=torch.channels_last)


def ours(
    student: Detector, teacher: Detector, batch: Batch
) -> tuple[nn.Module, Callable[[], Tensor]]:
    """A copy of the student and its step's loss: `detection_step`, the paper's losses and DETR's GIoU."""
    mine = copy.deepcopy(student).train()
    step, frozen = detection_step(DetectionWeights(giou=2.0)), answers(teacher)
    return mine, lambda: step(mine, batch, frozen)["loss"]


def theirs(
    student: Detector, teacher: Detector, batch: Batch
) -> tuple[nn.Module, Callable[[], Tensor]]:
    """A copy of the student's network and transformers' loss of it, after the teacher's forward pass."""
    mine = copy.deepcopy(student).train()
    network, (images, labels, boxes) = mine.network, batch
    network.config.auxiliary_loss = True
    objects = [
        {"class_labels": names[names >= 0], "boxes": where[names >= 0]}
        for names, where in zip(labels, boxes, strict=True)
    ]

    def loss() -> Tensor:
        pixels = _pixels(mine, images)
        with torch.no_grad():
            teacher.network(pixel_values=pixels)
        return network(pixel_values=pixels, labels=objects).loss

    return mine, loss


def trainer(module: nn.Module, loss: Callable[[], Tensor], precision: str) -> Callable[[], None]:
    """One training step: loss, backward, AdamW."""
    optimizer = training.make_optimizer(
        [module], training.TrainConfig(epochs=1, batch_size=1, lr=LR)
    )

    def step() -> None:
        with torch.autocast(training.device().type, torch.bfloat16, precision == "bf16"):
            value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    return step


@torch.no_grad()
def difference(student: Detector, images: Tensor) -> float:
    """How far apart logits and boxes are that we and transformers read off the same network, at most.

    Raises:
        WorkbenchError: if that is more than rounding explains.
    """
    mine = copy.deepcopy(student).eval()
    found, said = mine(images), mine.network(pixel_values=_pixels(mine, images))
    worst = max(
        float((a - b).abs().max())
        for a, b in ((found.logits, said.logits), (found.boxes, said.pred_boxes))
    )
    if not worst <= TOLERANCE:
        raise WorkbenchError(
            "our detector does not say what transformers reads off its network",
            got=worst,
            expected=f"logits and boxes apart by at most {TOLERANCE}",
            where=type(mine.network).__name__,
        )
    return worst


def measure(case: Case, precision: str, effort: Effort = Effort()) -> Row:
    """Both steps' times in rounds for the case's seconds, after `difference` has found both alike."""
    given = prepared(case)
    far = difference(given[0], given[2][0])
    work = {way.__name__: trainer(*way(*given), precision) for way in (ours, theirs)}
    for step in work.values():
        for _ in range(WARM):
            step()
    rounds = take_turns(work, case.seconds * effort.seconds, least=LEAST)
    return compared(
        rounds,
        "ours",
        "theirs",
        "detr",
        "KD step",
        f"{case.student} <- {case.teacher}, {case.batch} x {case.side} px, {precision}",
        name="transformers' DETR step + teacher",
        asked=">= 0.91",
        note=f"outputs equal to {far:.0e}",
    )


def rows(effort: Effort) -> Iterator[Row]:
    """Every case and precision; transformers' own DETR step and a teacher's forward pass against our KD step, AdamW."""
    for case in CASES:
        for precision in PRECISIONS:
            yield measure(case, precision, effort)
