"""The price of attention: our capture against timm's AttentionExtract and transformers' eager attention.

All read the same attention off the same weights before they are timed, each also beside its library's plain forward pass.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import timm
import torch
from timm import layers
from timm.utils import AttentionExtract
from torch import Tensor
from transformers import ViTConfig, ViTModel

from bench.rows import Effort, Row, compared, take_turns
from dfkd_lib import training
from dfkd_lib.attention import attention_sites, capture_attention, token_layout
from dfkd_lib.core import WorkbenchError

TIMM = "plain fused forward"
TOLERANCE = 1e-4


class Case(NamedTuple):
    """A DeiT (timm's name), the side of its images, how many at once, and for how many seconds to measure."""

    name: str
    side: int
    batch: int
    seconds: float


CASES = (
    Case("deit_tiny_patch16_224", 224, 1, 6),
    Case("deit_tiny_patch16_224", 224, 8, 12),
    Case("deit_small_patch16_224", 448, 1, 16),
    Case("deit_small_patch16_224", 448, 4, 44),
)
OURS, OUR_MAPS, HUB_OURS = "our probes", "our maps", "transformers, our probes"
FX, HOOK, EAGER = (
    "AttentionExtract fx, probes",
    "AttentionExtract hook, probes",
    "transformers, eager maps",
)
# (ours, peer, what the peer is, what is asked) of every row; the price of our probes is the figure asked for, and small:
# every round has it, but only one in so many has the others.
PAIRS = (
    (OURS, TIMM, TIMM, "price <= 5 %: >= 0.95"),
    (OURS, FX, "timm AttentionExtract, fx", ""),
    (OURS, HOOK, "timm AttentionExtract, hook", ""),
    (HUB_OURS, EAGER, "transformers, eager attention", ""),
    (OUR_MAPS, TIMM, TIMM, ""),
)
CLOSE = (TIMM, OURS)


class Methods(NamedTuple):
    """Every way to a case's attention by name, each called with images; and how far ours is from each peer's."""

    run: dict[str, Callable[[Tensor], Tensor]]
    difference: dict[str, Callable[[Tensor], float]]


@contextmanager
def _unfused():
    """timm makes models without fused attention, which its AttentionExtract needs."""
    before = layers.use_fused_attn()
    layers.set_fused_attn(False)
    try:
        yield
    finally:
        layers.set_fused_attn(before)


def _captured(model, images: Tensor, token: int | None) -> Tensor:
    """Ours: class tokens' rows on patches (blocks, B, heads, N), or whole maps (blocks, B, heads, T, T) for token None."""
    with capture_attention(model, None, token) as found:
        model(images)
    maps = torch.stack(list(found.values()))
    return maps if token is None else maps[..., token_layout(model).patches]


def _vit(attention: str, like) -> ViTModel:
    """transformers' ViT of a timm model's size."""
    blocks, patches = like.blocks, like.patch_embed
    config = ViTConfig(
        hidden_size=like.embed_dim,
        num_hidden_layers=len(blocks),
        image_size=patches.img_size[0],
        num_attention_heads=blocks[0].attn.num_heads,
        intermediate_size=blocks[0].mlp.fc1.out_features,
        patch_size=patches.patch_size[0],
        attn_implementation=attention,
    )
    return ViTModel(config, add_pooling_layer=False).eval()


@torch.no_grad()
def _peaked(model):
    """The model with larger queries and keys: as initialised, attention is so even that any two captures would agree."""
    for site in attention_sites(model):
        for name, weight in site.module.named_parameters():
            if any(
                word in name
                for word in (
                    "qkv.weight",
                    "query.weight",
                    "key.weight",
                    "q_proj.weight",
                    "k_proj.weight",
                )
            ):
                weight.mul_(5)
    return model


def methods(case: Case, device: torch.device, **size) -> Methods:
    """The methods of one case, all of one family with the same random weights; `size` changes timm's model."""
    torch.manual_seed(0)
    plain = _peaked(timm.create_model(case.name, img_size=case.side, **size)).eval().to(device)
    with _unfused():
        apart = [
            timm.create_model(case.name, img_size=case.side, **size).eval().to(device)
            for _ in range(2)
        ]
    for model in apart:
        model.load_state_dict(plain.state_dict())
    by_graph, by_hook = (
        AttentionExtract(m, method=how) for m, how in zip(apart, ("fx", "hook"), strict=True)
    )
    sdpa, eager = _peaked(_vit("sdpa", plain)).to(device), _vit("eager", plain).to(device)
    eager.load_state_dict(sdpa.state_dict())
    prefix = plain.num_prefix_tokens

    def eager_maps(images: Tensor) -> Tensor:
        return torch.stack(eager(images, output_attentions=True).attentions)

    def extracted(extract: AttentionExtract) -> Callable[[Tensor], Tensor]:
        return lambda images: torch.stack(
            [maps[:, :, 0, prefix:] for maps in extract(images).values()]
        )

    def ours(model, token: int | None) -> Callable[[Tensor], Tensor]:
        return lambda images: _captured(model, images, token)

    run = {
        TIMM: plain,
        OURS: ours(plain, 0),
        FX: extracted(by_graph),
        HOOK: extracted(by_hook),
        OUR_MAPS: ours(plain, None),
        HUB_OURS: ours(sdpa, 0),
        EAGER: eager_maps,
    }

    def apart_from(name: str, theirs: Callable[[Tensor], Tensor]) -> Callable[[Tensor], float]:
        return lambda images: (run[name](images) - theirs(images)).abs().max().item()

    difference = {
        "our probes, AttentionExtract fx": apart_from(OURS, extracted(by_graph)),
        "our probes, AttentionExtract hook": apart_from(OURS, extracted(by_hook)),
        "our maps, AttentionExtract fx": apart_from(
            OUR_MAPS, lambda i: torch.stack(list(by_graph(i).values()))
        ),
        "our probes, transformers eager": apart_from(
            HUB_OURS, lambda i: eager_maps(i)[:, :, :, 0, 1:]
        ),
    }
    return Methods(run, difference)


@torch.inference_mode()
def compare(case: Case, device: torch.device, effort: Effort = Effort(), **size) -> list[Row]:
    """A row for each of PAIRS.

    Raises:
        WorkbenchError: if ours and a peer's attention differ.
    """
    ways, images = (
        methods(case, device, **size),
        torch.randn(case.batch, 3, case.side, case.side, device=device),
    )
    differences = {pair: far(images[:1]) for pair, far in ways.difference.items()}
    pair, worst = max(differences.items(), key=lambda item: item[1])
    if not worst <= TOLERANCE:
        raise WorkbenchError(
            "captured attention is not what another library finds",
            got=f"{worst:.2g} apart",
            expected=f"at most {TOLERANCE}",
            where=f"{pair}, {case.name}, {device}",
        )
    work = {name: lambda run=run: run(images) for name, run in ways.run.items()}
    for each in work.values():
        each()  # warms up
    rounds = take_turns(
        work, case.seconds * effort.seconds, least=5, rare=tuple(n for n in work if n not in CLOSE)
    )
    setting = f"{case.name.partition('_patch')[0]}/{case.side}, batch {case.batch}, fp32"
    setting += f", {device}" * (device.type != "cpu")
    return [
        compared(
            rounds,
            mine,
            peer,
            "attention",
            "maps of all blocks" if mine == OUR_MAPS else "probes of all blocks",
            setting,
            name=name,
            asked=asked,
            note=f"equal to {worst:.0e}",
        )
        for mine, peer, name, asked in PAIRS
    ]


def rows(effort: Effort) -> Iterator[Row]:
    """Every case on the CPU and on the device that trains, random weights, fp32."""
    for device in dict.fromkeys((torch.device("cpu"), torch.device(training.device()))):
        for case in CASES:
            yield from compare(case, device, effort)
