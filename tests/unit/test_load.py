"""Models from elsewhere: timm names, safetensors files, folders, the hub; what fits, and what is reported of what does not."""

import json
import re
import shutil

import pytest
import timm
import torch
import transformers
from fixes import run_fix
from hubs import stand_in
from safetensors.torch import load_file, save_file

from dfkd_lib import attention
from dfkd_lib.core import WorkbenchError
from dfkd_lib.datasets import ImageSet
from dfkd_lib.models import (
    WeightsMissing,
    check_images,
    create_model,
    expected_shape,
    load_model,
    load_weights,
)
from dfkd_lib.models.load import Loaded
from dfkd_lib.synthesis import Given
from dfkd_lib.training import check_fit

NAME = "vit_tiny_patch16_224"
IMAGES = torch.rand(2, 3, 224, 224) * 2 - 1
SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": "gelu"}
SMALL |= {"intermediate_size": 32, "image_size": 32, "patch_size": 8}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(model, its file) of a timm ViT for 7 classes."""
    torch.manual_seed(0)
    model = timm.create_model(NAME, num_classes=7).eval()
    path = tmp_path_factory.mktemp("trained") / "mine.safetensors"
    save_file(model.state_dict(), path)
    return model, path


def write(file, content):
    file.write_text(json.dumps(content))


def read(file):
    return json.loads(file.read_text())


@pytest.fixture
def hub(monkeypatch, trained, tmp_path):
    """A stand-in for the hub, its repository a model in timm's format."""
    folder = tmp_path / "snapshot"
    folder.mkdir()
    shutil.copy(trained[1], folder / "model.safetensors")
    about = {"input_size": [3, 224, 224], "classifier": "head", "first_conv": "patch_embed.proj"}
    about |= {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}
    config = {"architecture": NAME, "num_classes": 7, "pretrained_cfg": about}
    write(folder / "config.json", config)
    return stand_in(monkeypatch, folder)


def test_a_timm_name_with_a_file(trained):
    model, path = trained
    loaded, config = load_model(NAME, path), model.pretrained_cfg
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        assert torch.allclose(loaded(IMAGES), model(((IMAGES + 1) / 2 - mean) / std), atol=1e-5)
    assert (loaded.img_size, loaded.in_chans, loaded.classes) == (224, 3, None)
    assert str(path) in loaded.source
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert attention.attention_probe(loaded, IMAGES).shape == (2, 196)


@pytest.mark.parametrize(
    "name, made, record, side, said",
    [
        (NAME, {"img_size": 384}, {}, 384, ""),
        ("deit_tiny_distilled_patch16_224", {"img_size": 64}, {}, 64, ""),  # two tokens first
        ("vit_tiny_patch16_384", {"img_size": 224}, {}, 224, ""),
        (NAME, {"img_size": 64}, {"img_size": 32}, 32, "pos_embed is interpolated from (1, 17,"),
        ("beit_base_patch16_224", {"img_size": 64}, {}, 224, "relative_position_bias_table"),
        ("resnet18", {}, {}, 224, ""),
    ],
)
def test_the_size_of_images_is_the_files_or_the_change_is_said(
    tmp_path, name, made, record, side, said
):
    depth = {} if name == "resnet18" else {"depth": 1}
    save_file(timm.create_model(name, **made, **depth).state_dict(), tmp_path / "m.safetensors")
    write(tmp_path / "m.json", {"model": name, "overrides": {**depth, **record}})
    loaded = load_model(str(tmp_path / "m.safetensors"))
    assert loaded.img_size == side and ("interpolated" in loaded.source) == bool(said)
    assert said in loaded.source and loaded(torch.zeros(1, 3, side, side)).shape == (1, 1000)


@pytest.mark.parametrize(
    "make, name, side, mean",
    [
        (lambda: timm.create_model(NAME, in_chans=1), NAME, 224, 0.5),  # the mean of timm's three
        (lambda: create_model("cnn_small"), "cnn_small", 28, 0.5),
    ],
)
def test_weights_for_grey_images(tmp_path, make, name, side, mean):
    path = tmp_path / "grey.safetensors"
    save_file(make().state_dict(), path)
    path.with_suffix(".json").write_text("an unrelated note")
    loaded = load_model(name, path)
    assert loaded.mean.item() == pytest.approx(mean)
    assert (loaded.in_chans, loaded.img_size) == (1, side)
    check_images(loaded, (1, side, side))


