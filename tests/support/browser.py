"""A real JupyterLab and a real Chromium, for the tests of what happens when somebody clicks.

Fixtures `lab` and `page` are in conftest.py. A test opens a notebook made of cells, clicks with Playwright, and asks the
notebook's own kernel what came of it:

    notebook = open_notebook(page, lab, ["import ipywidgets", "slider = ipywidgets.IntSlider(); slider"])
    page.get_by_role("slider").press("ArrowRight")
    notebook.until("slider.value == 1")
"""

import ast
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbconvert.filters import strip_ansi

from dfkd_lib.core import REPOSITORY

NAMES = "chromium", "chromium-browser", "google-chrome"
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
# The names of no other machine are found: what a page needs from elsewhere fails here as it does without network.
CHROMIUM_ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]

# The notebook's panel once it is open and its kernel answers; null before.
_PANEL = """() => {
    const panel = window.jupyterapp?.shell.currentWidget;
    return panel?.content?.model && panel.context.isReady && panel.sessionContext.session?.kernel?.status === "idle";
}"""
_RUN = "async () => { await window.jupyterapp.commands.execute('notebook:run-all-cells'); }"
_CELLS = "() => window.jupyterapp.shell.currentWidget.content.model.toJSON().cells"
_EVALUATE = """async code => {
    const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
    const reply = await kernel.requestExecute({code: "", silent: true, store_history: false,
                                               user_expressions: {value: code}}).done;
    return reply.content.user_expressions.value;
}"""


@dataclass
class Lab:
    """A running JupyterLab: its address without token, its token, the folder it shows, and its process."""

    url: str
    token: str
    root: Path
    process: subprocess.Popen

    def request(self, path: str, method: str = "GET"):
        """What the server's API answers, as JSON; urllib's HTTPError if it refuses."""
        headers = {"Authorization": f"token {self.token}"}
        call = urllib.request.Request(f"{self.url}/{path}", method=method, headers=headers)
        with urllib.request.urlopen(call, timeout=30) as reply:
            return json.loads(reply.read() or "null")

    def end_kernels(self) -> None:
        """Shut down every notebook's kernel."""
        for session in self.request("api/sessions"):
            self.request(f"api/sessions/{session['id']}", "DELETE")

    def stop(self) -> None:
        """End the server, its kernels first."""
        with suppress(OSError):
            self.end_kernels()
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start_lab(folder: Path, seconds: float = 90) -> Lab:
    """Start JupyterLab on a free port with all its settings under `folder`, whatever this user's are; wait until it answers.

    Raises:
        AssertionError: with its log, if it ends or does not answer in time.
    """
    root, runtime, log = folder / "root", folder / "runtime", folder / "lab.log"
    token = secrets.token_hex(24)
    root.mkdir(parents=True)
    own = {
        "JUPYTER_CONFIG_DIR": folder / "config",
        "JUPYTER_DATA_DIR": folder / "data",
        "JUPYTER_RUNTIME_DIR": runtime,
        "IPYTHONDIR": folder / "ipython",
    }
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "IPYTHON"))}
    places = REPOSITORY, REPOSITORY / "tests" / "support", REPOSITORY / "tests" / "unit"
    own["PYTHONPATH"] = os.pathsep.join(map(str, places))  # of the kernels
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--ip=127.0.0.1",
        "--port=0",
        f"--notebook-dir={root}",
        f"--IdentityProvider.token={token}",
        "--LabApp.expose_app_in_browser=True",
        "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        "--LabApp.extension_manager=readonly",
    ]
    if hasattr(os, "getuid") and os.getuid() == 0:
        command.append("--allow-root")
    env = {**kept, **{name: str(value) for name, value in own.items()}}
    with log.open("w") as out:
        how = {"cwd": root, "stdout": out, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(command, env=env, **how)
    lab = Lab("", token, root, process)
    try:
        deadline = time.monotonic() + seconds
        while not _answers(lab, runtime):
            in_time = process.poll() is None and time.monotonic() < deadline
            assert in_time, f"JupyterLab ended, or does not answer:\n{log.read_text()}"
            time.sleep(0.1)
    except BaseException:
        lab.stop()
        raise
    return lab


def _answers(lab: Lab, runtime: Path) -> bool:
    # The port is the server's choice, which it writes down: one chosen here could be taken before it starts.
    with suppress(OSError, ValueError):
        for file in runtime.glob("jpserver-*.json"):
            lab.url = f"http://127.0.0.1:{json.loads(file.read_text())['port']}"
            return "started" in lab.request("api/status")
    return False


class Notebook:
    """A notebook open in a page, with its kernel running."""

    def __init__(self, page):
        self.page = page

    def run(self) -> None:
        """Run all cells and wait until they are done; AssertionError with the traceback if one fails."""
        self.page.evaluate(_RUN)
        assert not (errors := self.errors()), "\n".join(errors)

    def errors(self) -> list[str]:
        """The traceback of each cell that failed."""
        return [
            f"cell {i}: " + strip_ansi("\n".join(output["traceback"]))
            for i, cell in enumerate(self.page.evaluate(_CELLS))
            for output in cell.get("outputs", [])
            if output["output_type"] == "error"
        ]

    def eval(self, expression: str):
        """The value, a Python literal, of an expression in the notebook's kernel.

        A widget's message may still be under way, or be handled beside this in a subshell: after a click use `until`.

        Raises:
            AssertionError: with the kernel's traceback if the expression fails, or if its value is no literal.
        """
        answer = self.page.evaluate(_EVALUATE, f"repr({expression})")
        told = strip_ansi("\n".join(answer.get("traceback", [str(answer)])))
        assert answer["status"] == "ok", told
        text = ast.literal_eval(answer["data"]["text/plain"])
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            raise AssertionError(f"{expression} is no literal: {text}") from None

    def until(self, expression: str, seconds: float = 90):
        """Ask the kernel until the expression is true; its value. AssertionError if it is not in time."""
        deadline = time.monotonic() + seconds
        while not (value := self.eval(expression)):
            assert time.monotonic() < deadline, f"still not: {expression} (is {value!r})"
            self.page.wait_for_timeout(50)
        return value


def open_notebook(page, lab: Lab, cells: list[str]) -> Notebook:
    """Write a notebook of these code cells, open it alone in the page, start its kernel, run it all.

    Raises:
        AssertionError: with the traceback, if a cell fails.
    """
    node = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    node.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(node, lab.root / "test.ipynb")
    page.set_default_timeout(90_000)
    page.goto(f"{lab.url}/doc/tree/test.ipynb?token={lab.token}")
    page.wait_for_function(_PANEL)
    notebook = Notebook(page)
    notebook.run()
    return notebook


def says(page, selector: str, words: str) -> None:
    """Wait until the text of the first element of a selector has these words."""
    has = "([at, words]) => document.querySelector(at)?.textContent.includes(words)"
    page.wait_for_function(has, arg=[selector, words])
