"""A student's training beside peers: ours with kept targets and with the teacher live, torchdistill, a plain loop on timm.

All train the same student from the same weights, by the same loss, on the same images, and must come to the same losses
before they are timed. They then take turns, an epoch each, and are compared within a turn, as in `bench.attention`.
"""

import copy
import random
import shutil
import statistics
import struct
import tempfile
import time
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

from dfkd_lib import training
from dfkd_lib.artifacts import Store, save_tensors
from dfkd_lib.bench import training as steps
from dfkd_lib.bench.training import STUDENT, TEACHER
from dfkd_lib.datasets import ImageSet, load_images
from dfkd_lib.distill import (Augmentation, Batch, KDWeights, distill_step, frozen, live_targets, stored_targets,
                              teacher_targets)
from dfkd_lib.errors import WorkbenchError
from dfkd_lib.models import create_model

BATCHES, EPOCHS = 2, 5  # of an epoch here; epochs over which the making of kept targets is spread
SECONDS, LEAST = 80, 2  # of measuring at each precision at most, but so many rounds at least (two, for a range)
LR, TEMPERATURE = 1e-3, 4.0
TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2}  # of the loss; bf16 keeps eight bits
PRECISIONS = ("fp32", "bf16")
WORKERS = (0, 2)  # of the peers' loaders; the better is taken
KEPT, MADE, LIVE = "ours, kept targets", f"the same, with their making, {EPOCHS} epochs", "ours, live teacher"
EXTRA = {"ours, kept targets + patch loss": KEPT, "ours, live teacher + patch loss": LIVE}  # for information, bf16 alone
TORCHDISTILL, PLAIN = PEERS = ("torchdistill", "plain loop on timm")
NOT_INSTALLED = "not installed: pip install dfkd-workbench[bench]"


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


class Row(NamedTuple):
    """A contender's images a second (median), or None where it is not installed; for each peer how many times the peer's
    speed in the same round (low, median, high)."""

    name: str
    speed: float | None
    ratios: dict[str, tuple[float, float, float]]


@contextmanager
def prepared(images: ImageSet, batch: int, names: tuple[str, str] = (TEACHER, STUDENT)) -> Iterator[Setting]:
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
        (raw / f"{split}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, *pixels.shape) + pixels.tobytes())
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, len(labels)) + labels.tobytes())


def ours(given: Setting, targets: Callable, patch: bool = False) -> Way:
    """The library's loop, step and batches, as `distill.train_student` puts them together."""
    tensors = (given.images.images, given.images.labels, torch.arange(len(given.images)))

    def train(student: nn.Module, count: int, epochs: int) -> list[dict]:
        batches = training.TensorBatches(tuple(t[:count] for t in tensors), given.batch,
                                         lambda batch, generator: Augmentation()(Batch(*batch), generator))
        step = distill_step(student, targets, KDWeights(patch=float(patch), temperature=TEMPERATURE))
        return training.fit({"student": student}, step, batches, training.TrainConfig(
            epochs, given.batch, LR, schedule="constant", precision=given.precision))

    mine = copy.deepcopy(given.student)
    return Way(lambda: train(mine, len(given.images), 1),
               lambda: [row["loss"] for row in train(copy.deepcopy(given.student), given.batch, 2)])


def target_maker(given: Setting) -> Callable[[], Callable]:
    """What has the library ask the teacher about all images anew, and keep the answers: each call gives a step's targets."""
    def make(work: Path) -> dict:
        save_tensors(work / "model.safetensors", given.teacher.state_dict())
        return {}

    store = Store(given.folder / "store")
    teacher = store.get_or_make("teacher", {"model": given.names[0], "overrides": given.shape}, make)

    def targets() -> Callable:
        kept = teacher_targets(store, teacher, replace(given.images, _fingerprint=None))
        found = stored_targets(kept)
        shutil.rmtree(kept.path)
        return found

    return targets


def mnist(given: Setting) -> Dataset:
    """The images by torchvision, in [-1, 1]."""
    from torchvision import datasets, transforms

    return datasets.MNIST(given.folder, transform=transforms.Compose([transforms.ToTensor(),
                                                                      transforms.Normalize(0.5, 0.5)]))


def loading(given: Setting, workers: int) -> dict:
    """Keywords of the peers' DataLoader; its workers stay between epochs, for an epoch here is short."""
    return {"batch_size": given.batch, "num_workers": workers, "persistent_workers": workers > 0, "drop_last": True}


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
                F.log_softmax(said / TEMPERATURE, 1), F.log_softmax(told / TEMPERATURE, 1), log_target=True,
                reduction="batchmean")
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
    kd = {"student_module_path": ".", "student_module_io": "output", "teacher_module_path": ".",
          "teacher_module_io": "output", "temperature": TEMPERATURE, "alpha": 1.0, "beta": 1.0, "reduction": "batchmean"}

    def boxed():
        return get_distillation_box(copy.deepcopy(given.teacher), copy.deepcopy(given.student), {"train": mnist(given)}, {
            "num_epochs": 1,
            "train_data_loader": {"dataset_id": "train", "sampler": {"class_or_func": RandomSampler},
                                  "kwargs": loading(given, workers)},
            "teacher": {"forward_proc": f"forward_{given.precision}", "requires_grad": False},
            "student": {"forward_proc": f"forward_{given.precision}", "requires_grad": True},
            "optimizer": {"key": "AdamW", "kwargs": {"lr": LR, "weight_decay": 0.0}},
            "criterion": {"key": "WeightedSumLoss",
                          "kwargs": {"sub_terms": {"kd": {"criterion": {"key": "KDLoss", "kwargs": kd}, "weight": 1.0}}}},
        }, where, [], False, 1)

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


