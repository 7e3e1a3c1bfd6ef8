"""The deployed student: models of every format, their measurements, and the package folder."""

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dfkd_lib.core import Artifact, Store, ledger, one_of, provenance
from dfkd_lib.datasets import ImageSet, SceneSet, check_classes_agree
from dfkd_lib.deploy.export import (
    OPSET,
    Deployed,
    export_onnx,
    largest_difference,
    open_session,
    quantize_dynamic,
    quantize_static,
    same_model,
)
from dfkd_lib.deploy.measure import BATCH, THREADS, measure_speed, outputs_of
from dfkd_lib.deploy.package import pack
from dfkd_lib.deploy.tasks import Classification, task_of
from dfkd_lib.metrics import intervals
from dfkd_lib.models import count_flops, count_parameters

if TYPE_CHECKING:
    import pandas as pd

VARIANTS = {
    "pytorch": "teacher PyTorch fp32",
    "teacher": "teacher ONNX fp32",
    "student": "student ONNX fp32",
    "dynamic": "student ONNX int8 dynamic",
    "static": "student ONNX int8 static",
}
INT8 = ("dynamic", "static")
ONNX = "model.onnx"


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
        teacher, student: classifiers, or detectors with a test set of scenes.
        int8: which int8 student is packed, "dynamic" or "static"; both are measured.
        calibration_images: synthetic images, those the student learned from if it did, that fix the static scales.
        parity_images: test images on which PyTorch and ONNX are compared.
        repeats: turns of the timing, see `measure_speed`.

    Returns:
        Artifact with package/, student_dynamic.onnx and student_static.onnx, made from an artifact of `exported` each of
        teacher and student; metrics "kind", "measures", "rows", see `deployment_table`, "parity" {teacher, student}:
        largest difference of an output, "cpu", and int8's ratios.

    Raises:
        WorkbenchError: if a model cannot be exported, or its ONNX form gives other outputs (further apart than `PARITY`);
            if the test images are not of the student's classes and size.
    """
    task, made = task_of(test_set), {"teacher": teacher, "student": student}
    one_of("quantization", int8, INT8)
    for model in made.values():
        check_classes_agree(task.classes(model), test_set.classes, f"{model.path} and test images")
    forms = {who: exported(store, task, model, parity_images) for who, model in made.items()}
    settings = {"int8": int8, "calibration_images": calibration_images, "repeats": repeats}
    settings |= {**_settings(task), "cpu": provenance.processor()}

    def make(work: Path) -> dict:
        files = {who: form.path / ONNX for who, form in forms.items()}
        files |= {kind: work / f"student_{kind}.onnx" for kind in INT8}
        quantize_dynamic(files["student"], files["dynamic"])
        calibration = task.calibration(store, student, calibration_images)
        batches = (task.prepare(batch) for batch in calibration.split(32))
        quantize_static(files["student"], files["static"], batches)
        rows = _rows(task, made, forms, files, repeats)
        pack(work / "package", files[int8], task, student)
        return {
            "kind": task.kind,
            "measures": list(task.measures),
            "rows": list(rows.values()),
            "parity": {who: form.metrics["parity"] for who, form in forms.items()},
            "cpu": settings["cpu"],
            "test_images": len(test_set),
            **_ratios(rows, int8, task.measures[0]),
        }

    parents = [*made.values(), *forms.values()]
    return store.get_or_make("deploy", settings, make, parents, _reads(task))


def exported(store: Store, task: Classification, model: Artifact, parity_images: int) -> Artifact:
    """A model as model.onnx, which a teacher of several students is made but once; metrics: "parity", the largest
    difference of an output from PyTorch's, "flops", and its scores on the test images."""

    def make(work: Path) -> dict:
        network, pixels = task.load(model), task.test.images
        order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
        few = task.prepare(pixels[order[:parity_images]])
        session = open_session(export_onnx(network, few[:2], work / ONNX))
        difference = largest_difference(network, session, few)
        return {
            "parity": same_model(network, difference),
            "flops": count_flops(Deployed(network), few[:1]),
            **task.score(outputs_of(session, task.prepare, pixels)),
        }

    settings = {**_settings(task), "parity_images": parity_images}
    return store.get_or_make("exported", settings, make, [model], _reads(task))


def _settings(task: Classification) -> dict:
    """What every artifact here depends on but for the models."""
    return {
        "test": task.test.fingerprint,
        "classes": list(task.test.classes),
        "opset": OPSET,
        "onnxruntime": version("onnxruntime"),
        "torch": torch.__version__,
    }


def _reads(task: Classification) -> dict:
    return {} if task.test.split is None else {task.test.split: ledger.EVALUATION}


