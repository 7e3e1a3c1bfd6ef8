"""D-FINE, DEIMv2, RT-DETR and RF-DETR: deformable attention, trained by their own losses, all but RF-DETR with denoising.

Networks, matching, denoising and losses are transformers' own. The sizes are the published ones; the smallest DEIMv2s
learn, as their authors have it, without the losses of D-FINE's distributions, and RF-DETR without dropout. Norms of the
backbone learn as all others do, from published weights too (their authors freeze none at these sizes).
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfkd_lib.models.detector import Detections, Detector

STRIDE = 32  # of the coarsest scale; each other one has half of the one after it


@dataclass(frozen=True)
class RealTime:
    """Shape of a detector: the family's name in transformers, its configuration, its backbone's, its published weights."""

    family: str
    sizes: dict
    backbone: dict = field(default_factory=dict)
    hub: str = ""
    full: ClassVar[bool] = False  # no backbone of timm's

    def network(self, num_labels: int) -> nn.Module:
        """transformers' network of that shape, untrained, nothing downloaded."""
        import transformers

        kind = getattr(transformers, f"{self.family}Config")
        name = "freeze_backbone_batch_norms"
        norms = {name: False} if hasattr(kind, name) else {}
        config = kind(num_labels=num_labels, backbone_config=self.backbone, **norms, **self.sizes)
        return getattr(transformers, f"{self.family}ForObjectDetection")(config)

    def detector(self, num_labels: int, frozen: bool = False) -> "RealTimeDetector":
        """An untrained detector of that shape."""
        kind = SquareDetector if self.family == "RfDetr" else RealTimeDetector
        return kind(self.network(num_labels), num_labels)


def _hgnet(outputs: list[int], kernels: list[int], blocks: list[int], out: list[int]) -> dict:
    """The small HGNetV2s: one for D-FINE N, of fewer stages for DEIMv2."""
    count = len(outputs)
    return {
        "model_type": "hgnet_v2",
        "stem_channels": [3, 16, 16],
        "stage_in_channels": [16, 64, 256, 512][:count],
        "stage_mid_channels": [16, 32, 64, 128][:count],
        "stage_out_channels": outputs,
        "stage_num_blocks": blocks,
        "stage_downsample": [False, True, True, True][:count],
        "stage_light_block": [False, False, True, True][:count],
        "stage_kernel_size": kernels,
        "stage_numb_of_layers": [3] * count,
        "hidden_sizes": outputs,
        "depths": [3] * count,
        "use_learnable_affine_block": True,
        "out_indices": out,
    }


def _lite(width: int, hidden: int, queries: int, channels: int) -> dict:
    """DEIMv2 with the light encoder over one map of the backbone."""
    return {
        "encoder_type": "lite",
        "encoder_layers": 0,
        "encoder_hidden_dim": width,
        "encoder_in_channels": [channels],
        "feat_strides": [16],
        "depth_mult": 0.5,
        "hidden_expansion": 0.34,
        "d_model": width,
        "decoder_ffn_dim": hidden,
        "decoder_layers": 3,
        "decoder_in_channels": [width, width],
        "decoder_activation_function": "silu",
        "num_feature_levels": 2,
        "decoder_n_points": [4, 2],
        "num_queries": queries,
        "share_bbox_head": True,
        "use_gateway": False,
        "focal_loss_gamma": 1.5,
        "weight_loss_fgl": 0.0,
        "weight_loss_ddf": 0.0,
        "use_dense_one_to_one": False,
    }


_DFINE_N = {
    "encoder_hidden_dim": 128,
    "encoder_in_channels": [512, 1024],
    "encoder_ffn_dim": 512,
    "encode_proj_layers": [1],
    "feat_strides": [16, 32],
    "depth_mult": 0.5,
    "hidden_expansion": 0.34,
    "d_model": 128,
    "decoder_ffn_dim": 512,
    "decoder_layers": 3,
    "decoder_in_channels": [128, 128],
    "num_feature_levels": 2,
    "decoder_n_points": [6, 6],
}
_R18 = {"encoder_in_channels": [128, 256, 512], "hidden_expansion": 0.5, "decoder_layers": 3}
_RESNET18 = {
    "model_type": "rt_detr_resnet",
    "layer_type": "basic",
    "hidden_sizes": [64, 128, 256, 512],
    "depths": [2, 2, 2, 2],
    "out_indices": [2, 3, 4],
}

_HGNET_N = _hgnet([64, 256, 512, 1024], [3, 3, 5, 5], [1, 1, 2, 1], [3, 4])
_RFDETR_N = {"decoder_layers": 2, "decoder_n_points": 2, "dropout": 0.0}
_WINDOWED_S = {
    "model_type": "rf_detr_dinov2",
    "hidden_size": 384,
    "num_attention_heads": 6,
    "image_size": 384,
    "patch_size": 16,
    "num_windows": 2,
    "out_features": ["stage3", "stage6", "stage9", "stage12"],
}

