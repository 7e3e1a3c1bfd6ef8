"""The ablation widget in a real JupyterLab and a real Chromium, with the real queue and a small real training."""

import json
import re
from contextlib import suppress

import browser
import psutil
import pytest

from dfkd_lib.ablation import saved_jobs
from dfkd_lib.core import Store

pytestmark = pytest.mark.browser

EPOCHS = 100_000  # days of training: none of it ends before the test has looked, however fast the machine
START = f"""
from dfkd_lib import widgets
from dfkd_lib.core import Store
base = {{"data.test_images": 200, "source": "real", "real_images": 3000, "student.model": "vit_mnist_smoke",
        "teacher.source": "shipped", "teacher.model": "vit_mnist_small",
        "student.epochs": {EPOCHS}, "seeds": "0"}}
lab = widgets.ablation_lab(base, Store("STORE"), out_dir="OUT")
lab
"""
LONG = 240_000  # milliseconds that a busy machine may take for the start of a worker, or for a training
LAB = ".dfkd-lab"


@pytest.fixture
def opened(page, lab, tmp_path):
    """(page, notebook, store) with the widget drawn; no worker outlives the test."""
    store = Store(tmp_path / "store")
    cell = START.replace("STORE", str(store.root)).replace("OUT", str(tmp_path / "out"))
    notebook = browser.open_notebook(page, lab, [cell])
    shown(page)
    yield page, notebook, store
    jobs = saved_jobs(store)
    for job in jobs.all():
        jobs.stop(job["id"])
    for pid in {job["pid"] for job in jobs.all() if job.get("pid")}:
        with suppress(psutil.Error):  # ended meanwhile, or a zombie of the kernel
            process = psutil.Process(pid)
            if str(store.root) in process.cmdline():
                process.kill()


def shown(page) -> None:
    page.wait_for_selector(f"{LAB}[data-version]")
    page.evaluate(f"() => document.querySelector('{LAB}').scrollIntoView()")


def box_of(page, control: str):
    return page.locator(f"{LAB} .control[data-name='{control}'] input").last


def type_in(page, control: str, value: str) -> None:
    box_of(page, control).fill(value)
    box_of(page, control).press("Tab")


def says(page, words: str, where: str = ".status") -> None:
    browser.says(page, f"{LAB} {where}", words)


def picture(page, key: str) -> str:
    """What a chart shows, as its label says it."""
    return page.locator(f"{LAB} .charts figure[data-key={key}] svg").get_attribute("aria-label")


def epoch_shown(page) -> float:
    """Where the training that runs has come to, as the chart of its loss says it."""
    return float(re.search(rf"at epoch ([0-9.]+) of {EPOCHS}$", picture(page, "loss")).group(1))


def wait_for_epoch(page, epoch: int) -> None:
    page.wait_for_function(
        """epoch => {
            const figure = document.querySelector('.dfkd-lab figure[data-key=loss] svg');
            return Number(/at epoch ([0-9.]+) of/.exec(figure?.ariaLabel ?? '')?.[1] ?? 0) > epoch;
        }""",
        arg=epoch,
        timeout=LONG,
    )


def test_run_watch_stop_go_on_reload_restart(opened):
    page, notebook, store = opened
    jobs = saved_jobs(store)
    type_in(page, "weights.kd", "2")
    type_in(page, "weights.temperature", "3.5")
    page.locator(f"{LAB} button.run").click()
    says(page, "KD 2, T 3.5")
    # The point of the epoch in progress moves, and the line behind it grows.
    page.wait_for_selector(f"{LAB} .charts figure[data-key=patch]", timeout=LONG)
    wait_for_epoch(page, 2)
    line = page.locator(f"{LAB} figure[data-key=test_accuracy] polyline.line").first
    assert len(line.get_attribute("points").split()) >= 2
    page.locator(f"{LAB} .running button.stop").click()
    says(page, "stopped; its finished epochs stay")
    page.wait_for_selector(f"{LAB} .jobs li.stopped")
    assert [job["state"] for job in jobs.all()] == ["stopped"]
    assert page.locator(f"{LAB} tbody tr").count() == 0
    # The same settings go on from there; a page that is loaded anew finds them running.
    page.locator(f"{LAB} button.run").click()
    says(page, "1 run next")
    page.evaluate("async () => { await window.jupyterapp.commands.execute('docmanager:save'); }")
    page.reload()
    page.wait_for_selector(f"{LAB}[data-version]", timeout=LONG)
    assert box_of(page, "weights.temperature").input_value() == "3.5"
    page.wait_for_selector(f"{LAB}[data-live]:not([data-live=starting])", timeout=LONG)
    went_on_from = epoch_shown(page)
    assert went_on_from >= 2
    # So does a kernel that has been started anew: the training has a process of its own.
    page.evaluate(
        "async () => { await window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart(); }"
    )
    notebook.run()
    shown(page)
    assert notebook.eval("lab.values['weights.kd']") == 1.0  # the notebook's own
    wait_for_epoch(page, int(went_on_from) + 1)
    page.locator(f"{LAB} .running button.stop").click()
    page.wait_for_selector(f"{LAB} .jobs li.stopped")


