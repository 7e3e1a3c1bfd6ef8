"""AutoAugment and RandAugment of whole batches against torchvision's, which take an image at a time; erasing; MixUp or CutMix."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as T

from dfkd_lib.datasets import random_flip, random_shift, to_float
from dfkd_lib.training import Augmentation, Batch
from dfkd_lib.training.augment import (
    OPERATIONS,
    augment,
    auto_augment,
    rand_augment,
    random_affine,
    random_jitter,
)
from dfkd_lib.training.mixing import erased

PEERS = {"auto": (v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10), 10), "rand": (v2.RandAugment(), 31)}
CASES = [(peer, name) for peer, (own, _) in PEERS.items() for name in own._AUGMENTATION_SPACE]


def smooth_images(channels, count=4):
    small = torch.randint(
        0, 256, (count, channels, 8, 8), generator=torch.Generator().manual_seed(0)
    )
    return T.resize(small.to(torch.uint8), [32, 32])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("peer, name", CASES)
def test_every_operation_is_torchvisions_at_every_strength_and_sign(peer, name, channels):
    """But for rounding: a level more or less where a product is a whole number, and pixels that lie between two."""
    own, levels = PEERS[peer]
    images, (strengths, signed) = smooth_images(channels), own._AUGMENTATION_SPACE[name]
    sizes = strengths(levels, 32, 32)
    for level in range(levels):
        for sign in (1, -1) if signed else (1,):
            size = 0.0 if sizes is None else float(sizes[level]) * sign
            settings = {"interpolation": own.interpolation, "fill": own._fill}
            wanted = torch.stack(
                [own._apply_image_or_video_transform(i, name, size, **settings) for i in images]
            )
            kinds = torch.full((len(images),), OPERATIONS.index(name))
            shares = torch.full((len(images),), sign * level / (levels - 1))
            away = (augment(images, kinds, shares).int() - wanted.int()).abs()
            if name == "Solarize":  # on which side of a threshold its own value lies is rounding
                away = away[(images - 255 * size).abs() > 0.01]
            assert (away > 1).float().mean() < 0.01 and away.float().mean() < 0.4


def test_a_batch_of_mixed_operations_is_each_image_with_its_own():
    images = smooth_images(3, len(OPERATIONS))
    kinds, shares = torch.arange(len(OPERATIONS)).flip(0), torch.linspace(-1, 1, len(OPERATIONS))
    together = augment(images, kinds, shares)
    alone = [
        augment(images[i : i + 1], kinds[i : i + 1], shares[i : i + 1]) for i in range(len(kinds))
    ]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(images, smooth_images(3, len(OPERATIONS)))  # the given ones are left alone


@pytest.mark.parametrize("policy", [auto_augment, rand_augment])
def test_a_policy_is_drawn_for_each_image_by_the_generator_alone(policy):
    images = smooth_images(3, 1).expand(12, -1, -1, -1)
    first, again, other = (policy(images, torch.Generator().manual_seed(s)) for s in (3, 3, 4))
    assert first.shape == images.shape and first.dtype == torch.uint8
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len({image.numpy().tobytes() for image in first}) > 3


def test_auto_augment_does_what_its_policy_says_as_often(monkeypatch):
    """How often each operation is drawn, against the policy's own probabilities."""
    from dfkd_lib.training import augment as module

    drawn = torch.zeros(len(OPERATIONS))

    def counted(images, kinds, shares):
        drawn.add_(torch.bincount(kinds, minlength=len(OPERATIONS)))
        return images

    monkeypatch.setattr(module, "augment", counted)
    count, own = 50_000, PEERS["auto"][0]._policies
    auto_augment(torch.zeros(count, 1, 2, 2, dtype=torch.uint8), torch.Generator().manual_seed(0))
    for kind, name in enumerate(OPERATIONS[1:], 1):
        wanted = sum(p for pair in own for op, p, _ in pair if op == name) / len(own)
        assert drawn[kind].item() / count == pytest.approx(wanted, abs=0.01), name


def test_erased_rectangles_are_grey_in_the_share_asked_for_and_of_the_papers_area():
    images = torch.ones(4000, 1, 32, 32)
    found = erased(images, 0.25, torch.Generator().manual_seed(0))
    areas = (found == 0).flatten(1).float().mean(1)
    hit = areas > 0
    assert hit.float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert 0.01 < areas[hit].min() and areas[hit].max() < 0.36
    assert areas[hit].mean().item() == pytest.approx(0.175, abs=0.02)
    one = (found[hit][0, 0] == 0).nonzero()
    (top, left), (bottom, right) = one.min(0).values, one.max(0).values
    assert len(one) == (bottom - top + 1) * (right - left + 1)
    assert torch.equal(erased(images, 0.0, torch.Generator()), images)


