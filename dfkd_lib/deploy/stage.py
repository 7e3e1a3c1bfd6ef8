"""The deployed student as one artifact: models of every format, their measurements, and the package folder."""

import json
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dfkd_lib import ledger
from dfkd_lib.artifacts import Artifact, Store, provenance, resolve, save_json
from dfkd_lib.datasets import ImageSet, to_float
from dfkd_lib.deploy import measure
from dfkd_lib.deploy.export import (INPUT, OPSET, PARITY, export_onnx, largest_difference, open_session,
                                    quantize_dynamic, quantize_static)
from dfkd_lib.distill import evaluate, load_trained
from dfkd_lib.distill.runner import check_fit, reads_of
from dfkd_lib.errors import WorkbenchError
from dfkd_lib.intervals import accuracy_interval
from dfkd_lib.models import count_flops, count_parameters
from dfkd_lib.profiles import PROFILES
from dfkd_lib.recipes import ClassificationRecipe
from dfkd_lib.synthesis import open_images

STUDENT_NOTEBOOK = "30_classification_kd"
BATCH = 64  # images a call where throughput is measured
BASELINE = "teacher ONNX fp32"  # what speed is compared with: the same runtime, so that only the model differs
INT8 = ("dynamic", "static")
PACKAGE_FILES = ("model.onnx", "labels.json", "preprocess.json", "predict.py")


def find_student(store: Store, out_dir: str | Path, profile: str) -> Artifact:
    """The student on synthetic images of notebook 30's report in `out_dir`; the profile's own one (made) if none is.

    Raises:
        WorkbenchError: on an unknown profile.
    """
    report = resolve(out_dir) / "metrics" / f"{STUDENT_NOTEBOOK}.json"
    if report.is_file():
        found = store.find(json.loads(report.read_text())["metrics"].get("student_synthetic_key") or "none")
        if found is not None:
            return found
    if profile not in PROFILES:
        raise WorkbenchError("no such profile", expected=", ".join(PROFILES), got=profile, where="profile")
    return ClassificationRecipe.of(PROFILES[profile][STUDENT_NOTEBOOK]).student(store, "synthetic")


def _parent(store: Store, artifact: Artifact, stage: str) -> Artifact | None:
    """The artifact's first parent of that stage, or None."""
    parents = (store.find(key) for key in artifact.parents)
    return next((parent for parent in parents if parent is not None and parent.stage == stage), None)


def teacher_of(store: Store, student: Artifact) -> Artifact:
    """The teacher that a student learned from; WorkbenchError if the store no longer holds it."""
    teacher = _parent(store, student, "teacher")
    if teacher is None:
        raise WorkbenchError("the student's teacher is not in the store", expected="a parent of stage teacher",
                             got=", ".join(student.parents) or "no parents", where=student.path,
                             mend=f"run notebook {STUDENT_NOTEBOOK} again with this store")
    return teacher


