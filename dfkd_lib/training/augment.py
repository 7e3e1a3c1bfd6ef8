"""AutoAugment and RandAugment of whole batches on their device: each image draws its own operations, all of one kind are
done together, so that no step waits for Python.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as T

FURTHEST = 150 / 331  # of a side that an image is moved by
# What each operation's largest magnitude is; they grow linearly from 0, but for Posterize and Solarize, see `_strength`.
LARGEST = {
    **dict.fromkeys(("ShearX", "ShearY"), 0.3),
    **dict.fromkeys(("TranslateX", "TranslateY"), FURTHEST),
    "Rotate": 30.0,
    **dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), 0.9),
}
GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "AutoContrast": T.autocontrast,
    "Equalize": T.equalize,
    "Invert": T.invert,
}
OPERATIONS = ("Identity", *LARGEST, "Posterize", "Solarize", *PLAIN)
# AutoAugment's policy for CIFAR-10: 25 pairs of (operation, probability, level of 10).
POLICY = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)._policies


def auto_augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """AutoAugment's CIFAR-10 policy drawn anew for each image.

    Args:
        images: uint8 (B, C, H, W), C of 1 or 3.
        generator: of the CPU.

    Returns:
        The same form.

    Source: Cubuk et al. 2019; C §4 (AutoAugment).
    """
    count = len(images)
    pairs = torch.randint(len(POLICY), (count,), generator=generator)
    for place in range(2):
        names, likely, levels = zip(*(pair[place] for pair in POLICY), strict=True)
        used = torch.rand(count, generator=generator) <= torch.tensor(likely)[pairs]
        kinds = torch.tensor([OPERATIONS.index(name) for name in names])[pairs] * used
        shares = torch.tensor([(level or 0) / 9 for level in levels])[pairs]
        images = augment(images, kinds, shares * _signs(count, generator))
    return images


def rand_augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """RandAugment: two operations at random for each image, of strength 9 in 0..30; shapes as in `auto_augment`.

    Source: Cubuk et al. 2020, in torchvision's ranges.
    """
    count, known = len(images), len(OPERATIONS) - 1  # all but Invert
    for _ in range(2):
        kinds = torch.randint(known, (count,), generator=generator)
        strength = torch.full((count,), 9 / 30)
        images = augment(images, kinds, strength * _signs(count, generator))
    return images


def _signs(count: int, generator: torch.Generator) -> Tensor:
    return 1 - 2 * torch.randint(2, (count,), generator=generator)


def augment(images: Tensor, kinds: Tensor, shares: Tensor) -> Tensor:
    """One operation on each image; shapes as in `auto_augment`.

    Args:
        kinds: int64 (B,), places in OPERATIONS, on the CPU.
        shares: float (B,) in [-1, 1], on the CPU: of the operation's largest magnitude, the sign where it has two directions.

    Source: torchvision's functions of one image, whose results these are.
    """
    result, where = images.clone(), images.device
    for name, rows, strength in _groups(images, kinds, shares):
        rows = rows.to(where, non_blocking=True)
        chosen = images[rows]
        if name in PLAIN:
            result[rows] = PLAIN[name](chosen)
            continue
        strength = strength.to(where, non_blocking=True)
        if name == "geometric":
            result[rows] = _moved(chosen, strength)
        elif name == "Posterize":
            result[rows] = chosen & strength.to(torch.uint8)[:, None, None, None]
        elif name == "Solarize":
            over = chosen >= strength[:, None, None, None]
            result[rows] = torch.where(over, 255 - chosen, chosen)
        else:
            result[rows] = _blended(chosen, DULL[name](chosen), 1 + strength)
    return result


def _groups(images: Tensor, kinds: Tensor, shares: Tensor):
    """(operation, rows, what it needs of each image) of those that are drawn; the geometric ones are one, by a matrix each."""
    moving = torch.tensor([name in GEOMETRIC for name in OPERATIONS])[kinds]
    rows = moving.nonzero().flatten()
    if len(rows):
        matrices = torch.eye(2, 3).repeat(len(rows), 1, 1)
        for name in GEOMETRIC:
            mine = kinds[rows] == OPERATIONS.index(name)
            sizes = shares[rows[mine]] * LARGEST[name]
            matrices[mine] = _matrices(name, sizes, *images.shape[-2:])
        yield "geometric", rows, matrices
    for kind, name in enumerate(OPERATIONS):
        rows = (kinds == kind).nonzero().flatten()
        if len(rows) and name not in GEOMETRIC and name != "Identity":
            yield name, rows, _strength(name, shares[rows])


def _strength(name: str, shares: Tensor) -> Tensor:
    """The magnitude of an operation at shares of its largest: bits that stay as a mask, a threshold, or what is added to 1."""
    if name == "Posterize":
        return 256 - 2 ** (4 * shares.abs()).round()
    if name == "Solarize":
        return 255 * (1 - shares.abs()) - 1e-3
    return shares * LARGEST.get(name, 0.0)


def _matrices(name: str, sizes: Tensor, height: int, width: int) -> Tensor:
    """Where a pixel of the result comes from: (n, 2, 3), in pixels from the middle of the image."""
    matrices = torch.eye(2, 3).repeat(len(sizes), 1, 1)
    if name == "Rotate":
        cos, sin = torch.deg2rad(sizes).cos(), torch.deg2rad(sizes).sin()
        matrices[:, 0, 0], matrices[:, 0, 1] = cos, -sin
        matrices[:, 1, 0], matrices[:, 1, 1] = sin, cos
    elif name == "ShearX":  # about the upper left corner
        matrices[:, 0, 1], matrices[:, 0, 2] = sizes, sizes * height / 2
    elif name == "ShearY":
        matrices[:, 1, 0], matrices[:, 1, 2] = sizes, sizes * width / 2
    elif name == "TranslateX":
        matrices[:, 0, 2] = -(sizes * width).trunc()
    else:
        matrices[:, 1, 2] = -(sizes * height).trunc()
    return matrices


def _moved(images: Tensor, matrices: Tensor) -> Tensor:
    """Each image by its matrix, nearest pixels, black outside."""
    (height, width), where = images.shape[-2:], images.device
    down = torch.arange(height, device=where) - (height - 1) / 2
    across = torch.arange(width, device=where) - (width - 1) / 2
    y, x = torch.meshgrid(down, across, indexing="ij")
    from_here = torch.stack([x, y, torch.ones_like(x)], -1)
    grid = torch.einsum("hwk,bdk->bhwd", from_here, matrices)
    grid[..., 0].div_(width / 2)
    grid[..., 1].div_(height / 2)
    moved = F.grid_sample(images.float(), grid, "nearest", "zeros", align_corners=False)
    return moved.round().to(torch.uint8)


def _blended(images: Tensor, dull: Tensor, share: Tensor) -> Tensor:
    """share · image + (1 − share) · its dull version, cut to 0..255."""
    share = share[:, None, None, None]
    # A hair more: a sum that is a whole number must not be cut to the one below it.
    return (images * share + dull * (1 - share) + 1e-3).clamp(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    return T.rgb_to_grayscale(images.float()).floor()


def _flat(images: Tensor) -> Tensor:
    return _grey(images).mean((1, 2, 3), keepdim=True)


def _soft(images: Tensor) -> Tensor:
    """Each pixel but those of the border as the mean of 3 × 3, itself counted five times."""
    soft = images.float()
    # In sums, not by a convolution: a GPU's library plans one anew for every number of images, in a tenth of a second.
    down = soft[..., :-2, :] + soft[..., 1:-1, :] + soft[..., 2:, :]
    around = down[..., :-2] + down[..., 1:-1] + down[..., 2:]
    soft[..., 1:-1, 1:-1] = ((around + 4 * soft[..., 1:-1, 1:-1]) / 13).round()
    return soft


# What an image is mixed with, or drawn away from.
DULL: dict[str, Callable[[Tensor], Tensor]] = {
    "Brightness": lambda images: torch.zeros_like(images, dtype=torch.float32),
    "Color": _grey,
    "Contrast": _flat,
    "Sharpness": _soft,
}


DEGREES, SCALE, SHEAR, PIXELS, JITTER = 15.0, 0.1, 10.0, 2.0, 0.4  # the largest, either way


def random_affine(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image turned, scaled, sheared and moved at random about its middle, nearest pixels, black outside; never mirrored.

    Shapes as in `auto_augment`.
    """
    drawn = 2 * torch.rand(len(images), 5, generator=generator) - 1
    angle, shear = torch.deg2rad(DEGREES * drawn[:, 0]), torch.deg2rad(SHEAR * drawn[:, 1]).tan()
    scale = 1 + SCALE * drawn[:, 2]
    matrices = torch.zeros(len(images), 2, 3)
    matrices[:, 0, 0], matrices[:, 1, 0] = angle.cos() / scale, angle.sin() / scale
    matrices[:, 0, 1] = (shear * angle.cos() - angle.sin()) / scale
    matrices[:, 1, 1] = (shear * angle.sin() + angle.cos()) / scale
    matrices[:, :, 2] = PIXELS * drawn[:, 3:]
    return _moved(images, matrices.to(images.device, non_blocking=True))


def random_jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image's contrast, then its brightness, times a factor within 1 ± 0.4; shapes as in `random_affine`."""
    factors = 1 + JITTER * (2 * torch.rand(2, len(images), generator=generator) - 1)
    factors = factors.to(images.device, non_blocking=True)
    images = _blended(images, _flat(images), factors[0])
    return _blended(images, torch.zeros_like(images, dtype=torch.float32), factors[1])
