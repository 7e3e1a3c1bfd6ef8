"""Vision transformers by timm's parts: the pairs of probe-guided distillation (METHODS A3), and C's ViT and DeiT."""

from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer

from dfkd_lib.models.starts import start_small


def check_shape(img_size: int, patch_size: int, width: int, heads: int) -> None:
    """ValueError unless patches fill the image and heads the width; sizes in pixels."""
    if img_size % patch_size:
        raise ValueError(f"image side {img_size} is not a multiple of the patch {patch_size}")
    if width % heads:
        raise ValueError(f"width {width} is not a multiple of {heads} heads")


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
    small_start: bool = False,
) -> VisionTransformer:
    """A ViT with a class token; the defaults are C's.

    Args:
        num_classes: K.
        img_size: side in pixels.
        in_chans: channels of the images.
        patch_size: side in pixels.
        width: of the tokens.
        depth: number of blocks.
        heads: of each block.
        no_embed_class: leave the class token without a position embedding.
        distilled: a DeiT, with a distillation token; in training its output is a pair of logits.
        small_start: see `start_small`.

    Raises:
        ValueError: if patches do not fill the image, or heads the width.

    Source: A Table 3 and 4; C Table 1 (columns ViT and DeiT).
    """
    check_shape(img_size, patch_size, width, heads)
    model = (VisionTransformerDistilled if distilled else VisionTransformer)(
        img_size=img_size,
        patch_size=patch_size,
        in_chans=in_chans,
        num_classes=num_classes,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        no_embed_class=no_embed_class,
    )
    if distilled:
        model.set_distilled_training(True)
    return start_small(model) if small_start else model


_MNIST = {"patch_size": 4, "img_size": 28, "in_chans": 1, "num_classes": 10}
_CIFAR = {"patch_size": 4, "img_size": 32, "in_chans": 3, "num_classes": 10}

VIT_MODELS = {
    # 9,498,122 parameters. The paper's 3 heads cannot divide its width of 512; 8 do.
    "vit_mnist_teacher": (build_vit, {"width": 512, "depth": 3, "heads": 8, **_MNIST}),
    # 2,389,514 parameters, the paper's count; its stated width of 128 gives another.
    "deit_xtiny_patch4_28": (
        build_vit,
        {"width": 256, "depth": 3, "heads": 2, "no_embed_class": True, **_MNIST},
    ),
    # 21,342,346 parameters, the paper's 21.3M.
    "deit_base_patch4_32": (build_vit, {"width": 384, "depth": 12, "heads": 3, **_CIFAR}),
    # 12,025,450 parameters, the paper's 12.0M; its stated width of 128 is vit_cifar_student_128.
    "vit_cifar_student": (build_vit, {"width": 288, "depth": 12, "heads": 2, **_CIFAR}),
    "vit_cifar_student_128": (build_vit, {"width": 128, "depth": 12, "heads": 2, **_CIFAR}),
    # Relatives for two CPU cores, a fraction of the width.
    "vit_mnist_small": (build_vit, {"width": 128, "depth": 3, "heads": 4, **_MNIST}),
    # Fewer, larger patches: a third of the tokens, and a probe on another grid than the teacher's.
    "vit_mnist_mini_patch7": (
        build_vit,
        {"width": 64, "depth": 3, "heads": 2, "no_embed_class": True, **_MNIST, "patch_size": 7},
    ),
    "vit_mnist_smoke": (
        build_vit,
        {"width": 16, "depth": 2, "heads": 2, "no_embed_class": True, **_MNIST},
    ),
}
