"""Every supported family: what is captured with fused attention on equals the family's own eager attention."""

import threading

import pytest
import timm
import torch
import torchvision
from eager import eager, fused, sharpen
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dfkd_lib import attention
from dfkd_lib.attention import capture_attention
from dfkd_lib.core import WorkbenchError
from dfkd_lib.models import create_detector, create_model

SMALL = {"img_size": 64, "depth": 2, "num_classes": 5}
REGISTERS = {**SMALL, "patch_size": 16, "embed_dim": 48, "num_heads": 3, "reg_tokens": 4}
# name in timm, overrides: class, distillation and register tokens, normalised queries, relative bias, rotary positions.
TIMM = {
    "ViT": ("vit_tiny_patch16_224", SMALL),
    "ViT, normalised queries and keys": ("vit_tiny_patch16_224", {**SMALL, "qk_norm": True}),
    "ViT without class token": (
        "vit_tiny_patch16_224",
        {**SMALL, "class_token": False, "global_pool": "avg"},
    ),
    "DeiT with distillation token": ("deit_tiny_distilled_patch16_224", SMALL),
    "DeiT III": ("deit3_small_patch16_224", SMALL),
    "DINOv2 with registers": ("vit_small_patch14_reg4_dinov2", {**SMALL, "img_size": 56}),
    "relative position bias": ("vit_relpos_small_patch16_224", SMALL),
    "BEiT, relative position bias": ("beit_base_patch16_224", SMALL),
    "EVA-02, rotary positions": ("eva02_tiny_patch14_224", {**SMALL, "img_size": 56}),
    "DINOv3, rotary positions and registers": ("vit_small_patch16_dinov3", SMALL),
    "ViT with rotary positions": ("vit_small_patch16_rope_224", SMALL),
    "TNT": ("tnt_s_legacy_patch16_224", {"img_size": 64, "depth": 2, "num_classes": 5}),
}


@pytest.fixture(scope="module", params=TIMM, ids=list(TIMM))
def family(request):
    name, options = TIMM[request.param]
    torch.manual_seed(0)
    model = sharpen(timm.create_model(name, **options))
    images = torch.randn(2, 3, options["img_size"], options["img_size"])
    return model, images, eager(model, images)[1]


def test_maps_of_every_block_equal_eager_attention(family):
    model, images, expected = family
    assert len(expected) == 2 and all(e.std() > 1e-3 for e in expected)
    with torch.no_grad():
        plain = model(images)
        with capture_attention(model, None, None) as maps:
            seen = model(images)
    assert torch.equal(plain, seen)  # the model is the same, fused, while it is looked into
    for found, wanted in zip(maps.values(), expected, strict=True):
        assert found.shape == wanted.shape and (found - wanted).abs().max() < 1e-5


def test_any_tokens_row_equals_its_row_of_the_map(family):
    model, images, expected = family
    for token in (0, 3, -1):
        with capture_attention(model, None, token) as rows, torch.no_grad():
            model(images)
        for row, wanted in zip(rows.values(), expected, strict=True):
            assert (row - wanted[:, :, token]).abs().max() < 1e-5


def test_where_the_tokens_are(family):
    model, images, expected = family
    layout = attention.token_layout(model)
    assert layout.prefix == model.num_prefix_tokens
    patches = expected[0][0, 0, 0][layout.patches]
    assert attention.patch_grid(model, len(patches), *images.shape[-2:]) == (4, 4)
    tokens = {"class": layout.class_token, "distillation": layout.distillation}
    for token, row in tokens.items():
        if row is not None:
            probe = attention.attention_probe(model, images, 1, token=token)
            wanted = expected[1].mean(1)[:, row, layout.patches]
            assert (probe - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["ViT", "DeiT", "Dinov2WithRegisters"])
