"""Deployment: the same model as ONNX, smaller as int8, and a folder that needs no PyTorch."""

import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from families import SMALL_RFDETR
from PIL import Image
from steps import train_student
from torch import nn

from dfkd_lib import deploy, detection, presets, training
from dfkd_lib.core import Store, WorkbenchError, artifacts
from dfkd_lib.datasets import FILL, SCENES, SceneConfig, generate_scenes, load_images, to_float
from dfkd_lib.deploy.export import PARITY, PARITY_REALTIME, largest_difference, run
from dfkd_lib.deploy.tasks import Detection, task_of
from dfkd_lib.detection import DetectorConfig, detections, load_detector
from dfkd_lib.distill import KDWeights
from dfkd_lib.models import count_flops, count_parameters, create_detector, create_model
from dfkd_lib.synthesis import open_images
from dfkd_lib.training import Augmentation, TrainConfig

LARGER = ("deimv2_pico", "dfine_nano", "rtdetr_v2_r18", "rfdetr_nano")
SIZES = {"calibration_images": 64, "parity_images": 40, "repeats": 3}


def small_batches(patch):
    """Fewer images a call than where throughput is measured; a constant of the code, and so of the key."""
    for place in ("measure", "stage"):
        patch.setattr(f"dfkd_lib.deploy.{place}.BATCH", 8)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(a ViT with weights that are not near zero, its ONNX file)."""
    torch.manual_seed(0)
    model = create_model("vit_mnist_mini_patch7").eval()
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    return model, deploy.export_onnx(model, torch.zeros(2, 1, 28, 28), path)


@pytest.fixture(scope="module")
def images():
    return torch.rand(70, 1, 28, 28, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_onnx_gives_the_logits_of_pytorch_at_any_batch_and_not_those_of_another_model(tiny, images):
    model, path = tiny
    session = deploy.open_session(path)
    assert deploy.largest_difference(model, session, images) <= PARITY
    with torch.inference_mode():
        for count in (1, 3, 70):
            logits = session.run(None, {"images": images[:count].numpy()})[0]
            assert logits.shape == (count, 10)
            np.testing.assert_allclose(logits, model(images[:count]).numpy(), atol=PARITY)
    torch.manual_seed(1)
    other = create_model("vit_mnist_mini_patch7").eval()
    assert deploy.largest_difference(other, session, images) > PARITY


def test_int8_is_smaller_and_close(tiny, images, tmp_path):
    _, path = tiny
    exact = deploy.run(deploy.open_session(path), images)[0].numpy()
    made = [
        deploy.quantize_dynamic(path, tmp_path / "dynamic.onnx"),
        deploy.quantize_static(path, tmp_path / "static.onnx", images[:64].split(32)),
    ]
    for file in made:
        logits = deploy.run(deploy.open_session(file), images)[0].numpy()
        assert 0 < np.abs(logits - exact).max() < 0.2 * np.abs(exact).max(), file.name
        assert file.stat().st_size < 0.6 * path.stat().st_size, file.name


class Eigenvalues(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvalsh(x[:, 0])


class Branches(nn.Module):
    """Another function for bright images than for dark ones, which a trace cannot keep."""

    def forward(self, x):
        return (x if x.sum() > 0 else -2 * x).flatten(1)[:, :10]


class Scaled(nn.Module):
    """Divides by the largest value of its first images, found at export."""

    def forward(self, x):
        return x.flatten(1) / x.abs().max().item()


class Counted(nn.Module):
    """Keeps the number of images it was exported with."""

    def forward(self, x):
        return x.reshape(len(x), -1)


def test_an_operator_that_onnx_lacks_is_named(tmp_path, capfd):
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Sequential(nn.ReLU(), Eigenvalues()))
    # With its place in the model, and its line.
    words = "(?s)aten::linalg_eigvalsh.*module 1.1.*test_deploy.py.*write that step with operators"
    with pytest.raises(WorkbenchError, match=words):
        deploy.export_onnx(model, torch.zeros(2, 1, 4, 4), tmp_path / "model.onnx")
    assert not capfd.readouterr().out  # not the graph, which may have thousands of lines


UNEVEN = nn.Sequential(nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(3)), nn.Flatten())


@pytest.mark.parametrize(
    "model, message",
    [
        (Branches(), "another model"),
        (Scaled(), "another model"),
        (Counted(), r"(?s)another model.*len\(images\)"),
        (UNEVEN, "(?s)adaptive_avg_pool2d, output size that are not factor.*module 0.1"),
    ],
)
def test_a_model_is_tried_before_it_is_trained(model, message):
    with pytest.raises(WorkbenchError, match=message):
        deploy.check_export(model, (1, 4, 4))
    assert deploy.check_export(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), (1, 4, 4)) <= PARITY


@pytest.mark.parametrize(
    "name, shape",
    [
        ("deit_xtiny_patch4_28", (1, 28, 28)),
        ("titn_small", (1, 28, 28)),
        ("dearkd_small", (1, 28, 28)),
        ("detr_nano", (3, 64, 64)),
        ("detr_micro", (3, 64, 64)),
        ("deimv2_atto", (3, 64, 64)),
        *(pytest.param(n, (3, 64, 64), marks=pytest.mark.slow) for n in LARGER),
    ],
)
def test_models_can_be_exported_and_are_asked_without_a_trace_in_the_random_state(name, shape):
    before = torch.get_rng_state()
    largest = PARITY_REALTIME if name in (*LARGER, "deimv2_atto") else PARITY
    assert deploy.check_exportable(name, 4, shape) <= largest
    assert torch.equal(before, torch.get_rng_state())


def test_rfdetr_is_exported_with_the_positions_of_the_size_that_it_is_exported_for():
    assert deploy.check_export(SMALL_RFDETR.detector(4).eval(), (3, 64, 80)) <= PARITY_REALTIME


@pytest.mark.parametrize("name", ["detr_nano", "detr_resnet18_2x2"])
def test_the_exported_mask_of_filled_frames_is_pytorchs(name, tmp_path):
    torch.manual_seed(0)
    detector, images = create_detector(name, 4).eval(), torch.rand(3, 3, 96, 128)
    images[1, :, :, 64:] = images[2, :, 50:] = torch.tensor(FILL).view(3, 1, 1) / 255
    session = deploy.open_session(deploy.export_onnx(detector, images[:2], tmp_path / "m.onnx"))
    assert largest_difference(detector, session, images) < 2e-5


def test_an_int8_deimv2_runs(tmp_path):
    """Its distributions of distances are read in float: onnxruntime refuses their weights of one scale a column."""
    images = torch.rand(4, 3, 160, 160)
    deploy.export_onnx(create_detector("deimv2_atto", 4).eval(), images, tmp_path / "fp32.onnx")
    deploy.quantize_static(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", images.split(2))
    logits, boxes = run(deploy.open_session(tmp_path / "int8.onnx"), images)
    assert logits.shape == (4, 100, 5) and boxes.isfinite().all()


def test_operations_of_a_product_and_a_transformer():
    assert count_flops(nn.Linear(8, 5), torch.zeros(3, 8)) == 2 * 8 * 5
    model = create_model("vit_mnist_mini_patch7").eval()
    width, depth, tokens, patches, pixels = 64, 3, 17, 16, 49
    block = (
        12 * tokens * width**2 + 2 * tokens**2 * width
    )  # qkv, projection, MLP; q Kᵀ and its product with V
    expected = 2 * (depth * block + patches * pixels * width + width * 10)
    assert count_flops(model, torch.zeros(1, 1, 28, 28)) == expected


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A folder with what the package needs and nothing else: no torch, none of the other installed packages."""
    folder = tmp_path_factory.mktemp("bare")
    for name in ("onnxruntime", "numpy", "PIL"):
        source = Path(find_spec(name).submodule_search_locations[0])
        for path in (source, source.with_name(f"{'pillow' if name == 'PIL' else name}.libs")):
            if path.exists():
                (folder / path.name).symlink_to(path)
    assert not bare_python(folder, folder, "import onnxruntime, PIL").returncode
    for absent in ("torch", "dfkd_lib", "timm"):
        assert "No module named" in bare_python(folder, folder, f"import {absent}").stderr
    return folder


