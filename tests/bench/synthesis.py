"""What attention costs a GAN's step, and what the paper's number of images needs in memory, to make and to learn from."""

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
import torch.nn.functional as F

from bench.memory import last_line_apart, peak_growth
from bench.rows import Effort, Row
from bench.students import TEACHER
from dfkd_lib import training
from dfkd_lib.core.artifacts import Artifact, Store
from dfkd_lib.datasets import ImageSet, to_float
from dfkd_lib.models import Discriminator, Generator, create_model
from dfkd_lib.synthesis import CGAN, Given, gan_step, make_images
from dfkd_lib.synthesis.canvas import keep_state
from dfkd_lib.training import TrainConfig, frozen

CLASSES, SIDE = 10, 28
BATCH, PAIRS = 128, 8  # images a step; steps of each arm
SHARES = (1.0, 0.25)  # of a batch that the attention loss is taken on
IMAGES, SHAPE, STUDENT = 50_000, (3, 32, 32), "vit_mnist_smoke"
ASKED = 2048  # MB that making them, and learning from them, may need


class Ratio(NamedTuple):
    """Mean milliseconds of a step of each arm, and vanilla over augmented: how many times as fast."""

    vanilla: float
    augmented: float

    @property
    def ratio(self) -> float:
        return self.vanilla / self.augmented


def gan_steps(share: float = 1.0) -> Ratio:
    """Both arms' steps of the GAN at the paper's sizes, in turns on the same networks through the real loop.

    Means, not medians: every eighth step of the vanilla arm looks at attention too, which its training pays for.

    Args:
        share: of a batch that the attention loss is taken on.
    """
    torch.manual_seed(0)
    modules = {"generator": Generator(CLASSES, 1), "discriminator": Discriminator(CLASSES, 1)}
    guide, probes = (
        frozen(create_model(TEACHER)),
        torch.full((CLASSES, 49), 1 / 49, device=training.device()),
    )
    arms = [
        gan_step(*modules.values(), guide, probes, lam, SIDE, PAIRS, share=share)
        for lam in (0.0, 1.0)
    ]
    times: tuple[list[float], list[float]] = ([], [])

    def step(batch, _) -> Iterator[tuple[str, dict]]:
        turn = len(times[0]) + len(times[1])
        start = time.perf_counter()
        # The loop updates the weights before it asks for more, so both updates lie within this time.
        yield from arms[turn % 2](batch, turn // 2 % PAIRS / PAIRS)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times[turn % 2].append(time.perf_counter() - start)

    images = torch.rand(BATCH * 2 * PAIRS, 1, 32, 32) * 2 - 1
    training.fit(
        modules,
        step,
        training.TensorBatches((images, torch.arange(len(images)) % CLASSES), BATCH),
        TrainConfig(epochs=2, batch_size=BATCH, lr=1e-4, precision="bf16"),
        {name: [name] for name in modules},
    )
    # The first epoch warms up.
    return Ratio(*(1000 * sum(taken[PAIRS:]) / PAIRS for taken in times))


@dataclass(frozen=True)
class Untrained(CGAN):
    """The conditional GAN of the paper's size as it is before training: for what drawing costs, that is the same."""

    def train(self, store: Store, given: Given) -> Artifact:
        def make(work: Path) -> None:
            torch.manual_seed(0)
            keep_state(work, self._generator(given.classes, given.shape), 1)

        return store.get_or_make(
            "untrained_cgan", {"classes": list(given.classes), "shape": list(given.shape)}, make
        )


def memory_of(count: int) -> dict[str, float]:
    """MB and seconds that `count` images need in this process: made by the GAN, then learnt from for an epoch, from disk.

    Returns:
        "before" (MB of the process with its libraries), "making", "learning" (MB above that at most), and the seconds of
        either, "making_seconds", "learning_seconds".
    """
    classes, found = tuple(map(str, range(CLASSES))), {}
    kept: dict[str, ImageSet] = {}
    with tempfile.TemporaryDirectory() as folder:
        store, given = Store(folder), Given(None, classes, SHAPE)
        found["before"] = psutil.Process().memory_info().rss / 2**20

        def make():
            kept["images"] = make_images(
                store, Untrained(TrainConfig(epochs=1, batch_size=1, lr=1e-4)), given, count
            )[0]

        def learn():
            images = kept["images"]
            student = create_model(
                STUDENT, img_size=SHAPE[1], in_chans=SHAPE[0], num_classes=CLASSES
            )
            batches = training.TensorBatches(
                (images.images, images.labels),
                BATCH,
                lambda batch, _: (to_float(batch[0]), batch[1]),
            )
            training.fit(
                {"student": student},
                lambda batch, _: {"loss": F.cross_entropy(student(batch[0]), batch[1])},
                batches,
                TrainConfig(epochs=1, batch_size=BATCH, lr=1e-3),
            )

        for name, work in (("making", make), ("learning", learn)):
            start, above = (
                time.perf_counter(),
                psutil.Process().memory_info().rss / 2**20 - found["before"],
            )
            found[name] = above + peak_growth(work)
            found[f"{name}_seconds"] = time.perf_counter() - start
    return found


def memory_apart(count: int) -> dict[str, float]:
    """`memory_of` in a process of its own."""
    code = (
        f"import json; from bench.synthesis import memory_of; print(json.dumps(memory_of({count})))"
    )
    return json.loads(last_line_apart(code))


def rows(effort: Effort) -> Iterator[Row]:
    """What attention costs the GAN's step, on whole batches and on a quarter of each."""
    for share in SHARES:
        steps = gan_steps(share)
        yield Row(
            "gan",
            f"augmented step, attention on {share:g}",
            f"paper's sizes, batch {BATCH}, bf16",
            "our vanilla step",
            steps.augmented,
            steps.vanilla,
            "ms",
            (steps.ratio,) * 3,
            PAIRS,
            ">= 0.67",
            "mean of steps in turns",
        )


def memory_rows(effort: Effort) -> Iterator[Row]:
    """What the paper's number of CIFAR-size images needs, in a process of its own, to make and to learn from."""
    found = memory_apart(IMAGES)
    for name, what in (
        ("making", "making images by the GAN"),
        ("learning", "an epoch of a small student"),
    ):
        yield Row(
            "memory",
            what,
            f"{IMAGES:,} images 3 x 32 x 32",
            "",
            found["before"] + found[name],
            None,
            "MB",
            None,
            1,
            f"<= {ASKED:,}",
            f"{found['before']:.0f} MB of them before; {found[f'{name}_seconds']:.0f} s",
        )
