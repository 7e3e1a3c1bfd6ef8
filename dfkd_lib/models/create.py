"""Classifiers by name; overrides are keywords of the architecture."""

import difflib
import inspect
from collections.abc import Iterable

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


# What a senseless request sets off inside an architecture's own code.
ODD = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


def unknown_name(what: str, name: str, known: Iterable[str], expected: str = "") -> WorkbenchError:
    """The error on a name that is none of the known ones, with those that are near it."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return WorkbenchError(
        f"no such {what}",
        got=name,
        expected=expected or ", ".join(known),
        fix=f"did you mean {', '.join(near)}?" if near else "choose one of the expected names",
    )


def create_model(name: str, **overrides) -> nn.Module:
    """A classifier by name, randomly initialised from torch's global generator.

    Args:
        name: one of `model_names()`.
        overrides: keywords that replace the named configuration's, such as num_classes, img_size (pixels), in_chans.

    Returns:
        A module from float images (B, in_chans, img_size, img_size) in [-1, 1] to logits (B, num_classes); models with
        a distillation token return (class logits, distillation logits) while training.

    Raises:
        WorkbenchError: on an unknown name or override, or sizes that do not fit (image and patch, width and heads).
    """
    if name not in MODELS:
        raise unknown_name("model", name, model_names())
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
    except ODD as error:
        raise WorkbenchError(
            f"model {name} cannot be built so",
            got=f"{overrides}: {error}",
            fix="the image side must be a multiple of the patch, the width of the heads",
        ) from None


def count_parameters(model: nn.Module) -> int:
    """Number of parameters of a model, each once."""
    return sum(p.numel() for p in model.parameters())


def count_flops(model: nn.Module, sample: Tensor) -> int:
    """Floating-point operations of one image (two for each multiply-add) in products and convolutions."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # The counter knows no fused attention on a processor; the plain form has the same products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(sample[:1])
    return counter.get_total_flops()
