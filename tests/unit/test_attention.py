"""What is captured with fused attention on equals plain attention; who looks disturbs nobody and leaves nothing behind."""

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
IMAGES = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    return sharpen(create_model("vit_mnist_smoke"), 0.2)


@pytest.mark.parametrize("block", [0, 1, -1])
def test_probes_are_means_over_heads_or_one_of_them(vit, block):
    expected = eager(vit, IMAGES)[1][block]
    assert attention.attention_map(vit, IMAGES, block).shape == (3, 2, 50, 50)
    probe = attention.attention_probe(vit, IMAGES, block)
    assert probe.shape == (3, 49) and (probe - expected.mean(1)[:, 0, 1:]).abs().max() < 1e-5
    head = attention.attention_probe(vit, IMAGES, block, head=1)
    assert (head - expected[:, 1, 0, 1:]).abs().max() < 1e-5
    assert torch.allclose(probe.sum(1), 1 - expected.mean(1)[:, 0, 0], atol=1e-5)


def test_checkpointed_blocks_are_looked_into_and_keep_their_gradients(vit):
    found = []
    for checkpointed in (False, True):
        vit.set_grad_checkpointing(checkpointed)
        images = IMAGES.clone().requires_grad_()
        attention.attention_probes(vit, images)[..., 0].sum().backward()
        found.append(images.grad)
    assert vit.grad_checkpointing
    vit.set_grad_checkpointing(False)
    assert torch.allclose(*found, atol=1e-7) and found[0].abs().max() > 1e-6


def test_a_probe_stops_at_its_block(vit):
    ran = []
    handle = vit.head.register_forward_hook(lambda *_: ran.append(1))
    attention.attention_probe(vit, IMAGES)
    handle.remove()
    assert not ran


def without_class_token():
    options = {"class_token": False, "global_pool": "avg", "depth": 1}
    return timm.create_model("vit_tiny_patch16_224", img_size=32, **options)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda m: attention.attention_probe(m, IMAGES, block=2), "no such block"),
        (lambda m: attention.attention_probe(m, IMAGES, head=2), "no such head"),
        (lambda m: attention.attention_map(m, IMAGES, block=-3), "no such block"),
        (lambda m: attention.attention_probe(create_model("cnn_small"), IMAGES), "no attention to"),
        (lambda m: attention.attention_probe(without_class_token(), IMAGES), "no class token"),
        (lambda m: attention.attention_sites(m, "cross"), "no cross attention"),
        (lambda m: attention.attention_sites(m, "sideways"), "no sideways attention"),
    ],
)
def test_bad_requests(vit, call, words):
    with pytest.raises(WorkbenchError, match=words):
        call(vit)


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
    ],
)
def test_what_has_no_map_says_so(model, words):
    model.eval()
    with pytest.raises(WorkbenchError, match=words) as caught, capture_attention(model, (0,), None):
        model(torch.randn(1, 3, 64, 64))
    assert type(model).__name__ in str(caught.value)


def test_a_body_that_runs_no_model_is_refused():
    model = create_model("vit_mnist_smoke")
    with pytest.raises(WorkbenchError, match="no attention was captured") as caught:
        with capture_attention(model):
            pass
    assert "blocks.1.attn" in str(caught.value)


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


@pytest.mark.parametrize("large", [0, attention.capture.LARGE])
@pytest.mark.parametrize("count", [1, len(IMAGES)])
def test_one_image_and_large_keys_give_the_same_scores(vit, count, large, monkeypatch):
    monkeypatch.setattr("dfkd_lib.attention.capture.LARGE", large)
    expected = eager(vit, IMAGES[:count])[1][0].mean(1)[:, 0, 1:]
    assert (attention.attention_probe(vit, IMAGES[:count], 0) - expected).abs().max() < 1e-5


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
