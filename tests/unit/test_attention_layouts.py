"""Which token is what, and what has no map of queries by keys, in every family: right, or refused by name."""

import copy
import re
from pathlib import Path

import families
import pytest
import timm
import torch
import transformers
from torch import nn

from dfkd_lib import attention
from dfkd_lib.attention import capture_attention
from dfkd_lib.core import Store, WorkbenchError
from dfkd_lib.datasets import ImageSet, to_float
from dfkd_lib.models import create_model
from dfkd_lib.synthesis import class_probes
from dfkd_lib.widgets import Choice, Viewer

OF_TIMM = [*families.TIMM, *families.VARIANTS]
OF_TRANSFORMERS = [*families.TRANSFORMERS, *families.VARIANTS_OF_TRANSFORMERS]
OF_TRANSFORMERS.remove("MAE")
EVERY = [("timm", name) for name in OF_TIMM]
EVERY += [("transformers", name) for name in OF_TRANSFORMERS]
BUILD = {"timm": families.in_timm, "transformers": families.in_transformers}


@pytest.mark.parametrize("place, name", EVERY)
@torch.no_grad()
def test_patches_are_the_tokens_that_the_image_decides(place, name):
    """Before the first attention, class, register and detection tokens are the same for every image."""
    model, images = BUILD[place](name)
    differ = families.first_tokens(model, images) != families.first_tokens(
        model, images.flip(0) + 1
    )
    decided = differ.flatten(0, -3).any(-1).any(0).nonzero().flatten().tolist()
    assert decided == list(range(differ.shape[-2]))[attention.token_layout(model).patches]


@pytest.mark.parametrize("name", OF_TIMM)
@torch.no_grad()
def test_in_timm_each_map_is_the_unfused_one_or_refused(name):
    model, images = (copy.deepcopy(each).double() for each in families.in_timm(name))
    layout, token = attention.token_layout(model), attention.usual_token(model)
    others = {token: getattr(layout, token) for token in ("distillation",) if layout.distillation}
    refused = {None: "among channels", True: "within windows"}
    compared = 0
    for block, wanted in enumerate(families.unfused(model, images)):
        why = refused.get(None if wanted is None else len(wanted) > len(images))
        if why:
            with pytest.raises(WorkbenchError, match=why):
                attention.attention_map(model, images, block)
            continue
        found = attention.attention_map(model, images, block)
        assert found.shape == wanted.shape and (found - wanted).abs().max() < 1e-5
        assert found.std() > 1e-4
        rows = wanted.mean(1)
        rows = rows[:, 0] if token == "class" else rows[:, layout.patches].mean(1)
        probe = attention.attention_probe(model, images, block, token=token)
        assert (probe - rows[:, layout.patches]).abs().max() < 1e-5
        for other, place in others.items():
            probe = attention.attention_probe(model, images, block, token=other)
            assert (probe - wanted.mean(1)[:, place, layout.patches]).abs().max() < 1e-5
        compared += 1
    assert compared


@pytest.mark.parametrize("name", ["ViT", "DINOv3", *families.VARIANTS])
@torch.no_grad()
def test_a_captured_model_is_the_same_and_any_tokens_row_is_its_row_of_the_map(name):
    model, images = families.in_timm(name)
    plain, expected = model(images), families.unfused(model, images)
    for token in (0, 3, -1, None):
        with capture_attention(model, None, token) as found:
            assert torch.equal(model(images), plain)
        for each, wanted in zip(found.values(), expected, strict=True):
            wanted = wanted if token is None else wanted[:, :, token]
            assert (each - wanted).abs().max() < 1e-5 and wanted.std() > 1e-3


