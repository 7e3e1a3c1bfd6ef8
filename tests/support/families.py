"""Families of vision transformers and DETRs, tiny and without weights, and what attention gives of each."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import timm
import torch
import transformers
from eager import fused, sharpen
from torch import Tensor, nn

from dfkd_lib import attention
from dfkd_lib.core import WorkbenchError
from dfkd_lib.models import REALTIME, Detector, create_detector

TINY = {"embed_dim": 48, "depth": 2, "num_heads": 3}
POOLED = {"class_token": False, "global_pool": "avg"}
# In timm: name, side of its images, overrides.
TIMM = {
    "ViT": ("vit_tiny_patch16_224", 64, TINY),
    "ViT without class token": ("vit_tiny_patch16_224", 64, {**TINY, **POOLED}),
    "DeiT, distilled": ("deit_tiny_distilled_patch16_224", 64, TINY),
    "DINOv2 with registers": ("vit_small_patch14_reg4_dinov2", 56, TINY),
    "DINOv3": ("vit_small_patch16_dinov3", 64, TINY),
    "EVA-02": ("eva02_tiny_patch14_224", 56, TINY),
    "NaFlexViT": ("naflexvit_base_patch16_gap", 64, TINY),
    "CLIP's tower": ("vit_base_patch16_clip_224", 64, TINY),
    "SigLIP's tower": ("vit_base_patch16_siglip_224", 64, TINY),
    "CaiT": ("cait_xxs24_224", 64, TINY),
    "XCiT": ("xcit_nano_12_p16_224", 64, {"depth": 2}),
    "Swin": ("swin_tiny_patch4_window7_224", 56, {"embed_dim": 24, "depths": (1, 1, 1, 1)}),
    "PiT, distilled": ("pit_ti_distilled_224", 224, {}),
    "LeViT": ("levit_128s", 128, {}),
    "MaxViT": ("maxvit_pico_rw_256", 64, {}),
    "DaViT": ("davit_tiny", 64, {"depths": (1, 1, 1, 1), "embed_dims": (24, 48, 96, 192)}),
}
# Beside those of the guide's table, for what a single module may do besides.
VARIANTS = {
    "normalised queries and keys": ("vit_tiny_patch16_224", 64, {**TINY, "qk_norm": True}),
    "DeiT III": ("deit3_small_patch16_224", 64, TINY),
    "relative position bias": ("vit_relpos_small_patch16_224", 64, TINY),
    "BEiT": ("beit_base_patch16_224", 64, TINY),
    "rotary positions": ("vit_small_patch16_rope_224", 64, TINY),
    "TNT": ("tnt_s_legacy_patch16_224", 64, {"depth": 2}),
}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 64, "image_size": 32, "patch_size": 8}
# In transformers: class, what its configuration has besides.
TRANSFORMERS = {
    "ViT": ("ViTModel", {}),
    "DINOv2": ("Dinov2Model", {}),
    "DINOv2 with registers": ("Dinov2WithRegistersModel", {}),
    "DINOv3": ("DINOv3ViTModel", {"num_register_tokens": 4}),
    "CLIP's tower": ("CLIPVisionModel", {}),
    "SigLIP's tower": ("SiglipVisionModel", {}),
    "BEiT": ("BeitModel", {"use_relative_position_bias": True}),
    "MAE": ("ViTMAEModel", {}),
    "YOLOS": ("YolosForObjectDetection", {"image_size": [32, 32], "num_detection_tokens": 5}),
}
VARIANTS_OF_TRANSFORMERS = {"DeiT": ("DeiTModel", {})}
STAGES = {"embedding_size": 8, "hidden_sizes": [8] * 4, "depths": [1] * 4, "layer_type": "basic"}
STAGES |= {"out_features": ["stage2", "stage3", "stage4"]}
LAYERS = {"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_queries": 7}
LAYERS |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "decoder_layers": 2}
REAL_TIME = {**LAYERS, "encoder_hidden_dim": 32, "encoder_in_channels": [8] * 3}
REAL_TIME |= {"decoder_in_channels": [32] * 3, "num_denoising": 0}
DETECTORS = {
    "DETR": "detr_resnet18_2x2",
    "Conditional DETR": "detr_nano",
    "Deformable DETR": ("DeformableDetr", {**LAYERS, "encoder_layers": 1, "num_feature_levels": 3}),
    "RT-DETR": ("RTDetr", REAL_TIME),
    "D-FINE": ("DFine", REAL_TIME),
    "RF-DETR": "",
}
# RF-DETR nano with fewer, narrower layers: 30 million weights take seconds to draw.
SMALL_RFDETR = replace(
    REALTIME["rfdetr_nano"],
    sizes={"d_model": 64, "num_queries": 20, "group_detr": 3, "decoder_n_points": 2}
    | {"decoder_layers": 2, "decoder_ffn_dim": 64, "dropout": 0.0},
    backbone=REALTIME["rfdetr_nano"].backbone
    | {"hidden_size": 48, "num_attention_heads": 3, "num_hidden_layers": 4, "image_size": 64}
    | {"out_features": ["stage2", "stage4"]},
)


@cache
def in_timm(family: str) -> tuple[nn.Module, Tensor]:
    """The family's model, its weights far from even, and two images."""
    name, side, options = {**TIMM, **VARIANTS}[family]
    torch.manual_seed(0)
    sized = {} if family in ("NaFlexViT", "DaViT") else {"img_size": side}
    model = sharpen(timm.create_model(name, num_classes=3, **sized, **options))
    return model, torch.randn(2, 3, side, side)


