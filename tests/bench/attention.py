"""What attention as products gains over PyTorch's fused kernel in a training step in bf16 on a CPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.comparison import Comparison, Pair, Ways, agree
from dfkd_lib.attention import AttentionAsProducts

TOLERANCE = 0.05  # of bf16
PRODUCTS, FUSED = "two products and a softmax", "PyTorch's fused kernel"


class Case(NamedTuple):
    """Images, heads, tokens and the dimensions of a head."""

    batch: int
    heads: int
    tokens: int
    depth: int


CASES = (Case(256, 3, 17, 64), Case(128, 3, 65, 64), Case(64, 3, 197, 64))


@contextmanager
def ways(case: Case) -> Iterator[Ways]:
    """A forward and a backward pass of attention, whose gradients agree."""
    torch.manual_seed(0)
    shape = case.batch, case.heads, case.tokens, case.depth
    given = [torch.randn(shape).bfloat16().requires_grad_() for _ in range(3)]

    def fused() -> tuple[Tensor, ...]:
        output = F.scaled_dot_product_attention(*given)
        return torch.autograd.grad(output.float().square().sum(), given)

    def products() -> tuple[Tensor, ...]:
        with AttentionAsProducts():
            return fused()

    made: dict[str, Callable[[], tuple[Tensor, ...]]] = {PRODUCTS: products, FUSED: fused}
    found = {name: torch.stack(way()) for name, way in made.items()}
    yield Ways(made, f"gradients {agree(found, TOLERANCE, 'attention')}")


COMPARISONS = tuple(
    Comparison(
        "attention",
        f"{case.batch} images, {case.heads} heads, {case.tokens} tokens, bf16",
        partial(ways, case),
        (Pair(PRODUCTS, FUSED),),
        seconds=5,
        least=5,
    )
    for case in CASES
)
