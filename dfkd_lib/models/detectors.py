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

from dfkd_lib.core import Registry, WorkbenchError
from dfkd_lib.core.artifacts import load_tensors
from dfkd_lib.models.create import unknown_name
from dfkd_lib.models.hub import WeightsMissing, fetch
from dfkd_lib.models.weights import load_weights

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HEAD = ("network.class_labels_classifier.weight", "network.class_labels_classifier.bias")
PRIOR = 0.1  # chance of each class at a query before training


@dataclass(frozen=True)
class _Spec:
    """Shape of a detector: timm backbone and its keywords, stage that is read, transformer sizes."""

    backbone: str
    stage: int
    width: int
    encoder: int
    decoder: int
    queries: int
    feed_forward: int
    heads: int
    dropout: float = 0.0
    conditional: bool = True
    keywords: dict = field(default_factory=dict)
    hub: str | None = None

    @property
    def full(self) -> bool:
        """Whether its backbone is one as published, not one of fewer channels."""
        return not self.keywords


SPECS = Registry(
    {
        "detr_resnet50": _Spec(
            "resnet50", 4, 256, 6, 6, 100, 2048, 8, 0.1, False, hub="facebook/detr-resnet-50"
        ),
        "detr_resnet18_2x2": _Spec("resnet18", 4, 256, 2, 2, 100, 2048, 8, 0.1, False),
        "conditional_detr_resnet50": _Spec(
            "resnet50", 4, 256, 6, 6, 300, 2048, 8, 0.1, hub="microsoft/conditional-detr-resnet-50"
        ),
        "conditional_detr_resnet18_2x2": _Spec("resnet18", 4, 256, 2, 2, 100, 2048, 8, 0.1),
        "detr_micro": _Spec(
            "resnet18", 3, 112, 1, 3, 16, 224, 4, keywords={"channels": (32, 64, 128, 256)}
        ),
        "detr_nano": _Spec(
            "resnet10t",
            3,
            96,
            1,
            2,
            10,
            192,
            4,
            keywords={"channels": (24, 48, 96, 192), "stem_width": 16},
        ),
    }
)


class Detections(NamedTuple):
    """The predictions of a detector.

    Args:
        logits: (B, Q, classes + 1), the last column "no object".
        boxes: (B, Q, 4) cxcywh in [0, 1].
        earlier: both again for each earlier decoder layer, if asked for.
    """

    logits: Tensor
    boxes: Tensor
    earlier: tuple[tuple[Tensor, Tensor], ...] = ()


