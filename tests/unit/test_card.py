"""A classifier for others: timm opens its folder, the card says what the ledger has counted, nothing is shown unasked."""

import json
import re
import shutil
from unittest.mock import MagicMock

import pytest
import timm
import torch
from PIL import Image

from dfkd_lib import cli, datasets, models, training
from dfkd_lib.core import Store, WorkbenchError, load_tensors, save_json, save_tensors
from dfkd_lib.models.create import MODELS, model_settings
from dfkd_lib.reporting import card

FILES = {"README.md", "config.json", "model.safetensors"}
CLASSES = [str(digit) for digit in range(10)]
TEST = datasets.load_images("mnist", "test").sample(200, seed=0)


def student(store, parents, seed=0, model="vit_mnist_smoke"):
    """An untrained student, which a stage has put into the store as if it were trained."""
    overrides = {"img_size": 28, "in_chans": 1, **MODELS[model][1], "num_classes": 10}

    def make(work):
        torch.manual_seed(seed)
        network = models.create_model(model, **overrides).eval()
        save_tensors(work / "model.safetensors", network.state_dict())
        with torch.no_grad():
            logits = network(datasets.to_float(TEST.images))
        save_tensors(work / "test_logits.safetensors", {"logits": logits, "labels": TEST.labels})
        accuracy = float((logits.argmax(1) == TEST.labels).float().mean())
        return {"accuracy": accuracy, "parameters": models.count_parameters(network)}

    known = {"model": model, "overrides": overrides}
    known |= {"config": {"seed": seed}, "classes": CLASSES, "train_name": "dreams | <b>"}
    return store.get_or_make("student_synthetic", known, make, parents, {TEST.split: "evaluation"})


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "artifacts")


@pytest.fixture
def teacher(store):
    return training.shipped_teacher(store, "vit_mnist_small", TEST)


# Of timm's VGGs, 130 million parameters each, one stands for all.
@pytest.mark.parametrize("name", sorted({*models.model_names()} - {"vgg16_32", "vgg19_32"}))
def test_timm_builds_every_named_model(name):
    overrides = {"num_classes": 7, "in_chans": 1}
    ours = models.create_model(name, **overrides).eval()
    architecture, keywords = models.timm_form(name, overrides)
    theirs = timm.create_model(architecture, **keywords).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 1, *2 * [model_settings(name, overrides)["img_size"]])
    with torch.no_grad():
        assert torch.equal(theirs(images), ours(images))


@pytest.mark.parametrize(
    "model", ["vit_mnist_smoke", "deit_small_28", "titn_small", "cnn_small", "vit_cifar_conv_mini"]
)
def test_a_card_runs_as_it_stands(store, teacher, tmp_path, capsys, model):
    made = student(store, [teacher], model=model)
    folder = card.write_card(store, made.key, tmp_path / "card").parent
    text = (folder / "README.md").read_text()
    assert ("import dfkd_lib.models" in text) == (
        model in ("titn_small", "cnn_small", "vit_cifar_conv_mini")
    )
    Image.fromarray(TEST.images[3, 0].numpy()).save(tmp_path / "image.png")
    code = re.search("```python\n(.*?)```", text, re.DOTALL).group(1)
    code = code.replace("FOLDER", str(folder)).replace("image.png", str(tmp_path / "image.png"))
    exec(code, {})
    named, share = capsys.readouterr().out.split()
    logits = training.predict(training.load_trained(made), TEST.images[3:4])
    shares = logits.softmax(1)[0]
    assert named == CLASSES[shares.argmax()] and abs(float(share) - float(shares.max())) < 1e-5
    opened = models.load_model(str(folder))
    images = datasets.to_float(TEST.images[:4])
    assert torch.allclose(
        opened(images), training.predict(training.load_trained(made), TEST.images[:4]), atol=1e-5
    )
    assert opened.classes == tuple(CLASSES)
    assert timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=3).num_classes == 3


@pytest.mark.parametrize("name", ["dearkd_small", "titn_small", "deit_small_28"])
@pytest.mark.parametrize("distilled, last", [(True, ("head", "head_dist")), (False, "head")])
def test_timm_is_told_of_the_heads_that_a_model_has(name, distilled, last):
    form = models.timm_form(name, {"distilled": distilled})
    assert card._config(*form, CLASSES)["pretrained_cfg"]["classifier"] == last