def bare_python(bare, folder, code, *arguments):
    """Code in a Python that sees the standard library and the folder `bare` alone."""
    start = f"import runpy, sys\nsys.path.append({str(bare)!r})\n{code}"
    command = [sys.executable, "-I", "-S", "-c", start, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


def run_without_torch(bare, package, *arguments):
    code = "sys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    return bare_python(bare, package, code, package / "predict.py", *arguments)


def form(store, found, who):
    """The ONNX file in float32 that a deployment was made from."""
    return store.find(found.parents[2 + ("teacher", "student").index(who)]).path / "model.onnx"


@pytest.fixture(scope="module")
def deployed(tmp_path_factory):
    """(store, teacher, student, test set, deployment) on digits, the student of images that are not real."""
    store = Store(tmp_path_factory.mktemp("store"))
    train, test = load_images("digits", "train"), load_images("digits", "test")
    teacher = training.train_teacher(
        store,
        "vit_mnist_small",
        train,
        test,
        TrainConfig(epochs=6, batch_size=64, lr=1e-3, seed=0),
        Augmentation(),
        overrides={"patch_size": 2},
    )

    def draw(work):
        random = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (200, *train.shape), generator=random)
        np.save(work / "images.npy", pixels.to(torch.uint8).numpy())

    drawn = store.get_or_make("synthetic", {"noise": 200, "classes": list(test.classes)}, draw)
    noise = open_images(drawn)
    student = train_student(
        store,
        "student_synthetic",
        "vit_mnist_smoke",
        teacher,
        noise,
        test,
        TrainConfig(epochs=1, batch_size=64, lr=5e-3, seed=0),
        KDWeights(kd=1.0, ce=1.0, patch=0.0, temperature=4.0),
        parents=[drawn],
    )
    with pytest.MonkeyPatch.context() as patch:
        small_batches(patch)
        found = deploy.deploy_student(store, teacher, student, test, **SIZES)
    return store, teacher, student, test, found


