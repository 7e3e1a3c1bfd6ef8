"""Classifiers from elsewhere: a timm name, a safetensors file, a folder in transformers' format, a hub repository."""

import difflib
import json
import sys
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dfkd_lib.artifacts import load_tensors, resolve
from dfkd_lib.errors import WorkbenchError
from dfkd_lib.models.create import MODELS, create_model, model_names

FILES = ["*.json", "model.safetensors"]
NEUTRAL = (0.5, 0.5, 0.5)  # mean and deviation that leave images in [-1, 1] as they are


class WeightsMissing(WorkbenchError):
    """Pretrained weights are not on disk, and nobody allowed a download."""


class Loaded(nn.Module):
    """A classifier from elsewhere that takes images as the workbench has them, and says what it is.

    Takes float images (B, in_chans, img_size, img_size) in [-1, 1], normalises them as its weights want, returns logits.

    Args:
        img_size: side in pixels. classes: names of its outputs, or None where nobody knows them.
        mean, std: of each channel, for images in [0, 1]. source: one sentence on where it comes from.
    """

    def __init__(self, model: nn.Module, img_size: int, in_chans: int, classes: tuple[str, ...] | None, mean, std,
                 source: str):
        super().__init__()
        self.model, self.img_size, self.in_chans, self.classes, self.source = model, img_size, in_chans, classes, source
        # Weights made for colour that were adapted to grey want the mean of the channels.
        mean, std = (torch.tensor(v if len(v) == in_chans else [sum(v) / len(v)] * in_chans) for v in (mean, std))
        self.register_buffer("mean", mean.view(-1, 1, 1), persistent=False)
        self.register_buffer("std", std.view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        output = self.model(((images + 1) / 2 - self.mean) / self.std)
        return getattr(output, "logits", output)


def load_model(name: str, weights: str | Path = "", *, num_classes: int | None = None, img_size: int | None = None,
               in_chans: int | None = None, download: bool = False) -> nn.Module:
    """A classifier with its weights, in evaluation mode, without any code written for it.

    Args:
        name: one of `model_names()` or a timm name (with `weights`, or with timm's pretrained ones); a repository of the
            hub, "owner/name"; a folder with config.json and model.safetensors in transformers' or timm's format; or a
            .safetensors file beside a .json that says {"model": name, "overrides": {...}}.
        weights: a .safetensors file for the architecture `name`. num_classes, img_size, in_chans: where they differ from
            what the checkpoint or the architecture says; position embeddings are resampled as timm does.
        download: fetch pretrained weights that are not on disk yet.

    Returns:
        A module from float images (B, in_chans, img_size, img_size) in [-1, 1] to logits; `Loaded` says what it is.

    Raises:
        WeightsMissing: if pretrained weights are neither on disk nor to be downloaded.
        WorkbenchError: on an unknown name, a missing or damaged file, weights that do not fit (naming the first).
    """
    sizes = {key: value for key, value in (("num_classes", num_classes), ("img_size", img_size), ("in_chans", in_chans))
             if value is not None}
    path = resolve(name)
    if name.endswith((".pth", ".pt", ".bin", ".ckpt")) or str(weights).endswith((".pth", ".pt", ".bin", ".ckpt")):
        raise WorkbenchError("checkpoints are read as safetensors only, since others may run code", got=weights or name,
                             expected="a .safetensors file", mend="convert it where you trust it: safetensors.torch."
                             "save_file(torch.load(path, weights_only=True), 'model.safetensors')")
    if name.endswith(".safetensors"):
        return _from_file(path, sizes)
    if path.is_dir():
        return _from_folder(path, sizes).eval()
    if name in MODELS:
        return _ours(name, weights, sizes)
    if "/" in name:
        return _from_folder(_fetch(name.removeprefix("hf-hub:"), download, name), sizes).eval()
    return _timm(name, weights, sizes, download).eval()


def load_weights(model: nn.Module, tensors: dict, where) -> None:
    """Load weights of the model's own names and shapes; WorkbenchError naming the first that do not fit."""
    state = model.state_dict()
    if not any(name in state for name in tensors):
        tensors = _unwrapped(tensors)
    unfit = [name for name, value in state.items() if name not in tensors or tensors[name].shape != value.shape]
    extra = [name for name in tensors if name not in state]
    if unfit:
        first = unfit[0]
        got = tuple(tensors[first].shape) if first in tensors else "no such weight"
        unknown = f", {len(extra)} are unknown: {extra[0]}" if extra else ""
        rest = f"; {len(unfit)} of {len(state)} weights do not fit{unknown}"
        raise WorkbenchError("a checkpoint does not fit the model", expected=f"{first} {tuple(state[first].shape)}",
                             got=f"{got}{rest}", where=where, mend="build the model the checkpoint was trained with")
    model.load_state_dict({name: tensors[name].to(value.dtype) for name, value in state.items()})


def _unwrapped(tensors: dict) -> dict:
    """The tensors without the prefix of a wrapper that the checkpoint was saved from, if all share one."""
    for prefix in ("module.", "_orig_mod.", "model."):
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _ours(name: str, weights: str | Path, sizes: dict) -> nn.Module:
    if not weights:
        raise WeightsMissing(f"model {name} has no pretrained weights", expected="weights=... a .safetensors file",
                             got="none", mend="name a file, or train it: python -m dfkd_lib.distill train-teacher")
    record = Path(weights).with_suffix(".json")
    known = json.loads(record.read_text()).get("overrides", {}) if record.is_file() else {}
    model = create_model(name, **{**known, **sizes})
    return _finish(model, load_tensors(resolve(weights)), weights, f"{name}, weights from {weights}")


def _finish(model: nn.Module, tensors: dict, where, source: str) -> Loaded:
    """One of our own classifiers, which take images in [-1, 1] as they are."""
    load_weights(model, tensors, where)
    _, channels, side = expected_shape(model) or (False, 3, 0)
    return Loaded(model, side, channels, None, NEUTRAL, NEUTRAL, source).eval()


def _from_file(path: Path, sizes: dict) -> nn.Module:
    record = path.with_suffix(".json")
    if not record.is_file():
        raise WorkbenchError("nothing says which architecture a checkpoint is of", where=path,
                             expected=f'{record.name} beside it with {{"model": name, "overrides": {{}}}}',
                             mend=f"write that file, or give the name as the model and {path.name} as its weights")
    try:
        about = json.loads(record.read_text())
        name = about["model"]
    except (ValueError, TypeError, KeyError) as error:
        raise WorkbenchError("the record beside a checkpoint cannot be used", where=record, got=repr(error)[:200],
                             expected='JSON with at least {"model": name, "overrides": {}}',
                             mend="write that file") from None
    sizes = {**about.get("overrides", {}), **sizes}
    return _ours(name, path, sizes) if name in MODELS else _timm(name, path, sizes, False).eval()


def _timm(name: str, weights: str | Path, sizes: dict, download: bool) -> Loaded:
    import timm

    if not timm.is_model(name):
        known = [*timm.list_models(), *model_names()]
        near = difflib.get_close_matches(name, known, n=3)
        raise WorkbenchError("no such model", got=name, expected="a name of the workbench or of timm, a .safetensors file, "
                             "a folder in transformers' format", mend=f"did you mean {', '.join(near)}?" if near else
                             "see timm.list_models('*vit*')")
    config = timm.get_pretrained_cfg(name)
    if weights:
        file = resolve(weights)
    elif config is None or not config.hf_hub_id:
        raise WeightsMissing(f"timm has no pretrained weights for {name} on the hub", got="none",
                             expected="weights=... a .safetensors file", mend="name a file, or another model")
    else:
        file = _fetch(config.hf_hub_id, download, name) / "model.safetensors"
    tensors = load_tensors(file)
    made = _build(name, config, tensors, file, sizes, f"timm's {name}, weights from {file}")
    if not weights and config.num_classes == 1000:
        made.classes = _imagenet(made.model.num_classes)
    return made


def _build(name: str, config, tensors: dict, file, sizes: dict, source: str) -> Loaded:
    """A timm model of that name with these weights, as many outputs and channels as they have."""
    import timm

    tensors = _unwrapped(tensors)
    said = {key: getattr(config, key, None) for key in ("classifier", "first_conv", "mean", "std", "input_size")}
    head = said["classifier"][0] if isinstance(said["classifier"], (tuple, list)) else said["classifier"]
    if head and f"{head}.weight" in tensors:
        sizes = {"num_classes": len(tensors[f"{head}.weight"]), **sizes}
    if said["first_conv"] and f"{said['first_conv']}.weight" in tensors:
        sizes = {"in_chans": tensors[f"{said['first_conv']}.weight"].shape[1], **sizes}
    try:
        model = timm.create_model(name, **sizes)
    except (TypeError, AssertionError, RuntimeError) as error:
        raise WorkbenchError(f"model {name} cannot be built so", got=f"{sizes}: {str(error)[:200]}",
                             mend="the image side must be a multiple of the patch") from None
    clean = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    load_weights(model, clean(tensors, model) if clean else tensors, file)
    channels = sizes.get("in_chans", 3)
    side = sizes.get("img_size") or (said["input_size"] or (3, 224, 224))[-1]
    return Loaded(model, side, channels, None, said["mean"] or NEUTRAL, said["std"] or NEUTRAL, source)


def _imagenet(count: int) -> tuple[str, ...] | None:
    if count != 1000:
        return None
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return tuple(info.index_to_description(i).split(",")[0] for i in range(count))


def _fetch(repository: str, download: bool, name: str) -> Path:
    """The folder of a hub repository's configuration and weights: from the local cache, or downloaded if allowed."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repository, allow_patterns=FILES, local_files_only=not download))
    except HFValidationError as error:
        raise WorkbenchError("no such model", got=name, expected="a name, a file, a folder, or owner/name on the hub",
                             where=str(error)[:200], mend="check the path or the name") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        _not_there(repository, name, download, error)
    if not (folder / "model.safetensors").is_file():
        _not_there(repository, name, download, "no model.safetensors")
    return folder


def _not_there(repository: str, name: str, download: bool, error) -> None:
    why = f"the download failed: {str(error)[:200]}" if download else "not in the local cache"
    raise WeightsMissing(f"pretrained weights of {name} are not on this disk", got=why,
                         expected=f"model.safetensors of hub repository {repository}",
                         mend="allow the download (download=True), or give a .safetensors file as weights") from None


def _from_folder(folder: Path, sizes: dict) -> Loaded:
    """A model in timm's or transformers' folder format."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise WorkbenchError("a model folder has no readable config.json", got=str(error)[:200], where=folder,
                             expected="config.json and model.safetensors", mend="name a folder that has both") from None
    if "architecture" in config:
        from timm.models import PretrainedCfg

        known = {**config.get("pretrained_cfg", {}), "num_classes": config.get("num_classes", 1000)}
        fields = PretrainedCfg.__dataclass_fields__
        about = PretrainedCfg(**{key: value for key, value in known.items() if key in fields})
        file = folder / "model.safetensors"
        return _build(config["architecture"], about, load_tensors(file), file, sizes,
                      f"timm's {config['architecture']}, weights from {file}")
    return _transformers(folder, sizes)


