"""The losses of a student: schedules, weights over training, what the one step computes, what it refuses."""

import json
import math
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from steps import distill_step, train_student

from dfkd_lib import distill, training
from dfkd_lib.attention import attention_probe, logits_and_probe
from dfkd_lib.core import WorkbenchError
from dfkd_lib.core.artifacts import Store
from dfkd_lib.datasets import ImageSet, load_images
from dfkd_lib.distill import (
    KDWeights,
    LiveTeacher,
    StoredTeacher,
    Targets,
    early_tokens,
    teacher_targets,
)
from dfkd_lib.losses import Schedule, kd_loss, patch_probe_loss, read_schedules
from dfkd_lib.models import EarlyAligner, create_model
from dfkd_lib.training import Augmentation, Batch, TrainConfig

LIBRARY = Path(__file__).resolve().parents[2] / "dfkd_lib"


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (20, 1, 28, 28), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels, torch.arange(20) % 10, tuple("0123456789"))


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(6, 1, 28, 28, generator=generator)
    return Batch(images, torch.arange(6), torch.arange(6))


def answers(batch):
    """Targets of no teacher at all, equal at each call."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(len(batch.images), 10, generator=generator)
    return Targets(logits, torch.rand(len(batch.images), 49, generator=generator))


@pytest.mark.parametrize(
    "text, points",
    [
        ("1@0 0@1", {0: 1, 0.25: 0.75, 1: 0}),
        ("0@0.2 1@0.6", {0: 0, 0.2: 0, 0.4: 0.5, 0.6: 1, 0.9: 1}),
        ("1@0.6 0@0.6", {0: 1, 0.59: 1, 0.6: 0, 0.99: 0}),
        ("3@0.5", {0: 3, 0.5: 3, 1: 3}),
    ],
)
def test_a_schedule_is_straight_between_its_points(text, points):
    for share, value in points.items():
        assert Schedule.parse(text)(share) == pytest.approx(value), share


@pytest.mark.parametrize("bad", ["", "2", "1@2", "1@0.5 0@0.2", "-1@0", "nan@0", "one@0", "1@0@1"])
def test_impossible_schedules(bad):
    with pytest.raises(WorkbenchError, match="value@share"):
        Schedule.parse(bad)


@pytest.mark.parametrize("bad", ["kd 1@0", "kd: 1@0; kd: 0@0", "dk: 1@0"])
def test_schedules_name_losses_once(bad):
    with pytest.raises(WorkbenchError, match="names no loss"):
        read_schedules(bad, ("kd", "ce"))


def test_weights_change_over_training():
    weights = KDWeights(kd=2, ce=1, patch=3, schedules="kd: 1@0 0@1; patch: 0@0 0@1")
    assert {name: curve(0.25) for name, curve in weights.curves.items()} == {"kd": 1.5, "ce": 1.0}
    assert weights.used == ["kd", "ce"] and weights.needs == set()
    assert KDWeights(early=1).needs == {"probe", "early features"}
    with pytest.raises(WorkbenchError, match="0 throughout"):
        KDWeights(kd=1, ce=0, patch=0, schedules="kd: 0@0 0@1")


@pytest.mark.parametrize(
    "bad", [{"kd": 0, "ce": 0, "patch": 0}, {"early": math.nan}, {"schedules": "kd"}]
)
def test_impossible_weights(bad):
    with pytest.raises(WorkbenchError) as error:
        KDWeights(**bad)
    assert error.value.where == ("schedules" if "schedules" in bad else "KDWeights")


@pytest.mark.parametrize(
    "weights, left_out",
    [
        ({"kd": 1, "ce": 0, "hard": 2, "patch": 0}, {"KD": "kd", "hard label": "hard"}),
        ({"kd": 1, "ce": 0, "patch": 0}, {}),
    ],
)
def test_drop_one_leaves_out_each_loss_in_use(weights, left_out):
    every = KDWeights(**weights)
    without = {f"without {label}": every.replace(**{k: 0}) for label, k in left_out.items()}
    assert distill.drop_one(every) == {"all": every, **without}


def test_the_step_follows_the_schedule(batch):
    torch.manual_seed(0)
    student = create_model("vit_mnist_smoke")
    weights = KDWeights(kd=2, ce=1, patch=3, schedules="kd: 1@0 0@1; ce: 0@0 1@1")
    step = distill_step(student, answers, weights)
    for progress in (0.0, 0.25, 0.75):
        found = step(batch, progress)
        by_hand = 2 * (1 - progress) * found["kd"] + progress * found["ce"] + 3 * found["patch"]
        assert found["loss"].item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_every_loss_of_a_two_headed_student_by_hand(batch):
    torch.manual_seed(0)
    student = create_model("deit_small_28").train()
    weights = KDWeights(kd=1, ce=2, patch=3, hard=4, soft=5, temperature=2.0)
    found, target = distill_step(student, answers, weights)(batch, 0.0), answers(batch)
    (logits, distilled), probe = logits_and_probe(student, batch.images)
    expected = {
        "kd": kd_loss(logits, target.logits, 2.0),
        "ce": F.cross_entropy(logits, batch.labels),
        "patch": patch_probe_loss(probe, target.probe),
        "hard": F.cross_entropy(distilled, target.logits.argmax(1)),
        "soft": kd_loss(distilled, target.logits, 2.0),
    }
    expected["loss"] = sum(weights[name] * value for name, value in expected.items())
    torch.testing.assert_close(found, expected)
    # A loss that is not in use is not computed, and so no part of the student's key.
    alone = distill_step(student, answers, KDWeights(kd=0, ce=1, patch=0))(batch, 0.0)
    assert list(alone) == ["loss", "ce"]


@pytest.mark.parametrize(
    "name, count",
    [("dearkd_small", 16), ("vit_mnist_smoke", 49), ("deit_small_28", 16), ("titn_small", 16)],
)
def test_early_tokens_are_the_patches_of_an_early_block(batch, name, count):
    torch.manual_seed(0)
    student = create_model(name)
    with early_tokens(student) as caught:
        student(batch.images)
    assert caught[0].shape == (6, count, student.embed_dim) and len(caught) == 1
    if name == "dearkd_small":
        torch.testing.assert_close(caught[0], student.forward_early(batch.images))
    student(batch.images)
    assert len(caught) == 1  # the hook is gone
    aligner, weights = EarlyAligner(student.embed_dim, 5), KDWeights(kd=0, patch=0, early=1)

    def teacher(batch):
        return answers(batch)._replace(early=torch.zeros(6, 5, 14, 14))

    distill_step(student, teacher, weights, aligner)(batch, 0.0)["early"].backward()
    tokens = [p for n, p in student.named_parameters() if "patch_embed" in n or "pixel_embed" in n]
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in tokens)


@pytest.mark.parametrize(
    "weights, student, teacher, words",
    [
        ({}, "vit_mnist_smoke", "cnn_small", "patch loss cannot be had from this teacher"),
        ({}, "cnn_small", "vit_mnist_smoke", "patch loss cannot be had from this student"),
        ({"hard": 1}, "vit_mnist_smoke", "vit_mnist_smoke", "hard loss .* from this student"),
        ({"soft": 1}, "vit_mnist_smoke", "vit_mnist_smoke", "soft loss .* from this student"),
        ({"early": 1}, "vit_mnist_smoke", "vit_mnist_smoke", "early loss .* from this teacher"),
        ({"patch": 0, "early": 1}, "cnn_small", "cnn_small", "early loss .* from this student"),
    ],
)
def test_a_loss_that_cannot_be_had_is_refused_before_training(
    images, weights, student, teacher, words
):
    models = create_model(student), create_model(teacher).eval()
    with pytest.raises(WorkbenchError, match=words) as error:
        distill.check_losses(KDWeights(**weights), *models, images)
    assert error.value.fix


@pytest.fixture(scope="module")
def digits():
    return load_images("digits", "train").subset(range(300)), load_images("digits", "test")


@pytest.fixture(scope="module")
def teachers(tmp_path_factory, digits):
    store = Store(tmp_path_factory.mktemp("store"))
    config = TrainConfig(epochs=1, batch_size=64, lr=5e-3)
    return store, [
        training.train_teacher(store, name, *digits, config, Augmentation(), overrides=more)
        for name, more in (("vit_mnist_smoke", {"patch_size": 2}), ("cnn_small", {}))
    ]


def student_of(store, teacher, digits, weights, augmentation=Augmentation(), **changes):
    """A tiny student of one epoch."""
    name = changes.pop("model", "vit_mnist_smoke")
    config = TrainConfig(**{"epochs": 1, "batch_size": 64, "lr": 5e-3, **changes})
    how = {"overrides": {"patch_size": 2}, "augmentation": augmentation}
    return train_student(store, "student", name, teacher, *digits, config, weights, **how)


def test_targets_are_kept_in_float16_files_and_made_once(teachers, digits, monkeypatch):
    store, (vit, cnn) = teachers
    monkeypatch.setattr("dfkd_lib.distill.targets.SHARD", 128)
    kept = teacher_targets(store, vit, digits[0])
    files = sorted(p.name for p in kept.path.glob("*.safetensors"))
    assert files == [f"targets-0000{number}.safetensors" for number in range(3)]
    assert all(t.dtype == torch.float16 for name in files for t in kept.tensors(name).values())
    rows = torch.tensor([299, 0, 130])
    found = StoredTeacher(kept)(Batch(None, None, rows))
    model = training.load_trained(vit)
    logits, probe = logits_and_probe(model, digits[0].pixels[rows].float() / 127.5 - 1)
    torch.testing.assert_close(found.logits, logits, atol=1e-2, rtol=0)
    torch.testing.assert_close(found.probe, probe, atol=1e-3, rtol=0)
    assert teacher_targets(store, vit, digits[0]).cached and kept.ledger[0]["images"] == 300
    rough = teacher_targets(store, vit, digits[0], precision="bf16")
    assert rough.key != kept.key
    torch.testing.assert_close(
        StoredTeacher(rough)(Batch(None, None, rows)).logits, logits, atol=0.2, rtol=0.05
    )
    without = teacher_targets(store, cnn, digits[0])
    assert StoredTeacher(without)(Batch(None, None, rows)).probe is None


@pytest.mark.usefixtures("same_code")
def test_broken_off_targets_go_on_with_their_next_file(tmp_path, teachers, digits, monkeypatch):
    _, (vit, _) = teachers
    monkeypatch.setattr("dfkd_lib.distill.targets.SHARD", 100)
    from dfkd_lib.distill import targets

    asked, whole = [], targets.outputs_and_probe

    def broken(model, images, *how):
        asked.append(len(images))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return whole(model, images, *how)

    monkeypatch.setattr(targets, "outputs_and_probe", broken)
    store = Store(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        teacher_targets(store, vit, digits[0])
    kept = teacher_targets(store, vit, digits[0])
    assert asked == [100, 100, 100, 100]  # the first file was not asked for again
    every = Batch(None, None, torch.arange(300))
    unbroken = StoredTeacher(teacher_targets(teachers[0], vit, digits[0]))(every)
    assert torch.equal(StoredTeacher(kept)(every).logits, unbroken.logits)


def test_students_share_targets_unless_their_images_change(teachers, digits):
    store, (vit, _) = teachers
    moved = Augmentation(kind="shift")
    students = [
        student_of(store, vit, digits, KDWeights(kd=kd), augmentation)
        for kd, augmentation in ((1.0, Augmentation()), (2.0, Augmentation()), (1.0, moved))
    ]
    one, two, three = (
        [key for key in student.parents if key.startswith("teacher_targets")]
        for student in students
    )
    assert len(one) == 1 and one == two and not three


def test_chosen_blocks_are_matched_and_part_of_the_key(teachers, digits):
    store, (vit, _) = teachers
    pairs = {"patch_blocks": (0, 1), "teacher_blocks": (1, -1), "block_weights": (1.0, 2.0)}
    plain, made = (
        distill.train(
            store,
            distill.StudentConfig(model="vit_mnist_smoke", epochs=1, batch_size=64, **chosen),
            KDWeights(),
            *digits,
            vit,
            overrides={"patch_size": 2},
        )
        for chosen in ({}, pairs)
    )
    assert made.key != plain.key and "patch_blocks" not in plain.settings
    assert {name: tuple(made.settings[name]) for name in pairs} == pairs
    (kept,) = (store.find(key) for key in made.parents if key.startswith("teacher_targets"))
    assert kept.settings["blocks"] == [1, -1]
    rows, teacher = torch.tensor([0, 299]), training.load_trained(vit)
    seen = digits[0].pixels[rows].float() / 127.5 - 1
    stored = StoredTeacher(kept)(Batch(None, None, rows)).probe
    live = LiveTeacher(teacher, blocks=(1, -1))(Batch(seen, None, rows)).probe
    each = [attention_probe(teacher, seen, block) for block in (1, -1)]
    torch.testing.assert_close(live, torch.stack(each, 1))
    torch.testing.assert_close(stored, live, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "bad, words",
    [
        ({"patch_blocks": (0, 1)}, "as many teacher_blocks"),
        ({"patch_blocks": (0,), "block_weights": (1.0, 2.0)}, "as many teacher_blocks"),
        ({"block_weights": (0.0,)}, "above 0"),
        ({"patch_blocks": (0,), "compile": True}, "compile=False"),
        ({"patch_blocks": (7,)}, "no such block"),
        ({"teacher_blocks": (-8,)}, "no such block"),
    ],
)
def test_impossible_blocks(teachers, digits, bad, words):
    store, (vit, _) = teachers
    with pytest.raises(WorkbenchError, match=words):
        config = distill.StudentConfig(model="vit_mnist_smoke", **bad)
        distill.train(store, config, KDWeights(), *digits, vit, overrides={"patch_size": 2})


def test_a_cnn_teaches_by_logits_early_features_and_labels(teachers, digits):
    store, (_, cnn) = teachers
    weights = KDWeights(kd=1, patch=0, hard=1, early=1, schedules="early: 1@0 0@1")
    made = student_of(store, cnn, digits, weights, model="dearkd_small", lr=1e-3)
    assert {"kd", "ce", "hard", "early"} <= set(made.json("history.json")[0])
    assert made.settings["weights"] == weights.record() and "soft" not in weights.record()


def test_a_loss_that_diverges_leaves_no_student(teachers, digits):
    store, (vit, _) = teachers
    before = store.keys()
    with pytest.raises(WorkbenchError, match="no longer"):
        student_of(store, vit, digits, KDWeights(kd=1e300), epochs=2, lr=1.0)
    assert not [key for key in set(store.keys()) - set(before) if key.startswith("student")]


# A loss more, as CONTRIBUTING has it: a function, and its entry of LOSSES.

FUNCTION = '''

def similarity_loss(student_logits, teacher_logits):
    """How similar the images of a batch are to each other in the two models (Tung and Mori 2019)."""
    ours, theirs = (F.normalize(x.float(), dim=1) for x in (student_logits, teacher_logits))
    return F.mse_loss(ours @ ours.T, theirs @ theirs.T)
'''
ENTRY = """