def test_every_variant_is_measured(deployed):
    _, teacher, student, test, found = deployed
    rows = {row["kind"]: row for row in found.metrics["rows"]}
    assert list(rows) == ["pytorch", "teacher", "student", "dynamic", "static"]
    measures = ("latency_ms", "images_per_second", "times_faster")
    for row in rows.values():
        assert list(row["speed"]) == ["1", "2"] and row["bytes"] > 0 and row["flops"] > 0
        assert all(speed[name] > 0 for speed in row["speed"].values() for name in measures)
    assert all(speed["times_faster"] == 1 for speed in rows["teacher"]["speed"].values())
    # Exported, a classifier does no work in its last block that its head does not read.
    assert rows["teacher"]["flops"] < rows["pytorch"]["flops"]
    for who, artifact in (("teacher", teacher), ("student", student)):
        accuracy = artifact.metrics["accuracy"]
        assert rows[who]["accuracy"] == pytest.approx(accuracy, abs=1 / len(test))
    assert rows["dynamic"]["bytes"] < rows["student"]["bytes"] < rows["teacher"]["bytes"]
    assert rows["teacher"]["parameters"] == count_parameters(training.load_trained(teacher))
    assert max(found.metrics["parity"].values()) <= PARITY
    assert len(deploy.deployment_table(found)) == 5 and len(deploy.speed_table(found)) == 10


def test_deploying_reads_real_images_for_evaluation_alone(deployed, detected):
    _, _, _, test, found = deployed
    read = [(row["split"], row["purpose"], row["images"]) for row in found.ledger]
    assert read == [("digits/test", "evaluation", len(test))] and found.manifest["data_free"]
    read = [(row["split"], row["purpose"]) for row in detected[3].ledger]
    assert read == [("aerial/test", "evaluation")]


def test_a_second_deployment_is_found(deployed, monkeypatch):
    small_batches(monkeypatch)
    store, teacher, student, test, found = deployed
    again = deploy.deploy_student(store, teacher, student, test, **SIZES)
    assert again.cached and again.key == found.key


