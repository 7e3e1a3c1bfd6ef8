"""Makers compared: budgets as the ledger has them, a line a maker, equal epochs, no maker's failure is the others'."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dfkd_lib import synthesis
from dfkd_lib.core import WorkbenchError, images_behind, purposes_text
from dfkd_lib.core.artifacts import Store
from dfkd_lib.distill import (
    MAKERS,
    ClassificationConfig,
    Study,
    chosen_makers,
    compare_makers,
    comparison,
    equal_epochs,
)
from dfkd_lib.synthesis import guided, measure

TINY = ClassificationConfig().override(
    "teacher=train teacher.model=vit_mnist_smoke teacher.epochs=1 teacher.images=300 test_images=100 train_images=96 "
    "gan.epochs=2 gan.width=16 gan.d_width=4 gan.batch_size=32 gan.lr=1e-3 feature.images=200 feature.epochs=1 fid_images=60 "
    "student.model=vit_mnist_smoke student.epochs=1 student.batch_size=64 student.precision=fp32 claim_images=64 "
    "maker_images=60 generators=2 maker_steps=2 maker_batch=8 maker_precision=fp32 inversion_images=20 inversion.steps=2 "
    "inversion_batch=16 fast_rounds=2 fast_steps=1"
)
PROBES = "96 (class attention probes)"
# What each maker may see, and has read.
ROWS = {
    "vanilla GAN": ("1: real images", f"{PROBES}; 96 (training the discriminator)"),
    "augmented GAN": (
        "1: real images and class probes",
        f"{PROBES}; 96 (training the discriminator)",
    ),
    "class probes": ("2: class probes and a prior of strokes", PROBES),
    "inversion (CNN)": ("3: nothing but a CNN teacher", "0"),
    "inversion (ViT)": ("3: nothing but the teacher", "0"),
    "adversarial": ("3: the teacher and a prior of strokes", "0"),
    "adversarial (no prior)": ("3: nothing but the teacher", "0"),
    "contrastive memory": ("3: nothing but a CNN teacher, and what it made before", "0"),
    "fast": ("3: nothing but a CNN teacher", "0"),
    "pen strokes": ("3: the teacher and a prior of pen strokes", "0"),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def study(store):
    return Study(store, TINY)


@pytest.fixture(scope="module")
def found(study):
    return compare_makers(study, chosen_makers(study))


@pytest.mark.parametrize("source, weight", [("contrastive memory", 0), ("fast", 1)])
def test_a_pair_of_the_fields_cnns(store, source, weight):
    """As the field has it: the CNN teacher itself is inverted, and a CNN learns from the images alone; they may be made
    against such a student, which sees no real image either."""
    config = TINY.override(
        "teacher.model=wrn_16_1 teacher.images=100 student.model=wrn_16_1 weights.patch=0 synthetic_images=20 "
        f"disagreement_weight={weight}"
    )
    study, maker = Study(store, config), config.maker_settings()[source]
    assert (maker.decision_adversarial, maker.student_model) == (weight, "wrn_16_1" * weight)
    student, (_, (made,)) = study.student(source), study.images(source)
    assert (
        made.key in student.parents
        and purposes_text(images_behind(store, made, study.teacher.key)) == "0"
    )
    assert study.inputs(maker).teacher.key == study.teacher.key in student.parents
    assert student.settings["model"] == "wrn_16_1" and student.manifest["data_free"]


def test_figures_of_others_are_those_of_the_methods_page_and_marked():
    table = comparison.published_table()
    assert set(table["whose"]) == {"theirs"} and len(table) == 18
    page = (Path(__file__).parents[2] / "dfkd_lib/METHODS.md").read_text()
    assert all(f"{figure:.2f}" in page for figure in table["student (%)"])


def test_a_student_behind_images_counts_what_it_was_trained_on(study):
    """Inversion that competes with a student of real images is not free of data."""
    student = Study(study.store, TINY.override("student.images=50")).student("real")
    maker = TINY.maker_settings()["inversion (ViT)"].replace(compete=1.0)
    given = replace(study.inputs(maker), student=student)
    artifact = synthesis.make_images(study.store, maker, given, 20)[1]
    read = images_behind(study.store, artifact, given.teacher.key)
    assert purposes_text(read) == "50 (teacher targets); 50 (training)"


def test_what_each_maker_is_given_is_what_it_may_see(study):
    for name, maker in TINY.maker_settings().items():
        given = study.inputs(maker)
        assert (given.real is not None) == name.endswith("GAN") and given.student is None
        assert (given.probes is not None) == (name.endswith("GAN") or name == "class probes")


def test_the_table_has_a_line_for_each_maker(study, found):
    table = comparison.makers_table(study, found)
    assert list(ROWS) == list(MAKERS)
    shown = ["maker", "may see", "real images read"]
    assert table[shown].values.tolist() == [[name, *row] for name, row in ROWS.items()]
    rows = table.set_index("maker")
    assert rows.loc["class probes", "images made"] == 60
    assert rows.loc["inversion (CNN)", "images made"] == 20
    measures = {"Fréchet distance": "frechet", "KID": "kid", "low": "low", "score": "score"}
    for name, row in rows.iterrows():
        inverts = getattr(found[name]["maker"], "batch_norm", 0)
        behind = (study.cnn_teacher if inverts else study.teacher).ledger
        trained_on = max(read["images"] for read in behind if read["purpose"] == "training")
        assert row["with teachers and priors"] == f"{max(trained_on, 96):,}"
        accuracy = 100 * found[name]["student"].metrics["accuracy"]
        low, high = map(float, row["95 % interval"].split(" – "))
        assert row["student (%)"] == pytest.approx(accuracy) and low <= accuracy <= high
        measured = found[name]["measures"].metrics
        assert {k: row[k] for k in measures} == {k: measured[v] for k, v in measures.items()}
        stages = (found[name]["artifact"], found[name]["trained"])
        assert row["seconds"] == round(sum(stage.seconds for stage in stages if stage), 1)
        assert row["Fréchet distance"] > 0
    points = comparison.accuracy_points(table)
    assert (points["accuracy low"] <= points["accuracy"]).all() and len(points) == len(MAKERS)


def test_students_learn_from_the_made_images_alone_for_as_many_steps(found):
    steps = {}
    for name, part in found.items():
        student = part["student"]
        assert student.manifest["data_free"] and part["artifact"].key in student.parents
        assert student.settings["train"] == part["images"].fingerprint
        steps[name] = student.settings["config"]["epochs"] * len(part["images"])
    assert set(steps.values()) == {60}


def test_the_comparison_again_makes_nothing_anew(store, found):
    study = Study(store, TINY)
    again = compare_makers(study, chosen_makers(study))
    assert all(
        again[name][what].key == found[name][what].key and again[name][what].cached
        for name in MAKERS
        for what in ("artifact", "measures", "student")
    )


def diverging(monkeypatch, from_call):
    """The adversarial generator's loss is no number from that call on."""
    honest, calls = guided.logit_distance, []

    def bad(*args):
        calls.append(1)
        return honest(*args) * (float("nan") if len(calls) >= from_call else 1)

    monkeypatch.setattr(guided, "logit_distance", bad)


