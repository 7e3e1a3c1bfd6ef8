"""The deployed student as one artifact: models of every format, their measurements, and the package folder."""

from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dfkd_lib.core import WorkbenchError, ledger, provenance
from dfkd_lib.core.artifacts import Artifact, Store
from dfkd_lib.datasets import ImageSet
from dfkd_lib.datasets.scenes import SceneSet
from dfkd_lib.deploy import measure
from dfkd_lib.deploy.export import (
    INPUT,
    OPSET,
    Deployed,
    export_onnx,
    largest_difference,
    open_session,
    quantize_dynamic,
    quantize_static,
    run,
    same_model,
)
from dfkd_lib.deploy.package import pack
from dfkd_lib.deploy.tasks import Task, parent_of, task_of
from dfkd_lib.metrics.intervals import accuracy_interval
from dfkd_lib.models import count_flops, count_parameters

BATCH = 64  # images a call where throughput is measured
THREADS = (1, 2)
BASELINE = "teacher ONNX fp32"  # what speed is compared with: the same runtime, so that only the model differs
VARIANTS = {
    "pytorch": "teacher PyTorch fp32",
    "teacher": BASELINE,
    "student": "student ONNX fp32",
    "dynamic": "student ONNX int8 dynamic",
    "static": "student ONNX int8 static",
}
INT8 = ("dynamic", "static")
TEACHERS = ("teacher", "detection-teacher")  # stages of models trained without a teacher


def teacher_of(store: Store, student: Artifact) -> Artifact:
    """The teacher that a student learned from; WorkbenchError if the store no longer holds it."""
    if student.stage in TEACHERS:
        raise WorkbenchError(
            "the student learned without a teacher to compare it with",
            expected="a distilled student",
            got=f"{student.settings['model']}, trained on labels alone",
            where=student.path,
            fix="run the notebook that made it with another setting too, as synthetic",
        )
    teacher = parent_of(store, student, lambda parent: parent.stage in TEACHERS)
    if teacher is None:
        raise WorkbenchError(
            "the student's teacher is not in the store",
            expected="a parent of stage teacher",
            got=", ".join(student.parents) or "no parents",
            where=student.path,
            fix="run the notebook that made the student again with this store",
        )
    return teacher


def deploy_student(
    store: Store,
    teacher: Artifact,
    student: Artifact,
    test_set: ImageSet | SceneSet,
    int8: str = "dynamic",
    calibration_images: int = 512,
    parity_images: int = 512,
    repeats: int = 500,
) -> Artifact:
    """Export teacher and student, quantize the student, measure all of them, and pack the int8 student.

    Args:
        teacher: a classifier, or a detector with a test set of scenes.
        student: likewise.
        test_set: real images or scenes that measure.
        int8: which int8 student is packed, "dynamic" or "static"; both are measured.
        calibration_images: synthetic images, those the student learned from if it did, that fix the static scales.
        parity_images: test images on which PyTorch and ONNX are compared.
        repeats: turns of the timing of single images; a fiftieth of them for batches, a fifth of either on two threads.

    Returns:
        Artifact with package/, teacher.onnx, student.onnx, student_dynamic.onnx and _static.onnx; metrics "kind",
        "measures", "rows", see `deployment_table`, "parity" {teacher, student}: largest difference of an output,
        "cpu", and int8's ratios.

    Raises:
        WorkbenchError: if a model cannot be exported, or its ONNX form gives other outputs (more than 1e-4 apart);
            if the test images are not of the student's classes and size.
    """
    task = task_of(test_set)
    _check(task, student, test_set, int8)
    settings = {
        "test": test_set.fingerprint,
        "classes": list(test_set.classes),
        "int8": int8,
        "opset": OPSET,
        "threads": list(THREADS),
        "calibration_images": calibration_images,
        "parity_images": parity_images,
        "repeats": repeats,
        "cpu": provenance.processor(),
        "onnxruntime": version("onnxruntime"),
        "torch": torch.__version__,
    }

    def make(work: Path) -> dict:
        calibration = task.calibration(store, student, calibration_images, test_set)
        arts = {"teacher": teacher, "student": student}
        return _deployed(work, task, arts, test_set, calibration, settings)

    reads = {} if test_set.split is None else {test_set.split: ledger.EVALUATION}
    return store.get_or_make("deploy", settings, make, [teacher, student], reads)