REALTIME = {
    "dfine_nano": RealTime("DFine", _DFINE_N, _HGNET_N, "ustc-community/dfine-nano-coco"),
    # DEIMv2's authors publish all sizes in a format of their own; this one is there in transformers' too.
    "deimv2_nano": RealTime(
        "Deimv2", _DFINE_N, _HGNET_N, "harshaljanjani/DEIMv2_HGNetv2_N_COCO_Transformers"
    ),
    "deimv2_pico": RealTime(
        "Deimv2",
        _lite(112, 320, 200, 512),
        _hgnet([64, 256, 512], [3, 3, 5], [1, 1, 2], [3]),
    ),
    "deimv2_atto": RealTime(
        "Deimv2",
        _lite(64, 160, 100, 256),
        _hgnet([64, 256, 256], [3, 3, 3], [1, 1, 1], [3]),
    ),
    "rtdetr_r18": RealTime("RTDetr", _R18, _RESNET18, "PekingU/rtdetr_r18vd"),
    "rtdetr_v2_r18": RealTime("RTDetrV2", _R18, _RESNET18, "PekingU/rtdetr_v2_r18vd"),
    "rfdetr_nano": RealTime("RfDetr", _RFDETR_N, _WINDOWED_S, "Roboflow/rf-detr-nano"),
}


class RealTimeDetector(Detector):
    """A D-FINE, DEIMv2 or RT-DETR, or what RF-DETR shares with these.

    They take pixels in [0, 1] as they are. An image is enlarged (bilinear) until its sides are multiples of 32 and its
    tokens no fewer than the queries, which are chosen among them. The heads know no "no object": its column, which every
    detector here has, is minus the logit of the likeliest class, so that its probability is 1 - that of this class.
    """

    @property
    def projection(self) -> nn.Module:
        model = self.network.model
        lite = getattr(model.config, "encoder_type", "") == "lite"
        return model.encoder.input_proj[-1] if lite else model.encoder_input_proj[-1]

    @property
    def density(self) -> float:
        """Tokens a pixel, of all scales."""
        scales = range(self.network.config.num_feature_levels)
        return sum(4**scale for scale in scales) / STRIDE**2

    def forward(
        self,
        images: Tensor,
        earlier: bool = False,
        objects: tuple[Tensor, Tensor] | None = None,
    ) -> Detections:
        """Detect in images, float (B, 3, H, W) in [0, 1].

        Args:
            earlier: the predictions of earlier decoder layers too; D-FINE and DEIMv2 make them in training mode alone,
                and one before the first layer.
            objects: to learn from: labels int64 (B, M), -1 for none, and boxes (B, M, 4) cxcywh in [0, 1]. The result
                has `own` then, transformers' loss of this network; in training mode noisy objects (of RF-DETR: groups of
                more queries) are queries besides.
        """
        labels = objects and [
            {"class_labels": names[names >= 0], "boxes": boxes[names >= 0]}
            for names, boxes in zip(*objects, strict=True)
        ]
        pixels = self.pixels(images).contiguous(memory_format=torch.channels_last)
        output = self.network(pixel_values=pixels, labels=labels)
        logits, boxes = (part.float() for part in self.answers(output))
        logits = torch.cat([logits, -logits.amax(-1, keepdim=True)], -1)
        *before, last = zip(logits.unbind(1), boxes.clamp(0, 1).unbind(1), strict=True)
        return Detections(*last, tuple(before) if earlier else (), output.loss)

    def answers(self, output) -> tuple[Tensor, Tensor]:
        """Logits (B, L, Q, K) and boxes (B, L, Q, 4) of all layers in what the network gives, of its own queries alone."""
        every = output.intermediate_logits, output.intermediate_reference_points
        return tuple(part[:, :, -self.num_queries :] for part in every)

    def pixels(self, images: Tensor) -> Tensor:
        """The images (B, 3, H, W) in [0, 1] as the network takes them."""
        size = self.input_size(*map(int, images.shape[-2:]))
        if size == tuple(images.shape[-2:]):
            return images
        return F.interpolate(images, size, mode="bilinear", align_corners=False)

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """The size at which the network sees images of that height and width."""
        factor = max(1.0, (self.num_queries / (height * width * self.density)) ** 0.5)
        high, wide = (-(-side * factor // STRIDE) * STRIDE for side in (height, width))
        return int(high), int(wide)


class SquareDetector(RealTimeDetector):
    """An RF-DETR: a windowed DINOv2 whose windows fit square images alone, so that every image is stretched to a square.

    Pixels have DINOv2's mean and deviation. Trained from groups of queries, it answers by the first.
    """

    density = 1 / 16**2

    @property
    def projection(self) -> nn.Module:
        return self.network.model.backbone.projector

    def forward(
        self,
        images: Tensor,
        earlier: bool = False,
        objects: tuple[Tensor, Tensor] | None = None,
    ) -> Detections:
        config, groups = self.network.config, self.network.config.group_detr
        # transformers' loss looks for all groups where an evaluated network has one.
        config.group_detr = groups if self.training else 1
        try:
            return super().forward(images, earlier, objects)
        finally:
            config.group_detr = groups

    def answers(self, output) -> tuple[Tensor, Tensor]:
        every = output.intermediate_hidden_states, output.intermediate_reference_points
        own = (part[:, :, : self.num_queries] for part in every)
        logits, boxes = self.network.predict_class_and_boxes(*own)
        return logits.transpose(0, 1), boxes.transpose(0, 1)

    def pixels(self, images: Tensor) -> Tensor:
        return (super().pixels(images) - self.mean) / self.std

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        side = max(height, width)
        return super().input_size(side, side)
