"""Classifiers by name; overrides are keywords of the architecture."""

import difflib
import inspect

import torch
from torch import Tensor, nn

from dfkd_lib.core import Registry, WorkbenchError
from dfkd_lib.models.classifiers import VIT_MODELS
from dfkd_lib.models.cnn import CNN_MODELS
from dfkd_lib.models.dearkd import DEARKD_MODELS
from dfkd_lib.models.titn import TITN_MODELS

# name -> (builder, its keywords)
MODELS = Registry({**VIT_MODELS, **CNN_MODELS, **TITN_MODELS, **DEARKD_MODELS})


def model_names() -> list[str]:
    """Every name `create_model` knows, sorted."""
    return sorted(MODELS)


def create_model(name: str, **overrides) -> nn.Module:
    """A classifier by name, randomly initialised from torch's global generator.

    Args:
        name: one of `model_names()`. overrides: keywords that replace the named configuration's, such as
            num_classes, img_size (pixels), in_chans.

    Returns:
        A module from float images (B, in_chans, img_size, img_size) in [-1, 1] to logits (B, num_classes); models with
        a distillation token return (class logits, distillation logits) while training.

    Raises:
        WorkbenchError: on an unknown name or override, or sizes that do not fit (image and patch, width and heads).
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1)
        raise WorkbenchError(
            "no such model",
            got=name,
            expected=", ".join(model_names()),
            fix=f"did you mean {near[0]}?" if near else "choose one of the expected names",
        )
    builder, defaults = MODELS[name]
    parameters = inspect.signature(builder).parameters
    unknown = set(overrides) - set(parameters)
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        raise WorkbenchError(
            f"model {name} has no such setting",
            got=", ".join(sorted(unknown)),
            expected=", ".join(parameters),
            fix="drop it or correct its name",
        )
    try:
        return builder(**{**defaults, **overrides})
    except WorkbenchError:
        raise
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise WorkbenchError(
            f"model {name} cannot be built so",
            got=f"{overrides}: {error}",
            fix="the image side must be a multiple of the patch, the width of the heads",
        ) from None


def count_parameters(model: nn.Module, trainable: bool = False) -> int:
    """Number of parameters of a model, each once; only those that require gradients if `trainable`."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


def count_flops(model: nn.Module, sample: Tensor) -> int:
    """Floating-point operations of one image (two for each multiply-add) in products and convolutions."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # The counter knows no fused attention on a processor; the plain form has the same products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(sample[:1])
    return counter.get_total_flops()
