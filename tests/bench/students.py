"""A student's training beside peers: ours with kept targets and with the teacher live, torchdistill, a plain loop on timm.

All train the same student from the same weights, by the same loss, on the same images, and must come to the same losses
before they are timed. They then take turns, an epoch each, and are compared within a turn, as in `bench.attention`.
"""

import copy
import shutil
import statistics
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, default_collate

from bench.rows import Effort, Row, compared, missing, seconds, take_turns
from dfkd_lib import training
from dfkd_lib.core import WorkbenchError
from dfkd_lib.core.artifacts import Store, save_tensors
from dfkd_lib.datasets import ImageSet, load_images
from dfkd_lib.distill import KDWeights, distill_step, live_targets, stored_targets, teacher_targets
from dfkd_lib.models import create_model
from dfkd_lib.training import Augmentation, Batch, frozen

TEACHER, STUDENT, BATCH = "vit_mnist_teacher", "deit_xtiny_patch4_28", 128  # the paper's
BATCHES, EPOCHS = 2, 5  # of an epoch here; epochs over which the making of kept targets is spread
SECONDS = 60  # of measuring at each precision, but two rounds at least
LR, TEMPERATURE = 1e-3, 4.0
TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2}  # of the loss; bf16 keeps eight bits
PRECISIONS = ("fp32", "bf16")
WORKERS = (0, 2)  # of the peers' loaders; the better is taken
KEPT, MADE, LIVE = (
    "ours, kept targets",
    f"ours, making them over {EPOCHS} epochs too",
    "ours, live teacher",
)
EXTRA = {
    "ours, kept targets + patch loss": KEPT,
    "ours, live teacher + patch loss": LIVE,
}  # for information, bf16 alone
TORCHDISTILL, PLAIN = PEERS = ("torchdistill", "plain loop on timm")
ASKED = {KEPT: ">= 2", LIVE: ">= 1.2"}


class Setting(NamedTuple):
    """What every contender is given.

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
    precision: str = "fp32"

    @property
    def shape(self) -> dict:
        """Keywords of `create_model` for these images."""
        channels, side, _ = self.images.shape
        return {"num_classes": self.images.num_classes, "img_size": side, "in_chans": channels}

    def autocast(self) -> torch.autocast:
        return torch.autocast(training.device().type, torch.bfloat16, self.precision == "bf16")


class Way(NamedTuple):
    """A way to train: one epoch over all images, and the losses of two steps on the first batch from the same start."""

    epoch: Callable[[], object]
    two_losses: Callable[[], list[float]]


@contextmanager
def prepared(
    images: ImageSet, batch: int, names: tuple[str, str] = (TEACHER, STUDENT)
) -> Iterator[Setting]:
    """A Setting with random weights; its folder lives as long as the context."""
    with tempfile.TemporaryDirectory() as folder:
        given = Setting(names, nn.Identity(), nn.Identity(), images, Path(folder), batch)
        torch.manual_seed(0)
        teacher, student = (create_model(name, **given.shape) for name in names)
        write_mnist(Path(folder), images)
        yield given._replace(teacher=frozen(teacher), student=student.to(training.device()))


def write_mnist(folder: Path, images: ImageSet) -> None:
    """Grey images as torchvision's MNIST reads them, in both of its splits."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels, labels = images.images[:, 0].numpy(), images.labels.to(torch.uint8).numpy()
    for split in ("train", "t10k"):
        (raw / f"{split}-images-idx3-ubyte").write_bytes(
            struct.pack(">4i", 0x803, *pixels.shape) + pixels.tobytes()
        )
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(
            struct.pack(">2i", 0x801, len(labels)) + labels.tobytes()
        )


def ours(given: Setting, targets: Callable, patch: bool = False) -> Way:
    """The library's loop, step and batches, as `distill.train_student` puts them together."""
    tensors = (given.images.images, given.images.labels, torch.arange(len(given.images)))

    def train(student: nn.Module, count: int, epochs: int) -> list[dict]:
        batches = training.TensorBatches(
            tuple(t[:count] for t in tensors),
            given.batch,
            lambda batch, generator: Augmentation()(Batch(*batch), generator),
        )
        step = distill_step(
            student, targets, KDWeights(patch=float(patch), temperature=TEMPERATURE)
        )
        return training.fit(
            {"student": student},
            step,
            batches,
            training.TrainConfig(
                epochs=epochs,
                batch_size=given.batch,
                lr=LR,
                schedule="constant",
                precision=given.precision,
            ),
        )

    mine = copy.deepcopy(given.student)
    return Way(
        lambda: train(mine, len(given.images), 1),
        lambda: [row["loss"] for row in train(copy.deepcopy(given.student), given.batch, 2)],
    )