def test_transformers_classifiers(kind):
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 64, "image_size": 32, "patch_size": 8}
    config = getattr(transformers, f"{kind}Config")(**sizes)
    name = f"{kind}ForImageClassification"
    torch.manual_seed(0)
    model = sharpen(getattr(transformers, name)(config))
    plain = getattr(transformers, name)(
        getattr(transformers, f"{kind}Config")(**sizes, attn_implementation="eager")
    ).eval()
    plain.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = plain(images, output_attentions=True).attentions
        with capture_attention(model, None, None) as maps:
            model(images)
        with capture_attention(plain, None, 0) as rows:  # eager models are read too
            plain(images)
    assert model.config._attn_implementation == "sdpa"
    for found, row, wanted in zip(maps.values(), rows.values(), expected, strict=True):
        assert wanted.std() > 1e-3
        assert (found - wanted).abs().max() < 1e-5
        assert (row - wanted[:, :, 0]).abs().max() < 1e-5
    prefix = {"ViT": 1, "DeiT": 2, "Dinov2WithRegisters": 5}[kind]
    assert attention.token_layout(model).prefix == prefix
    probe = attention.attention_probe(model, images)
    assert (probe - expected[-1].mean(1)[:, 0, prefix:]).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["detr_resnet18_2x2", "detr_nano"])
def test_detr_and_conditional_detr(name):
    torch.manual_seed(0)
    detector = create_detector(name, 4).eval()
    images = torch.rand(1, 3, 64, 64)
    with (
        torch.no_grad(),
        capture_attention(detector, None, None, kind="encoder") as encoder,
        capture_attention(detector, None, None, kind="decoder") as decoder,
        capture_attention(detector, None, None, kind="cross") as cross,
    ):
        detector(images)
    network = detector.network
    network.set_attn_implementation("eager")
    pixels = (images - detector.mean) / detector.std
    with torch.no_grad():
        plain = network.model(pixels, output_attentions=True)
    for kind, maps in (("encoder", encoder), ("decoder", decoder), ("cross", cross)):
        wanted = plain[f"{kind}_attentions"]
        assert len(maps) == len(wanted) > 0
        for a, b in zip(maps.values(), wanted, strict=True):
            assert a.shape == b.shape and (a - b).abs().max() < 1e-5, kind
    assert cross[0].shape[2] == detector.num_queries and cross[0].shape[3] == encoder[0].shape[3]


def test_padding_in_detr_is_not_looked_at():
    torch.manual_seed(0)
    network = create_detector("detr_resnet18_2x2", 2).eval().network
    mask = torch.ones(1, 64, 64, dtype=torch.long)
    mask[:, :, 32:] = 0
    with torch.no_grad(), capture_attention(network, None, 0, kind="cross") as rows:
        network(torch.rand(1, 3, 64, 64), pixel_mask=mask)
    shares = rows[0][0].view(-1, 2, 2)
    assert shares[..., 1].abs().max() < 1e-6
    assert torch.allclose(shares.sum((1, 2)), torch.ones(len(shares)))


def test_bfloat16_stays_near():
    torch.manual_seed(0)
    model = sharpen(timm.create_model("vit_tiny_patch16_224", **SMALL))
    images = torch.randn(2, 3, 64, 64)
    expected = eager(model, images)[1][0]
    with (
        torch.no_grad(),
        torch.autocast("cpu", torch.bfloat16),
        capture_attention(model, (0,), 0) as rows,
    ):
        model(images)
    assert rows[0].dtype == torch.float32 and (rows[0] - expected[:, :, 0]).abs().max() < 0.05
    assert torch.allclose(rows[0].sum(-1), torch.ones(2, 3), atol=1e-5)


def test_gradients_equal_finite_differences():
    torch.manual_seed(0)
    model = sharpen(create_model("vit_mnist_smoke", img_size=8)).double()
    images = torch.randn(1, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: attention.attention_probe(model, x), images)


