"""The bench of makers: budgets as the ledger has them, one row a maker, equal epochs, no maker's failure is the others'."""

import json
from dataclasses import fields, replace

import pytest
import torch

from dfkd_lib import synthesis
from dfkd_lib.core import WorkbenchError
from dfkd_lib.core.artifacts import Store
from dfkd_lib.distill import comparison as laboratory
from dfkd_lib.distill.comparison import MAKERS, MakerRecipe
from dfkd_lib.synthesis import guided, measure

TINY = MakerRecipe(
    teacher="train",
    teacher_model="vit_mnist_smoke",
    teacher_epochs=1,
    teacher_images=300,
    test_images=100,
    train_images=96,
    gan_epochs=2,
    gan_width=16,
    d_width=4,
    feature_images=200,
    feature_epochs=1,
    fid_images=60,
    student_model="vit_mnist_smoke",
    student_epochs=1,
    claim_images=64,
    maker_images=60,
    generators=2,
    maker_steps=2,
    maker_batch=8,
    inversion_images=20,
    inversion_steps=2,
    inversion_batch=16,
)
GAN_READS = {"training the discriminator": 96, "class attention probes": 96}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def space(store):
    return TINY.feature_space(store)


@pytest.fixture(scope="module")
def found(store, space):
    return TINY.bench(store, space)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("vanilla GAN", GAN_READS),
        ("augmented GAN", GAN_READS),
        ("class probes", {"class attention probes": 96}),
        ("inversion (CNN)", {}),
        ("inversion (ViT)", {}),
        ("adversarial", {}),
    ],
)
def test_real_images_behind_each_makers_images(store, found, name, expected):
    teacher = TINY.given_to(store, name).teacher.key
    assert laboratory.real_images_read(store, found[name]["kept"], teacher) == expected


def test_a_student_behind_images_counts_what_it_was_trained_on(store):
    """Inversion that competes with a student of real images is not free of data."""
    student = replace(TINY, student_images=50, student_epochs=1).student(store, "real")
    given = replace(TINY.given_to(store, "inversion (ViT)"), student=student)
    kept = synthesis.make_images(
        store, replace(TINY.maker("inversion (ViT)"), compete=1.0), given, 20
    )[1]
    assert laboratory.real_images_read(store, kept, given.teacher.key) == {
        "training": 50,
        "teacher targets": 50,
    }


def test_what_each_maker_is_given_is_its_budget(store):
    for name in MAKERS:
        given = TINY.given_to(store, name)
        assert (given.real is not None) == name.endswith("GAN") and given.student is None
        assert (given.probes is not None) == (name.endswith("GAN") or name == "class probes")


def test_the_table_has_a_row_for_each_maker(store, found):
    table = laboratory.bench_table(store, found, TINY)
    assert list(table["maker"]) == list(MAKERS) and list(table["may see"]) == list(MAKERS.values())
    assert list(table.columns) == [
        "maker",
        "may see",
        "real images read",
        "images made",
        "images measured",
        "Fréchet distance",
        "low",
        "high",
        "KID",
        "KID std",
        "precision",
        "recall",
        "density",
        "coverage",
        "score",
        "student (%)",
        "95 % interval",
        "seconds",
    ]
    rows = table.set_index("maker")
    assert rows.loc["class probes", "real images read"] == "96 (class attention probes)"
    assert rows.loc["adversarial", "real images read"] == "0"
    assert (
        rows.loc["class probes", "images made"] == 60
        and rows.loc["inversion (CNN)", "images made"] == 20
    )
    for name, row in rows.iterrows():
        accuracy = 100 * found[name]["student"].metrics["accuracy"]
        low, high = map(float, row["95 % interval"].split(" – "))
        assert row["student (%)"] == pytest.approx(accuracy) and low <= accuracy <= high
        assert row["Fréchet distance"] == found[name]["measures"].metrics["frechet"] > 0
    points = laboratory.accuracy_points(table)
    assert (points["accuracy low"] <= points["accuracy"]).all() and len(points) == 6


def test_students_learn_from_the_made_images_alone_for_as_many_steps(store, found):
    steps = {}
    for name, part in found.items():
        student = part["student"]
        assert student.manifest["data_free"] and part["kept"].key in student.parents
        assert student.settings["train"] == part["images"].fingerprint
        steps[name] = student.settings["config"]["epochs"] * len(part["images"])
    assert set(steps.values()) == {60}


def test_the_bench_again_makes_nothing_anew(store, space, found):
    again = TINY.bench(store, space)
    assert all(
        again[name][what].key == found[name][what].key and again[name][what].cached
        for name in MAKERS
        for what in ("kept", "measures", "student")
    )


