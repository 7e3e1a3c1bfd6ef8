"""Transformer in transformer with a distillation token (TITN), and the three transformers it is compared with.

TITN is timm's TNT plus a distillation token and a second head (TITN paper, section 3.2, Table 1). Inner blocks attend
over the pixel tokens within each patch, outer blocks over the patches, the class token and the distillation token.
"""

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from timm.models.tnt import TNT, Block
from torch import Tensor, nn

from dfkd_lib.models.classifiers import build_vit


class TitnBlock(Block):
    """TNT's block for two tokens beside the patches, where timm's knows one: the projected pixel tokens get a zero row at
    each end, for the class token and the distillation token (section 3.2), and are then added to all tokens."""

    def forward(self, pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        pixels = pixels + self.drop_path(self.attn_in(self.norm_in(pixels)))
        pixels = pixels + self.drop_path(self.mlp_in(self.norm_mlp_in(pixels)))
        size, length, _ = tokens.shape
        inner = self.norm2_proj(self.proj(self.norm1_proj(pixels.reshape(size, length - 2, -1))))
        tokens = tokens + F.pad(inner, (0, 0, 1, 1))
        tokens = tokens + self.drop_path(self.attn_out(self.norm_out(tokens)))
        return pixels, tokens + self.drop_path(self.mlp(self.norm_mlp(tokens)))


class TITN(TNT):
    """TNT with a distillation token, which stands last in the sequence, and a head of its own.

    In training `forward` returns (class_logits, dist_logits), each (B, num_classes); in evaluation the mean of the two,
    unless `both` says otherwise. Arguments are those of `timm.models.tnt.TNT`.

    Source: TITN paper, section 3.2 and Algorithm 1. The paper concatenates the two outputs before the probabilities and
    does not say how they are merged; the mean of the logits is DeiT's way.
    """

    num_suffix_tokens = 1  # the distillation token stands after the patches

    def __init__(self, **shape):
        super().__init__(**shape)
        self.dist_token = nn.Parameter(torch.zeros(1, 1, self.embed_dim))
        self.patch_pos = nn.Parameter(torch.zeros(1, self.num_patches + 2, self.embed_dim))
        self.head_dist = nn.Linear(self.embed_dim, self.num_classes)
        for block in self.blocks:
            block.__class__ = TitnBlock  # TNT makes its own blocks; these differ in what they compute, not in what they hold
        for weight in (self.dist_token, self.patch_pos, self.head_dist.weight):
            trunc_normal_(weight, std=0.02)
        nn.init.zeros_(self.head_dist.bias)

    def forward_features(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to normalised tokens (B, 1 + N + 1, width): class token, patches, distillation token."""
        size = images.shape[0]  # len() would fix the batch when the model is exported
        pixels = self.pixel_embed(images, self.pixel_pos)
        patches = self.norm2_proj(
            self.proj(self.norm1_proj(pixels.reshape(size, self.num_patches, -1)))
        )
        tokens = torch.cat(
            (self.cls_token.expand(size, -1, -1), patches, self.dist_token.expand(size, -1, -1)),
            dim=1,
        )
        tokens = self.pos_drop(tokens + self.patch_pos)
        for block in self.blocks:
            pixels, tokens = block(pixels, tokens)
        return self.norm(tokens)

    def forward(self, images: Tensor, both: bool | None = None) -> Tensor | tuple[Tensor, Tensor]:
        tokens = self.head_drop(self.forward_features(images))
        class_logits, dist_logits = self.head(tokens[:, 0]), self.head_dist(tokens[:, -1])
        both = self.training if both is None else both
        return (class_logits, dist_logits) if both else (class_logits + dist_logits) / 2


def build_titn(
    num_classes: int = 10,
    img_size: int = 32,
    in_chans: int = 3,
    patch_size: int = 8,
    pixel_size: int = 2,
    width: int = 192,
    pixel_width: int = 12,
    depth: int = 12,
    heads: int = 3,
    pixel_heads: int = 2,
    distilled: bool = True,
) -> TNT:
    """A TITN, or with `distilled=False` a plain TNT; sizes in pixels.

    Source: TITN paper, Table 1. The paper is silent on heads: 3 and 2 are those of the published TNT-Ti.
    """
    return (TITN if distilled else TNT)(
        img_size=img_size,
        patch_size=patch_size,
        in_chans=in_chans,
        num_classes=num_classes,
        embed_dim=width,
        inner_dim=pixel_width,
        depth=depth,
        num_heads_outer=heads,
        num_heads_inner=pixel_heads,
        first_stride=pixel_size,
    )


# The quick relatives see 28x28 grey digits: 16 patches of 7x7 (4 of 14x14), each with 4x4 pixel tokens.
SMALL = {"img_size": 28, "in_chans": 1, "patch_size": 7, "depth": 4, "small_start": True}
NARROW = {**SMALL, "width": 96}

TITN_MODELS = {
    "titn": (build_titn, {}),
    "titn_large_patch": (build_titn, {"patch_size": 16, "pixel_size": 4}),
    "tnt": (build_titn, {"distilled": False}),
    "vit_tiny_32": (build_vit, {}),
    "deit_tiny_32": (build_vit, {"distilled": True}),
    "titn_small": (build_titn, NARROW),
    "titn_small_large_patch": (build_titn, {**NARROW, "patch_size": 14, "pixel_size": 4}),
    "tnt_small": (build_titn, {**NARROW, "distilled": False}),
    "vit_small_28": (build_vit, NARROW),
    "deit_small_28": (build_vit, {**NARROW, "distilled": True}),
}
