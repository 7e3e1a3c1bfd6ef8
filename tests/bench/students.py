"""A student's training, with stored targets and with the teacher live, beside a plain loop on timm and torchvision.

All train the same student from the same weights, by the same loss, on the same images, and must come to the same losses
before they are timed, an epoch each.
"""

import copy
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from bench.comparison import Comparison, Pair, Ways, agree, figure
from dfkd_lib import training
from dfkd_lib.core import Store, save_tensors
from dfkd_lib.datasets import ImageSet, load_images
from dfkd_lib.distill import KDWeights, LiveTeacher, StoredTeacher, kd_step, teacher_targets
from dfkd_lib.models import create_model
from dfkd_lib.training import Augmentation, Batch, frozen

TEACHER, STUDENT, BATCH = "vit_mnist_teacher", "deit_xtiny_patch4_28", 128  # the paper's
BATCHES = 2  # of an epoch here
LR, TEMPERATURE = 1e-3, 4.0
TOLERANCES = {"fp32": 1e-4, "bf16": 1e-2}  # of the losses; bf16 keeps eight bits
LOADERS = (0, 2)  # workers of the plain loop's loader; in each round the faster counts
STORED, LIVE = "stored targets", "live teacher"
PLAIN = "plain loop on timm"
ASKED = {STORED: ">= 2", LIVE: ">= 1.2"}


class Setting(NamedTuple):
    """What all are given.

    Args:
        names: of teacher and student. teacher: frozen. student: as it starts; nobody trains this one, but copies.
        images: the training set. folder: the same images for torchvision's MNIST, and room for a store.
        batch: images a step. precision: "fp32" or "bf16" (autocast).
    """

    names: tuple[str, str]
    teacher: nn.Module
    student: nn.Module
    images: ImageSet
    folder: Path
    batch: int
    precision: str

    def autocast(self) -> torch.autocast:
        return torch.autocast(training.device().type, torch.bfloat16, self.precision == "bf16")


class Way(NamedTuple):
    """A way to train: one epoch over all images, and the losses of two steps on the first batch from the same start."""

    epoch: Callable[[], object]
    two_losses: Callable[[], list[float]]


@contextmanager
def prepared(
    images: ImageSet, batch: int, precision: str, names: tuple[str, str] = (TEACHER, STUDENT)
) -> Iterator[Setting]:
    """A Setting with random weights; its folder lives as long as the context."""
    shape = {"num_classes": images.num_classes, "img_size": images.shape[1]}
    torch.manual_seed(0)
    teacher, student = (create_model(name, in_chans=images.shape[0], **shape) for name in names)
    with tempfile.TemporaryDirectory() as folder:
        write_mnist(Path(folder), images)
        student = student.to(training.device())
        yield Setting(names, frozen(teacher), student, images, Path(folder), batch, precision)


def write_mnist(folder: Path, images: ImageSet) -> None:
    """Grey images as torchvision's MNIST reads them, in both of its splits."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels, labels = images.images[:, 0].numpy(), images.labels.to(torch.uint8).numpy()
    for split in ("train", "t10k"):
        head = struct.pack(">4i", 0x803, *pixels.shape)
        (raw / f"{split}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        head = struct.pack(">2i", 0x801, len(labels))
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())


def ours(setting: Setting, teacher: Callable) -> Way:
    """The library's loop, step and batches, as `distill.train` puts them together."""
    images, kd = setting.images, kd_step(KDWeights(patch=0.0, temperature=TEMPERATURE))
    tensors = (images.images, images.labels, torch.arange(len(images)))
    config = training.TrainConfig(
        epochs=1,
        batch_size=setting.batch,
        lr=LR,
        schedule="constant",
        precision=setting.precision,
    )

    def train(student: nn.Module, count: int, epochs: int = 1) -> list[dict]:
        batches = training.TensorBatches(
            tuple(tensor[:count] for tensor in tensors),
            setting.batch,
            lambda batch, generator: Augmentation()(Batch(*batch), generator),
        )
        step = lambda batch, progress: kd(student, batch, teacher, progress)  # noqa: E731
        return training.fit({"student": student}, step, batches, config.replace(epochs=epochs))

    mine = copy.deepcopy(setting.student)

    def two_losses() -> list[float]:
        return [row["loss"] for row in train(copy.deepcopy(setting.student), setting.batch, 2)]

    return Way(lambda: train(mine, len(images)), two_losses)


