"""What looking at attention adds to the GAN's step through the one loop, over a whole batch and over a quarter of it."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from bench.comparison import Comparison, Pair, Ways
from bench.students import TEACHER, TOLERANCES
from dfkd_lib import training
from dfkd_lib.models import Discriminator, Generator, create_model
from dfkd_lib.synthesis import Networks, gan_step
from dfkd_lib.training import frozen

CLASSES, SIDE = 10, 28
BATCH, STEPS = 128, 8  # images a step; steps of an epoch, the first of which looks at attention
VANILLA, AUGMENTED, QUARTER = "vanilla step", "augmented step", "augmented step, a quarter of it"
Data = tuple[Tensor, Tensor]


def ours(
    modules: dict, guide: nn.Module, data: Data, precision: str, lam: float, share: float = 1.0
) -> Callable[[], object]:
    """An epoch of the library's loop on copies.

    Args:
        guide: the frozen teacher whose attention is looked at. lam: weight of the attention loss.
        share: of a batch that the attention loss is taken on.
    """
    mine = copy.deepcopy(modules)
    probes = torch.full((CLASSES, 49), 1 / 49, device=training.device())
    nets = Networks(**mine, teacher=guide, probes=probes, side=SIDE, attention_share=share)
    config = training.TrainConfig(
        epochs=1,
        batch_size=BATCH,
        lr=1e-4,
        optimizer="adam",
        betas=(0.5, 0.999),
        schedule="constant",
        precision=precision,
    )

    def step(batch: Data, progress: float) -> Iterator[tuple[str, dict]]:
        nets.watching = progress == 0
        yield from gan_step(nets, *batch, lam)

    def epoch() -> object:
        batches = training.TensorBatches(data, BATCH)
        return training.fit(mine, step, batches, config, {name: [name] for name in mine})

    return epoch


@contextmanager
def ways(precision: str, teacher: str = TEACHER) -> Iterator[Ways]:
    """Epochs without and with attention, of the paper's sizes."""
    torch.manual_seed(0)
    modules = {"generator": Generator(CLASSES, 1), "discriminator": Discriminator(CLASSES, 1)}
    data = torch.rand(BATCH * STEPS, 1, 32, 32) * 2 - 1, torch.arange(BATCH * STEPS) % CLASSES
    mine = partial(ours, modules, frozen(create_model(teacher)), data, precision)
    yield Ways({VANILLA: mine(0.0), AUGMENTED: mine(1.0), QUARTER: mine(1.0, share=0.25)})


COMPARISONS = tuple(
    Comparison(
        "gan",
        f"paper's sizes, batch {BATCH}, {precision}",
        partial(ways, precision),
        (Pair(AUGMENTED, VANILLA, ">= 0.67"), Pair(QUARTER, VANILLA, ">= 0.67")),
        per=1000 / STEPS,
        seconds=60,
    )
    for precision in TOLERANCES
)
