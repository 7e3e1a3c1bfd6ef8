"""Throughput of the training steps on this machine, each the median of several repeats through the real loop."""

import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F

from dfkd_lib import training
from dfkd_lib.datasets import to_float
from dfkd_lib.distill import Batch, KDWeights, distill_step, frozen, live_targets
from dfkd_lib.models import Discriminator, Generator, create_model
from dfkd_lib.synthesis import gan_step, pad_to_gan

BATCH, STEPS = 128, 8
TEACHER, STUDENT, SIDE, CLASSES = "vit_mnist_teacher", "deit_xtiny_patch4_28", 28, 10


def throughput(modules: dict, step: Callable, images: torch.Tensor, repeats: int,
               optimizers: dict | None = None) -> float:
    """Images a second of a step in the training loop (bf16): the median of `repeats` epochs after one to warm up."""
    labels = torch.arange(len(images)) % CLASSES
    config = training.TrainConfig(repeats + 1, BATCH, 1e-4, precision="bf16")
    batches = training.TensorBatches((images, labels, torch.arange(len(images))), BATCH, lambda b, _: Batch(*b))
    history = training.fit(modules, step, batches, config, optimizers)
    return statistics.median(row["images_per_second"] for row in history[1:])


def measure(repeats: int) -> list[tuple[str, float]]:
    """(what, images a second) of the teacher's, the student's and both GANs' steps on random 28 × 28 images."""
    torch.manual_seed(0)
    images = to_float(torch.randint(0, 256, (BATCH * STEPS, 1, SIDE, SIDE), dtype=torch.uint8))
    teacher, student = (create_model(name, num_classes=CLASSES) for name in (TEACHER, STUDENT))
    rows = [("teacher, cross entropy", throughput(
        {"model": teacher}, lambda batch, _: {"loss": F.cross_entropy(teacher(batch[0]).float(), batch[1])}, images,
        repeats))]
    guide = frozen(teacher)

    rows.append(("student, KD + CE + patch", throughput(
        {"model": student}, distill_step(student, live_targets(guide), KDWeights()), images, repeats)))
    probes = torch.full((CLASSES, 49), 1 / 49, device=training.device())
    for name, lam in (("GAN, vanilla", 0.0), ("GAN, augmented", 1.0)):
        generator, discriminator = Generator(CLASSES, 1), Discriminator(CLASSES, 1)
        rows.append((name, throughput({"generator": generator, "discriminator": discriminator},
                                      gan_step(generator, discriminator, guide, probes, lam, SIDE), pad_to_gan(images),
                                      repeats, {n: [n] for n in ("generator", "discriminator")})))
    return rows


def print_training(repeats: int) -> None:
    """Print images a second of each step, beside the teacher's."""
    rows = measure(repeats)
    print(f"{TEACHER} -> {STUDENT}, batches of {BATCH}, bf16, {torch.get_num_threads()} threads, {training.device()}, "
          f"median of {repeats} x {STEPS} steps")
    print(f"{'training step':<28}{'images/s':>10}{'of teacher':>12}")
    for name, speed in rows:
        print(f"{name:<28}{speed:>10.0f}{speed / rows[0][1]:>12.2f}")
