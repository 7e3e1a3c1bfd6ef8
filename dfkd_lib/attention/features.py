"""What a block makes of each patch: features, their principal components, and the patches of another image most like them."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from dfkd_lib.attention.sites import Site, attention_sites, patch_grid, patch_tokens, pick
from dfkd_lib.core import WorkbenchError
from dfkd_lib.models import hooked


def block_of(model: nn.Module, site: Site) -> nn.Module:
    """The block that an attention module is in: the innermost listed module around it, the model itself without any."""
    parts = site.name.split(".")
    depth = max((i + 1 for i, part in enumerate(parts) if part.isdigit()), default=0)
    return model.get_submodule(".".join(parts[:depth]))


@torch.no_grad()
def patch_features(model: nn.Module, images: Tensor, block: int = -1) -> Tensor:
    """The patches as a block leaves them, before any norm that follows all blocks.

    Args:
        model: a ViT-like model.
        images: float (B, C, H, W) as the model wants them.
        block: index, from the end if negative.

    Returns:
        (B, N, width) float32.

    Raises:
        WorkbenchError: if there is no such block, or it gives no sequence of tokens (stages of Swin).
    """
    sites, seen = attention_sites(model), []
    module = block_of(model, sites[pick(block, len(sites), "block")])
    with hooked([module], lambda _, __, output: seen.append(output)):
        model(images)
    tokens = seen[0] if isinstance(seen[0], Tensor) else seen[0][0]
    if tokens.ndim != 3 or len(tokens) != len(images):
        raise WorkbenchError(
            "this block gives no sequence of tokens",
            expected=f"({len(images)}, tokens, width)",
            got=f"{tuple(tokens.shape)} from {type(module).__name__}",
            where=f"block {block} of {type(model).__name__}",
            fix="use a plain vision transformer",
        )
    patches = tokens[:, patch_tokens(model)].float()
    patch_grid(model, patches.shape[1], *images.shape[-2:])
    return patches


class PatchComponents(NamedTuple):
    """Principal components of patch features, with one basis for all images.

    Args:
        values: float32 (B, N, components), each component from 0 to 1 over all patches of all images.
        shares: float32 (components,), of the variance, in [0, 1].
    """

    values: Tensor
    shares: Tensor


def patch_components(features: Tensor, count: int = 3) -> PatchComponents:
    """The first principal components of patch features (B, N, width), as colours if there are three.

    A component's sign is free: its largest loading is made positive.

    Raises:
        WorkbenchError: if there are fewer patches than components and one more, or a smaller width.

    Source: Oquab et al., DINOv2 (TMLR 2024), section 7.6.
    """
    flat = features.flatten(0, -2).double()
    if not 1 <= count <= min(len(flat) - 1, flat.shape[1]):
        raise WorkbenchError(
            "too few patch features for so many components",
            expected=f"1..{min(len(flat) - 1, flat.shape[1])} components",
            got=count,
            where="patch_components",
            fix="give more images, or ask for fewer components",
        )
    centred = flat - flat.mean(0)
    variances, axes = torch.linalg.eigh(centred.T @ centred)  # from the smallest
    axes = axes[:, -count:].flip(1)
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    values = centred @ axes
    low, high = values.amin(0), values.amax(0)
    values = (values - low) / (high - low).clamp(min=1e-12)
    shares = variances[-count:].flip(0).clamp(min=0) / variances.clamp(min=0).sum().clamp(min=1e-12)
    return PatchComponents(values.view(*features.shape[:-1], count).float(), shares.float())


class NearestPatches(NamedTuple):
    """For each of N patches the most similar one of another image.

    Args:
        place: int64 (N,), which it is.
        mutual: bool (N,), whether each is the other's most similar.
    """

    place: Tensor
    mutual: Tensor


def nearest_patches(features: Tensor, others: Tensor) -> NearestPatches:
    """The nearest patch of another image for each patch, by the cosine of their features.

    Args:
        features: (N, width), of one image, as a row of `patch_features`.
        others: (M, width), of the other, by the same model and block.

    Raises:
        WorkbenchError: if their widths differ.

    Source: Amir et al., Deep ViT Features as Dense Visual Descriptors (ECCV workshops 2022), section 5, for mutual ones.
    """
    if features.ndim != 2 or others.ndim != 2 or features.shape[1] != others.shape[1]:
        raise WorkbenchError(
            "these features cannot be compared",
            expected="(patches, width) twice, of one width",
            got=f"{tuple(features.shape)} and {tuple(others.shape)}",
            where="nearest_patches",
            fix="give the features of single images from the same model",
        )
    cosines = normalize(features.float(), dim=1) @ normalize(others.float(), dim=1).T
    place, back = cosines.argmax(1), cosines.argmax(0)
    return NearestPatches(place, back[place] == torch.arange(len(place)).to(place))
