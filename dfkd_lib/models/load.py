"""Classifiers from elsewhere: a timm name, a safetensors file, a folder in transformers' format, a hub repository."""

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from dfkd_lib.core import WorkbenchError, is_number, load_tensors, one_of, resolve
from dfkd_lib.models.convert import PICKLES, pickled
from dfkd_lib.models.create import MODELS, ODD, create_model, model_names, model_settings
from dfkd_lib.models.hub import WANTED, WeightsMissing, fetch
from dfkd_lib.models.images import expected_shape
from dfkd_lib.models.pretrained import open_transformers
from dfkd_lib.models.weights import (
    Record,
    built,
    check_sizes,
    load_weights,
    misfit,
    read_json,
    unwrapped,
)

NEUTRAL = (0.5, 0.5, 0.5)  # mean and deviation that leave images in [-1, 1] as they are


class Loaded(nn.Module):
    """A classifier, or the backbone of one, from elsewhere that takes images as the workbench has them.

    Takes float images (B, in_chans, img_size, img_size) in [-1, 1], normalises them as its weights want, returns logits,
    or (B, D) features where `classifies` is False: of a model without a classifier.

    Args:
        mean, std: of each channel of the model's, for images in [0, 1].
        order: the image's channel that each of the model's is; None: the same.
        source: one sentence on where it comes from.
        classes: names of its outputs, or None where nobody knows them.
    """

    def __init__(
        self,
        model: nn.Module,
        img_size: int,
        in_chans: int,
        mean,
        std,
        source: str,
        classes: tuple[str, ...] | None = None,
        classifies: bool = True,
        order: list[int] | None = None,
    ):
        super().__init__()
        self.classifies, self.order = classifies, order
        if not classifies:
            source += "; it has no classifier: its outputs are features"
        self.model, self.img_size, self.in_chans = model, img_size, in_chans
        self.classes, self.source = classes, source
        numbers = all(is_number(v) for v in (*mean, *std))
        if not numbers or not all(v > 0 for v in std) or not len(mean) == len(std) >= 1:
            raise WorkbenchError(
                "a model's normalisation is impossible",
                expected="finite means, deviations above 0",
                got=f"mean {mean}, std {std}",
                where=source,
                fix="correct its configuration",
            )
        for name, values in (("mean", mean), ("std", std)):
            # Weights made for colour that were adapted to grey want the mean of the channels.
            each = values if len(values) == in_chans else [sum(values) / len(values)] * in_chans
            self.register_buffer(name, torch.tensor(each).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        images = images if self.order is None else images[:, self.order]
        output = self.model(((images + 1) / 2 - self.mean) / self.std)
        if isinstance(output, Tensor) or "logits" in output:
            return getattr(output, "logits", output)
        pooled = output.get("pooler_output")  # of transformers' backbones; else their class token
        return output["last_hidden_state"][:, 0] if pooled is None else pooled


def load_model(name: str, weights: str | Path = "", *, download: bool = False) -> Loaded:
    """A classifier with its weights, frozen in evaluation mode, without any code written for it.

    Args:
        name: one of `model_names()` or a timm name (with `weights`, or with timm's pretrained ones); a repository of the
            hub, "owner/name" or "owner/name@revision"; a folder with config.json and model.safetensors in transformers'
            or timm's format; or a .safetensors file whose architecture is named by a .json beside it, {"model": name,
            "overrides": {...}, "classes": [...]}, or in its own metadata.
        weights: a .safetensors file for the architecture `name`.
        download: fetch pretrained weights that are not on disk yet.

    Raises:
        WeightsMissing: if pretrained weights are neither on disk nor to be downloaded.
        WorkbenchError: on an unknown name, a missing or damaged file, weights that do not fit (naming the first).
    """
    if str(weights or name).endswith(PICKLES):
        raise pickled(Path(weights or name))
    try:
        loaded = _open(str(name), weights, download)
    except WorkbenchError:
        raise
    except (OSError, ImportError, *ODD) as error:
        raise WorkbenchError(
            "a model cannot be loaded",
            where=weights or name,
            got=f"{type(error).__name__}: {str(error)[:300]}",
            expected="an image classifier's safetensors with its own configuration, and sizes that fit",
            fix="check them (an image side is a multiple of the patch), or fetch both again",
        ) from None
    outputs, names = getattr(loaded.model, "num_classes", None), loaded.classes
    if names and isinstance(outputs, int) and len(names) != outputs:
        raise WorkbenchError(
            "a record names other classes than the model has",
            expected=f"{outputs} names",
            where=weights or name,
            got=f"{len(names)} names",
            fix="correct the record",
        )
    return loaded.eval().requires_grad_(False)


def _open(name: str, weights: str | Path, download: bool) -> Loaded:
    from timm.models import is_model_pretrained

    repository, path = name.removeprefix("hf-hub:"), resolve(name)
    if repository.startswith("timm/") and is_model_pretrained(repository.removeprefix("timm/")):
        name = repository.removeprefix("timm/")  # timm knows its own repositories best
    if path.name == "model.safetensors" and (path.parent / "config.json").is_file():
        path = path.parent
    folder, file = os.path.isdir(path), name.endswith(".safetensors")
    if weights and (folder or file or "/" in name):
        raise WorkbenchError(
            "this model brings its own weights",
            got=f"weights {weights}",
            where=name,
            expected="weights only with a name of the workbench or of timm",
            fix="leave one of them out",
        )
    if folder:
        return _from_folder(path)
    if file:
        return _from_file(path)
    if weights:
        return _from_file(resolve(weights), name)
    if "/" in name:
        return _from_folder(fetch(repository, download, name))
    return _pretrained(name, download)


def _from_file(file: Path, name: str = "") -> Loaded:
    """A model of the workbench or of timm from a file, of which the name may be recorded."""
    tensors, record = load_tensors(file), _record(file, needed=not name)
    name = name or record.model
    if record is None or record.model != name:
        record = Record(model=name)
    sizes, source = record.overrides, f"{name}, weights from {file}"
    check_sizes(sizes, tensors, file.with_suffix(".json"))
    classes = tuple(record.classes or ()) or None
    if name not in MODELS:
        return _timm(name, _config(name), tensors, file, source, sizes, classes)
    model = built(lambda: create_model(name, **sizes), tensors, file)
    load_weights(model, tensors, file)
    made = model_settings(name, sizes)
    # Our own classifiers take images in [-1, 1] as they are.
    return Loaded(model, made["img_size"], made["in_chans"], NEUTRAL, NEUTRAL, source, classes)


def _record(file: Path, needed: bool) -> Record | None:
    """What a checkpoint is of by the .json beside it, or by its metadata; None if nothing names it and none is needed."""
    from safetensors import safe_open
    from timm import is_model

    record = file.with_suffix(".json")
    if record.is_file():
        try:
            return Record.model_validate(json.loads(record.read_bytes()))
        except (OSError, ValueError, RecursionError) as error:
            if needed:
                raise WorkbenchError(
                    "the record beside a checkpoint cannot be used",
                    where=record,
                    got=str(error)[:300],
                    fix="write that file",
                    expected='JSON with at least {"model": name, "overrides": {}}',
                ) from None
    with safe_open(file, "pt") as opened:
        metadata = (opened.metadata() or {}).values()
    name = next((value for value in metadata if value in MODELS or is_model(value)), None)
    if needed and name is None:
        raise WorkbenchError(
            "nothing tells which architecture a checkpoint is of",
            where=file,
            expected=f'{record.name} beside it with {{"model": name, "overrides": {{}}}}',
            fix=f"write that file, or give the name as the model and {file.name} as its weights",
        )
    return Record(model=name) if name else None


def _config(name: str):
    """timm's configuration of pretrained weights for a name; WorkbenchError on unknown names."""
    import timm

    if not timm.is_model(name):
        one_of("model", name, [*timm.list_models(), *model_names()], WANTED)
    try:
        return timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
    except RuntimeError:  # a known architecture, an unknown tag
        tags = timm.list_pretrained(f"{name.split('.')[0]}.*")
        one_of("model", name, tags, WANTED)


def _pretrained(name: str, download: bool) -> Loaded:
    """A timm model with the weights timm names for it."""
    repository = None if name in MODELS else (config := _config(name)).hf_hub_id
    if not repository:
        train = f", or train it: python -m dfkd_lib.training train-teacher model={name}"
        raise WeightsMissing(
            f"model {name} has no pretrained weights",
            expected="weights=... a .safetensors file",
            got="none",
            fix=f"name a file or another model{train if name in MODELS else ''}",
        )
    file = fetch(repository, download, name) / "model.safetensors"
    source = f"timm's {name}, pretrained weights of {repository} on disk at {file}"
    loaded = _timm(name, config, load_tensors(file), file, source)
    if loaded.model.num_classes == config.num_classes:
        loaded.classes = _imagenet(config.num_classes)
    return loaded


def _timm(
    name: str,
    config,
    tensors: dict,
    file: Path,
    source: str,
    sizes: dict | None = None,
    classes=None,
) -> Loaded:
    """A timm model of that name with these weights: its outputs, channels and size of images are theirs."""
    import timm

    head, first = (
        f"{part[0] if isinstance(part, (tuple, list)) else part}.weight"
        for part in (config.classifier, config.first_conv)
    )
    tensors, others = unwrapped(tensors, first, file)
    if others:
        some = ", ".join(others[:3])
        source += f"; {len(others)} weights outside of the model are left out: {some}"
    own = {}
    if first in tensors:  # by timm's own names: those without a head are a backbone's
        # Swin's authors have head.weight for timm's head.fc.weight.
        outputs = tensors.get(head, tensors.get(f"{head.partition('.')[0]}.weight", ()))
        own = {"num_classes": len(outputs), "in_chans": tensors[first].shape[1]}
    sizes = {**own, **(sizes or {})}
    # Nothing else is opened, whatever a record asks for.
    nothing = {"pretrained": False, "checkpoint_path": ""}
    side = _own_side(lambda: timm.create_model(name, **nothing, **sizes), tensors, config)
    sizes = {**side, **sizes}
    model = built(lambda: timm.create_model(name, **nothing, **sizes), tensors, file)
    clean = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        fitted = clean(dict(tensors), model) if clean else tensors
    except ODD:  # a checkpoint of something else: `load_weights` names what does not fit
        fitted = tensors
    load_weights(model, fitted, file)
    source += _interpolated(model.state_dict(), tensors)
    usual = 3, (config.input_size or (3, 224, 224))[-1]
    side = (expected_shape(model) or usual)[1]
    normalisation = config.mean or NEUTRAL, config.std or NEUTRAL
    channels, classifies = sizes.get("in_chans", 3), model.num_classes > 0
    return Loaded(model, side, channels, *normalisation, source, classes, classifies)


def _interpolated(state: dict, tensors: dict) -> str:
    """What of a file had to be brought to another size, in words; "" if nothing."""
    other = [key for key in state if key in tensors and tensors[key].numel() != state[key].numel()]
    if not other:
        return ""
    was, made = (tuple(each[other[0]].shape) for each in (tensors, state))
    more = f" (and {len(other) - 1} more)" if other[1:] else ""
    return f"; made for another size: {other[0]} is interpolated from {was} to {made}{more}"


def _own_side(build: Callable[[], nn.Module], tensors: dict, config) -> dict:
    """{"img_size": pixels} that a timm model's position embeddings, or its configuration, were made for; {} if the usual."""
    with torch.device("meta"):
        model = build()
    patches = getattr(model, "patch_embed", None)
    grid, patch = getattr(patches, "grid_size", None), getattr(patches, "patch_size", None)
    here, there = (each.get("pos_embed") for each in (model.state_dict(), tensors))
    if None in (grid, patch) or len(set(grid)) != 1:
        return {}
    if here is not None and there is not None and there.ndim == here.ndim == 3:
        # Tokens before the patches have positions in some models and not in others.
        count = there.shape[1] - here.shape[1] + grid[0] ** 2
        side = math.isqrt(max(0, count))
        return {"img_size": side * patch[0]} if side**2 == count and side != grid[0] else {}
    wanted = (config.input_size or (3, None))[-1] if config.fixed_input_size else None
    return {"img_size": wanted} if wanted and wanted != grid[0] * patch[0] else {}


def _imagenet(count: int) -> tuple[str, ...] | None:
    """The names of the ImageNet variant of that many classes, None if there is none."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": count})
    if not subset:
        return None
    info = ImageNetInfo(subset)
    return tuple(info.index_to_description(i).split(",")[0] for i in range(count))


def _from_folder(folder: Path) -> Loaded:
    """A model in timm's or transformers' folder format."""
    config, file = read_json(folder / "config.json"), folder / "model.safetensors"
    if not any(folder.glob("model*.safetensors")):  # one, or parts of it
        pickles = sorted(p for p in folder.iterdir() if p.suffix in PICKLES)
        # Beside it may lie an optimizer's and a trainer's.
        if found := [p for p in pickles if "model" in p.name] or pickles:
            raise pickled(found[0], file)
    if "architecture" not in config:
        return _transformers(folder, config)
    from timm.models import PretrainedCfg

    name = config["architecture"]
    usual = _config(name)  # refuses a name that timm has not
    known = {"classifier": usual.classifier, "first_conv": usual.first_conv}
    known |= {**config.get("pretrained_cfg", {}), **config}
    fields = PretrainedCfg.__dataclass_fields__
    about = PretrainedCfg(**{key: value for key, value in known.items() if key in fields})
    tensors, sizes = load_tensors(file), config.get("model_args", {})
    check_sizes(sizes, tensors, folder / "config.json")
    loaded = _timm(name, about, tensors, file, f"timm's {name}, weights from {file}", sizes)
    if config.get("num_classes") and not loaded.classifies:
        raise misfit(f"a classifier of {config['num_classes']} classes", "none", file)
    labels, texts = about.label_names or (), about.label_descriptions or {}
    if len(labels) == loaded.model.num_classes:
        loaded.classes = tuple(str(texts.get(label, label)) for label in labels)
    return loaded


def _transformers(folder: Path, record: dict) -> Loaded:
    """An image classifier in transformers' format."""
    if (folder / "model.safetensors").is_file():
        numbers = {key: value for key, value in record.items() if is_number(value)}
        check_sizes(numbers, load_tensors(folder / "model.safetensors"), folder / "config.json")
    model, classifies = open_transformers(folder, record)
    config = model.config
    source, prepare = f"transformers' {config.model_type} from {folder}", {}
    if (folder / "preprocessor_config.json").is_file():
        prepare = read_json(folder / "preprocessor_config.json")
    else:
        source += ", whose preprocessor_config.json is not there: it gets images in [-1, 1]"
    mean, std, order = _normalisation(folder, prepare) if prepare else (NEUTRAL, NEUTRAL, None)
    names, classes = config.id2label or {}, None
    unnamed = {i: f"LABEL_{i}" for i in names}  # transformers' own words for outputs without names
    if classifies and set(names) == set(range(len(names))) and names != unnamed:
        classes = tuple(str(names[i]) for i in range(len(names)))
    channels, side = expected_shape(model) or (3, _side(prepare))
    return Loaded(model, side, channels, mean, std, source, classes, classifies, order)


def _normalisation(folder: Path, prepare: dict) -> tuple:
    """(mean, std of images in [0, 1], which channel each of the model's is or None) by what a folder's own image processor
    makes of plain colours: its file may leave out what its class does besides (scale, offset, blue first)."""
    from transformers import AutoImageProcessor

    if len(prepare.get("image_mean") or "RGB") != 3:  # of one channel: their names say all
        return prepare["image_mean"], prepare["image_std"], None
    # Black, red, green, blue.
    colours = 255 * torch.cat([torch.zeros(1, 3), torch.eye(3)]).to(torch.uint8)
    flat = colours[:, :, None, None].expand(-1, -1, 32, 32)
    try:
        with TemporaryDirectory() as plain:  # files of others may begin with a byte order mark
            for name in ("config.json", "preprocessor_config.json"):
                Path(plain, name).write_text(json.dumps(read_json(folder / name)))
            processor = AutoImageProcessor.from_pretrained(plain, local_files_only=True)
        seen = processor(list(flat), return_tensors="pt", input_data_format="channels_first")
        black, *pure = seen["pixel_values"].float().mean((2, 3))
        slopes = torch.stack(pure, 1) - black[:, None]  # (of the model's channels, of the image's)
        order = slopes.abs().argmax(1)
        scale = slopes.gather(1, order[:, None])[:, 0]
        apart = slopes.scatter(1, order[:, None], 0.0).abs().max()
        if apart > 1e-3 * scale.abs().max() or len(set(order.tolist())) != 3:
            raise ValueError(f"{type(processor).__name__} does more than scale and order channels")
    except (OSError, ImportError, *ODD) as error:
        raise WorkbenchError(
            "a model's image processor cannot be used",
            got=f"{type(error).__name__}: {str(error)[:200]}",
            where=folder / "preprocessor_config.json",
            expected="one of transformers' own, which makes each channel of one of the image's three",
            fix="correct that file; without it the model gets images in [-1, 1]",
        ) from None
    # Single precision has 7 digits; a mean of 0.485 is to be that.
    mean, std = ([round(v, 6) for v in each.tolist()] for each in (-black / scale, 1 / scale))
    return mean, std, None if order.tolist() == [0, 1, 2] else order.tolist()


def _side(prepare: dict) -> int:
    """Pixels that a preprocessor_config.json brings images to; 224 where it does not say."""
    for size in (prepare.get("crop_size"), prepare.get("size")):
        each = list(size.values()) if isinstance(size, dict) else [size]
        if each and is_number(each[0], 1, 4096):
            return int(each[0])
    return 224
