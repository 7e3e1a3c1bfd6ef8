"""Features → statistics → Fréchet distance; every distance here is tied to the feature network that it was taken in."""

import functools
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from dfkd_lib.datasets import to_float
from dfkd_lib.errors import WorkbenchError


def statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D; divisor N − 1), float64, of features (N, D).

    Raises:
        WorkbenchError: with fewer than two rows, or values that are not finite.
    """
    _check(features)
    features = features.double()
    centred = features - features.mean(0)
    return features.mean(0), centred.T @ centred / (len(features) - 1)


def _check(features: Tensor) -> None:
    if features.ndim != 2 or len(features) < 2:
        raise WorkbenchError("a Fréchet distance needs features of several images", expected="(N >= 2, D)",
                             got=tuple(features.shape), mend="give more images")
    if not torch.isfinite(features).all():
        raise WorkbenchError("features hold values that are not numbers", got="NaN or infinity", expected="finite values",
                             mend="check the images and the feature network")


def frechet_distance(mu_a: Tensor, sigma_a: Tensor, mu_b: Tensor, sigma_b: Tensor) -> float:
    """|μa − μb|² + tr(Σa + Σb − 2 (Σa Σb)^½), the squared Fréchet distance of two Gaussians (A eq. 6).

    Args:
        mu_a, mu_b: (D,). sigma_a, sigma_b: (D, D), symmetric, positive semi-definite. Tensors or arrays.

    Returns:
        A float ≥ 0. The trace is taken as the sum of square roots of the eigenvalues of Σa^½ Σb Σa^½, which is
        symmetric, so that singular covariances cause neither complex numbers nor a failed square root.

    Raises:
        WorkbenchError: if shapes do not fit.
    """
    mu_a, sigma_a, mu_b, sigma_b = (torch.as_tensor(t, dtype=torch.float64) for t in (mu_a, sigma_a, mu_b, sigma_b))
    size = mu_a.numel()
    if mu_b.numel() != size or sigma_a.shape != (size, size) or sigma_b.shape != (size, size):
        raise WorkbenchError("statistics of different features cannot be compared", expected=f"({size},), ({size}, {size})",
                             got=f"{tuple(mu_b.shape)}, {tuple(sigma_a.shape)}, {tuple(sigma_b.shape)}",
                             mend="take both sides with the same feature network")
    values, vectors = torch.linalg.eigh(sigma_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ sigma_b @ root).clamp(min=0).sqrt().sum()
    distance = (mu_a - mu_b).square().sum() + sigma_a.trace() + sigma_b.trace() - 2 * cross
    return max(float(distance), 0.0)


def frechet_distance_from_features(a: Tensor, b: Tensor) -> float:
    """The distance of `frechet_distance` straight from features (Na, D) and (Nb, D).

    With fewer images than dimensions, tr (Σa Σb)^½ is the sum of singular values of Xa Xbᵀ / √((Na−1)(Nb−1)), X being
    the centred features: exact, and the cost is that of the smaller matrix.
    """
    _check(a)
    _check(b)
    if min(len(a), len(b)) >= a.shape[1]:
        return frechet_distance(*statistics(a), *statistics(b))
    a, b = a.double(), b.double()
    xa, xb = (a - a.mean(0)) / (len(a) - 1) ** 0.5, (b - b.mean(0)) / (len(b) - 1) ** 0.5
    small, large = (xa, xb) if len(xa) <= len(xb) else (xb, xa)
    gram = large @ small.T if len(large) <= large.shape[1] else torch.linalg.qr(large, mode="r").R @ small.T
    cross = torch.linalg.svdvals(gram).sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + xa.square().sum() + xb.square().sum() - 2 * cross
    return max(float(distance), 0.0)


@torch.inference_mode()
def classifier_features(model: nn.Module, images: Tensor, batch_size: int = 500) -> Tensor:
    """What a classifier's last linear layer is given: (N, D) float32 on the CPU, for uint8 images (N, C, H, W)."""
    head = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    kept: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0].float().cpu()))
    try:
        for batch in images.split(batch_size):
            model(to_float(batch).to(next(model.parameters()).device))
    finally:
        handle.remove()
    return torch.cat(kept)


def inception_weights() -> Path | None:
    """Where torch-fidelity's Inception weights lie on this disk, or None."""
    name = "pt_inception-2015-12-05-6726825d.pth"
    places = (Path(os.environ.get("DFKD_INCEPTION", "")), Path(torch.hub.get_dir()) / "checkpoints" / name)
    return next((p for p in places if p.is_file()), None)


@torch.inference_mode()
def inception_features(images: Tensor, batch_size: int = 64, download: bool = False) -> Tensor:
    """The 2048-d Inception features of FID (N, 2048), by torchmetrics/torch-fidelity, for uint8 images (N, 1|3, H, W).

    Raises:
        WorkbenchError: if the weights are not on disk and `download` is False.
    """
    weights = inception_weights()
    if weights is None and not download:
        raise WorkbenchError("the Inception weights are not on this disk", where=Path(torch.hub.get_dir()) / "checkpoints",
                             expected="pt_inception-2015-12-05-6726825d.pth (torch-fidelity's)",
                             mend="pass download=True once, set DFKD_INCEPTION to the file, or use features='classifier'")
    network = _inception(str(weights) if weights else None)
    images = images if images.shape[1] == 3 else images.expand(-1, 3, -1, -1)
    return torch.cat([network(batch.to(next(network.parameters()).device)).cpu() for batch in images.split(batch_size)])


@functools.cache
def _inception(weights: str | None) -> nn.Module:
    from torchmetrics.image.fid import NoTrainInceptionV3

    where = "cuda" if torch.cuda.is_available() else "cpu"
    return NoTrainInceptionV3(name="inception-v3-compat", features_list=["2048"],
                              feature_extractor_weights_path=weights).to(where)
