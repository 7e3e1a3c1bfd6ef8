"""Accuracy, operations and time of deployed models, on one thread."""

import time
from collections.abc import Callable
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from dfkd_lib.deploy.export import run_session


def session_accuracy(session, images: Tensor, labels: Tensor, batch_size: int = 1) -> float:
    """Top-1 accuracy in [0, 1] of float32 images (N, C, H, W); one at a time by default, as a device sees them."""
    logits = run_session(session, images, batch_size)
    return float((logits.argmax(1) == labels.numpy()).mean())


@contextmanager
def one_thread():
    """PyTorch on one thread, and as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def interleaved(runs: dict[str, Callable], repeats: int) -> dict[str, np.ndarray]:
    """Seconds a call of each of `runs`, (repeats,) each, taken in turns.

    In turns, so that whatever else the machine does in a moment slows all of them: ratios within one repeat hold where
    the times do not. Single calls are timed, as a block of them is seldom free of interruptions where other
    programs run; an untimed call before each brings its weights back into the caches.
    """
    taken = {name: np.zeros(repeats) for name in runs}
    with one_thread(), torch.inference_mode():
        for repeat in range(repeats):
            for name, run in runs.items():
                run()
                start = time.perf_counter()
                run()
                taken[name][repeat] = time.perf_counter() - start
    return taken
