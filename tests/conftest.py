"""Fixtures that several rooms share: tiny data with a teacher, a JupyterLab, a Chromium page; what a failed one saw goes into its report."""

from contextlib import suppress

import browser
import pytest
import torch


@pytest.fixture
def same_code(monkeypatch):
    """Keys hold one code for all: a function that a test breaks on purpose is no other version of a stage."""
    from dfkd_lib.core import artifacts
    from dfkd_lib.core.code import Fingerprint

    monkeypatch.setattr(
        artifacts, "stage_fingerprint", lambda make, code=(): Fingerprint("0" * 16, [])
    )


@pytest.fixture(autouse=True)
def nothing_remembered():
    """Images that one test calls real are not so in the next."""
    from dfkd_lib.core import origin

    yield
    origin._known.clear()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(store, images, teacher): random images of ten classes, and a teacher that has seen them once."""
    from dfkd_lib.core import Store
    from dfkd_lib.datasets import ImageSet
    from dfkd_lib.training import TrainConfig, train_teacher

    store = Store(tmp_path_factory.mktemp("store"))
    pixels = torch.randint(0, 256, (40, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    classes = tuple("0123456789")
    images = ImageSet(pixels.to(torch.uint8), torch.arange(40) % 10, classes, "random")
    config = TrainConfig(epochs=1, batch_size=20, lr=1e-3)
    return store, images, train_teacher(store, "vit_mnist_smoke", images, images, config)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab of its own, as `browser.Lab`."""
    if browser.CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    running = browser.start_lab(tmp_path_factory.mktemp("lab"))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def chromium():
    """A Chromium of this module alone: while Playwright runs, nothing else in the process can run an event loop."""
    if browser.CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        program = playwright.chromium.launch(
            executable_path=browser.CHROMIUM, args=browser.CHROMIUM_ARGS
        )
        yield program
        program.close()


@pytest.fixture
def page(lab, chromium, tmp_path):
    """An empty page with nothing remembered. `page.problems` lists the errors of its console and scripts, as text."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.problems = []
    page.on(
        "console", lambda line: page.problems.append(line.text) if line.type == "error" else None
    )
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.shot = tmp_path / "failed.png"
    yield page
    context.close()
    lab.end_kernels()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Say with a failed test what its page's console said and where a picture of the page is."""
    report = yield
    page = getattr(item, "funcargs", {}).get("page")
    if report.failed and report.when == "call" and page is not None:
        # Whatever the page cannot do any more, the test's own failure is to be told.
        with suppress(Exception):
            page.screenshot(path=page.shot, timeout=10_000)
            report.sections.append(("page", str(page.shot)))
        report.sections.append(("console errors", "\n".join(page.problems) or "none"))
    return report