def contenders(given: Setting, workers: int, targets: Callable, extra: bool = True) -> dict[str, Way]:
    """Every way by name, peers only where they are installed.

    Args:
        workers: of the peers' loaders. targets: kept ones, see `target_maker`. extra: also ours with the patch loss.
    """
    ways = {KEPT: ours(given, targets), LIVE: ours(given, live_targets(given.teacher, probed=False))}
    if extra:
        live = live_targets(given.teacher)
        ways |= {name: ours(given, targets if like == KEPT else live, patch=True) for name, like in EXTRA.items()}
    if find_spec("torchdistill"):
        ways[TORCHDISTILL] = torchdistill(given, workers)
    return {**ways, PLAIN: plain(given, workers)}


def difference(ways: dict[str, Way], precision: str) -> float:
    """How far apart the losses of two steps are, relatively, at most; of all ways without the patch loss.

    Raises:
        WorkbenchError: if that is more than rounding explains.
    """
    losses = {name: way.two_losses() for name, way in ways.items() if name not in EXTRA}
    worst = max(abs(a - b) / abs(b) for found in losses.values() for a, b in zip(found, losses[PLAIN], strict=True))
    if not worst <= TOLERANCE[precision]:
        shown = "; ".join(f"{name} " + ", ".join(f"{loss:.6g}" for loss in found) for name, found in losses.items())
        raise WorkbenchError("contenders do not train the same", expected=f"losses apart by at most {TOLERANCE[precision]}",
                             got=shown, where=f"two steps on one batch, {precision}")
    return worst


def seconds(work: Callable) -> float:
    """How long one call takes, the device's work included."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


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


def measure(given: Setting, workers: int, most: int, limit: float = SECONDS, extra: bool = True):
    """(rows, rounds, difference of the losses): every contender's speed in rounds of random order.

    Args:
        most: rounds that are wanted. limit: seconds after which no further one begins. The rest: see `contenders`.

    Raises:
        WorkbenchError: if the contenders' losses differ.
    """
    make = target_maker(given)
    ways = contenders(given, workers, make(), extra)
    far = difference(ways, given.precision)
    work = {MADE: make, **{name: way.epoch for name, way in ways.items()}}
    for name in ways:
        work[name]()
    rounds: list[dict[str, float]] = []
    shuffle, start = random.Random(0).shuffle, time.perf_counter()
    while len(rounds) < LEAST or len(rounds) < most and time.perf_counter() - start < limit:
        order = list(work)
        shuffle(order)
        rounds.append({name: seconds(work[name]) for name in order})
    return rows_of(rounds, len(given.images) // given.batch * given.batch), len(rounds), far


def rows_of(rounds: list[dict[str, float]], images: int) -> list[Row]:
    """A row for each contender of the rounds' seconds an epoch (for MADE: of the making alone), and each missing peer."""
    speeds = [{name: images / taken for name, taken in each.items()}
              | {MADE: EPOCHS * images / (each[MADE] + EPOCHS * each[KEPT])} for each in rounds]
    peers = [name for name in PEERS if name in rounds[0]]

    def row(name: str) -> Row:
        if name not in speeds[0]:
            return Row(name, None, {})
        ratios = {peer: statistics.quantiles([each[name] / each[peer] for each in speeds], n=4, method="inclusive")
                  for peer in peers}
        return Row(name, statistics.median(each[name] for each in speeds), ratios)

    return [row(name) for name in (KEPT, MADE, LIVE, *(name for name in EXTRA if name in speeds[0]), *PEERS)]


def lines(rows: list[Row]) -> list[str]:
    """The rows as text, one a line."""
    shown = []
    for row in rows:
        if row.speed is None:
            shown.append(f"{row.name:<46}{NOT_INSTALLED}")
            continue
        ratios = (f"{'-':^26}" if peer not in row.ratios else "{1:>8.2f} ({0:.2f}-{2:.2f})".format(*row.ratios[peer])
                  .ljust(26) for peer in PEERS)
        shown.append(f"{row.name:<46}{row.speed:>9.1f}" + "".join(ratios).rstrip())
    return shown


def print_students(repeats: int) -> None:
    """Print every contender's images a second at either precision in so many rounds, and how many times each peer's."""
    batch = steps.BATCH
    print(f"a student's training, {TEACHER} -> {STUDENT}, KD (T = {TEMPERATURE:g}) + CE, AdamW, batches of {batch}, "
          f"{BATCHES * batch} MNIST images an epoch, {torch.get_num_threads()} threads, {training.device()}")
    print("images/s: median over rounds; how many times a peer's in the same round: median (25-75 %)")
    with prepared(load_images("mnist", "train").sample(BATCHES * batch), batch) as given:
        workers = better_workers(given._replace(precision="bf16"))
        print(f"{f'  peers load with {workers} workers':<48}{'images/s':>9}"
              + "".join(f"{peer:^26}" for peer in PEERS).rstrip())
        for precision in PRECISIONS:
            rows, rounds, far = measure(given._replace(precision=precision), workers, repeats, extra=precision == "bf16")
            print(f"{precision}, {rounds} rounds, losses of two steps apart by {far:.0e}")
            print("\n".join(f"  {line}" for line in lines(rows)), flush=True)
