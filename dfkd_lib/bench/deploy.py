"""Size and speed of int8 students against their float32 teachers, of the paper's MNIST pair and of the quick one.

Both depend on the shape of a model and not on its training, so the weights are as initialised; what int8 costs in accuracy
is notebook 70's to measure.
"""

import tempfile
from pathlib import Path

import torch

from dfkd_lib import deploy
from dfkd_lib.models import count_parameters, create_model

PAIRS = {"the paper's MNIST pair": ("vit_mnist_teacher", "deit_xtiny_patch4_28"),
         "the quick MNIST pair": ("vit_mnist_small", "vit_mnist_mini_patch7")}


def deployed_sizes_and_speeds(teacher: str, student: str, repeats: int,
                              batch: int = 64) -> tuple[dict[str, int], dict[str, dict]]:
    """({variant: bytes}, {variant: {threads: speed}}) of an untrained pair, see `deploy.measure_speed`; `batch` images a
    call where images a second are counted."""
    torch.manual_seed(0)
    models = {"teacher": create_model(teacher).eval(), "student": create_model(student).eval()}
    images = torch.rand(batch, 1, 28, 28) * 2 - 1
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        files = {who: deploy.export_onnx(model, images[:2], work / f"{who}.onnx") for who, model in models.items()}
        files["dynamic"] = deploy.quantize_dynamic(files["student"], work / "dynamic.onnx")
        files["static"] = deploy.quantize_static(files["student"], work / "static.onnx", images.split(32))
        speed = deploy.measure_speed(models, files, images, repeats)
        sizes = {kind: path.stat().st_size for kind, path in files.items()}
    return {"pytorch": 4 * count_parameters(models["teacher"]), **sizes}, speed


def print_deploy(repeats: int = 100) -> None:
    """Print size, latency and images/s of teacher and student in every format, on one thread and on two."""
    for pair, names in PAIRS.items():
        sizes, speed = deployed_sizes_and_speeds(*names, repeats)
        print(f"{pair}, {names[0]} and {names[1]}, weights as initialised; x: against the teacher as ONNX")
        for kind, name in deploy.VARIANTS.items():
            print(f"  {name:26s} {sizes[kind] / 1e3:8,.0f} kB  {sizes['teacher'] / sizes[kind]:5.1f} x", end="")
            for threads, row in speed[kind].items():
                print(f"  | {threads} thread{'s'[threads == '1':]} {row['latency_ms']:7.2f} ms {row['times_faster']:5.1f} x"
                      f" {row['images_per_second']:7,.0f} images/s", end="")
            print()
