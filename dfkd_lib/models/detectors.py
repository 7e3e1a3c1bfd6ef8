"""Detection teachers and students by name: DETRs as transformers configurations with a timm backbone, and `realtime`'s.

transformers replaces every batch norm of a DETR backbone by a frozen one. Frozen norms are right for pretrained weights
and wrong from nothing: they hold no statistics, and the replacement drops the activation that timm fuses into some
norms. So a detector made from nothing gets timm's own backbone back, with norms that learn their statistics. In the
detectors of the paper's sizes these norms have no scale and shift of their own, which keeps the paper's parameter count
exact (frozen norms are not counted in it) and loses nothing that the next convolution could not learn.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from dfkd_lib.core import Registry, WorkbenchError, load_tensors, one_of
from dfkd_lib.models.detector import Detector
from dfkd_lib.models.hub import WeightsMissing, fetch
from dfkd_lib.models.realtime import REALTIME, RealTime
from dfkd_lib.models.weights import load_weights, misfit, read_json

# Weights with a row for each class, and perhaps one more, of "no object" or of padding.
HEAD = re.compile(
    r"(class_labels_classifier|class_embed(\.\d+)?|enc_score_head)\.(weight|bias)$|denoising_class_embed\.weight$"
)
BOXES = re.compile(r"(model\.decoder\.)?bbox_embed\.\d+\.")
PRIOR = 0.1  # chance of each class at a query before training


@dataclass(frozen=True)
class _Spec:
    """Shape of a DETR: its backbone in timm, and where transformers' configuration is another than DETR's own."""

    backbone: str
    sizes: dict = field(default_factory=dict)
    conditional: bool = True
    keywords: dict = field(default_factory=dict)  # of a backbone of fewer channels, read at stage 3
    hub: str = ""

    @property
    def full(self) -> bool:
        """Whether its backbone is one as published."""
        return not self.keywords

    def network(self, outputs: int) -> nn.Module:
        """transformers' network of that shape, the backbone's norms frozen, nothing downloaded.

        `outputs` are the configuration's labels; DETR itself adds "no object" to them.
        """
        import transformers

        kind = "ConditionalDetr" if self.conditional else "Detr"
        backbone = {
            "model_type": "timm_backbone",
            "backbone": self.backbone,
            "num_channels": 3,
            "features_only": True,
            "use_pretrained_backbone": False,
            "out_indices": [1, 2, 3, 4],
        }
        config = getattr(transformers, f"{kind}Config")(
            num_labels=outputs, backbone_config=backbone, **self.sizes
        )
        return getattr(transformers, f"{kind}ForObjectDetection")(config)

    def detector(self, num_labels: int, frozen: bool = False) -> Detector:
        """An untrained detector; with `frozen` it has transformers' frozen norms, for pretrained weights."""
        # The conditional one has no "no object" class of its own: it gets one, as every detector here has.
        network = self.network(num_labels + self.conditional)
        if not frozen:
            norm = {"norm_layer": partial(nn.BatchNorm2d, affine=False)} if self.full else {}
            stages = (1, 2, 3, 4) if self.full else (3,)
            backbone = timm.create_model(
                self.backbone, features_only=True, out_indices=stages, **self.keywords, **norm
            )
            channels = backbone.feature_info.channels()[-1]
            network.model.backbone.model = backbone
            network.model.input_projection = nn.Conv2d(channels, network.config.d_model, 1)
        # An untrained head answers "no object" nearly everywhere: sigmoid heads trained by BCE start far calmer so.
        bias = math.log(PRIOR / (1 - PRIOR))
        with torch.no_grad():
            network.class_labels_classifier.bias.fill_(bias)
            network.class_labels_classifier.bias[-1] = -bias
        if self.conditional:
            _spread_references(network, network.config.num_queries)
        return Detector(network, num_labels)


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
        "detr_mini": _Spec("resnet10t", _small(112, 2, 16), keywords=_NANO),
        "detr_nano": _Spec("resnet10t", _small(96, 2, 10), keywords=_NANO),
        **REALTIME,
    }
)


def detector_names() -> list[str]:
    """Every name `create_detector` knows, sorted."""
    return sorted(SPECS)