def test_a_file_may_name_its_architecture(trained, tmp_path):
    file = tmp_path / "mine.safetensors"
    save_file(trained[0].state_dict(), file, metadata={"format": "pt", "model": NAME})
    assert torch.equal(load_model(str(file)).model.head.weight, trained[0].head.weight)


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.module.", "module.model._orig_mod.", "state_dict.net.backbone.", "ema."],
)
@pytest.mark.parametrize("name", [NAME, "vit_mnist_smoke"])
def test_whatever_stands_before_every_name_is_taken_off(trained, tmp_path, prefix, name):
    model = trained[0] if name == NAME else create_model(name)
    state = {prefix + key: value for key, value in model.state_dict().items()}
    save_file(state | {"criterion.weight": torch.ones(7)}, tmp_path / "wrapped.safetensors")
    loaded = load_model(name, tmp_path / "wrapped.safetensors")
    assert torch.equal(loaded.model.head.weight, model.head.weight)
    assert name != NAME or "1 weights outside of the model are left out: criterion.weight" in (
        loaded.source
    )


@pytest.mark.parametrize("name", [NAME, "vit_mnist_smoke"])
def test_one_block_alone_may_be_wrapped(trained, tmp_path, name):
    state = (trained[0] if name == NAME else create_model(name)).state_dict()
    for block, inserted in enumerate(("_orig_mod", "_fsdp_wrapped_module")):
        state = {k.replace(f"s.{block}.", f"s.{block}.{inserted}."): v for k, v in state.items()}
    assert "blocks.1._fsdp_wrapped_module.norm1.weight" in state
    save_file(state, tmp_path / "wrapped.safetensors")
    assert load_model(name, tmp_path / "wrapped.safetensors").classifies


def test_of_two_models_in_a_file_one_is_chosen(trained, tmp_path):
    state, file = trained[0].state_dict(), tmp_path / "two.safetensors"
    both = {f"net.{name}": value for name, value in state.items()}
    save_file(both | {f"ema.module.{name}": value + 1 for name, value in state.items()}, file)
    with pytest.raises(WorkbenchError, match="several models") as caught:
        load_model(NAME, file)
    run_fix(caught.value, OUT=str(tmp_path / "one.safetensors"), net="ema.module")
    loaded = load_model(NAME, tmp_path / "one.safetensors")
    assert torch.equal(loaded.model.norm.weight, state["norm.weight"] + 1)


def test_a_file_without_a_head_is_a_backbone(trained, tmp_path):
    state = {k: v for k, v in trained[0].state_dict().items() if not k.startswith("head")}
    save_file(state, tmp_path / "model.safetensors")
    loaded = load_model(NAME, tmp_path / "model.safetensors")
    assert not loaded.classifies and "no classifier" in loaded.source
    assert loaded(IMAGES).shape == (2, 192)
    assert attention.attention_probe(loaded, IMAGES).shape == (2, 196)
    with pytest.raises(WorkbenchError, match="backbone has no class"):
        attention.gradient_attention(loaded, IMAGES)
    classes = tuple(f"class {k}" for k in range(192))
    images = Given(None, classes, (3, 224, 224)).blank
    with pytest.raises(WorkbenchError, match="192 features, and no classifier"):
        check_fit(loaded, images, "teacher")
    write(tmp_path / "config.json", {"architecture": NAME, "num_classes": 7})
    with pytest.raises(WorkbenchError, match="a classifier of 7 classes"):
        load_model(str(tmp_path))


def test_a_swin_by_its_authors_names(tmp_path):
    name = "swin_tiny_patch4_window7_224"

    def theirs(key):
        key = re.sub(r"layers.(\d).downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", key)
        return key.replace("head.fc.", "head.")

    state = timm.create_model(name, num_classes=7).state_dict()
    state = {theirs(key): value for key, value in state.items()}
    save_file(state, tmp_path / "m.safetensors")
    loaded = load_model(name, tmp_path / "m.safetensors")
    assert loaded.classifies and torch.equal(loaded.model.head.fc.weight, state["head.weight"])


