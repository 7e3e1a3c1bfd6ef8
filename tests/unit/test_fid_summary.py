"""The table of measures on known Gaussians, its intervals, its warnings, the score; and on MNIST through the teacher."""

import json
import math

import pytest
import torch

from dfkd_lib import metrics
from dfkd_lib.core import WorkbenchError
from dfkd_lib.metrics import bootstrap

SIZE, CLASSES = 6, 3


def sample(count, seed, shift=0.0, classes=CLASSES, size=SIZE):
    """Labelled features of `classes` Gaussians 20 apart, with logits that tell them."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    values = torch.randn(count, size, generator=generator) + shift
    values[:, 0] += 20.0 * labels
    logits = torch.nn.functional.one_hot(labels, CLASSES).float() * 30
    return metrics.Features(values, labels, logits, "test")


def chosen(side, which):
    return side._replace(**{k: getattr(side, k)[which] for k in ("values", "labels", "logits")})


def test_score_of_uniform_and_sure_answers():
    assert metrics.score(torch.zeros(8, 5)) == pytest.approx(1)
    assert metrics.score(torch.eye(5) * 100) == pytest.approx(5)
    assert metrics.score(torch.eye(5)[[0, 0, 1, 1]] * 100) == pytest.approx(2)
    # Two images of certainty 0.9 each for its own of two classes: exp(log 2 − H(0.9)).
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    found = metrics.score(torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log())
    assert found == pytest.approx(2 * math.exp(-entropy))


@pytest.mark.parametrize("bad", [torch.zeros(0, 3), torch.zeros(3), torch.full((2, 3), math.nan)])
def test_score_refuses_bad_logits(bad):
    with pytest.raises(WorkbenchError, match="logits"):
        metrics.score(bad)


def test_each_row_is_what_the_single_measures_find():
    real, made = sample(240, 0), sample(180, 1, 0.5)
    found = metrics.measure(real, made, CLASSES, rounds=5)
    assert [row.name for row in found.rows] == ["all", "0", "1", "2"]
    of_one = [chosen(side, side.labels == 1) for side in (real, made)]
    for row, (a, b) in ((found.rows[0], (real, made)), (found.rows[2], of_one)):
        distance = metrics.frechet_distance_from_features(b.values, a.values)
        assert row.distance == pytest.approx(distance)
        assert row.kid == pytest.approx(metrics.kernel_distance(b.values, a.values).mean)
        shares = (row.precision, row.recall, row.density, row.coverage)
        assert shares == metrics.prdc(a.values, b.values)
        assert row.score == pytest.approx(metrics.score(b.logits))
        assert (row.images, row.real_images) == (len(b.values), len(a.values))
        assert row.low < row.distance < row.high


def test_the_interval_holds_the_true_distance_about_as_often_as_it_says():
    true, held = SIZE * 1.0, 0  # equal covariances, means 1 apart in each dimension
    for seed in range(40):
        a, b = (
            torch.randn(2000, SIZE, generator=torch.Generator().manual_seed(2 * seed + i)) + i
            for i in range(2)
        )
        replicates = bootstrap.frechet_replicates(a, b, 40, torch.Generator().manual_seed(seed))
        low, high = bootstrap.spread_interval(
            metrics.frechet_distance_from_features(a, b), replicates
        )
        held += low <= true <= high
        assert high - low < 1
    assert 34 <= held  # of 40; at 95 %, 33 or fewer come by chance once in 5,000 times


def test_the_interval_is_about_the_estimate_though_replicates_lie_above_it():
    a, b = sample(40, 0).values, sample(40, 1).values
    replicates = bootstrap.frechet_replicates(a, b, 60, torch.Generator().manual_seed(0))
    estimate = metrics.frechet_distance_from_features(a, b)
    assert replicates.mean() > estimate
    low, high = bootstrap.spread_interval(estimate, replicates)
    assert low == 0 or (low + high) / 2 == pytest.approx(estimate)
    assert bootstrap.spread_interval(2.0, torch.tensor([1.0, 3.0, 5.0]), 0, 4) == (0, 4)
    assert all(math.isnan(v) for v in bootstrap.spread_interval(2.0, replicates[:1]))


@pytest.mark.parametrize(
    "count_a, count_b, size", [(30, 40, 64), (40, 300, 64), (300, 40, 64), (80, 90, 8)]
)
def test_replicates_are_the_distances_of_resampled_features(count_a, count_b, size, monkeypatch):
    a, b = sample(count_a, 0, size=size).values, sample(count_b, 1, 0.3, size=size).values
    drawn = []
    real = bootstrap.counts

    def remember(*args):
        drawn.append(real(*args))
        return drawn[-1]

    monkeypatch.setattr(bootstrap, "counts", remember)
    (found,) = bootstrap.frechet_replicates(a, b, 1, torch.Generator().manual_seed(0)).tolist()
    again = [
        side.repeat_interleave(weights[0].long(), dim=0)
        for side, weights in zip((a, b), drawn, strict=True)
    ]
    assert [len(side) for side in again] == [count_a, count_b]
    assert found == pytest.approx(metrics.frechet_distance_from_features(*again), rel=1e-6)


def test_rounds_shrink_with_dimensions_but_never_below_twenty():
    assert bootstrap.affordable(100, 20_000, 128, 1e12) == 100
    assert bootstrap.affordable(100, 20_000, 1000, 4e12) == 61  # 4e12 / (4e10 + 2.5e10)
    assert bootstrap.affordable(100, 20_000, 2048, 1e12) == 20
    assert bootstrap.affordable(5, 20_000, 2048, 1e12) == 5


def test_equal_distributions_raise_no_warning():
    found = metrics.measure(sample(300, 0), sample(300, 1), CLASSES, rounds=0)
    assert found.warnings == [] and found.rows[0].coverage > 0.9
    assert found.rows[0].distance < 0.3 and math.isnan(found.rows[0].low)


def test_a_lost_class_is_named_and_not_measured():
    real, made = sample(300, 0), sample(200, 1, classes=2)
    found = metrics.measure(real, made, CLASSES, rounds=2)
    missing, lost = found.warnings
    assert "class 2 (0 made, 100 real)." in missing
    assert "Of 200 made images" in lost and "class 2 (0, not 67)" in lost
    row = found.rows[3]
    assert (row.images, row.real_images) == (0, 100)
    assert math.isnan(row.distance) and math.isnan(row.coverage)


def test_images_labelled_well_but_all_of_one_class_collapse():
    real, made = sample(300, 0), sample(300, 1, classes=1)
    made = made._replace(labels=torch.arange(300) % CLASSES)
    (warning,) = metrics.measure(real, made, CLASSES, 0).warnings
    assert "class 1 (0, not 100), class 2 (0, not 100)" in warning
    assert metrics.measure(real, made._replace(logits=None), CLASSES, 0).warnings == []


def test_repeated_and_copied_images_are_reported():
    real, made = sample(300, 0), sample(300, 1)
    noise = torch.randn(300, SIZE, generator=torch.Generator().manual_seed(2)) * 1e-4
    repeated = made._replace(values=made.values[:30].repeat(10, 1) + noise)
    (warning,) = metrics.measure(real, repeated, CLASSES, 0).warnings
    assert "100.0% of 300" in warning and "repeats itself" in warning
    copied = real._replace(values=real.values + noise)
    (warning,) = metrics.measure(real, copied, CLASSES, 0).warnings
    assert "100.0% of 300" in warning and "memorised" in warning


def test_fewer_images_than_dimensions_are_reported_with_both_numbers():
    found = metrics.measure(sample(90, 0, size=40), sample(90, 1, size=40), CLASSES, rounds=3)
    (warning,) = found.warnings
    assert "the 40 feature dimensions: class 0 (30 made, 30 real), class 1" in warning
    few = metrics.measure(sample(30, 0, size=40), sample(60, 1, size=40), CLASSES, rounds=0)
    assert "all (60 made, 30 real)" in few.warnings[0] and "singular" in few.warnings[0]


def test_table_and_json_and_back():
    found = metrics.measure(sample(120, 0), sample(80, 1, classes=2), CLASSES, rounds=3)
    table = found.table(["a", "b", "c"])
    columns = "class,images,real images,Fréchet distance,low,high,KID,KID std,precision,recall,"
    columns += "density,coverage,score,score low,score high"
    assert ",".join(table.columns) == columns
    assert list(table["class"]) == ["all", "a", "b", "c"]
    assert table["images"].tolist() == [80, 40, 40, 0]
    saved = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    again = metrics.Measures.from_dict(saved)
    assert repr(again) == repr(found)  # NaN equals nothing, its text does


def test_a_seed_gives_the_same_again():
    real, made = sample(120, 0), sample(90, 1)
    first, same, other = (
        metrics.measure(real, made, CLASSES, rounds=4, seed=s).rows[0] for s in (3, 3, 4)
    )
    assert first == same and first.high != other.high and first.distance == other.distance


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda f: f._replace(space="another"), "different spaces"),
        (lambda f: f._replace(values=f.values[:, :3]), "different networks"),
        (lambda f: f._replace(values=f.values.fill_(math.nan)), "not numbers"),
        (lambda f: f._replace(labels=f.labels + 1), "labels or logits do not fit"),
        (lambda f: f._replace(labels=f.labels[1:]), "labels or logits do not fit"),
        (lambda f: f._replace(logits=f.logits[:, :2]), "labels or logits do not fit"),
        (lambda f: chosen(f, slice(5)), "too few images"),
    ],
)
def test_what_cannot_be_measured_is_refused(change, message):
    with pytest.raises(WorkbenchError, match=message):
        metrics.measure(sample(60, 0), change(sample(60, 1)), CLASSES, rounds=0)
    with pytest.raises(WorkbenchError, match=message):
        metrics.measure(change(sample(60, 0)), sample(60, 1), CLASSES, rounds=0)