@pytest.mark.parametrize("name", OF_TRANSFORMERS)
@torch.no_grad()
def test_in_transformers_each_map_is_the_eager_one(name):
    (model, images) = families.in_transformers(name)
    (plain, _) = families.in_transformers(name, "eager")
    layout = attention.token_layout(model)
    expected = plain(images, output_attentions=True).attentions
    for read in (model, plain):
        for block, wanted in enumerate(expected):
            found = attention.attention_map(read, images, block)
            assert wanted.std() > 1e-4 and (found - wanted).abs().max() < 1e-5
    token, rows = attention.usual_token(model), expected[-1].mean(1)
    assert (token == "class") == (name != "SigLIP's tower")
    rows = rows[:, 0] if token == "class" else rows[:, layout.patches].mean(1)
    probe = attention.attention_probe(model, images, token=token)
    assert probe.shape == (2, 16) and (probe - rows[:, layout.patches]).abs().max() < 1e-5
    third = attention.attention_probe(model, images, token=3)
    wanted = expected[-1].mean(1)[:, layout.prefix + 3, layout.patches]
    assert (third - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["Deformable DETR", "RT-DETR", "D-FINE"])
@torch.no_grad()
def test_sampling_points_are_no_map_and_what_is_advised_is_one(name):
    model, images = families.detector(name)
    with pytest.raises(WorkbenchError, match="sampling points") as caught:
        attention.attention_map(model, images, kind="cross")
    assert "Deformable" in caught.value.got
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    plain = eager.model(images, output_attentions=True)
    advised = re.findall("kind ([a-z]+)", caught.value.fix)
    assert advised == (["decoder"] if name == "Deformable DETR" else ["decoder", "encoder"])
    for kind in advised:
        wanted = plain[f"{kind}_attentions"][-1]
        found = attention.attention_map(model, images, kind=kind)
        assert found.shape == wanted.shape and (found - wanted).abs().max() < 1e-5


@torch.no_grad()
def test_a_masked_autoencoder_is_read_as_it_is_advised(tmp_path):
    model, images = families.in_transformers("MAE", "eager")
    for look in (attention.attention_map, attention.attention_probe, attention.attention_rollout):
        with pytest.raises(WorkbenchError, match="order of its patches"):
            look(model, images)
    model.save_pretrained(tmp_path)
    model.embeddings.config.mask_ratio = 0.0
    in_order = torch.arange(16.0).expand(2, -1)
    wanted = model(images, noise=in_order, output_attentions=True).attentions[-1]
    plain = transformers.ViTModel.from_pretrained(tmp_path).eval()
    assert (attention.attention_map(plain, images) - wanted).abs().max() < 1e-5
    model.embeddings.config.mask_ratio = 0.75


@torch.no_grad()
def test_a_pooling_head_stands_beside_the_blocks():
    model, images = families.in_timm("SigLIP's tower")
    found = attention.attention_map(model, images, kind="pool")
    pool, taken = model.attn_pool, []
    handle = pool.register_forward_pre_hook(lambda _, given: taken.append(given[0]))
    model(images)
    handle.remove()
    query = pool.q(pool.latent).view(1, pool.num_heads, 1, -1)
    key = pool.kv(taken[0]).unflatten(2, (2, pool.num_heads, -1))[:, :, 0].transpose(1, 2)
    wanted = (query @ key.transpose(-2, -1) * pool.scale).softmax(-1)
    assert found.shape == (2, 3, 1, 16) and (found - wanted).abs().max() < 1e-5
    model, images = families.in_transformers("SigLIP's tower")
    with pytest.raises(WorkbenchError, match="torch's own MultiheadAttention") as caught:
        attention.attention_map(model, images, kind="pool")
    assert "kind encoder" in caught.value.fix


class Channels(nn.Module):
    """Cross-covariance attention of as many tokens as a head has channels."""

    num_heads = 2

    def __init__(self, tokens: bool):
        super().__init__()
        self.qkv, self.tokens = nn.Linear(16, 48), tokens

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        if self.tokens:
            return (q @ k.mT).softmax(-1) @ v
        return ((q.mT @ k).softmax(-1) @ v.mT).mT


@pytest.mark.parametrize("tokens", [True, False])
def test_as_many_tokens_as_channels_are_told_apart(tokens):
    torch.manual_seed(0)
    kind = type("SomeAttention", (Channels,), {})
    model = nn.ModuleDict({"attn": kind(tokens)})
    x = torch.zeros(3, 8, 16)  # whose maps are alike in any order

    def look():
        with (
            torch.no_grad(),
            capture_attention(model, None, None) as maps,
            capture_attention(model, None, 0),
        ):
            model["attn"](x)
        return maps[0]

    if tokens:
        assert look().shape == (3, 2, 8, 8)
    else:
        with pytest.raises(WorkbenchError, match="among channels"):
            look()


