"""The detection browser in a real JupyterLab and a real Chromium: threshold, filters, attention, what is wrong, saved."""

import browser
import pytest

pytestmark = pytest.mark.browser

START = """
import copy, torch
from dfkd_lib import datasets, detection, metrics, widgets
teacher = detection.open_shipped("detr_micro_scenes")
student = copy.deepcopy(teacher)  # the same boxes, and it is never sure of a bird
student.network.class_labels_classifier.bias.data[0] -= 12
scenes, more = datasets.generate_scenes(40, 80, 0, "test"), datasets.generate_scenes(30, 80, 1, "test")
chance = torch.Generator().manual_seed(0)  # detections near objects, of any class and score
near = torch.stack([boxes[torch.randint(len(boxes), (12,), generator=chance)] if len(boxes) else torch.full((12, 4), .4)
                    for boxes in more.boxes])
made = {name: (torch.rand(30, 12, 4, generator=chance) ** 3, near + .03 * torch.randn(near.shape, generator=chance))
       for name in ("teacher", "student")}
"""
BROWSE = """
browsed = widgets.detection_browser({"teacher": teacher, "student": student}, {"test": scenes, "more": more},
                                     predictions={"more": made}, out_dir="OUT")
browsed
"""
ROOT = ".dfkd-browse"
# Moves the slider and reads what is drawn within one turn of the page: no answer of a kernel can be in it.
SLIDE = """value => { const box = document.querySelector('.dfkd-browse'), slider = box.querySelector('.threshold');
    slider.value = value; slider.dispatchEvent(new Event('input')); return box.dataset.boxes; }"""
PIXELS = """n => { const c = document.querySelectorAll('.dfkd-browse .picture')[n];
    return Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)
        .reduce((a, b) => (31 * a + b) % 1000003, 7); }"""
# Of a set of scenes, by the library's own confusion matrix.
COUNTS = """{name: {"right": int(m[:4, :4].trace()), "wrong": int(m[:4, :4].sum() - m[:4, :4].trace()),
    "false": int(m[4].sum()),
    "missed": int(m[:4, 4].sum())} for name, m in ((name, metrics.confusion(SCENES, *browsed.browse.found("NAME")[name],
    THRESHOLD)) for name in ("teacher", "student"))}"""


def counts(scenes: str, name: str, threshold: float) -> str:
    return (
        COUNTS.replace("SCENES", scenes).replace("NAME", name).replace("THRESHOLD", str(threshold))
    )


@pytest.fixture
def browsed(page, lab, tmp_path):
    """(page, notebook) with the browser drawn."""
    cells = [START, BROWSE.replace("OUT", str(tmp_path / "out"))]
    notebook = browser.open_notebook(page, lab, cells)
    data(page, "scene", "0")
    data(page, "waiting", "0")
    page.evaluate("() => document.querySelector('.dfkd-browse').scrollIntoView()")
    return page, notebook


def data(page, name: str, value: str) -> None:
    """Wait until the browser shows this of what it tells of itself."""
    page.wait_for_selector(f"{ROOT}[data-{name}='{value}']")


def of(page, name: str) -> str:
    return page.locator(ROOT).get_attribute(f"data-{name}")


def enter(page, box: str, value: str) -> None:
    page.locator(f"{ROOT} {box}").fill(value)
    page.locator(f"{ROOT} {box}").press("Enter")


def pick(page, name: str, *value: str, **by) -> None:
    page.locator(f"{ROOT} select.{name}").select_option(*value, **by)


def test_scenes_are_browsed(browsed, tmp_path):
    """One notebook for all of it: to start a kernel takes longer than what is looked at."""
    page, notebook = browsed
    the_threshold_redraws_and_counts_without_the_kernel(page, notebook)
    filters_leave_the_scenes_that_they_name(page, notebook)
    a_click_shows_where_both_detectors_look(page, notebook)
    what_cannot_be_had_is_said_in_place(page, notebook)
    page.locator(f"{ROOT} .save-figure").click()
    browser.says(page, f"{ROOT} .saved", ".svg")
    assert len(list((tmp_path / "out" / "figures").iterdir())) == 3
    assert not page.problems, page.problems
    page.evaluate("async () => { await window.jupyterapp.commands.execute('docmanager:save'); }")
    page.reload()
    data(page, "scene", "6")
    assert of(page, "threshold") == "0.25" and notebook.eval("browsed.view['scene']") == 6


