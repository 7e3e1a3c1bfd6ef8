"""What class probes need in memory: the same for few images and for many.

Each number comes from a process of its own: memory that one computation has freed, and its process kept, would hide what
the next one needs.
"""

import subprocess
import sys
import threading
from collections.abc import Callable

import psutil

from dfkd_lib.attention import class_probe_statistics, in_batches
from dfkd_lib.core.artifacts import REPOSITORY
from dfkd_lib.datasets import load_images
from dfkd_lib.models import create_model

MODEL = "vit_mnist_small"


def peak_growth(work: Callable[[], object]) -> float:
    """MB by which this process grew at most while it did that work."""
    process, done = psutil.Process(), threading.Event()
    before = peak = process.memory_info().rss

    def watch():
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return (max(peak, process.memory_info().rss) - before) / 2**20


def growth(count: int) -> float:
    """`peak_growth` while the class probes of `count` MNIST images are made, which were loaded before."""
    data, model = load_images("mnist", "train"), create_model(MODEL).eval()
    images, labels = data.images[:count], data.labels[:count]
    return peak_growth(
        lambda: class_probe_statistics(model, in_batches(images, labels), data.num_classes)
    )


def last_line_apart(code: str) -> str:
    """What Python code prints last, run in a process of its own."""
    run = subprocess.run(
        [sys.executable, "-c", code], check=True, text=True, stdout=subprocess.PIPE, cwd=REPOSITORY
    )
    return run.stdout.splitlines()[-1]


def growth_apart(count: int) -> float:
    """`growth` in a process of its own."""
    return float(last_line_apart(f"from bench.memory import growth; print(growth({count}))"))
