"""Convolutional teachers that show their early feature maps: those of timm, and small relatives for quick runs.

Ours follow timm's shape: `forward_intermediates(images, indices=[i])` gives (last features, [map of stage i]), and
`forward_head(last features)` the logits; stage i is cut before its pooling.
"""

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def check_side(img_size: int, least: int) -> None:
    """ValueError on images of fewer pixels than a CNN's poolings need."""
    if img_size < least:
        fix = f"at least {least}, or a smaller model (cnn_small)"
        raise ValueError(f"{img_size} pixels, of which poolings leave nothing: {fix}")


class Staged(nn.Module):
    """A CNN whose `stages` follow each other, and whose `head` reads the mean of what `finished` makes of the last."""

    stages: nn.ModuleList
    head: nn.Module

    def finished(self, features: Tensor) -> Tensor:
        """The last stage's map as the head reads it."""
        return features

    def forward_intermediates(
        self, images: Tensor, indices: list[int]
    ) -> tuple[Tensor, list[Tensor]]:
        """Last features (B, C, h, w), and the maps of the stages named, in rising order."""
        maps = []
        for stage in self.stages:
            images = stage(images)
            maps.append(images)
        return self.finished(images), [maps[index] for index in sorted(indices)]

    def forward_head(self, features: Tensor) -> Tensor:
        """Logits (B, num_classes) of the last features."""
        return self.head(features.mean((2, 3)))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_intermediates(images, [])[0])


class SmallCNN(Staged):
    """Stages of two 3x3 convolutions with batch norm and ReLU, max pooling between them, mean pooling at the end.

    Stage i has widths[i] channels at img_size / 2**i pixels; img_size is checked only, the weights do not depend on it.
    """

    def __init__(
        self,
        num_classes: int = 10,
        img_size: int = 28,
        in_chans: int = 1,
        widths: tuple[int, ...] = (16, 32, 64),
    ):
        super().__init__()
        check_side(img_size, 2 ** (len(widths) - 1))
        self.num_classes = num_classes
        inputs = (in_chans, *widths[:-1])
        self.stages = nn.ModuleList(
            (_Pooled if place else nn.Sequential)(
                _convolution(before, width), _convolution(width, width)
            )
            for place, (before, width) in enumerate(zip(inputs, widths, strict=True))
        )
        self.head = nn.Linear(widths[-1], num_classes)


class _Pooled(nn.Sequential):
    """Layers behind max pooling."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(F.max_pool2d(images, 2))


class SmallResNet(Staged):
    """A plain residual network of 2.5M for 32 × 32 photographs: the ceiling that transformers are measured by.

    A convolution, then stages of a convolution, pooling and a residual pair; stage i has widths[i] channels at
    img_size / 2**i pixels. Few channels where there are many pixels: on a processor it trains 1.7 times as fast as with
    widths of 64, 128 and 256.
    """

    def __init__(
        self,
        num_classes: int = 10,
        img_size: int = 32,
        in_chans: int = 3,
        widths: tuple[int, ...] = (32, 64, 192, 256),
    ):
        super().__init__()
        check_side(img_size, 2 ** (len(widths) - 1))
        self.num_classes = num_classes
        stages = [_convolution(in_chans, widths[0]), *map(_Residual, widths, widths[1:])]
        self.stages = nn.ModuleList(stages).to(memory_format=torch.channels_last)
        self.head = nn.Linear(widths[-1], num_classes)

    def forward_head(self, features: Tensor) -> Tensor:
        return self.head(features.amax((2, 3)))


class _Residual(nn.Module):
    def __init__(self, before: int, after: int):
        super().__init__()
        self.enter = nn.Sequential(_convolution(before, after), nn.MaxPool2d(2))
        self.pair = nn.Sequential(_convolution(after, after), _convolution(after, after))

    def forward(self, images: Tensor) -> Tensor:
        entered = self.enter(images)
        return entered + self.pair(entered)


def _convolution(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()
    )


def logits_and_early_map(model: nn.Module, images: Tensor, stage: int) -> tuple[Tensor, Tensor]:
    """Logits (B, num_classes) and the feature map (B, C, h, w) of an early stage, in one pass.

    Source: DearKD's distillation from early intermediate layers of a CNN.
    """
    features, (early,) = model.forward_intermediates(images, indices=[stage])
    return model.forward_head(features), early


def early_channels(model: nn.Module, stage: int, img_size: int, in_chans: int) -> int:
    """Channels of the map that `logits_and_early_map` returns for that stage."""
    was_training, blank = model.training, torch.zeros(1, in_chans, img_size, img_size)
    with torch.no_grad():
        early = logits_and_early_map(model.eval(), blank.to(next(model.parameters())), stage)[1]
    model.train(was_training)
    return early.shape[1]


def build_timm(
    architecture: str, num_classes: int = 10, img_size: int = 32, in_chans: int = 3
) -> nn.Module:
    """A CNN of timm by its name there, untrained, for small images: the teachers that C Table 2 chooses from."""
    check_side(img_size, 32)
    return timm.create_model(architecture, num_classes=num_classes, in_chans=in_chans)


def build_squeezenet(num_classes: int = 10, img_size: int = 32, in_chans: int = 3) -> nn.Module:
    """torchvision's SqueezeNet 1.0, untrained: the one teacher of C Table 2 that timm has not."""
    from torchvision.models import squeezenet1_0  # slow to import

    check_side(img_size, 32)
    model = squeezenet1_0(num_classes=num_classes)
    if in_chans != 3:
        model.features[0] = nn.Conv2d(in_chans, 96, 7, 2)
        nn.init.kaiming_uniform_(model.features[0].weight)
        nn.init.zeros_(model.features[0].bias)
    return model


CNN_MODELS = {
    "densenet121_32": (build_timm, {"architecture": "densenet121"}),
    "mobilenetv3_32": (build_timm, {"architecture": "mobilenetv3_large_100"}),
    "resnet50_32": (build_timm, {"architecture": "resnet50"}),
    "wide_resnet50_32": (build_timm, {"architecture": "wide_resnet50_2"}),
    "squeezenet_32": (build_squeezenet, {}),
    "vgg16_32": (build_timm, {"architecture": "vgg16"}),
    "vgg19_32": (build_timm, {"architecture": "vgg19"}),
    # 134,309,962 parameters for 10 classes: the teacher of the TITN paper.
    "vgg16_bn": (build_timm, {"architecture": "vgg16_bn"}),
    "cnn_small": (SmallCNN, {}),
    # 2,494,890 parameters, 5 MB in float16.
    "resnet11": (SmallResNet, {}),
    # 3,620,938 parameters, 7 MB in float16.
    "resnet11_wide": (SmallResNet, {"widths": (64, 128, 256, 256)}),
}
