"""The attention explorer in a real JupyterLab and a real Chromium: chosen, hovered over, clicked, saved."""

import json
from pathlib import Path

import browser
import numpy as np
import pytest
import torch
from PIL import Image

from dfkd_lib import attention, datasets
from dfkd_lib.core import Store
from dfkd_lib.training import load_trained, shipped_teacher

pytestmark = pytest.mark.browser

START = """
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
ROOT = ".dfkd-explorer"


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


def pick(page, name: str, value: str) -> None:
    """Choose from a list of the explorer, and wait until it has drawn the answer."""
    acting(page, lambda: page.locator(f"{ROOT} select.{name}").select_option(value))


def acting(page, act) -> None:
    """Act, and wait until the explorer has drawn its answer."""
    before = shown(page)
    act()
    more = "before => Number(document.querySelector('.dfkd-explorer').dataset.shown) > before"
    page.wait_for_function(more, arg=before)


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
    acting(page, lambda: page.locator(f"{ROOT} .thumbs button").nth(7).click())
    assert notebook.until("explorer.view['image'] == 7")
    acting(page, lambda: slide(page, 2))
    acting(page, lambda: page.locator(f"{ROOT} select.head").select_option(label="4"))
    place = {"x": PICTURE * 3.5 / 7, "y": PICTURE * 2.5 / 7}
    acting(page, lambda: page.locator(f"{ROOT} .picture").first.click(position=place))
    page.mouse.move(5, 5)
    choice = notebook.eval("explorer.view")
    assert (choice["block"], choice["head"], choice["token"]) == (1, 3, "17")
    assert page.evaluate(PIXELS, ".map") != first
    # What is drawn is what the model computes: the lightest tile is where that patch looks most.
    test = datasets.load_images("mnist", "test").sample(200)
    teacher = load_trained(shipped_teacher(Store(tmp_path / "check"), "vit_mnist_small", test))
    row = attention.attention_map(teacher, datasets.to_float(test.images[7:8]), 1)[0, 3, 18, 1:]
    assert brightest_patch(page) == int(row.argmax())
    assert "patch (3, 4)" in page.locator(f"{ROOT} .picture + figcaption").first.inner_text()
    assert not page.problems, page.problems


def test_hovering_needs_no_kernel(explored):
    page, notebook = explored
    before, drawn = page.evaluate(PIXELS, ".map"), shown(page)
    place = {"x": PICTURE * 1.5 / 7, "y": PICTURE * 4.5 / 7}
    page.locator(f"{ROOT} .picture").first.hover(position=place)
    page.wait_for_selector(f"{ROOT}[data-token='patch (5, 2)']")
    assert page.evaluate(PIXELS, ".map") != before and shown(page) == drawn
    page.mouse.move(5, 5)
    page.wait_for_selector(f"{ROOT}[data-token='class token']")
    assert page.evaluate(PIXELS, ".map") == before and notebook.eval("explorer.view['token']") == ""


def test_models_and_images_stand_side_by_side(explored):
    page, notebook = explored
    pick(page, "compare", "model:before training")
    assert page.locator(f"{ROOT} .panel").count() == 2
    pick(page, "compare", "data:flipped")
    titles = page.locator(f"{ROOT} .panel h4").all_inner_texts()
    assert "teacher · mnist 0" in titles[0] and "teacher · flipped" in titles[1]
    assert titles[0].split("class ")[1][0] == titles[1].split("class ")[1][0]
    page.set_viewport_size({"width": 1400, "height": 900})
    boxes = [panel.bounding_box() for panel in page.locator(f"{ROOT} .panel").all()]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    pick(page, "compare", "")
    pick(page, "weights", "gradient")
    assert "gradient-weighted" in page.locator(f"{ROOT} .map + figcaption").inner_text()


def test_a_block_is_switched_off_and_on(explored):
    page, notebook = explored
    button, panels = page.locator(f"{ROOT} .off"), page.locator(f"{ROOT} .stage > *")
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
    pick(page, "compare", "model:coarse")
    page.locator(f"{ROOT} .picture").first.focus()
    for key in ("ArrowUp", "ArrowUp", "ArrowRight"):  # the first arrow goes to the middle
        page.keyboard.press(key)
    captions = page.locator(f"{ROOT} .picture + figcaption").all_inner_texts()
    assert "patch (3, 5)" in captions[0] and "patch (2, 3)" in captions[1]
    acting(page, lambda: page.keyboard.press("Enter"))
    assert notebook.eval("explorer.view['token']") == str(2 * 7 + 4)
    # A click in the other panel chooses the patch of the first at the same place.
    second = page.locator(f"{ROOT} .picture").nth(1)
    side = second.bounding_box()["width"]
    acting(page, lambda: second.click(position={"x": side * 3.5 / 4, "y": side * 0.5 / 4}))
    assert notebook.eval("explorer.view['token']") == "6"
    page.locator(f"{ROOT} .overview").first.focus()
    acting(page, lambda: page.keyboard.press("ArrowUp"))
    acting(page, lambda: page.keyboard.press("ArrowRight"))
    assert notebook.eval("(explorer.view['block'], explorer.view['head'])") == (1, 1)
    acting(page, lambda: page.keyboard.press("Enter"))
    assert notebook.eval("explorer.view['head']") == -1
    assert not page.problems, page.problems


def test_weights_are_measured_enlarged_and_copied(explored):
    page, notebook = explored
    pick(page, "weights", "legrad")
    page.locator(f"{ROOT} .measure").click()
    browser.says(page, f"{ROOT} .measured", "insertion in teacher: area of what is shown")
    titles = page.locator(f"{ROOT} .measured title").all_text_contents()
    assert len(titles) == 4 * 11 and titles[-1].startswith("a random order: ")
    width = page.locator(f"{ROOT} .picture").bounding_box()["width"]
    page.locator(f"{ROOT} select.zoom").select_option("2")
    assert width < page.locator(f"{ROOT} .picture").bounding_box()["width"] <= 2 * width
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator(f"{ROOT} .copy").click()
    browser.says(page, f"{ROOT} .bar .quiet", "copied")
    copied = page.evaluate("""async () => { const [item] = await navigator.clipboard.read();
        const image = await createImageBitmap(await item.getType("image/png")); return [image.width, image.height]; }""")
    assert copied[0] > 2 * width and copied[1] > width
    pick(page, "weights", "components")
    assert page.locator(f"{ROOT} .measured figure").count() == 0
    assert page.locator(f"{ROOT} .measure").is_disabled()
    assert not page.problems, page.problems


def test_a_detection_is_clicked(explored):
    page, notebook = explored
    pick(page, "model", "detr")
    notebook.until("explorer.view['data'] == 'scenes'")
    # A scene with two objects: take the second, by its middle.
    expression = "[(p.boxes.tolist(), p.queries) for p in explorer.viewer.panels(widgets.Choice(**explorer.view))][0]"
    for image in range(8):
        notebook.eval(f"explorer.choose(image={image})")
        notebook.until(f"explorer.view['image'] == {image}")
        boxes, queries = notebook.eval(expression)
        if len(boxes) > 1:
            break
    browser.says(page, f"{ROOT} h4", f"scenes {image} ")
    place = {"x": PICTURE * boxes[1][0], "y": PICTURE * boxes[1][1]}
    acting(page, lambda: page.locator(f"{ROOT} .picture").click(position=place))
    assert notebook.eval("explorer.view['token']") in [str(query) for query in queries]
    assert "query" in page.locator(f"{ROOT} .picture + figcaption").inner_text()


def test_errors_the_wrongly_classified_and_what_is_saved(explored, tmp_path):
    page, notebook = explored
    assert page.locator(f"{ROOT} select.data option[value=scenes]").is_disabled()
    notebook.eval("explorer.choose(data='scenes')")
    browser.says(page, f"{ROOT} .error", "expected")
    text = page.locator(f"{ROOT} .error").inner_text()
    assert "(1, 28, 28)" in text and "(3, 80, 80)" in text
    # Back to what is shown.
    assert page.locator(f"{ROOT} select.data").input_value() == "mnist"
    acting(page, lambda: slide(page, 1))
    assert page.locator(f"{ROOT} .error").inner_text() == ""
    page.locator(f"{ROOT} input.wrong").check()
    browser.says(page, f"{ROOT} .note", "wrong among")
    wrong = notebook.eval("int((predict(teacher, test.images).argmax(1) != test.labels).sum())")
    assert page.locator(f"{ROOT} .note").inner_text().startswith(f"{wrong} images")
    page.locator(f"{ROOT} .save-parameters").click()
    browser.says(page, f"{ROOT} .saved", ".yaml")
    (path,) = (tmp_path / "out").glob("*.yaml")
    assert json.loads(path.read_text())["view"].count("block=0") == 1
    page.locator(f"{ROOT} .save-figure").click()
    browser.says(page, f"{ROOT} .saved", ".svg")
    assert len(list((tmp_path / "out" / "figures").iterdir())) == 3


def test_an_own_image_is_picked_and_what_was_watched_is_gone_through(explored, tmp_path):
    page, notebook = explored
    photo = tmp_path / "half.png"
    Image.fromarray(np.repeat([[0], [255]], 40, 0).repeat(60, 1).astype(np.uint8)).save(photo)
    acting(page, lambda: page.locator(f"{ROOT} input.own").set_input_files(str(photo)))
    assert "half" in page.locator(f"{ROOT} select.data option:checked").inner_text()
    kept = Path(notebook.eval("explorer.view['data']"))
    assert kept.parent == tmp_path / "out" / "own" and kept.read_bytes() == photo.read_bytes()
    # The DETR takes a colour image at its own size.
    pick(page, "compare", "models")
    assert page.locator(f"{ROOT} .panel").count() == 4
    pick(page, "data", "watched")
    pick(page, "compare", "")
    assert page.locator(f"{ROOT} .epoch").is_hidden()
    pick(page, "weights", "learning")
    for value, words in ((0, "before training"), (1, "after epoch 1")):
        acting(page, lambda value=value: slide(page, value, "epoch"))
        page.mouse.move(5, 5)
        assert brightest_patch(page) == value
        assert words in page.locator(f"{ROOT} .map + figcaption").first.inner_text()
    assert not page.problems, page.problems