def _rows(task: Classification, made: dict, forms: dict, files: dict, repeats: int) -> dict:
    """{variant: its names, size, scores and times}."""
    pixels, rows = task.test.images, {}
    models = {who: task.load(artifact) for who, artifact in made.items()}
    batch = task.prepare(pixels[torch.arange(BATCH) % len(pixels)])
    speed = measure_speed(models["teacher"], files, batch, repeats)
    for kind, name in VARIANTS.items():
        owner = "teacher" if kind in ("pytorch", "teacher") else "student"
        artifact, path, scores = made[owner], files.get(kind), forms[owner].metrics
        flops = scores["flops"]
        if kind in INT8:
            # Scales that are found at run time are those of a batch: as a device sees them, of one image.
            together = 1 if kind == "dynamic" else BATCH
            scores = task.score(outputs_of(open_session(path), task.prepare, pixels, together))
        elif kind == "pytorch":
            path, flops = artifact.path / "model.safetensors", count_flops(models[owner], batch)
            # They were measured when the model was made, if on these very images.
            known = artifact.settings.get("test") == task.test.fingerprint
            outputs = None if known else outputs_of(models[owner], task.prepare, pixels)
            scores = artifact.metrics if known else task.score(outputs)
        rows[kind] = {
            "name": name,
            "who": owner,
            "kind": kind,
            "model": artifact.settings["model"],
            **{measure: scores[measure] for measure in task.measures},
            "bytes": path.stat().st_size,
            "parameters": count_parameters(models[owner]),
            "speed": speed[kind],
            "flops": flops,
        }
    return rows


def _ratios(rows: dict[str, dict], int8: str, measure: str) -> dict:
    """What the packed student gains on its teacher, both as ONNX, on one thread."""
    faster = {kind: row["speed"]["1"]["times_faster"] for kind, row in rows.items()}
    return {
        f"int8_{measure}": rows[int8][measure],
        f"fp32_{measure}": rows["student"][measure],
        "int8_times_smaller_than_teacher": rows["teacher"]["bytes"] / rows[int8]["bytes"],
        "int8_times_faster_than_teacher": faster[int8],
        "int8_times_faster_than_fp32": faster[int8] / faster["student"],
    }


def _interval(found: dict, row: dict) -> list[float]:
    """The 95 % interval of an accuracy, in percent."""
    count = found["test_images"]
    ends = intervals.accuracy_interval(round(row["accuracy"] * count), count)
    return [100 * end for end in ends]


def deployment_table(deployed: Artifact) -> "pd.DataFrame":
    """One row a variant: its scores in percent (accuracy with its 95 % interval), size, parameters, operations."""
    import pandas as pd

    found = deployed.metrics
    rows = pd.DataFrame(found["rows"])
    table = {"variant": rows["name"]}
    table |= {f"{name} (%)": 100 * rows[name] for name in found["measures"]}
    if "accuracy" in rows:
        ends = (_interval(found, row) for row in found["rows"])
        table["95 % interval"] = [f"{low:.2f} – {high:.2f}" for low, high in ends]
    table["size (kB)"] = (rows["bytes"] / 1e3).map("{:,.0f}".format)
    table["parameters"] = rows["parameters"].map("{:,}".format)
    return pd.DataFrame({**table, "MFLOP": rows["flops"] / 1e6})


def speed_table(deployed: Artifact) -> "pd.DataFrame":
    """One row a variant and number of threads: latency of one image with the middle half of its calls, images a second in
    batches of 64, and both against the teacher as ONNX on as many threads."""
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
                    "middle half of calls (ms)": f"{first:.3g} – {third:.3g}",
                    "times faster": f"{speed['times_faster']:.2f}",
                    "images/s": f"{speed['images_per_second']:,.0f}",
                    "times as many": f"{speed['times_more_images']:.2f}",
                }
            )
    return pd.DataFrame(table)


def trade_off_of(deployed: Artifact) -> dict:
    """The arguments of `plots.trade_off`: each variant's score (accuracy, or AP50) against its latency and its size."""
    found, rows = deployed.metrics, deployed.metrics["rows"]
    measure = found["measures"][0]
    latency = [row["speed"]["1"]["latency_ms"] for row in rows]
    return {
        "names": [row["name"] for row in rows],
        "score": [100 * row[measure] for row in rows],
        "intervals": [_interval(found, row) for row in rows] if measure == "accuracy" else None,
        "costs": {
            "latency of one image (ms), 1 thread": latency,
            "size of the file (kB)": [row["bytes"] / 1e3 for row in rows],
        },
        "ylabel": f"test {measure} (%)",
    }