def target_maker(given: Setting) -> Callable[[], Callable]:
    """What has the library ask the teacher about all images anew, and keep the answers: each call gives a step's targets."""

    def make(work: Path) -> dict:
        save_tensors(work / "model.safetensors", given.teacher.state_dict())
        return {}

    store = Store(given.folder / "store")
    teacher = store.get_or_make(
        "teacher", {"model": given.names[0], "overrides": given.shape}, make
    )

    def targets() -> Callable:
        kept = teacher_targets(store, teacher, replace(given.images, _fingerprint=None))
        found = stored_targets(kept)
        shutil.rmtree(kept.path)
        return found

    return targets


def mnist(given: Setting) -> Dataset:
    """The images by torchvision, in [-1, 1]."""
    from torchvision import datasets, transforms

    return datasets.MNIST(
        given.folder,
        transform=transforms.Compose([transforms.ToTensor(), transforms.Normalize(0.5, 0.5)]),
    )


def loading(given: Setting, workers: int) -> dict:
    """Keywords of the peers' DataLoader; its workers stay between epochs, for an epoch here is short."""
    return {
        "batch_size": given.batch,
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "drop_last": True,
    }


def first_batch(given: Setting) -> tuple[Tensor, Tensor]:
    dataset = mnist(given)
    return tuple(default_collate([dataset[i] for i in range(given.batch)]))


