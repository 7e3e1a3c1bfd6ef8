"""What a training will cost, before it begins: operations counted, this machine's rate measured, memory it would take."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import psutil
import torch
from torch import Tensor, nn

from dfkd_lib.models import count_flops, create_model
from dfkd_lib.training.config import Precision, arithmetic, device

TRAINING = 3  # times the operations of a forward pass: the gradient costs twice as much again
SAMPLE = 16  # images that a rate is measured on
ENOUGH = 0.2  # seconds of steps behind a rate
ADAM = 4  # numbers for each parameter: itself, its gradient, two moments


@dataclass(frozen=True)
class Effort:
    """A training of one network, or passes over images by it.

    Args:
        name: of the network, in words and for what is measured once.
        build: makes it.
        inputs: what it is given for so many images.
        images: passes of one image, over all epochs.
        batch_size: images a step. learns: whether gradients are taken. precision: arithmetic.
        setting: that changes the batch size, by its dotted name; "" if none does.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Tensor, ...]]
    images: float
    batch_size: int = 512
    learns: bool = True
    precision: Precision = "fp32"
    setting: str = ""

    @property
    def _measured(self) -> "_Measured":
        given = tuple(tuple(one.shape) for one in self.inputs(1))
        key = self.name, given, self.learns, self.precision, min(SAMPLE, self.batch_size)
        if key not in _known:
            _known[key] = _measure(self)
        return _known[key]

    @property
    def operations(self) -> float:
        """Floating-point operations in all, two for each multiply-add."""
        return self.images * self._measured.operations

    @property
    def seconds(self) -> float:
        """Seconds on this machine, at the rate that a step of this network was measured to have."""
        return self.operations / self._measured.rate

    @property
    def memory(self) -> float:
        """Bytes of weights, gradients, optimizer and what a step keeps for its gradient."""
        return self.memory_of(self.batch_size)

    def memory_of(self, batch_size: int) -> float:
        """The same at another batch size."""
        return self._measured.fixed + batch_size * self._measured.kept

    def fitting_batch(self, room: float) -> int:
        """The largest batch size, a power of two, that fits so many bytes; 0 if none does."""
        return next((b for b in (2**i for i in range(16, 0, -1)) if self.memory_of(b) <= room), 0)


class _Measured(NamedTuple):
    """Operations of one image, operations a second, bytes whatever the batch, bytes kept for each image."""

    operations: float
    rate: float
    fixed: float
    kept: float


_known: dict[tuple, _Measured] = {}


def classifier_effort(model: str, shape: dict, images: float, **how) -> Effort:
    """The effort of a named classifier.

    Args:
        shape: of `shape_of`: num_classes, img_size, in_chans, and overrides. images, how: see `Effort`.
    """
    name = " ".join([model, *(f"{key}={value}" for key, value in sorted(shape.items()))])
    sides = shape["in_chans"], shape["img_size"], shape["img_size"]
    build, inputs = (
        lambda: create_model(model, **shape),
        lambda count: (torch.zeros(count, *sides),),
    )
    return Effort(name, build, inputs, images, **how)


def free_memory() -> float:
    """Bytes that a training may take: of the GPU's memory, or of this machine's."""
    if device().type == "cuda":
        return torch.cuda.mem_get_info()[0]
    return psutil.virtual_memory().available


def _measure(effort: Effort) -> _Measured:
    where, few = device(), min(SAMPLE, effort.batch_size)
    with torch.random.fork_rng(devices=[]):
        model = effort.build().to(where).requires_grad_(effort.learns).eval()
        given = tuple(t.to(where) for t in effort.inputs(few))
    operations = count_flops(model, *given) * (TRAINING if effort.learns else 1)
    fixed = 4 * sum(p.numel() for p in model.parameters()) * (ADAM if effort.learns else 1)
    model.train(effort.learns)
    kept = _pass(model, given, effort)  # also warms up
    spent, rounds = 0.0, 0
    while spent < ENOUGH and rounds < 20:
        start = time.perf_counter()
        _pass(model, given, effort)
        spent, rounds = spent + time.perf_counter() - start, rounds + 1
    return _Measured(operations, rounds * few * operations / spent, fixed, kept)


def _pass(model: nn.Module, given: tuple[Tensor, ...], effort: Effort) -> float:
    """One step without an optimizer, or one forward pass; the bytes that it keeps for each image."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.set_grad_enabled(effort.learns), arithmetic(effort.precision):
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            output = model(*given)
        if effort.learns:
            model.zero_grad()
            parts = output if isinstance(output, tuple) else (output,)
            sum(part.float().square().mean() for part in parts).backward()
    if device().type == "cuda":
        torch.cuda.synchronize()
    return sum(kept.values()) / len(given[0])
