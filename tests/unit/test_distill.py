"""Students and teachers: what they learn, what is refused, teachers that ship."""

import dataclasses

import numpy as np
import pytest
import timm
import torch
from hubs import stand_in
from PIL import Image
from steps import train_student

from dfkd_lib import synthesis, training
from dfkd_lib.core import Store, WorkbenchError, artifacts
from dfkd_lib.datasets import DataConfig, ImageSet, load_images, load_splits, to_float
from dfkd_lib.distill import (
    ClassificationConfig,
    KDWeights,
    LiveTeacher,
    StoredTeacher,
    Study,
    Subject,
    open_subject,
    subject,
    teacher_targets,
)
from dfkd_lib.models import WeightsMissing, count_parameters, create_model
from dfkd_lib.training import Augmentation, Batch, TrainConfig, ship_teacher
from dfkd_lib.training import __main__ as command

CONFIG = TrainConfig(epochs=2, batch_size=64, lr=5e-3, seed=1)


@pytest.fixture(scope="module")
def digits():
    return load_images("digits", "train"), load_images("digits", "test")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def teacher(store, digits):
    own, how = (CONFIG.replace(epochs=30, seed=0), Augmentation()), {"patch_size": 2}
    return training.train_teacher(store, "vit_mnist_smoke", *digits, *own, overrides=how)


def test_a_teacher_learns_digits(teacher):
    assert teacher.metrics["accuracy"] > 0.8
    logits, labels = training.test_logits(teacher)
    assert (logits.argmax(1) == labels).float().mean().item() == pytest.approx(
        teacher.metrics["accuracy"], abs=0.01
    )


def test_a_student_learns_from_the_teacher_alone(store, digits, teacher):
    """Unlabelled (all labels 0) images and KD only: what the student knows, it has from the teacher."""
    train, test = digits
    blank = torch.zeros_like(train.labels)
    blind = ImageSet(train.pixels, blank, train.classes, "digits without labels")
    config, weights = CONFIG.replace(epochs=30, seed=2), KDWeights(kd=1, ce=0, patch=0)
    own, how = (teacher, blind, test, config, weights), {"overrides": {"patch_size": 2}}
    student = train_student(store, "student", "vit_mnist_smoke", *own, **how)
    assert student.metrics["accuracy"] > 0.6
    history = student.json("history.json")
    assert history[-1]["kd"] < history[0]["kd"] / 2


def test_stored_targets_equal_live_ones(store, digits, teacher):
    images, rows = digits[0].subset(range(50)), torch.tensor([3, 1, 40])
    batch = Batch(to_float(images.pixels)[rows], images.labels[rows], rows)
    stored = StoredTeacher(teacher_targets(store, teacher, images))(batch)
    live = LiveTeacher(training.load_trained(teacher))(batch)
    # Stored as float16.
    torch.testing.assert_close(stored.logits, live.logits, atol=1e-2, rtol=0)
    torch.testing.assert_close(stored.probe, live.probe, rtol=2**-11, atol=1e-5)


def test_same_seed_same_bits(tmp_path, digits, teacher):
    small, names, how = digits[0].sample(200, 0), ("student", "vit_mnist_smoke"), {"patch_size": 2}
    one, other = (
        train_student(
            Store(tmp_path / name), *names, teacher, small, digits[1], CONFIG, overrides=how
        )
        for name in ("a", "b")
    )
    assert len({(made.path / "model.safetensors").read_bytes() for made in (one, other)}) == 1


def test_teacher_and_images_that_do_not_fit(store, digits, teacher):
    big = ImageSet(
        torch.zeros(10, 1, 12, 12, dtype=torch.uint8), torch.arange(10), digits[0].classes
    )
    with pytest.raises(WorkbenchError, match="does not take these images"):
        train_student(store, "student", "vit_mnist_smoke", teacher, big, digits[1], CONFIG)
    renamed = ImageSet(digits[1].pixels, digits[1].labels, tuple("abcdefghij"))
    with pytest.raises(WorkbenchError, match="class names differ"):
        training.train_teacher(store, "vit_mnist_smoke", digits[0], renamed, CONFIG)
    fewer = ImageSet(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4), tuple("0123"))
    with pytest.raises(WorkbenchError, match="different classes"):
        train_student(store, "student", "vit_mnist_smoke", teacher, fewer, digits[1], CONFIG)


def test_a_model_of_other_classes_is_refused_wherever_labels_meet(store, digits, teacher):
    train, test = (dataclasses.replace(images, classes=tuple("9876543210")) for images in digits)
    space = synthesis.FeatureSpace("judge", teacher, lambda images: images, teacher)
    for refused in (
        lambda: train_student(store, "student", "vit_mnist_smoke", teacher, train, test, CONFIG),
        lambda: training.train_teacher(
            store,
            "vit_mnist_smoke",
            train,
            test,
            CONFIG,
            start=teacher,
            overrides={"patch_size": 2},
        ),
        lambda: training.evaluate(training.load_trained(teacher), test),
        lambda: synthesis.real_features(store, test, space),
        lambda: synthesis.measure_images(store, train, teacher, teacher, space),
    ):
        with pytest.raises(WorkbenchError, match="in another order"):
            refused()
    assert training.load_trained(teacher).classes == digits[0].classes