def test_the_package_runs_without_torch(deployed, bare, tmp_path):
    store, teacher, _, test, found = deployed
    package = deploy.copy_package(found, tmp_path / "package")
    # The teacher as the packed model: it has learned something, so that its labels can be right or wrong.
    (package / "model.onnx").write_bytes(form(store, found, "teacher").read_bytes())
    model, few = training.load_trained(teacher), test.sample(20, 0)
    seen = task_of(test).prepare(few.images)
    torch.testing.assert_close(seen, to_float(few.images), atol=1e-6, rtol=0)
    expected = [test.classes[k] for k in training.predict(model, few.images).argmax(1).tolist()]
    assert len(set(expected)) > 5
    for i, image in enumerate(few.images):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{i}.png")
    done = run_without_torch(bare, package, *[str(tmp_path / f"{i}.png") for i in range(20)])
    assert [line.split("\t")[1] for line in done.stdout.splitlines()] == expected, done.stderr
    assert [lines[0][0] for lines in deploy.predict_with(package, few.images)] == expected


def test_the_example_to_copy_has_at_most_30_lines_and_prints_the_same(
    deployed, detected, bare, tmp_path
):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(tmp_path / "one.png")
    for made in (deployed[4], detected[3]):
        package = deploy.copy_package(made, tmp_path / made.key)
        assert len((package / "example.py").read_text().splitlines()) <= 30
        if made is detected[3]:  # a detector that is sure of everything
            source = (package / "example.py").read_text()
            (package / "example.py").write_text(source.replace(">= 0.5", ">= 0"))
        code = "sys.argv = sys.argv[1:]\nsys.path.insert(0, '.')  # as `python example.py` has it\n"
        code += "runpy.run_path(sys.argv[0], run_name='__main__')"
        done = bare_python(bare, package, code, package / "example.py", tmp_path / "one.png")
        assert done.returncode == 0, done.stderr
        own = run_without_torch(bare, package, "--threshold", "0", tmp_path / "one.png")
        meant = [line.split("\t")[1:] for line in own.stdout.splitlines()]
        shown = [line.rstrip().split("\t") for line in done.stdout.splitlines()]
        assert len(shown) == len(meant) > 0
        for line in shown if made is detected[3] else ():
            middle, size = np.split(np.array(line[2:], float), 2)
            corners = np.concatenate([middle - size / 2, middle + size / 2])
            near = [m for m in meant if m[:2] == line[:2]]
            assert min(abs(np.array(m[2:], float) - corners).max() for m in near) < 0.2
        if made is deployed[4]:
            assert [line[0] for line in shown] == [line[0] for line in meant]
            assert abs(float(shown[0][1]) - float(meant[0][1])) < 2e-4


def test_odd_images_are_read_and_what_is_no_image_is_reported(deployed, detected, bare, tmp_path):
    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8))
    odd = {mode: tmp_path / f"{mode}.png" for mode in ("L", "P", "RGBA", "1")}
    odd["CMYK"] = tmp_path / "CMYK.jpg"
    for mode, path in odd.items():
        colours.convert(mode).save(path)
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.png").write_bytes(odd["L"].read_bytes()[:60])
    for made, options in ((deployed[4], ()), (detected[3], ("--threshold", "0"))):
        package = made.path / "package"
        done = run_without_torch(bare, package, *options, *odd.values())
        assert done.returncode == 0, done.stderr
        assert {line.split("\t")[0] for line in done.stdout.splitlines()} == set(
            map(str, odd.values())
        )
        for name in ("text.png", "cut.png", "absent.png"):
            done = run_without_torch(bare, package, tmp_path / name)
            assert done.returncode == 1 and f"{name} cannot be read as an image" in done.stderr
            assert "Traceback" not in done.stderr
        assert run_without_torch(bare, package).returncode == 2  # no image named: the usage


def test_the_package_of_a_detector_knows_how_whole_frames_were_resized(detected):
    task, student = Detection(detected[4]), detected[2]
    assert "shortest" not in task.preprocessing(student)
    frames = {"name": "folder", "shortest": 800}
    settings = student.settings | {"test": frames}
    student = replace(student, manifest={**student.manifest, "settings": settings})
    assert task.preprocessing(student) == {**Detection.preprocess, "shortest": 800}


def test_a_broken_package_says_so(deployed, tmp_path):
    package = deploy.copy_package(deployed[4], tmp_path / "package")
    (package / "model.onnx").write_bytes(b"no model")
    with pytest.raises(WorkbenchError, match="the package does not run"):
        deploy.predict_with(package, deployed[3].images[:1])


