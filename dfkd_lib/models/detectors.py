"""DETR teachers and students by name, as transformers configurations with a timm backbone.

transformers replaces every batch norm of a DETR backbone by a frozen one. Frozen norms are right for pretrained weights
and wrong from nothing: they hold no statistics, and the replacement drops the activation that timm fuses into some
norms. So a detector made from nothing gets timm's own backbone back, with norms that learn their statistics. In the
detectors of the paper's sizes these norms have no scale and shift of their own, which keeps the paper's parameter count
exact (frozen norms are not counted in it) and loses nothing that the next convolution could not learn.
"""

import math
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from torch import Tensor, nn

from dfkd_lib.core import Registry, WorkbenchError, load_tensors
from dfkd_lib.models.create import unknown_name
from dfkd_lib.models.hub import WeightsMissing, fetch
from dfkd_lib.models.weights import load_weights, misfit

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HEAD = ("network.class_labels_classifier.weight", "network.class_labels_classifier.bias")
PRIOR = 0.1  # chance of each class at a query before training


@dataclass(frozen=True)
class _Spec:
    """Shape of a detector: its backbone in timm, and where transformers' configuration is another than DETR's own."""

    backbone: str
    sizes: dict = field(default_factory=dict)
    conditional: bool = True
    keywords: dict = field(default_factory=dict)  # of a backbone of fewer channels, read at stage 3
    hub: str | None = None

    @property
    def full(self) -> bool:
        """Whether its backbone is one as published."""
        return not self.keywords


def _small(width: int, decoder: int, queries: int) -> dict:
    sizes = {"d_model": width, "encoder_ffn_dim": 2 * width, "decoder_ffn_dim": 2 * width}
    sizes |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "dropout": 0.0}
    return {**sizes, "encoder_layers": 1, "decoder_layers": decoder, "num_queries": queries}


_SHALLOW = {"encoder_layers": 2, "decoder_layers": 2, "num_queries": 100}
_MICRO = {"channels": (32, 64, 128, 256)}
_NANO = {"channels": (24, 48, 96, 192), "stem_width": 16}
_HUB = ("facebook/detr-resnet-50", "microsoft/conditional-detr-resnet-50")

SPECS = Registry(
    {
        "detr_resnet50": _Spec("resnet50", conditional=False, hub=_HUB[0]),
        "detr_resnet18_2x2": _Spec("resnet18", _SHALLOW, conditional=False),
        "conditional_detr_resnet50": _Spec("resnet50", hub=_HUB[1]),
        "conditional_detr_resnet18_2x2": _Spec("resnet18", _SHALLOW),
        "detr_micro": _Spec("resnet18", _small(112, 3, 16), keywords=_MICRO),
        "detr_nano": _Spec("resnet10t", _small(96, 2, 10), keywords=_NANO),
    }
)


class Detections(NamedTuple):
    """The predictions of a detector."""

    logits: Tensor  # (B, Q, classes + 1), the last column "no object"
    boxes: Tensor  # (B, Q, 4) cxcywh in [0, 1]
    # Both of each earlier decoder layer, if asked for.
    earlier: tuple[tuple[Tensor, Tensor], ...] = ()


class Detector(nn.Module):
    """A DETR or Conditional DETR of transformers behind one small interface; `num_labels` is without "no object".

    `classes` are their names, in the order of the labels, once it has learned them; else None.
    """

    def __init__(self, network: nn.Module, num_labels: int):
        super().__init__()
        self.network, self.num_labels = network, num_labels
        self.classes: tuple[str, ...] | None = None
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    @property
    def num_queries(self) -> int:
        return self.network.config.num_queries

    def forward(self, images: Tensor, earlier: bool = False) -> Detections:
        """Detect in images, float (B, 3, H, W) in [0, 1]; `earlier` adds the predictions of earlier decoder layers."""
        pixels = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        output = self.network.model(pixels, output_hidden_states=earlier)
        reference = getattr(output, "reference_points", None)
        if not earlier:
            return Detections(*self._heads(output.last_hidden_state, reference))
        states = map(self.network.model.decoder.layernorm, output.decoder_hidden_states[1:-1])
        every = self._heads(torch.stack([*states, output.last_hidden_state]), reference)
        *before, last = zip(*(part.unbind() for part in every), strict=True)
        return Detections(*last, tuple(before))

    def _heads(self, state: Tensor, reference: Tensor | None) -> tuple[Tensor, Tensor]:
        logits = self.network.class_labels_classifier(state).float()
        boxes = self.network.bbox_predictor(state).float()
        # Conditional DETR predicts centres relative to each query's reference point.
        if reference is not None:
            centre = torch.logit(reference.transpose(0, 1).float(), eps=1e-5)
            boxes = torch.cat([boxes[..., :2] + centre, boxes[..., 2:]], dim=-1)
        return logits, boxes.sigmoid()


