"""A generator of scenes for a layout of classes and boxes, its encoder and its discriminator (METHODS A4)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_convert, roi_align

from dfkd_lib.models.gan import down, normal_weights

PATCH = 32  # side in pixels at which an object is drawn and judged
ROOM = 1.25  # the patch of an object reaches so far beyond its box: outlines are soft
CONTEXT = 1.25  # an object is judged with so much of what is around it
FADE = 4  # pixels at the edge of a patch over which its opacity falls to nothing: no box is seen around an object

Normal = tuple[Tensor, Tensor]  # mean and log variance of codes


def layout_planes(labels: Tensor, boxes: Tensor, num_classes: int, side: int) -> Tensor:
    """A layout, labels int64 (B, M), -1 for none, and boxes (B, M, 4), cxcywh in [0, 1], as soft masks, one plane a class:
    (B, K, side, side) in [0, 1], a pixel's share of the class's boxes."""
    edges = torch.arange(side, device=boxes.device) / side
    low, high = box_convert(boxes, "cxcywh", "xyxy")[..., None].split(2, -2)
    # The share of each column and row of pixels that a box covers; their product is the share of each pixel.
    shared = torch.minimum(high, edges + 1 / side) - torch.maximum(low, edges)
    covered = shared.clamp(min=0) * side
    masks = covered[:, :, 1, :, None] * covered[:, :, 0, None, :]
    hot = F.one_hot(labels.clamp(min=0), num_classes).to(masks) * (labels >= 0)[..., None]
    return torch.einsum("bmk,bmhw->bkhw", hot, masks).clamp(max=1)


def object_boxes(boxes: Tensor, labels: Tensor, factor: float, height: int, width: int) -> Tensor:
    """The boxes of a padded layout, `factor` times as large, for `roi_align`: (n, 5), image and corners in pixels."""
    image, place = (labels >= 0).nonzero(as_tuple=True)
    chosen = boxes[image, place].float() * boxes.new_tensor([width, height, width, height])
    chosen = torch.cat([chosen[:, :2], chosen[:, 2:] * factor], 1)
    return torch.cat([image[:, None].to(chosen), box_convert(chosen, "cxcywh", "xyxy")], 1)


def _up(wide: int, narrow: int) -> nn.Sequential:
    # Zeros beyond the border would be drawn as a frame around every sky.
    conv = nn.Conv2d(wide, narrow, 3, 1, 1, bias=False, padding_mode="replicate")
    return nn.Sequential(nn.Upsample(scale_factor=2), conv, nn.BatchNorm2d(narrow), nn.ReLU(True))


def _grow(wide: int, narrow: int) -> nn.Sequential:
    # At less than half the arithmetic of the above; an object has no border to be seen.
    conv = nn.ConvTranspose2d(wide, narrow, 4, 2, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(narrow), nn.ReLU(True))


class SceneGenerator(nn.Module):
    """Codes and a layout → a scene: a background, and into each box an object with its own opacity.

    As every object is drawn by itself and painted into its box, a scene holds what was asked for where it was asked for.
    `side` is a multiple of 16, `width` the channels of an object's first layer, twice those of a sky's, halved by each of
    the next. Codes of new scenes are drawn from normal distributions, one of skies, one of each class, which `fit_prior`
    fits to the codes of real ones and which are stored with the weights.
    """

    def __init__(self, num_classes: int, side: int, latent: int = 32, width: int = 128):
        super().__init__()
        self.num_classes, self.side, self.latent = num_classes, side, latent
        self.embed = nn.Embedding(num_classes, latent)
        start, wide = side // 16, width // 2
        self.sky = nn.Sequential(
            nn.Linear(latent, wide * start * start),
            nn.Unflatten(1, (wide, start, start)),
            nn.BatchNorm2d(wide),
            nn.ReLU(True),
            _up(wide, wide // 2),
            _up(wide // 2, wide // 4),
            _up(wide // 4, wide // 8),
        )
        # Colours at half the size, for skies are smooth; what is not comes from texture, whose strength is learned.
        self.sky_out = nn.Conv2d(wide // 8, 4, 3, 1, 1, padding_mode="replicate")
        # The broad colours come straight from the code, so that a sky begins smooth and not as a pattern.
        self.broad = nn.Sequential(
            nn.Linear(latent, 3 * start * start), nn.Unflatten(1, (3, start, start))
        )
        for layer, spread in ((self.sky_out, 0.02), (self.broad[0], 0.1)):
            nn.init.normal_(layer.weight, 0.0, spread)
            nn.init.zeros_(layer.bias)
        # Beside class and code an object knows the shape of its box, the light behind it and how large it is.
        self.thing = nn.Sequential(
            nn.Linear(2 * latent + 6, width * 16),
            nn.Unflatten(1, (width, 4, 4)),
            nn.BatchNorm2d(width),
            nn.ReLU(True),
            _grow(width, width // 2),
            _grow(width // 2, width // 4),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(width // 4, 4, 3, 1, 1),
        )
        edge = torch.minimum(torch.arange(PATCH), torch.arange(PATCH).flip(0)) + 0.5
        edge = (edge / FADE).clamp(max=1)
        self.register_buffer("fade", edge[:, None] * edge, persistent=False)
        self.register_buffer("sky_mean", torch.zeros(latent))
        self.register_buffer("sky_spread", torch.eye(latent))
        self.register_buffer("thing_mean", torch.zeros(num_classes, latent))
        self.register_buffer("thing_spread", torch.eye(latent).repeat(num_classes, 1, 1))

    def noise(
        self, count: int, objects: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Standard normal: of skies (n, L), of objects (n, M, L), of texture (n, 1, S, S)."""
        texture = count, 1, self.side, self.side
        shapes = (count, self.latent), (count, objects, self.latent), texture
        return tuple(torch.randn(*shape, generator=generator) for shape in shapes)

    @torch.no_grad()
    def fit_prior(self, skies: Normal, things: Normal, labels: Tensor) -> None:
        """Take the normal distributions of new codes from those of real skies (n, L) each, and objects (m, L) each with
        labels (m,); a class without an object keeps its own."""
        self.sky_mean, self.sky_spread = _moments(*skies)
        for label in labels.unique():
            own = _moments(*(part[labels == label] for part in things))
            self.thing_mean[label], self.thing_spread[label] = own

    def codes(
        self, labels: Tensor, sky: Tensor, things: Tensor, texture: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`noise` as the codes of scenes like those learned from, for objects of labels (B, M), -1 for none."""
        own = labels.clamp(min=0)
        moved = torch.einsum("bmij,bmj->bmi", self.thing_spread[own], things)
        return self.sky_mean + sky @ self.sky_spread.mT, self.thing_mean[own] + moved, texture

    def forward(
        self, labels: Tensor, boxes: Tensor, sky: Tensor, things: Tensor, texture: Tensor
    ) -> Tensor:
        """Layout (labels int64 (B, M), -1 for none; boxes (B, M, 4)) and `codes` → images (B, 3, S, S) in [0, 1]."""
        seen = F.interpolate(self.sky_out(self.sky(sky)).float(), scale_factor=2, mode="bilinear")
        broad = F.interpolate(self.broad(sky).float(), size=seen.shape[-2:], mode="bilinear")
        scene = (broad + seen[:, :3] + 0.1 * seen[:, 3:].exp() * texture).sigmoid()
        present = labels >= 0
        if not present.any():
            return scene
        box = boxes[present].float()
        frames = object_boxes(boxes, labels, ROOM, self.side, self.side)
        behind = roi_align(scene, frames, 1, aligned=True).flatten(1)
        size = box[:, 2:].clamp(min=1e-3)
        oblong = (box[:, 2:3] / size[:, 1:]).log()
        known = self.embed(labels[present]), things[present], size.log(), oblong, behind
        drawn = self.thing(torch.cat(known, 1)).float().sigmoid()
        drawn = torch.cat([drawn[:, :3], drawn[:, 3:] * self.fade], 1)
        painted = _placed(drawn, box, self.side)
        every = painted.new_zeros(*labels.shape, *painted.shape[1:])
        # A later object lies over an earlier one of the same scene.
        for layer in every.index_put(present.nonzero(as_tuple=True), painted).unbind(1):
            scene = scene + layer[:, 3:] * (layer[:, :3] - scene)
        return scene


def _moments(mean: Tensor, log_variance: Tensor) -> Normal:
    """Mean (L,) and Cholesky factor (L, L) of the covariance of codes from n normal distributions, (n, L) each."""
    spread = mean.mT.cov(correction=0) + log_variance.exp().mean(0).diag()
    return mean.mean(0), torch.linalg.cholesky(spread)


class SceneEncoder(nn.Module):
    """A scene and its layout → the codes from which a generator would draw it, each as a normal distribution.

    `width`: channels after the first layer for a sky, half of those for an object, doubled by each of the next two.
    """

    def __init__(self, num_classes: int, side: int, latent: int = 32, width: int = 16):
        super().__init__()
        self.num_classes = num_classes

        def layers(wide: int) -> nn.Sequential:
            return nn.Sequential(
                *_narrower(3, wide, norm=False),
                *_narrower(wide, 2 * wide),
                *_narrower(2 * wide, 4 * wide),
                nn.Flatten(),
            )

        self.sky = nn.Sequential(nn.AvgPool2d(2), layers(width))
        self.sky_code = nn.Linear(4 * width * (side // 16) ** 2, 2 * latent)
        self.thing = layers(2 * width)
        self.thing_code = nn.Linear(8 * width * (PATCH // 8) ** 2 + num_classes, 2 * latent)
        for layer in (self.sky_code, self.thing_code):
            nn.init.normal_(layer.weight, 0.0, 0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor, labels: Tensor, boxes: Tensor) -> tuple[Normal, Normal]:
        """Images (B, 3, S, S) in [0, 1] and layout → mean and log variance of skies, (B, L) each, of the n objects, (n, L)."""
        skies = tuple(self.sky_code(self.sky(2 * images - 1)).float().chunk(2, 1))
        if not (labels >= 0).any():
            return skies, tuple(part[:0] for part in skies)
        frames = object_boxes(boxes, labels, ROOM, *images.shape[-2:])
        crops = roi_align(images.float(), frames, PATCH, aligned=True)
        known = F.one_hot(labels[labels >= 0], self.num_classes).to(crops)
        things = self.thing_code(torch.cat([self.thing(2 * crops - 1).float(), known], 1)).float()
        return skies, tuple(things.chunk(2, 1))


def _narrower(before: int, after: int, norm: bool = True) -> list[nn.Module]:
    return down(before, after, 0.0, norm, bias=not norm)[:-1]


def _placed(patches: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Patches (n, 4, P, P) drawn into boxes (n, 4) of empty images: (n, 4, side, side), opacity 0 outside."""
    theta = boxes.new_zeros(len(boxes), 2, 3)
    size = (boxes[:, 2:] * ROOM).clamp(min=1 / side)
    # From places of the scene to places of the patch, both in [-1, 1].
    theta[:, 0, 0], theta[:, 1, 1] = 1 / size[:, 0], 1 / size[:, 1]
    theta[:, :, 2] = -(2 * boxes[:, :2] - 1) / size
    grid = F.affine_grid(theta, [len(boxes), 4, side, side], align_corners=False)
    return F.grid_sample(patches, grid, align_corners=False)


class SceneDiscriminator(nn.Module):
    """A scene and its layout → logits (real if positive): of the scene by parts, and of each object with its class.

    `width`: channels after the first layer of what judges objects, twice those of what judges parts, doubled by each of
    the next two, with dropout: real scenes are few.
    """

    def __init__(self, num_classes: int, width: int = 32, dropout: float = 0.25):
        super().__init__()
        self.num_classes = num_classes

        def layers(channels: int, wide: int) -> nn.Sequential:
            return nn.Sequential(
                *down(channels, wide, dropout, norm=False),
                *down(wide, 2 * wide, dropout),
                *down(2 * wide, 4 * wide, dropout),
            )

        half = width // 2
        self.scene = layers(3 + num_classes, half)
        self.scene_verdict = nn.Conv2d(4 * half, 1, 3, 1, 1)
        self.thing, self.verdict = layers(3, width), nn.Linear(64 * width, 1)
        self.embed = nn.Embedding(num_classes, 64 * width)
        self.apply(normal_weights)
        nn.init.normal_(self.embed.weight, 0.0, 0.02)

    def forward(self, images: Tensor, labels: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, S, S) in [0, 1] and layout → logits of parts (B, 1, S/8, S/8) and of the n objects (n,)."""
        height, width = images.shape[-2:]
        planes = layout_planes(labels, boxes, self.num_classes, height).to(images.dtype)
        parts = self.scene_verdict(self.scene(torch.cat([2 * images - 1, planes], 1)))
        if not (labels >= 0).any():
            return parts, parts.new_zeros(0)
        frames = object_boxes(boxes, labels, CONTEXT, height, width)
        crops = roi_align(images.float(), frames, PATCH, aligned=True)
        seen = self.thing(2 * crops - 1).flatten(1)
        # Projection discriminator (Miyato and Koyama 2018): how real by itself, and how like its class.
        return parts, self.verdict(seen).flatten() + (seen * self.embed(labels[labels >= 0])).sum(1)
