"""Widgets: the static figure in batch, and controls that change the picture."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dfkd_lib import attention, detection, widgets
from dfkd_lib.core import REPOSITORY, WorkbenchError
from dfkd_lib.datasets import ImageSet, generate_scenes, to_float
from dfkd_lib.models import create_detector, create_model
from dfkd_lib.pipeline.parameters import read_notebook
from dfkd_lib.widgets.browse import FAINT, partner

NOTEBOOK = REPOSITORY / "notebooks" / "10_attention_probes.ipynb"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = create_model("vit_mnist_smoke").eval()
    made.classes = tuple("0123456789")
    return made


@pytest.fixture(scope="module")
def images():
    pixels = torch.randint(0, 256, (6, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    return ImageSet(pixels.byte(), torch.tensor([0, 1, 2, 0, 1, 2]), tuple("0123456789"))


@pytest.fixture(scope="module")
def scenes():
    return generate_scenes(4, 48, split="test")


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    return create_detector("detr_nano", 4).eval()


@pytest.fixture
def box(model, images):
    """An explorer of two models and two sets."""
    other = create_model("vit_mnist_small").eval()
    batches = [(images.images, images.labels)]
    probes = attention.class_probe_statistics(model, batches, 3, None).mean
    box = widgets.attention_explorer(
        {"model": model, "other": other},
        {"some": images, "more": images.subset([3, 4, 5])},
        class_probes={"model": dict(zip("012", probes, strict=True))},
        notebook="10_attention_probes",
        parameters={"data": "digits", "second": "none"},
    )
    return listened(box)


def listened(box):
    """The widget, which puts what it sends into `sent`."""
    box.sent = []
    box.send = lambda content, buffers=(): box.sent.append((content, [*map(bytes, buffers or ())]))
    return box


def ask(box, *buffers, **content):
    box.sent.clear()
    box._on_message(box, {"id": 1, **content}, list(buffers))
    return {message["kind"]: (message, buffers) for message, buffers in box.sent}


def choose(box, **changes):
    """The view that a choice is answered with, and its buffers."""
    return ask(box, do="choose", changes=changes)["view"]


def weights_of(buffers, rows, panel=0):
    """The weights (rows, N) that were sent of a panel."""
    kinds = {1: np.uint16, 2: np.float32}
    shares, tops = (np.frombuffer(buffers[5 * panel + i], kind) for i, kind in kinds.items())
    return shares.reshape(rows, -1) / 65535 * tops[:, None]


def test_what_is_sent_is_the_attention_of_the_choice(box, model, images):
    message, buffers = choose(box, image=4, block=0, head=1, token="10")
    (meta,) = message["panels"]
    batch = to_float(images.images[4:5])
    expected = attention.attention_map(model, batch, 0)[0, 1, :, 1:].detach().numpy()
    assert np.abs(weights_of(buffers, 50) - expected).max() < 1e-5
    assert meta["row"] == 11 and meta["grid"] == [7, 7]
    pixels = np.frombuffer(buffers[0], np.uint8).reshape(28, 28, 3)
    assert np.array_equal(pixels[..., 0], images.pixels[4, 0].numpy())
    every = np.frombuffer(buffers[3], np.float32).reshape(2, 2, 49)
    assert np.abs(every[0, 1] - expected[11]).max() < 1e-6
    assert message["choice"] == box.view and box.view["image"] == 4


def test_the_probe_stands_beside_its_class_probe(box, model, images):
    message, buffers = choose(box, image=2)
    probe = attention.attention_probe(model, to_float(images.images[2:3])).detach().numpy()[0]
    class_probe = np.frombuffer(buffers[4], np.float32)
    cosine = probe @ class_probe / np.linalg.norm(probe) / np.linalg.norm(class_probe)
    assert message["panels"][0]["agreement"] == pytest.approx(cosine, abs=1e-5)
    message, _ = choose(box, token="3")
    assert not message["panels"][0]["class_probe"]  # of a patch there is none


def test_two_models_and_two_images_side_by_side(box):
    message, buffers = choose(box, compare="model:other", block=1)
    first, second = message["panels"]
    assert (first["blocks"], second["blocks"]) == (2, 3)
    assert second["block"] == 2
    assert len(buffers) == 10
    message, _ = choose(box, image=1, compare="data:more", compare_image=5)
    assert message["panels"][1]["title"].endswith("more 1")
    assert "class 1" in message["panels"][1]["prediction"]


def test_a_head_or_block_that_is_switched_off_stands_beside(box, model, images):
    """Its weights are 0 there, later blocks and the prediction those of the model without it; one comparison at a time."""
    choose(box, compare="model:other", head=1)
    message, buffers = choose(box, without="0.1", block=0)
    whole, less = message["panels"]
    assert message["choice"]["compare"] == "" and less["title"].endswith("without block 1, head 2")
    assert less["agreement"] == 0 < whole["agreement"] and len(box.figure().axes) > 6
    assert weights_of(buffers, 50).max(1).all() and not weights_of(buffers, 50, 1).any()
    batch = to_float(images.images[:1])
    with torch.no_grad(), attention.without_attention(model, 0, 1):
        logits, probe = model(batch)[0], attention.attention_probe(model, batch)[0]
    told = f"predicted {int(logits.argmax())} ({100 * logits.softmax(0).max():.1f} %)"
    assert less["prediction"] == f"class 0, {told}" != whole["prediction"]
    message, buffers = choose(box, block=1, head=-1)
    assert np.allclose(weights_of(buffers, 50, 1)[0], probe, atol=1e-5)
    figure = box.figure()
    three = box.viewer.panels(box.state.replace(compare="model:other"))
    assert ["without" in panel.title for panel in three] == [False, True, False]
    assert sum("without block 1, head 2" in ax.get_title() for ax in figure.axes) == 1
    assert "without=0.1" in box.state.text()
    message, _ = choose(box, compare="model:other")
    assert message["choice"]["without"] == "" and "without" not in message["panels"][1]["title"]


def test_a_detectors_head_is_switched_off_too(detector, scenes):
    viewer = widgets.Viewer({"detector": detector}, {"scenes": scenes})
    choice = widgets.Choice(without="1.0", head=0, threshold=0.0)
    whole, less = viewer.panels(choice)
    assert whole.kind == "cross" and whole.weights.any() and not less.weights.any()
    assert not np.array_equal(whole.boxes, less.boxes)


def test_all_models_that_take_an_image_stand_side_by_side(model, images):
    models = {"m": model, "cnn": create_model("cnn_small").eval(), "coarse": other_grid(28)}
    larger = {**models, "larger": other_grid(42)}
    viewer = widgets.Viewer(larger, {"d": images})
    assert "models" in viewer.fitting.possible("m", "d")["compare"]
    panels = viewer.panels(widgets.Choice(compare="models", token="38"))
    assert [panel.title.split(" ")[0] for panel in panels] == ["m", "coarse", "larger"]
    for panel, one in zip(panels[1:], ("coarse", "larger"), strict=True):
        alone = viewer.panels(widgets.Choice(compare=f"model:{one}", token="38"))[1]
        assert np.array_equal(panel.weights, alone.weights) and panel.row == alone.row
    assert len(viewer.figure(widgets.Choice(compare="models")).axes) >= 3 * len(panels)
    two = widgets.Viewer(dict(list(models.items())[:2]), {"d": images})
    assert "models" not in two.fitting.possible("m", "d")["compare"]


def test_an_own_image_is_shown_as_each_model_takes_it(box, model, detector, images, tmp_path):
    box.out = tmp_path
    pixels = np.zeros((60, 90, 3), np.uint8)
    pixels[:, 15:75, 0] = 200  # the middle square is red, the sides are black
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    answers = ask(box, encoded.getvalue(), do="own", name="../my cat.PNG")
    message, buffers = answers["view"]
    (panel,) = message["panels"]
    assert (panel["height"], panel["width"]) == (28, 28) and "my-cat" in panel["title"]
    assert panel["prediction"].startswith("predicted ") and answers["gallery"][0]["indices"] == [0]
    grey = round(0.299 * 200)
    # Bicubic: a little more at the sides.
    assert all(abs(value - grey) <= 5 for value in buffers[0])
    path = Path(box.view["data"])
    assert path.parent == tmp_path / "own" and path.read_bytes() == encoded.getvalue()
    # A saved view finds it again; each model gets the image in its own way.
    viewer = widgets.Viewer({"m": model, "d": detector, "big": other_grid(42)}, {"some": images})
    choice = widgets.Choice.read(box.state.text()).replace(model="m", compare="models")
    shapes = [panel.image.shape for panel in viewer.panels(choice)]
    assert shapes == [(1, 28, 28), (3, 60, 90), (1, 42, 42)]
    assert viewer.panels(choice)[1].boxes is not None
    ask(box, b"no image", do="own", name="broken.png")
    assert "an image cannot be read" in box.error and box.view["data"] == str(path)


def test_what_was_watched_while_a_model_learned_is_gone_through_by_epoch(model, images):
    watched, probes = images.images[2:4], torch.rand(4, 2, 49)
    kept = {"model": {"images": watched, "probes": probes}}
    both = kept | {"other": {"images": watched, "probes": 1 - probes}}
    models = {"model": model, "other": create_model("vit_mnist_small").eval()}
    viewer = widgets.Viewer(models, {"some": images}, learning=both)
    assert list(viewer.data) == ["some", "watched"]  # the same images are one set
    assert "learning" in viewer.fitting.possible("model", "watched")["weights"]
    assert "learning" not in viewer.fitting.possible("model", "some")["weights"]
    choice = widgets.Choice(data="watched", image=1, weights="learning", epoch=2)
    first, second = viewer.panels(choice.replace(compare="model:other"))
    assert np.array_equal(first.probe, probes[2, 1]) and (first.epoch, first.epochs) == (2, 3)
    assert np.allclose(second.probe, 1 - probes[2, 1]) and np.array_equal(first.image, watched[1])
    assert viewer.panels(choice.replace(epoch=-1))[0].epoch == 3
    titles = [ax.get_title() for ax in viewer.figure(choice).axes]
    assert "last block, after epoch 2 of 3" in titles
    with pytest.raises(WorkbenchError, match="no epoch 4|no such epoch"):
        viewer.panels(choice.replace(epoch=4))
    lone = widgets.Viewer(models, {"some": images}, learning=kept)
    with pytest.raises(WorkbenchError, match=r"student\.watch"):
        lone.panels(choice.replace(compare="model:other"))
    box = widgets.attention_explorer(models, images, learning=both, start=choice)
    box.choose(data="images")
    assert box.view["weights"] == "attention" and box.error == ""


def test_components_of_two_images_have_one_basis(model, images):
    viewer = widgets.Viewer({"m": model}, {"some": images, "more": images.subset([3, 4, 5])})
    assert "components" in viewer.fitting.possible("m", "some")["weights"]
    choice = widgets.Choice(image=1, weights="components", compare="data:more", block=0)
    both = viewer.panels(choice)
    pixels = to_float(torch.stack([torch.from_numpy(panel.image) for panel in both]))
    found = attention.patch_components(attention.patch_features(model, pixels, 0))
    for panel, values in zip(both, found.values, strict=True):
        assert np.abs(np.array(panel.tints) - 255 * values.numpy()).max() <= 1
        assert np.allclose(panel.shares, found.shares, atol=1e-4)
    (alone,) = viewer.panels(choice.replace(compare=""))
    assert alone.tints != both[0].tints, "its own basis"
    titles = [ax.get_title() for ax in viewer.figure(choice).axes]
    assert sum("of the variance" in title for title in titles) == 2


def other_grid(side):
    """A model of few weights whose patches are of 7 pixels, for images of a side."""
    return create_model("vit_mnist_smoke", patch_size=7, img_size=side).eval()


@pytest.mark.parametrize("side", [28, 42])
def test_patches_of_two_models_are_matched_by_their_place_in_the_image(model, images, side):
    other = other_grid(side)
    viewer = widgets.Viewer({"m": model, "o": other}, {"d": images})
    # Row 5, column 3 of 7 x 7: its middle is at 11/14 and 7/14 of the image.
    choice = widgets.Choice(token=str(5 * 7 + 3), compare="model:o")
    first, second = viewer.panels(choice)
    n = side // 7
    assert first.row == 1 + 38 and second.grid == (n, n)
    assert second.row == 1 + int(11 / 14 * n) * n + n // 2
    assert ("resized to 42 x 42" in second.title) == (side == 42)
    pixels = to_float(torch.from_numpy(second.image)[None])
    row = attention.attention_probe(other, pixels, token=second.row - 1)[0]
    assert np.allclose(second.probe, row.detach().numpy(), atol=1e-6)


def test_what_no_patch_sees_is_left_uncovered(images):
    torch.manual_seed(0)
    model = create_model("vit_mnist_smoke").eval()
    model.patch_embed.img_size = (30, 30)  # 7 x 7 patches of 4 pixels, and two pixels over
    pixels = torch.nn.functional.pad(images.pixels, (0, 2, 0, 2))
    large = ImageSet(pixels, images.labels, images.classes)
    (panel,) = widgets.Viewer({"m": model}, {"d": large}).panels(widgets.Choice())
    assert panel.grid == (7, 7) and panel.cover == (28 / 30, 28 / 30)
    assert panel.place(48) == pytest.approx((26 / 30, 26 / 30))
    assert panel.patch_at((0.99, 0.99)) == 48 and panel.patch_at((0.5, 0.1)) == 3 * 7


def test_a_detector_opens_on_a_scene_with_an_object(detector):
    scenes = generate_scenes(4, 48, split="test")
    scenes.labels[:2] = [torch.zeros(0, dtype=torch.long)] * 2
    scenes.boxes[:2] = [torch.zeros(0, 4)] * 2
    viewer = widgets.Viewer({"d": detector}, {"s": scenes})
    first = next(i for i in range(4) if len(scenes.labels[i]))
    assert viewer.settle(widgets.Choice()).image == first >= 2
    assert viewer.settle(widgets.Choice(data="s")).image == 0  # a saved view names its data


def test_impossible_choices_are_named(model, images, scenes, detector):
    small = ImageSet(torch.zeros(2, 1, 14, 14, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"))
    cnn = create_model("cnn_small").eval()
    models = {"m": model, "cnn": cnn, "o": other_grid(42), "detr": detector}
    viewer = widgets.Viewer(models, {"d": images, "small": small, "scenes": scenes})
    found = viewer.fitting.possible("m", "d")
    assert found["model"] == ["m", "detr"] and found["data"] == ["d"]
    assert found["compare"] == ["", "model:m", "model:o", "data:d"]
    assert found["weights"] == [
        *("attention", "rollout", "gradient", "legrad", "similarity", "components")
    ]
    found = viewer.fitting.possible("detr", "scenes")
    assert found["data"] == ["scenes"] and found["weights"] == ["attention", "gradient"]
    model.classifies = False
    backbone = viewer.fitting.ways("m", "d")
    del model.classifies
    assert backbone == ["attention", "rollout", "similarity", "components"]


def test_similar_patches_are_those_of_the_features_here_and_in_a_second_image(model, images):
    viewer = widgets.Viewer({"m": model}, {"d": images, "e": images})
    choice = widgets.Choice(weights="similarity", token="17", block=0, compare="data:e")
    first, second = viewer.panels(choice.replace(compare_image=1))
    features = attention.patch_features(model, to_float(images.images[[0, 3]]), 0)
    for panel, others in ((first, features[0]), (second, features[1])):
        expected = torch.cosine_similarity(features[0][17], others, dim=-1).clamp(min=0)
        assert np.allclose(panel.probe, expected.numpy(), atol=1e-5) and panel.row == 17
    assert first.probe.argmax() == 17 and first.prefix == 0
    near = attention.nearest_patches(features[0], features[1])
    assert second.probe.argmax() == near.place[17]
    assert viewer.figure(choice)._repr_png_()
    (middle,) = viewer.panels(widgets.Choice(weights="similarity"))
    assert middle.row == 24


def test_one_scale_is_by_equal_areas_and_the_saved_figure_has_it(model, images):
    viewer = widgets.Viewer({"m": model, "o": other_grid(28)}, {"d": images})
    choice = widgets.Choice(compare="model:o", scale="one", colours="cividis", overlay=0.25)
    figure = viewer.figure(choice)
    laid = [ax.images for ax in figure.axes if len(ax.images) == 2]
    tops = [images[1].norm.vmax for images in laid]
    assert tops[0] * 49 == pytest.approx(tops[1] * 16)
    assert {images[1].cmap.name for images in laid} == {"cividis"}
    assert {images[1].get_alpha() for images in laid} == {0.25}


def test_what_is_shown_is_followed_by_insertion_and_deletion(box, model, images):
    message, _ = choose(box, image=3, weights="rollout", compare="model:other")
    assert message["measurable"]
    measured, _ = ask(box, do="measure")["measured"]
    batch = to_float(images.images[3:4])
    by_hand = attention.insertion_deletion(model, batch, attention.attention_rollout(model, batch))
    for part in ("deletion", "insertion"):
        shown, chance = measured[part].values()
        assert shown["curve"] == pytest.approx(getattr(by_hand, part)[0].tolist(), abs=1e-5)
        assert shown["area"] == pytest.approx(float(getattr(by_hand, f"{part}_area")), abs=1e-5)
        assert chance["curve"] != shown["curve"] and chance["curve"][0] == shown["curve"][0]
    message, _ = choose(box, weights="components")
    assert not message["measurable"] and "measured" not in ask(box, do="measure")
    assert "where a classifier looks" in box.error


@pytest.mark.parametrize("weights", ["rollout", "gradient", "legrad"])
def test_explanations_are_shown_too(box, weights):
    message, buffers = choose(box, weights=weights)
    assert message["panels"][0]["rows"] == 1 and message["panels"][0]["overview"] is None
    assert np.frombuffer(buffers[1], np.uint16).max() == 65535


def test_the_gallery_filters_by_class_and_by_error(box, model, images):
    message, buffers = ask(box, do="gallery", changes={"label": 2})["gallery"]
    assert message["indices"] == [2, 5] and len(buffers[0]) == 2 * 44 * 44 * 3
    said = model(to_float(images.images)).argmax(1)
    message, _ = ask(box, do="gallery", changes={"label": -1, "wrong": True})["gallery"]
    assert message["indices"] == (said != images.labels).nonzero().flatten().tolist()
    assert "wrong among all 6" in message["note"]
    message, buffers = ask(box, do="gallery", changes={"label": 9})["gallery"]
    assert message["indices"] == [] and "no such image of class 9" in message["note"]
    assert choose(box, image=1)  # still usable


@pytest.mark.parametrize(
    "outputs, classes, wrong, note, said",
    [
        ("0123456789", "0123456789", [0, 2, 3, 5], "", "class 1, predicted 1"),
        ("1032456789", "0123456789", [1, 2, 4, 5], "", "class 1, predicted 0"),
        ("1032456789", "1032456789", [0, 2, 3, 5], "", "class 0, predicted 0"),
        ("0123456789", "1x23456789", [2, 5], "has no class x", "class x, predicted 1"),
        ("", "0123456789", [], "have no names", "class 1, predicted output 1"),
    ],
)
def test_classes_of_model_probes_and_data_are_compared_by_name(
    model, images, monkeypatch, outputs, classes, wrong, note, said
):
    assert set(model(to_float(images.images)).argmax(1).tolist()) == {1}
    monkeypatch.setattr(model, "classes", tuple(outputs) or None)
    data = ImageSet(images.pixels, images.labels, tuple(classes))
    probes = {"1": torch.rand(2, 49), "2": torch.rand(2, 49)}
    viewer = widgets.Viewer({"m": model}, {"d": data}, {"m": probes})
    found, why = viewer.wrong("m", "d", 100)
    assert found.nonzero()[0].tolist() == wrong and note in why and bool(note) == bool(why)
    for image, name in enumerate(classes[:3]):
        (panel,) = viewer.panels(widgets.Choice(image=image, block=0))
        if name in probes:
            assert np.array_equal(panel.class_probe, probes[name][0].numpy())
        else:
            assert panel.class_probe is None
    assert viewer.panels(widgets.Choice(image=1))[0].prediction == said
    monkeypatch.setattr(model, "classifies", False, raising=False)
    assert viewer.panels(widgets.Choice(image=1))[0].prediction.endswith(", no classifier")


def test_class_probes_without_names_are_refused(model, images):
    with pytest.raises(WorkbenchError, match="by the name of their class") as caught:
        widgets.Viewer({"m": model}, {"d": images}, {"m": torch.rand(3, 2, 49)})
    assert "dict(zip(images.classes, probes))" in caught.value.fix


def test_a_detectors_classes_are_its_own(detector, scenes, monkeypatch):
    other = dataclasses.replace(scenes, classes=tuple("abcd"))
    choice = widgets.Choice(threshold=0.0)
    for classes, first in ((("x", "y", "z", "w"), "xyzw"), (None, "o")):
        monkeypatch.setattr(detector, "classes", classes)
        (panel,) = widgets.Viewer({"d": detector}, {"s": other}).panels(choice)
        assert panel.labels and {label[0] for label in panel.labels} <= set(first)
    monkeypatch.setattr(detector, "classes", tuple("dcba"))
    for refused in (
        lambda: widgets.detection_browser({"d": detector}, other, interactive=False),
        lambda: detection.detections(detector, other),
    ):
        with pytest.raises(WorkbenchError, match="different classes"):
            refused()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"block": 7}, "no such block"),
        ({"head": 5}, "no such head"),
        ({"token": "nose"}, "no such token"),
        ({"token": "distillation"}, "no such token"),
        ({"data": "third"}, "no such data"),
        ({"compare": "model:third"}, "there is no model"),
        ({"weights": "heavy"}, "weights' is impossible"),
        ({"data": "more", "compare": "data:some", "image": 9}, "no such image"),
        ({"without": "first"}, "without' is impossible"),
        ({"without": "2"}, "no such block"),
        ({"without": "0.7"}, "no such head"),
    ],
)
def test_bad_choices_are_said_in_place(box, changes, words):
    before = dict(box.view)
    answers = ask(box, do="choose", changes=changes)
    assert words in box.error and "expected" in box.error and list(answers) == ["done"]
    assert box.view == before
    assert choose(box, image=3) and box.error == ""


def test_what_does_not_fit_is_said_in_place(model, images):
    pixels = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    large = ImageSet(pixels, torch.tensor([0, 1]), tuple("0123456789"))
    box = widgets.attention_explorer(model, {"good": images, "large": large})
    box.choose(data="large")
    assert "(1, 28, 28)" in box.error and "(3, 32, 32)" in box.error and box.view["data"] == "good"
    with pytest.raises(WorkbenchError, match="28"):
        widgets.attention_explorer(model, large, interactive=False)
    cnn = create_model("cnn_small").eval()
    box = widgets.attention_explorer({"cnn": cnn, "vit": model}, images)
    assert "no attention" in box.error
    box.choose(model="vit")
    assert box.error == "" and box.view["model"] == "vit"


def test_a_detection_is_looked_at_through_its_query(detector, scenes):
    box = listened(widgets.attention_explorer({"detector": detector}, {"scenes": scenes}))
    message, buffers = choose(box, image=1, threshold=0.01)
    (meta,) = message["panels"]
    assert len(meta["boxes"]) == len(meta["queries"]) == len(meta["labels"]) > 0
    query = meta["queries"][-1]
    message, buffers = choose(box, token=str(query))
    batch = scenes.images[1:2].float() / 255
    with attention.capture_attention(detector, (-1,), query, kind="cross") as rows, torch.no_grad():
        detector(batch)
    expected = rows[-1][0].mean(0).numpy()
    assert np.abs(weights_of(buffers, 10)[query] - expected).max() < 1e-5
    message, _ = choose(box, kind="encoder")
    assert message["panels"][0]["kind"] == "encoder" and box.error == ""


def test_a_choice_is_saved_as_figure_and_as_parameters(box, tmp_path, model, images):
    box.out = tmp_path
    look = {"overlay": 0.3, "colours": "gray", "scale": "one", "compare": "model:other"}
    box.choose(image=3, block=0, head=1, token="7", **look)
    ask(box, do="save", what="figure")
    assert sorted(p.suffix for p in (tmp_path / "figures").iterdir()) == [".pdf", ".png", ".svg"]
    (svg,), (pdf,) = ((tmp_path / "figures").glob(f"*.{kind}") for kind in ("svg", "pdf"))
    assert "<text" in svg.read_text()
    assert b"/FontFile2" in pdf.read_bytes() and b"/Type3" not in pdf.read_bytes()
    ask(box, do="save", what="parameters")
    (path,) = tmp_path.glob("*.yaml")
    saved = json.loads(path.read_text())
    again = widgets.Choice.read(saved["view"])
    assert again.as_dict() == box.view and str(path) in box.saved
    assert saved["data"] == "digits" and saved["second"] == "none"
    # The notebook takes them all.
    assert set(json.loads(path.read_text())) <= set(read_notebook(NOTEBOOK).parameters)


def test_what_a_detection_rests_on_is_shown_too(detector, scenes):
    box = widgets.attention_explorer({"detector": detector}, {"scenes": scenes})
    box.choose(weights="gradient", token="3")
    (panel,) = box.viewer.panels(widgets.Choice(**box.view))
    shown = scenes.images[[box.view["image"]]].float() / 255
    expected = attention.detection_relevance(detector, shown, 3)[0]
    assert box.error == "" and panel.query == 3
    assert np.allclose(panel.probe, expected.numpy(), atol=1e-6)
    box.choose(weights="rollout")
    assert "no such weights" in box.error


# The detection browser


@pytest.fixture
def browsed(scenes, tmp_path):
    """A browser of two detectors whose predictions are given, and these."""
    torch.manual_seed(0)
    sizes = {"teacher": "detr_nano", "student": "detr_micro"}
    detectors = {name: create_detector(size, 4).eval() for name, size in sizes.items()}
    found = {name: detection.predict(d, scenes.images) for name, d in detectors.items()}
    box = widgets.detection_browser(detectors, scenes, found, threshold=0.08, out_dir=tmp_path)
    return listened(box), found


def test_the_browser_is_sent_what_was_detected(browsed, scenes):
    box, found = browsed
    message, buffers = ask(box, do="scenes", data="scenes")["scenes"]
    assert message["count"] == 4 and message["classes"] == list(scenes.classes)
    assert len(buffers) == 3 + 2 * 5
    starts = np.frombuffer(buffers[0], np.int32)
    assert np.diff(starts).tolist() == [len(b) for b in scenes.boxes]
    assert np.array_equal(np.frombuffer(buffers[2], np.int32), torch.cat(scenes.labels))
    scores, boxes = found["student"]
    starts, queries = np.frombuffer(buffers[8], np.int32), np.frombuffer(buffers[12], np.int32)
    for i in range(4):
        mine = slice(starts[i], starts[i + 1])
        got, chosen = np.frombuffer(buffers[11], np.float32)[mine], queries[mine].tolist()
        assert len(got) == int((scores[i].amax(-1) >= FAINT).sum()) and (np.diff(got) <= 0).all()
        assert np.array_equal(got, scores[i].amax(-1)[chosen])
        placed = np.frombuffer(buffers[9], np.float32).reshape(-1, 4)[mine]
        assert np.array_equal(placed, boxes[i, chosen])
    message, (pixels,) = ask(box, do="images", data="scenes", rows=[2])["images"]
    assert pixels == scenes.pixels[2].permute(1, 2, 0).numpy().tobytes() and box.error == ""


def test_every_query_looks_where_its_detector_says(browsed, scenes):
    box, found = browsed
    message, buffers = ask(box, do="look", data="scenes", scene=3, block=-3, head=1)["look"]
    _, student = message["looks"]  # two blocks and three
    assert [(look["blocks"], look["block"]) for look in message["looks"]] == [(2, 0), (3, 0)]
    assert student["head"] == 1
    detector = box.browse.detectors["student"]
    capture = attention.capture_attention(detector, (0,), None, kind="cross")
    with torch.inference_mode(), capture as maps:
        detector(scenes.pixels[3:4].float() / 255)
    got = np.frombuffer(buffers[1], np.float32).reshape(16, -1)
    assert got.shape[1] == np.prod(student["grid"])
    assert np.abs(got - maps[0][0, 1].numpy()).max() < 1e-6


def test_deformable_attention_is_sent_as_points(scenes, tmp_path):
    """x, y, weight and scale of each, of one head or, shared out, of all; a figure is made of them."""
    torch.manual_seed(0)
    atto = create_detector("deimv2_atto", 4).eval()
    box = widgets.detection_browser({"atto": atto}, scenes, threshold=0.05, out_dir=tmp_path)
    listened(box)
    points = attention.attention_points(atto, scenes.pixels[3:4].float() / 255, [0])
    for head, count in ((1, 6), (-1, 48)):
        asked = {"data": "scenes", "scene": 3, "block": -3, "head": head}
        message, (buffer,) = ask(box, do="look", **asked)["look"]
        (look,) = message["looks"]
        assert (look["points"], look["blocks"], look["block"], look["why"]) == (count, 3, 0, "")
        got = torch.frombuffer(bytearray(buffer), dtype=torch.float32).view(100, -1, 6, 4)
        share, heads = (1, slice(1, 2)) if head == 1 else (8, slice(None))
        wanted = points.locations[0, 0, heads].transpose(0, 1)
        assert torch.allclose(got[..., :2], wanted, atol=1e-5)
        weights = points.weights[0, 0, heads].transpose(0, 1) / share
        assert torch.allclose(got[..., 2], weights, atol=1e-6)
        assert torch.equal(got[..., 3], points.levels.float().expand_as(got[..., 3]))
    query = int(box.browse.found("scenes")["atto"][0][3].amax(-1).argmax())
    box.choose(scene=3, chosen="atto", query=query, block=-1, head=-1)
    drawn = [c for c in box.figure().axes[0].collections if len(c.get_offsets()) == 48]
    last = attention.attention_points(atto, scenes.pixels[3:4].float() / 255, [-1])
    places = last.locations[0, 0, :, query].flatten(0, 1).detach()
    size = torch.tensor([scenes.pixels.shape[3], scenes.pixels.shape[2]])
    expected = sorted((places * size - 0.5).tolist())
    assert np.allclose(sorted(drawn[0].get_offsets().tolist()), expected, atol=1e-3)


def test_detections_of_tiles_have_no_query_to_look_at(scenes, detector, tmp_path):
    scores, boxes = detection.predict(detector, scenes.images)
    found = {"tiled": (scores, boxes.roll(1, 1)), "kept": (scores, boxes)}
    browse = widgets.detection_browser({"tiled": detector, "kept": None}, scenes, found).browse
    tiled, kept = browse.attention("scenes", 0, -1, -1).values()
    assert "not its own" in tiled.why and not tiled.weights.size
    assert "only its predictions" in kept.why


def test_the_browser_says_what_it_cannot_show(browsed, scenes, detector, images):
    box, found = browsed
    for changes, words in (
        ({"scene": 4}, "no such scene"),
        ({"threshold": 1.5}, "threshold' is impossible"),
        ({"of": "nobody"}, "there is no detector"),
    ):
        before = box.view
        box.choose(**changes)
        assert words in box.error and "expected" in box.error and box.view == before
    box.choose(scene=2)
    assert box.error == "" and box.view["scene"] == 2
    with pytest.raises(WorkbenchError, match="different classes"):
        widgets.detection_browser({"other": create_detector("detr_nano", 3)}, scenes)
    three = {"teacher": (torch.zeros(3, 5, 4), torch.zeros(3, 5, 4))}
    with pytest.raises(WorkbenchError, match=r"scores \(4, Q, classes\)"):
        widgets.detection_browser({"teacher": detector}, scenes, three)
    with pytest.raises(WorkbenchError, match="nothing to show"):
        widgets.detection_browser({}, scenes)
    with pytest.raises(WorkbenchError, match="a detector, or its predictions"):
        widgets.detection_browser({"teacher": None}, scenes, interactive=False)


def test_the_browser_saves_what_it_shows(browsed, tmp_path):
    box, found = browsed
    scores, _ = found["teacher"]
    query = int(scores[1].amax(-1).argmax())
    ask(box, do="save", view={**box.view, "scene": 1, "chosen": "teacher", "query": query})
    assert box.error == "" and len(list((tmp_path / "figures").iterdir())) == 3
    assert box.view["query"] == query
    assert len(box.figure().axes[0].images) == 2  # the scene, and where the query looks


def test_the_static_browser_begins_with_what_detectors_disagree_on(scenes):
    truth = torch.zeros(4, 4, 4), torch.full((4, 4, 4), 0.5)
    for i, (boxes, labels) in enumerate(zip(scenes.boxes, scenes.labels, strict=True)):
        truth[1][i, : len(boxes)] = boxes
        truth[0][i, range(len(boxes)), labels] = 0.9
    nothing = torch.zeros_like(truth[0]), truth[1]
    counts = torch.tensor([len(boxes) for boxes in scenes.boxes])
    detectors, found = {"teacher": None, "student": None}, {"teacher": truth, "student": nothing}
    browse = widgets.detection_browser(detectors, scenes, found).browse
    # Right under one, missed under the other.
    assert browse.disagreement("scenes", 0.5).tolist() == (2 * counts).tolist()
    figure = widgets.detection_browser(detectors, scenes, found, interactive=False, examples=1)
    assert len(figure.axes) == 2 and len(figure.axes[0].texts) == counts.max()


def test_partners_overlap_enough_and_are_sure_enough():
    scores = torch.tensor([[0.9, 0], [0.6, 0], [0.95, 0]])
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.52, 0.5, 0.2, 0.2], [0.9, 0.9, 0.1, 0.1]])
    assert partner(scores, boxes, [0.52, 0.5, 0.2, 0.2], 0.5) == 1
    assert partner(scores, boxes, [0.52, 0.5, 0.2, 0.2], 0.7) == 0
    assert partner(scores, boxes, [0.1, 0.1, 0.1, 0.1], 0.5) is None
    assert partner(scores, boxes, [0.5, 0.5, 0.2, 0.2], 0.99) is None