def _transformers(folder: Path, sizes: dict) -> Loaded:
    from transformers import AutoConfig, AutoModelForImageClassification

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        model, report = AutoModelForImageClassification.from_pretrained(folder, local_files_only=True, use_safetensors=True,
                                                                        output_loading_info=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise WorkbenchError("a folder in transformers' format cannot be loaded", got=str(error)[:300], where=folder,
                             expected="an image classifier's config.json and model.safetensors",
                             mend="check that it is an image classifier, saved as safetensors") from None
    missing = sorted(str(key) for key in report["missing_keys"])
    if missing:
        raise WorkbenchError("a checkpoint does not fit the model", expected=f"{missing[0]} (and {len(missing) - 1} more)",
                             got="no such weight", where=folder, mend="choose a checkpoint of an image classifier")
    prepared = folder / "preprocessor_config.json"
    prepare = json.loads(prepared.read_text()) if prepared.is_file() else {}
    mean, std = prepare.get("image_mean") or NEUTRAL, prepare.get("image_std") or NEUTRAL
    names = getattr(config, "id2label", None) or {}
    classes = tuple(str(names[i]) for i in range(len(names))) if set(names) == set(range(len(names))) else None
    side = sizes.get("img_size") or getattr(config, "image_size", 224)
    return Loaded(model, side, getattr(config, "num_channels", 3), classes, mean, std,
                  f"transformers' {config.model_type} from {folder}")


def expected_shape(model: nn.Module) -> tuple[bool, int, int] | None:
    """(whether the size is fixed, channels, side) of the images a model takes, as far as it says so; else None."""
    if isinstance(model, Loaded) and model.img_size:
        return True, model.in_chans, model.img_size
    for module in model.modules():
        size = getattr(module, "img_size", None)
        proj = getattr(module, "proj", None)
        if isinstance(size, tuple) and isinstance(proj, nn.Conv2d):
            return bool(getattr(module, "strict_img_size", True)), proj.in_channels, size[0]
    return None


_tried: WeakKeyDictionary[nn.Module, set] = WeakKeyDictionary()


def check_images(model: nn.Module, shape: tuple[int, int, int], where: str = "images") -> None:
    """Raise WorkbenchError unless a model takes images of shape (C, H, W)."""
    if shape in _tried.setdefault(model, set()):
        return
    known = expected_shape(model)
    if known and (shape[0] != known[1] or (known[0] and shape[1:] != (known[2], known[2]))):
        expected, problem = (known[1], known[2], known[2]), "of another size or number of channels"
    else:
        problem = _trial(model, shape)
        expected = "images of the size it was made for" if known is None else (known[1], known[2], known[2])
    if problem:
        raise WorkbenchError("this model does not take these images", expected=f"(C, H, W) = {expected}", where=where,
                             got=f"{shape}: {problem}", mend="give a folder's images another size (size=...) or number of "
                             "channels, or choose a model made for these")
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