def detector_names() -> list[str]:
    """Every name `create_detector` knows, sorted."""
    return sorted(SPECS)


def create_detector(
    name: str,
    num_labels: int,
    pretrained: bool = False,
    weights: str | Path | None = None,
    backbone_weights: str | Path | None = None,
) -> Detector:
    """A detector by name, randomly initialised from torch's global generator unless weights are asked for.

    Args:
        name: one of `detector_names()`; the conditional ones converge faster (Meng et al. 2021), `detr_micro` and
            `detr_nano` are for small images.
        num_labels: classes, without "no object".
        pretrained: start from published weights in the hub's cache on disk, or download them: COCO detectors for the
            ResNet-50 ones, ImageNet's backbone for the ResNet-18 ones; norms and the stem stay frozen then (222,400
            parameters of ResNet-50), as in the paper. False never touches the network.
        weights: a .safetensors file saved from a detector of that name, or a folder in transformers' format. Of other
            classes, the class head is made anew and everything else loaded.
        backbone_weights: a .safetensors file of timm's backbone alone, frozen as under `pretrained` in detectors of the
            paper's sizes.

    Raises:
        WorkbenchError: on an unknown name, impossible labels, missing or unfit weights, or two kinds of them.
        WeightsMissing: if published weights are neither on disk nor can be downloaded.
    """
    if name not in SPECS:
        raise unknown_name("detector", name, detector_names())
    if num_labels < 1:
        raise WorkbenchError(
            "a detector needs a class",
            expected="num_labels >= 1",
            got=num_labels,
            fix="name at least one class",
        )
    kinds = {"pretrained": pretrained, "weights": weights, "backbone_weights": backbone_weights}
    asked = [kind for kind, given in kinds.items() if given]
    if len(asked) > 1:
        raise WorkbenchError(
            "a detector cannot start from two kinds of weights",
            where=name,
            expected=f"one of {', '.join(kinds)}",
            got=" and ".join(asked),
            fix="leave one of them out",
        )
    spec = SPECS[name]
    if pretrained:
        folder = _published(name, spec)
        weights = folder if spec.hub else None
        backbone_weights = None if spec.hub else folder / "model.safetensors"
    if backbone_weights:
        detector = _with_backbone(spec, num_labels, backbone_weights)
    elif not weights:
        detector = _fresh(spec, num_labels)
    elif Path(weights).is_dir():
        detector = _from_folder(spec, num_labels, weights)
    else:
        detector = _from_file(spec, num_labels, weights)
    # Convolutions are up to twice as fast so on a CPU.
    return detector.to(memory_format=torch.channels_last)


def _published(name: str, spec: _Spec) -> Path:
    """The folder of published weights: from the hub's cache on disk, or else downloaded."""
    if not spec.full:
        raise WorkbenchError(
            f"no pretrained weights exist for {name}",
            got=name,
            fix="train it (weights=None), or give a file of your own as weights=...",
            expected=", ".join(other for other in detector_names() if SPECS[other].full),
        )
    repository = spec.hub or timm.get_pretrained_cfg(spec.backbone).hf_hub_id
    try:
        return fetch(repository, False, name)
    except WeightsMissing:
        return fetch(repository, True, name)


def _network(spec: _Spec, num_labels: int) -> nn.Module:
    """transformers' network of that shape, its backbone's norms frozen, nothing downloaded."""
    import transformers

    kind = "ConditionalDetr" if spec.conditional else "Detr"
    backbone = {
        "model_type": "timm_backbone",
        "backbone": spec.backbone,
        "num_channels": 3,
        "features_only": True,
        "use_pretrained_backbone": False,
        "out_indices": [1, 2, 3, 4],
    }
    # The conditional one has no "no object" class of its own: it gets one, as every detector here has.
    classes = num_labels + 1 if spec.conditional else num_labels
    config = getattr(transformers, f"{kind}Config")(
        num_labels=classes, backbone_config=backbone, **spec.sizes
    )
    return getattr(transformers, f"{kind}ForObjectDetection")(config)


