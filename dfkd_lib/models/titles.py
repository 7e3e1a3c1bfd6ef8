"""Names of models as tables and figures for a reader write them."""

import re

FAMILIES = {
    "cnn": "CNN",
    "dearkd": "DearKD",
    "deimv2": "DEIMv2",
    "deit": "DeiT",
    "densenet": "DenseNet",
    "detr": "DETR",
    "dfine": "D-FINE",
    "dinov2": "DINOv2",
    "mobilenetv3": "MobileNetV3",
    "resnet": "ResNet",
    "rfdetr": "RF-DETR",
    "rtdetr": "RT-DETR",
    "squeezenet": "SqueezeNet",
    "swin": "Swin",
    "titn": "TITN",
    "tnt": "TNT",
    "vgg": "VGG",
    "vit": "ViT",
    "wrn": "WRN",
}
DATA = {"mnist": "MNIST", "cifar": "CIFAR", "conv": "convolutional", "bn": "BN", "2x2": "2 × 2"}
SIDES = (28, 32, 64, 96, 112, 160, 192, 224, 240, 256, 288, 336, 384, 448, 512)  # in pixels
DEPTH = re.compile(r"([a-z]+?)(\d+)")


def display_name(name: str) -> str:
    """A classifier or detector as a reader is told of it: "ViT MNIST mini, patch 7" of vit_mnist_mini_patch7.

    The tag of weights that timm's names have behind a dot stands in brackets.
    """
    architecture, _, tag = name.partition(".")
    parts, shown, more = architecture.split("_"), "", []
    for place, part in enumerate(parts):
        family, depth = found.groups() if (found := DEPTH.fullmatch(part)) else (part, "")
        last = place == len(parts) - 1
        if family == "patch" and depth:
            more.append(f"patch {depth}")
        elif part.isdigit() and last and int(part) in SIDES and parts[:2] != ["vit", "cifar"]:
            more.append(f"{part} px")
        elif part.isdigit():
            shown += f"-{part}"
        elif part in FAMILIES:
            shown += f" {FAMILIES[part]}"
        elif family in FAMILIES and depth:
            shown += f" {FAMILIES[family]}-{depth}"
        else:
            shown += f" {DATA.get(part, part)}"
    shown = shown.strip()
    title = ", ".join([shown[:1].upper() + shown[1:], *more])
    return f"{title} ({tag})" if tag else title