class Several(nn.Module):
    """The difference of two maps, as in the differential transformer, or heads mixed after the softmax."""

    def __init__(self, form: str):
        super().__init__()
        self.mix, self.form = nn.Conv2d(2, 2, 1), form

    def forward(self, x):
        q = x.unflatten(2, (2, -1)).transpose(1, 2)
        if self.form == "difference":
            attend = nn.functional.scaled_dot_product_attention
            return attend(q, q, q) - attend(q, q + 1, q)
        weights = (q @ q.mT).softmax(-1)
        return self.mix(weights) @ q if self.form == "mixed" else (weights * 2) @ q


@pytest.mark.parametrize(
    "form, words", [("difference", "several maps"), ("mixed", "mixed"), ("scaled", "mixed")]
)
def test_what_multiplies_the_values_must_be_one_softmax(form, words):
    model = nn.ModuleDict({"attn": type("OtherAttention", (Several,), {})(form)})
    for token in (0, None):
        with pytest.raises(WorkbenchError, match=words), capture_attention(model, None, token):
            model["attn"](torch.randn(2, 9, 8))


@pytest.mark.parametrize(
    "name, words",
    [
        ("CaiT", "no map to follow|do not share one set of tokens"),
        ("XCiT", "no map to follow|do not share one set of tokens"),
        ("PiT, distilled", "do not share one set of tokens"),
        ("LeViT", "do not share one set of tokens"),
        ("Swin", "within windows"),
        ("MaxViT", "within windows"),
        ("DaViT", "among channels"),
    ],
)
def test_what_needs_every_block_is_refused_where_blocks_differ(name, words):
    model, images = families.in_timm(name)
    token = attention.usual_token(model)
    with pytest.raises(WorkbenchError, match=words):
        attention.attention_rollout(model, images, token)
    with pytest.raises(WorkbenchError, match=words):
        attention.gradient_attention(model, images, token=token)
    stacked = name != "MaxViT"  # two attentions a block, which is said first
    with pytest.raises(WorkbenchError, match=words if stacked else "one attention each"):
        attention.legrad(model, images)
    with pytest.raises(WorkbenchError, match=words):
        attention.attention_statistics(model, [(images, torch.zeros(2, dtype=torch.long))])
    if name not in ("CaiT", "XCiT"):  # whose rows of class attention are alike
        with pytest.raises(WorkbenchError, match=words):
            attention.attention_probes(model, images, token)


def test_rollout_does_not_pass_over_blocks_that_it_cannot_read():
    model = create_model("dearkd_small", img_size=28, in_chans=1).eval()
    with pytest.raises(WorkbenchError, match="no map to follow") as caught:
        attention.attention_rollout(model, torch.zeros(1, 1, 28, 28))
    assert "early_blocks.0.attn" in caught.value.got


def test_gradients_of_transformers_classifiers_and_towers():
    model, images = families.in_transformers("SigLIP's tower")
    with pytest.raises(WorkbenchError, match="no class to explain"):
        attention.gradient_attention(model, images, token="mean")
    config = transformers.ViTConfig(**families.SIZES, num_labels=3)
    classifier = transformers.ViTForImageClassification(config).eval()
    found = attention.gradient_attention(classifier, images)

    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = classifier

        def forward(self, x):
            return self.net(x).logits

    assert torch.equal(found, attention.gradient_attention(Logits(), images))
    legrad = attention.legrad(classifier, images)
    assert legrad.std() > 0 and torch.equal(legrad, attention.legrad(Logits(), images))


def test_windows_and_text_are_read_as_it_is_advised():
    model, images = families.in_timm("Swin")
    with pytest.raises(WorkbenchError, match="within windows") as caught:
        attention.attention_map(model, images, 0)
    assert "capture_attention" in caught.value.fix and "last" in caught.value.fix
    assert attention.attention_map(model, images).shape == (2, 24, 4, 4)
    with torch.no_grad(), capture_attention(model, None, None) as maps:
        model(images)
    assert all(
        (a - b).abs().max() < 1e-5
        for a, b in zip(maps.values(), families.unfused(model, images), strict=True)
    )
    both = nn.Module()
    both.text_model, both.vision_model = nn.Identity(), model
    with pytest.raises(WorkbenchError, match="tower of text") as caught:
        attention.attention_sites(both)
    assert "vision_model" in caught.value.fix and attention.attention_sites(both.vision_model)


