"""On paper: what ImageNet-1k and COCO would cost in time, memory and disk on 1, 8 and 64 GPUs, and what breaks first.

Arithmetic, not measurement: operations are counted on the real models, bytes follow from what the library keeps, and the GPU
is an assumption (`GPU`): no such run was made. What one process does on a CPU comes from the last `make bench`.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from dfkd_lib.core.artifacts import REPOSITORY
from dfkd_lib.models import create_detector

BACKWARD = 3  # a training step in forward passes: backward costs twice the forward
STATE = 16  # bytes a trained parameter: weight, gradient, two moments of AdamW, float32
GPUS = (1, 8, 64)
GIGA = 1e9


@dataclass(frozen=True)
class Machine:
    """Assumed GPU and machine: FLOP/s of its bf16 matrix product as sold, the share of them that a step uses, and of that
    share what several GPUs keep; bytes of a GPU, of a machine's memory, and GPUs of a machine."""

    name: str = "A100 80 GB"
    peak: float = 312e12
    use: float = 0.4
    kept: tuple[tuple[int, float], ...] = ((1, 1.0), (8, 0.95), (64, 0.85))
    gpu_bytes: float = 80e9
    host_bytes: float = 1e12
    per_host: int = 8

    def seconds(self, flops: float, gpus: int) -> float:
        """How long so many operations take if they spread over the GPUs."""
        return flops / (self.peak * self.use * gpus * dict(self.kept)[gpus])


class Model(NamedTuple):
    """Operations of one forward pass of one image, parameters, and bytes kept for the backward pass at bf16."""

    flops: float
    parameters: int
    activations: float


@dataclass(frozen=True)
class Stage:
    """One stage of a study.

    Args:
        name: what is done. flops: of all of it. spreads: whether several GPUs share it (training) or one process does it.
        gpu, host: bytes on each GPU, and of each process in its machine's memory. disk: bytes that it leaves.
        serial: seconds of one process on a CPU beside; None: not measured here.
    """

    name: str
    flops: float = 0.0
    spreads: bool = False
    gpu: float = 0.0
    host: float = 0.0
    disk: float = 0.0
    serial: float | None = 0.0

    def seconds(self, machine: Machine, gpus: int) -> float:
        return machine.seconds(self.flops, gpus if self.spreads else 1) + (self.serial or 0.0)

    def host_bytes(self, machine: Machine, gpus: int) -> float:
        """Of one machine: every process of a training holds its own copy."""
        return self.host * (min(gpus, machine.per_host) if self.spreads else 1)


def counted(model: nn.Module, side: int | tuple[int, int]) -> Model:
    """What one image of this size costs a model: matrix products and convolutions, and the outputs of its layers."""
    height, width = (side, side) if isinstance(side, int) else side
    kept, leaves = [0], [module for module in model.modules() if not list(module.children())]

    def keep(module, args, output):
        kept[0] += 2 * sum(
            part.numel()
            for part in (output if isinstance(output, tuple) else (output,))
            if isinstance(part, torch.Tensor)
        )

    handles = [module.register_forward_hook(keep) for module in leaves]
    # PyTorch's counter does not know the CPU's fused attention.
    fused = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *args, **kwargs: (
            sdpa_flop_count(query, key, value)
        )
    }
    with FlopCounterMode(display=False, custom_mapping=fused) as counter, torch.no_grad():
        model.eval()(torch.rand(1, 3, height, width))
    for handle in handles:
        handle.remove()
    return Model(counter.get_total_flops(), sum(p.numel() for p in model.parameters()), kept[0])


def training(
    name: str,
    student: Model,
    images: int,
    epochs: int,
    batch: int,
    pixels: int,
    teacher: Model | None = None,
    kept: float = 0.0,
    made: bool = False,
) -> Stage:
    """A student's training, its uint8 images in the memory of every process.

    Args:
        batch: images a GPU. pixels: bytes of an image. teacher: asked at every batch. kept: bytes of kept targets, which
            every GPU holds. made: whether the images are synthetic, and kept on disk as they are in memory.
    """
    flops = epochs * images * (BACKWARD * student.flops + (teacher.flops if teacher else 0.0))
    gpu = (
        STATE * student.parameters
        + batch * student.activations
        + kept
        + (4 * teacher.parameters if teacher else 0)
    )
    return Stage(
        name,
        flops,
        True,
        gpu,
        images * pixels + kept,
        4.0 * student.parameters + made * images * pixels,
    )


def targets(teacher: Model, images: int, row: int, pixels: int) -> Stage:
    """A teacher's words on all images, made once by one process: `row` numbers of float16 an image."""
    size = 2.0 * images * row
    return Stage(
        f"kept targets of {images:,} images",
        images * teacher.flops,
        False,
        4 * teacher.parameters,
        images * pixels,
        size,
    )


def class_probes(teacher: Model, images: int, classes: int, patches: int, pixels: int) -> Stage:
    """Class probes by one process: two float64 moments of each class and patch."""
    return Stage(
        f"class probes of {images:,} images",
        images * teacher.flops,
        False,
        4 * teacher.parameters,
        images * pixels + 16 * classes * patches,
        8 * classes * patches,
    )


def frechet(
    features: Model, images: int, dimensions: int, pixels: int, seconds: float | None
) -> Stage:
    """A Fréchet distance of so many images on either side; float64 features; the matrix part on one CPU took `seconds`."""
    return Stage(
        f"Fréchet distance, {images:,} against {images:,}",
        2 * images * features.flops,
        False,
        4 * features.parameters,
        2 * images * (pixels + 8 * dimensions) + 3 * 8 * dimensions**2,
        0.0,
        seconds,
    )


