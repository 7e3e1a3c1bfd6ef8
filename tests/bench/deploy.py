"""Size and speed of int8 students against their float32 teachers, of the paper's MNIST pair and of the quick one.

Both depend on the shape of a model and not on its training, so the weights are as initialised; what int8 costs in accuracy
is notebook 70's to measure.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from bench.rows import Effort, Row
from dfkd_lib import deploy
from dfkd_lib.models import count_parameters, create_model

PAIRS = {
    "the paper's MNIST pair": ("vit_mnist_teacher", "deit_xtiny_patch4_28"),
    "the quick MNIST pair": ("vit_mnist_small", "vit_mnist_mini_patch7"),
}


def deployed_sizes_and_speeds(
    teacher: str, student: str, repeats: int, batch: int = 64
) -> tuple[dict[str, int], dict[str, dict]]:
    """({variant: bytes}, {variant: {threads: speed}}) of an untrained pair, see `deploy.measure_speed`; `batch` images a
    call where images a second are counted."""
    torch.manual_seed(0)
    models = {"teacher": create_model(teacher).eval(), "student": create_model(student).eval()}
    images = torch.rand(batch, 1, 28, 28) * 2 - 1
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        files = {
            who: deploy.export_onnx(model, images[:2], work / f"{who}.onnx")
            for who, model in models.items()
        }
        files["dynamic"] = deploy.quantize_dynamic(files["student"], work / "dynamic.onnx")
        files["static"] = deploy.quantize_static(
            files["student"], work / "static.onnx", images.split(32)
        )
        speed = deploy.measure_speed(models, files, images, repeats)
        sizes = {kind: path.stat().st_size for kind, path in files.items()}
    return {"pytorch": 4 * count_parameters(models["teacher"]), **sizes}, speed


def rows(effort: Effort) -> Iterator[Row]:
    """The int8 students' size and latency on one thread beside their teachers as ONNX."""
    for pair, names in PAIRS.items():
        turns = max(5, round(60 * effort.seconds))
        sizes, speed = deployed_sizes_and_speeds(*names, turns)
        for kind in ("dynamic", "static"):
            small, fast, slow = (
                sizes["teacher"] / sizes[kind],
                speed[kind]["1"],
                speed["teacher"]["1"],
            )
            yield Row(
                "deploy",
                f"size, {deploy.VARIANTS[kind]}",
                pair,
                "teacher as ONNX",
                sizes[kind] / 1e3,
                sizes["teacher"] / 1e3,
                "kB",
                (small,) * 3,
                1,
                ">= 8" * (kind == "dynamic"),
                "times as small",
            )
            yield Row(
                "deploy",
                f"latency, {deploy.VARIANTS[kind]}",
                f"{pair}, 1 thread",
                "teacher as ONNX",
                fast["latency_ms"],
                slow["latency_ms"],
                "ms",
                (fast["times_faster"],) * 3,
                turns,
                ">= 5" * (kind == "dynamic"),
                "quickest tenth of the rounds",
            )