def _check(task: Task, student: Artifact, test_set: ImageSet | SceneSet, int8: str) -> None:
    if int8 not in INT8:
        raise WorkbenchError(
            "no such quantization",
            expected=" or ".join(INT8),
            got=int8,
            where="int8",
            fix="choose one of them",
        )
    classes = task.classes(student) or ["none: it is of another kind"]
    if list(test_set.classes) != classes:
        raise WorkbenchError(
            "the student was made for other classes than the test images have",
            where=student.path,
            expected=", ".join(classes)[:200],
            got=", ".join(test_set.classes)[:200],
            fix="give the data set it was trained for",
        )


def _deployed(
    work: Path,
    task: Task,
    arts: dict[str, Artifact],
    test_set: ImageSet | SceneSet,
    calibration: Tensor,
    settings: dict,
) -> dict:
    """Every file of `deploy_student` in `work`, and its metrics."""
    models = {who: task.load(artifact, test_set) for who, artifact in arts.items()}
    pixels, generator = test_set.images, torch.Generator().manual_seed(0)
    few = task.prepare(
        pixels[torch.randperm(len(pixels), generator=generator)[: settings["parity_images"]]]
    )
    files, parity = {}, {}
    for who, model in models.items():
        files[who] = export_onnx(model, few[:2], work / f"{who}.onnx")
        difference = largest_difference(model, open_session(files[who]), few)
        parity[who] = same_model(who, difference)
    files["dynamic"] = quantize_dynamic(files["student"], work / "student_dynamic.onnx")
    batches = (task.prepare(batch) for batch in calibration.split(32))
    files["static"] = quantize_static(files["student"], work / "student_static.onnx", batches)
    rows = _rows(task, models, files, arts, test_set, settings["repeats"])
    pack(work / "package", files[settings["int8"]], task, test_set)
    return {
        "kind": task.kind,
        "measures": list(task.measures),
        "rows": rows,
        "parity": parity,
        "cpu": settings["cpu"],
        "test_images": len(test_set),
        **_ratios(rows, settings["int8"], task.measures[0]),
    }


def _rows(
    task: Task, models: dict, files: dict, arts: dict, test_set: ImageSet | SceneSet, repeats: int
) -> list[dict]:
    """One row a variant: its names, size, scores and times."""
    pixels, rows = test_set.images, []
    sample = task.prepare(pixels[:1])
    speed = measure_speed(
        models, files, task.prepare(pixels[torch.arange(BATCH) % len(pixels)]), repeats
    )
    for kind, name in VARIANTS.items():
        owner = "teacher" if kind in ("pytorch", "teacher") else "student"
        artifact, model = arts[owner], models[owner]
        # PyTorch's scores were measured when the model was made, if on these very images.
        scores = (
            artifact.metrics
            if kind == "pytorch" and artifact.settings.get("test") == test_set.fingerprint
            else task.score(
                _each(task, model if kind == "pytorch" else open_session(files[kind]), pixels),
                test_set,
            )
        )
        path = artifact.path / "model.safetensors" if kind == "pytorch" else files[kind]
        rows.append(
            {
                "name": name,
                "who": owner,
                "kind": kind,
                "model": artifact.settings["model"],
                **{measure: scores[measure] for measure in task.measures},
                "bytes": path.stat().st_size,
                "parameters": count_parameters(model),
                "speed": speed[kind],
                "flops": count_flops(model if kind == "pytorch" else Deployed(model), sample),
            }
        )
    return rows