@pytest.mark.parametrize("lacking, split", [("test", "no bear"), ("train", "also bear")])
def test_splits_that_differ_in_their_classes_are_refused_and_the_fix_works(
    tmp_path, store, lacking, split
):
    image = Image.fromarray(np.full((32, 32, 3), 90, np.uint8))
    for place in ("train/ape", "train/bear", "train/cow", "test/ape", "test/bear", "test/cow"):
        (tmp_path / place).mkdir(parents=True)
        image.save(tmp_path / place / "1.png")
    (tmp_path / lacking / "bear" / "1.png").rename(tmp_path / "aside.png")
    (tmp_path / lacking / "bear").rmdir()
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, depth=1)
    how = {"overrides": {"depth": 1}, "model": "vit_tiny_patch16_224"}
    artifacts.save_tensors(tmp_path / "m.safetensors", model.state_dict())
    artifacts.save_json(tmp_path / "m.json", how)
    config = ClassificationConfig().replace(data=DataConfig(name=str(tmp_path)))

    def opened():
        return open_subject(Study(store, config), str(tmp_path / "m.safetensors"))

    for look in (opened, lambda: load_splits(config.data)):
        with pytest.raises(WorkbenchError, match=f"{split}(.|\n)*images of each class"):
            look()
    (tmp_path / lacking / "bear").mkdir()
    (tmp_path / "aside.png").rename(tmp_path / lacking / "bear" / "1.png")
    assert (
        opened().test_set.classes == load_splits(config.data)[0].classes == ("ape", "bear", "cow")
    )


def test_a_model_without_weights_is_replaced_only_where_that_is_asked_for(
    store, monkeypatch, tmp_path
):
    stand_in(monkeypatch, tmp_path)["online"] = False
    data = DataConfig(name="digits", test_images=100)
    study = Study(store, ClassificationConfig(data=data))
    with pytest.raises(WeightsMissing, match=r"(?s)not on this disk.*fallback=True"):
        open_subject(study, "deit_tiny_patch16_224")
    own = Subject("teacher", None, None, "the teacher", None, ImageSet(*TWO, ("a", "b"), "own"))
    opened = subject.open_subject
    monkeypatch.setattr(
        subject, "open_subject", lambda study, *a, **b: opened(study, *a, **b) if a else own
    )
    found = open_subject(study, "deit_tiny_patch16_224", fallback=True)
    assert found.name == "teacher" and found.about == own.about and not own.missing
    assert "deit_tiny_patch16_224" in found.missing and "in its place" in found.missing


TWO = torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1])


def test_a_class_without_images_is_refused(store, digits):
    with pytest.raises(WorkbenchError, match="class has no image"):
        training.train_teacher(
            store, "vit_mnist_smoke", digits[0].subset(digits[0].labels != 3), digits[1], CONFIG
        )


def test_a_shipped_teacher_comes_back_with_what_it_has_seen(tmp_path, digits, teacher):
    ship_teacher(teacher, "mine", "a command", tmp_path)
    back = training.shipped_teacher(Store(tmp_path / "store"), "mine", digits[1], tmp_path)
    # Kept in float16.
    assert back.metrics["accuracy"] == pytest.approx(teacher.metrics["accuracy"], abs=0.01)
    assert ("digits/train", 1437) in [(row["split"], row["images"]) for row in back.ledger]
    with pytest.raises(WorkbenchError, match="missing"):
        training.shipped_teacher(Store(tmp_path / "store"), "other", digits[1], tmp_path)


def test_a_guide_teaches_what_labels_do_not_say(tmp_path, store, digits, teacher):
    """Wrong labels alone against a guide beside them."""
    train, test = digits
    ship_teacher(teacher, "guide", "a command", tmp_path)
    wrong = dataclasses.replace(train, labels=train.labels.roll(1))
    how = {"model": "vit_mnist_smoke", "epochs": 4, "lr": 5e-3, "augmentation": "none"}
    config = training.TeacherConfig(**how, batch_size=64, precision="fp32")
    accuracies = []
    for guide in ("", str(tmp_path / "guide")):
        made = training.open_teacher(store, config.replace(guide=guide), wrong, test)
        accuracies.append(made.metrics["accuracy"])
        assert {"ce", "kd"} & made.json("history.json")[-1].keys() == {"ce"} | (
            {"kd"} if guide else set()
        )
    assert accuracies[1] > accuracies[0] + 0.1
    seen = training.shipped_teacher(store, str(tmp_path / "guide"), test)
    assert seen.key in made.manifest["parents"]