def test_the_student_is_the_reports_and_the_profiles_own_only_where_asked(
    deployed, tmp_path, monkeypatch
):
    store, teacher, student, _, _ = deployed
    (tmp_path / "metrics").mkdir()
    report = tmp_path / "metrics" / "30_classification_kd.json"
    artifacts.save_json(report, {"metrics": {"student_synthetic_key": student.key}})
    empty = tmp_path / "an earlier day"
    found, missing = deploy.find_student(store, [empty, tmp_path], "quick")
    assert found.key == student.key and not missing
    assert deploy.teacher_of(store, student).key == teacher.key
    asked = []
    monkeypatch.setattr(
        "dfkd_lib.distill.study.Study.student",
        lambda study, source: asked.append((study.config, source)),
    )
    artifacts.save_json(report, {"metrics": {"student_synthetic_key": "student_synthetic-0"}})
    for out, got in (
        (tmp_path, "student_synthetic-0, which is not in"),
        (tmp_path / "x", "no such"),
    ):
        with pytest.raises(WorkbenchError, match=f"(?s)no classification student.*{got}"):
            deploy.find_student(store, [out], "smoke")
    assert not asked
    _, missing = deploy.find_student(store, [tmp_path], "smoke", fallback=True)
    assert "the preset's own" in missing
    ((config, source),) = asked
    assert source == "synthetic" and config == presets.load("classification", "smoke")
    with pytest.raises(WorkbenchError, match="no preset 'slow'"):
        deploy.find_student(store, [tmp_path / "nothing"], "slow")


def test_what_cannot_be_deployed_is_refused(deployed, monkeypatch):
    store, teacher, student, test, _ = deployed
    with pytest.raises(WorkbenchError, match="there is no quantization"):
        deploy.deploy_student(store, teacher, student, test, int8="int4")
    with pytest.raises(WorkbenchError, match="no synthetic images"):
        deploy.deploy_student(store, teacher, teacher, test)
    with pytest.raises(WorkbenchError, match="class names differ"):
        deploy.deploy_student(store, teacher, student, replace(test, classes=tuple("abcdefghij")))
    other = teacher.manifest["settings"] | {"classes": list("9876543210")}
    other = replace(teacher, manifest={**teacher.manifest, "settings": other})
    with pytest.raises(WorkbenchError, match="in another order"):
        deploy.deploy_student(store, other, student, test)
    monkeypatch.setattr(
        "dfkd_lib.deploy.stage.largest_difference", lambda model, session, images: 2 * PARITY
    )
    with pytest.raises(WorkbenchError, match="is another model"):
        deploy.deploy_student(store, teacher, student, test, **SIZES | {"parity_images": 41})
    with pytest.raises(WorkbenchError, match="no teacher of the student"):
        deploy.teacher_of(store, teacher)
    with pytest.raises(WorkbenchError, match="no teacher of the student"):
        deploy.teacher_of(store, replace(student, manifest={**student.manifest, "parents": []}))


@pytest.fixture(scope="module")
def detected(tmp_path_factory):
    """(store, teacher, student, deployment, test scenes) of a detector."""
    store = Store(tmp_path_factory.mktemp("store"))
    source = SceneConfig(size=48, train_scenes=16, test_scenes=12)
    train, test = source.scenes("train"), source.scenes("test")
    config = DetectorConfig(model="detr_nano", epochs=1, batch_size=8, lr=1e-3, augment=0.0)
    step = detection.detection_step(detection.DetectionWeights(giou=2.0))
    teacher = detection.train(store, config, step, train, test)
    student = detection.train(store, config, step, train, test, teacher, seed=1)
    test, known = deploy.scenes_of(student), deploy.teacher_of(store, student)
    with pytest.MonkeyPatch.context() as patch:
        small_batches(patch)
        found = deploy.deploy_student(store, known, student, test, "static", **SIZES)
    return store, teacher, student, found, test