def test_flip_is_a_shift_by_up_to_four_and_a_mirror():
    images, labels = smooth_images(3, 6), torch.arange(6)
    seen = Augmentation(kind="flip")(
        Batch(images, labels, labels), torch.Generator().manual_seed(1)
    )
    generator = torch.Generator().manual_seed(1)
    assert torch.equal(
        seen.images, to_float(random_flip(random_shift(images, 4, generator), generator))
    )


def test_either_takes_cutmix_for_some_batches_and_mixup_for_others():
    images = torch.cat([torch.zeros(4, 1, 8, 8), torch.full((4, 1, 8, 8), 255.0)]).to(torch.uint8)
    labels, generator = torch.arange(8), torch.Generator().manual_seed(0)
    augmentation = Augmentation(mix="either")
    between = []
    for _ in range(40):
        seen = augmentation(Batch(images, labels, labels), generator)
        assert seen.others is not None and seen.share.shape == (8,)
        # MixUp alone makes what is neither black nor white.
        between.append(bool((seen.images.abs() < 0.999).any()))
    assert 8 < sum(between) < 32


class Copies(TorchDispatchMode):
    """Notes the copies between devices that wait, and what reads a number off a device."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func.__name__, kwargs or {}
        result = func(*args, **kwargs)
        places = {a.device for a in (*args, result) if isinstance(a, torch.Tensor)}
        quiet = kwargs.get("non_blocking") or (name.startswith("copy_") and len(args) > 2)
        if "copy" in name and len(places) > 1 and not quiet:
            self.waits.append(name)
        return result


@pytest.mark.parametrize("mix", ["none", "cutmix", "mixup"])
@pytest.mark.parametrize("kind", ["none", "shift", "flip", "randaugment", "autoaugment"])
def test_no_augmentation_waits_for_the_device(kind, mix):
    """On a device without values whatever asks for one fails; whatever is drawn goes there without waiting."""
    images = torch.zeros(64, 3, 32, 32, dtype=torch.uint8, device="meta")
    labels = torch.zeros(64, dtype=torch.long, device="meta")
    with Copies() as copies:
        seen = Augmentation(kind=kind, mix=mix, erase=0.5)(
            Batch(images, labels, labels), torch.Generator().manual_seed(0)
        )
    assert seen.images.device.type == "meta" and not copies.waits


def test_a_random_affine_map_never_mirrors_and_moves_as_far_as_it_says():
    """Three squares whose turning sense a mirror would reverse, followed through each image's map."""
    images = torch.zeros(400, 3, 64, 64, dtype=torch.uint8)
    for channel, (down, across) in enumerate([(20, 20), (20, 44), (44, 20)]):
        images[:, channel, down - 3 : down + 4, across - 3 : across + 4] = 255
    found = random_affine(images, torch.Generator().manual_seed(0)).float()
    places = torch.arange(64.0)
    weight = found.sum((2, 3))
    down, across = (found.sum(a) @ places / weight for a in (3, 2))
    first = torch.stack([across[:, 1] - across[:, 0], down[:, 1] - down[:, 0]], 1)
    second = torch.stack([across[:, 2] - across[:, 0], down[:, 2] - down[:, 0]], 1)
    turn = torch.rad2deg(torch.atan2(first[:, 1], first[:, 0]))
    assert (first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0] > 0).all()
    assert 12 < turn.max() < 17 and -17 < turn.min() < -12
    lengths = first.norm(dim=1) / 24
    assert 0.84 < lengths.min() < 0.93 and 1.07 < lengths.max() < 1.16  # a shear adds its part
    assert random_affine(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.Generator()).sum() == 0


def test_jitter_changes_brightness_within_its_range_and_keeps_black():
    images = torch.full((500, 1, 4, 4), 100, dtype=torch.uint8)
    found = random_jitter(images, torch.Generator().manual_seed(0)).float()
    assert 59 <= found.min() < 65 and 135 < found.max() <= 140
    black = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
    assert random_jitter(black, torch.Generator().manual_seed(0)).sum() == 0


@pytest.mark.parametrize("kind", ["affine", "jitter"])
def test_kinds_that_do_not_mirror_erase_and_mix_as_others_do(kind):
    images = smooth_images(1, 8).expand(-1, 1, -1, -1)
    batch = Batch(images, torch.arange(8), torch.arange(8))
    how = Augmentation(kind=kind, mix="mixup", erase=0.5)
    made = how(batch, torch.Generator().manual_seed(0))
    assert made.images.dtype == torch.float32 and made.share.shape == made.others.shape == (8,)
    assert made.images.abs().max() <= 1