def test_a_model_with_two_heads_has_a_guide_too(tmp_path, store, digits, teacher):
    """Both steps learn the mean of its logits."""
    model = create_model("deit_small_28", img_size=8, in_chans=1, patch_size=2).train()
    batch = Batch(torch.rand(4, 1, 8, 8), torch.arange(4), torch.arange(4))
    losses = training.guided_step(model, training.load_trained(teacher))(batch, 0.0)
    assert losses["loss"] == losses["ce"] + losses["kd"]
    torch.testing.assert_close(losses["ce"], training.label_step(model)(batch, 0.0)["ce"])


def test_a_teacher_is_trained_and_shipped_by_a_command(tmp_path, monkeypatch, capsys):
    """Settings may stand on both sides of options; with images held out nothing is written."""
    monkeypatch.setattr("dfkd_lib.training.teachers.FOLDER", str(tmp_path))
    monkeypatch.setattr(command, "Store", lambda: Store(tmp_path / "store"))
    shipped = []
    monkeypatch.setattr(command, "ship_teacher", lambda *a, **b: shipped.append((a, b)) or "path")
    words = ["train-teacher", "epochs=1", "--data", "digits", "model=vit_mnist_smoke", "patch=2"]
    with pytest.raises(WorkbenchError, match="patch"):
        command.main(words)
    words[-1] = "lr=0.002"
    command.main([*words, "--validation", "0.2"])
    assert not shipped and "held-out" in capsys.readouterr().out
    command.main(words)
    (made, name, line), more = shipped[0]
    assert name == "vit_mnist_smoke" and line.endswith(" ".join(words)) and not more["inherited"]
    assert made.settings["config"]["lr"] == 0.002 and made.settings["config"]["epochs"] == 1


@pytest.mark.parametrize("name", ["vit_mnist_small", "cnn_cifar10", "vit_cifar10"])
def test_a_shipped_record_is_of_its_weights_and_its_command(name):
    weights, record = training.read_shipped(name)
    model = create_model(record["model"], **record["overrides"])
    tensors = artifacts.load_tensors(weights)
    assert tensors.keys() == model.state_dict().keys() and weights.stat().st_size < 8_000_000
    assert count_parameters(model) == record["parameters"]
    given = record["command"].removeprefix("python -m dfkd_lib.training train-teacher").split()
    config = training.TeacherConfig().override(command.DEFAULTS)
    config = config.override(" ".join(word for word in given if "=" in word))
    assert config.training().as_dict() == record["config"] and config.model == record["model"]


def test_the_teacher_that_ships_is_as_good_as_it_says(store):
    test_set = load_images("mnist", "test")
    shipped = training.shipped_teacher(store, "vit_mnist_small", test_set)
    record = artifacts.resolve("data/teachers/vit_mnist_small.json").read_text()
    assert shipped.metrics["accuracy"] >= 0.97
    assert f"{shipped.metrics['accuracy']:.3f}"[:4] in record


def test_a_checkpoint_of_ones_own_needs_only_its_models_and_classes_names(
    tmp_path, digits, teacher
):
    ship_teacher(teacher, "mine", "a command", tmp_path)
    settings = {name: teacher.settings[name] for name in ("model", "overrides", "classes")}
    for classes in (None, list(reversed(settings["classes"]))):
        artifacts.save_json(tmp_path / "mine.json", settings | {"classes": classes})
        with pytest.raises(WorkbenchError, match="nobody recorded which class|in another order"):
            training.shipped_teacher(Store(tmp_path / "store"), str(tmp_path / "mine"), digits[1])
    artifacts.save_json(tmp_path / "mine.json", settings)
    back = training.shipped_teacher(Store(tmp_path / "store"), str(tmp_path / "mine"), digits[1])
    assert back.metrics["accuracy"] > 0.8 and back.ledger[0]["split"] == "not recorded"
    for text in ("{", "[]", "{}"):
        (tmp_path / "mine.json").write_text(text)
        with pytest.raises(WorkbenchError, match="record beside a checkpoint"):
            training.shipped_teacher(Store(tmp_path / "store"), str(tmp_path / "mine"), digits[1])


def test_made_images_may_have_an_augmentation_of_their_own():
    real = ImageSet(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.arange(2), ("a", "b"))
    made, real = real, dataclasses.replace(real, split="somewhere/train")
    config = ClassificationConfig(student={"augmentation": "shift"})
    assert config.student_for(made) == config.student_for(real) == config.student
    config = config.replace(synthetic_augmentation="affine")
    assert config.student_for(real) == config.student
    assert config.student_for(made) == config.student.replace(augmentation="affine")
    other = config.student.replace(epochs=7)
    assert config.student_for(made, other) == other.replace(augmentation="affine")
