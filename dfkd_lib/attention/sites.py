"""Where a model keeps its attention: its attention modules by kind, and which of its tokens are what."""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from dfkd_lib.core import WorkbenchError


@dataclass(frozen=True)
class Site:
    """One attention module of a model: its dotted name, and its kind.

    Kinds: "encoder" (self-attention over patches or encoder tokens: a ViT's blocks, a DETR's encoder), "decoder"
    (self-attention among a DETR's object queries), "cross" (object queries over the image), "pool" (a pooling head's
    learned query over the patches, beside the blocks), "inner" (TNT's attention over the pixels within a patch).
    """

    name: str
    module: nn.Module
    kind: str

    @property
    def heads(self) -> int | None:
        """Number of heads where the module says it."""
        for attribute in ("num_heads", "num_attention_heads", "n_heads"):
            if isinstance(getattr(self.module, attribute, None), int):
                return getattr(self.module, attribute)
        width = getattr(getattr(self.module, "o_proj", None), "in_features", 0)
        head = getattr(self.module, "head_dim", 0)
        return width // head if width and head else None


def _is_attention(module: nn.Module) -> bool:
    name = type(module).__name__.lower()
    named = any(part in name for part in ("attention", "attn"))
    return named and next(module.parameters(), None) is not None and not _mixes_heads(module)


def _mixes_heads(module: nn.Module) -> bool:
    """Whether a layer from heads to heads mixes them (CaiT's talking heads): no single map multiplies the values."""
    heads = getattr(module, "num_heads", None)
    layers = (layer for layer in module.children() if isinstance(layer, nn.Linear))
    return any(layer.in_features == layer.out_features == heads for layer in layers)


def is_deformable(module: nn.Module) -> bool:
    """Whether an attention module reads points that its queries choose, so that it has no map of queries by keys."""
    return hasattr(module, "sampling_offsets")


def _kind(name: str, module: nn.Module, alone: bool) -> str:
    names = f"{name}.{type(module).__name__}".lower()
    if alone:
        return "pool"
    if "attn_in" in names:
        return "inner"
    if "encoder_attn" in names or "cross" in names:
        return "cross"
    return "decoder" if "decoder" in names else "encoder"


# Finding them walks the whole model.
_known: WeakKeyDictionary[nn.Module, list[Site]] = WeakKeyDictionary()


def all_sites(model: nn.Module) -> list[Site]:
    """Every attention module of a model in order, innermost where they are nested; WorkbenchError if there is none."""
    sites = _known.get(model)
    if sites is None or any(model.get_submodule(site.name) is not site.module for site in sites):
        _known[model] = sites = _find_sites(model)
    return sites


def _find_sites(model: nn.Module) -> list[Site]:
    if any(hasattr(m, "text_model") and hasattr(m, "vision_model") for m in model.modules()):
        raise WorkbenchError(
            "this model has a tower of text beside that of images",
            expected="a model that takes images alone",
            got=_name(model),
            fix="give its vision_model",
        )
    named = [(name, module) for name, module in model.named_modules() if _is_attention(module)]
    # Modules outside others of them.
    outer = {
        name
        for name, _ in named
        if any(other != name and other.startswith(f"{name}." if name else "") for other, _ in named)
    }
    found = [(name, module) for name, module in named if name not in outer]
    # Blocks stand in lists; what stands by itself beside them pools what they give.
    listed = {name for name, _ in found if any(part.isdigit() for part in name.split("."))}
    sites = [
        Site(name, module, _kind(name, module, bool(listed) and name not in listed))
        for name, module in found
    ]
    if not sites:
        raise WorkbenchError(
            "no attention to look at in this model",
            got=_name(model),
            expected="modules named ...Attention or ...Attn, as in timm's and transformers' vision transformers",
            fix="use a vision transformer or a DETR",
        )
    return sites


def unread_attention(model: nn.Module) -> list[str]:
    """Names of modules that stand where attention does and are none that can be read: GPSA, cross-covariance, talking heads."""
    read = [site.name for site in all_sites(model)]
    return [
        name
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in ("attn", "attention", "self_attn")
        and next(module.parameters(), None) is not None
        and not any(f"{a}.".startswith(f"{b}.") for r in read for a, b in ((r, name), (name, r)))
    ]


def attention_sites(model: nn.Module, kind: str = "encoder") -> list[Site]:
    """The attention modules of one kind in order; WorkbenchError if there is none."""
    sites = all_sites(model)
    found = [site for site in sites if site.kind == kind]
    if not found:
        raise WorkbenchError(
            f"this model has no {kind} attention",
            got=_name(model),
            expected=f"one of {', '.join(sorted({site.kind for site in sites}))}",
            where="kind",
            fix="choose a kind that it has",
        )
    return found


def _name(model: nn.Module) -> str:
    return f"{type(model).__name__} ({sum(1 for _ in model.modules())} modules)"


def pick(index: int, count: int, what: str) -> int:
    """`index` counted from the front; WorkbenchError if there is no such block or head."""
    if not -count <= index < count:
        raise WorkbenchError(
            f"no such {what}",
            expected=f"{-count}..{count - 1}",
            got=index,
            where=f"attention {what}",
            fix=f"the model has {count}",
        )
    return index % count


