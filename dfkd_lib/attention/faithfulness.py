"""Does an output rest on what a map marks? Patches are taken away, or put in, in the order of the map."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from dfkd_lib.attention.probes import logits_of
from dfkd_lib.attention.sites import patch_grid
from dfkd_lib.core import WorkbenchError

BLUR = 1 / 8  # of an image's shorter side: the standard deviation of what stands for nothing


class Faithfulness(NamedTuple):
    """What is left of a class's probability while patches go, and what there is of it while they come.

    Args:
        shares: float (S,), of the patches that are gone, or there, from 0 to 1.
        deletion, insertion: float32 (B, S), probabilities of each image's class.
    """

    shares: Tensor
    deletion: Tensor
    insertion: Tensor

    @property
    def deletion_area(self) -> Tensor:
        """(B,) in [0, 1]: the smaller, the more the class rests on what was marked."""
        return torch.trapezoid(self.deletion, self.shares)

    @property
    def insertion_area(self) -> Tensor:
        """(B,) in [0, 1]: the larger, the more what was marked is enough for the class."""
        return torch.trapezoid(self.insertion, self.shares)


@torch.inference_mode()
def insertion_deletion(
    model: nn.Module,
    images: Tensor,
    maps: Tensor,
    target: int | Tensor | None = None,
    steps: int = 10,
    blank: float | None = None,
    batch_size: int = 64,
) -> Faithfulness:
    """Insertion and deletion curves of maps over the patches of images.

    Args:
        model: a classifier, images → logits (B, K).
        images: float (B, C, H, W) as the model wants them.
        maps: (B, N), how much each patch is said to matter; of equal ones the first counts more.
        target: class whose probability is followed, int or (B,); None: the predicted one of each whole image.
        steps: parts that the patches go and come in.
        blank: value of a pixel that is gone; None: that of the blurred image.

    Returns:
        `Faithfulness`, on the device of the images.

    Raises:
        WorkbenchError: if maps do not fit the images, or there are no steps.

    Source: Petsiuk et al., RISE (BMVC 2018), section 4.2, patch by patch.
    """

    def chances(pixels: Tensor) -> Tensor:
        parts = [logits_of(model, part).float() for part in pixels.split(batch_size)]
        return torch.cat(parts).softmax(1)

    count, (height, width) = len(images), images.shape[-2:]
    if maps.ndim != 2 or len(maps) != count or steps < 1:
        raise WorkbenchError(
            "these maps cannot be followed",
            expected=f"({count}, patches) and at least one step",
            got=f"{tuple(maps.shape)} and {steps} steps",
            where="insertion_deletion",
            fix="give one row of patches for each image, as attention_probe does",
        )
    rows, columns = patch_grid(model, maps.shape[1], height, width)
    nothing = _blurred(images) if blank is None else torch.full_like(images, blank)
    whole, none = map(chances, (images, nothing))
    label = whole.argmax(1) if target is None else target
    label = torch.as_tensor(label, device=images.device).expand(count)[:, None]
    # Place in the order: 0 for the patch that is said to matter most.
    order = maps.to(images.device).argsort(dim=1, descending=True, stable=True).argsort(1)
    shares = torch.linspace(0, 1, steps + 1, device=images.device)
    deletion, insertion = [whole], [none]
    for share in shares[1:-1]:
        marked = (order < torch.round(share * maps.shape[1])).float().view(count, 1, rows, columns)
        marked = F.interpolate(marked, (height, width), mode="nearest").bool()
        deletion.append(chances(torch.where(marked, nothing, images)))
        insertion.append(chances(torch.where(marked, images, nothing)))
    curves = [*deletion, none], [*insertion, whole]
    followed = [torch.cat([step.gather(1, label) for step in curve], 1) for curve in curves]
    return Faithfulness(shares, *followed)


def _blurred(images: Tensor) -> Tensor:
    sigma = max(1.0, BLUR * min(images.shape[-2:]))
    # No wider than the image, whose ends it reflects.
    size = min(2 * round(2 * sigma) + 1, 2 * (min(images.shape[-2:]) // 2) - 1)
    # Across, then down: the same as both at once, at a fraction of the time.
    across = gaussian_blur(images, [size, 1], [sigma, sigma])
    return gaussian_blur(across, [1, size], [sigma, sigma])
