"""In a real JupyterLab and a real Chromium: the harness itself, then the widgets, clicked."""

import browser
import pytest

pytestmark = pytest.mark.browser

CLICKER = '''
import anywidget, ipywidgets, traitlets
class Clicker(anywidget.AnyWidget):
    _esm = """
    export default { render({ model, el }) {
        const canvas = document.createElement("canvas");
        canvas.width = 120; canvas.height = 60; canvas.className = "clicker";
        canvas.addEventListener("click", event => {
            model.set("place", [event.offsetX, event.offsetY]); model.save_changes(); });
        const draw = () => { const c = canvas.getContext("2d"); c.fillStyle = model.get("color"); c.fillRect(0, 0, 120, 60); };
        model.on("change:color", draw); draw(); el.append(canvas);
    } };
    """
    place = traitlets.List().tag(sync=True)
    color = traitlets.Unicode("red").tag(sync=True)
clicker = Clicker()
clicker
'''


def test_a_click_changes_the_kernel_and_the_kernel_the_picture(page, lab):
    notebook = browser.open_notebook(
        page, lab, [CLICKER, "slider = ipywidgets.IntSlider(3); slider", "print(1 + 1)"]
    )
    assert notebook.outputs(2)[0]["text"].strip() == "2"
    assert notebook.eval("(clicker.place, slider.value)") == ([], 3)

    notebook.cell(0).locator("canvas.clicker").click(position={"x": 30, "y": 20})
    notebook.until("len(clicker.place) == 2")
    assert notebook.eval("clicker.place") == pytest.approx([30, 20], abs=1)

    notebook.cell(1).get_by_role("slider").press("ArrowRight")
    notebook.until("slider.value == 4")

    notebook.eval("setattr(clicker, 'color', 'blue')")
    page.wait_for_function(
        "() => document.querySelector('canvas.clicker').getContext('2d')"
        ".getImageData(5, 5, 1, 1).data.join() === '0,0,255,255'"
    )
    assert not page.problems, page.problems


def test_a_cell_that_fails_is_told(page, lab):
    with pytest.raises(AssertionError, match=r"cell 1 of test.ipynb: [^$]*ZeroDivisionError"):
        browser.open_notebook(page, lab, ["x = 0", "1 / x", "x = 2"])


def test_nobody_gets_in_without_the_token(lab):
    assert browser.refused(lab)
    assert browser.refused(lab, "wrong")
    assert not browser.refused(lab, lab.token)