class Detector(nn.Module):
    """A DETR or Conditional DETR of transformers behind one small interface.

    Args:
        network: DetrForObjectDetection or ConditionalDetrForObjectDetection.
        num_labels: classes without "no object".
    """

    def __init__(self, network: nn.Module, num_labels: int):
        super().__init__()
        self.network, self.num_labels = network, num_labels
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
        name: one of `detector_names()`; with 4 labels `detr_resnet50` has 41,502,409 parameters (the paper's teacher),
            `detr_resnet18_2x2` 17,245,897 (its student); the conditional ones of these sizes converge faster (Meng et al.
            2021); `detr_micro` and `detr_nano` are for small images.
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
    asked = {
        "pretrained": pretrained,
        "weights": weights is not None,
        "backbone_weights": backbone_weights is not None,
    }
    if sum(asked.values()) > 1:
        raise WorkbenchError(
            "a detector cannot start from two kinds of weights",
            where=name,
            expected=f"one of {', '.join(asked)}",
            got=" and ".join(kind for kind, there in asked.items() if there),
            fix="leave one of them out",
        )
    detector = _made(name, SPECS[name], num_labels, pretrained, weights, backbone_weights)
    # Convolutions are up to twice as fast so on a CPU.
    return detector.to(memory_format=torch.channels_last)


def _made(name, spec: _Spec, num_labels: int, pretrained: bool, weights, backbone) -> Detector:
    if pretrained:
        return _pretrained(name, spec, num_labels)
    if backbone is not None:
        return _with_backbone(spec, num_labels, backbone)
    if weights is None:
        return _fresh(spec, num_labels)
    if Path(weights).is_dir():
        return _from_folder(spec, num_labels, weights)
    return _from_file(spec, num_labels, weights)


def _network(spec: _Spec, num_labels: int) -> nn.Module:
    """transformers' network of that shape, its backbone's norms frozen, nothing downloaded."""
    from transformers import (
        ConditionalDetrConfig,
        ConditionalDetrForObjectDetection,
        DetrConfig,
        DetrForObjectDetection,
    )

    backbone = {
        "model_type": "timm_backbone",
        "backbone": spec.backbone,
        "num_channels": 3,
        "features_only": True,
        "use_pretrained_backbone": False,
        "out_indices": [1, 2, 3, 4],
    }
    sizes = {
        "d_model": spec.width,
        "encoder_layers": spec.encoder,
        "decoder_layers": spec.decoder,
        "encoder_ffn_dim": spec.feed_forward,
        "decoder_ffn_dim": spec.feed_forward,
        "encoder_attention_heads": spec.heads,
        "decoder_attention_heads": spec.heads,
        "num_queries": spec.queries,
        "dropout": spec.dropout,
        "backbone_config": backbone,
    }
    # It has no "no object" class of its own: give it one, as every detector here has.
    if spec.conditional:
        return ConditionalDetrForObjectDetection(
            ConditionalDetrConfig(num_labels=num_labels + 1, **sizes)
        )
    return DetrForObjectDetection(DetrConfig(num_labels=num_labels, **sizes))


def _fresh(spec: _Spec, num_labels: int) -> Detector:
    network = _network(spec, num_labels)
    norm = {"norm_layer": partial(nn.BatchNorm2d, affine=False)} if spec.full else {}
    stages = (1, 2, 3, 4) if spec.full else (spec.stage,)
    backbone = timm.create_model(
        spec.backbone, features_only=True, out_indices=stages, **spec.keywords, **norm
    )
    network.model.backbone.model = backbone
    network.model.input_projection = nn.Conv2d(backbone.feature_info.channels()[-1], spec.width, 1)
    return _started(network, spec, num_labels)


def _started(network: nn.Module, spec: _Spec, num_labels: int) -> Detector:
    """The detector of a network whose heads are as they should be before training."""
    _start_rare(network)
    if spec.conditional:
        _spread_references(network, spec.queries)
    return Detector(network, num_labels)


def _start_rare(network: nn.Module) -> None:
    """Let an untrained head say "no object" nearly everywhere: sigmoid heads trained by BCE start far calmer so."""
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
    solution = torch.linalg.pinv(torch.cat([hidden, torch.ones(queries, 1)], dim=1)) @ torch.logit(
        grid
    )
    last.weight.copy_(solution[:-1].T)
    last.bias.copy_(solution[-1])


def _pretrained(name: str, spec: _Spec, num_labels: int) -> Detector:
    if not spec.full:
        raise WorkbenchError(
            f"no pretrained weights exist for {name}",
            got=name,
            fix="train it (weights=None), or give a file of your own as weights=...",
            expected=", ".join(other for other in detector_names() if SPECS[other].full),
        )
    repository = spec.hub or timm.get_pretrained_cfg(spec.backbone).hf_hub_id
    try:
        folder = fetch(repository, False, name)  # on disk already: nothing is asked of the network
    except WeightsMissing:
        folder = fetch(repository, True, name)
    return (
        _from_folder(spec, num_labels, folder)
        if spec.hub
        else _with_backbone(spec, num_labels, folder / "model.safetensors")
    )


def _from_file(spec: _Spec, num_labels: int, file: str | Path) -> Detector:
    """A detector that was saved; a class head of other classes stays as it is made."""
    tensors = load_tensors(file)
    frozen = "network.model.backbone.model.bn1.weight" in tensors and spec.full
    detector = _frozen(spec, num_labels) if frozen else _fresh(spec, num_labels)
    own = detector.state_dict()
    head = [name for name in HEAD if name in tensors]
    if len(head) == len(HEAD) and all(tensors[n].shape[1:] == own[n].shape[1:] for n in head):
        tensors |= {name: own[name] for name in head if tensors[name].shape != own[name].shape}
    load_weights(detector, tensors, file, "create the detector that was saved")
    return _freeze_stem(detector) if frozen else detector


def _frozen(spec: _Spec, num_labels: int) -> Detector:
    """An untrained detector whose backbone has transformers' frozen norms."""
    return _started(_network(spec, num_labels), spec, num_labels)


def _with_backbone(spec: _Spec, num_labels: int, file: str | Path) -> Detector:
    """A detector whose backbone has timm's weights in that file, a classifier's head left out."""
    detector = _frozen(spec, num_labels) if spec.full else _fresh(spec, num_labels)
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
        raise WorkbenchError(
            "a pretrained detector does not fit",
            where=folder,
            got=f"nothing for {sorted(fresh)}",
            expected="weights for everything but the class head",
            fix="choose the detector it is of",
        )
    if fresh:
        _start_rare(loaded)
    return _freeze_stem(Detector(loaded, num_labels))


def _freeze_stem(detector: Detector) -> Detector:
    for name, parameter in detector.network.model.backbone.model.named_parameters():
        parameter.requires_grad_(name.startswith(("layer2", "layer3", "layer4")))
    return detector