def test_the_certificate_is_the_ledgers(store, teacher, tmp_path):
    made = student(store, [teacher])
    text = card.write_card(store, made.key, tmp_path).read_text()
    assert "**Its own training learned from no real image.**" in text
    assert "Real images it read itself: mnist/test 200 (evaluation)" in text
    counted = [row for row in teacher.ledger if row["split"] == "mnist/train"]
    assert counted and f"mnist/train {counted[0]['images']:,} (training)" in text
    assert f"its teacher, vit_mnist_small | {100 * teacher.metrics['accuracy']:.2f} %" in text
    assert "<b>" not in text.split("## Training")[0]
    learned = card.write_card(store, teacher.key, tmp_path / "teacher").read_text()
    assert f"learned from {counted[0]['images']:,} real images" in learned
    assert "data-free\n" not in learned.split("model-index")[0]


def test_what_nobody_knows_is_said(store, teacher, tmp_path):
    about = json.loads((card.resolve("data/teachers") / "vit_mnist_small.json").read_text())
    del about["ledger"]
    weights = load_tensors(card.resolve("data/teachers") / "vit_mnist_small.safetensors")
    save_tensors(tmp_path / "own.safetensors", weights)
    save_json(tmp_path / "own.json", about)
    own = training.shipped_teacher(store, str(tmp_path / "own"), TEST)
    made = student(store, [own])
    assert "made from: mnist/test 200 (evaluation); not recorded (training)" in (
        card.write_card(store, made.key, tmp_path / "card").read_text()
    )
    (store.root / own.key).rename(tmp_path / "gone")
    text = card.write_card(store, made.key, tmp_path / "card").read_text()
    assert f"not known of {own.key}" in text and "distilled from" not in text


def test_only_classifiers_have_cards(store, teacher, tmp_path, capsys):
    made = student(store, [teacher])
    images = store.get_or_make("synthetic", {}, lambda work: {}, [teacher])
    with pytest.raises(WorkbenchError, match=f"give a classifier's key, as {teacher.key}"):
        card.write_card(store, images.key, tmp_path)
    root = ["--artifacts", str(store.root)]
    assert cli.main(["card", "studnt" + made.key[7:], *root]) == 2
    assert f"did you mean {made.key}?" in capsys.readouterr().err

    def copied(work):
        for name in ("model.safetensors", "test_logits.safetensors"):
            shutil.copy(made.path / name, work)

    own = store.get_or_make("student_real", made.settings | {"model": "mine"}, copied)
    with pytest.raises(WorkbenchError, match="in no file of the library"):
        card.write_card(store, own.key, tmp_path)
    assert cli.main(["card", made.key, *root, "--out", str(tmp_path / "card")]) == 0
    assert {path.name for path in (tmp_path / "card").iterdir()} == FILES


@pytest.fixture
def pushed(store, teacher, tmp_path, monkeypatch, capsys):
    """Runs `dfkd push` to a stand-in for the hub's client; returns the exit code, what was printed, and that."""

    def push(*more, private=True, token="secret", error=None):
        hub = MagicMock()
        hub.return_value.repo_info.return_value.private = private
        hub.return_value.create_repo.return_value = "https://huggingface.co/me/mine"
        hub.return_value.create_repo.side_effect = error
        monkeypatch.setattr("huggingface_hub.HfApi", hub)
        monkeypatch.setattr("huggingface_hub.get_token", lambda: token)
        words = ["push", student(store, [teacher]).key, "me/mine", "--artifacts", str(store.root)]
        code = cli.main([*words, *more, "--out", str(tmp_path / "card")])
        shown = capsys.readouterr()
        return code, shown.out + shown.err, hub

    return push


def test_a_push_is_private_unless_asked(pushed, tmp_path):
    code, shown, hub = pushed()
    assert code == 0 and "https://huggingface.co/me/mine" in shown
    hub.assert_called_once_with(token="secret")
    assert hub.return_value.create_repo.call_args.kwargs["private"]
    sent = hub.return_value.upload_folder.call_args.kwargs
    assert sent["repo_id"] == "me/mine" and set(sent["allow_patterns"]) == FILES
    assert "hf-hub:me/mine" in (sent["folder_path"] / "README.md").read_text()
    code, _, hub = pushed("--public", private=False)
    assert code == 0 and not hub.return_value.create_repo.call_args.kwargs["private"]
    assert hub.return_value.upload_folder.called


@pytest.mark.parametrize(
    "state, words",
    [
        ({"private": False}, "is public already"),
        ({"token": None}, "nobody is logged in"),
        ({"error": ConnectionError("no route to the hub")}, "no route to the hub"),
    ],
)
def test_a_push_that_cannot_be_is_refused(pushed, state, words):
    code, shown, hub = pushed(**state)
    assert code == 2 and words in shown and "fix" in shown
    assert not hub.return_value.upload_folder.called
