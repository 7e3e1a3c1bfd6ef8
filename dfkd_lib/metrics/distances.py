"""Statistics of features, the Fréchet distance of two Gaussians and the kernel distance (KID) of two sets."""

import functools
from typing import NamedTuple

import numpy as np
import scipy.linalg
import torch
from scipy.linalg.lapack import dpstrf
from threadpoolctl import ThreadpoolController
from torch import Tensor

from dfkd_lib.core import WorkbenchError

controller = functools.cache(ThreadpoolController)


def root_sum(matrix: np.ndarray) -> float:
    """The sum of the square roots of the eigenvalues of a symmetric, positive semi-definite matrix (n, n), overwritten.

    On one thread: a second gains nothing at 500 rows and 0.15 s at 2048, but on a machine that does something else, too,
    OpenBLAS's threads wait for each other and take a hundred times as long.
    """
    with controller().limit(limits=1, user_api="blas"):
        values = scipy.linalg.eigvalsh(matrix, check_finite=False, overwrite_a=True)
    return float(np.sqrt(values.clip(min=0)).sum())


def check_features(features: Tensor) -> None:
    """Raise WorkbenchError unless features are (N >= 2, D >= 1) and finite."""
    # A sum meets every NaN and infinity, at a tenth of the time that looking at each value takes.
    finite = features.sum(dtype=torch.float64).isfinite()
    if features.ndim != 2 or len(features) < 2 or features.shape[1] < 1 or not finite:
        raise WorkbenchError(
            "features are of too few images, or hold values that are not numbers",
            expected="(N >= 2, D), finite",
            got=f"{tuple(features.shape)}, {'finite' if finite else 'NaN or infinity'}",
            fix="give more images, or check them and the feature network",
        )


def check_pair(a: Tensor, b: Tensor) -> None:
    """Raise WorkbenchError unless both sides are features, finite, of the same number of dimensions."""
    check_features(a)
    check_features(b)
    if a.shape[1] != b.shape[1]:
        raise WorkbenchError(
            "features of different networks cannot be compared",
            expected=f"(N, {a.shape[1]})",
            got=tuple(b.shape),
            fix="take both sides with the same feature network",
        )


def statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D; divisor N − 1), float64, of features (N, D).

    Raises:
        WorkbenchError: with fewer than two rows, or values that are not finite.
    """
    check_features(features)
    mean, root = _mean_and_root(features)
    return mean, root.T @ root


def _mean_and_root(features: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (D,), and X (N, D) of which Xᵀ X is the covariance, float64 on the CPU."""
    features = features.double().cpu()
    mean = features.mean(0)
    return mean, (features - mean).div_((len(features) - 1) ** 0.5)


