"""The pairs of CNNs that the field measures data-free distillation on, for 32 × 32 images: ResNets and wide ResNets."""

from timm.models import resnet
from torch import Tensor, nn

from dfkd_lib.models.cnn import Staged, check_side


def build_resnet(
    depth: int, num_classes: int = 10, img_size: int = 32, in_chans: int = 3
) -> nn.Module:
    """timm's ResNet of that depth with a first convolution of 3 × 3 and without its pooling; `img_size` is checked only.

    Source: He et al. (CVPR 2016); the stem is the one that all who report ResNet-34 → ResNet-18 on CIFAR use.
    """
    check_side(img_size, 8)
    build = {18: resnet.resnet18, 34: resnet.resnet34}[depth]
    model = build(pretrained=False, num_classes=num_classes, in_chans=in_chans)
    model.conv1 = nn.Conv2d(in_chans, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model


class WideResNet(Staged):
    """WRN-depth-width: a convolution, three stages of (depth − 4) / 6 blocks with 16, 32, 64 times `width` channels.

    Raises:
        ValueError: on a depth that is not 6 n + 4, or images below 4 pixels.

    Source: Zagoruyko and Komodakis, Wide Residual Networks (BMVC 2016), Table 1; without dropout.
    """

    def __init__(
        self,
        depth: int = 16,
        width: int = 1,
        num_classes: int = 10,
        img_size: int = 32,
        in_chans: int = 3,
    ):
        super().__init__()
        check_side(img_size, 4)
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth {depth}, which is not 6 n + 4: 10, 16, 22, 28, 34, 40, …")
        self.num_classes = num_classes
        widths = (16, 16 * width, 32 * width, 64 * width)
        self.stages = nn.ModuleList([nn.Conv2d(in_chans, 16, 3, padding=1, bias=False)])
        for number, (before, after) in enumerate(zip(widths, widths[1:], strict=False)):
            stride = 2 if number else 1
            rows = [_Block(before, after, stride)]
            rows += [_Block(after, after, 1) for _ in range(blocks - 1)]
            self.stages.append(nn.Sequential(*rows))
        self.norm = nn.BatchNorm2d(widths[-1])
        self.head = nn.Linear(widths[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def finished(self, features: Tensor) -> Tensor:
        return self.norm(features).relu()


class _Block(nn.Module):
    """Norm, ReLU, convolution, twice; the way round it starts behind the first ReLU where the channels change."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(before), nn.BatchNorm2d(after)
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.round = None if before == after else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.norm1(x).relu()
        around = x if self.round is None else self.round(seen)
        return around + self.conv2(self.norm2(self.conv1(seen)).relu())


_COLOUR = {"num_classes": 10, "img_size": 32, "in_chans": 3}
PEER_MODELS = {
    "resnet34_32": (build_resnet, {"depth": 34, **_COLOUR}),
    "resnet18_32": (build_resnet, {"depth": 18, **_COLOUR}),
    "wrn_40_2": (WideResNet, {"depth": 40, "width": 2, **_COLOUR}),
    "wrn_16_2": (WideResNet, {"depth": 16, "width": 2, **_COLOUR}),
    "wrn_16_1": (WideResNet, {"depth": 16, "width": 1, **_COLOUR}),
}