def test_a_file_with_its_record(tmp_path):
    torch.manual_seed(0)
    model = create_model("vit_mnist_smoke", num_classes=4).eval()
    file, record = tmp_path / "mine.safetensors", tmp_path / "mine.json"
    save_file(model.state_dict(), file)
    with pytest.raises(WorkbenchError, match="which architecture"):
        load_model(str(file))
    content = {"model": "vit_mnist_smoke", "overrides": {"num_classes": 4}, "classes": list("abcd")}
    write(record, content)
    loaded, images = load_model(str(file)), torch.rand(2, 1, 28, 28) * 2 - 1
    with torch.no_grad():
        assert torch.allclose(loaded(images), model(images), atol=1e-6)
    assert (loaded.in_chans, loaded.img_size, loaded.classes) == (1, 28, tuple("abcd"))
    write(record, {**content, "classes": ["a"]})
    with pytest.raises(WorkbenchError, match="other classes"):
        load_model(str(file))
    write(record, {})
    with pytest.raises(WorkbenchError, match="record beside a checkpoint"):
        load_model(str(file))


@pytest.mark.parametrize("opened", [{"pretrained": True}, {"checkpoint_path": "other.pth"}])
def test_a_record_cannot_have_other_weights_opened(trained, tmp_path, opened):
    file = tmp_path / "mine.safetensors"
    shutil.copy(trained[1], file)
    write(tmp_path / "mine.json", {"model": NAME, "overrides": opened})
    with pytest.raises(WorkbenchError, match="cannot be loaded"):
        load_model(str(file))


@pytest.fixture
def vit_folder(tmp_path):
    """(model, its folder) of a small ViT in transformers' format."""
    torch.manual_seed(0)
    names = {"id2label": {0: "cat", 1: "dog"}, "label2id": {"cat": 0, "dog": 1}}
    config = transformers.ViTConfig(**SMALL, **names)
    model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "vit")
    return model, tmp_path / "vit"


def test_a_folder_in_transformers_format(vit_folder):
    model, folder = vit_folder
    write(folder / "preprocessor_config.json", {"image_mean": [0.4] * 3, "image_std": [0.2] * 3})
    loaded, images = load_model(str(folder)), torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        expected = model(((images + 1) / 2 - 0.4) / 0.2).logits
        assert torch.allclose(loaded(images), expected, atol=1e-5)
    assert loaded.classes == ("cat", "dog") and loaded.img_size == 32
    assert attention.attention_probe(loaded, images).shape == (2, 16)
    # The file in its folder is enough.
    assert load_model(str(folder / "model.safetensors")).classes == ("cat", "dog")


@torch.no_grad()
@pytest.mark.parametrize(
    "kind, probes",
    [
        ("Dinov2Model", True),
        ("ViTModel", True),
        ("DINOv3ViTModel", True),
        ("ViTMAEForPreTraining", True),
        ("CLIPVisionModel", False),
    ],
)
def test_a_backbone_in_transformers_format(tmp_path, kind, probes):
    torch.manual_seed(0)
    made = getattr(transformers, kind)
    model, images = made(made.config_class(**SMALL)).eval(), torch.rand(2, 3, 32, 32) * 2 - 1
    model.save_pretrained(tmp_path)
    loaded, encoder = load_model(str(tmp_path)), model
    assert not loaded.classifies and loaded.classes is None and "no classifier" in loaded.source
    options = {}
    if "MAE" in kind:  # every patch, in its order
        encoder, options = model.vit, {"noise": torch.arange(16.0).expand(2, -1)}
        encoder.embeddings.config.mask_ratio = 0.0
    tokens = encoder(images, **options).last_hidden_state
    expected = {
        "Dinov2Model": torch.cat((tokens[:, 0], tokens[:, 1:].mean(1)), dim=1),
        "CLIPVisionModel": None if probes else encoder(images).pooler_output,
    }.get(kind, tokens[:, 0])
    assert torch.allclose(loaded(images), expected, atol=1e-5)
    assert not probes or attention.attention_probe(loaded, images).shape == (2, 16)