def the_threshold_redraws_and_counts_without_the_kernel(page, notebook):
    enter(page, ".place", "1")
    data(page, "scene", "1")
    many, few = page.evaluate(SLIDE, 0.05), page.evaluate(SLIDE, 1)
    assert [int(n) for n in many.split()] >= [4, 3] and few == "0 0"
    for threshold in (0.9, 0.3):
        page.evaluate(SLIDE, threshold)
        notebook.until(f"browsed.view['threshold'] == {threshold}")
        expected = notebook.eval(counts("scenes", "test", threshold))
        assert notebook.eval("browsed.counts") == expected
        assert expected["student"]["missed"] > expected["teacher"]["missed"]
        cells = page.locator(f"{ROOT} tbody tr").nth(1).locator("td").all_inner_texts()
        assert cells[2:] == [
            str(expected["student"][kind]) for kind in ("right", "wrong", "false", "missed")
        ]
    enter(page, ".exact", "0.6")
    data(page, "threshold", "0.6")


def filters_leave_the_scenes_that_they_name(page, notebook):
    missed = """sorted({i for i in range(40) if (metrics.confusion(scenes.subset([i]), *(t[[i]] for t in
        browsed.browse.found("test")["student"]), threshold=0.6)[0, 4] > 0)})"""
    expected = notebook.eval(missed)
    pick(page, "outcome", "missed")
    pick(page, "of", "student")
    pick(page, "class", label="bird")
    data(page, "list", str(len(expected)))
    assert of(page, "scene") == str(expected[0]) and len(expected) > 3
    page.locator(f"{ROOT} .after").click()
    data(page, "scene", str(expected[1]))
    page.locator(f"{ROOT} .strip [aria-current=true]").focus()
    page.keyboard.press("ArrowRight")
    data(page, "scene", str(expected[2]))
    notebook.until(
        f"browsed.view['scene'] == {expected[2]} and browsed.view['outcome'] == 'missed'"
    )
    assert "− missed: bird" in page.locator(f"{ROOT} figure").nth(1).inner_text()
    pick(page, "of", "teacher")
    pick(page, "outcome", "right")
    pick(page, "class", "-1")
    pick(page, "data", "more")
    browser.says(page, f"{ROOT} .position", "of 30")
    for threshold in (0.2, 0.55):
        page.evaluate(SLIDE, threshold)
        notebook.until(
            f"browsed.view['threshold'] == {threshold} and browsed.view['data'] == 'more'"
        )
        expected = notebook.eval(counts("more", "more", threshold))
        assert notebook.eval("browsed.counts") == expected and min(expected["teacher"].values()) > 3


def a_click_shows_where_both_detectors_look(page, notebook):
    notebook.eval(
        "browsed.choose(data='test', outcome='', of='', label=-1, threshold=0.5, scene=4)"
    )
    data(page, "list", "40")
    data(page, "scene", "4")
    data(page, "waiting", "0")
    boxes = notebook.eval(
        "[box.tolist() for box, k in zip(scenes.boxes[4], scenes.labels[4]) if k]"
    )
    plain = [page.evaluate(PIXELS, n) for n in range(2)]
    canvas = page.locator(f"{ROOT} .picture").first
    size = canvas.bounding_box()
    canvas.click(position={"x": boxes[0][0] * size["width"], "y": boxes[0][1] * size["height"]})
    data(page, "looks", "2")
    chosen = notebook.until("browsed.view['chosen'] and browsed.view")
    assert chosen["chosen"] == "teacher"
    assert all(page.evaluate(PIXELS, n) != plain[n] for n in range(2))
    # The query answers for the object that was clicked, and its strongest patch is the one that is told.
    near = notebook.eval(
        f"browsed.browse.found('test')['teacher'][1][4, {chosen['query']}].tolist()"
    )
    assert abs(near[0] - boxes[0][0]) < 0.1 and abs(near[1] - boxes[0][1]) < 0.1
    top = notebook.eval(
        f"float(browsed.browse.attention('test', 4, -1, -1)['teacher'].weights[{chosen['query']}].max())"
    )
    told = page.locator(f"{ROOT} figcaption").first.inner_text()
    assert (
        f"query {chosen['query']}: decoder block 3 of 3, mean of heads, up to {100 * top:.1f} %"
        in told
    )
    pick(page, "block", "-3")
    pick(page, "head", label="2")
    browser.says(page, f"{ROOT} figcaption", "block 1 of 3, head 2")
    page.locator(f"{ROOT} .picture").first.click(position={"x": 2, "y": 2})
    data(page, "looks", "0")
    page.locator(f"{ROOT} figure").nth(1).locator("li button").first.press("Enter")
    data(page, "looks", "2")