def create_detector(
    name: str,
    num_labels: int,
    pretrained: bool = False,
    weights: str | Path | None = None,
    backbone_weights: str | Path | None = None,
    classes: Sequence[str] | None = None,
) -> Detector:
    """A detector by name, randomly initialised from torch's global generator unless weights are asked for.

    Args:
        name: one of `detector_names()`; the conditional ones converge faster than DETR (Meng et al. 2021), `detr_micro`,
            `detr_mini` and `detr_nano` are for small images; D-FINE, DEIMv2, RT-DETR and RF-DETR are trained by their own losses.
        num_labels: classes, without "no object".
        pretrained: start from published weights in the hub's cache on disk, or download them: COCO detectors, of the
            ResNet-18 DETRs ImageNet's backbone. Norms and stem of a DETR stay frozen then (222,400 parameters of
            ResNet-50), as in the paper. False never touches the network.
        weights: a .safetensors file saved from a detector of that name, or a folder in transformers' format. Of other
            classes, the class head is made anew and everything else loaded.
        backbone_weights: a .safetensors file of timm's backbone alone, frozen as under `pretrained` in DETRs of the
            paper's sizes.
        classes: names of the labels, in their order. Where the weights name theirs too (id2label in a folder's
            config.json; "classes" in the record beside a file), the head keeps the rows of the names they share,
            whatever case, and the others are made anew; `kept` names the former.

    Raises:
        WorkbenchError: on an unknown name, impossible labels, missing or unfit weights, or two kinds of them.
        WeightsMissing: if published weights are neither on disk nor can be downloaded.
    """
    kinds = {"pretrained": pretrained, "weights": weights, "backbone_weights": backbone_weights}
    _check(name, num_labels, kinds, classes)
    spec = SPECS[name]
    if pretrained:
        folder = _published(name, spec)
        weights = folder if spec.hub else None
        backbone_weights = None if spec.hub else folder / "model.safetensors"
    if backbone_weights:
        detector = _with_backbone(name, spec, num_labels, backbone_weights)
    elif not weights:
        detector = spec.detector(num_labels)
    else:
        detector = _started(spec, num_labels, Path(weights), classes)
    # Convolutions are up to twice as fast so on a CPU.
    return detector.to(memory_format=torch.channels_last)


def _check(name: str, num_labels: int, kinds: dict, classes: Sequence[str] | None) -> None:
    """WorkbenchError on what `create_detector` cannot be asked for."""
    one_of("detector", name, detector_names())
    if num_labels < 1 or (classes is not None and len(classes) != num_labels):
        raise WorkbenchError(
            "a detector needs a class" if num_labels < 1 else "the classes are not as many",
            expected=f"num_labels = {len(classes)}" if classes else "num_labels >= 1",
            got=num_labels,
            fix="name at least one class, and give their number",
        )
    asked = [kind for kind, given in kinds.items() if given]
    if len(asked) > 1:
        raise WorkbenchError(
            "a detector cannot start from two kinds of weights",
            where=name,
            expected=f"one of {', '.join(kinds)}",
            got=" and ".join(asked),
            fix="leave one of them out",
        )


def _published(name: str, spec: _Spec | RealTime) -> Path:
    """The folder of published weights: from the hub's cache on disk, or else downloaded."""
    if not (spec.hub or spec.full):
        known = (other for other, one in SPECS.items() if one.hub or one.full)
        raise WorkbenchError(
            f"no pretrained weights in transformers' format are known for {name}",
            got=name,
            fix="train it (weights=None), or give a file or folder of your own as weights=...",
            expected=", ".join(sorted(known)),
        )
    repository = spec.hub or timm.get_pretrained_cfg(spec.backbone).hf_hub_id
    try:
        return fetch(repository, False, name)
    except WeightsMissing:
        return fetch(repository, True, name)


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


def _started(
    spec: _Spec | RealTime, num_labels: int, source: Path, classes: Sequence[str] | None
) -> Detector:
    """A detector that was saved, to a file or a folder; rows of its class heads are its classes' where these are named."""
    if source.is_dir():
        tensors, fix = _of_folder(spec, source), "choose the detector it is of"
    else:
        tensors, fix = load_tensors(source), "create the detector that was saved"
    frozen = spec.full and "network.model.backbone.model.bn1.weight" in tensors
    detector = spec.detector(num_labels, frozen)
    own, known = detector.state_dict(), known_classes(source) if classes else None
    heads = [name for name in own if HEAD.search(name) and name in tensors]
    if all(tensors[name].shape[1:] == own[name].shape[1:] for name in heads):
        if known and any(len(tensors[name]) < len(known) for name in heads):
            got = f"{len(known)} classes in the record beside them"
            raise misfit(
                "a row for each class", got, source, "correct that record's names, or remove it"
            )
        if known:
            detector.kept = tuple(name for name in classes if _plain(name) in map(_plain, known))
            rows = {name: _rows(tensors[name], own[name], known, classes) for name in heads}
        else:
            rows = {name: own[name] for name in heads if tensors[name].shape != own[name].shape}
        tensors |= rows
    load_weights(detector, tensors, source, fix)
    return _freeze_stem(detector) if frozen else detector


