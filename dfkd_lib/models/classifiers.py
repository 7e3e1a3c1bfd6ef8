"""The ViT and DeiT pairs of probe-guided distillation (METHODS A3), as timm configurations."""

from torch import nn


def vit(
    width: int,
    depth: int,
    heads: int,
    patch_size: int,
    img_size: int = 28,
    in_chans: int = 1,
    num_classes: int = 10,
    no_embed_class: bool = False,
) -> nn.Module:
    """A timm VisionTransformer with a class token; no_embed_class leaves it without a position embedding."""
    from timm.models.vision_transformer import VisionTransformer

    if width % heads:
        raise ValueError(f"width {width} is not a multiple of {heads} heads")
    if img_size % patch_size:
        raise ValueError(f"image side {img_size} is not a multiple of the patch {patch_size}")
    return VisionTransformer(
        img_size=img_size,
        patch_size=patch_size,
        in_chans=in_chans,
        num_classes=num_classes,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        no_embed_class=no_embed_class,
    )


_MNIST = {"patch_size": 4, "img_size": 28, "in_chans": 1, "num_classes": 10}
_CIFAR = {"patch_size": 4, "img_size": 32, "in_chans": 3, "num_classes": 10}

VIT_MODELS = {
    # 9,498,122 parameters. The paper's 3 heads cannot divide its width of 512; 8 do.
    "vit_mnist_teacher": (vit, {"width": 512, "depth": 3, "heads": 8, **_MNIST}),
    # 2,389,514 parameters, the paper's count; its stated width of 128 gives another.
    "deit_xtiny_patch4_28": (
        vit,
        {"width": 256, "depth": 3, "heads": 2, "no_embed_class": True, **_MNIST},
    ),
    # 21,342,346 parameters, the paper's 21.3M.
    "deit_base_patch4_32": (vit, {"width": 384, "depth": 12, "heads": 3, **_CIFAR}),
    # 12,025,450 parameters, the paper's 12.0M; its stated width of 128 is vit_cifar_student_128.
    "vit_cifar_student": (vit, {"width": 288, "depth": 12, "heads": 2, **_CIFAR}),
    "vit_cifar_student_128": (vit, {"width": 128, "depth": 12, "heads": 2, **_CIFAR}),
    # Relatives for two CPU cores, a fraction of the width.
    "vit_mnist_small": (vit, {"width": 128, "depth": 3, "heads": 4, **_MNIST}),
    # Fewer, larger patches: a third of the tokens, and a probe on another grid than the teacher's.
    "vit_mnist_mini_patch7": (
        vit,
        {"width": 64, "depth": 3, "heads": 2, "no_embed_class": True, **_MNIST, "patch_size": 7},
    ),
    "vit_mnist_smoke": (
        vit,
        {"width": 16, "depth": 2, "heads": 2, "no_embed_class": True, **_MNIST},
    ),
}
