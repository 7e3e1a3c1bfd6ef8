"""What several processes do differently in the one training loop: own rows, averaged gradients, common batch norms."""

from collections.abc import Iterable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dfkd_lib.core import WorkbenchError, processes


def check_batch_size(rows: int, where: str) -> None:
    """WorkbenchError unless a batch of so many rows can be parted evenly among the processes."""
    if rows % processes.count():
        raise WorkbenchError(
            "a batch cannot be parted evenly among the processes",
            where=where,
            expected=f"a batch_size that {processes.count()} divides",
            got=f"{rows} rows",
            fix="change batch_size or the number of processes; batch_size is that of all together",
        )


def own_rows(batch, where: str = "batch"):
    """This process's rows of every tensor in a batch of tuples, lists, dicts and named tuples; all else as it is."""
    from accelerate.utils import recursively_apply

    def own(rows: Tensor) -> Tensor:
        if not rows.ndim:
            return rows
        check_batch_size(len(rows), where)
        return rows.tensor_split(processes.count())[processes.rank()]

    return recursively_apply(own, batch)


def average_gradients(parameters: list[Tensor]) -> Tensor:
    """Replace gradients by their means over the processes, in one exchange; those without one stay so.

    Returns:
        A bool scalar on the device: whether processes disagree about which parameters have a gradient. Nobody waits for it.
    """
    kind, device = torch.float32, parameters[0].device
    for parameter in parameters:
        kind = torch.promote_types(kind, parameter.dtype)
    held = torch.tensor([p.grad is not None for p in parameters], dtype=kind)
    if device.type == "cuda":
        held = held.pin_memory()
    gradients = (torch.zeros_like(p) if p.grad is None else p.grad for p in parameters)
    parts = [gradient.flatten().to(kind) for gradient in gradients]
    flat = processes.total(torch.cat([*parts, held.to(device, non_blocking=True)]))
    *means, counts = flat.split([*map(len, parts), len(parameters)])
    for parameter, mean in zip(parameters, means, strict=True):
        if parameter.grad is not None:
            mean = mean / processes.count()
            # Into the gradient's own layout: a fused optimizer takes both as they lie in memory.
            parameter.grad.copy_(mean.view(parameter.shape))
    return ((counts != 0) & (counts != processes.count())).any()


def send_modules(modules: Iterable[nn.Module]) -> None:
    """Give every process the main one's weights and buffers."""
    processes.send_from_main(t for module in modules for t in module.state_dict().values())


def common_norms(modules: Iterable[nn.Module], compiled: bool = False):
    """A context in which batch norms take the statistics of the whole batch, on any device; nothing without a batch norm.

    Raises:
        WorkbenchError: where such a module is compiled: what its batch norms exchange cannot be part of a graph.
    """
    every = (part for module in modules for part in module.modules())
    normed = any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in every)
    if normed and compiled:
        raise WorkbenchError(
            "a network with batch norms cannot be compiled over several processes",
            where="compile",
            fix="train it uncompiled, or in one process",
        )
    return _CommonNorms() if normed else nullcontext()


class _CommonNorms(TorchFunctionMode):
    """`F.batch_norm` in training over the rows of all processes.

    torch's SyncBatchNorm runs on no CPU and knows no batch norm but torch's own; every batch norm calls this function.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.batch_norm:
            return _batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _batch_norm(
    x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
):
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    values = x if x.dtype == torch.float64 else x.float()
    dims, shape = [d for d in range(x.ndim) if d != 1], [1, -1, *[1] * (x.ndim - 2)]
    # Rows are parted evenly, so the mean of the processes' means is the mean of all; so with the squares about it.
    mean = _mean_of_all(values.mean(dims))
    centred = values - mean.view(shape)
    variance = _mean_of_all(centred.square().mean(dims))
    if running_mean is not None:
        rows = processes.count() * x.numel() / x.shape[1]
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((variance * rows / max(rows - 1, 1)).to(running_var.dtype), momentum)
    result = centred * (variance + eps).rsqrt().view(shape)
    if weight is not None:
        result = result * weight.view(shape)
    if bias is not None:
        result = result + bias.view(shape)
    return result.to(x.dtype)


class _MeanOfAll(torch.autograd.Function):
    """The mean of a tensor over processes, each of which also hears what the others' losses make of its part."""

    @staticmethod
    def forward(ctx, values):
        return processes.total(values.clone()) / processes.count()

    @staticmethod
    def backward(ctx, gradient):
        own = gradient.clone(memory_format=torch.contiguous_format)
        return processes.total(own) / processes.count()


_mean_of_all = _MeanOfAll.apply