def test_patches_left_out_at_random_are_refused():
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=1, patch_drop_rate=0.75)
    images = torch.randn(2, 3, 64, 64)
    with pytest.raises(WorkbenchError, match="left out at random") as caught:
        attention.attention_probe(model.train(), images)
    assert "model.eval()" in caught.value.fix
    assert attention.attention_probe(model.eval(), images).shape == (2, 16)


def test_tokens_that_form_no_grid_are_refused():
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=1)
    for patches, height, width in ((20, 64, 64), (17, 64, 64), (7, 64, 96), (0, 64, 64)):
        with pytest.raises(WorkbenchError, match="do not form a grid"):
            attention.patch_grid(model, patches, height, width)
    assert attention.patch_grid(model, 24, 64, 96) == (4, 6)


def test_the_guide_holds_the_table():
    guide = Path(__file__).resolve().parents[2] / "notebooks" / "README.md"
    begin = "<!-- what attention gives of each family, made by tests/support/families.py -->"
    end = "<!-- end -->"
    text = guide.read_text()
    assert text.split(begin)[1].split(end)[0].strip() == families.table()


@pytest.mark.parametrize(
    "name, block, alike, words",
    [
        ("ViT without class token", 0, 2, ""),
        ("CaiT", 1, 2, "no map to follow"),
        ("PiT, distilled", 11, 4, "do not share"),
        ("Swin", 3, 1, "within windows"),
        ("DaViT", 6, 1, "among channels"),
    ],
)
def test_the_explorer_shows_the_blocks_that_have_a_map(name, block, alike, words):
    model, images = families.in_timm(name)
    data = ImageSet(images.sigmoid().mul(255).byte(), torch.tensor([0, 1]), ("a", "b"))
    viewer = Viewer({"m": model}, {"d": data}, {"m": {"a": torch.rand(12, 16)}})
    (panel,) = viewer.panels(Choice(block=block))
    batch, patches = to_float(data.images[:1]), attention.patch_tokens(model)
    with torch.no_grad():
        wanted = attention.attention_map(model, batch, block)[0].mean(0)[:, patches]
        assert torch.allclose(torch.from_numpy(panel.weights), wanted, atol=1e-5)
        assert torch.equal(torch.tensor(panel.probe), torch.tensor(panel.weights[panel.row]))
        # Blocks of other tokens are left blank, and what is of the class token is beside its own attention alone.
        assert panel.overview.any((1, 2)).sum() == alike and panel.overview[block].any()
        assert panel.class_probe is None
        if words:
            with pytest.raises(WorkbenchError, match=words):
                viewer.panels(Choice(block=block, weights="rollout"))
        else:
            (rolled,) = viewer.panels(Choice(block=block, weights="rollout"))
            expected = attention.attention_rollout(model, batch, token=0)
            assert torch.allclose(torch.from_numpy(rolled.weights), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["PiT, distilled", "Swin", "ViT without class token"])
def test_class_probes_are_of_every_block_where_blocks_are_alike(name, tmp_path):
    model, images = families.in_timm(name)
    data = ImageSet(images.sigmoid().mul(255).byte(), torch.tensor([0, 1]), ("a", "b"))
    store, token = Store(tmp_path), attention.usual_token(model)
    teacher = store.get_or_make("teacher", {"name": name}, lambda work: {})
    artifact = class_probes(store, teacher, data, -1, model, token=token)
    made = artifact.tensors("probes.safetensors")
    assert artifact.settings["token"] == token
    wanted = attention.attention_probe(model, to_float(data.images), token=token)
    assert (made["probes"] - wanted).abs().max() < 1e-5
    assert made["mean"].shape[1] == (2 if "ViT" in name else 1)
    assert torch.equal(made["mean"][:, -1], made["probes"])