def test_a_detector_keeps_its_logits_and_boxes(detected):
    _, teacher, student, found, test = detected
    scenes = SceneConfig(size=48, test_scenes=12).scenes("test").load()
    assert test.fingerprint == scenes.fingerprint
    assert max(found.metrics["parity"].values()) <= PARITY and found.metrics["kind"] == "detection"
    rows = {row["kind"]: row for row in found.metrics["rows"]}
    assert list(rows) == ["pytorch", "teacher", "student", "dynamic", "static"]
    assert rows["pytorch"]["AP"] == pytest.approx(teacher.metrics["AP"], abs=1e-5)
    assert rows["student"]["AP"] == pytest.approx(student.metrics["AP"], abs=0.01)
    # Dynamic int8 leaves the convolutions in float, static int8 does not.
    assert rows["static"]["bytes"] < rows["dynamic"]["bytes"] < rows["student"]["bytes"]
    assert len(deploy.deployment_table(found)) == 5 and "AP50 (%)" in deploy.deployment_table(found)


def test_scenes_drawn_for_a_student_calibrate_it(detected):
    store, _, student, _, test = detected
    task, pixels = task_of(test), torch.full((5, 3, 48, 48), 7, dtype=torch.uint8)
    drawn = store.get_or_make(
        "drawn", {}, lambda work: artifacts.save_tensors(work / SCENES, {"pixels": pixels})
    )
    of_drawn = replace(student, manifest={**student.manifest, "parents": [drawn.key]})
    assert torch.equal(task.calibration(store, of_drawn, 4), pixels[:4])
    generated = generate_scenes(4, 48, 0, "synthetic").pixels
    assert torch.equal(task.calibration(store, student, 4), generated)


def test_the_detection_package_finds_what_the_library_finds(detected, tmp_path):
    store, _, student, found, test = detected
    package = deploy.copy_package(found, tmp_path / "package")
    (package / "model.onnx").write_bytes(form(store, found, "student").read_bytes())
    few = test.subset(range(4))
    expected = detections(load_detector(student).cpu(), few, 0.0)
    threshold = float(np.median([one["scores"].max() for one in expected]))
    ours = deploy.objects_found(package, few.pixels, threshold)
    assert sum(len(one["scores"]) for one in ours) >= 2
    for one, want in zip(ours, expected, strict=True):
        sure = want["scores"] >= threshold + 1e-4
        one = {name: values[: sure.sum()] for name, values in one.items()}
        np.testing.assert_allclose(one["scores"], want["scores"][sure], atol=1e-3)
        np.testing.assert_allclose(
            one["boxes"], want["boxes"][sure], atol=0.11 / 48
        )  # 0.1 is printed
        assert list(one["labels"]) == list(want["labels"][sure])


def test_boxes_are_in_pixels_of_the_given_image(detected, bare, tmp_path):
    """An image three times as large, and wider: filled below, its boxes are three times as large."""
    package = detected[3].path / "package"
    small = Image.fromarray(detected[4].pixels[0].permute(1, 2, 0).numpy()).crop((0, 0, 48, 30))
    small.save(tmp_path / "small.png")
    small.resize((144, 90), Image.Resampling.NEAREST).save(tmp_path / "large.png")
    (tmp_path / "drawn").mkdir()
    folder, both = tmp_path / "drawn", (tmp_path / "small.png", tmp_path / "large.png")
    done = run_without_torch(bare, package, "--threshold", "0", "--draw", folder, *both)
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    places = [[line[3:] for line in lines if line[0] == str(path)] for path in both]
    boxes = [np.array(corners, float) for corners in places]
    assert len(boxes[0]) == 10
    np.testing.assert_allclose(np.sort(boxes[0], 0) * 3, np.sort(boxes[1], 0), atol=1.0)
    assert Image.open(tmp_path / "drawn" / "large.png").size == (144, 90)


def test_a_detector_and_a_classifier_are_not_mixed_up(deployed, detected):
    store, teacher, student, test, _ = deployed
    with pytest.raises(WorkbenchError, match="class names differ"):
        deploy.deploy_student(store, teacher, student, detected[4])
    with pytest.raises(WorkbenchError, match="class names differ"):
        deploy.deploy_student(detected[0], detected[1], detected[2], test)
    manifest = detected[2].manifest
    others = {**manifest["settings"], "test": {**manifest["settings"]["test"], "scenes": "0"}}
    changed = replace(detected[2], manifest={**manifest, "settings": others})
    with pytest.raises(WorkbenchError, match="have changed"):
        deploy.scenes_of(changed)