def deploy_student(store: Store, teacher: Artifact, student: Artifact, test_set: ImageSet, int8: str = "dynamic",
                   calibration_images: int = 512, parity_images: int = 512, repeats: int = 500) -> Artifact:
    """Export teacher and student, quantize the student, measure all of them, and pack the int8 student.

    Args:
        test_set: real images that measure.
        int8: which int8 student is packed, "dynamic" or "static"; both are measured.
        calibration_images: synthetic images, those the student learned from, that fix the static scales.
        parity_images: test images on which PyTorch and ONNX are compared. repeats: turns of the timing of
            single images; a fiftieth of them for batches.

    Returns:
        Artifact with package/, teacher.onnx, student.onnx, student_dynamic.onnx and _static.onnx; metrics "rows", see
        `deployment_table`, "parity" {teacher, student}: largest |logit difference|, "cpu", and int8's ratios.

    Raises:
        WorkbenchError: if a model cannot be exported, or its ONNX form gives other logits (more than 1e-4 apart);
            if the test images are not of the student's classes and size.
    """
    if int8 not in INT8:
        raise WorkbenchError("no such quantization", expected=" or ".join(INT8), got=int8, where="int8")
    if list(test_set.classes) != student.settings["classes"]:
        raise WorkbenchError("the student was made for other classes than the test images have", where=test_set.name,
                             expected=", ".join(student.settings["classes"])[:200],
                             got=", ".join(test_set.classes)[:200], mend="give the data set it was trained for")
    drawn = _parent(store, student, "synthetic")
    if drawn is None:
        raise WorkbenchError("there are no synthetic images to calibrate with", where=student.path,
                             expected="a student made from an artifact of stage synthetic",
                             got=", ".join(student.parents) or "no parents", mend="give a student of synthetic images")
    cpu = provenance()["cpu"]
    settings = {"test": test_set.fingerprint, "classes": list(test_set.classes), "int8": int8, "opset": OPSET,
                "calibration_images": calibration_images, "parity_images": parity_images, "repeats": repeats,
                "cpu": cpu, "onnxruntime": version("onnxruntime"), "torch": torch.__version__}

    def make(work: Path) -> dict:
        models = {"teacher": load_trained(teacher).cpu(), "student": load_trained(student).cpu()}
        for who, model in models.items():
            check_fit(model, test_set, who)
            model.cpu()
        images = to_float(test_set.images)
        few = to_float(test_set.sample(parity_images, 0).images)
        files = {who: export_onnx(model, few[:2], work / f"{who}.onnx") for who, model in models.items()}
        drawn_images = open_images(drawn).images
        chosen = torch.randperm(len(drawn_images), generator=torch.Generator().manual_seed(0))[:calibration_images]
        files["dynamic"] = quantize_dynamic(files["student"], work / "student_dynamic.onnx")
        files["static"] = quantize_static(files["student"], work / "student_static.onnx",
                                          to_float(drawn_images[chosen]))
        sessions = {name: open_session(path) for name, path in files.items()}
        parity = {who: _same(who, largest_difference(model, sessions[who], few)) for who, model in models.items()}
        rows = _rows(models, sessions, files, images, test_set, {"teacher": teacher, "student": student}, repeats)
        _pack(work / "package", files[int8], test_set)
        return {"rows": rows, "parity": parity, "cpu": cpu, "test_images": len(test_set), **_ratios(rows, int8)}

    return store.get_or_make("deploy", settings, make, [teacher, student], reads_of((test_set, ledger.EVALUATION)))


def _same(who: str, difference: float) -> float:
    if not difference <= PARITY:
        raise WorkbenchError(f"the {who}'s ONNX form is another model", got=f"{difference:.3g}",
                             expected=f"logits within {PARITY:g} of PyTorch's",
                             mend="look for steps that depend on the values of their input: "
                             "the export keeps only the branch that its sample took")
    return difference


