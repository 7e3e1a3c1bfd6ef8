"""How much of this machine's matrix product a student's step uses: its model FLOPs a second over the product's.

Counted are the operations of the matrix products of the forward and backward pass as they are done: the last block, where
only prefix tokens are computed, counts as that little; what a fused kernel computes again going backward does not count.
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench import students
from bench.rows import Effort, Row, quartiles, take_turns
from bench.students import BATCH, STUDENT, TEACHER
from dfkd_lib import training
from dfkd_lib.attention import outputs_and_probe
from dfkd_lib.datasets import load_images, to_float

BATCHES, SIDE = 16, 4096  # of an epoch; of the square matrices
SECONDS = 20  # of measuring each precision
ASKED = ">= 0.60"
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def step_flops(student: nn.Module, images: Tensor) -> int:
    """FLOPs (two for a multiplication and addition) of matrix products in one forward and backward pass on these images."""
    model = copy.deepcopy(student).cpu().train()
    # Under autocast on the CPU short attention is plain products, which the counter sees; FLOPs do not depend on precision.
    with FlopCounterMode(display=False) as counter:
        with torch.autocast("cpu", torch.bfloat16):
            output, _ = outputs_and_probe(model, images.cpu(), probe=False)
        output.float().sum().backward()
    return counter.get_total_flops()


def measure(
    precision: str,
    limit: float = SECONDS,
    side: int = SIDE,
    batches: int = BATCHES,
    batch: int = BATCH,
    names: tuple[str, str] = (TEACHER, STUDENT),
) -> Row:
    """The student's epoch in the real loop with kept targets, in turns with a square product of the same precision."""
    with students.prepared(
        load_images("mnist", "train").sample(batches * batch), batch, names
    ) as given:
        given = given._replace(precision=precision)
        flops = batches * step_flops(given.student, to_float(given.images.images[:batch]))
        way = students.ours(given, students.target_maker(given)())
        a, b = (
            torch.randn(side, side, device=training.device()).to(TYPES[precision]) for _ in range(2)
        )
        work = {"step": way.epoch, "product": lambda: a @ b}
        for each in work.values():
            each()  # warms up
        rounds = take_turns(work, limit, least=3)
    step, product = (
        [count / each[name] / 1e9 for each in rounds]
        for name, count in (("step", flops), ("product", 2 * side**3))
    )
    shares = [mine / most for mine, most in zip(step, product, strict=True)]
    return Row(
        "flops",
        "student step",
        f"{names[1]}, batch {batch}, {precision}",
        f"matrix product, {side} x {side}",
        quartiles(step)[1],
        quartiles(product)[1],
        "GFLOP/s",
        quartiles(shares),
        len(rounds),
        ASKED,
        f"{flops / batches / 1e9:.1f} GFLOP a step",
    )


def rows(effort: Effort) -> Iterator[Row]:
    """Either precision."""
    for precision in students.PRECISIONS:
        yield measure(precision, SECONDS * effort.seconds)
