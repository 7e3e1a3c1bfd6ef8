"""The vanilla GAN's step: ours through the one loop, against a loop as one writes it oneself from the same networks.

Both draw the same random numbers in the same order and must come to the same losses before they are timed.
"""

import copy
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import synthesis
from bench.rows import Effort, Row, compared, take_turns
from bench.students import PRECISIONS, TEACHER
from dfkd_lib import training
from dfkd_lib.core import WorkbenchError
from dfkd_lib.models import Discriminator, Generator, create_model
from dfkd_lib.synthesis import gan_step
from dfkd_lib.training import frozen

BATCH, STEPS = (
    128,
    8,
)  # images a step; steps of an epoch: the vanilla arm looks at attention at every eighth
SECONDS = 30  # of measuring each precision
CONFIG = {"optimizer": "adam", "betas": (0.5, 0.999), "schedule": "constant"}
TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2}
CLASSES = synthesis.CLASSES
Epoch = Callable[[], list[float]]


def ours(modules: dict, images: Tensor, labels: Tensor, precision: str) -> Epoch:
    """An epoch of the library's loop on copies: mean losses of discriminator and generator."""
    mine, guide = copy.deepcopy(modules), frozen(create_model(TEACHER))
    probes = torch.full((CLASSES, 49), 1 / 49, device=training.device())
    step = gan_step(*mine.values(), guide, probes, 0.0, synthesis.SIDE, STEPS)
    config = training.TrainConfig(
        epochs=1, batch_size=BATCH, lr=1e-4, precision=precision, **CONFIG
    )

    def epoch() -> list[float]:
        batches = training.TensorBatches((images, labels), BATCH)
        history = training.fit(mine, step, batches, config, {name: [name] for name in mine})
        return [history[-1]["discriminator_loss"], history[-1]["generator_loss"]]

    return epoch


def plain(modules: dict, images: Tensor, labels: Tensor, precision: str) -> Epoch:
    """An epoch of a plain PyTorch loop on copies, the same order of images and of random numbers."""
    where = training.device()
    generator, discriminator = (
        copy.deepcopy(module).to(where).train() for module in modules.values()
    )
    options = {"lr": 1e-4, "betas": CONFIG["betas"]}

    def verdicts(logits: Tensor, real: float) -> Tensor:
        logits = logits.float()
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, real))

    def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> float:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    def epoch() -> list[float]:
        torch.manual_seed(0)
        # Anew in each epoch, as `fit` makes them in each call.
        optimizers = [
            torch.optim.Adam(module.parameters(), **options)
            for module in (discriminator, generator)
        ]
        order, losses = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)), []
        for rows in order[: len(order) // BATCH * BATCH].split(BATCH):
            real, given = images[rows].to(where), labels[rows].to(where)
            with torch.autocast(where.type, torch.bfloat16, precision == "bf16"):
                noise = torch.randn(len(real), generator.latent, device=where)
                wanted = torch.randint(CLASSES, (len(real),), device=where)
                fake = generator(wanted, noise)
                d_loss = verdicts(discriminator(real, given), 1) + verdicts(
                    discriminator(fake.detach(), wanted), 0
                )
            d_loss = update(optimizers[0], d_loss)
            with torch.autocast(where.type, torch.bfloat16, precision == "bf16"):
                g_loss = verdicts(discriminator(fake, wanted), 1)
            losses.append([d_loss, update(optimizers[1], g_loss)])
        return torch.tensor(losses, dtype=torch.float64).mean(0).tolist()

    return epoch


def difference(ways: dict[str, Epoch], precision: str) -> float:
    """How far apart, relatively, the losses of an epoch are.

    Raises:
        WorkbenchError: if that is more than rounding explains.
    """
    found = {name: epoch() for name, epoch in ways.items()}
    worst = max(abs(a / b - 1) for a, b in zip(*found.values(), strict=True))
    if not worst <= TOLERANCE[precision]:
        raise WorkbenchError(
            "the GAN and the plain loop do not train the same",
            got=str(found),
            where=precision,
            expected=f"losses apart by at most {TOLERANCE[precision]}",
        )
    return worst


def rows(effort: Effort) -> Iterator[Row]:
    """The vanilla step at either precision, and what attention adds to it."""
    for precision in PRECISIONS:
        torch.manual_seed(0)
        modules = {"generator": Generator(CLASSES, 1), "discriminator": Discriminator(CLASSES, 1)}
        data = torch.rand(BATCH * STEPS, 1, 32, 32) * 2 - 1, torch.arange(BATCH * STEPS) % CLASSES
        ways = {"ours": ours(modules, *data, precision), "plain": plain(modules, *data, precision)}
        far = difference(ways, precision)
        rounds = take_turns(ways, SECONDS * effort.seconds)
        yield compared(
            rounds,
            "ours",
            "plain",
            "gan",
            "vanilla step",
            f"paper's sizes, batch {BATCH}, {precision}",
            per=1000 / STEPS,
            name="plain PyTorch loop",
            note=f"losses equal to {far:.0e}; looks at attention in one step of eight",
        )
    yield from synthesis.rows(effort)