def test_the_bench_survives_a_maker_that_diverges(store, space, found, monkeypatch):
    honest = guided.logit_distance
    monkeypatch.setattr(guided, "logit_distance", lambda *args: honest(*args) * float("nan"))
    recipe = replace(TINY, makers="adversarial, inversion (ViT)", adversarial_weight=0.3)
    survived = recipe.bench(store, space)
    assert list(survived) == ["inversion (ViT)", "adversarial"] and set(
        survived["adversarial"]
    ) == {"diverged"}
    assert "no longer a finite number" in survived["adversarial"]["diverged"]
    assert survived["inversion (ViT)"]["student"].key == found["inversion (ViT)"]["student"].key
    table = laboratory.bench_table(store, survived, recipe)
    assert list(table["real images read"]) == ["0", "diverged"]
    assert list(laboratory.accuracy_points(table)["maker"]) == ["inversion (ViT)"]
    short = laboratory.short_table(table).set_index("maker")
    assert (
        short.loc["inversion (ViT)", "images"] == 20
        and short.loc["inversion (ViT)", "student (%)"] != "–"
    )
    assert list(short.loc["adversarial"])[2:] == ["–"] * 4
    told = laboratory.warnings_table(survived)
    assert "no longer a finite number" in told[told["maker"] == "adversarial"]["take care"].item()
    assert (
        list(told[told["maker"] == "inversion (ViT)"]["take care"])
        == survived["inversion (ViT)"]["measures"].metrics["warnings"]
        != []
    )


def test_the_bench_uses_and_tells_the_last_good_epoch(store, space, monkeypatch):
    honest, calls = guided.logit_distance, []
    monkeypatch.setattr(
        guided,
        "logit_distance",
        lambda *args: honest(*args) * (calls.append(1) or (float("nan") if len(calls) > 2 else 1)),
    )
    part = replace(TINY, makers="adversarial", adversarial_weight=0.4).bench(store, space)[
        "adversarial"
    ]
    assert (
        part["diverged"] == "diverged in epoch 2 of 2; epoch 1 is used"
        and len(part["images"]) == 60
    )


def test_equal_epochs_pair_both_arms_by_seed(store, space, monkeypatch):
    monkeypatch.setattr(measure, "CURVE_IMAGES", 100)
    arms = TINY.equal_epochs(store, [0, 3], space)
    assert list(arms) == ["vanilla", "augmented"] and all(
        len(pairs) == 2 for pairs in arms.values()
    )
    for vanilla, augmented, seed in zip(*arms.values(), [0, 3], strict=True):
        one, other = vanilla["trained"].settings, augmented["trained"].settings
        assert {k for k in one if one[k] != other[k]} == {"lam"} and one["lam"] == 0
        assert one["config"]["seed"] == seed
        for part in (vanilla, augmented):
            assert {row["images"] for row in part["trained"].ledger} == {64}
            assert (
                part["measures"].metrics["images"] == 60 and part["measures"].metrics["frechet"] > 0
            )
            curve = part["curve"].json("curve.json")
            assert [row["epoch"] for row in curve] == [1, 2] and all(
                row["frechet"] > 0 for row in curve
            )
    assert arms["vanilla"][0]["trained"].key != arms["vanilla"][1]["trained"].key


def test_nearest_real_images_are_in_order_of_distance(store, space, found):
    made, real, distances = laboratory.nearest_real(
        store, found["class probes"]["images"], TINY, space, 4, 3
    )
    assert (
        made.shape == (4, 1, 28, 28)
        and real.shape == (4, 3, 1, 28, 28)
        and distances.shape == (4, 3)
    )
    assert (
        torch.equal(made, found["class probes"]["images"].pixels[:4])
        and (distances.diff(dim=1) >= 0).all()
    )
    copies = TINY.train_set.sample(TINY.fid_images)
    _, real, distances = laboratory.nearest_real(store, copies, TINY, space, 4, 1)
    assert torch.equal(real[:, 0], copies.pixels[:4]) and distances.abs().max() < 1e-2


@pytest.mark.parametrize("makers", ["diffusion", "augmented GAN, diffusion", "", " , "])
def test_unknown_makers_are_refused(makers):
    with pytest.raises(WorkbenchError, match="class probes(.|\n)*name makers from the list"):
        _ = replace(TINY, makers=makers).names


def test_makers_come_in_the_order_of_the_table():
    assert replace(TINY, makers="adversarial,vanilla GAN").names == ["vanilla GAN", "adversarial"]


def test_the_bench_from_the_command_line(store, found, tmp_path, capsys):
    own = MakerRecipe()
    changed = [
        f"{f.name}={getattr(TINY, f.name)}"
        for f in fields(TINY)
        if getattr(TINY, f.name) != getattr(own, f.name)
    ]
    laboratory.main(
        [
            "--out",
            str(tmp_path / "out"),
            "--artifacts",
            str(store.root),
            *changed,
            "makers=class probes",
        ]
    )
    assert "class probes" in capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["makers"]["class probes"]["student"] == found["class probes"]["student"].metrics
    assert len((tmp_path / "out" / "makers.csv").read_text().splitlines()) == 2
    with pytest.raises(WorkbenchError, match="no such setting"):
        laboratory.main(["--out", str(tmp_path), "--artifacts", str(store.root), "colour=1"])
    for word, said in (("seed", "no such setting"), ("seed=one", "wrong type")):
        with pytest.raises(WorkbenchError, match=said):
            laboratory.main(["--out", str(tmp_path), "--artifacts", str(store.root), word])
