"""Classifiers from elsewhere: a timm name, a safetensors file, a folder in transformers' format, a hub repository."""

import inspect
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from dfkd_lib.core import WorkbenchError, is_number
from dfkd_lib.core.artifacts import load_tensors, resolve
from dfkd_lib.models.create import MODELS, ODD, create_model, model_names, unknown_name
from dfkd_lib.models.hub import WANTED, WeightsMissing, fetch
from dfkd_lib.models.weights import (
    as_numbers,
    check_fits,
    check_sizes,
    checked_record,
    load_weights,
    unwrapped,
)

PICKLES = (".pth", ".pt", ".bin", ".ckpt")
NEUTRAL = (0.5, 0.5, 0.5)  # mean and deviation that leave images in [-1, 1] as they are


class Loaded(nn.Module):
    """A classifier from elsewhere that takes images as the workbench has them, and says what it is.

    Takes float images (B, in_chans, img_size, img_size) in [-1, 1], normalises them as its weights want, returns logits.

    Args:
        model: takes normalised images.
        img_size: side in pixels.
        in_chans: channels of its images.
        classes: names of its outputs, or None where nobody knows them.
        mean: of each channel, for images in [0, 1].
        std: of each channel, above 0.
        source: one sentence on where it comes from.

    Raises:
        WorkbenchError: on an impossible mean or deviation.
    """

    def __init__(
        self,
        model: nn.Module,
        img_size: int,
        in_chans: int,
        classes: tuple[str, ...] | None,
        mean,
        std,
        source: str,
    ):
        super().__init__()
        self.model, self.img_size, self.in_chans = model, img_size, in_chans
        self.classes, self.source = classes, source
        if (
            not all(is_number(v) for v in (*mean, *std))
            or not all(v > 0 for v in std)
            or not len(mean) == len(std) >= 1
        ):
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
        output = self.model(((images + 1) / 2 - self.mean) / self.std)
        return getattr(output, "logits", output)


def load_model(
    name: str,
    weights: str | Path = "",
    *,
    num_classes: int | None = None,
    img_size: int | None = None,
    in_chans: int | None = None,
    download: bool = False,
) -> nn.Module:
    """A classifier with its weights, frozen in evaluation mode, without any code written for it.

    Args:
        name: one of `model_names()` or a timm name (with `weights`, or with timm's pretrained ones); a repository of the
            hub, "owner/name" or "owner/name@revision"; a folder with config.json and model.safetensors in transformers'
            or timm's format; or a .safetensors file that says what it is of: by a .json beside it, {"model": name,
            "overrides": {...}, "classes": [...]}, or by such a name in its own metadata.
        weights: a .safetensors file for the architecture `name`.
        num_classes: where they differ from what the checkpoint or the architecture says.
        img_size: likewise, pixels; position embeddings are adapted as timm does.
        in_chans: likewise; first weights are adapted as timm does.
        download: fetch pretrained weights that are not on disk yet.

    Returns:
        A module from float images (B, in_chans, img_size, img_size) in [-1, 1] to logits; `Loaded` says what it is.

    Raises:
        WeightsMissing: if pretrained weights are neither on disk nor to be downloaded.
        WorkbenchError: on an unknown name, a missing or damaged file, weights that do not fit (naming the first).
    """
    asked = {"num_classes": num_classes, "img_size": img_size, "in_chans": in_chans}
    sizes = {key: value for key, value in asked.items() if value is not None}
    if str(name).endswith(PICKLES) or str(weights).endswith(PICKLES):
        raise WorkbenchError(
            "checkpoints are read as safetensors only, since others may run code",
            got=weights or name,
            expected="a .safetensors file",
            fix="convert it where you trust it: safetensors.torch."
            "save_file(torch.load(path, weights_only=True), 'model.safetensors')",
        )
    return _open(str(name), weights, sizes, download).eval().requires_grad_(False)