def test_json_of_others_may_begin_with_a_byte_order_mark(vit_folder, trained, tmp_path):
    write(tmp_path / "m.json", {"model": NAME, "classes": list("abcdefg")})
    shutil.copy(trained[1], tmp_path / "m.safetensors")
    write(vit_folder[1] / "preprocessor_config.json", {"image_mean": [0.4] * 3})
    for file in (tmp_path / "m.json", *vit_folder[1].glob("*config.json")):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert load_model(str(tmp_path / "m.safetensors")).classes == tuple("abcdefg")
    loaded = load_model(str(vit_folder[1]))
    assert loaded.classes == ("cat", "dog") and loaded.mean[0].item() == pytest.approx(0.4)


@pytest.mark.parametrize("left_out", ["classifier", "classifier.bias", "vit.layernorm"])
def test_a_damaged_classifier_is_no_backbone(vit_folder, left_out):
    model, folder = vit_folder
    state = load_file(folder / "model.safetensors")
    kept = {k: v for k, v in state.items() if not k.startswith(left_out)}
    model.save_pretrained(folder, state_dict=kept)
    with pytest.raises(WorkbenchError, match="no such weight"):
        load_model(str(folder))


def test_what_is_no_image_model_is_refused(tmp_path):
    sizes = {
        key: value for key, value in SMALL.items() if "image" not in key and "patch" not in key
    }
    transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=30)).save_pretrained(
        tmp_path
    )
    with pytest.raises(WorkbenchError, match="pixel_values"):
        load_model(str(tmp_path))


def test_a_folder_without_preprocessing_gets_images_as_they_are(vit_folder):
    loaded = load_model(str(vit_folder[1]))
    assert "is not there" in loaded.source
    assert set(loaded.mean.flatten().tolist()) == set(loaded.std.flatten().tolist()) == {0.5}


@pytest.mark.parametrize(
    "kind, settings",
    [
        ("ViT", {}),
        ("ViT", {"do_normalize": False}),
        ("ViT", {"do_normalize": False, "do_rescale": False}),  # pixels as they are, 0 to 255
        ("ViT", {"do_normalize": False, "rescale_factor": 1 / 127.5}),
        ("ViT", {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}),
        ("MobileViT", {"crop_size": {"height": 32, "width": 32}}),  # blue first, and no mean
    ],
)
def test_pixels_reach_a_model_as_its_own_image_processor_gives_them(tmp_path, kind, settings):
    torch.manual_seed(0)
    narrow = {"hidden_sizes": [8, 12, 16], "neck_hidden_sizes": [4, 4, 4, 8, 8, 8, 12]}
    sizes = {**narrow, "image_size": 32} if kind == "MobileViT" else SMALL
    model = getattr(transformers, f"{kind}ForImageClassification")(
        getattr(transformers, f"{kind}Config")(**sizes)
    ).eval()
    for weights in (p for p in model.parameters() if p.ndim > 1):
        torch.nn.init.kaiming_normal_(weights)
    side = {"shortest_edge": 32} if kind == "MobileViT" else {"height": 32, "width": 32}
    processor = getattr(transformers, f"{kind}ImageProcessor")(size=side, **settings)
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        expected = model(**processor(list(pixels), return_tensors="pt")).logits
        found = load_model(str(tmp_path))(pixels / 127.5 - 1)
    assert (found - expected).abs().max() < 1e-2 * expected.std()


@pytest.mark.parametrize("settings", [{"image_processor_type": "NoSuch"}, {"image_std": [0.0] * 3}])
def test_an_image_processor_that_is_none(vit_folder, settings):
    write(vit_folder[1] / "preprocessor_config.json", settings)
    with pytest.raises(WorkbenchError, match=r"(?s)image processor.*preprocessor_config\.json"):
        load_model(str(vit_folder[1]))


@pytest.mark.parametrize(
    "names, sure", [("0 1 2 3", True), ("1 2 10", False), ("Zebra ant", False)]
)
def test_outputs_without_names_meet_folders_that_are_sorted_in_two_ways(names, sure):
    """As torchvision sorts them, "10" comes before "2", and "Zebra" before "ant"; as timm does, not."""
    classes = tuple(sorted(names.split()))
    labels = torch.arange(len(classes))
    pixels = torch.zeros(len(classes), 3, 8, 8, dtype=torch.uint8)
    images = ImageSet(pixels, labels, classes, "folder")
    inner = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, len(classes)))
    unnamed, named = (
        Loaded(inner, 8, 3, [0.5], [0.5], "a file", given) for given in (None, classes)
    )
    check_fit(named, images, "the teacher")
    if sure:
        return check_fit(unnamed, images, "the teacher")
    with pytest.raises(WorkbenchError, match="sorted in two ways"):
        check_fit(unnamed, images, "the teacher")


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_an_image_towers_own_configuration_tells_its_size(tmp_path, kind):
    tower = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    vision = {**tower, "hidden_size": 8, "image_size": 32, "patch_size": 8}
    text = {**tower, "hidden_size": 8, "vocab_size": 9, "eos_token_id": 2}
    config = getattr(transformers, f"{kind}Config")(vision_config=vision, text_config=text)
    getattr(transformers, f"{kind}ForImageClassification")(config).save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    assert loaded.img_size == 32 and loaded.classes is None  # LABEL_0, LABEL_1 name nothing
    check_images(loaded, (3, 32, 32))
    assert expected_shape(loaded.model) == (3, 32)


