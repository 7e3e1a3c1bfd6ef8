"""Attention weights as a model computes them, captured while fused attention stays on.

While an attention module runs, a torch function mode sees its call of `scaled_dot_product_attention`, with queries and
keys as they are after normalisation, rotary positions and relative position bias. The rows asked for are then
softmax(q Kᵀ s + bias) of those: one token's row costs O(N), and nothing is changed in the model. Where a model computes
its attention eagerly, the mode sees the softmax instead, and follows it to the product with the values: weights of
sampling points, or heads mixed after the softmax, never get there, and are no map. Outside the wanted modules no mode is
active: the rest of the model runs as ever. (One row of timm's plain attention is had more cheaply still, off its
projection.)
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from threading import RLock, get_ident
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from timm.layers import Attention
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dfkd_lib.attention.sites import Site, all_sites, attention_sites, is_deformable, pick
from dfkd_lib.core import WorkbenchError

LARGE = 200_000  # elements of an image's keys from which a product for each image beats one elementwise pass over all
_SOFTMAX = (torch.softmax, Tensor.softmax, F.softmax)
# Functions that multiply attention with values, and those that leave it the same weights, by name (they exist as methods too).
_PRODUCTS = set("matmul __matmul__ __rmatmul__ bmm einsum".split())
_SAME = set("dropout to type_as float half bfloat16 contiguous clone nan_to_num".split())
_SAME |= set("transpose permute view reshape flatten unflatten squeeze unsqueeze".split())
# A notebook's widgets may run beside its cells, in a thread of their own: one of them looks into a model at a time.
_LOOKING = RLock()


def attention_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor | None = None,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    token: int | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The weights of `torch.nn.functional.scaled_dot_product_attention`, whose arguments it takes: (B, heads, S) of one query
    token, (B, heads, T, S) of all; before dropout, as `dtype`, by default at least float32; 0 where all is masked."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    if is_causal:
        size = query.shape[-2], key.shape[-2]
        attn_mask = torch.ones(size, dtype=torch.bool, device=query.device).tril()
    if token is None:
        scores = (query * scale) @ key.transpose(-2, -1)
    else:
        token = pick(token, query.shape[-2], "token")
        scores = _row_scores(query[..., token, :], key, scale)
        if attn_mask is not None:
            attn_mask = attn_mask[..., token if attn_mask.shape[-2] > 1 else 0, :]
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return _softmax(scores, dtype, masked=attn_mask is not None)


def _softmax(scores: Tensor, dtype: torch.dtype | None = None, masked: bool = False) -> Tensor:
    # The fused kernels' rule: a row that is masked as a whole is 0, not NaN.
    softmax = torch._safe_softmax if masked else torch.softmax
    return softmax(scores, -1, dtype=dtype or torch.promote_types(scores.dtype, torch.float32))


def _row_scores(row: Tensor, key: Tensor, scale: float) -> Tensor:
    """Scores (B, heads, S) of one query (B, heads, d), without copying the keys, which lie strided within a projection."""
    plain = key.dtype == row.dtype == torch.float32
    if plain and len(key) == 1 and key.numel() < LARGE:
        # Too little to wake other threads for.
        heads = zip(key[0], row[0] * scale, strict=True)
        return torch.stack([torch.mv(k, r) for k, r in heads]).unsqueeze(0)
    if plain and key[0].numel() >= LARGE:
        rows = (row * scale).unsqueeze(-1)
        return torch.stack([torch.bmm(k, r).squeeze(-1) for k, r in zip(key, rows, strict=True)])
    dtype = torch.promote_types(row.dtype, torch.float32)
    return (key.to(dtype) * (row.to(dtype) * scale).unsqueeze(-2)).sum(-1)


class _Enough(Exception):
    """Ends a forward pass whose only purpose was the attention captured so far."""


class _Catch(TorchFunctionMode):
    """Finds the attention weights that a module's forward computes while it is active; `keep` gets them at its end."""

    only: "_Catch | None" = None

    def __init__(self, keep: Callable[[Tensor], None], token: int | None, through: bool):
        super().__init__()
        self.keep, self.token, self.through = keep, token, through
        self.begin()

    def begin(self) -> None:
        """Forget what an earlier forward pass computed."""
        self.found: list[Tensor] = []
        # Of the whole map, without B: heads, queries and keys, if it is one.
        self.sizes: tuple[int, ...] = ()
        # A softmax that has not yet multiplied values, and the same after dropout and the like.
        self.softmax = self.weights = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.only not in (None, self):
            return func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            weights = self._reachable(attention_weights(*args, token=self.token, **kwargs))
            self._find(weights, *_sizes(*args, **kwargs))
            return attended(weights, *args, **kwargs) if self.through else func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        used = self.weights is not None and any(arg is self.weights for arg in args)
        if used and name in _PRODUCTS:
            self._find(self._row(self.softmax), *self.softmax.shape[1:])
            self.softmax = self.weights = None
        result = func(*args, **kwargs)
        if func in _SOFTMAX and result.ndim == 4 and _dimension(*args, **kwargs) in (-1, 3):
            self.softmax = self.weights = result = self._reachable(result)
        elif used and name in _SAME:
            self.weights = result
        return result

    def _find(self, weights: Tensor, *sizes: int) -> None:
        self.found.append(weights)
        self.sizes = sizes

    def _row(self, weights: Tensor) -> Tensor:
        if self.token is None:
            return weights
        return weights[:, :, pick(self.token, weights.shape[2], "token")]

    def _reachable(self, weights: Tensor) -> Tensor:
        # Where nothing before them learns (a frozen DETR's first queries are constants) they begin the graph.
        return weights.requires_grad_() if self.through and torch.is_grad_enabled() else weights


