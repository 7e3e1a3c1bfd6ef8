"""DearKD's student: early blocks that can express a convolution, then plain transformer blocks with a token or two more.

The early attention is ConViT's gated positional self-attention (timm's GPSA): each head mixes, by a learned gate, what
the tokens say with where they stand. The source at hand is a summary; where it is silent this follows ConViT: the class
token and the distillation token, which have no place on the grid, join after the convolutional blocks.
"""

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm, PatchEmbed, trunc_normal_
from timm.models.convit import Block as ConvolutionalBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from dfkd_lib.models.classifiers import build_vit
from dfkd_lib.models.titn import SMALL


class DearKD(nn.Module):
    """Vision transformer with convolutional attention in its first blocks, a class token and maybe a distillation token.

    The default has DeiT-Ti's depth and, to the nearest 9 heads, its width. In training `forward` returns (class_logits,
    dist_logits), each (B, num_classes); in evaluation the mean of the two, unless `both` gives the form. Without a
    distillation token it returns class_logits always.

    Args:
        heads: attention heads, a square k*k, so that the early blocks start as k x k convolutions.
        early_depth: number of convolutional blocks, of `depth` in all. The source at hand gives none; half of them are as
            many as `distill.early_tokens` takes for early in a plain transformer.
        distilled: with a distillation token and a head of its own.

    Source: DearKD (CVPR 2022), stage 1; ConViT (arXiv 2103.10697), section 3, for the attention.
    """

    def __init__(
        self,
        num_classes: int = 10,
        img_size: int = 32,
        in_chans: int = 3,
        patch_size: int = 4,
        width: int = 198,
        depth: int = 12,
        heads: int = 9,
        early_depth: int = 6,
        distilled: bool = True,
    ):
        super().__init__()
        if round(heads**0.5) ** 2 != heads or not 0 <= early_depth <= depth:
            raise ValueError(
                f"{heads} heads are no square number, or {early_depth} early blocks not within {depth}"
            )
        self.num_classes, self.embed_dim = num_classes, width
        self.num_prefix_tokens = 1 + distilled
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, width)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.patch_embed.num_patches, width))
        self.early_blocks = nn.ModuleList(
            ConvolutionalBlock(width, heads) for _ in range(early_depth)
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, width)) if distilled else None
        self.blocks = nn.ModuleList(
            Block(width, heads, qkv_bias=True) for _ in range(depth - early_depth)
        )
        self.norm = LayerNorm(width)
        self.head = nn.Linear(width, num_classes)
        self.head_dist = nn.Linear(width, num_classes) if distilled else None
        self._initialise()

    def _initialise(self) -> None:
        for weight in filter(torch.is_tensor, (self.pos_embed, self.cls_token, self.dist_token)):
            trunc_normal_(weight, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for block in self.early_blocks:
            block.attn.local_init()

    def forward_early(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to the patch tokens (B, N, width) that leave the convolutional blocks."""
        tokens = self.patch_embed(images) + self.pos_embed
        for block in self.early_blocks:
            tokens = block(tokens)
        return tokens

    def forward_late(self, tokens: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Early patch tokens (B, N, width) to (class_logits, dist_logits), each (B, num_classes), or the first alone."""
        size = tokens.shape[0]  # len() would fix the batch when the model is exported
        own = (self.cls_token,) if self.dist_token is None else (self.cls_token, self.dist_token)
        tokens = torch.cat((torch.cat(own, dim=1).expand(size, -1, -1), tokens), dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        if self.head_dist is None:
            return self.head(tokens[:, 0])
        return self.head(tokens[:, 0]), self.head_dist(tokens[:, 1])

    def forward(self, images: Tensor, both: bool | None = None) -> Tensor | tuple[Tensor, Tensor]:
        logits = self.forward_late(self.forward_early(images))
        both = self.training if both is None else both
        return logits if both or self.head_dist is None else (logits[0] + logits[1]) / 2


class EarlyAligner(nn.Module):
    """Student tokens (of `width`) to a CNN's early feature map (of `channels`): 2-D map, resized, two small convolutions.

    Source: DearKD, stage 1 (tokens -> map -> small convolutional aligner). It is thrown away after stage 1.
    """

    def __init__(self, width: int, channels: int):
        super().__init__()
        self.mix = nn.Sequential(
            nn.Conv2d(width, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.GELU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Tokens (B, N, width), N a square, to (B, channels, *size)."""
        side = round(tokens.shape[1] ** 0.5)
        grid = tokens.transpose(1, 2).unflatten(2, (side, side))
        if grid.shape[2:] != tuple(size):
            grid = F.interpolate(grid, size=size, mode="bilinear", align_corners=False)
        return self.mix(grid)


NARROW = {**SMALL, "width": 72, "heads": 9}

DEARKD_MODELS = {
    "dearkd_tiny_32": (DearKD, {}),
    "dearkd_small": (DearKD, {**NARROW, "early_depth": 2}),
    # What DearKD is measured against: the same width, depth and heads, without its attention and without distillation.
    "dearkd_baseline_32": (build_vit, {"patch_size": 4, "width": 198, "heads": 9}),
    "dearkd_baseline_small": (build_vit, NARROW),
}
