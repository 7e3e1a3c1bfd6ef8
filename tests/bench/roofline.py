"""How much of this machine's matrix product a student's training reaches, in the same arithmetic."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench.comparison import Comparison, Pair, Ways
from bench.students import BATCH, STUDENT, TOLERANCES, ours, prepared, stored_teacher
from dfkd_lib.datasets import load_images
from dfkd_lib.training import device

SIDE = 4096  # of the matrices
STEPS = 16  # of an epoch: a real one has hundreds
STEP, PRODUCT = "student step", f"as many operations as products of {SIDE} x {SIDE}"
ASKED = {"fp32": ">= 0.80", "bf16": ">= 0.65"}


def products(operations: float, precision: str) -> Callable[[], float]:
    """A way that says how many seconds so many operations take as products, from the time of one."""
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    matrix = torch.rand(SIDE, SIDE, device=device()).to(kind)

    def way() -> float:
        start = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # waits for the device
        return (time.perf_counter() - start) * operations / (2 * SIDE**3)

    return way


@contextmanager
def ways(precision: str, steps: int = STEPS, batch: int = BATCH) -> Iterator[Ways]:
    """An epoch of the student on stored targets, and the operations of its products as products of large matrices."""
    images = load_images("mnist", "train").sample(steps * batch)
    with prepared(images, batch, precision) as setting:
        epoch = ours(setting, stored_teacher(setting)).epoch
        # The counter knows no fused attention on a processor; the plain form has the same products.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            epoch()
        operations = counter.get_total_flops()
        note = f"{operations / steps / 1e9:.3g} GFLOP a step"
        yield Ways({STEP: epoch, PRODUCT: products(operations, precision)}, note)


COMPARISONS = tuple(
    Comparison(
        "roofline",
        f"{STUDENT}, batch {BATCH}, {precision}",
        partial(ways, precision),
        (Pair(STEP, PRODUCT, ASKED[precision]),),
        per=1000 / STEPS,
        seconds=60,
    )
    for precision in TOLERANCES
)
