"""A detector's distillation step: ours beside transformers' own DETR training step plus a teacher's forward pass.

Both train copies of one network, on one batch, by one optimizer, beside one frozen teacher; transformers by its own loss
(`labels=`, auxiliary losses of all decoder layers, its matcher), which makes no use of the teacher's outputs.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.comparison import Comparison, Pair, Ways, agree
from bench.students import TOLERANCES
from dfkd_lib import training
from dfkd_lib.datasets import generate_scenes
from dfkd_lib.detection import Batch, DetectionWeights, SceneBatches, answers, detection_step
from dfkd_lib.models import Detector, create_detector

LR, TOLERANCE = 1e-4, 1e-4  # the latter of what both read off the same network
OURS, THEIRS = "KD step", "transformers' DETR step + teacher"
Loss = tuple[nn.Module, Callable[[], Tensor]]


class Case(NamedTuple):
    student: str
    teacher: str
    side: int  # of the scenes, in pixels
    batch: int
    seconds: float  # of measuring, at each precision


CASES = (
    Case("detr_nano", "detr_micro", 80, 32, 15),
    Case("detr_resnet18_2x2", "detr_resnet50", 192, 4, 25),
)


def prepared(case: Case) -> tuple[Detector, Detector, Batch]:
    """Student and frozen teacher with random weights, and a batch of generated scenes, all on the training device."""
    torch.manual_seed(0)
    device = training.device()
    student, teacher = (create_detector(n, 4).to(device) for n in (case.student, case.teacher))
    scenes = generate_scenes(case.batch, size=case.side, split="synthetic")
    batch = next(SceneBatches(scenes, case.batch)(0, torch.Generator().manual_seed(0)))
    return student, training.frozen(teacher), batch.to(device)


def pixels(detector: Detector, images: Tensor) -> Tensor:
    return ((images - detector.mean) / detector.std).contiguous(memory_format=torch.channels_last)


def ours(student: Detector, teacher: Detector, batch: Batch) -> Loss:
    """A copy of the student and its step's loss: `detection_step`, the paper's losses and DETR's GIoU."""
    mine = copy.deepcopy(student).train()
    step, frozen = detection_step(DetectionWeights(giou=2.0)), answers(teacher)
    return mine, lambda: step(mine, batch, frozen)["loss"]


def theirs(student: Detector, teacher: Detector, batch: Batch) -> Loss:
    """A copy of the student's network and transformers' loss of it, after the teacher's forward pass."""
    mine = copy.deepcopy(student).train()
    network, (images, labels, boxes) = mine.network, batch[:3]
    network.config.auxiliary_loss = True
    objects = [
        {"class_labels": names[names >= 0], "boxes": where[names >= 0]}
        for names, where in zip(labels, boxes, strict=True)
    ]

    def loss() -> Tensor:
        values = pixels(mine, images)
        with torch.no_grad():
            teacher.network(pixel_values=values)
        return network(pixel_values=values, labels=objects).loss

    return mine, loss


def trainer(
    module: nn.Module, loss: Callable[[], Tensor], precision: str, own: bool = False
) -> Callable[[], None]:
    """One training step: loss, backward, AdamW; in the library's `own` arithmetic, or by autocast alone."""
    config = training.TrainConfig(epochs=1, batch_size=1, lr=LR)
    optimizer = training.make_optimizer([module], config)

    def step() -> None:
        plain = torch.autocast(training.device().type, torch.bfloat16, precision == "bf16")
        with training.arithmetic(precision) if own else plain:
            value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    return step


@torch.no_grad()
def same_outputs(student: Detector, images: Tensor) -> str:
    """A note on how equal logits and boxes are that we and transformers read off the same network."""
    mine = copy.deepcopy(student).eval()
    found, known = mine(images), mine.network(pixel_values=pixels(mine, images))
    where = type(mine.network).__name__
    agree({"transformers": known.pred_boxes, "ours": found.boxes}, TOLERANCE, where)
    return agree({"transformers": known.logits, "ours": found.logits}, TOLERANCE, where)


@contextmanager
def ways(case: Case, precision: str) -> Iterator[Ways]:
    """Both steps, of detectors that read the same off one network."""
    student, teacher, batch = prepared(case)
    note = same_outputs(student, batch[0])
    made = {OURS: ours(student, teacher, batch), THEIRS: theirs(student, teacher, batch)}
    run = {name: trainer(*way, precision, name == OURS) for name, way in made.items()}
    yield Ways(run, f"outputs {note}")


COMPARISONS = tuple(
    Comparison(
        "detr",
        f"{case.student} <- {case.teacher}, {case.batch} x {case.side} px, {precision}",
        partial(ways, case, precision),
        (Pair(OURS, THEIRS, ">= 0.91"),),
        seconds=case.seconds,
        least=5,
    )
    for case in CASES
    for precision in TOLERANCES
)