@pytest.mark.parametrize(
    "prepare, side",
    [
        ({}, 224),
        ({"size": {"shortest_edge": 48}}, 48),
        ({"size": 40}, 40),
        ({"size": {"shortest_edge": 48}, "crop_size": {"height": 32, "width": 32}}, 32),
    ],
)
def test_a_model_of_any_size_takes_that_of_its_preprocessing(tmp_path, prepare, side):
    sizes = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"}
    config = transformers.ResNetConfig(**sizes)
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path)
    write(tmp_path / "preprocessor_config.json", prepare)
    assert load_model(str(tmp_path)).img_size == side


def test_half_precision_is_read_as_single(vit_folder):
    vit_folder[0].half().save_pretrained(vit_folder[1])
    loaded = load_model(str(vit_folder[1]))
    kinds = {p.dtype for p in loaded.parameters()} | {loaded(torch.zeros(1, 3, 32, 32)).dtype}
    assert kinds == {torch.float32}


def test_what_a_transformers_folder_will_not_do(vit_folder, trained, monkeypatch):
    model, folder = vit_folder
    with pytest.raises(WorkbenchError, match="brings its own weights"):
        load_model(str(folder), trained[1])
    for net in (model, load_model(str(folder))):
        check_images(net, (3, 32, 32))
        for shape in ((1, 32, 32), (3, 64, 64)):
            with pytest.raises(WorkbenchError, match=r"\(3, 32, 32\)"):
                check_images(net, shape)
    config = read(folder / "config.json")
    write(
        folder / "config.json",
        config | {"model_type": "odd", "auto_map": {"AutoConfig": "odd.Odd"}},
    )
    (folder / "odd.py").write_text("raise SystemExit('its code was run')")
    monkeypatch.setattr("builtins.input", lambda *text: pytest.fail("asked to run code"))
    with pytest.raises(WorkbenchError, match="cannot be loaded"):
        load_model(str(folder))


OWN = timm.get_pretrained_cfg(NAME).hf_hub_id


def test_pretrained_weights_are_fetched_only_when_allowed(hub):
    with pytest.raises(WeightsMissing, match="(?s)not on this disk.*download=True"):
        load_model(NAME)
    assert hub["asked"] == [(OWN, True)]
    loaded = load_model(NAME, download=True)
    assert hub["asked"][-1][1] is False and loaded.model.num_classes == 7
    assert load_model(NAME) is not None and hub["asked"][-1][1] is True  # it is on disk now
    hub.update(online=False, cached=False)
    with pytest.raises(WeightsMissing, match="the download failed"):
        load_model(NAME, download=True)


@pytest.mark.parametrize(
    "name, asked, mean",
    [
        ("somebody/vit", ("somebody/vit", False), 0.1),
        ("hf-hub:somebody/vit", ("somebody/vit", False), 0.1),
        ("somebody/vit@v2", ("somebody/vit", False, "v2"), 0.1),
        (f"hf-hub:{OWN}", (OWN, False), 0.5),  # which timm knows best
    ],
)
def test_a_repository_of_the_hub(hub, name, trained, asked, mean):
    loaded = load_model(name, download=True)
    assert hub["asked"] == [asked] and loaded.mean[0].item() == pytest.approx(mean)
    assert torch.equal(loaded.model.head.weight, trained[0].head.weight)


