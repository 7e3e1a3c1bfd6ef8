"""What deployed models give for each image, and their time, in turns, on so many threads."""

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from dfkd_lib.deploy.export import INPUT, open_session, run

BATCH = 64  # images a call where throughput is measured
THREADS = (1, 2)
SECONDS, FEWEST = 0.025, 5  # that the timing may take for each of `repeats`, but for so many turns
TEACHER = "teacher"  # its ONNX file, which speed is compared with: the same runtime, so that only the model differs


@torch.inference_mode()
def interleaved(
    runs: dict[str, Callable], repeats: int, threads: int, seconds: float
) -> dict[str, np.ndarray]:
    """Seconds a call of each of `runs`, taken in turns; PyTorch on `threads` threads. There are `repeats` turns, or, where a
    machine is so busy that these take longer than so many seconds, fewer.

    In turns, so that whatever else the machine does in a moment slows all of them: ratios within one repeat hold where
    the times do not. Single calls are timed, as a block of them is seldom free of interruptions where other
    programs run; an untimed call before each brings its weights back into the caches.
    """
    taken: dict[str, list[float]] = {name: [] for name in runs}
    began, before = time.perf_counter(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for turn in range(repeats):
            if turn >= FEWEST and time.perf_counter() - began > seconds:
                break
            for name, call in runs.items():
                call()
                start = time.perf_counter()
                call()
                taken[name].append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return {name: np.array(times) for name, times in taken.items()}


def measure_speed(model: nn.Module, files: dict, images: Tensor, repeats: int) -> dict[str, dict]:
    """{variant: {threads (as text): {latency of one image, its quartiles, images a second, both against TEACHER}}} of a
    PyTorch model and of {variant: ONNX file} on float32 images (BATCH, C, H, W).

    Single images take `repeats` turns on one thread; batches a fiftieth of them, and either a fifth on two threads; fewer
    where that takes too long (`SECONDS`).
    """
    speed: dict[str, dict] = {kind: {} for kind in ("pytorch", *files)}
    for threads in THREADS:
        runners = {"pytorch": model} | {kind: open_session(f, threads) for kind, f in files.items()}
        turns = repeats if threads == 1 else -(-repeats // 5)
        how = threads, SECONDS * repeats
        one, many = (
            interleaved({kind: _call(r, batch) for kind, r in runners.items()}, max(3, n), *how)
            for batch, n in ((images[:1], turns), (images, turns // 50))
        )
        for kind in runners:
            speed[kind][str(threads)] = {
                "latency_ms": 1e3 * _quick(one[kind]),
                "latency_quartiles_ms": (1e3 * np.quantile(one[kind], (0.25, 0.75))).tolist(),
                "times_faster": _quick(one[TEACHER]) / _quick(one[kind]),
                "images_per_second": len(images) / _quick(many[kind]),
                "times_more_images": _quick(many[TEACHER]) / _quick(many[kind]),
            }
    return speed


def _quick(seconds: np.ndarray) -> float:
    """The time that a tenth of the calls stayed under: where other programs run, a long call is interrupted oftener than a
    short one, which flatters small models in their medians."""
    return float(np.quantile(seconds, 0.1))


def _call(runner, batch: Tensor) -> Callable:
    """A call without arguments that runs a module or a session on the batch."""
    if isinstance(runner, nn.Module):
        return lambda: runner(batch)
    feed = {INPUT: batch.numpy()}
    return lambda: runner.run(None, feed)


def outputs_of(
    runner, prepare: Callable, pixels: Tensor, together: int = BATCH
) -> tuple[Tensor, ...]:
    """The outputs for uint8 images, so many at a time."""
    found = [run(runner, prepare(rows), together) for rows in pixels.split(BATCH)]
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))