def _sizes(query: Tensor, key: Tensor, *_, **__) -> tuple[int, ...]:
    return (*query.shape[1:-1], key.shape[-2])


def _dimension(_: Tensor, dim: int | None = None, *__, **___) -> int | None:
    """The dimension over which a softmax of these arguments is taken."""
    return dim


def attended(
    weights: Tensor, query, key, value, attn_mask=None, dropout_p=0.0, *_, enable_gqa=False, **__
) -> Tensor:
    """What `scaled_dot_product_attention` of these arguments gives where these are its weights."""
    if enable_gqa:
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], dim=-3)
    return F.dropout(weights.to(value.dtype), dropout_p, dropout_p > 0) @ value


@contextmanager
def _uncheckpointed(model: nn.Module) -> Iterator[None]:
    """Inside, no block is computed a second time in the backward pass, where nobody looks: the same results, more memory."""
    names = ("grad_checkpointing", "gradient_checkpointing")  # timm's, transformers'
    # By what each module holds itself: to ask all of them by `getattr` takes longer than a small model's probes.
    modules, known, found = [model], {model}, []
    for module in modules:
        own = module.__dict__
        for name in names:
            if own.get(name) is True:
                found.append((module, name))
        new = [m for m in own["_modules"].values() if m is not None and m not in known]
        known.update(new)
        modules += new
    for module, name in found:
        setattr(module, name, False)
    try:
        yield
    finally:
        for module, name in found:
            setattr(module, name, True)


@contextmanager
def capture_attention(
    model: nn.Module,
    blocks: Sequence[int] | None = (-1,),
    token: int | None = 0,
    stop: bool = False,
    kind: str = "encoder",
    through: bool = False,
):
    """Collect attention of chosen blocks while the model runs; the model is left as it was found.

    Args:
        model: any model whose attention modules call `scaled_dot_product_attention` or a softmax: timm's vision
            transformers, transformers' ViT and DETR; not torch's own `MultiheadAttention`, which does so out of sight.
        blocks: indices among the attention modules of that kind, None for all of them.
        token: the query whose row is kept; None keeps the whole map.
        stop: end the forward pass as soon as the last wanted block is captured; the `with` body then goes no further either.
        kind: "encoder", "decoder", "cross", "pool" or "inner"; see `Site`.
        through: let the model's output depend on the captured maps (token=None), so that its gradient in them exists;
            attention is computed unfused then.

    Yields:
        dict {block index as given: (B, heads, S) rows or (B, heads, T, S) maps}, filled by each forward pass;
        differentiable. As the module computes them: B counts windows where attention is within windows, and T is 1 where
        the class token alone attends.

    Raises:
        WorkbenchError: for a model without attention, a block or token out of range, or a wanted module that computes no
            map of queries by keys: sampling points, attention among channels, several maps at once.
    """
    sites = attention_sites(model, kind)
    wanted = range(len(sites)) if blocks is None else blocks
    places = {index: pick(index, len(sites), "block") for index in wanted}
    captured: dict[int, Tensor] = {}
    last = max(places.values())

    def keep(place: int) -> Callable[[Tensor], None]:
        names = [index for index, p in places.items() if p == place]

        def kept(weights: Tensor) -> None:
            captured.update(dict.fromkeys(names, weights))
            if stop and place == last:
                raise _Enough

        return kept

    with _LOOKING, ExitStack() as stack:
        stack.enter_context(_uncheckpointed(model))
        for place in set(places.values()):
            stack.enter_context(_watched(model, sites[place], _Catch(keep(place), token, through)))
        with suppress(_Enough):
            yield captured
    missed = [sites[place].name for index, place in places.items() if index not in captured]
    if missed:
        raise WorkbenchError(
            "no attention was captured",
            got=f"{type(model).__name__}: {', '.join(missed[:3])} did not run",
            expected="each attention module at work while the model runs",
            fix="run the model inside the with statement, uncompiled",
        )