def test_a_repository_may_name_sizes_and_classes(hub):
    file = hub["folder"] / "config.json"
    more = {"label_names": list("abcdefg"), "label_descriptions": {"a": "ant"}}
    write(file, read(file) | more | {"model_args": {"img_size": 64}})
    loaded = load_model(str(hub["folder"]))
    assert loaded.img_size == 64 and loaded.classes == ("ant", *"bcdefg")
    assert loaded(torch.zeros(1, 3, 64, 64)).shape == (1, 7)  # its positions are resampled


def test_the_cache_on_disk_is_found_as_the_hub_lays_it_out(trained, tmp_path, monkeypatch):
    """Without the stand-in: what timm itself once downloaded."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / f"models--{OWN.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("0" * 40)
    for folder in (repository / "refs", snapshot):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    with pytest.raises(WeightsMissing, match="not on this disk"):
        load_model(NAME)
    full = timm.create_model(NAME)
    save_file(full.state_dict(), snapshot / "model.safetensors")
    loaded = load_model(NAME)
    assert torch.equal(loaded.model.head.weight, full.head.weight)
    assert str(snapshot) in loaded.source
    assert len(loaded.classes) == 1000 and loaded.classes[1] == "goldfish"


def test_a_cached_repository_without_weights_is_missing(hub):
    hub["cached"] = True
    (hub["folder"] / "model.safetensors").unlink()
    with pytest.raises(WeightsMissing, match="no model.safetensors|not on this disk"):
        load_model("somebody/vit")


@pytest.mark.parametrize(
    "name, weights, words",
    [
        ("vit_tiny_patch16_22", "", "did you mean .*vit_tiny_patch16_224"),
        ("mine.pth", "", "safetensors only"),
        (f"{NAME}.nope", "", "did you mean .*augreg"),
        (NAME, "mine.bin", "safetensors only"),
        (NAME, "/nowhere/mine.safetensors", "missing"),
        ("vit_mnist_smoke", "", "no pretrained weights"),
        ("/no/such/folder/at/all", "", "no such model"),
    ],
)
def test_what_cannot_be_loaded(name, weights, words):
    with pytest.raises(WorkbenchError, match=words):
        load_model(name, weights)


def test_damaged_files_and_folders(tmp_path):
    (tmp_path / "mine.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(WorkbenchError, match="cannot be read"):
        load_model(NAME, tmp_path / "mine.safetensors")
    with pytest.raises(WorkbenchError, match=r"no readable config.json"):
        load_model(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(WorkbenchError, match="cannot be loaded"):
        load_model(str(tmp_path))


def test_the_first_weight_that_does_not_fit_is_named(trained, tmp_path):
    with pytest.raises(WorkbenchError) as caught:
        load_model("vit_small_patch16_224", trained[1])
    for part in ("expected: cls_token (1, 1, 384); pos_embed", "(1, 1, 192)", str(trained[1])):
        assert part in str(caught.value)
    model = create_model("vit_mnist_smoke")
    short = {**model.state_dict(), "odd": torch.zeros(1)}
    del short["blocks.1.attn.qkv.weight"]
    with pytest.raises(WorkbenchError) as caught:
        load_weights(model, short, "here")
    missing = "no such weight (1 of", "1 of them missing; 1 unknown: odd"
    for part in ("blocks.1.attn.qkv.weight (48, 16)", *missing):
        assert part in str(caught.value)


def small_vit(**more):
    return timm.create_model(NAME, img_size=64, depth=1, **more)


@pytest.mark.parametrize(
    "make, good, bad",
    [
        (lambda: create_model("vit_mnist_smoke"), (1, 28, 28), [(3, 28, 28), (1, 32, 32)]),
        (lambda: create_model("titn"), (3, 32, 32), [(1, 32, 32), (3, 28, 28)]),
        (small_vit, (3, 64, 64), [(3, 48, 48), (1, 64, 64)]),
        (lambda: small_vit(dynamic_img_size=True), (3, 96, 64), [(3, 50, 50), (1, 64, 64)]),
        (lambda: create_model("cnn_small"), (1, 28, 28), [(3, 28, 28)]),
    ],
)
def test_images_that_do_not_fit(make, good, bad):
    model = make().eval()
    check_images(model, good)
    for shape in bad:
        with pytest.raises(WorkbenchError, match="does not take these images") as caught:
            check_images(model, shape, "here")
        assert str(shape) in str(caught.value) and "here" in str(caught.value)
