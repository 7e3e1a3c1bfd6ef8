"""How long a run still takes: by hand, and where a run finds what its parts took before."""

import json

import pytest

from dfkd_lib.pipeline.estimate import Estimate, known_seconds


def test_nothing_is_said_where_nothing_is_known():
    assert Estimate({}).left(["a"], {}, 2) is None


def test_what_is_left_is_what_parts_took_before():
    """30 + 60 of what waits, and 20 - 5 of what runs, by two."""
    known = Estimate({"a": 30.0, "b": 60.0, "c": 20.0})
    assert known.left(["a", "b"], {"c": 5.0}, 1) == 105
    assert known.left(["a", "b"], {"c": 5.0}, 2) == 60  # b alone takes as long
    assert known.left(["a"], {"b": 40.0, "c": 50.0}, 2) == 30  # c cannot take less than nothing


def test_a_slower_machine_is_seen_by_its_first_parts():
    known = Estimate({"20: a": 10.0, "20: b": 30.0, "20: c": 100.0, "20": 50.0})
    known.ended("20: a", 25.0)
    known.ended("20: b", 55.0)
    known.ended("20", 1.0)  # a notebook that found all
    assert known.left(["20: c"], {}, 2) == pytest.approx(200)


def test_of_an_unknown_part_the_mean_is_expected():
    known = Estimate({"a": 10.0, "b": 30.0})
    known.ended("new", 80.0)
    assert known.left(["other"], {}, 1) == pytest.approx(40)


def test_what_parts_took_is_read_from_a_run_of_the_same_preset(tmp_path):
    assert known_seconds(tmp_path, "quick") == {}
    saved = {"profile": "quick", "took": {"10_a": 2.0, "bad": "x", "none": 0}}
    (tmp_path / "results.json").write_text(json.dumps(saved))
    assert known_seconds(tmp_path, "quick") == {"10_a": 2.0}
    assert known_seconds(tmp_path, "smoke") == {}
    for damaged in ("{", '{"profile": "quick"}', '{"profile": "quick", "took": [1]}'):
        (tmp_path / "results.json").write_text(damaged)
        assert known_seconds(tmp_path, "quick") == {}
