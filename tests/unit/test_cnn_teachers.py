"""The CNNs of B and C: shipped ones count what they learned, trained ones are augmented as asked, and keep their keys."""

from dataclasses import replace

import pytest
import torch.nn.functional as F

from dfkd_lib import presets
from dfkd_lib.core import Store, WorkbenchError
from dfkd_lib.datasets import load_images
from dfkd_lib.distill import titn
from dfkd_lib.synthesis import JudgeConfig, train_judge
from dfkd_lib.training import read_shipped

CLASSES = tuple(sorted(presets.CIFAR_CLASSES["cifar10"]))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "artifacts")


@pytest.fixture(scope="module")
def digits():
    return load_images("digits", "train").sample(60), load_images("digits", "test").sample(40)


@pytest.fixture(scope="module")
def photographs(digits):
    """The digits as images of colour with CIFAR-10's sides and classes, still known to the ledger as real."""

    def grown(images):
        pixels = F.interpolate(images.pixels.float(), 32).byte().expand(-1, 3, -1, -1).contiguous()
        return replace(images, pixels=pixels, classes=CLASSES, _fingerprint=None)

    return tuple(map(grown, digits))


SMALL = {"early": "images=60 passes=60", "titn": "images=60 epochs=1"}


def config(method, data="cifar10", words=""):
    small = f"{SMALL[method]} batch_size=30 precision=fp32 augmentation=none"
    return presets.of_preset(method, "quick", data).override(f"{small} {words}")


@pytest.mark.parametrize("method", ["early", "titn"])
def test_the_shipped_cnn_counts_the_real_images_that_it_learned(store, photographs, method):
    settings = config(method)
    teacher = settings.teacher(store, *photographs)
    assert teacher.settings["model"] == settings.feature.architecture == "resnet11"
    counted = {(row["split"], row["purpose"]): row["images"] for row in teacher.ledger}
    assert counted[("cifar10/train", "training")] == 50_000
    assert [split for split, purpose in counted if purpose == "training"] == ["cifar10/train"]
    assert counted[("digits/test", "evaluation")] == 40
    assert titn.schooling(teacher) == "50,000 images, 30 epochs"


def test_students_learn_from_the_shipped_cnn(store, photographs):
    settings = config("early", words="student=dearkd_small baseline=dearkd_baseline_small")
    teacher = settings.teacher(store, *photographs)
    given = (teacher, *photographs, 1.0, 0)
    (student,) = settings.run(store, "DearKD, stage 1 alone", *given)
    assert student.parents == [teacher.key] and {"hard", "early"} <= {
        *student.json("history.json")[0]
    }
    (alone,) = settings.run(store, "convolutional attention", *given)
    assert alone.parents == [] and alone.tensors().keys() == student.tensors().keys() - {
        "dist_token",
        "head_dist.weight",
        "head_dist.bias",
    }


def test_images_of_other_classes_are_refused_a_shipped_cnn(store, digits):
    with pytest.raises(WorkbenchError):
        config("early").teacher(store, *digits)


@pytest.mark.parametrize("method", ["early", "titn"])
def test_a_trained_cnn_is_augmented_as_asked_and_keeps_its_key(store, digits, method):
    small = "feature=train feature.model=cnn_small feature.images=60 feature.epochs=1"
    judge = train_judge(store, JudgeConfig(images=60, epochs=1), *digits)
    same = config(method, "mnist", small).teacher(store, *digits)
    assert same.key == judge.key and same.cached
    other = config(method, "cifar100", small).teacher(store, *digits)
    assert other.settings["augmentation"]["kind"] == "flip" and other.key != judge.key
    rest = [{k: v for k, v in one.settings.items() if k != "augmentation"} for one in (same, other)]
    assert rest[0] == rest[1]


def test_presets_take_the_shipped_cnn_for_cifar10_alone():
    for preset in presets.PRESETS:
        for method in ("early", "titn"):
            found = {one: presets.of_preset(method, preset, one) for one in presets.PROFILES}
            own = (
                method == "titn" and preset == "paper"
            )  # C §4: a VGG16-BN, trained as its students
            shipped = preset != "smoke" and not own
            assert (found["cifar10"].feature.source == "shipped") == shipped
            assert found["mnist"].feature.source == found["cifar100"].feature.source == "train"
            assert found["cifar100"].feature.augmentation == "flip"
            assert found["mnist"].feature.augmentation == "shift"
            if shipped:
                record = read_shipped(found["cifar10"].feature.shipped)[1]
                assert record["model"] == found["cifar10"].feature.model
                assert {*record["classes"]} == presets.CIFAR_CLASSES["cifar10"]