def plain(given: Setting, workers: int = 0) -> Way:
    """A loop as one writes it oneself, with timm's optimizer and torchvision's images."""
    from timm.optim import create_optimizer_v2

    where, teacher = training.device(), given.teacher

    def trainer() -> Callable[[Tensor, Tensor], float]:
        student = copy.deepcopy(given.student).train()
        optimizer = create_optimizer_v2(student, "adamw", lr=LR, weight_decay=0.0)

        def step(images: Tensor, labels: Tensor) -> float:
            images, labels = images.to(where), labels.to(where)
            with given.autocast():
                with torch.no_grad():
                    told = teacher(images).float()
                said = student(images).float()
            loss = F.cross_entropy(said, labels) + TEMPERATURE**2 * F.kl_div(
                F.log_softmax(said / TEMPERATURE, 1),
                F.log_softmax(told / TEMPERATURE, 1),
                log_target=True,
                reduction="batchmean",
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.item()

        return step

    step, loader = trainer(), DataLoader(mnist(given), shuffle=True, **loading(given, workers))

    def two_losses() -> list[float]:
        again, batch = trainer(), first_batch(given)
        return [again(*batch) for _ in range(2)]

    return Way(lambda: [step(*batch) for batch in loader], two_losses)


def torchdistill(given: Setting, workers: int = 0) -> Way:
    """torchdistill's box and KD loss, driven as its image classification example does.

    Its own way to lower precision, an `Accelerator`, fails on a frozen teacher (it asks accelerate for `use_fp16`, which is
    gone); here a forward function, registered as it provides for, gives teacher and student autocast as the others have it.
    """
    from torchdistill.core.distillation import get_distillation_box
    from torchdistill.core.interfaces.registry import register_forward_proc_func

    @register_forward_proc_func(key=f"forward_{given.precision}")
    def forward(model, images, targets=None, supp_dict=None, **kwargs) -> Tensor:
        with given.autocast():
            return model(images).float()

    where = training.device()
    kd = {
        "student_module_path": ".",
        "student_module_io": "output",
        "teacher_module_path": ".",
        "teacher_module_io": "output",
        "temperature": TEMPERATURE,
        "alpha": 1.0,
        "beta": 1.0,
        "reduction": "batchmean",
    }

    def boxed():
        return get_distillation_box(
            copy.deepcopy(given.teacher),
            copy.deepcopy(given.student),
            {"train": mnist(given)},
            {
                "num_epochs": 1,
                "train_data_loader": {
                    "dataset_id": "train",
                    "sampler": {"class_or_func": RandomSampler},
                    "kwargs": loading(given, workers),
                },
                "teacher": {"forward_proc": f"forward_{given.precision}", "requires_grad": False},
                "student": {"forward_proc": f"forward_{given.precision}", "requires_grad": True},
                "optimizer": {"key": "AdamW", "kwargs": {"lr": LR, "weight_decay": 0.0}},
                "criterion": {
                    "key": "WeightedSumLoss",
                    "kwargs": {
                        "sub_terms": {
                            "kd": {"criterion": {"key": "KDLoss", "kwargs": kd}, "weight": 1.0}
                        }
                    },
                },
            },
            where,
            [],
            False,
            1,
        )

    def step(box, images: Tensor, labels: Tensor, extra: dict | None = None) -> float:
        images, labels = images.to(where), labels.to(where)
        loss = box.forward_process(images, labels, extra)
        box.post_forward_process(loss=loss)
        return loss.item()

    box = boxed()

    def epoch() -> None:
        box.pre_epoch_process(epoch=0)
        for batch in box.train_data_loader:
            step(box, *batch)
        box.post_epoch_process()

    def two_losses() -> list[float]:
        again, batch = boxed(), first_batch(given)
        again.pre_epoch_process(epoch=0)
        return [step(again, *batch) for _ in range(2)]

    return Way(epoch, two_losses)


def contenders(
    given: Setting, workers: int, targets: Callable, extra: bool = True
) -> dict[str, Way]:
    """Every way by name, peers only where they are installed.

    Args:
        workers: of the peers' loaders. targets: kept ones, see `target_maker`. extra: also ours with the patch loss.
    """
    ways = {
        KEPT: ours(given, targets),
        LIVE: ours(given, live_targets(given.teacher, probed=False)),
    }
    if extra:
        live = live_targets(given.teacher)
        ways |= {
            name: ours(given, targets if like == KEPT else live, patch=True)
            for name, like in EXTRA.items()
        }
    if find_spec("torchdistill"):
        ways[TORCHDISTILL] = torchdistill(given, workers)
    return {**ways, PLAIN: plain(given, workers)}


def difference(ways: dict[str, Way], precision: str) -> float:
    """How far apart the losses of two steps are, relatively, at most; of all ways without the patch loss.

    Raises:
        WorkbenchError: if that is more than rounding explains.
    """
    losses = {name: way.two_losses() for name, way in ways.items() if name not in EXTRA}
    worst = max(
        abs(a - b) / abs(b)
        for found in losses.values()
        for a, b in zip(found, losses[PLAIN], strict=True)
    )
    if not worst <= TOLERANCE[precision]:
        shown = "; ".join(
            f"{name} " + ", ".join(f"{loss:.6g}" for loss in found)
            for name, found in losses.items()
        )
        raise WorkbenchError(
            "contenders do not train the same",
            expected=f"losses apart by at most {TOLERANCE[precision]}",
            got=shown,
            where=f"two steps on one batch, {precision}",
        )
    return worst


def better_workers(given: Setting, turns: int = 3) -> int:
    """Which number of the loader's workers makes the plain loop faster: medians of some epochs of each, in turns."""
    epochs = {workers: plain(given, workers).epoch for workers in WORKERS}
    taken: dict[int, list[float]] = {workers: [] for workers in WORKERS}
    for epoch in epochs.values():
        epoch()  # starts the workers
    for _ in range(turns):
        for workers, epoch in epochs.items():
            taken[workers].append(seconds(epoch))
    return min(taken, key=lambda workers: statistics.median(taken[workers]))


def measure(
    given: Setting, workers: int, most: int, limit: float = SECONDS, extra: bool = True
) -> list[Row]:
    """Every contender's images a second beside every peer's, in rounds.

    Args:
        most, limit: see `take_turns`. The rest: see `contenders`.

    Raises:
        WorkbenchError: if the contenders' losses differ.
    """
    make = target_maker(given)
    ways = contenders(given, workers, make(), extra)
    far = difference(ways, given.precision)
    work = {MADE: make, **{name: way.epoch for name, way in ways.items()}}
    for name in ways:
        work[name]()
    setting = f"{given.names[1]}, batch {given.batch}, {given.precision}"
    return rows_of(
        take_turns(work, limit, most),
        len(given.images) // given.batch * given.batch,
        setting,
        f"losses equal to {far:.0e}",
    )


def rows_of(
    rounds: list[dict[str, float]], images: int, setting: str = "", note: str = ""
) -> list[Row]:
    """A row for each contender and peer of the rounds' seconds an epoch (for MADE: of the making alone)."""
    rounds = [each | {MADE: each[KEPT] + each[MADE] / EPOCHS} for each in rounds]

    def row(name: str, peer: str) -> Row:
        if peer not in rounds[0]:
            return missing("students", name, setting, peer)
        return compared(
            rounds,
            name,
            peer,
            "students",
            name,
            setting,
            "images/s",
            images,
            asked=ASKED.get(name, ""),
            note=note,
        )

    names = (KEPT, MADE, LIVE, *(name for name in EXTRA if name in rounds[0]))
    return [row(name, peer) for name in names for peer in PEERS]


def rows(effort: Effort) -> Iterator[Row]:
    """Every contender at either precision: KD + CE, AdamW, MNIST images."""
    with prepared(
        load_images("mnist", "train").sample(BATCHES * BATCH), BATCH, (TEACHER, STUDENT)
    ) as given:
        workers = better_workers(given._replace(precision="bf16"))
        for precision in PRECISIONS:
            yield from measure(
                given._replace(precision=precision),
                workers,
                effort.rounds,
                SECONDS * effort.seconds,
                precision == "bf16",
            )
