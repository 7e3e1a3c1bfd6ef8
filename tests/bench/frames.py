"""Detection over whole frames by a student as it is deployed: ONNX in float32 and in int8, one thread."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bench.comparison import Comparison, Pair, Ways
from dfkd_lib.datasets import generate_scenes
from dfkd_lib.deploy.export import export_onnx, open_session, quantize_static, run
from dfkd_lib.metrics import sure
from dfkd_lib.models import count_parameters, create_detector

STUDENT, FRAMES, HEIGHT, WIDTH = "detr_nano", 1000, 512, 640
DIFFERENT = 40  # frames, shown again and again
FP32, INT8 = "ONNX fp32", "ONNX int8"


def detected(session, frames: Tensor, count: int) -> int:
    """How many objects are found in so many frames, uint8 (N, 3, H, W), shown one by one, pixels to boxes."""
    found = 0
    for number in range(count):
        logits, boxes = run(session, frames[number % len(frames)][None].float() / 255)
        found += len(sure(logits[0].sigmoid()[:, :-1], boxes[0])["scores"])
    return found


@contextmanager
def ways(count: int = FRAMES) -> Iterator[Ways]:
    """The student, untrained, in both forms."""
    torch.manual_seed(0)
    student = create_detector(STUDENT, 4).eval()
    frames = generate_scenes(DIFFERENT, size=WIDTH, split="synthetic").images[:, :, :HEIGHT]
    sample = frames[:8].float() / 255
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.onnx" for name in (FP32, INT8)}
        export_onnx(student, sample[:2], files[FP32])
        quantize_static(files[FP32], files[INT8], sample.split(4))
        runs = {
            name: partial(detected, open_session(file), frames, count)
            for name, file in files.items()
        }
        yield Ways(runs, f"{count_parameters(student):,} parameters, pixels to boxes")


COMPARISONS = (
    Comparison(
        "frames",
        f"{STUDENT}, {FRAMES:,} frames {WIDTH} x {HEIGHT}, one thread",
        ways,
        (Pair(INT8, FP32, ">= 25 images/s"),),
        unit="images/s",
        per=FRAMES,
        least=1,
        most=1,
        warm=False,
    ),
)