@contextmanager
def _watched(model: nn.Module, site: Site, mode: _Catch):
    """The module's forward under the mode. (Hooks would do the same, but cost as much as a small model's attention.)"""
    module, thread = site.module, get_ident()
    forward = module.forward

    def watched(*args, **kwargs):
        if get_ident() != thread:  # somebody else's forward pass
            return forward(*args, **kwargs)
        mode.begin()
        with mode:
            result = forward(*args, **kwargs)
        if problem := _no_map(module, forward, mode, args, kwargs):
            raise _refusal(model, site, problem)
        mode.keep(mode.found[0])
        return result

    if type(module) is not Attention or mode.token is None or mode.through:
        with _replaced(module, watched):
            yield
        return
    # timm's plain attention has nothing between its projection and the softmax but the norms: the row is taken there,
    # and the other operations cost nothing. For one small image that is half of what a row costs.
    masked = False

    def tapped(x, attn_mask=None, is_causal=False):
        nonlocal masked
        given = attn_mask is not None or is_causal
        if get_ident() == thread:
            masked = given
        return watched(x, attn_mask=attn_mask, is_causal=is_causal) if given else forward(x)

    project, tap = module.qkv.forward, _row_of_projection(module, mode.token)

    def projected(tokens):
        result = project(tokens)
        if not masked and get_ident() == thread:
            mode.keep(tap(result))
        return result

    with _replaced(module, tapped), _replaced(module.qkv, projected):
        yield


def _no_map(module: nn.Module, forward: Callable, mode: _Catch, args: tuple, kwargs: dict) -> str:
    """Why what a forward pass of the module has shown is not a map of queries by keys; "" if it is."""
    if len(mode.found) > 1:
        return "several maps in one module"
    if is_deformable(module):
        return "weights of sampling points"
    if not mode.found and mode.softmax is not None:
        return "heads mixed after the softmax"
    if not mode.found:
        return "linear attention, or torch's own MultiheadAttention"
    if len(mode.sizes) != 3:
        return "attention within windows, or without heads"
    among_channels = _among_channels(module, forward, mode, args, kwargs)
    return "attention among channels" if among_channels else ""


# Whether it is so takes two more forward passes of a module.
_of_channels: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def _among_channels(
    module: nn.Module, forward: Callable, mode: _Catch, args: tuple, kwargs: dict
) -> bool:
    """Whether a map's queries and keys are the channels of a head, not tokens (B, N, C)."""
    tokens = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
    heads, queries, keys = mode.sizes
    if tokens is None or tokens.ndim != 3 or queries != keys or queries * heads != tokens.shape[2]:
        return False
    # As many as a head has channels. Only a map of channels does not see the tokens' order.
    if module not in _of_channels:
        noise = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(0)).to(tokens)
        maps = []
        for given in (noise, noise.flip(1)):
            positional = [given if x is tokens else x for x in args]
            named = {name: given if x is tokens else x for name, x in kwargs.items()}
            again = _Catch(lambda _: None, None, False)
            with torch.no_grad(), torch.random.fork_rng(), _alone(again):
                forward(*positional, **named)
            maps.append(again.found[0])
        _of_channels[module] = torch.allclose(maps[0], maps[1], atol=1e-4)
    return _of_channels[module]


@contextmanager
def _alone(mode: _Catch):
    """The mode at work, while those around it look away."""
    _Catch.only = mode
    try:
        with mode:
            yield
    finally:
        _Catch.only = None


def _refusal(model: nn.Module, site: Site, problem: str) -> WorkbenchError:
    others = [s for s in all_sites(model) if type(s.module) is not type(site.module)]
    here = attention_sites(model, site.kind)
    blocks = [f"block {here.index(s)}" for s in others if s.kind == site.kind]
    kinds = [f"kind {kind}" for kind in sorted({s.kind for s in others} - {site.kind})]
    choices = " or ".join(blocks[-1:] + kinds)
    fix = f"look at {choices} of this model" if choices else "use a ViT or a DETR"
    if is_deformable(site.module):
        fix = f"attention_points(model, images, kind={site.kind!r}) gives the points; or {fix}"
    return WorkbenchError(
        f"no map of queries by keys, but {problem}",
        got=f"{site.name or 'the model'} ({type(site.module).__name__}) of {type(model).__name__}",
        expected="scaled_dot_product_attention, or a softmax of (B, heads, T, S) that multiplies values, once",
        fix=fix,
    )


def _row_of_projection(module: Attention, token: int) -> Callable[[Tensor], Tensor]:
    """Projected tokens (B, T, 3 heads d) → the token's weights (B, heads, T)."""
    heads, width, depth = module.num_heads, module.attn_dim, module.head_dim
    normed = not all(isinstance(norm, nn.Identity) for norm in (module.q_norm, module.k_norm))

    def tap(projected: Tensor) -> Tensor:
        batch, tokens, _ = projected.shape
        row = projected[:, pick(token, tokens, "token"), :width].view(batch, heads, depth)
        key = projected[:, :, width : 2 * width].view(batch, tokens, heads, depth).transpose(1, 2)
        if normed:
            row, key = module.q_norm(row.unsqueeze(2)).squeeze(2), module.k_norm(key)
        return _softmax(_row_scores(row, key, module.scale))

    return tap


@contextmanager
def _replaced(module: nn.Module, forward: Callable):
    """The module with another forward, and then as it was."""
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before
