"""The attention explorer in a real JupyterLab and a real Chromium: chosen, hovered over, clicked, saved."""

import json
from pathlib import Path

import browser
import numpy as np
import pytest
import torch
from PIL import Image

from dfkd_lib import attention, datasets
from dfkd_lib.core import REPOSITORY, Store
from dfkd_lib.training import load_trained, shipped_teacher

pytestmark = pytest.mark.browser

START = f"""
import sys
sys.path.insert(0, {str(REPOSITORY)!r})
import torch
from dfkd_lib import attention, datasets, models, widgets
from dfkd_lib.core import Store
from dfkd_lib.detection import open_shipped
from dfkd_lib.training import load_trained, predict, shipped_teacher
test = datasets.load_images("mnist", "test").sample(200)
teacher = load_trained(shipped_teacher(Store("STORE"), "vit_mnist_small", test))
probes = attention.class_probe_statistics(teacher, [(test.images, test.labels)], 10, None).mean
torch.manual_seed(0)
fresh = models.create_model("vit_mnist_small").eval()
coarse = models.create_model("vit_mnist_mini_patch7").eval()
"""
EXPLORE = """
explorer = widgets.attention_explorer(
    {"teacher": teacher, "before training": fresh, "coarse": coarse, "detr": open_shipped("detr_micro_scenes")},
    {"mnist": test, "flipped": test.subset(range(199, -1, -1)), "scenes": datasets.generate_scenes(8, 80, 0, "test")},
    class_probes={"teacher": dict(zip(test.classes, probes))}, out_dir="OUT", notebook="10_attention_probes",
    learning={"teacher": {"images": test.images[:2], "probes": torch.eye(49)[:3, None].expand(3, 2, 49)}})
explorer
"""
PIXELS = """name => { const c = document.querySelector(`.dfkd-explorer ${name}`);
    return Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data); }"""
PICTURE = 205  # side of the drawn image


@pytest.fixture
def explored(page, lab, tmp_path):
    """(page, notebook) with the explorer drawn."""
    cells = [
        START.replace("STORE", str(tmp_path / "store")),
        EXPLORE.replace("OUT", str(tmp_path / "out")),
    ]
    notebook = browser.open_notebook(page, lab, cells)
    page.wait_for_selector(".dfkd-explorer[data-gallery] .picture")
    page.evaluate("() => document.querySelector('.dfkd-explorer').scrollIntoView()")
    return page, notebook


def shown(page) -> int:
    return int(page.evaluate("() => document.querySelector('.dfkd-explorer').dataset.shown"))


def acting(page, act) -> None:
    """Act, and wait until the explorer has drawn its answer."""
    before = shown(page)
    act()
    page.wait_for_function(
        "before => Number(document.querySelector('.dfkd-explorer').dataset.shown) > before",
        arg=before,
    )


def slide(page, value: int, name: str = "block") -> None:
    page.evaluate(
        """([value, name]) => { const b = document.querySelector(`.dfkd-explorer .${name}`); b.value = value;
        b.dispatchEvent(new Event('input')); }""",
        [value, name],
    )


def brightest_patch(page) -> int:
    """The patch (of 7 x 7) whose tile in the drawn weights is the lightest."""
    pixels = (
        torch.tensor(page.evaluate(PIXELS, ".map"), dtype=torch.float32).view(-1, 4)[:, :3].sum(1)
    )
    side = round(len(pixels) ** 0.5)
    middles = (torch.arange(7) * side / 7 + side / 14).long()
    return int(pixels.view(side, side)[middles][:, middles].argmax())


def test_image_block_head_and_patch_are_chosen_and_the_picture_is_theirs(explored, tmp_path):
    page, notebook = explored
    first = page.evaluate(PIXELS, ".map")
    acting(page, lambda: page.locator(".dfkd-explorer .thumbs button").nth(7).click())
    assert notebook.until("explorer.view['image'] == 7")
    acting(page, lambda: slide(page, 2))
    acting(page, lambda: page.locator(".dfkd-explorer select.head").select_option(label="4"))
    acting(
        page,
        lambda: page.locator(".dfkd-explorer .picture").first.click(
            position={"x": PICTURE * 3.5 / 7, "y": PICTURE * 2.5 / 7}
        ),
    )
    page.mouse.move(5, 5)
    choice = notebook.eval("explorer.view")
    assert (choice["block"], choice["head"], choice["token"]) == (1, 3, "17")
    assert page.evaluate(PIXELS, ".map") != first
    # What is drawn is what the model computes: the lightest tile is where that patch looks most.
    test = datasets.load_images("mnist", "test").sample(200)
    teacher = load_trained(shipped_teacher(Store(tmp_path / "check"), "vit_mnist_small", test))
    row = attention.attention_map(teacher, datasets.to_float(test.images[7:8]), 1)[0, 3, 18, 1:]
    assert brightest_patch(page) == int(row.argmax())
    assert "patch (3, 4)" in page.locator(".dfkd-explorer .picture + figcaption").first.inner_text()
    assert not page.problems, page.problems