def _checked_statistics(size: int, *statistics) -> list[Tensor]:
    """Means (D,) and covariances (D, D) by turns as float64; WorkbenchError unless they are of `size` and finite."""
    parts = [torch.as_tensor(part, dtype=torch.float64).cpu() for part in statistics]
    shapes = [tuple(part.shape) for part in parts]
    finite = all(part.sum().isfinite() for part in parts)
    if shapes != [(size,), (size, size)] * (len(parts) // 2) or not finite:
        raise WorkbenchError(
            "statistics are of different features, or hold values that are not numbers",
            expected=f"({size},), ({size}, {size}), finite",
            got=f"{', '.join(map(str, shapes))}, {'finite' if finite else 'NaN or infinity'}",
            fix="check the images, and take both sides with the same feature network",
        )
    return parts


def trace_root(sigma_a: Tensor, sigma_b: Tensor) -> float:
    """tr (Σa Σb)^½ of two symmetric, positive semi-definite matrices (D, D), float64.

    Σa is factored as F Fᵀ by Cholesky's method with pivots, F having as many columns as Σa has rank: so a singular
    matrix needs no other way and costs less. The trace is then the sum of the square roots of the eigenvalues of
    Fᵀ Σb F, which is symmetric, so nothing turns complex and no matrix square root is taken. Where the LAPACK routine
    finds a pivot below D ε max diag Σa, what is left of Σa is rounding.
    """
    packed, pivots, rank, _ = dpstrf(sigma_a.numpy(), lower=1)
    if rank == 0 or not sigma_a.any():
        return 0.0
    factor = np.tril(packed)[:, :rank]
    order = torch.from_numpy(pivots.astype(np.int64) - 1)  # LAPACK counts from one
    return root_sum(factor.T @ sigma_b[order][:, order].numpy() @ factor)


def _distance(gap: Tensor, traces: Tensor, cross: float) -> float:
    """|gap|² + tr Σa + tr Σb − 2 tr (Σa Σb)^½, in which rounding may leave less than 0."""
    return max(float(gap.square().sum() + traces) - 2 * cross, 0.0)


def frechet_distance(mu_a: Tensor, sigma_a: Tensor, mu_b: Tensor, sigma_b: Tensor) -> float:
    """|μa − μb|² + tr(Σa + Σb − 2 (Σa Σb)^½), the squared Fréchet distance of two Gaussians (A eq. 6).

    Args:
        mu_a, mu_b: (D,), tensors or arrays.
        sigma_a, sigma_b: (D, D), symmetric, positive semi-definite.

    Returns:
        A float ≥ 0, in float64 throughout; singular covariances are no special case (`trace_root`).

    Raises:
        WorkbenchError: if shapes do not fit, or values are not finite.
    """
    parts = _checked_statistics(len(mu_a), mu_a, sigma_a, mu_b, sigma_b)
    mu_a, sigma_a, mu_b, sigma_b = parts
    traces = sigma_a.trace() + sigma_b.trace()
    return _distance(mu_a - mu_b, traces, trace_root(sigma_a, sigma_b))


def frechet_distance_from_features(a: Tensor, b: Tensor) -> float:
    """The distance of `frechet_distance` straight from features (Na, D) and (Nb, D).

    With fewer images than dimensions on both sides, tr (Σa Σb)^½ is the sum of the singular values of M = Xa Xbᵀ, X being
    the centred features over √(N − 1), taken as square roots of the eigenvalues of M Mᵀ on the side of fewer images, which
    costs half and keeps eight digits; on one side, see `frechet_distance_to`.

    Raises:
        WorkbenchError: on features that are not finite, too few, or of different dimensions.
    """
    check_pair(a, b)
    few, many = (a, b) if len(a) <= len(b) else (b, a)
    if len(many) >= a.shape[1]:
        return frechet_distance_to(*statistics(many), few)
    (mean_a, root_a), (mean_b, root_b) = _mean_and_root(few), _mean_and_root(many)
    product = root_a @ root_b.T
    cross = root_sum((product @ product.T).numpy())
    traces = root_a.square().sum() + root_b.square().sum()
    return _distance(mean_a - mean_b, traces, cross)


def frechet_distance_to(mu: Tensor, sigma: Tensor, features: Tensor) -> float:
    """The Fréchet distance of known statistics (D,), (D, D) to features (N, D), whose covariance is not formed if N < D.

    tr (Σ Σf)^½ is the sum of the square roots of the eigenvalues of X Σ Xᵀ, (N, N), X being the centred features over
    √(N − 1); with N ≥ D it is `frechet_distance` of both sides' statistics.

    Raises:
        WorkbenchError: on shapes that do not fit, or values that are not finite.
    """
    check_features(features)
    count, size = features.shape
    if count >= size:
        return frechet_distance(mu, sigma, *statistics(features))
    mu, sigma = _checked_statistics(size, mu, sigma)
    mean, root = _mean_and_root(features)
    traces = sigma.trace() + root.square().sum()
    return _distance(mu - mean, traces, root_sum((root @ sigma @ root.T).numpy()))


class KernelDistance(NamedTuple):
    """KID: mean and standard deviation over subsets."""

    mean: float
    std: float


def kernel_distance(
    a: Tensor, b: Tensor, subsets: int = 50, subset_size: int = 1000, seed: int = 0
) -> KernelDistance:
    """KID (Bińkowski et al. 2018): the unbiased squared MMD under (x·y / D + 1)³, by torchmetrics' `poly_mmd`, float64.

    Args:
        a, b: features (Na, D), (Nb, D).
        subsets: how many pairs of seeded random subsets without replacement.
        subset_size: images a side in each; shrunk to the smaller set.

    Returns:
        Mean (about 0, also below, for equal distributions) and standard deviation over the subsets, which is NaN where
        every subset is the whole of both sides, as one value has no spread.

    Raises:
        WorkbenchError: on features that are not finite, too few, or of different dimensions.
    """
    from torchmetrics.image.kid import poly_mmd

    check_pair(a, b)
    size = min(subset_size, len(a), len(b))
    if size == len(a) == len(b):
        return KernelDistance(float(poly_mmd(a.double(), b.double())), float("nan"))
    generator = torch.Generator().manual_seed(seed)
    drawn = (
        [side[torch.randperm(len(side), generator=generator)[:size]].double() for side in (a, b)]
        for _ in range(subsets)
    )
    values = torch.stack([poly_mmd(x, y) for x, y in drawn])
    return KernelDistance(float(values.mean()), float(values.std(correction=0)))
