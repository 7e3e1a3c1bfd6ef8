"""Batches for the training loop, and those of tensors held in memory."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from dfkd_lib.core import WorkbenchError


class Batches(Protocol):
    """What `fit` trains on: `len()` is the steps an epoch.

    A call with the epoch and its random generator yields batches: tensors in tuples, lists, dicts or named tuples.
    """

    def __len__(self) -> int: ...

    def __call__(self, epoch: int, generator: torch.Generator) -> Iterator[Any]: ...


class TensorBatches:
    """Batches of tensors held in memory, in an order given by the loop's generator.

    Args:
        tensors: tensors with the same first dimension N.
        batch_size: rows a batch; the last, smaller one is dropped unless it is the only one.
        transform: (batch tuple, generator) -> batch tuple, applied to each batch.
    """

    def __init__(
        self, tensors: tuple[Tensor, ...], batch_size: int, transform: Callable | None = None
    ):
        lengths = {len(t) for t in tensors}
        if len(lengths) != 1 or 0 in lengths:
            raise WorkbenchError(
                "batches need tensors of one, positive length",
                got=[len(t) for t in tensors],
                fix="give as many labels as images, and at least one of each",
            )
        self.tensors, self.transform = tensors, transform
        self.batch_size = min(batch_size, len(tensors[0]))

    def __len__(self) -> int:
        return len(self.tensors[0]) // self.batch_size

    def to(self, target: torch.device) -> None:
        """Keep the tensors on that device, so that no step waits for a copy; on the host if they would fill half of it."""
        if target.type == "cuda":
            size = sum(t.numel() * t.element_size() for t in self.tensors)
            if size > torch.cuda.mem_get_info(target)[0] / 2:
                return
        self.tensors = tuple(t.to(target) for t in self.tensors)

    def __call__(self, epoch: int, generator: torch.Generator) -> Iterator[tuple[Tensor, ...]]:
        order = torch.randperm(len(self.tensors[0]), generator=generator)
        # Once an epoch, not at every step, which would wait for the one before.
        order = order.to(self.tensors[0].device)
        for rows in order[: len(self) * self.batch_size].split(self.batch_size):
            batch = tuple(t[rows] for t in self.tensors)
            yield self.transform(batch, generator) if self.transform else batch