def test_hovering_needs_no_kernel(explored):
    page, notebook = explored
    before, drawn = page.evaluate(PIXELS, ".map"), shown(page)
    page.locator(".dfkd-explorer .picture").first.hover(
        position={"x": PICTURE * 1.5 / 7, "y": PICTURE * 4.5 / 7}
    )
    page.wait_for_function(
        "() => document.querySelector('.dfkd-explorer').dataset.token === 'patch (5, 2)'"
    )
    assert page.evaluate(PIXELS, ".map") != before and shown(page) == drawn
    page.mouse.move(5, 5)
    page.wait_for_function(
        "() => document.querySelector('.dfkd-explorer').dataset.token === 'class token'"
    )
    assert page.evaluate(PIXELS, ".map") == before and notebook.eval("explorer.view['token']") == ""


def test_models_and_images_stand_side_by_side(explored):
    page, notebook = explored
    acting(
        page,
        lambda: page.locator(".dfkd-explorer select.compare").select_option(
            "model:before training"
        ),
    )
    assert page.locator(".dfkd-explorer .panel").count() == 2
    acting(
        page, lambda: page.locator(".dfkd-explorer select.compare").select_option("data:flipped")
    )
    titles = page.locator(".dfkd-explorer .panel h4").all_inner_texts()
    assert "teacher · mnist 0" in titles[0] and "teacher · flipped" in titles[1]
    assert titles[0].split("class ")[1][0] == titles[1].split("class ")[1][0]
    page.set_viewport_size({"width": 1400, "height": 900})
    boxes = [panel.bounding_box() for panel in page.locator(".dfkd-explorer .panel").all()]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    acting(page, lambda: page.locator(".dfkd-explorer select.compare").select_option(""))
    acting(page, lambda: page.locator(".dfkd-explorer select.weights").select_option("gradient"))
    assert "gradient-weighted" in page.locator(".dfkd-explorer .map + figcaption").inner_text()


def test_a_block_is_switched_off_and_on(explored):
    page, notebook = explored
    button, panels = page.locator(".dfkd-explorer .off"), page.locator(".dfkd-explorer .stage > *")
    acting(page, button.click)
    assert notebook.eval("explorer.view['without']") == "2" and panels.count() == 2
    assert button.inner_text() == "switch on block 3"
    drawn = [page.evaluate(PIXELS, f".stage > :nth-child({place}) .map") for place in (1, 2)]
    dark = [sum(pixels) / len(pixels) for pixels in drawn]
    assert dark[1] < dark[0] and len({*zip(*[iter(drawn[1])] * 4, strict=True)}) == 1  # one colour
    acting(page, button.click)
    assert notebook.eval("explorer.view['without']") == "" and panels.count() == 1
    assert not page.problems, page.problems


def test_arrows_and_enter_do_what_the_mouse_does(explored):
    page, notebook = explored
    acting(
        page, lambda: page.locator(".dfkd-explorer select.compare").select_option("model:coarse")
    )
    page.locator(".dfkd-explorer .picture").first.focus()
    for key in ("ArrowUp", "ArrowUp", "ArrowRight"):  # the first arrow goes to the middle
        page.keyboard.press(key)
    captions = page.locator(".dfkd-explorer .picture + figcaption").all_inner_texts()
    assert "patch (3, 5)" in captions[0] and "patch (2, 3)" in captions[1]
    acting(page, lambda: page.keyboard.press("Enter"))
    assert notebook.eval("explorer.view['token']") == str(2 * 7 + 4)
    # A click in the other panel chooses the patch of the first at the same place.
    second = page.locator(".dfkd-explorer .picture").nth(1)
    side = second.bounding_box()["width"]
    acting(page, lambda: second.click(position={"x": side * 3.5 / 4, "y": side * 0.5 / 4}))
    assert notebook.eval("explorer.view['token']") == "6"
    page.locator(".dfkd-explorer .overview").first.focus()
    acting(page, lambda: page.keyboard.press("ArrowUp"))
    acting(page, lambda: page.keyboard.press("ArrowRight"))
    assert notebook.eval("(explorer.view['block'], explorer.view['head'])") == (1, 1)
    acting(page, lambda: page.keyboard.press("Enter"))
    assert notebook.eval("explorer.view['head']") == -1
    assert not page.problems, page.problems