@dataclass(frozen=True)
class TokenLayout:
    """Which tokens of a sequence are what; indices count from the front, the distillation token may be -1 (the last).

    Args:
        class_token: index or None.
        distillation: likewise.
        prefix: number of tokens before the patches.
        suffix: number of tokens after them: detection tokens, TITN's distillation token.
        patch: height and width of a patch in pixels, None where the model does not say.
        grid: rows and columns of the patches of images of the model's own size, likewise.
    """

    class_token: int | None
    distillation: int | None
    prefix: int
    suffix: int
    patch: tuple[int, int] | None = None
    grid: tuple[int, int] | None = None

    @property
    def patches(self) -> slice:
        """Where the patches stand."""
        return slice(self.prefix, -self.suffix or None)


def first(model: nn.Module, *attributes: str):
    """The first of these attributes that a module of the model has and that is not None."""
    for module in model.modules():
        for attribute in attributes:
            value = getattr(module, attribute, None)
            if value is not None:
                return value
    return None


# Reading it walks the whole model.
_layouts: WeakKeyDictionary[nn.Module, TokenLayout] = WeakKeyDictionary()


def token_layout(model: nn.Module) -> TokenLayout:
    """The tokens of a ViT-like model: class, distillation and register tokens, the patches, detection tokens.

    Raises:
        WorkbenchError: for a model that puts its patches in another order: a masked autoencoder (at random), Hiera.
    """
    if model not in _layouts:
        _layouts[model] = _read_layout(model)
    return _layouts[model]


def _read_layout(model: nn.Module) -> TokenLayout:
    masked = any(hasattr(module, "random_masking") for module in model.modules())
    if masked or first(model, "reroll") is not None:
        raise WorkbenchError(
            "this model's tokens are not in the order of its patches",
            expected="patches in their places",
            got=f"{_name(model)}, {'masked and shuffled' if masked else 'unrolled (Hiera)'}",
            fix="use a plain vision transformer; a masked autoencoder's encoder is read by "
            "transformers.ViTModel.from_pretrained(FOLDER)",
        )
    token = first(model, "cls_token", "class_token", "class_embedding")
    classes = 0
    if isinstance(token, Tensor):  # (1, 1, C), (C,), or (1, 2, C) with a distillation token in it
        classes = token.shape[1] if token.ndim == 3 else 1
    distilled = first(model, "dist_token", "distillation_token") is not None
    registers = first(model, "reg_token", "register_tokens")
    detections = first(model, "detection_tokens")
    after = int(first(model, "num_suffix_tokens") or 0)  # TITN's distillation token
    suffix = after + (0 if detections is None else detections.shape[1])
    prefix = first(model, "num_prefix_tokens")
    if prefix is None:
        prefix = classes + (distilled and not after)
        prefix += 0 if registers is None else registers.shape[1]
    distillation = (-1 if after else 1) if distilled or classes == 2 else None
    sizes = [_pair(first(model, name)) for name in ("patch_size", "grid_size")]
    class_token = 0 if classes and prefix else None
    return TokenLayout(class_token, distillation, int(prefix), suffix, *sizes)


def _pair(size: object) -> tuple[int, int] | None:
    """A size as (rows, columns), None if it is none."""
    if isinstance(size, int):
        return size, size
    two = isinstance(size, (tuple, list)) and len(size) == 2
    return (int(size[0]), int(size[1])) if two else None  # type: ignore[index]


def class_token(model: nn.Module) -> int:
    """The index of the class token; WorkbenchError if the model has none."""
    layout = token_layout(model)
    if layout.class_token is None:
        all_sites(model)  # of a model without any attention, that is the problem
        raise WorkbenchError(
            "this model has no class token, so it has no attention probe",
            got=_name(model),
            expected="a model with a class token",
            fix="ask for token='mean', the mean over patches, or for a patch by its number",
        )
    return layout.class_token


def patch_tokens(model: nn.Module) -> slice:
    """Where the patches stand among the tokens (TITN has a token after them too)."""
    return token_layout(model).patches


def patch_grid(model: nn.Module, patches: int, height: int, width: int) -> tuple[int, int]:
    """(rows, columns) of the grid in which `patches` tokens cover an image of height × width pixels.

    Raises:
        WorkbenchError: if no grid of that many patches fits the image's shape.
    """
    layout = token_layout(model)
    patch = layout.patch or (height + 1, width + 1)
    for rows, columns in ((height // patch[0], width // patch[1]), layout.grid or (0, 0)):
        if rows * columns == patches > 0:
            return rows, columns
    near = (patches * height / width) ** 0.5
    fitting = [rows for rows in range(1, patches + 1) if patches % rows == 0]
    rows = min(fitting, key=lambda r: abs(r - near), default=0)
    # A square image has a square grid; of another, sides are rounded.
    off = 0 if height == width else 0.5 * max(1.0, near**0.5)
    if not rows or abs(rows - near) > off:
        raise WorkbenchError(
            "patches do not form a grid over the image",
            got=f"{patches} patches",
            expected=f"rows x columns in the ratio {height} : {width}",
            where=_name(model),
            fix="give images of the shape the model was made for; capture_attention knows no grid and reads any tokens",
        )
    return rows, patches // rows
