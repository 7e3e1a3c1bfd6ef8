"""The price of attention: our capture against timm's AttentionExtract and transformers' eager attention.

The methods of a case run in turn, in random order, and each is compared with the plain forward pass of its own round: on a
machine that others use too, two runs a minute apart are not alike, but those of one round nearly are.
"""

import random
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import NamedTuple

import timm
import torch
from timm import layers
from timm.utils import AttentionExtract
from torch import Tensor
from transformers import ViTConfig, ViTModel

from dfkd_lib import training
from dfkd_lib.attention import attention_sites, capture_attention, token_layout
from dfkd_lib.errors import WorkbenchError

TIMM, HUB = "plain fused forward", "transformers, sdpa forward"  # what the others are compared with
TOLERANCE = 1e-4


class Case(NamedTuple):
    """A DeiT (timm's name), the side of its images, how many at once, and for how many seconds to measure."""

    name: str
    side: int
    batch: int
    seconds: float


CASES = (Case("deit_tiny_patch16_224", 224, 1, 6), Case("deit_tiny_patch16_224", 224, 8, 12),
         Case("deit_small_patch16_224", 448, 1, 16), Case("deit_small_patch16_224", 448, 4, 44))
# The price of our probes is the figure asked for, and small: every round has it, but only one in so many has the others.
CLOSE, ALL_EVERY = (TIMM, "our probes"), 4


class Row(NamedTuple):
    """A method, how often it ran, its median milliseconds, and quartiles of its ratio to the plain forward of its round."""

    method: str
    times: int
    milliseconds: float
    low: float
    ratio: float
    high: float


class Methods(NamedTuple):
    """Every way to a case's attention by name, each called with images; and its baseline's name for each."""

    run: dict[str, Callable[[Tensor], Tensor]]
    baseline: dict[str, str]
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
    config = ViTConfig(hidden_size=like.embed_dim, num_hidden_layers=len(blocks), image_size=patches.img_size[0],
                       num_attention_heads=blocks[0].attn.num_heads, intermediate_size=blocks[0].mlp.fc1.out_features,
                       patch_size=patches.patch_size[0], attn_implementation=attention)
    return ViTModel(config, add_pooling_layer=False).eval()


@torch.no_grad()
def _peaked(model):
    """The model with larger queries and keys: as initialised, attention is so even that any two captures would agree."""
    for site in attention_sites(model):
        for name, weight in site.module.named_parameters():
            if any(word in name for word in ("qkv.weight", "query.weight", "key.weight", "q_proj.weight", "k_proj.weight")):
                weight.mul_(5)
    return model


def methods(case: Case, device: torch.device, **size) -> Methods:
    """The methods of one case, all of one family with the same random weights; `size` changes timm's model."""
    torch.manual_seed(0)
    plain = _peaked(timm.create_model(case.name, img_size=case.side, **size)).eval().to(device)
    with _unfused():
        apart = [timm.create_model(case.name, img_size=case.side, **size).eval().to(device) for _ in range(2)]
    for model in apart:
        model.load_state_dict(plain.state_dict())
    by_graph, by_hook = (AttentionExtract(m, method=how) for m, how in zip(apart, ("fx", "hook"), strict=True))
    sdpa, eager = _peaked(_vit("sdpa", plain)).to(device), _vit("eager", plain).to(device)
    eager.load_state_dict(sdpa.state_dict())
    prefix = plain.num_prefix_tokens

    def eager_maps(images: Tensor) -> Tensor:
        return torch.stack(eager(images, output_attentions=True).attentions)

    def extracted(extract: AttentionExtract) -> Callable[[Tensor], Tensor]:
        return lambda images: torch.stack([maps[:, :, 0, prefix:] for maps in extract(images).values()])

    def ours(model, token: int | None) -> Callable[[Tensor], Tensor]:
        return lambda images: _captured(model, images, token)

    run = {TIMM: plain, "our probes": ours(plain, 0), "AttentionExtract fx, probes": extracted(by_graph),
           "AttentionExtract hook, probes": extracted(by_hook), "our maps": ours(plain, None), HUB: sdpa,
           "transformers, our probes": ours(sdpa, 0), "transformers, eager maps": eager_maps}
    baseline = {name: HUB if name.startswith("transformers") else TIMM for name in run}

    def apart_from(name: str, theirs: Callable[[Tensor], Tensor]) -> Callable[[Tensor], float]:
        return lambda images: (run[name](images) - theirs(images)).abs().max().item()

    difference = {"our probes, AttentionExtract fx": apart_from("our probes", extracted(by_graph)),
                  "our probes, AttentionExtract hook": apart_from("our probes", extracted(by_hook)),
                  "our maps, AttentionExtract fx": apart_from("our maps", lambda i: torch.stack(list(by_graph(i).values()))),
                  "our probes, transformers eager": apart_from("transformers, our probes",
                                                               lambda i: eager_maps(i)[:, :, :, 0, 1:])}
    return Methods(run, baseline, difference)


@torch.inference_mode()
def compare(case: Case, device: torch.device, least: int = 5, **size) -> tuple[list[Row], float]:
    """(a row for each method, the largest difference between what ours and a peer found).

    Raises:
        WorkbenchError: if ours and a peer's attention differ.
    """
    ways, images = methods(case, device, **size), torch.randn(case.batch, 3, case.side, case.side, device=device)
    differences = {pair: far(images[:1]) for pair, far in ways.difference.items()}
    pair, worst = max(differences.items(), key=lambda item: item[1])
    if not worst <= TOLERANCE:
        raise WorkbenchError("captured attention is not what another library finds", got=f"{worst:.2g} apart",
                             expected=f"at most {TOLERANCE}", where=f"{pair}, {case.name}, {device}")
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways.run}
    shuffle, start, turn = random.Random(0).shuffle, time.perf_counter(), 0
    while turn < least or time.perf_counter() - start < case.seconds:
        order = list(ways.run if turn % ALL_EVERY == 0 else CLOSE)
        shuffle(order)
        took = {name: _seconds(ways.run[name], images) for name in order}
        for name in order:
            times[name].append((took[name], took[name] / took[ways.baseline[name]]))
        turn += 1
    return [_row(name, times[name]) for name in ways.run], worst


def _seconds(method: Callable, images: Tensor) -> float:
    """How long one call takes, its result thrown away only after the clock has stopped."""
    if images.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = method(images)  # noqa: F841
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _row(name: str, times: list[tuple[float, float]]) -> Row:
    seconds, ratios = zip(*times, strict=True)
    low, ratio, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Row(name, len(times), 1000 * statistics.median(seconds), low, ratio, high)


def print_attention() -> None:
    """Print each method's price in each case, on the CPU and on the device that trains."""
    print("attention of all blocks, random weights, fp32; ratio: median and 25-75 % range of the time over that of the same")
    print("library's plain forward in the same round; difference: the largest between our attention and the peers'")
    for device in dict.fromkeys((torch.device("cpu"), torch.device(training.device()))):
        for case in CASES:
            rows, worst = compare(case, device)
            print(f"{case.name} at {case.side}, batch {case.batch}, {device} "
                  f"({torch.get_num_threads()} threads), difference {worst:.0e}")
            for row in rows:
                print(f"  {row.method:<32}{row.milliseconds:>9.1f} ms{row.ratio:>7.2f}  {row.low:.2f}-{row.high:.2f}"
                      f"  of {row.times}")