class Largest(TorchDispatchMode):
    """The number of elements of the largest floating tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(each, torch.Tensor) and each.is_floating_point():
                self.elements = max(self.elements, each.numel())
        return result


def test_one_row_never_costs_a_map():
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=512, depth=1, embed_dim=8, num_heads=1, num_classes=2
    ).eval()
    images, tokens = torch.randn(1, 3, 512, 512), 1025
    counted = {}
    for token in (0, None):
        with torch.no_grad(), Largest() as largest, capture_attention(model, None, token):
            model(images)
        counted[token] = largest.elements
    assert counted[None] >= tokens**2 > counted[0]


def test_a_model_is_left_as_it_was_found_also_by_an_error():
    model = create_model("vit_mnist_smoke").eval()
    images = torch.zeros(1, 1, 28, 28)
    with (
        pytest.raises(ZeroDivisionError),
        capture_attention(model, None),
        capture_attention(model, None, None),
    ):
        model(images)
        1 / 0  # noqa: B018
    assert all("forward" not in module.__dict__ for module in model.modules())
    model.blocks[0].attn.forward = original = model.blocks[0].attn.forward
    with capture_attention(model, (0,)) as rows:
        model(images)
    assert model.blocks[0].attn.__dict__["forward"] is original and rows


@pytest.mark.parametrize(
    "model, words",
    [
        (torchvision.models.VisionTransformer(64, 16, 1, 2, 16, 32), "no map of queries by keys"),
        (timm.create_model("resnet18"), "no attention to look at"),
        (nn.Sequential(nn.Linear(3, 3)), "no attention to look at"),
    ],
)
def test_what_has_no_map_says_so(model, words):
    model.eval()
    with pytest.raises(WorkbenchError, match=words) as caught, capture_attention(model, (0,), None):
        model(torch.randn(1, 3, 64, 64))
    assert type(model).__name__ in str(caught.value)


def test_a_body_that_runs_no_model_and_kinds_that_a_model_has_not_are_refused():
    model = create_model("vit_mnist_smoke")
    with pytest.raises(WorkbenchError, match="no attention was captured") as caught:
        with capture_attention(model):
            pass
    assert "blocks.1.attn" in str(caught.value)
    for kind in ("cross", "sideways"):
        with pytest.raises(WorkbenchError, match=f"no {kind} attention"):
            attention.attention_sites(model, kind)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"attn_mask": torch.randn(9, 9)},
        {"attn_mask": torch.ones(9, 9, dtype=torch.bool).tril()},
        {"is_causal": True},
    ],
)
def test_masks_are_seen(given):
    torch.manual_seed(0)
    module = sharpen(timm.layers.Attention(16, num_heads=2, qk_norm=True, norm_layer=nn.LayerNorm))
    model, tokens = nn.ModuleDict({"attn": module}), torch.randn(3, 9, 16)
    eager_rows = []
    handle = module.attn_drop.register_forward_hook(lambda _, x, __: eager_rows.append(x[0]))
    fused(model, False)
    module(tokens, **given)
    handle.remove()
    fused(model, True)
    (expected,) = eager_rows
    with (
        torch.no_grad(),
        capture_attention(model, None, None) as maps,
        capture_attention(model, None, 4) as rows,
    ):
        module(tokens, **given)
    assert (maps[0] - expected).abs().max() < 1e-5
    assert (rows[0] - expected[:, :, 4]).abs().max() < 1e-5
    with pytest.raises(WorkbenchError, match="no such token"), capture_attention(model, None, 9):
        module(tokens, **given)
    assert "forward" not in module.__dict__ and "forward" not in module.qkv.__dict__


def test_large_keys_give_the_same_scores():
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=528, depth=1, num_classes=2
    ).eval()  # 1090 tokens
    images = torch.randn(2, 3, 528, 528)
    with (
        torch.no_grad(),
        capture_attention(model, None, None) as maps,
        capture_attention(model, None, 7) as rows,
    ):
        model(images)
    assert (rows[0] - maps[0][:, :, 7]).abs().max() < 1e-6


@pytest.mark.parametrize("token", [0, None])
def test_two_threads_look_into_one_model(token):
    """A widget looks while a cell trains: neither disturbs the other, and nothing is left behind."""
    torch.manual_seed(0)
    model, images = create_model("vit_mnist_small").eval(), torch.randn(2, 1, 28, 28)
    with torch.no_grad():
        plain, wrong, done = model(images), [], []

    @torch.no_grad()
    def look(stop: bool):
        for _ in range(30):
            with capture_attention(model, None, token, stop=stop) as found:
                model(images)
            if len(found) != 3:
                wrong.append(len(found))
        done.append("look")

    @torch.no_grad()
    def run():
        wrong.extend("other" for _ in range(60) if not torch.equal(model(images), plain))
        done.append("run")

    targets = [lambda: look(True), lambda: look(False), run]
    threads = [threading.Thread(target=target) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(done) == 3
    assert all("forward" not in module.__dict__ for module in model.modules())
