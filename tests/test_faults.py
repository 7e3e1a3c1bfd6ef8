"""What may befall a run: whatever it is, finished things stay, the store is sound, and the next run ends as if nothing had been."""

import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_pipeline import write_notebooks  # noqa: E402

from dfkd_lib import pipeline  # noqa: E402

HANGING = {"10_waits": ["import threading; threading.Event().wait()"],
           "20_stopped": ["import os, signal, subprocess; subprocess.Popen(['sleep', '600'])",
                          "os.kill(os.getpid(), signal.SIGSTOP)"],
           "30_busy": ["import time\nend = time.monotonic() + 9\nwhile time.monotonic() < end: pass"],
           "40_talks": ["import time\nfor i in range(9): time.sleep(1); print(i)"]}


def test_a_kernel_that_hangs_is_ended_and_the_others_go_on(tmp_path, monkeypatch):
    monkeypatch.setitem(pipeline.run.__globals__["PROFILES"], "smoke", {})
    notebooks = write_notebooks(tmp_path / "notebooks", HANGING)
    plan = pipeline.make_plan("smoke", out=str(tmp_path / "out"), notebooks=notebooks, jobs=4, hung=0.1)
    lines, start = [], time.monotonic()
    results = pipeline.run(plan, lines.append)["notebooks"]
    assert {n: r["status"] for n, r in results.items()} == {"10_waits": "failed", "20_stopped": "failed",
                                                           "30_busy": "succeeded", "40_talks": "succeeded"}
    for name in ("10_waits", "20_stopped"):
        assert "hung and was ended: for 0.1 min" in results[name]["error"] and "--hung" in results[name]["error"]
    print(time.monotonic() - start)