def _each(task: Task, runner, pixels: Tensor) -> tuple[Tensor, ...]:
    """The outputs for each image alone, as a device sees them; of PyTorch in batches, which changes nothing."""
    many = BATCH if isinstance(runner, torch.nn.Module) else 1
    found = [run(runner, task.prepare(rows), many) for rows in pixels.split(BATCH)]
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def measure_speed(models: dict, files: dict, images: Tensor, repeats: int) -> dict[str, dict]:
    """{variant: {threads (as text): {latency of one image, its quartiles, images a second, both against BASELINE}}}.

    Args:
        models: {"teacher": PyTorch module}.
        files: {variant of `VARIANTS` but "pytorch": ONNX file}.
        images: float32 (64, C, H, W), a batch.
        repeats: turns, see `deploy_student`.
    """
    speed = {kind: {} for kind in VARIANTS}
    for threads in THREADS:
        runners = {
            "pytorch": models["teacher"],
            **{kind: open_session(path, threads) for kind, path in files.items()},
        }
        turns = repeats if threads == 1 else -(-repeats // 5)
        one, many = (
            measure.interleaved(
                {kind: _call(runners[kind], batch) for kind in VARIANTS}, max(3, count), threads
            )
            for batch, count in ((images[:1], turns), (images, turns // 50))
        )
        for kind in VARIANTS:
            speed[kind][str(threads)] = {
                "latency_ms": 1e3 * float(np.median(one[kind])),
                "latency_quartiles_ms": [
                    1e3 * float(q) for q in np.quantile(one[kind], (0.25, 0.75))
                ],
                "times_faster": _ratio(one["teacher"], one[kind]),
                "images_per_second": len(images) / float(np.median(many[kind])),
                "times_more_images": _ratio(many["teacher"], many[kind]),
            }
    return speed


def _ratio(slow: np.ndarray, quick: np.ndarray) -> float:
    """How many times quicker, by the quickest tenth of either: where other programs run, a long call is interrupted oftener
    than a short one, which flatters small models in their medians."""
    return float(np.quantile(slow, 0.1) / np.quantile(quick, 0.1))


def _call(runner, batch: Tensor):
    """A call without arguments that runs a module or a session on the batch."""
    if isinstance(runner, torch.nn.Module):
        return lambda: runner(batch)
    feed = {INPUT: batch.numpy()}
    return lambda: runner.run(None, feed)


def _ratios(rows: list[dict], int8: str, measure_name: str) -> dict:
    """What the packed student gains on its teacher, both as ONNX, on one thread."""
    by_kind = {row["kind"]: row for row in rows}
    faster = {kind: row["speed"]["1"]["times_faster"] for kind, row in by_kind.items()}
    packed = by_kind[int8]
    return {
        f"int8_{measure_name}": packed[measure_name],
        f"fp32_{measure_name}": by_kind["student"][measure_name],
        "int8_times_smaller_than_teacher": by_kind["teacher"]["bytes"] / packed["bytes"],
        "int8_times_faster_than_teacher": faster[int8],
        "int8_times_faster_than_fp32": faster[int8] / faster["student"],
    }


def deployment_table(deployed: Artifact):
    """One row a variant: its scores in percent (accuracy with its 95 % interval), size, parameters, operations."""
    import pandas as pd

    found, table = deployed.metrics, []
    for row in found["rows"]:
        scores = {f"{name} (%)": 100 * row[name] for name in found["measures"]}
        if found["kind"] == "classification":
            low, high = accuracy_interval(
                round(row["accuracy"] * found["test_images"]), found["test_images"]
            )
            scores["95 % interval"] = f"{100 * low:.2f} – {100 * high:.2f}"
        table.append(
            {
                "variant": row["name"],
                **scores,
                "size (kB)": f"{row['bytes'] / 1e3:,.0f}",
                "parameters": f"{row['parameters']:,}",
                "MFLOP": row["flops"] / 1e6,
            }
        )
    return pd.DataFrame(table)


def speed_table(deployed: Artifact):
    """One row a variant and number of threads: latency of one image with the middle half, images a second in batches of 64,
    and both against the teacher in the same runtime on as many threads."""
    import pandas as pd

    table = []
    for threads in THREADS:
        for row in deployed.metrics["rows"]:
            speed = row["speed"][str(threads)]
            first, third = speed["latency_quartiles_ms"]
            table.append(
                {
                    "variant": row["name"],
                    "threads": threads,
                    "latency (ms)": f"{speed['latency_ms']:.3g}",
                    "middle half (ms)": f"{first:.3g} – {third:.3g}",
                    "times faster": f"{speed['times_faster']:.2f}",
                    "images/s": f"{speed['images_per_second']:,.0f}",
                    "times as many": f"{speed['times_more_images']:.2f}",
                }
            )
    return pd.DataFrame(table)


def trade_off_of(deployed: Artifact) -> dict:
    """The arguments of `plots.trade_off`: each variant's score (accuracy, or AP50) against its latency and its size."""
    found, rows = deployed.metrics, deployed.metrics["rows"]
    measure_name = found["measures"][0]
    count, spans = found["test_images"], None
    if found["kind"] == "classification":
        spans = [
            [100 * end for end in accuracy_interval(round(row["accuracy"] * count), count)]
            for row in rows
        ]
    return {
        "names": [row["name"] for row in rows],
        "score": [100 * row[measure_name] for row in rows],
        "intervals": spans,
        "costs": {
            "latency of one image (ms), 1 thread": [
                row["speed"]["1"]["latency_ms"] for row in rows
            ],
            "size of the file (kB)": [row["bytes"] / 1e3 for row in rows],
        },
        "ylabel": f"test {measure_name} (%)",
    }
