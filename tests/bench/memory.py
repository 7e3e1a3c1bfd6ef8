"""What memory grows with: class probes of few images and of many; the paper's number of images, made and learnt from.

Each figure comes from a process of its own: memory that one computation has freed, and its process kept, would hide what
the next one needs.
"""

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import psutil
import torch
import torch.nn.functional as F

from bench.comparison import Comparison, Pair, Ways
from dfkd_lib import training
from dfkd_lib.attention import class_probe_statistics, in_batches
from dfkd_lib.core import REPOSITORY, Artifact, Store
from dfkd_lib.datasets import ImageSet, load_images, to_float
from dfkd_lib.models import create_model
from dfkd_lib.synthesis import CGAN, Given, make_images
from dfkd_lib.synthesis.canvas import keep_state

MODEL, STUDENT = "vit_mnist_small", "vit_mnist_smoke"
FEW, MANY = 500, 8000  # images of class probes
IMAGES, CLASSES, SHAPE = 50_000, tuple(map(str, range(10))), (3, 32, 32)
PROBES, FEWER = f"class probes, {MANY:,} images", f"{FEW} images"
MEGABYTE = 2**20


class Untrained(CGAN):
    """The conditional GAN of the paper's size as it is before training: drawing costs the same."""

    def train(self, store: Store, given: Given) -> Artifact:
        def make(work) -> None:
            torch.manual_seed(0)
            keep_state(work, self.new_generator(given.classes, given.shape), 1)

        settings = {"classes": list(given.classes), "shape": list(given.shape)}
        return store.get_or_make("untrained_cgan", settings, make)


def peak_growth(work: Callable[[], object]) -> float:
    """MB by which this process grew at most while it did that work."""
    process, done = psutil.Process(), threading.Event()
    before = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return (max(peak, process.memory_info().rss) - before) / MEGABYTE


def probes(count: int) -> float:
    """MB while the class probes of so many MNIST images are made, which were loaded before."""
    data, model = load_images("mnist", "train"), create_model(MODEL).eval()
    images, labels = data.images[:count], data.labels[:count]
    return peak_growth(
        lambda: class_probe_statistics(model, in_batches(images, labels), data.num_classes)
    )


def drawn(store: Store, count: int) -> ImageSet:
    """So many CIFAR-size images of the GAN, made in that store and read from its files."""
    maker = Untrained(epochs=1, batch_size=2, lr=1e-4)
    return make_images(store, maker, Given(None, CLASSES, SHAPE), count)[0]


def making(count: int) -> float:
    """MB of this process at most, its libraries too, while so many images are made."""
    with tempfile.TemporaryDirectory() as folder:
        before = psutil.Process().memory_info().rss / MEGABYTE
        return before + peak_growth(lambda: drawn(Store(folder), count))


def learning(count: int) -> float:
    """MB of this process at most, its libraries too, in an epoch of a small student on so many images from disk."""
    torch.manual_seed(0)
    shape = {"img_size": SHAPE[1], "in_chans": SHAPE[0], "num_classes": len(CLASSES)}
    student = create_model(STUDENT, **shape)
    step = lambda batch, _: {"loss": F.cross_entropy(student(batch[0]), batch[1])}  # noqa: E731
    config = training.TrainConfig(epochs=1, batch_size=128, lr=1e-3)
    with tempfile.TemporaryDirectory() as folder:
        apart(f"from bench.memory import *; drawn(Store({folder!r}), {count}); print()")
        before = psutil.Process().memory_info().rss / MEGABYTE

        def work() -> None:
            images = drawn(Store(folder), count)  # found
            batches = training.TensorBatches(
                (images.images, images.labels),
                config.batch_size,
                lambda batch, _: (to_float(batch[0]), batch[1]),
            )
            training.fit({"student": student}, step, batches, config)

        return before + peak_growth(work)


def apart(code: str) -> str:
    """What Python code prints last, run in a process of its own."""
    run = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        text=True,
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(("tests", str(REPOSITORY)))},
    )
    return run.stdout.splitlines()[-1]


def measured(function: Callable[[int], float], count: int) -> float:
    """One of this module's figures from a process of its own."""
    name = function.__name__
    return float(apart(f"from bench.memory import {name}; print({name}({count}))"))


@contextmanager
def ways(*figures: tuple[str, Callable[[int], float], int]) -> Iterator[Ways]:
    """The figures, each (name, function, number of images)."""
    yield Ways({name: partial(measured, function, count) for name, function, count in figures})


COMPARISONS = (
    Comparison(
        "memory",
        f"{MODEL}, above what was held",
        partial(ways, (PROBES, probes, MANY), (FEWER, probes, FEW)),
        (Pair(PROBES, FEWER, ">= 0.8"),),
        unit="MB",
        per=1,
        least=3,
        most=3,
        warm=False,
    ),
    Comparison(
        "memory",
        f"{IMAGES:,} images 3 x 32 x 32, whole process",
        partial(ways, ("making", making, IMAGES), ("learning", learning, IMAGES)),
        (Pair("making", None, "<= 2,048"), Pair("learning", None, "<= 2,048")),
        unit="MB",
        per=1,
        least=1,
        most=1,
        warm=False,
    ),
)