def _open(name: str, weights: str | Path, sizes: dict, download: bool) -> Loaded:
    from timm.models import is_model_pretrained

    path = resolve(name)
    repository = name.removeprefix("hf-hub:")
    if repository.startswith("timm/") and is_model_pretrained(repository.removeprefix("timm/")):
        name = repository.removeprefix("timm/")  # timm knows its own repositories best
    whole = name.endswith(".safetensors") or os.path.isdir(path) or "/" in name
    if weights and whole:
        raise WorkbenchError(
            "this model brings its own weights",
            got=f"weights {weights}",
            where=name,
            expected="weights only with a name of the workbench or of timm",
            fix="leave one of them out",
        )
    if name.endswith(".safetensors"):
        if path.name != "model.safetensors" or not (path.parent / "config.json").is_file():
            return _guarded(_from_file, path, sizes)
        path = path.parent
    if whole:
        folder = path if os.path.isdir(path) else fetch(repository, download, name)
        return _guarded(_from_folder, folder, sizes)
    if weights:
        return _guarded(_from_file, resolve(weights), sizes, name)
    if name in MODELS:
        raise WeightsMissing(
            f"model {name} has no pretrained weights",
            expected="weights=... a .safetensors file",
            got="none",
            fix="name a file, or train it: python -m dfkd_lib.training train-teacher",
        )
    return _pretrained(name, sizes, download)


def _guarded(read: Callable, path: Path, sizes: dict, *name: str) -> Loaded:
    """What `read` makes of a path; what a senseless record or configuration sets off in it, as a clear error."""
    try:
        loaded = read(path, sizes, *name)
    except WorkbenchError:
        raise
    except (OSError, *ODD) as error:
        raise WorkbenchError(
            "a model cannot be built from what its file and its record say",
            where=path,
            got=f"{type(error).__name__}: {str(error)[:200]}",
            fix="fetch both again",
            expected="a checkpoint with its own record",
        ) from None
    outputs = getattr(loaded.model, "num_classes", None)
    if loaded.classes and isinstance(outputs, int) and len(loaded.classes) != outputs:
        raise WorkbenchError(
            "a record names other classes than the model has",
            expected=f"{outputs} names",
            where=path,
            got=f"{len(loaded.classes)} names",
            fix="correct the record",
        )
    return loaded


def _from_file(file: Path, sizes: dict, name: str = "") -> Loaded:
    """A model of the workbench or of timm from a file, which may itself say the name."""
    tensors = load_tensors(file)
    record = _record(file, needed=not name)
    name = name or record["model"]
    known = record if record.get("model") == name else {}
    if known:
        sizes = {**known.get("overrides", {}), **sizes}
        check_sizes(sizes, tensors, file.with_suffix(".json"))
    source = f"weights from {file}"
    if name in MODELS:
        loaded = _ours(name, tensors, file, sizes, f"{name}, {source}")
    else:
        loaded = _build(name, _config(name), tensors, file, sizes, f"timm's {name}, {source}")
    if known.get("classes"):
        loaded.classes = tuple(known["classes"])
    return loaded


def _record(file: Path, needed: bool) -> dict:
    """What the .json beside a checkpoint says of it, or its metadata; {} if nothing does and none is needed."""
    from safetensors import safe_open
    from timm import is_model

    record = file.with_suffix(".json")
    if record.is_file():
        try:
            return checked_record(json.loads(record.read_text()))
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            if needed:
                raise WorkbenchError(
                    "the record beside a checkpoint cannot be used",
                    where=record,
                    got=repr(error)[:200],
                    fix="write that file",
                    expected='JSON with at least {"model": name, "overrides": {}}',
                ) from None
    with safe_open(file, "pt") as opened:
        metadata = (opened.metadata() or {}).values()
    name = next((value for value in metadata if value in MODELS or is_model(value)), None)
    if needed and name is None:
        raise WorkbenchError(
            "nothing says which architecture a checkpoint is of",
            where=file,
            expected=f'{record.name} beside it with {{"model": name, "overrides": {{}}}}',
            fix=f"write that file, or give the name as the model and {file.name} as its weights",
        )
    return {"model": name} if name else {}