def _fresh(spec: _Spec, num_labels: int, frozen: bool = False) -> Detector:
    """An untrained detector; with `frozen` its backbone has transformers' frozen norms, for pretrained weights."""
    network = _network(spec, num_labels)
    if not frozen:
        norm = {"norm_layer": partial(nn.BatchNorm2d, affine=False)} if spec.full else {}
        stages = (1, 2, 3, 4) if spec.full else (3,)
        backbone = timm.create_model(
            spec.backbone, features_only=True, out_indices=stages, **spec.keywords, **norm
        )
        channels = backbone.feature_info.channels()[-1]
        network.model.backbone.model = backbone
        network.model.input_projection = nn.Conv2d(channels, network.config.d_model, 1)
    _start_rare(network)
    if spec.conditional:
        _spread_references(network, network.config.num_queries)
    return Detector(network, num_labels)


def _start_rare(network: nn.Module) -> None:
    """Let an untrained head answer "no object" nearly everywhere: sigmoid heads trained by BCE start far calmer so."""
    bias = math.log(PRIOR / (1 - PRIOR))
    with torch.no_grad():
        network.class_labels_classifier.bias.fill_(bias)
        network.class_labels_classifier.bias[-1] = -bias


@torch.no_grad()
def _spread_references(network: nn.Module, queries: int) -> None:
    """Solve the last layer of the reference head so that the queries start on an even grid, not all in the middle."""
    side = math.ceil(math.sqrt(queries))
    grid = (torch.cartesian_prod(torch.arange(side), torch.arange(side))[:queries] + 0.5) / side
    first, last = network.model.decoder.ref_point_head.layers
    hidden = first(network.model.query_position_embeddings.weight).relu()
    known = torch.cat([hidden, torch.ones(queries, 1)], dim=1)
    solution = torch.linalg.pinv(known) @ torch.logit(grid)
    last.weight.copy_(solution[:-1].T)
    last.bias.copy_(solution[-1])


def _from_file(spec: _Spec, num_labels: int, file: str | Path) -> Detector:
    """A detector that was saved; a class head of other classes stays as it is made."""
    tensors = load_tensors(file)
    frozen = spec.full and "network.model.backbone.model.bn1.weight" in tensors
    detector = _fresh(spec, num_labels, frozen)
    own = detector.state_dict()
    head = [name for name in HEAD if name in tensors]
    if len(head) == len(HEAD) and all(tensors[n].shape[1:] == own[n].shape[1:] for n in head):
        tensors |= {name: own[name] for name in head if tensors[name].shape != own[name].shape}
    load_weights(detector, tensors, file, "create the detector that was saved")
    return _freeze_stem(detector) if frozen else detector


def _with_backbone(spec: _Spec, num_labels: int, file: str | Path) -> Detector:
    """A detector whose backbone has timm's weights in that file, a classifier's head left out."""
    detector = _fresh(spec, num_labels, frozen=spec.full)
    tensors = {
        key: value
        for key, value in load_tensors(file).items()
        if not key.startswith("fc.") and not (spec.full and key.endswith("num_batches_tracked"))
    }
    fix = f"this one has timm's {spec.backbone}: choose a detector of the backbone it is of"
    load_weights(detector.network.model.backbone.model, tensors, file, fix)
    return _freeze_stem(detector) if spec.full else detector


def _from_folder(spec: _Spec, num_labels: int, folder: str | Path) -> Detector:
    """A detector in transformers' format, from a local folder or the hub; a head of other classes is made anew."""
    network = _network(spec, num_labels)
    try:
        loaded, report = type(network).from_pretrained(
            str(folder),
            config=network.config,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise WorkbenchError(
            "a pretrained detector cannot be loaded",
            got=str(error)[:300],
            where=folder,
            expected="a folder with config.json and model.safetensors of that architecture",
            fix="point weights= to such a folder",
        ) from None
    unfit = [*report["missing_keys"], *report["mismatched_keys"]]
    # A mismatch is (name, shape, shape).
    fresh = {(key if isinstance(key, str) else key[0]).split(".")[0] for key in unfit}
    if fresh - {"class_labels_classifier"}:
        expected, got = "weights for everything but the class head", f"nothing for {sorted(fresh)}"
        raise misfit(expected, got, folder, "choose the detector it is of")
    if fresh:
        _start_rare(loaded)
    return _freeze_stem(Detector(loaded, num_labels))


def _freeze_stem(detector: Detector) -> Detector:
    for name, parameter in detector.network.model.backbone.model.named_parameters():
        parameter.requires_grad_(name.startswith(("layer2", "layer3", "layer4")))
    return detector
