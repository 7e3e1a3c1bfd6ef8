"""DearKD's stages and TITN's table at tiny size: what is trained from what, what was read, what is reported."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from dfkd_lib import presets, training
from dfkd_lib.core.artifacts import Store
from dfkd_lib.datasets import load_images
from dfkd_lib.distill import titn
from dfkd_lib.models import create_model
from dfkd_lib.training import Augmentation, Batch, TrainConfig, label_step

EARLY = presets.load(
    "early",
    "quick",
    "data=digits patch_size=2 images=200 passes=400 batch_size=50 augmentation=none",
)
TITN = presets.load(
    "titn", "quick", "data=digits images=100 epochs=1 batch_size=50 augmentation=none"
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def digits():
    """Digits enlarged to 28 pixels, which the small models want, still known to the ledger as real."""

    def grown(split):
        images = load_images("digits", split)
        pixels = F.interpolate(images.pixels.float(), 28, mode="nearest").to(torch.uint8)
        return replace(images, pixels=pixels, _fingerprint=None)

    return grown("train"), grown("test")


@pytest.fixture(scope="module")
def cnn(store, digits):
    config = TrainConfig(epochs=3, batch_size=64, lr=3e-3, seed=0)
    return training.train_teacher(store, "cnn_small", *digits, config, Augmentation())


def test_every_run_gets_as_many_image_passes():
    for images in (50, 100, 200):
        parts = (EARLY.training(images, part, 0).epochs * images for part in (1.0, 0.6, 0.4))
        whole, one, two = parts
        assert whole == 400 and abs(one + two - 400) <= images


def test_dearkd_is_two_stages_and_the_second_knows_no_teacher(store, digits, cnn):
    config = EARLY.replace(patch_size=7)
    one, two = config.run(store, "DearKD", cnn, *digits, share=0.5, seed=0)
    assert two.parents == [one.key] and one.parents == [cnn.key]
    assert {"ce", "hard", "early"} <= set(one.json("history.json")[0])
    assert {"hard", "early"}.isdisjoint(two.json("history.json")[0])
    for stage in (one, two):
        reads = {row["split"]: row["images"] for row in stage.ledger}
        assert reads == {"digits/train": 718, "digits/test": 360}
    start, end = one.tensors(), two.tensors()
    assert start.keys() == end.keys() and any(not torch.equal(start[k], end[k]) for k in start)
    (plain,) = config.run(store, "plain", cnn, *digits, share=0.5, seed=0)
    again = config.run(store, "plain", cnn, *digits, share=0.5, seed=0)
    assert plain.parents == [] and again[0].cached


def test_label_step_trains_what_is_tested():
    model = create_model("deit_small_28")
    images, labels = torch.randn(4, 1, 28, 28), torch.arange(4)
    model.train()
    class_logits, dist_logits = model(images)
    expected = F.cross_entropy((class_logits + dist_logits) / 2, labels)
    assert label_step(model)(Batch(images, labels, labels), 0.0)["loss"].item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_titn_tables_are_those_of_the_logits(store, digits, cnn):
    runs = {
        row: [TITN.run(store, row, cnn, *digits, seed=s) for s in (0, 1)] for row in ("ViT", "TITN")
    }
    table, each = titn.table(runs, cnn, "mnist"), titn.runs_table(runs)
    assert table["model"].tolist() == ["CNN small", "ViT", "TITN"]
    assert table["paper"].tolist() == ["99.75 / 100", "99.4 / 100", "99.56 / 100"]
    logits, labels = training.test_logits(runs["TITN"][1])
    right = (logits.argmax(1) == labels).float()
    shown = each[(each["model"] == "TITN") & (each["seed"] == 1)].iloc[0]
    assert shown["top-1"] == pytest.approx(100 * right.mean().item(), abs=0.3)
    recall = sum(right[labels == k].mean().item() for k in range(10)) / 10  # macro, by hand
    assert shown["recall"] == pytest.approx(100 * recall, abs=0.3)
    assert shown["top-1"] <= shown["top-5"] <= 100
    assert shown["parameters"] == sum(p.numel() for p in create_model("titn_small").parameters())
    values = each[each["model"] == "TITN"]["top-1"]
    # Of two seeds the values themselves: Student's t of one degree of freedom would be 12.7 standard errors.
    assert table["top-1"][2] == f"{values.iloc[0]:.2f}, {values.iloc[1]:.2f} (n = 2)"
    drop = titn.drop_table(runs, cnn, "cifar10").set_index("teacher → student")
    assert drop.loc["CNN small → TITN", "difference"] == pytest.approx(
        values.mean() - 100 * cnn.metrics["accuracy"]
    )
    assert drop["paper"].tolist() == ["95.98 → 92.05"]  # ViT has no teacher


def test_a_model_with_one_head_has_no_teacher(store, digits, cnn):
    vit, deit = (TITN.run(store, row, cnn, *digits, seed=0) for row in ("ViT", "DeiT"))
    # CutMix changes the images: no stored targets.
    assert vit.parents == [] and deit.parents == [cnn.key]
    assert "hard" not in vit.json("history.json")[0] and deit.settings["weights"]["hard"] == 0.5
    assert deit.settings["augmentation"]["mix"] == "cutmix"