def what_cannot_be_had_is_said_in_place(page, notebook):
    # What the page has told on its way to the kernel would come after, and undo, what the kernel is asked next.
    notebook.until(
        "(browsed.view['chosen'], browsed.view['block'], browsed.view['head']) == ('student', -3, 1)"
    )
    error = page.locator(f"{ROOT} .error")
    enter(page, ".place", "40")
    assert "0..39" in error.inner_text()
    assert "got: 40" in error.inner_text()
    assert of(page, "scene") == "4"
    enter(page, ".exact", "7")
    assert "0.05..1" in error.inner_text() and of(page, "threshold") == "0.5"
    notebook.eval("browsed.choose(scene=99)")
    browser.says(page, f"{ROOT} .error", "got: 99")
    notebook.eval("browsed.choose(scene=6, threshold=0.25, chosen='')")
    data(page, "scene", "6")
    assert error.inner_text() == "" and of(page, "threshold") == "0.25"


SAMPLED = """
import torch
from dfkd_lib import attention, datasets, detection, models, widgets
torch.manual_seed(0)
scenes = datasets.generate_scenes(4, 96, 0, "test")
atto = models.create_detector("deimv2_atto", 4).train()
for module in atto.modules():
    if isinstance(module, torch.nn.BatchNorm2d):
        module.momentum = None
    if hasattr(module, "sampling_offsets"):  # fresh ones weigh all points alike
        torch.nn.init.normal_(module.attention_weights.weight)
        torch.nn.init.normal_(module.sampling_offsets.weight)
atto(scenes.images.float() / 255)
atto.eval()
scores, boxes = detection.predict(atto, scenes.images)
top = scores[0].amax(-1).topk(2)
query = int(top.indices[0])
sampled = widgets.detection_browser({"atto": atto}, scenes, threshold=float(top.values.mean()), out_dir="OUT")
sampled
"""
# Of the chosen query's points in the second decoder layer and third head: the weightiest, [x, y, weight, scale].
WEIGHTIEST = """(lambda p: [*p.locations[0, 0, 2, query, (k := int(p.weights[0, 0, 2, query].argmax()))].tolist(),
    float(p.weights[0, 0, 2, query, k]), int(p.levels[k])])(attention.attention_points(atto, scenes.images[:1].float() / 255, [1]))"""
COLOUR = """([x, y]) => { const c = document.querySelector('.dfkd-browse .picture');
    const at = [Math.floor(x * c.width), Math.floor(y * c.height), 1, 1];
    return Array.from(c.getContext('2d').getImageData(...at).data).slice(0, 3); }"""


def test_sampling_points_are_drawn_where_deformable_attention_reads(page, lab, tmp_path):
    """The weightiest is drawn last: its middle has the colour of its scale."""
    notebook = browser.open_notebook(page, lab, [SAMPLED.replace("OUT", str(tmp_path / "out"))])
    data(page, "boxes", "1")
    page.evaluate("() => document.querySelector('.dfkd-browse').scrollIntoView()")
    notebook.eval("sampled.choose(chosen='atto', query=query, block=-2, head=2)")
    data(page, "looks", "1")
    strength = page.locator(f"{ROOT} input.overlay")
    strength.evaluate("one => { one.value = 100; one.dispatchEvent(new Event('input')); }")
    x, y, weight, scale = notebook.eval(WEIGHTIEST)
    told = page.locator(f"{ROOT} figcaption").first.inner_text()
    assert f"decoder block 2 of 3, head 3, 6 points, up to {100 * weight:.1f} % a point" in told
    assert (
        page.locator(f"{ROOT} .scales").inner_text().split() == "scale 1 (finest) scale 2".split()
    )
    shade = [(0, 229, 255), (255, 47, 208)][scale]
    assert 0 < x < 1 and 0 < y < 1 and page.evaluate(COLOUR, [x, y]) == list(shade)
    page.screenshot(path=str(tmp_path / "points.png"))
    pick(page, "head", "-1")
    browser.says(page, f"{ROOT} figcaption", "all heads, 48 points")
    assert not page.problems, page.problems