def stored_teacher(setting: Setting) -> StoredTeacher:
    """The teacher's targets for all images, as the library stores them."""
    images = setting.images
    shape = {"num_classes": images.num_classes, "img_size": images.shape[1]}
    settings = {"model": setting.names[0], "overrides": {**shape, "in_chans": images.shape[0]}}

    def make(work: Path) -> dict:
        save_tensors(work / "model.safetensors", setting.teacher.state_dict())
        return {}

    store = Store(setting.folder / "store")
    teacher = store.get_or_make("teacher", settings, make)
    return StoredTeacher(teacher_targets(store, teacher, images))


def mnist(setting: Setting) -> Dataset:
    """The images by torchvision, in [-1, 1]."""
    from torchvision import datasets, transforms

    steps = [transforms.ToTensor(), transforms.Normalize(0.5, 0.5)]
    return datasets.MNIST(setting.folder, transform=transforms.Compose(steps))


def first_batch(setting: Setting) -> tuple[Tensor, Tensor]:
    dataset = mnist(setting)
    return tuple(default_collate([dataset[i] for i in range(setting.batch)]))


def plain(setting: Setting, workers: int = 0) -> Way:
    """A loop as one writes it oneself, with timm's optimizer and torchvision's images."""
    from timm.optim import create_optimizer_v2

    device, teacher = training.device(), setting.teacher

    def trainer() -> Callable[[Tensor, Tensor], float]:
        student = copy.deepcopy(setting.student).train()
        optimizer = create_optimizer_v2(student, "adamw", lr=LR, weight_decay=0.0)

        def step(images: Tensor, labels: Tensor) -> float:
            images, labels = images.to(device), labels.to(device)
            with setting.autocast():
                with torch.no_grad():
                    targets = teacher(images).float()
                logits = student(images).float()
            loss = F.cross_entropy(logits, labels) + TEMPERATURE**2 * F.kl_div(
                F.log_softmax(logits / TEMPERATURE, 1),
                F.log_softmax(targets / TEMPERATURE, 1),
                log_target=True,
                reduction="batchmean",
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.item()

        return step

    step = trainer()
    loader = DataLoader(
        mnist(setting),
        setting.batch,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,  # an epoch here is short
        drop_last=True,
    )

    def two_losses() -> list[float]:
        again, batch = trainer(), first_batch(setting)
        return [again(*batch) for _ in range(2)]

    return Way(lambda: [step(*batch) for batch in loader], two_losses)


def trainings(setting: Setting) -> dict[str, Way]:
    """Every way to train by name."""
    loops = [plain(setting, workers) for workers in LOADERS]
    return {
        PLAIN: loops[0]._replace(epoch=lambda: min(figure(loop.epoch) for loop in loops)),
        STORED: ours(setting, stored_teacher(setting)),
        LIVE: ours(setting, LiveTeacher(setting.teacher, probed=False)),
    }


@contextmanager
def ways(
    precision: str, images: ImageSet | None = None, batch: int = BATCH, names=(TEACHER, STUDENT)
) -> Iterator[Ways]:
    """An epoch of every training, which come to the same losses."""
    images = images or load_images("mnist", "train").sample(BATCHES * batch)
    with prepared(images, batch, precision, names) as setting:
        found = trainings(setting)
        losses = {name: way.two_losses() for name, way in found.items()}
        note = agree(losses, TOLERANCES[precision], f"losses of two steps, {precision}")
        yield Ways({name: way.epoch for name, way in found.items()}, f"losses {note}")


COMPARISONS = tuple(
    Comparison(
        "students",
        f"{STUDENT}, batch {BATCH}, {precision}",
        partial(ways, precision),
        tuple(Pair(name, PLAIN, asked) for name, asked in ASKED.items()),
        unit="images/s",
        per=BATCHES * BATCH,
        seconds=60,
        most=5,
    )
    for precision in TOLERANCES
)
