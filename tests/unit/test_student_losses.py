"""The losses of a student: schedules, weights over training, what the one step computes, what it refuses."""

import math

import pytest
import torch
import torch.nn.functional as F
from steps import distill_step, train_student

from dfkd_lib import distill, training
from dfkd_lib.attention import logits_and_probe
from dfkd_lib.core import WorkbenchError
from dfkd_lib.core.artifacts import Store
from dfkd_lib.datasets import ImageSet, load_images
from dfkd_lib.distill import KDWeights
from dfkd_lib.distill.classification import check_losses
from dfkd_lib.distill.targets import StoredTeacher, Targets, early_tokens, teacher_targets
from dfkd_lib.losses import Schedule, kd_loss, patch_probe_loss, read_schedules
from dfkd_lib.models import create_model
from dfkd_lib.models.dearkd import EarlyAligner
from dfkd_lib.training import Augmentation, Batch, TrainConfig, keeps_images


@pytest.fixture
def images():
    pixels = torch.randint(
        0, 256, (20, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return ImageSet(pixels, torch.arange(20) % 10, tuple("0123456789"))


def batch_of(count=6, size=28):
    generator = torch.Generator().manual_seed(1)
    return Batch(
        torch.randn(count, 1, size, size, generator=generator),
        torch.arange(count),
        torch.arange(count),
    )


def told(batch, probe=49):
    generator = torch.Generator().manual_seed(2)
    return Targets(
        torch.randn(len(batch.images), 10, generator=generator),
        torch.rand(len(batch.images), probe, generator=generator) if probe else None,
    )


@pytest.mark.parametrize(
    "text, points",
    [
        ("1@0 0@1", {0: 1, 0.25: 0.75, 1: 0}),
        ("2", None),
        ("0@0.2 1@0.6", {0: 0, 0.2: 0, 0.4: 0.5, 0.6: 1, 0.9: 1}),
        ("1@0.6 0@0.6", {0: 1, 0.59: 1, 0.6: 0, 0.99: 0}),
        ("3@0.5", {0: 3, 0.5: 3, 1: 3}),
    ],
)
def test_a_schedule_is_straight_between_its_points(text, points):
    if points is None:
        with pytest.raises(WorkbenchError, match="schedule could not be read"):
            Schedule.parse(text)
        return
    for share, value in points.items():
        assert Schedule.parse(text)(share) == pytest.approx(value), share


@pytest.mark.parametrize("bad", ["", "1@2", "1@0.5 0@0.2", "-1@0", "nan@0", "one@0", "1@0@1"])
def test_impossible_schedules(bad):
    with pytest.raises(WorkbenchError, match="value@share"):
        Schedule.parse(bad)


@pytest.mark.parametrize("bad", ["kd 1@0", "kd: 1@0; kd: 0@0", "dk: 1@0"])
def test_schedules_name_losses_once(bad):
    with pytest.raises(WorkbenchError, match="names no loss"):
        read_schedules(bad, ("kd", "ce"))


def test_weights_change_over_training():
    weights = KDWeights(kd=2, ce=1, patch=3, schedules="kd: 1@0 0@1; patch: 0@0 0@1")
    assert (
        weights.at(0.25) == {"kd": 1.5, "ce": 1.0}
        and not weights.uses("patch")
        and weights.uses("kd")
    )
    with pytest.raises(WorkbenchError, match="0 throughout"):
        KDWeights(kd=1, ce=0, patch=0, schedules="kd: 0@0 0@1")


def test_drop_one_takes_every_loss_in_use():
    rows = distill.drop_one(KDWeights(kd=0, ce=1, patch=0, hard=1, early=0.5))
    assert list(rows) == ["all", "without CE", "without hard label", "without early features"]
    assert rows["without hard label"] == KDWeights(kd=0, ce=1, patch=0, hard=0, early=0.5)


def test_the_step_follows_the_schedule():
    torch.manual_seed(0)
    student, batch = create_model("vit_mnist_smoke"), batch_of()
    step = distill_step(
        student, told, KDWeights(kd=2, ce=1, patch=3, schedules="kd: 1@0 0@1; ce: 0@0 1@1")
    )
    for progress in (0.0, 0.25, 0.75):
        found = step(batch, progress)
        by_hand = 2 * (1 - progress) * found["kd"] + progress * found["ce"] + 3 * found["patch"]
        assert found["loss"].item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_every_loss_of_a_two_headed_student_by_hand():
    torch.manual_seed(0)
    student, batch = create_model("deit_small_28").train(), batch_of()
    weights = KDWeights(kd=1, ce=2, patch=3, hard=4, soft=5, temperature=2.0)
    found, target = distill_step(student, told, weights)(batch, 0.0), told(batch)
    (logits, distilled), probe = logits_and_probe(student, batch.images)
    expected = {
        "kd": kd_loss(logits, target.logits, 2.0),
        "ce": F.cross_entropy(logits, batch.labels),
        "patch": patch_probe_loss(probe, target.probe),
        "hard": F.cross_entropy(distilled, target.logits.argmax(1)),
        "soft": kd_loss(distilled, target.logits, 2.0),
    }
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    assert found["loss"].item() == pytest.approx(
        sum(getattr(weights, n) * v.item() for n, v in expected.items()), rel=1e-5
    )


@pytest.mark.parametrize(
    "name, count",
    [("dearkd_small", 16), ("vit_mnist_smoke", 49), ("deit_small_28", 16), ("titn_small", 16)],
)
def test_early_tokens_are_the_patches_of_an_early_block(name, count):
    torch.manual_seed(0)
    student, batch = create_model(name), batch_of()
    with early_tokens(student) as caught:
        student(batch.images)
    assert caught[0].shape == (6, count, student.embed_dim) and len(caught) == 1
    if name == "dearkd_small":
        torch.testing.assert_close(caught[0], student.forward_early(batch.images))
    student(batch.images)
    assert len(caught) == 1  # the hook is gone
    aligner = EarlyAligner(student.embed_dim, 5)
    target = lambda b: told(b)._replace(early=torch.zeros(6, 5, 14, 14))  # noqa: E731
    loss = distill_step(student, target, KDWeights(kd=0, ce=1, patch=0, early=1), aligner)(
        batch, 0.0
    )["early"]
    tokens = [p for n, p in student.named_parameters() if "patch_embed" in n or "pixel_embed" in n]
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in tokens)


@pytest.mark.parametrize(
    "weights, student, teacher, words",
    [
        (KDWeights(), "vit_mnist_smoke", "cnn_small", "patch loss cannot be had from this teacher"),
        (KDWeights(), "cnn_small", "vit_mnist_smoke", "patch loss cannot be had from this student"),
        (
            KDWeights(patch=0, hard=1),
            "vit_mnist_smoke",
            "cnn_small",
            "hard loss cannot be had from this student",
        ),
        (
            KDWeights(patch=0, soft=1),
            "vit_mnist_smoke",
            "cnn_small",
            "soft loss cannot be had from this student",
        ),
        (
            KDWeights(early=1),
            "vit_mnist_smoke",
            "vit_mnist_smoke",
            "early loss cannot be had from this teacher",
        ),
        (
            KDWeights(patch=0, early=1),
            "cnn_small",
            "cnn_small",
            "early loss cannot be had from this student",
        ),
    ],
)
def test_a_loss_that_cannot_be_had_is_refused_before_training(
    images, weights, student, teacher, words
):
    with pytest.raises(WorkbenchError, match=words):
        check_losses(weights, create_model(student), create_model(teacher).eval(), images)


def test_possible_losses_are_not_refused(images):
    for weights, student, teacher in (
        (KDWeights(patch=0, hard=1, soft=1, early=1), "dearkd_small", "cnn_small"),
        (KDWeights(hard=1), "deit_small_28", "vit_mnist_smoke"),
    ):
        assert check_losses(weights, create_model(student), create_model(teacher), images) is None


def test_an_early_map_that_is_not_there_is_said(images):
    with pytest.raises(WorkbenchError, match="no such early map"):
        check_losses(
            KDWeights(patch=0, early=1),
            create_model("dearkd_small"),
            create_model("cnn_small"),
            images,
            9,
        )


@pytest.mark.parametrize(
    "augmentation, stays",
    [
        (Augmentation(), True),
        (Augmentation(kind="shift", shift=0), True),
        (Augmentation(kind="shift"), False),
        (Augmentation(mix="cutmix"), False),
        (Augmentation(mix="mixup"), False),
    ],
)
def test_whether_images_stay_is_looked_at(images, augmentation, stays):
    state = torch.get_rng_state()
    assert keeps_images(augmentation, images, batch_size=7) is stays
    assert torch.equal(state, torch.get_rng_state())


def test_an_augmentation_that_changes_one_image_is_found(images):
    class Rare:
        def __call__(self, batch, generator):
            seen = Augmentation()(batch, generator)
            if 17 in batch.rows:
                seen.images[batch.rows == 17] += 0.01
            return seen

    assert not keeps_images(Rare(), images, batch_size=5) and keeps_images(
        Rare(), images.subset(range(17)), batch_size=5
    )


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


def test_targets_are_kept_in_float16_files_and_made_once(teachers, digits, monkeypatch):
    store, (vit, cnn) = teachers
    monkeypatch.setattr("dfkd_lib.distill.targets.SHARD", 128)
    kept = teacher_targets(store, vit, digits[0])
    files = sorted(p.name for p in kept.path.glob("*.safetensors"))
    assert files == [
        "targets-00000.safetensors",
        "targets-00001.safetensors",
        "targets-00002.safetensors",
    ]
    assert all(t.dtype == torch.float16 for name in files for t in kept.tensors(name).values())
    rows = torch.tensor([299, 0, 130])
    found = StoredTeacher(kept)(Batch(None, None, rows))
    model = training.load_trained(vit)
    logits, probe = logits_and_probe(model, digits[0].pixels[rows].float() / 127.5 - 1)
    assert torch.allclose(found.logits, logits, atol=1e-2) and torch.allclose(
        found.probe, probe, atol=1e-3
    )
    assert found.logits.dtype == torch.float32 and teacher_targets(store, vit, digits[0]).cached
    without = teacher_targets(store, cnn, digits[0])
    assert StoredTeacher(without)(Batch(None, None, rows)).probe is None


@pytest.mark.usefixtures("same_code")
def test_broken_off_targets_go_on_with_their_next_file(tmp_path, teachers, digits, monkeypatch):
    _, (vit, _) = teachers
    monkeypatch.setattr("dfkd_lib.distill.targets.SHARD", 100)
    from dfkd_lib.distill import targets

    asked, whole = [], targets.outputs_and_probe

    def broken(model, images, probed):
        asked.append(len(images))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return whole(model, images, probed)

    monkeypatch.setattr(targets, "outputs_and_probe", broken)
    store = Store(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        teacher_targets(store, vit, digits[0])
    kept = teacher_targets(store, vit, digits[0])
    assert asked == [100, 100, 100, 100]  # the first file was not asked for again
    reference = StoredTeacher(teacher_targets(teachers[0], vit, digits[0]))(
        Batch(None, None, torch.arange(300))
    )
    assert torch.equal(
        StoredTeacher(kept)(Batch(None, None, torch.arange(300))).logits, reference.logits
    )


def test_students_share_targets_unless_their_images_change(teachers, digits):
    store, (vit, _) = teachers
    config, common = TrainConfig(epochs=1, batch_size=64, lr=5e-3), {"overrides": {"patch_size": 2}}
    one, two = (
        train_student(
            store, "student", "vit_mnist_smoke", vit, *digits, config, KDWeights(kd=w), **common
        )
        for w in (1.0, 2.0)
    )
    kept = [key for key in one.parents if key.startswith("teacher_targets")]
    assert len(kept) == 1 and kept[0] in two.parents
    moved = train_student(
        store,
        "student",
        "vit_mnist_smoke",
        vit,
        *digits,
        config,
        KDWeights(),
        Augmentation(kind="shift", shift=1),
        **common,
    )
    assert not [key for key in moved.parents if key.startswith("teacher_targets")]


def test_a_cnn_teaches_by_logits_early_features_and_labels(teachers, digits):
    store, (_, cnn) = teachers
    made = train_student(
        store,
        "student",
        "dearkd_small",
        cnn,
        *digits,
        TrainConfig(epochs=1, batch_size=64, lr=1e-3),
        KDWeights(kd=1, patch=0, hard=1, early=1, schedules="early: 1@0 0@1"),
        overrides={"patch_size": 2},
    )
    assert {"kd", "ce", "hard", "soft", "early"} <= set(
        made.json("history.json")[0]
    ) and made.settings["early_stage"] == 1


def test_a_loss_that_diverges_leaves_no_student(teachers, digits):
    store, (vit, _) = teachers
    before = store.keys()
    with pytest.raises(WorkbenchError, match="no longer"):
        train_student(
            store,
            "student",
            "vit_mnist_smoke",
            vit,
            *digits,
            TrainConfig(epochs=2, batch_size=64, lr=1.0),
            KDWeights(kd=1e300),
            overrides={"patch_size": 2},
        )
    assert store.keys() in (
        before,
        sorted([*before, *[k for k in store.keys() if k.startswith("teacher_targets")]]),
    )


@pytest.mark.parametrize(
    "bad", [{"temperature": math.inf}, {"hard": -1.0}, {"early": math.nan}, {"schedules": "kd"}]
)
def test_impossible_weights_of_the_newer_losses(bad):
    with pytest.raises(WorkbenchError):
        KDWeights(**bad)