def _rows(models: dict, sessions: dict, files: dict, images: Tensor, test_set: ImageSet, arts: dict,
          repeats: int) -> list[dict]:
    """One row a variant: its names, size, accuracy and times."""
    names = {"teacher": BASELINE, "student": "student ONNX fp32", "dynamic": "student ONNX int8 dynamic",
             "static": "student ONNX int8 static"}
    variants = {"teacher PyTorch fp32": ("teacher", None), **{
        name: ("teacher" if file == "teacher" else "student", file) for file, name in names.items()}}
    seconds = {}
    for count, turns in ((1, repeats), (BATCH, max(3, repeats // 50))):
        batch = images[torch.arange(count) % len(images)]
        runs = {name: _call(models[who] if file is None else sessions[file], batch)
                for name, (who, file) in variants.items()}
        seconds[count] = measure.interleaved(runs, turns)
    rows = []
    for name, (who, file) in variants.items():
        if file is not None:
            accuracy = measure.session_accuracy(sessions[file], images, test_set.labels)
        elif arts[who].settings.get("test") == test_set.fingerprint:
            accuracy = arts[who].metrics["accuracy"]  # measured when it was made, on these very images
        else:
            accuracy = evaluate(models[who], test_set)[0]
        path = arts[who].path / "model.safetensors" if file is None else files[file]
        times = seconds[1][name]
        rows.append({"name": name, "who": who, "kind": file or "pytorch", "model": arts[who].settings["model"],
                     "accuracy": accuracy, "bytes": path.stat().st_size, "parameters": count_parameters(models[who]),
                     "flops": count_flops(models[who], images),
                     "latency_ms": 1e3 * float(np.median(times)),
                     "latency_quartiles_ms": [1e3 * float(q) for q in np.quantile(times, (0.25, 0.75))],
                     # The ratio within each turn, then the median: what slows a turn slows both sides of it.
                     "times_faster": float(np.median(seconds[1][BASELINE] / times)),
                     "images_per_second": BATCH / float(np.median(seconds[BATCH][name])),
                     "times_more_images": float(np.median(seconds[BATCH][BASELINE] / seconds[BATCH][name]))})
    return rows


def _call(runner, batch: Tensor):
    """A call without arguments that runs a module or a session on the batch."""
    if isinstance(runner, torch.nn.Module):
        return lambda: runner(batch)
    feed = {INPUT: batch.numpy()}
    return lambda: runner.run(None, feed)


def _ratios(rows: list[dict], int8: str) -> dict:
    """What the packed student gains on its teacher, both as ONNX."""
    by_kind = {row["kind"]: row for row in rows}
    packed, teacher = by_kind[int8], by_kind["teacher"]
    return {"int8_accuracy": packed["accuracy"], "fp32_accuracy": by_kind["student"]["accuracy"],
            "int8_times_smaller_than_teacher": teacher["bytes"] / packed["bytes"],
            "int8_times_faster_than_teacher": packed["times_faster"],
            "int8_times_faster_than_fp32": packed["times_faster"] / by_kind["student"]["times_faster"]}


def _pack(folder: Path, model: Path, test_set: ImageSet) -> None:
    """The folder that labels images with onnxruntime, numpy and pillow alone."""
    folder.mkdir(exist_ok=True)
    shutil.copyfile(model, folder / "model.onnx")
    shutil.copyfile(Path(__file__).with_name("predict.py"), folder / "predict.py")
    channels, height, width = test_set.shape
    save_json(folder / "labels.json", list(test_set.classes))
    save_json(folder / "preprocess.json", {"channels": channels, "height": height, "width": width,
                                           "scale": 1 / 127.5, "offset": -1.0})  # datasets.to_float


def copy_package(deployed: Artifact, folder: str | Path) -> Path:
    """Copy the package out of the store; returns its folder."""
    folder = resolve(folder)
    shutil.copytree(deployed.path / "package", folder, dirs_exist_ok=True)
    return folder


def predict_with(package: str | Path, images: Tensor) -> list[tuple[str, float]]:
    """(label, probability) of uint8 images (N, C, H, W), written as PNG and labelled by the package's own script.

    Raises:
        WorkbenchError: if the script fails; carries what it said.
    """
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / f"{i}.png") for i in range(len(images))]
        for path, image in zip(paths, images, strict=True):
            Image.fromarray(image.permute(1, 2, 0).numpy().squeeze()).save(path)
        script = str(Path(package) / "predict.py")
        done = subprocess.run([sys.executable, script, *paths], capture_output=True, text=True)
    if done.returncode:
        raise WorkbenchError("the package does not run", got=done.stderr[-400:], where=package,
                             mend="install onnxruntime, numpy and pillow")
    return [(line.split("\t")[1], float(line.split("\t")[2])) for line in done.stdout.splitlines()]


def deployment_table(deployed: Artifact):
    """One row a variant: accuracy with its 95 % interval, size, latency, images/s, operations, parameters."""
    import pandas as pd

    count, table = deployed.metrics["test_images"], []
    for row in deployed.metrics["rows"]:
        low, high = accuracy_interval(round(row["accuracy"] * count), count)
        first, third = row["latency_quartiles_ms"]
        table.append({"variant": row["name"], "accuracy (%)": 100 * row["accuracy"],
                      "95 % interval": f"{100 * low:.2f} – {100 * high:.2f}", "size (kB)": row["bytes"] / 1e3,
                      "latency (ms)": row["latency_ms"], "times faster": row["times_faster"],
                      "images/s": round(row["images_per_second"]), "MFLOP": row["flops"] / 1e6,
                      "parameters": row["parameters"], "middle half (ms)": f"{first:.3g} – {third:.3g}"})
    return pd.DataFrame(table)
