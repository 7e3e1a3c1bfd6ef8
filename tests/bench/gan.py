"""The vanilla GAN's step through the one loop, beside a loop as one writes it oneself; and what attention adds to it.

Ours and the plain loop draw the same random numbers in the same order and must come to the same losses before they are timed.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.comparison import Comparison, Pair, Ways, agree
from bench.students import TEACHER, TOLERANCES
from dfkd_lib import training
from dfkd_lib.models import Discriminator, Generator, create_model
from dfkd_lib.synthesis import Networks, gan_step
from dfkd_lib.training import frozen

CLASSES, SIDE = 10, 28
BATCH, STEPS = 128, 8  # images a step; steps of an epoch, the first of which looks at attention
LR, BETAS = 1e-4, (0.5, 0.999)
VANILLA, AUGMENTED, QUARTER = "vanilla step", "augmented step", "augmented step, a quarter of it"
PLAIN = "plain PyTorch loop"
Epoch = Callable[[], list[float]]
Data = tuple[Tensor, Tensor]


def models() -> dict[str, nn.Module]:
    """Generator and discriminator of the paper's sizes."""
    return {"generator": Generator(CLASSES, 1), "discriminator": Discriminator(CLASSES, 1)}


def ours(
    modules: dict, guide: nn.Module, data: Data, precision: str, lam: float, share: float = 1.0
) -> Epoch:
    """An epoch of the library's loop on copies: mean losses of discriminator and generator.

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
        lr=LR,
        optimizer="adam",
        betas=BETAS,
        schedule="constant",
        precision=precision,
    )

    def step(batch: Data, progress: float) -> Iterator[tuple[str, dict]]:
        nets.watching = progress == 0
        yield from gan_step(nets, *batch, lam)

    def epoch() -> list[float]:
        batches = training.TensorBatches(data, BATCH)
        history = training.fit(mine, step, batches, config, {name: [name] for name in mine})
        return [history[-1]["discriminator_loss"], history[-1]["generator_loss"]]

    return epoch


def plain(modules: dict, data: Data, precision: str) -> Epoch:
    """An epoch of a plain PyTorch loop on copies, the same order of images and of random numbers."""
    device = training.device()
    generator, discriminator = (copy.deepcopy(m).to(device).train() for m in modules.values())

    def bce(logits: Tensor, real: float) -> Tensor:
        logits = logits.float()
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, real))

    def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> float:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    def step(optimizers: list[torch.optim.Optimizer], real: Tensor, labels: Tensor) -> list[float]:
        with torch.autocast(device.type, torch.bfloat16, precision == "bf16"):
            noise = torch.randn(len(real), generator.latent, device=device)
            wanted = torch.randint(CLASSES, (len(real),), device=device)
            fake = generator(wanted, noise)
            on_real = discriminator(real, labels)
            d_loss = bce(on_real, 1) + bce(discriminator(fake.detach(), wanted), 0)
        d_loss = update(optimizers[0], d_loss)
        with torch.autocast(device.type, torch.bfloat16, precision == "bf16"):
            g_loss = bce(discriminator(fake, wanted), 1)
        return [d_loss, update(optimizers[1], g_loss)]

    def epoch() -> list[float]:
        torch.manual_seed(0)
        # Anew in each epoch, as `fit` makes them in each call.
        optimizers = [
            torch.optim.Adam(module.parameters(), lr=LR, betas=BETAS)
            for module in (discriminator, generator)
        ]
        order = torch.randperm(len(data[0]), generator=torch.Generator().manual_seed(0))
        losses = [
            step(optimizers, *(part[rows].to(device) for part in data))
            for rows in order[: len(order) // BATCH * BATCH].split(BATCH)
        ]
        return torch.tensor(losses, dtype=torch.float64).mean(0).tolist()

    return epoch


@contextmanager
def ways(precision: str, teacher: str = TEACHER) -> Iterator[Ways]:
    """Epochs of the plain loop and of ours, which come to the same losses where attention has no weight."""
    torch.manual_seed(0)
    modules, guide = models(), frozen(create_model(teacher))
    data = torch.rand(BATCH * STEPS, 1, 32, 32) * 2 - 1, torch.arange(BATCH * STEPS) % CLASSES
    mine = partial(ours, modules, guide, data, precision)
    run = {PLAIN: plain(modules, data, precision), VANILLA: mine(0.0)}
    losses = {name: epoch() for name, epoch in run.items()}
    note = agree(losses, TOLERANCES[precision], f"losses of an epoch, {precision}")
    yield Ways({**run, AUGMENTED: mine(1.0), QUARTER: mine(1.0, share=0.25)}, f"losses {note}")


COMPARISONS = tuple(
    Comparison(
        "gan",
        f"paper's sizes, batch {BATCH}, {precision}",
        partial(ways, precision),
        (
            Pair(VANILLA, PLAIN),
            Pair(AUGMENTED, VANILLA, ">= 0.67"),
            Pair(QUARTER, VANILLA, ">= 0.67"),
        ),
        per=1000 / STEPS,
        seconds=60,
    )
    for precision in TOLERANCES
)