def _ours(name: str, tensors: dict, file: Path, sizes: dict, source: str) -> Loaded:
    """One of our own classifiers, which take images in [-1, 1] as they are."""
    check_fits(lambda: create_model(name, **sizes), tensors, file)
    model = create_model(name, **sizes)
    load_weights(model, tensors, file)
    builder, defaults = MODELS[name]
    parameters = inspect.signature(builder).parameters.values()
    shape = {p.name: p.default for p in parameters} | defaults | sizes
    return Loaded(model, shape["img_size"], shape["in_chans"], None, NEUTRAL, NEUTRAL, source)


def _config(name: str):
    """timm's configuration of pretrained weights for a name, None where it has none; WorkbenchError on unknown names."""
    import timm

    if not timm.is_model(name):
        raise unknown_name("model", name, [*timm.list_models(), *model_names()], WANTED)
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError:  # a known architecture, an unknown tag
        tags = timm.list_pretrained(f"{name.split('.')[0]}.*")
        raise unknown_name("model", name, tags, WANTED) from None


def _pretrained(name: str, sizes: dict, download: bool) -> Loaded:
    """A timm model with the weights timm names for it."""
    config = _config(name)
    if config is None or not config.hf_hub_id:
        raise WeightsMissing(
            f"timm has no pretrained weights for {name} on the hub",
            got="none",
            expected="weights=... a .safetensors file",
            fix="name a file, or another model",
        )
    file = fetch(config.hf_hub_id, download, name) / "model.safetensors"
    source = f"timm's {name}, pretrained weights of {config.hf_hub_id} on disk at {file}"
    loaded = _build(name, config, load_tensors(file), file, sizes, source)
    if loaded.model.num_classes == config.num_classes:
        loaded.classes = _imagenet(config.num_classes)
    return loaded


def _build(name: str, config, tensors: dict, file, sizes: dict, source: str) -> Loaded:
    """A timm model of that name with these weights, as many outputs and channels as they have unless `sizes` says so."""
    import timm
    from timm.models import adapt_input_conv

    tensors = unwrapped(tensors)
    about = {
        key: getattr(config, key, None)
        for key in ("classifier", "first_conv", "mean", "std", "input_size")
    }
    head, first = (
        f"{value[0] if isinstance(value, (tuple, list)) else value}.weight"
        for value in (about["classifier"], about["first_conv"])
    )
    if head in tensors:
        sizes = {"num_classes": len(tensors[head]), **sizes}
    if first in tensors:
        own = tensors[first].shape[1]
        sizes = {"in_chans": own, **sizes}
        if own == 3 != sizes["in_chans"]:
            tensors = {**tensors, first: adapt_input_conv(sizes["in_chans"], tensors[first])}
    try:
        check_fits(lambda: timm.create_model(name, **sizes), tensors, file)
        model = timm.create_model(name, **sizes)
    except WorkbenchError:
        raise
    except ODD as error:
        raise WorkbenchError(
            f"model {name} cannot be built so",
            got=f"{sizes}: {str(error)[:200]}",
            fix="the image side must be a multiple of the patch",
        ) from None
    clean = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        tensors = clean(dict(tensors), model) if clean else tensors
    except ODD:  # a checkpoint of something else: `load_weights` names what does not fit
        pass
    load_weights(model, tensors, file)
    if not model.num_classes:
        source += "; it has no classifier: its outputs are features"
    side = sizes.get("img_size") or (about["input_size"] or (3, 224, 224))[-1]
    normalisation = about["mean"] or NEUTRAL, about["std"] or NEUTRAL
    return Loaded(model, side, sizes.get("in_chans", 3), None, *normalisation, source)


