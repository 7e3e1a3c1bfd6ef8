"""How long a run still takes: by hand, and where a run finds what its parts took before."""

import json
from types import SimpleNamespace

import pytest

from dfkd_lib.pipeline import estimate
from dfkd_lib.pipeline import known as settings
from dfkd_lib.pipeline.estimate import Estimate
from dfkd_lib.pipeline.known import TIMES


def test_what_is_left_is_what_parts_took_before():
    """30 + 60 of what waits, and 20 - 5 of what runs, by two."""
    known = Estimate({"a": 30.0, "b": 60.0, "c": 20.0})
    assert known.left({"a": (), "b": ()}, {"c": 5.0}, 1) == 105
    assert known.left({"a": (), "b": ()}, {"c": 5.0}, 2) == 75  # a and b: b begins as c ends
    assert known.left({"a": ()}, {"b": 40.0, "c": 50.0}, 2) == 30  # c cannot take less than nothing


def test_what_needs_another_waits_for_it():
    """On two workers b (60) and c (20, then a, 30, which needs c), then d (10), which needs both."""
    known = Estimate({"a": 30.0, "b": 60.0, "c": 20.0, "d": 10.0})
    waiting = {"d": ["a", "b"], "a": {"c"}, "b": (), "c": ("made before",)}
    assert known.left(waiting, {}, 2) == 70
    assert known.left(waiting, {}, 1) == 120
    assert known.left({"d": {"a"}, "a": {"b"}}, {"b": 15.0}, 2) == 45 + 30 + 10


def test_a_slower_machine_is_seen_by_its_parts():
    known = Estimate({"20: a": 10.0, "20: b": 30.0, "20: c": 100.0, "20": 50.0})
    known.ended("20: a", 25.0)
    known.ended("20: b", 55.0)
    known.ended("20", 1.0)  # a notebook that found all
    # 40 seconds became 80; beside them 120 of doubt are taken to be as before.
    assert known.left({"20: c": ()}, {}, 2) == pytest.approx(100 * 200 / 160)


def test_of_an_unknown_part_the_mean_is_expected():
    assert Estimate({}).left({"a": ()}, {}, 2) is None
    known = Estimate({"a": 10.0, "b": 30.0})
    known.ended("new", 80.0)
    assert known.left({"other": ()}, {}, 1) == pytest.approx(40)


def test_another_seed_takes_as_long_and_many_unknown_trainings_make_no_guess():
    """A run whose trainings nobody has seen, as after a change of preset, has no time of its first small parts."""
    run = Estimate({"00": 20.0})
    waiting = {f"20: {name}, seed {seed}": () for name in ("GAN", "student") for seed in (0, 1)}
    assert run.left(waiting, {}, 2) is None
    run.ended("20: GAN, seed 0", 100.0)
    run.ended("20: student, seed 0", 30.0)
    left = {"20: GAN, seed 1": (), "20: student, seed 1": ()}
    assert run.left(left, {}, 1) == pytest.approx(100 + 30)
    one_of_four = {**left, "20: GAN, seed 2": (), "30: other": ()}
    assert run.left(one_of_four, {}, 1) == pytest.approx(100 + 30 + 100 + (20 + 100 + 30) / 3)
    assert run.left({**one_of_four, "30: and another": ()}, {}, 1) is None


def test_what_the_shipped_run_took_is_scaled_by_what_machines_multiply(tmp_path, monkeypatch):
    monkeypatch.setattr(estimate, "SHIPPED", tmp_path / "took.json")
    monkeypatch.setattr(estimate, "product_rate", lambda *_: 200.0)
    (tmp_path / "took.json").write_text("{}")
    saved = {"profile": "quick", "took": {"10: a": 2.04, "10": 3.0}}
    (tmp_path / "results.json").write_text(json.dumps(saved))
    estimate.ship([tmp_path])
    monkeypatch.setattr(estimate, "product_rate", lambda *_: 100.0)
    assert estimate.shipped_seconds("quick") == {"10: a": 4.0, "10": 6.0}
    assert estimate.shipped_seconds("smoke") == {}


def test_the_machine_is_measured_by_products_a_second(monkeypatch):
    ticks = iter([0.0, 0.1, 0.2, 0.4])
    monkeypatch.setattr(estimate, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    assert estimate.product_rate(0.3) == pytest.approx(2 / 0.4)


def test_what_runs_took_makes_no_page_anew():
    settings.library_state.cache_clear()
    assert TIMES not in settings.library_state() and "presets.toml" in settings.library_state()
