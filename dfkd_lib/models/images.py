"""Which images a model takes."""

from weakref import WeakKeyDictionary

import torch
from torch import nn

from dfkd_lib.core import WorkbenchError

_tried: WeakKeyDictionary[nn.Module, set] = WeakKeyDictionary()


def expected_shape(model: nn.Module) -> tuple[int, int] | None:
    """(channels, side) of the images a model was made for, as far as it says so; else None."""
    # A model of ours or from elsewhere, or one of transformers, whose image tower has a configuration of its own.
    config = getattr(model, "config", None)
    for about in (model, config, getattr(config, "vision_config", None)):
        for names in (("in_chans", "img_size"), ("num_channels", "image_size")):
            shape = tuple(getattr(about, name, None) for name in names)
            shape = tuple(size[0] if isinstance(size, (list, tuple)) else size for size in shape)
            if all(isinstance(size, int) for size in shape):
                return shape
    for module in model.modules():
        size, proj = getattr(module, "img_size", None), getattr(module, "proj", None)
        if isinstance(size, tuple) and isinstance(proj, nn.Conv2d):
            return proj.in_channels, size[0]
    return None


def check_images(model: nn.Module, shape: tuple[int, int, int], where: str = "images") -> None:
    """WorkbenchError unless a model in evaluation mode takes images of a shape (C, H, W)."""
    if shape in _tried.setdefault(model, set()):
        return
    known, problem = expected_shape(model), "another number of channels"
    # A wrong number of channels may be spread silently; whether another size will do, only the model can tell.
    if not known or shape[0] == known[0]:
        problem = _trial(model, shape)
    if problem:
        size = f"(C, H, W) = {(*known, known[1])}" if known else "those it was made for"
        raise WorkbenchError(
            "this model does not take these images",
            expected=size,
            where=where,
            got=f"{shape}: {problem}",
            fix="give a folder's images another size (size=...) or number of channels, or choose a model made for these",
        )
    _tried[model].add(shape)


def _trial(model: nn.Module, shape: tuple[int, int, int]) -> str:
    """What goes wrong when the model is given one black image of that shape; "" if nothing."""
    first = next(model.parameters(), torch.zeros(1))
    try:
        with torch.inference_mode():
            model(torch.zeros(1, *shape, device=first.device, dtype=first.dtype))
    except (AssertionError, RuntimeError, ValueError, TypeError) as error:
        return str(error)[:200] or type(error).__name__
    return ""