def _imagenet(count: int) -> tuple[str, ...] | None:
    """The names of the ImageNet variant of that many classes, None if there is none."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": count})
    if not subset:
        return None
    info = ImageNetInfo(subset)
    return tuple(info.index_to_description(i).split(",")[0] for i in range(count))


def _json(path: Path) -> dict:
    try:
        if not isinstance(found := json.loads(path.read_text()), dict):
            raise ValueError("no JSON object")
        return found
    except (OSError, ValueError, RecursionError) as error:
        raise WorkbenchError(
            f"a model folder has no readable {path.name}",
            got=str(error)[:200],
            where=path.parent,
            expected="config.json and model.safetensors",
            fix="name a folder that has both",
        ) from None


def _from_folder(folder: Path, sizes: dict) -> Loaded:
    """A model in timm's or transformers' folder format."""
    config = _json(folder / "config.json")
    if "architecture" not in config:
        return _transformers(folder, config, sizes)
    from timm.models import PretrainedCfg

    name, file = config["architecture"], folder / "model.safetensors"
    _config(name)
    known = {**config.get("pretrained_cfg", {}), "num_classes": config.get("num_classes", 1000)}
    fields = PretrainedCfg.__dataclass_fields__
    about = PretrainedCfg(**{key: value for key, value in known.items() if key in fields})
    tensors, sizes = load_tensors(file), {**config.get("model_args", {}), **sizes}
    check_sizes(sizes, tensors, folder / "config.json")
    loaded = _build(name, about, tensors, file, sizes, f"timm's {name}, weights from {file}")
    labels = config.get("label_names") or known.get("label_names") or ()
    if len(labels) == loaded.model.num_classes:
        texts = config.get("label_descriptions") or known.get("label_descriptions") or {}
        loaded.classes = tuple(str(texts.get(label, label)) for label in labels)
    return loaded


def _transformers(folder: Path, record: dict, sizes: dict) -> Loaded:
    """An image classifier in transformers' format."""
    if (folder / "model.safetensors").is_file():
        numbers = {key: value for key, value in record.items() if is_number(value)}
        check_sizes(numbers, load_tensors(folder / "model.safetensors"), folder / "config.json")
    model = _from_pretrained(folder)
    config = model.config
    side = getattr(config, "image_size", None) or 224
    own = {
        "num_classes": config.num_labels,
        "in_chans": getattr(config, "num_channels", 3),
        "img_size": side if isinstance(side, int) else side[0],
    }
    if any(own[key] != value for key, value in sizes.items()):
        raise WorkbenchError(
            "a model in transformers' format keeps its own sizes",
            expected=own,
            got=sizes,
            where=folder,
            fix="leave them out, or use timm's form of this model",
        )
    source, prepare = f"transformers' {config.model_type} from {folder}", {}
    if (folder / "preprocessor_config.json").is_file():
        prepare = _json(folder / "preprocessor_config.json")
    else:
        source += ", whose preprocessor_config.json is not there: it gets images in [-1, 1]"
    mean, std = prepare.get("image_mean") or NEUTRAL, prepare.get("image_std") or NEUTRAL
    if prepare.get("do_normalize") is False:
        mean, std = (0.0,) * 3, (1.0,) * 3
    names, classes = config.id2label or {}, None
    if set(names) == set(range(len(names))):
        classes = tuple(str(names[i]) for i in range(len(names)))
    return Loaded(model, own["img_size"], own["in_chans"], classes, mean, std, source)


def _from_pretrained(folder: Path) -> nn.Module:
    """transformers' image classifier of a folder, every weight of it there and a number."""
    from transformers import AutoModelForImageClassification

    try:
        model, report = AutoModelForImageClassification.from_pretrained(
            folder,
            local_files_only=True,
            # A repository's own code is never run, nor is the reader asked whether it may.
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ImportError, *ODD) as error:
        raise WorkbenchError(
            "a folder in transformers' format cannot be loaded",
            got=str(error)[:300],
            where=folder,
            expected="an image classifier's config.json and model.safetensors",
            fix="check that it is an image classifier, saved as safetensors",
        ) from None
    as_numbers(model.state_dict(), model.state_dict(), folder)
    missing = sorted(str(key) for key in report["missing_keys"])
    if missing:
        raise WorkbenchError(
            "a checkpoint does not fit the model",
            expected=f"{missing[0]} (and {len(missing) - 1} more)",
            got="no such weight",
            where=folder,
            fix="choose a checkpoint of an image classifier",
        )
    return model