def test_what_was_trained_stands_in_the_table_and_is_not_trained_again(opened):
    page, _, store = opened
    type_in(page, "weights.kd", "2")
    type_in(page, "student.epochs", "3")
    page.locator(f"{LAB} button.run").click()
    row = page.locator(f"{LAB} tbody tr")
    row.wait_for(timeout=LONG)
    jobs = saved_jobs(store)
    (job,) = jobs.all()
    artifact = store.find(job["key"])
    assert job["state"] == "finished" and len(artifact.json("history.json")) == 3
    accuracy = 100 * artifact.metrics["accuracy"]
    assert float(row.get_attribute("data-accuracy")) == pytest.approx(accuracy)
    assert "KD 2" in row.inner_text() and f"{accuracy:.2f}" in row.inner_text()
    # What is there answers at once: nothing is queued.
    page.locator(f"{LAB} button.reset").click()
    row.locator("button.use").click()
    says(page, "the controls show")
    assert box_of(page, "weights.kd").input_value() == "2"
    page.locator(f"{LAB} button.run").click()
    says(page, "nothing was run")
    assert len(jobs.all()) == 1


def test_bad_values_are_said_and_controls_are_used_by_keyboard(opened, tmp_path):
    page, notebook, store = opened
    type_in(page, "weights.temperature", "-1")
    page.locator(f"{LAB} button.run").click()
    says(page, "temperature' is impossible", ".error")
    assert page.locator(f"{LAB} [aria-invalid]").count() == 2 and saved_jobs(store).all() == []
    slider = page.locator(f"{LAB} .control[data-name='weights.temperature'] input[type=range]")
    slider.focus()
    page.keyboard.press("ArrowRight")  # to JupyterLab it means another thing
    notebook.until("lab.values['weights.temperature'] == 0.2")
    for name in ("weights.kd", "weights.ce", "weights.patch"):
        type_in(page, name, "0")
    page.locator(f"{LAB} button.run").focus()
    page.keyboard.press("b")  # to JupyterLab: a new cell
    page.keyboard.press("Enter")
    says(page, "at least one above 0", ".error")
    page.locator(f"{LAB} button.reset").click()
    says(page, "the notebook's own values")
    assert page.locator(f"{LAB} .error").inner_text() == ""
    assert page.locator(f"{LAB} .changed").count() == 0
    page.locator(f"{LAB} .control[data-name='source'] select").select_option("class probes")
    assert page.locator(f"{LAB} .control[data-name='real_images']").is_hidden()
    page.locator(f"{LAB} button.save-parameters").click()
    says(page, ".yaml")
    (path,) = (tmp_path / "out").glob("*.yaml")
    assert json.loads(path.read_text())["source"] == "class probes"
    cells = "() => window.jupyterapp.shell.currentWidget.content.model.cells.length"
    assert page.evaluate(cells) == 1
    assert not page.problems, page.problems


SEEDS = """
from pathlib import Path
import test_ablation_widget as small
from dfkd_lib import widgets
shelf, out = small.Shelf(), Path("OUT")
def run(name, seed, accuracy, **changes):
    made = shelf.outcome(name, seed, accuracy, **changes)
    made.artifact.json = lambda _: small.history(*(accuracy - 0.3 / epoch for epoch in range(1, 9)))
    return made
shown = [run("all", seed, 0.90 + seed / 50) for seed in (0, 1, 2)]
shown += [run("without KD", seed, 0.80 + seed / 40, **{"weights.kd": 0.0}) for seed in (0, 1, 2)]
shown += [run("hot", 0, 0.87, **{"weights.temperature": 9.0})]
lab = widgets.ablation_lab(small.BASE, shelf, out, jobs=small.Queue(out), shown=shown)
lab
"""


def test_a_setting_has_one_colour_and_a_name_of_the_users(page, lab, tmp_path):
    browser.open_notebook(page, lab, [SEEDS.replace("OUT", str(tmp_path))])
    shown(page)
    page.locator(f"{LAB} thead input").check()
    page.locator(f"{LAB} button.compare").click()
    page.wait_for_selector(f"{LAB} .charts .mean")
    swatches = page.locator(f"{LAB} tbody i").all()
    shades = [swatch.get_attribute("style") for swatch in swatches]
    assert shades == [*3 * shades[:1], *3 * shades[3:4], shades[6]] and len(set(shades)) == 3
    legend = page.locator(f"{LAB} .legend span").all_inner_texts()
    assert legend[:3] == ["all, mean of 3 seeds", "without KD, mean of 3 seeds", "hot, seed 0"]
    styles = [line.get_attribute("style") for line in page.locator(f"{LAB} .legend i").all()]
    assert styles == list(dict.fromkeys(shades))
    accuracy = page.locator(f"{LAB} .charts figure[data-key=test_accuracy]")
    assert [accuracy.locator(kind).count() for kind in (".thin", ".mean", ".line")] == [6, 2, 9]
    page.locator(f"{LAB} thead input").uncheck()
    page.locator(f"{LAB} tbody input").nth(3).check()
    page.locator(f"{LAB} input.name").fill("no distillation")
    page.locator(f"{LAB} button.rename").click()
    says(page, "renamed: no distillation")
    says(page, "no distillation", "tbody")
    assert page.locator(f"{LAB} tbody").inner_text().count("no distillation") == 3
    page.locator(f"{LAB} button.save-csv").click()
    says(page, "1 run saved as")
    (table,) = (tmp_path / "tables").iterdir()
    assert "no distillation,0" in table.read_text()
    assert not page.problems, page.problems
