"""Deployment: the same model as ONNX, smaller as int8, and a folder that needs no PyTorch."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dfkd_lib import artifacts, deploy, distill, profiles
from dfkd_lib.artifacts import Store
from dfkd_lib.datasets import load_images, to_float
from dfkd_lib.deploy.export import PARITY
from dfkd_lib.distill import Augmentation, KDWeights
from dfkd_lib.errors import WorkbenchError
from dfkd_lib.models import count_flops, count_parameters, create_model
from dfkd_lib.synthesis import open_images
from dfkd_lib.training import TrainConfig

SIZES = {"calibration_images": 64, "parity_images": 40, "repeats": 3}


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


def test_onnx_gives_the_logits_of_pytorch_at_any_batch(tiny, images):
    model, path = tiny
    session = deploy.open_session(path)
    assert deploy.largest_difference(model, session, images) <= PARITY
    with torch.inference_mode():
        for count in (1, 3, 70):
            logits = session.run(None, {"images": images[:count].numpy()})[0]
            assert logits.shape == (count, 10)
            np.testing.assert_allclose(logits, model(images[:count]).numpy(), atol=PARITY)


def test_the_difference_sees_another_model(tiny, images):
    torch.manual_seed(1)
    other = create_model("vit_mnist_mini_patch7").eval()
    assert deploy.largest_difference(other, deploy.open_session(tiny[1]), images) > PARITY


def test_int8_is_smaller_and_close(tiny, images, tmp_path):
    _, path = tiny
    exact = deploy.run_session(deploy.open_session(path), images)
    made = [deploy.quantize_dynamic(path, tmp_path / "dynamic.onnx"),
            deploy.quantize_static(path, tmp_path / "static.onnx", images[:64])]
    for file in made:
        logits = deploy.run_session(deploy.open_session(file), images)
        assert 0 < np.abs(logits - exact).max() < 0.2 * np.abs(exact).max(), file.name
        assert file.stat().st_size < 0.6 * path.stat().st_size, file.name


class Eigenvalues(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvalsh(x[:, 0])


class Branches(nn.Module):
    """Another function for bright images than for dark ones, which a trace cannot keep."""

    def forward(self, x):
        return (x if x.sum() > 0 else -2 * x).flatten(1)[:, :10]


def test_an_operator_that_onnx_lacks_is_named(tmp_path):
    with pytest.raises(WorkbenchError, match="aten::linalg_eigvalsh"):
        deploy.export_onnx(Eigenvalues(), torch.zeros(2, 1, 4, 4), tmp_path / "model.onnx")


def test_a_lost_branch_shows_as_a_difference(tmp_path):
    path = deploy.export_onnx(Branches(), torch.ones(2, 1, 4, 4), tmp_path / "model.onnx")
    assert deploy.largest_difference(Branches(), deploy.open_session(path), -torch.ones(2, 1, 4, 4)) > 1


def test_operations_of_a_product_and_a_transformer():
    assert count_flops(nn.Linear(8, 5), torch.zeros(3, 8)) == 2 * 8 * 5
    model = create_model("vit_mnist_mini_patch7").eval()
    width, depth, tokens, patches, pixels = 64, 3, 17, 16, 49
    block = 12 * tokens * width**2 + 2 * tokens**2 * width  # qkv, projection, MLP; q Kᵀ and its product with V
    expected = 2 * (depth * block + patches * pixels * width + width * 10)
    assert count_flops(model, torch.zeros(1, 1, 28, 28)) == expected


@pytest.fixture(scope="module")
def deployed(tmp_path_factory):
    """(store, teacher, student, test set, deployment) on digits, the student of images that are not real."""
    store = Store(tmp_path_factory.mktemp("store"))
    train, test = load_images("digits", "train"), load_images("digits", "test")
    teacher = distill.train_teacher(store, "vit_mnist_small", train, test, TrainConfig(6, 64, 1e-3, seed=0), Augmentation(),
                                    overrides={"patch_size": 2})

    def draw(work):
        pixels = torch.randint(0, 256, (200, *train.shape), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
        np.save(work / "images.npy", pixels.numpy())

    drawn = store.get_or_make("synthetic", {"noise": 200, "classes": list(test.classes)}, draw)
    noise = open_images(drawn)
    student = distill.train_student(store, "student_synthetic", "vit_mnist_smoke", teacher, noise, test,
                                    TrainConfig(1, 64, 5e-3, seed=0), KDWeights(1.0, 1.0, 0.0, 4.0), parents=[drawn])
    return store, teacher, student, test, deploy.deploy_student(store, teacher, student, test, **SIZES)


def test_every_variant_is_measured(deployed):
    _, teacher, student, test, found = deployed
    rows = {row["kind"]: row for row in found.metrics["rows"]}
    assert list(rows) == ["pytorch", "teacher", "student", "dynamic", "static"]
    for row in rows.values():
        assert all(row[key] > 0 for key in ("latency_ms", "images_per_second", "times_faster", "bytes", "flops"))
    assert rows["teacher"]["times_faster"] == 1
    assert rows["teacher"]["accuracy"] == pytest.approx(teacher.metrics["accuracy"], abs=1 / len(test))
    assert rows["student"]["accuracy"] == pytest.approx(student.metrics["accuracy"], abs=1 / len(test))
    assert rows["dynamic"]["bytes"] < rows["student"]["bytes"] < rows["teacher"]["bytes"]
    assert rows["teacher"]["parameters"] == count_parameters(distill.load_trained(teacher))
    assert max(found.metrics["parity"].values()) <= PARITY
    assert len(deploy.deployment_table(found)) == 5


def test_deploying_reads_real_images_for_evaluation_alone(deployed):
    _, _, _, test, found = deployed
    assert [(row["split"], row["purpose"], row["images"]) for row in found.ledger] == [
        ("digits/test", "evaluation", len(test))]
    assert found.manifest["data_free"]


def test_a_second_deployment_is_found(deployed):
    store, teacher, student, test, found = deployed
    again = deploy.deploy_student(store, teacher, student, test, **SIZES)
    assert again.cached and again.key == found.key


def test_the_package_runs_without_torch(deployed, tmp_path):
    _, teacher, _, test, found = deployed
    package = deploy.copy_package(found, tmp_path / "package")
    # The teacher as the packed model: it has learned something, so that its labels can be right or wrong.
    (package / "model.onnx").write_bytes((found.path / "teacher.onnx").read_bytes())
    model, few = distill.load_trained(teacher), test.sample(20, 0)
    expected = [test.classes[k] for k in distill.predict(model, few.images).argmax(1).tolist()]
    assert len(set(expected)) > 5
    for i, image in enumerate(few.images):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{i}.png")
    blocked = ("import sys, runpy\nsys.modules['torch'] = None\nsys.modules['dfkd_lib'] = None\n"
               "sys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", blocked, str(package / "predict.py"),
                           *[str(tmp_path / f"{i}.png") for i in range(20)]], capture_output=True, text=True,
                          cwd=tmp_path)
    assert [line.split("\t")[1] for line in done.stdout.splitlines()] == expected, done.stderr
    assert [label for label, _ in deploy.predict_with(package, few.images)] == expected


def test_the_package_sees_what_the_library_sees(deployed, tmp_path):
    """Its preprocessing is `datasets.to_float`, of an image of the right size."""
    package = deployed[4].path / "package"
    sys.path.insert(0, str(package))
    try:
        from predict import load
    finally:
        sys.path.remove(str(package))
    image = deployed[3].images[0]
    Image.fromarray(image[0].numpy()).save(tmp_path / "one.png")
    seen = load(str(tmp_path / "one.png"), json.loads((package / "preprocess.json").read_text()))
    np.testing.assert_allclose(seen, to_float(image).numpy(), atol=1e-6)


def test_a_broken_package_says_so(deployed, tmp_path):
    package = deploy.copy_package(deployed[4], tmp_path / "package")
    (package / "model.onnx").write_bytes(b"no model")
    with pytest.raises(WorkbenchError, match="the package does not run"):
        deploy.predict_with(package, deployed[3].images[:1])


def test_the_student_is_the_reports_or_the_profiles_own(deployed, tmp_path, monkeypatch):
    store, teacher, student, _, _ = deployed
    (tmp_path / "metrics").mkdir()
    report = tmp_path / "metrics" / "30_classification_kd.json"
    artifacts.save_json(report, {"metrics": {"student_synthetic_key": student.key}})
    assert deploy.find_student(store, tmp_path, "quick").key == student.key
    assert deploy.teacher_of(store, student).key == teacher.key
    asked = []
    monkeypatch.setattr("dfkd_lib.recipes.ClassificationRecipe.student",
                        lambda recipe, store, source: asked.append((recipe, source)))
    artifacts.save_json(report, {"metrics": {"student_synthetic_key": "student_synthetic-0"}})
    deploy.find_student(store, tmp_path, "smoke")
    (recipe, source), = asked
    assert source == "synthetic" and recipe.student_model == profiles.SMOKE["30_classification_kd"]["student_model"]
    with pytest.raises(WorkbenchError, match="no such profile"):
        deploy.find_student(store, tmp_path / "nothing", "slow")


def test_what_cannot_be_deployed_is_refused(deployed, monkeypatch):
    store, teacher, student, test, _ = deployed
    with pytest.raises(WorkbenchError, match="no such quantization"):
        deploy.deploy_student(store, teacher, student, test, int8="int4")
    with pytest.raises(WorkbenchError, match="no synthetic images"):
        deploy.deploy_student(store, teacher, teacher, test)
    with pytest.raises(WorkbenchError, match="other classes"):
        deploy.deploy_student(store, teacher, student, replace(test, classes=tuple("abcdefghij")))
    monkeypatch.setattr("dfkd_lib.deploy.stage.largest_difference", lambda model, session, images: 2 * PARITY)
    with pytest.raises(WorkbenchError, match="ONNX form is another model"):
        deploy.deploy_student(store, teacher, student, test, **SIZES | {"repeats": 4})
    with pytest.raises(WorkbenchError, match="teacher is not in the store"):
        deploy.teacher_of(store, teacher)