def _plain(name: str) -> str:
    return name.strip().casefold()


def _rows(theirs: Tensor, own: Tensor, known: Sequence[str], classes: Sequence[str]) -> Tensor:
    """A head's own rows, those of known classes theirs; what follows the classes ("no object", padding) is theirs too."""
    places, rows = {_plain(name): row for row, name in enumerate(known)}, own.clone()
    for row, name in enumerate(classes):
        if (place := places.get(_plain(name))) is not None:
            rows[row] = theirs[place]
    if len(theirs) - len(known) == len(own) - len(classes):
        rows[len(classes) :] = theirs[len(known) :]
    return rows


def known_classes(source: Path) -> tuple[str, ...] | None:
    """The names of the classes of saved weights, in the order of their rows: of a folder in transformers' format by its
    config.json, of a file by the record beside it, of an artifact's by its manifest; None where nothing names them."""
    files = [source / "config.json"] if source.is_dir() else []
    files = files or [source.with_suffix(".json"), source.parent / "manifest.json"]
    there = next((one for one in files if one.is_file()), None)
    fix = "repair it, or remove it: class heads are then taken by their size"
    record = read_json(there, fix) if there else {}
    if "id2label" in record:
        names = [record["id2label"][row] for row in sorted(record["id2label"], key=int)]
    else:
        names = record.get("classes") or record.get("metrics", {}).get("classes") or []
    unnamed = not names or all(re.fullmatch(r"LABEL_\d+", str(name)) for name in names)
    return None if unnamed else tuple(map(str, names))


def _with_backbone(
    name: str, spec: _Spec | RealTime, num_labels: int, file: str | Path
) -> Detector:
    """A detector whose backbone has timm's weights in that file, a classifier's head left out."""
    if isinstance(spec, RealTime):
        raise WorkbenchError(
            f"the backbone of {name} is not timm's",
            expected="weights of a whole detector",
            got=f"backbone_weights={file}",
            fix="give a file or folder of such a detector as weights=...",
        )
    detector = spec.detector(num_labels, frozen=spec.full)
    tensors = {
        key: value
        for key, value in load_tensors(file).items()
        if not key.startswith("fc.") and not (spec.full and key.endswith("num_batches_tracked"))
    }
    fix = f"this one has timm's {spec.backbone}: choose a detector of the backbone it is of"
    load_weights(detector.network.model.backbone.model, tensors, file, fix)
    return _freeze_stem(detector) if spec.full else detector


def _of_folder(spec: _Spec | RealTime, folder: Path) -> dict[str, Tensor]:
    """The weights of a detector in transformers' format, by the names that they have in a `Detector`."""
    try:
        labels = read_json(folder / "config.json").get("id2label")
        network = spec.network(len(labels) if labels else 2)  # transformers writes no 2
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
    # A mismatch is (name, shape, shape). Frozen norms, as most were saved with, count no batches.
    unfit = [key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]]
    unfit += [key for key in report["missing_keys"] if not key.endswith("num_batches_tracked")]
    if unfit:
        expected, got = "weights of every layer", f"none that fit {', '.join(sorted(unfit)[:3])}"
        raise misfit(expected, got, folder, "choose the detector it is of")
    state = loaded.state_dict()
    if getattr(loaded.config, "share_bbox_head", False):
        # transformers saves a head that all layers share under the last one's name, looks for it under the first one's
        # and, not finding it, leaves it untrained in silence.
        every = (load_tensors(file) for file in sorted(folder.glob("*.safetensors")))
        known = {
            BOXES.sub("", key): v for one in every for key, v in one.items() if BOXES.match(key)
        }
        state |= {key: known[BOXES.sub("", key)] for key in state if BOXES.match(key)}
    return {f"network.{name}": value for name, value in state.items()}


def _freeze_stem(detector: Detector) -> Detector:
    for name, parameter in detector.network.model.backbone.model.named_parameters():
        parameter.requires_grad_(name.startswith(("layer2", "layer3", "layer4")))
    return detector
