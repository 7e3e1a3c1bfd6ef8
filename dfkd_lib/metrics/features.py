"""Images → features; every measure taken of features is tied to the network that gave them."""

import functools
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from dfkd_lib.core import WorkbenchError
from dfkd_lib.datasets import to_float


@torch.inference_mode()
def features_and_logits(
    model: nn.Module, images: Tensor, batch_size: int = 500
) -> tuple[Tensor, Tensor]:
    """What a classifier's last linear layer is given (N, D), and what it says (N, K), in one pass over uint8 (N, C, H, W).

    Returns:
        Both float32 on the CPU; only one batch at a time is on the model's device.

    Raises:
        WorkbenchError: if there is no image, or the model has no linear layer.
    """
    pairs = [
        [part.float().cpu() for part in scores_and_features(model, batch)]
        for batch in _batches(model, images, batch_size)
    ]
    return torch.cat([features for _, features in pairs]), torch.cat(
        [logits for logits, _ in pairs]
    )


def scores_and_features(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, K), and what the model's last linear layer was given for them (B, D), in one pass, differentiable.

    Args:
        images: float (B, C, H, W) as the model wants them.

    Raises:
        WorkbenchError: if the model has no linear layer.
    """
    heads = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if not heads:
        raise WorkbenchError(
            "this model has no linear layer to take features before",
            got=type(model).__name__,
            fix="give a classifier with a linear head",
        )
    given: list[Tensor] = []
    handle = heads[-1].register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    try:
        logits = model(images)
    finally:
        handle.remove()
    return logits, given[-1].flatten(1)


def classifier_features(model: nn.Module, images: Tensor, batch_size: int = 500) -> Tensor:
    """What a classifier's last linear layer is given: (N, D) float32 on the CPU, for uint8 images (N, C, H, W).

    Of a vision transformer with a class token and one head that is its normalised class token.

    Raises:
        WorkbenchError: as `features_and_logits`.
    """
    return features_and_logits(model, images, batch_size)[0]


@torch.inference_mode()
def token_features(model: nn.Module, images: Tensor, batch_size: int = 500) -> Tensor:
    """A vision transformer's class token beside the mean of its last block's patch tokens, for uint8 images (N, C, H, W).

    Args:
        model: one with timm's `forward_features`, tokens (B, T, D); also inside `models.load_model`'s wrapper.

    Returns:
        Float32 on the CPU, (N, 2 D): class token first; (N, D), the mean alone, of a model without a class token.

    Raises:
        WorkbenchError: if there is no image, or the model has no `forward_features` that gives tokens.
    """
    vit = model if hasattr(model, "forward_features") else getattr(model, "model", None)
    if not hasattr(vit, "forward_features"):
        raise WorkbenchError(
            "this model gives no tokens",
            got=type(model).__name__,
            expected="timm's forward_features",
            fix="take classifier_features, which needs a linear head only",
        )
    kept = []
    for batch in _batches(model, images, batch_size):
        tokens = vit.forward_features(
            batch if vit is model else ((batch + 1) / 2 - model.mean) / model.std
        )
        if tokens.ndim != 3:
            raise WorkbenchError(
                "this model's features are no tokens",
                got=tuple(tokens.shape),
                expected="(B, tokens, D)",
                where=type(vit).__name__,
                fix="take classifier_features instead",
            )
        first = getattr(vit, "num_prefix_tokens", 1)
        # TITN's distillation token comes after the patches.
        patches = tokens[:, first:][:, : getattr(vit, "num_patches", None)].mean(1)
        kept.append((torch.cat((tokens[:, 0], patches), dim=1) if first else patches).float().cpu())
    return torch.cat(kept)


def _batches(model: nn.Module, images: Tensor, size: int) -> Iterator[Tensor]:
    if not len(images):
        raise WorkbenchError("there is no image to take features of", fix="give at least one image")
    device = next(model.parameters()).device
    return (to_float(batch).to(device) for batch in images.split(size))


def inception_weights() -> Path | None:
    """Where torch-fidelity's Inception weights lie on this disk, or None."""
    name = "pt_inception-2015-12-05-6726825d.pth"
    places = (
        Path(os.environ.get("DFKD_INCEPTION", "")),
        Path(torch.hub.get_dir()) / "checkpoints" / name,
    )
    return next((p for p in places if p.is_file()), None)


def check_inception(download: bool = False) -> Path | None:
    """Where the Inception weights lie, None where they may be downloaded; WorkbenchError if neither."""
    weights = inception_weights()
    if weights is None and not download:
        raise WorkbenchError(
            "the Inception weights are not on this disk",
            where=Path(torch.hub.get_dir()) / "checkpoints",
            expected="pt_inception-2015-12-05-6726825d.pth (torch-fidelity's)",
            fix="pass download=True once, set DFKD_INCEPTION to the file, or use features='classifier'",
        )
    return weights


@torch.inference_mode()
def inception_features(images: Tensor, batch_size: int = 64, download: bool = False) -> Tensor:
    """The 2048-d Inception features of FID (N, 2048), by torchmetrics/torch-fidelity, for uint8 images (N, 1|3, H, W).

    Raises:
        WorkbenchError: if the weights are not on disk and `download` is False.
    """
    weights = check_inception(download)
    network = _inception(str(weights) if weights else None)
    images = images if images.shape[1] == 3 else images.expand(-1, 3, -1, -1)
    return torch.cat(
        [
            network(batch.to(next(network.parameters()).device)).cpu()
            for batch in images.split(batch_size)
        ]
    )


@functools.cache
def _inception(weights: str | None) -> nn.Module:
    from torchmetrics.image.fid import NoTrainInceptionV3

    where = "cuda" if torch.cuda.is_available() else "cpu"
    return NoTrainInceptionV3(
        name="inception-v3-compat", features_list=["2048"], feature_extractor_weights_path=weights
    ).to(where)
