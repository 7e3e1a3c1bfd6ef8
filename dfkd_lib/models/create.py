"""Classifiers by name; overrides are keywords of the architecture."""

import inspect
import re
from functools import cache

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from dfkd_lib.core import Registry, WorkbenchError, one_of
from dfkd_lib.models.classifiers import VIT_MODELS
from dfkd_lib.models.cnn import CNN_MODELS
from dfkd_lib.models.dearkd import DEARKD_MODELS
from dfkd_lib.models.peers import PEER_MODELS
from dfkd_lib.models.titn import TITN_MODELS

# name -> (builder, its keywords)
MODELS = Registry({**VIT_MODELS, **CNN_MODELS, **PEER_MODELS, **TITN_MODELS, **DEARKD_MODELS})
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
# GPSA starts as a convolution by weights of its own, and heads start near zero: both keep theirs.
KEPT = re.compile(r"(^|\.)(head|head_dist|pos_proj)$|^early_blocks\.\d+\.attn\.v$")
PLACES = ("pos_embed", "patch_pos")


def model_names() -> list[str]:
    """Every name `create_model` knows, sorted."""
    return sorted(MODELS)


@cache
def has_batch_norm(name: str) -> bool:
    """Whether a named CNN has batch norms, whose statistics makers of images can match; False for unknown names, and for
    transformers, which have them, if at all, before their first block."""
    if name not in MODELS or name in VIT_MODELS:
        return False
    with torch.device("meta"):
        return any(isinstance(part, nn.BatchNorm2d) for part in create_model(name).modules())


def model_settings(name: str, overrides: dict) -> dict:
    """Every keyword of a named architecture with its value; WorkbenchError on an unknown name or override."""
    builder, own = MODELS[one_of("model", name, model_names())]
    parameters = inspect.signature(builder).parameters.values()
    known = ["small_start", *(p.name for p in parameters)]
    unknown = set(overrides) - set(known)
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        raise WorkbenchError(
            f"model {name} has no such setting",
            got=", ".join(sorted(unknown)),
            expected=", ".join(known),
            fix="drop it or correct its name",
        )
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return {"small_start": False, **defaults, **own, **overrides}


def create_model(name: str, **overrides) -> nn.Module:
    """A classifier by name, randomly initialised from torch's global generator.

    Args:
        name: one of `model_names()`.
        overrides: keywords that replace the named configuration's, such as num_classes, img_size (pixels), in_chans;
            small_start (see `start_small`).

    Returns:
        A module from float images (B, in_chans, img_size, img_size) in [-1, 1] to logits (B, num_classes); models with
        a distillation token return (class logits, distillation logits) while training.

    Raises:
        WorkbenchError: on an unknown name or override, or sizes that do not fit (image and patch, width and heads).
    """
    settings = model_settings(name, overrides)
    small = settings.pop("small_start")
    try:
        _check_shape(**settings)
        model = MODELS[name][0](**settings)
        return start_small(model) if small else model
    except ODD as error:
        raise WorkbenchError(
            f"model {name} cannot be built so",
            got=f"{overrides}: {error}",
            fix="the image side must be a multiple of the patch, the width of the heads",
        ) from None


def _check_shape(img_size=1, patch_size=1, width=1, heads=1, **others) -> None:
    if img_size % patch_size:
        raise ValueError(f"image side {img_size} is not a multiple of the patch {patch_size}")
    if width % heads:
        raise ValueError(f"width {width} is not a multiple of {heads} heads")


def start_small(model: nn.Module) -> nn.Module:
    """Xavier weights in every linear layer and place embeddings as large as the tokens; returns the model.

    For narrow relatives that see a few thousand images: timm's fixed standard deviation of 0.02 is made for widths of
    hundreds and long training. At width 72 the places are hardly seen at first, and the model learns a bag of patches
    (35 % against 89 % on MNIST after 8,000 images).
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not KEPT.search(name):
            nn.init.xavier_uniform_(module.weight)
    for name, parameter in model.named_parameters():
        if name in PLACES:
            trunc_normal_(parameter, std=1.0)
    return model


def count_parameters(model: nn.Module) -> int:
    """Number of parameters of a model, each once."""
    return sum(p.numel() for p in model.parameters())


def count_flops(model: nn.Module, *inputs: Tensor) -> int:
    """Floating-point operations of one image (two for each multiply-add) in products and convolutions."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # The counter knows no fused attention on a processor; the plain form has the same products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(*(one[:1] for one in inputs))
    return counter.get_total_flops()