def _similarity(student, teacher, batch, temperature):
    return classification.similarity_loss(student.logits, teacher.logits)


LOSSES["similarity"] = Loss("similarity", "similarities in a batch", "Tung 2019", _similarity)
"""
STUDENTS = """
    import json, sys, torch
    from dfkd_lib import ablation, distill, losses, presets, training
    from dfkd_lib.core import Store
    from dfkd_lib.datasets import ImageSet
    from dfkd_lib.reporting import report

    pixels = torch.randint(0, 255, (16, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    images = ImageSet(pixels.to(torch.uint8), torch.arange(16) % 2, ("a", "b"), name="noise")
    store, config = Store(sys.argv[1]), training.TrainConfig(epochs=1, batch_size=8, lr=1e-3)
    teacher = training.train_teacher(store, "vit_mnist_smoke", images, images, config)

    def trained(overrides):
        cfg = presets.load("classification", "smoke", overrides)
        made = distill.train(store, cfg.student, cfg.weights, images, images, teacher)
        return cfg, {"key": made.key, "history": made.json("history.json")}

    found = {"plain": trained("")[1]}
    if "similarity" in losses.LOSSES:
        cfg, found["more"] = trained("similarity_weight=2 schedules='similarity: 1@0 0@1'")
        found["settings"] = cfg.settings()["weights.similarity"].label
        found["rows"] = list(distill.drop_one(cfg.weights))
        found["cells"] = [c.name for c in ablation.read_grid({"grid": {"similarity_weight": [1.0]}})]
        found["titles"] = report.loss_names({"a": [found["more"]["history"]]})["similarity"]
    print(json.dumps(found))
"""


def test_a_new_loss_is_a_function_and_an_entry(tmp_path):
    """It has a weight at every door, trains a student, has its label in tables, and makes no other student anew."""
    copy = tmp_path / "copy"
    shutil.copytree(LIBRARY, copy / "dfkd_lib", ignore=shutil.ignore_patterns("__pycache__"))

    def run():
        command = [sys.executable, "-c", textwrap.dedent(STUDENTS), str(tmp_path / "store")]
        quiet = {**os.environ, "PYTHONPATH": str(copy), "DFKD_PROGRESS": "none"}
        done = subprocess.run(command, cwd=copy, env=quiet, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    before = run()
    for name, text in (("classification.py", FUNCTION), ("table.py", ENTRY)):
        with open(copy / "dfkd_lib" / "losses" / name, "a") as file:
            file.write(text)
    after = run()
    assert after["plain"] == before["plain"]
    assert after["more"]["key"] != after["plain"]["key"]
    assert after["more"]["history"][0]["similarity"] > 0
    assert after["settings"] == "similarity" and "without similarity" in after["rows"]
    assert len(after["cells"]) == 1 and after["titles"] == "similarity (Tung 2019)"
