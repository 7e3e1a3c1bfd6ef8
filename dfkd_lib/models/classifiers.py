"""Vision transformers by timm's parts: the pairs of probe-guided distillation (METHODS A3), and C's ViT and DeiT."""

from itertools import pairwise

import torch
from timm.layers import PatchEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import nn


class ConvolutionalEmbed(PatchEmbed):
    """Patch tokens (B, N, width) of 3 × 3 convolutions, pairs of which halve the image until a patch is one place.

    For training from nothing on few small images. Batch norm and ReLU follow each convolution but the last; otherwise timm's.

    Source: after Xiao et al. 2021, early convolutions.
    """

    def __init__(self, img_size: int, patch_size: int, in_chans: int, embed_dim: int, **how):
        super().__init__(img_size, patch_size, in_chans, embed_dim, **how)
        halvings = patch_size.bit_length() - 1
        if 2**halvings != patch_size:
            raise ValueError(
                f"a convolutional embedding of patches of {patch_size} pixels: give a power of 2"
            )
        widths = [embed_dim >> place for place in range(halvings, -1, -1)]
        sizes = [(in_chans, widths[0], 1)]
        for before, after in pairwise(widths):
            sizes += [(before, after, 2), (after, after, 1)]
        layers: list[nn.Module] = []
        for before, after, stride in sizes:
            convolution = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(after), nn.ReLU()]
        layers[-3:] = [nn.Conv2d(sizes[-1][0], embed_dim, 3, padding=1)]
        self.proj = nn.Sequential(*layers).to(memory_format=torch.channels_last)


def build_vit(
    num_classes: int = 10,
    img_size: int = 32,
    in_chans: int = 3,
    patch_size: int = 8,
    width: int = 192,
    depth: int = 12,
    heads: int = 3,
    no_embed_class: bool = False,
    distilled: bool = False,
    convolutional: bool = False,
) -> VisionTransformer:
    """A ViT with a class token; the defaults are C's, sizes are in pixels.

    Args:
        no_embed_class: leave the class token without a position embedding.
        distilled: a DeiT, with a distillation token; in training its output is a pair of logits.
        convolutional: embed patches by `ConvolutionalEmbed`.

    Source: A Table 3 and 4; C Table 1 (columns ViT and DeiT).
    """
    model = (VisionTransformerDistilled if distilled else VisionTransformer)(
        img_size=img_size,
        patch_size=patch_size,
        in_chans=in_chans,
        num_classes=num_classes,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        no_embed_class=no_embed_class,
        embed_layer=ConvolutionalEmbed if convolutional else PatchEmbed,
    )
    if distilled:
        model.set_distilled_training(True)
    return model


_MNIST = {"patch_size": 4, "img_size": 28, "in_chans": 1, "depth": 3}
_BARE = {**_MNIST, "no_embed_class": True}
_CIFAR = {"patch_size": 4}
_CONV = {**_CIFAR, "convolutional": True}

VIT_MODELS = {
    # 9,498,122 parameters. The paper's 3 heads cannot divide its width of 512; 8 do.
    "vit_mnist_teacher": (build_vit, {**_MNIST, "width": 512, "heads": 8}),
    # 2,389,514 parameters, the paper's count; its stated width of 128 gives another.
    "deit_xtiny_patch4_28": (build_vit, {**_BARE, "width": 256, "heads": 2}),
    # 21,342,346 parameters, the paper's 21.3M.
    "deit_base_patch4_32": (build_vit, {**_CIFAR, "width": 384, "heads": 3}),
    # 12,025,450 parameters, the paper's 12.0M; its stated width of 128 is vit_cifar_student_128.
    "vit_cifar_student": (build_vit, {**_CIFAR, "width": 288, "heads": 2}),
    "vit_cifar_student_128": (build_vit, {**_CIFAR, "width": 128, "heads": 2}),
    # Relatives for two CPU cores, a fraction of the width.
    "vit_mnist_small": (build_vit, {**_MNIST, "width": 128, "heads": 4}),
    # Fewer, larger patches: a third of the tokens, and a probe on another grid than the teacher's.
    "vit_mnist_mini_patch7": (build_vit, {**_BARE, "patch_size": 7, "width": 64, "heads": 2}),
    "vit_cifar_small": (build_vit, {**_CIFAR, "width": 128, "depth": 6, "heads": 4}),
    "vit_cifar_mini": (build_vit, {**_CIFAR, "width": 64, "depth": 4, "heads": 2}),
    # At most 3M parameters, for CIFAR-10 in hours of two cores.
    "vit_cifar_conv": (build_vit, {**_CONV, "width": 192, "depth": 5, "heads": 3}),
    "vit_cifar_conv_mini": (build_vit, {**_CONV, "width": 128, "depth": 4, "heads": 2}),
    "vit_mnist_smoke": (build_vit, {**_BARE, "width": 16, "depth": 2, "heads": 2}),
}
