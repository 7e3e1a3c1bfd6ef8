"""Widgets in a real JupyterLab whose classes, models and data sets have names that try to act: shown as text, nothing runs."""

import browser
import pytest

pytestmark = pytest.mark.browser

BAD = "</option></title><script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\"><svg onload=alert(1)>"
START = f"""
import copy, torch
from dataclasses import replace
from dfkd_lib import datasets, detection, models, widgets
from dfkd_lib.ablation import Cell, Outcome
from dfkd_lib.core import Store
BAD = {BAD!r}
torch.manual_seed(0)
images = datasets.load_images("mnist", "test").sample(40)
images = replace(images, classes=tuple(BAD + str(i) for i in range(10)), name=BAD)
model = models.create_model("vit_mnist_small").eval()
teacher = detection.open_shipped("detr_micro_scenes")
scenes = replace(datasets.generate_scenes(8, 80, 0, "test"), classes=tuple(BAD + str(i) for i in range(4)), origin=BAD)
teacher.classes = scenes.classes
base = {{"data.test_images": 200, "source": "real", "real_images": 300, "student.model": "vit_mnist_smoke",
        "teacher.source": "shipped", "teacher.model": "vit_mnist_small", "seeds": "0"}}
"""
WIDGETS = [
    """widgets.attention_explorer({BAD: model, BAD + "2": copy.deepcopy(model)}, {BAD: images, BAD + "2": images}, out_dir="OUT")""",
    """widgets.detection_browser({BAD: teacher, BAD + "2": copy.deepcopy(teacher)}, {BAD: scenes}, out_dir="OUT")""",
    """widgets.ablation_lab(base, Store("STORE"), out_dir="OUT", shown=[Outcome(Cell(BAD, {}, 0), None, BAD, False)])""",
]


def test_hostile_names_are_text(page, lab, tmp_path):
    dialogs, elsewhere = [], []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    texts = "\0".join([START, *WIDGETS]).replace("OUT", str(tmp_path / "out"))
    browser.open_notebook(page, lab, texts.replace("STORE", str(tmp_path / "store")).split("\0"))
    page.on("request", lambda request: elsewhere.append(request.url))
    page.wait_for_selector(".dfkd-explorer[data-gallery] .picture")
    page.wait_for_function("() => document.querySelector('.dfkd-browse')?.dataset.waiting === '0'")
    page.wait_for_selector(".dfkd-lab[data-version]")
    # Both sides, a click, a hover, an error and a saved figure show names too.
    page.locator(".dfkd-explorer select.compare").select_option(index=1)
    page.wait_for_function("() => document.querySelectorAll('.dfkd-explorer .panel').length === 2")
    page.locator(".dfkd-explorer .picture").first.click(position={"x": 60, "y": 60})
    page.locator(".dfkd-browse .picture").first.click(position={"x": 60, "y": 60})
    page.wait_for_timeout(1500)  # for what waits: onerror
    for root in (".dfkd-explorer", ".dfkd-browse", ".dfkd-lab"):
        assert page.locator(f"{root} :is(script, img[src=x], svg[onload])").count() == 0, root
        text = page.locator(root).first.evaluate("box => box.textContent")
        assert "<script>document.title" in text, f"{root} shows no name"
    assert not dialogs and "pwned" not in page.title()
    assert not any(url.endswith("/x") for url in elsewhere)
