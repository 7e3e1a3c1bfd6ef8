"""Time of deployed models, in turns, on so many threads."""

import time
from collections.abc import Callable
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def pytorch_threads(count: int):
    """PyTorch on `count` threads, and as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def interleaved(runs: dict[str, Callable], repeats: int, threads: int = 1) -> dict[str, np.ndarray]:
    """Seconds a call of each of `runs`, (repeats,) each, taken in turns; PyTorch on `threads` threads.

    In turns, so that whatever else the machine does in a moment slows all of them: ratios within one repeat hold where
    the times do not. Single calls are timed, as a block of them is seldom free of interruptions where other
    programs run; an untimed call before each brings its weights back into the caches.
    """
    taken = {name: np.zeros(repeats) for name in runs}
    with pytorch_threads(threads), torch.inference_mode():
        for repeat in range(repeats):
            for name, run in runs.items():
                run()
                start = time.perf_counter()
                run()
                taken[name][repeat] = time.perf_counter() - start
    return taken