def test_a_detection_is_clicked(explored):
    page, notebook = explored
    acting(page, lambda: page.locator(".dfkd-explorer select.model").select_option("detr"))
    notebook.until("explorer.view['data'] == 'scenes'")
    # A scene with two objects: take the second, by its middle.
    expression = "[(p.boxes.tolist(), p.queries) for p in explorer.viewer.panels(widgets.Choice(**explorer.view))][0]"
    for image in range(8):
        notebook.eval(f"explorer.choose(image={image})")
        notebook.until(f"explorer.view['image'] == {image}")
        boxes, queries = notebook.eval(expression)
        if len(boxes) > 1:
            break
    page.wait_for_function(
        "n => document.querySelector('.dfkd-explorer h4').textContent.includes(`scenes ${n} `)",
        arg=image,
    )
    x, y = boxes[1][:2]
    acting(
        page,
        lambda: page.locator(".dfkd-explorer .picture").click(
            position={"x": PICTURE * x, "y": PICTURE * y}
        ),
    )
    assert notebook.eval("explorer.view['token']") in [str(query) for query in queries]
    assert "query" in page.locator(".dfkd-explorer .picture + figcaption").inner_text()


def test_what_cannot_be_shown_is_said_in_place(explored):
    page, notebook = explored
    assert page.locator(".dfkd-explorer select.data option[value=scenes]").is_disabled()
    notebook.eval("explorer.choose(data='scenes')")
    page.wait_for_function(
        "() => document.querySelector('.dfkd-explorer .error').textContent.includes('expected')"
    )
    text = page.locator(".dfkd-explorer .error").inner_text()
    assert "(1, 28, 28)" in text and "(3, 80, 80)" in text
    # Back to what is shown.
    assert page.locator(".dfkd-explorer select.data").input_value() == "mnist"
    acting(page, lambda: slide(page, 1))
    assert page.locator(".dfkd-explorer .error").inner_text() == ""


def test_the_gallery_finds_the_wrongly_classified(explored):
    page, notebook = explored
    page.locator(".dfkd-explorer input.wrong").check()
    page.wait_for_function(
        "() => document.querySelector('.dfkd-explorer .note').textContent.includes('wrong among')"
    )
    wrong = notebook.eval("int((predict(teacher, test.images).argmax(1) != test.labels).sum())")
    assert page.locator(".dfkd-explorer .note").inner_text().startswith(f"{wrong} images")


def test_figure_and_parameters_are_saved(explored, tmp_path):
    page, notebook = explored
    acting(page, lambda: slide(page, 1))
    page.locator(".dfkd-explorer .save-parameters").click()
    page.wait_for_function(
        "() => document.querySelector('.dfkd-explorer .saved').textContent.includes('.yaml')"
    )
    (path,) = (tmp_path / "out").glob("*.yaml")
    assert json.loads(path.read_text())["view"].count("block=0") == 1
    page.locator(".dfkd-explorer .save-figure").click()
    page.wait_for_function(
        "() => document.querySelector('.dfkd-explorer .saved').textContent.includes('.svg')"
    )
    assert len(list((tmp_path / "out" / "figures").iterdir())) == 3


def test_an_own_image_is_picked_and_what_was_watched_is_gone_through(explored, tmp_path):
    page, notebook = explored
    photo = tmp_path / "half.png"
    Image.fromarray(np.repeat([[0], [255]], 40, 0).repeat(60, 1).astype(np.uint8)).save(photo)
    acting(page, lambda: page.locator(".dfkd-explorer input.own").set_input_files(str(photo)))
    assert "half" in page.locator(".dfkd-explorer select.data option:checked").inner_text()
    kept = Path(notebook.eval("explorer.view['data']"))
    assert kept.parent == tmp_path / "out" / "own" and kept.read_bytes() == photo.read_bytes()
    # The DETR takes a colour image at its own size.
    acting(page, lambda: page.locator(".dfkd-explorer select.compare").select_option("models"))
    assert page.locator(".dfkd-explorer .panel").count() == 4
    acting(page, lambda: page.locator(".dfkd-explorer select.data").select_option("watched"))
    acting(page, lambda: page.locator(".dfkd-explorer select.compare").select_option(""))
    assert page.locator(".dfkd-explorer .epoch").is_hidden()
    acting(page, lambda: page.locator(".dfkd-explorer select.weights").select_option("learning"))
    for value, words in ((0, "before training"), (1, "after epoch 1")):
        acting(page, lambda value=value: slide(page, value, "epoch"))
        page.mouse.move(5, 5)
        assert brightest_patch(page) == value
        assert words in page.locator(".dfkd-explorer .map + figcaption").first.inner_text()
    assert not page.problems, page.problems