def evaluation(detector: Model, images: int, pixels: int, per_image: float | None) -> Stage:
    """COCO evaluation in one process: forward passes, then matching on one CPU core at so many seconds an image."""
    return Stage(
        f"COCO evaluation of {images:,} images",
        images * detector.flops,
        False,
        4 * detector.parameters,
        images * pixels,
        0.0,
        None if per_image is None else images * per_image,
    )


def measured(what: Callable[[dict], bool]) -> dict | None:
    """The first row of the last `make bench` here, else of the published one, for which `what` is true, or None."""
    for folder in ("reports/bench", "reports/published/bench"):
        try:
            rows = json.loads((REPOSITORY / folder / "bench.json").read_text())["rows"]
            return next(row for row in rows if row["ours"] and what(row))
        except (OSError, ValueError, KeyError, StopIteration):
            continue
    return None


def imagenet() -> list[Stage]:
    """ViT-B teacher to DeiT-Ti and DeiT-S students at 224 pixels: 1.28 million real or 50,000 synthetic images."""
    import timm

    base, tiny, small = (
        counted(timm.create_model(f"{name}_patch16_224"), 224)
        for name in ("vit_base", "deit_tiny", "deit_small")
    )
    inception = Model(
        11.4e9, 23_900_000, 0.0
    )  # torch-fidelity's Inception v3, as published: 5.7 billion multiplications
    all_images, made, pixels = 1_281_167, 50_000, 3 * 224 * 224
    row = 1000 + 196
    matrix = measured(lambda row: row["bench"] == "frechet" and row["setting"].startswith("10,000"))
    return [
        class_probes(base, all_images, 1000, 196, pixels),
        targets(base, made, row, pixels),
        training(
            "DeiT-Ti, 50,000 synthetic, 300 epochs, kept targets",
            tiny,
            made,
            300,
            256,
            pixels,
            kept=2.0 * made * row,
            made=True,
        ),
        targets(base, all_images, row, pixels),
        training(
            "DeiT-Ti, 1.28 M synthetic, 300 epochs, kept targets",
            tiny,
            all_images,
            300,
            256,
            pixels,
            kept=2.0 * all_images * row,
            made=True,
        ),
        training(
            "DeiT-S, 1.28 M real, 300 epochs, teacher at every batch",
            small,
            all_images,
            300,
            256,
            pixels,
            base,
        ),
        frechet(inception, made, 2048, pixels, matrix and matrix["ours"]),
    ]


def coco() -> list[Stage]:
    """DETR-R50 to DETR-R18 at 800 x 1088 pixels: 118,287 training images, the teacher at every batch."""
    teacher, student = (
        counted(create_detector(name, 80), (800, 1088))
        for name in ("detr_resnet50", "detr_resnet18_2x2")
    )
    pixels, row = 3 * 800 * 1088, measured(lambda row: row["bench"] == "coco")
    # Matching grows with images times classes: 80 here, 4 in the bench.
    per_image = row and row["ours"] / float(row["setting"].split()[0].replace(",", "")) * 80 / 4
    return [
        training(
            "DETR-R18, 50 epochs, teacher at every batch", student, 118_287, 50, 4, pixels, teacher
        ),
        evaluation(student, 5000, pixels, per_image),
    ]


def breaks(
    stages: Sequence[Stage], machine: Machine = Machine(), gpus: int = 8
) -> list[tuple[float, str]]:
    """(how many times what there is, what) of every need beyond a machine, the worst first."""
    needs = [
        (need / limit, f"{what} of {stage.name}")
        for stage in stages
        for what, need, limit in (
            ("host memory", stage.host_bytes(machine, gpus), machine.host_bytes),
            ("GPU memory", stage.gpu, machine.gpu_bytes),
        )
    ]
    return sorted((need for need in needs if need[0] > 1), reverse=True)


def span(seconds: float) -> str:
    """Seconds as a person reads them."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def table(stages: Sequence[Stage], machine: Machine = Machine()) -> str:
    """The stages as a table of GitHub's Markdown."""
    head = [
        "",
        *(f"{gpus} GPU{'s'[gpus == 1 :]}" for gpus in GPUS),
        "memory of a GPU",
        "memory of a machine of 8",
        "disk",
    ]
    lines = [head, ["---"] * len(head)]
    for stage in stages:
        more = " + not measured" if stage.serial is None else ""
        lines.append(
            [
                stage.name,
                *(span(stage.seconds(machine, gpus)) + more for gpus in GPUS),
                *(
                    f"{size / GIGA:,.1f} GB"
                    for size in (stage.gpu, stage.host_bytes(machine, 8), stage.disk)
                ),
            ]
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def tables(machine: Machine = Machine()) -> str:
    """All of it as Markdown, with what is assumed and what breaks first."""
    parts = [
        f"On paper: {machine.name}, bf16, {machine.use:.0%} of {machine.peak / 1e12:.0f} TFLOP/s assumed, of which "
        + " and ".join(
            f"{share:.0%} are kept on {gpus} GPUs" for gpus, share in machine.kept if gpus > 1
        )
        + ". No GPU was measured; only trainings spread, all else is one process."
    ]
    for name, stages in (
        ("ImageNet-1k, 224 pixels", imagenet()),
        ("COCO, 800 x 1088 pixels", coco()),
    ):
        parts += [f"{name}\n\n{table(stages, machine)}"]
        worst = [f"{share:.1f} x {what}" for share, what in breaks(stages, machine)]
        parts += [
            f"Breaks first, on a machine of {machine.per_host} GPUs, {machine.host_bytes / GIGA:,.0f} GB: "
            + ("; ".join(worst) or "nothing")
        ]
    return "\n\n".join(parts)
