"""Classifiers from elsewhere: a timm name, a safetensors file, a folder in transformers' format, a hub repository."""

import difflib
import inspect
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dfkd_lib.core import WorkbenchError, is_number
from dfkd_lib.core.artifacts import load_tensors, resolve
from dfkd_lib.models.create import MODELS, create_model, model_names
from dfkd_lib.models.weights import (
    as_numbers,
    check_fits,
    check_sizes,
    checked_record,
    load_weights,
    unwrapped,
)

FILES = ["*.json", "model.safetensors"]
PICKLES = (".pth", ".pt", ".bin", ".ckpt")
NEUTRAL = (0.5, 0.5, 0.5)  # mean and deviation that leave images in [-1, 1] as they are
ODD = (
    AssertionError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


class WeightsMissing(WorkbenchError):
    """Pretrained weights are not on disk, and nobody allowed a download."""


class Loaded(nn.Module):
    """A classifier from elsewhere that takes images as the workbench has them, and says what it is.

    Takes float images (B, in_chans, img_size, img_size) in [-1, 1], normalises them as its weights want, returns logits.

    Args:
        img_size: side in pixels. classes: names of its outputs, or None where nobody knows them.
        mean, std: of each channel, for images in [0, 1]. source: one sentence on where it comes from.
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
        self.model, self.img_size, self.in_chans, self.classes, self.source = (
            model,
            img_size,
            in_chans,
            classes,
            source,
        )
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
        # Weights made for colour that were adapted to grey want the mean of the channels.
        mean, std = (
            torch.tensor(v if len(v) == in_chans else [sum(v) / len(v)] * in_chans)
            for v in (mean, std)
        )
        self.register_buffer("mean", mean.view(-1, 1, 1), persistent=False)
        self.register_buffer("std", std.view(-1, 1, 1), persistent=False)

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
        weights: a .safetensors file for the architecture `name`. num_classes, img_size, in_chans: where they differ from
            what the checkpoint or the architecture says; position embeddings and first weights are adapted as timm does.
        download: fetch pretrained weights that are not on disk yet.

    Returns:
        A module from float images (B, in_chans, img_size, img_size) in [-1, 1] to logits; `Loaded` says what it is.

    Raises:
        WeightsMissing: if pretrained weights are neither on disk nor to be downloaded.
        WorkbenchError: on an unknown name, a missing or damaged file, weights that do not fit (naming the first).
    """
    sizes = {
        key: value
        for key, value in (
            ("num_classes", num_classes),
            ("img_size", img_size),
            ("in_chans", in_chans),
        )
        if value is not None
    }
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
        in_folder = path.name == "model.safetensors" and (path.parent / "config.json").is_file()
        return (
            _told(_from_folder, path.parent, sizes) if in_folder else _told(_from_file, path, sizes)
        )
    if os.path.isdir(path):
        return _told(_from_folder, path, sizes)
    if whole:
        return _told(_from_folder, fetch(repository, download, name), sizes)
    if weights:
        return _told(_from_file, resolve(weights), sizes, name)
    if name in MODELS:
        raise WeightsMissing(
            f"model {name} has no pretrained weights",
            expected="weights=... a .safetensors file",
            got="none",
            fix="name a file, or train it: python -m dfkd_lib.distill train-teacher",
        )
    return _pretrained(name, sizes, download)


def _told(read: Callable, path: Path, sizes: dict, *name: str) -> Loaded:
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
    about = _about(file, needed=not name)
    name = name or about["model"]
    if about.get("model") == name:
        sizes = {**about.get("overrides", {}), **sizes}
        check_sizes(sizes, tensors, file.with_suffix(".json"))
    source = f"weights from {file}"
    loaded = (
        _ours(name, tensors, file, sizes, source)
        if name in MODELS
        else _build(name, _config(name), tensors, file, sizes, f"timm's {name}, {source}")
    )
    if about.get("model") == name and about.get("classes"):
        loaded.classes = tuple(about["classes"])
    return loaded


def _about(file: Path, needed: bool) -> dict:
    """What the .json beside a checkpoint says of it, or the checkpoint's metadata; {} if nothing does and none is needed."""
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
        said = [
            value
            for value in (opened.metadata() or {}).values()
            if value in MODELS or is_model(value)
        ]
    if needed and not said:
        raise WorkbenchError(
            "nothing says which architecture a checkpoint is of",
            where=file,
            expected=f'{record.name} beside it with {{"model": name, "overrides": {{}}}}',
            fix=f"write that file, or give the name as the model and {file.name} as its weights",
        )
    return {"model": said[0]} if said else {}


def _ours(name: str, tensors: dict, file: Path, sizes: dict, source: str) -> Loaded:
    """One of our own classifiers, which take images in [-1, 1] as they are."""
    check_fits(lambda: create_model(name, **sizes), tensors, file)
    model = create_model(name, **sizes)
    load_weights(model, tensors, file)
    builder, defaults = MODELS[name]
    said = (
        {p.name: p.default for p in inspect.signature(builder).parameters.values()}
        | defaults
        | sizes
    )
    return Loaded(
        model, said["img_size"], said["in_chans"], None, NEUTRAL, NEUTRAL, f"{name}, {source}"
    )


def _config(name: str):
    """timm's configuration of pretrained weights for a name, None where it has none; WorkbenchError on unknown names."""
    import timm

    if timm.is_model(name):
        try:
            return timm.get_pretrained_cfg(name)
        except RuntimeError:  # a known architecture, an unknown tag
            known = timm.list_pretrained(f"{name.split('.')[0]}.*")
    else:
        known = [*timm.list_models(), *model_names()]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    raise WorkbenchError(
        "no such model",
        got=name,
        expected="a name of the workbench or of timm, a .safetensors file, "
        "a folder in transformers' format, or owner/name on the hub",
        fix=f"did you mean {', '.join(near)}?" if near else "see timm.list_models('*vit*')",
    )


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
    made = _build(
        name,
        config,
        load_tensors(file),
        file,
        sizes,
        f"timm's {name}, pretrained weights of {config.hf_hub_id} on disk at {file}",
    )
    made.classes = (
        _imagenet(made.model.num_classes) if made.model.num_classes == config.num_classes else None
    )
    return made


def _build(name: str, config, tensors: dict, file, sizes: dict, source: str) -> Loaded:
    """A timm model of that name with these weights, as many outputs and channels as they have unless `sizes` says so."""
    import timm
    from timm.models import adapt_input_conv

    tensors = unwrapped(tensors)
    said = {
        key: getattr(config, key, None)
        for key in ("classifier", "first_conv", "mean", "std", "input_size")
    }
    head, first = (
        f"{value[0] if isinstance(value, (tuple, list)) else value}.weight"
        for value in (said["classifier"], said["first_conv"])
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
    except ODD:  # a checkpoint of something else: said better by what does not fit
        pass
    load_weights(model, tensors, file)
    if not model.num_classes:
        source += "; it has no classifier: its outputs are features"
    side = sizes.get("img_size") or (said["input_size"] or (3, 224, 224))[-1]
    return Loaded(
        model,
        side,
        sizes.get("in_chans", 3),
        None,
        said["mean"] or NEUTRAL,
        said["std"] or NEUTRAL,
        source,
    )


def _imagenet(count: int) -> tuple[str, ...] | None:
    """The names of the ImageNet variant of that many classes, None if there is none."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": count})
    if not subset:
        return None
    info = ImageNetInfo(subset)
    return tuple(info.index_to_description(i).split(",")[0] for i in range(count))


def fetch(repository: str, download: bool, name: str) -> Path:
    """The folder of a hub repository's configuration and weights: from the local cache, or downloaded if allowed.

    Args:
        repository: "owner/name" or "owner/name@revision". name: of the model, for the message.

    Raises:
        WeightsMissing: if they are not there, or the download fails. WorkbenchError: if that is no such name.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = repository.partition("@")
    try:
        folder = Path(
            snapshot_download(
                repository,
                revision=revision or None,
                allow_patterns=FILES,
                local_files_only=not download,
            )
        )
    except HFValidationError as error:
        raise WorkbenchError(
            "no such model",
            got=name,
            expected="a name, a file, a folder, or owner/name on the hub",
            where=str(error)[:200],
            fix="check the path or the name",
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        _not_there(
            repository,
            name,
            download,
            f"the download failed: {' '.join(str(error).split())[:200]}"
            if download
            else "not in the local cache",
        )
    if not (folder / "model.safetensors").is_file():
        _not_there(
            repository,
            name,
            download,
            "a repository without model.safetensors, or one not wholly fetched",
        )
    return folder


def _not_there(repository: str, name: str, download: bool, why: str) -> None:
    fix = "check name and network" if download else "allow the download (download=True)"
    raise WeightsMissing(
        f"pretrained weights of {name} are not on this disk",
        got=why,
        expected=f"model.safetensors of hub repository {repository}",
        fix=f"{fix}, or give a .safetensors file as weights",
    ) from None


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
        return _transformers(folder, sizes)
    from timm.models import PretrainedCfg

    name, file = config["architecture"], folder / "model.safetensors"
    _config(name)
    known = {**config.get("pretrained_cfg", {}), "num_classes": config.get("num_classes", 1000)}
    about = PretrainedCfg(
        **{key: value for key, value in known.items() if key in PretrainedCfg.__dataclass_fields__}
    )
    tensors, sizes = load_tensors(file), {**config.get("model_args", {}), **sizes}
    check_sizes(sizes, tensors, folder / "config.json")
    made = _build(name, about, tensors, file, sizes, f"timm's {name}, weights from {file}")
    labels = config.get("label_names") or known.get("label_names") or ()
    if len(labels) == made.model.num_classes:
        said = config.get("label_descriptions") or known.get("label_descriptions") or {}
        made.classes = tuple(str(said.get(label, label)) for label in labels)
    return made


def _transformers(folder: Path, sizes: dict) -> Loaded:
    from transformers import AutoConfig, AutoModelForImageClassification

    # A repository's own code is never run, nor is the reader asked whether it may.
    how = {"local_files_only": True, "trust_remote_code": False}
    if (folder / "model.safetensors").is_file():
        check_sizes(
            {k: v for k, v in _json(folder / "config.json").items() if is_number(v)},
            load_tensors(folder / "model.safetensors"),
            folder / "config.json",
        )
    try:
        config = AutoConfig.from_pretrained(folder, **how)
        model, report = AutoModelForImageClassification.from_pretrained(
            folder, **how, use_safetensors=True, dtype=torch.float32, output_loading_info=True
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
    names = config.id2label or {}
    classes = (
        tuple(str(names[i]) for i in range(len(names)))
        if set(names) == set(range(len(names)))
        else None
    )
    return Loaded(model, own["img_size"], own["in_chans"], classes, mean, std, source)


def expected_shape(model: nn.Module) -> tuple[int, int] | None:
    """(channels, side) of the images a model was made for, as far as it says so; else None."""
    for said in (
        model,
        getattr(model, "config", None),
    ):  # a model of ours or from elsewhere, one of transformers
        for channels, side in (("in_chans", "img_size"), ("num_channels", "image_size")):
            if isinstance(getattr(said, channels, None), int) and isinstance(
                getattr(said, side, None), int
            ):
                return getattr(said, channels), getattr(said, side)
    for module in model.modules():
        size, proj = getattr(module, "img_size", None), getattr(module, "proj", None)
        if isinstance(size, tuple) and isinstance(proj, nn.Conv2d):
            return proj.in_channels, size[0]
    return None


_tried: WeakKeyDictionary[nn.Module, set] = WeakKeyDictionary()


def check_images(model: nn.Module, shape: tuple[int, int, int], where: str = "images") -> None:
    """Raise WorkbenchError unless a model takes images of shape (C, H, W)."""
    if shape in _tried.setdefault(model, set()):
        return
    known = expected_shape(model)
    # A wrong number of channels may be spread silently; whether another size will do, only the model can tell.
    problem = (
        "another number of channels" if known and shape[0] != known[0] else _trial(model, shape)
    )
    expected = (
        f"(C, H, W) = {(*known, known[1])}" if known else "images of the size it was made for"
    )
    if problem:
        raise WorkbenchError(
            "this model does not take these images",
            expected=expected,
            where=where,
            got=f"{shape}: {problem}",
            fix="give a folder's images another size (size=...) or number of "
            "channels, or choose a model made for these",
        )
    _tried[model].add(shape)


def _trial(model: nn.Module, shape: tuple[int, int, int]) -> str:
    """What goes wrong when the model is given one black image of that shape; "" if nothing."""
    first = next(model.parameters(), torch.zeros(1))
    try:
        with torch.inference_mode():
            model(torch.zeros(1, *shape, device=first.device, dtype=first.dtype))
    except (AssertionError, RuntimeError, ValueError, TypeError) as error:
        return str(error)[:200] or type(error).__name__
    return ""