@cache
def in_transformers(family: str, implementation: str = "sdpa") -> tuple[nn.Module, Tensor]:
    """Likewise; `implementation` is of its attention."""
    name, more = {**TRANSFORMERS, **VARIANTS_OF_TRANSFORMERS}[family]
    kind = getattr(transformers, name)
    options = {**SIZES, **more, "attn_implementation": implementation}
    torch.manual_seed(0)
    return sharpen(kind(kind.config_class(**options))), torch.randn(2, 3, 32, 32)


@cache
def detector(family: str) -> tuple[nn.Module, Tensor]:
    """A detector of transformers likewise."""
    torch.manual_seed(0)
    images = torch.rand(2, 3, 64, 64)
    if family == "RF-DETR":
        return sharpen(SMALL_RFDETR.network(4)), torch.rand(2, 3, 96, 96)
    if isinstance(DETECTORS[family], str):
        return create_detector(DETECTORS[family], 4).eval().network, images
    name, options = DETECTORS[family]
    stages = transformers.RTDetrResNetConfig if "RT" in name or "Fine" in name else None
    backbone = (stages or transformers.ResNetConfig)(**STAGES)
    config = getattr(transformers, f"{name}Config")(backbone_config=backbone, **options)
    return sharpen(getattr(transformers, f"{name}ForObjectDetection")(config)), images


def first_tokens(model: nn.Module, images: Tensor) -> Tensor:
    """What the first attention of a model takes in, (B, T, C)."""
    taken: list[Tensor] = []

    def note(_: nn.Module, args: tuple, named: dict) -> None:
        taken.append(args[0] if args else named["hidden_states"])

    module = attention.attention_sites(model)[0].module
    handle = module.register_forward_pre_hook(note, with_kwargs=True)
    model(images)
    handle.remove()
    return taken[0]


def unfused(model: nn.Module, images: Tensor) -> list[Tensor | None]:
    """Every block's attention by timm's own unfused path, read beside its softmax; None among channels."""
    maps: list[Tensor | None] = []

    def behind(module: nn.Module):
        if hasattr(module, "attn_drop"):
            return module.attn_drop.register_forward_hook(
                lambda _, given, __: maps.append(given[0])
            )
        if hasattr(module, "softmax"):
            return module.softmax.register_forward_hook(lambda _, __, given: maps.append(given))
        of = _of_levit if hasattr(module, "key_dim") else lambda *_: None
        return module.register_forward_hook(
            lambda module, given, _: maps.append(of(module, *given))
        )

    fused(model, False)
    handles = [behind(site.module) for site in attention.attention_sites(model)]
    model(images)
    for handle in handles:
        handle.remove()
    fused(model, True)
    return maps


def _of_levit(module: nn.Module, tokens: Tensor) -> Tensor:
    """LeViT's attention, from its own projections."""
    if hasattr(module, "qkv"):
        parts = module.qkv(tokens).unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
        query, key = parts[..., : module.key_dim], parts[..., module.key_dim : 2 * module.key_dim]
    else:
        query = module.q(tokens).unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
        parts = module.kv(tokens).unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
        key = parts[..., : module.key_dim]
    biases = module.get_attention_biases(tokens.device)
    return (query @ key.transpose(-2, -1) * module.scale + biases).softmax(-1)


def _or_why(look: Callable[[], object]) -> str:
    """What a look gives in words, or the first line of its refusal."""
    try:
        return str(look())
    except WorkbenchError as refused:
        return str(refused).splitlines()[0]


def _probe(model: nn.Module, images: Tensor) -> str:
    token = attention.usual_token(model)
    attention.attention_probe(model, images, token=token)
    return "of the class token" if token == "class" else "mean over patches"


def _maps(model: nn.Module, images: Tensor) -> str:
    """Which blocks have a map, and why others have none."""
    found, why = [], set()
    for block in range(len(attention.attention_sites(model))):
        try:
            found.append(attention.attention_map(model, images, block))
        except WorkbenchError as refused:
            why.add(str(refused).splitlines()[0])
    if found and all(each.shape[2] == 1 for each in found):
        return "class attention alone: one row"
    some = ["every block" if not why else "some blocks"] if found else []
    return "; ".join(some + sorted(why))


def _rollout(model: nn.Module, images: Tensor) -> str:
    attention.attention_rollout(model, images, attention.usual_token(model))
    return "yes"


def _map(model: nn.Module, images: Tensor, kind: str) -> str:
    attention.attention_map(model, images, kind=kind)
    return "map"


@torch.no_grad()
def table() -> str:
    """What attention gives of each family, as Markdown."""
    lines = ["| family | probe | maps | rollout |", "| --- | --- | --- | --- |"]
    every = [(f"timm: {family}", in_timm(family)) for family in TIMM]
    every += [(f"transformers: {family}", in_transformers(family)) for family in TRANSFORMERS]
    for name, given in every:
        cells = [_or_why(partial(look, *given)) for look in (_probe, _maps, _rollout)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| detector | encoder | decoder | cross |", "| --- | --- | --- | --- |"]
    for family in DETECTORS:
        kinds = ("encoder", "decoder", "cross")
        cells = [_or_why(partial(_map, *detector(family), kind)) for kind in kinds]
        lines.append(f"| {family} | {' | '.join(cells)} |")
    return "\n".join(lines)


def same_outputs(*detectors: Detector) -> bool:
    """Whether two detectors find the same in an image, to the bit."""
    images = torch.rand(1, 3, 64, 64)
    one, other = (detector.eval()(images) for detector in detectors)
    return torch.equal(one.boxes, other.boxes) and torch.equal(one.logits, other.logits)