def test_the_comparison_survives_a_maker_that_diverges(store, found, monkeypatch):
    diverging(monkeypatch, 1)
    makers = "adversarial, inversion (ViT)"
    study = Study(store, TINY.replace(makers=makers, adversarial_weight=0.3))
    survived = compare_makers(study, chosen_makers(study))
    whole, broken = survived["inversion (ViT)"], survived["adversarial"]
    assert list(survived) == ["inversion (ViT)", "adversarial"]
    assert set(broken) == {"maker", "diverged"}
    assert "no longer a finite number" in broken["diverged"]
    assert whole["student"].key == found["inversion (ViT)"]["student"].key
    table = comparison.makers_table(study, survived)
    assert list(table["real images read"]) == ["0", "diverged"]
    assert list(comparison.accuracy_points(table)["maker"]) == ["inversion (ViT)"]
    short = comparison.short_table(table).set_index("maker")
    assert short.loc["inversion (ViT)", "images"] == "20"
    assert re.fullmatch(r"[\d.]+ \[[\d.]+ – [\d.]+\]", short.loc["inversion (ViT)"].iloc[0])
    assert list(short.loc["adversarial"])[:3] == ["–"] * 3
    assert list(short.loc["adversarial"])[4:] == ["diverged", "–"]
    warnings = comparison.warnings_table(survived).groupby("maker")["take care"].apply(list)
    assert warnings["adversarial"] == [broken["diverged"]]
    assert warnings["inversion (ViT)"] == whole["measures"].metrics["warnings"] != []


@pytest.mark.usefixtures("same_code")
def test_the_comparison_uses_the_last_good_epoch_and_reports_it(store, monkeypatch):
    diverging(monkeypatch, 3)
    study = Study(store, TINY.replace(makers="adversarial", adversarial_weight=0.4))
    part = compare_makers(study, chosen_makers(study))["adversarial"]
    assert part["diverged"] == "diverged in epoch 2 of 2; epoch 1 is used"
    assert len(part["images"]) == 60


def test_equal_epochs_pair_both_variants_by_seed(study, monkeypatch):
    monkeypatch.setattr(measure, "CURVE_IMAGES", 100)
    found = equal_epochs(study, [0, 3])
    assert list(found) == ["vanilla", "augmented"]
    for vanilla, augmented, seed in zip(*found.values(), [0, 3], strict=True):
        one, other = vanilla["trained"].settings, augmented["trained"].settings
        assert {k for k in one if one[k] != other[k]} == {"lam"} and one["lam"] == 0
        assert one["seed"] == seed
        for part in (vanilla, augmented):
            assert {row["images"] for row in part["trained"].ledger} == {64}
            measured, curve = part["measures"].metrics, part["curve"].json("curve.json")
            assert measured["images"] == 60 and measured["frechet"] > 0
            assert [row["epoch"] for row in curve] == [1, 2]
            assert all(row["frechet"] > 0 for row in curve)
    assert found["vanilla"][0]["trained"].key != found["vanilla"][1]["trained"].key


def test_nearest_real_images_are_in_order_of_distance(study, found):
    images = found["class probes"]["images"]
    made, real, distances = comparison.nearest_real(study, images, 4, 3)
    assert real.shape == (4, 3, 1, 28, 28) and distances.shape == (4, 3)
    assert torch.equal(made, images.pixels[:4]) and (distances.diff(dim=1) >= 0).all()
    copies = study.train_set.sample(60)
    _, real, distances = comparison.nearest_real(study, copies, 4, 1)
    assert torch.equal(real[:, 0], copies.pixels[:4]) and distances.abs().max() < 1e-2


@pytest.mark.parametrize("makers", ["diffusion", "augmented GAN, diffusion"])
def test_unknown_makers_are_refused(makers):
    with pytest.raises(WorkbenchError, match="class probes(.|\n)*got: 'diffusion'"):
        TINY.replace(makers=makers)


def test_makers_come_in_the_order_of_the_table(store):
    study = Study(store, TINY.replace(makers="adversarial,vanilla GAN"))
    assert list(chosen_makers(study)) == ["vanilla GAN", "adversarial"]
