"""Images → features; every measure taken of features is tied to the network that gave them."""

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dfkd_lib.attention import token_layout
from dfkd_lib.core import WorkbenchError
from dfkd_lib.datasets import to_float
from dfkd_lib.models import hooked

INCEPTION = "pt_inception-2015-12-05-6726825d.pth"


@torch.inference_mode()
def features_and_logits(
    model: nn.Module, images: Tensor, batch_size: int = 500
) -> tuple[Tensor, Tensor]:
    """What a classifier's head is given (N, D), and what it says (N, K), in one pass over uint8 (N, C, H, W).

    Of a vision transformer with a class token and one head the first is its normalised class token.

    Returns:
        Both float32 on the CPU; only one batch at a time is on the model's device.

    Raises:
        WorkbenchError: if there is no image; as `scores_and_features`.
    """
    features, logits = [], []
    for batch in _batches(model, images, batch_size):
        scores, given = scores_and_features(model, batch)
        features.append(given.float().cpu())
        logits.append(scores.float().cpu())
    return torch.cat(features), torch.cat(logits)


def scores_and_features(
    model: nn.Module, images: Tensor, forward: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Logits (B, K), and what the layer that gives them was given (B, D), in one pass, differentiable.

    A model without a classifier (`num_classes` 0 in timm, `Loaded.classifies` False) gives features alone: both are these.

    Args:
        images: float (B, C, H, W) as the model wants them.
        forward: another way through the model to its logits.

    Raises:
        WorkbenchError: if the model has no linear layer that gives its logits, or gives no vector for each image.
    """
    given: list[tuple[Tensor, Tensor]] = []

    def note(_, inputs, output):
        if output.ndim == 2:  # of tokens nothing is kept: that would hold every block's
            given.append((inputs[0], output))

    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    with hooked(linear, note):
        logits = (forward or model)(images)
    if not getattr(model, "classifies", getattr(model, "num_classes", None) != 0):
        given = [(logits, logits)] if logits.ndim == 2 else []
    # The mean of several heads' logits is none of theirs: then the last head's input is taken.
    heads = [one for one in given if one[1] is logits] or [
        one for one in given if one[1].shape == logits.shape
    ]
    if not heads:
        raise WorkbenchError(
            "this model has no linear layer to take features before",
            got=f"{type(model).__name__}, output {tuple(logits.shape)}",
            expected="logits (B, K) of a linear head, or features (B, D) of a model without one",
            fix="give a classifier with a linear head, or a backbone whose tokens are pooled",
        )
    return logits, heads[-1][0]


def classifier_features(model: nn.Module, images: Tensor, batch_size: int = 500) -> Tensor:
    """What a classifier's head is given, or a backbone's own output: (N, D), the first of `features_and_logits`."""
    return features_and_logits(model, images, batch_size)[0]


@torch.inference_mode()
def token_features(model: nn.Module, images: Tensor, batch_size: int = 500) -> Tensor:
    """A vision transformer's class token beside the mean of its last block's patch tokens, for uint8 images (N, C, H, W).

    Args:
        model: one with timm's `forward_features`, tokens (B, T, D); also inside `models.load_model`'s wrapper.

    Returns:
        Float32 on the CPU, (N, 2 D): class token first; (N, D), the mean alone, of a model without class token.

    Raises:
        WorkbenchError: if there is no image, or the model has no `forward_features` that gives tokens.
    """
    own: Any = model
    wrapped = not hasattr(model, "forward_features")
    vit: Any = getattr(model, "model", None) if wrapped else own
    kept = []
    for batch in _batches(model, images, batch_size):
        tokens = torch.empty(0)
        if hasattr(vit, "forward_features"):
            batch = ((batch + 1) / 2 - own.mean) / own.std if wrapped else batch
            tokens = vit.forward_features(batch)
        if tokens.ndim != 3:
            raise WorkbenchError(
                "this model gives no tokens",
                got=f"{type(model).__name__}, {tuple(tokens.shape)}",
                expected="timm's forward_features, (B, tokens, D)",
                fix="take classifier_features, which needs a linear head only",
            )
        layout = token_layout(vit)
        parts = [] if layout.class_token is None else [tokens[:, layout.class_token]]
        kept.append(torch.cat([*parts, tokens[:, layout.patches].mean(1)], 1).float().cpu())
    return torch.cat(kept)


def _batches(model: nn.Module, images: Tensor, size: int) -> Iterator[Tensor]:
    if not len(images):
        raise WorkbenchError("there is no image to take features of", fix="give at least one image")
    device = next(model.parameters()).device
    return (to_float(batch).to(device) for batch in images.split(size))


def check_inception(download: bool = False) -> Path | None:
    """Where torch-fidelity's Inception weights lie, None where they may be downloaded; WorkbenchError if neither."""
    own = Path(os.environ.get("DFKD_INCEPTION", ""))
    cache = Path(torch.hub.get_dir(), "checkpoints")
    weights = next((path for path in (own, cache / INCEPTION) if path.is_file()), None)
    if weights is None and not download:
        raise WorkbenchError(
            "the Inception weights are not on this disk",
            where=cache,
            expected=f"{INCEPTION} (torch-fidelity's)",
            fix="pass download=True once, set DFKD_INCEPTION to the file, or use features='classifier'",
        )
    return weights


@torch.inference_mode()
def inception_features(images: Tensor, batch_size: int = 64, download: bool = False) -> Tensor:
    """The 2048-d Inception features of FID (N, 2048), by torchmetrics/torch-fidelity, for uint8 images (N, 1|3, H, W).

    Raises:
        WorkbenchError: if the weights are not on disk and `download` is False.
    """
    network = _inception(check_inception(download))
    device = next(network.parameters()).device
    images = images.expand(-1, 3, -1, -1)
    return torch.cat([network(batch.to(device)).cpu() for batch in images.split(batch_size)])


@functools.cache
def _inception(weights: Path | None) -> nn.Module:
    from torchmetrics.image.fid import NoTrainInceptionV3

    path = str(weights) if weights else None
    network = NoTrainInceptionV3("inception-v3-compat", ["2048"], path)
    return network.to("cuda" if torch.cuda.is_available() else "cpu")
