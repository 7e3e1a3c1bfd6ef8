"""The layers of a model and the shapes that they give, for diagrams drawn from the code itself."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby

import torch
from torch import Tensor, nn

# Shapes stay as they are, and a diagram has no box for them.
QUIET = (nn.BatchNorm2d, nn.Dropout, nn.Dropout2d, nn.Identity, nn.LayerNorm, nn.Embedding)
QUIET += (nn.ReLU, nn.LeakyReLU, nn.Tanh)


@contextmanager
def hooked(modules: Iterable[nn.Module], note: Callable) -> Iterator[None]:
    """Inside, `note(module, inputs, output)` is called after each forward pass of each module."""
    handles = [module.register_forward_hook(note) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def layer_shapes(model: nn.Module, *inputs: Tensor) -> list[tuple[str, tuple[int, ...]]]:
    """What each child of a model gives for one example; a sequence of layers counts as its layers.

    Args:
        model: called with the inputs, in evaluation mode. inputs: batches of one or more.

    Returns:
        (name, shape of the output without the batch) in the order of the calls, equal neighbours as one ("3 × Block").
    """
    found: list[tuple[str, tuple[int, ...]]] = []

    def note(layer: nn.Module, _: object, output: object) -> None:
        if isinstance(output, Tensor):
            found.append((_name(layer), tuple(output.shape[1:])))

    layers = [
        layer
        for child in model.children()
        for layer in (child if isinstance(child, nn.Sequential) else [child])
        if not isinstance(layer, QUIET)
    ]
    training = model.training
    with torch.inference_mode(), hooked(layers, note):
        model.eval()(*inputs)
    model.train(training)
    counted = [(len(list(same)), layer) for layer, same in groupby(found)]
    return [(f"{n} × {name}" if n > 1 else name, shape) for n, (name, shape) in counted]


def _name(layer: nn.Module) -> str:
    """The class of a layer, and kernel and stride of a convolution."""
    if not hasattr(layer, "kernel_size") or isinstance(layer.kernel_size, int):
        return type(layer).__name__
    # A convolution that is computed in a way of ours is torch's all the same.
    kinds = (kind for kind in type(layer).__mro__ if kind.__module__.startswith("torch.nn."))
    name = next(kinds).__name__
    kernel, stride = "×".join(map(str, layer.kernel_size)), layer.stride[0]
    return f"{name} {kernel}" + (f", stride {stride}" if stride > 1 else "")
