"""A generator of scenes for a layout of classes and boxes, and its discriminator (METHODS A4)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_convert, roi_align

from dfkd_lib.models.gan import down, normal_weights

PATCH = 32  # side in pixels at which an object is drawn and judged
ROOM = 1.25  # the patch of an object reaches so far beyond its box: outlines are soft
CONTEXT = 1.25  # an object is judged with so much of what is around it


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


class SceneGenerator(nn.Module):
    """Noise and a layout → a scene: a background, and into each box an object with its own opacity.

    As every object is drawn by itself and painted into its box, a scene holds what was asked for where it was asked for,
    whatever the adversarial game has come to; what the game decides is how it looks. `side` is a multiple of 16, `width`
    the channels of the first layers, halved by each of the next.
    """

    def __init__(self, num_classes: int, side: int, latent: int = 32, width: int = 128):
        super().__init__()
        self.num_classes, self.side, self.latent = num_classes, side, latent
        self.embed = nn.Embedding(num_classes, latent)
        start = side // 16
        self.sky = nn.Sequential(
            nn.Linear(latent, width * start * start),
            nn.Unflatten(1, (width, start, start)),
            nn.BatchNorm2d(width),
            nn.ReLU(True),
            _up(width, width // 2),
            _up(width // 2, width // 4),
            _up(width // 4, width // 8),
        )
        # Colours at half the size, for skies are smooth; what is not comes from texture, whose strength is learned.
        self.sky_out = nn.Sequential(
            nn.Conv2d(width // 8, 4, 3, 1, 1, padding_mode="replicate"),
            nn.Upsample(scale_factor=2, mode="bilinear"),
        )
        # Beside class and noise an object knows the shape of its box, the light behind it and how large it is.
        self.thing = nn.Sequential(
            nn.Linear(2 * latent + 6, width * 16),
            nn.Unflatten(1, (width, 4, 4)),
            nn.BatchNorm2d(width),
            nn.ReLU(True),
            _up(width, width // 2),
            _up(width // 2, width // 4),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(width // 4, 4, 3, 1, 1),
        )

    def noise(
        self, count: int, objects: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What `forward` wants beside a layout: noise of skies (n, L), of objects (n, M, L), of texture (n, 1, S, S)."""
        texture = count, 1, self.side, self.side
        shapes = (count, self.latent), (count, objects, self.latent), texture
        return tuple(torch.randn(*shape, generator=generator) for shape in shapes)

    def forward(
        self, labels: Tensor, boxes: Tensor, sky: Tensor, things: Tensor, texture: Tensor
    ) -> Tensor:
        """Layout (labels int64 (B, M), -1 for none; boxes (B, M, 4)) and `noise` → images (B, 3, S, S) in [0, 1]."""
        seen = self.sky_out(self.sky(sky)).float()
        scene = (seen[:, :3] + 0.1 * seen[:, 3:].exp() * texture).sigmoid()
        present = labels >= 0
        if not present.any():
            return scene
        image, place = present.nonzero(as_tuple=True)
        box = boxes[present].float()
        frames = object_boxes(boxes, labels, ROOM, self.side, self.side)
        behind = roi_align(scene, frames, 1, aligned=True).flatten(1)
        size = box[:, 2:].clamp(min=1e-3)
        oblong = (box[:, 2:3] / size[:, 1:]).log()
        known = self.embed(labels[present]), things[present], size.log(), oblong, behind
        drawn = self.thing(torch.cat(known, 1)).float().sigmoid()
        painted = _placed(drawn, box, self.side)
        # A later object lies over an earlier one of the same scene.
        for turn in range(labels.shape[1]):
            rows = place == turn
            if rows.any():
                colour, cover = painted[rows, :3], painted[rows, 3:]
                mixed = scene[image[rows]] * (1 - cover) + colour * cover
                scene = scene.index_put((image[rows],), mixed)
        return scene


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

    `width`: channels after the first layer, doubled by each of the next two, with dropout: real scenes are few.
    """

    def __init__(self, num_classes: int, width: int = 32, dropout: float = 0.25):
        super().__init__()
        self.num_classes = num_classes

        def layers(channels: int) -> nn.Sequential:
            return nn.Sequential(
                *down(channels, width, dropout, norm=False),
                *down(width, 2 * width, dropout),
                *down(2 * width, 4 * width, dropout),
            )

        self.scene, self.scene_verdict = layers(3 + num_classes), nn.Conv2d(4 * width, 1, 3, 1, 1)
        self.thing, self.verdict = layers(3), nn.Linear(64 * width, 1)
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
