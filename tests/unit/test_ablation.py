"""Grids are read and checked, cells are run where missing, in one process or several, and found again."""

import json
import multiprocessing
import shutil
import time
from contextlib import nullcontext

import pytest
import torch

from dfkd_lib import ablation, presets
from dfkd_lib.ablation import Cell, cells, make_cell, read_grid
from dfkd_lib.ablation.grid import DEFAULTS
from dfkd_lib.core import WorkbenchError, processes
from dfkd_lib.core.artifacts import NotMade, Store

# A student that is trained in a second: few real images of MNIST, the shipped teacher.
TINY = ablation.base_of(
    presets.load(
        "ablation",
        "quick",
        "student.model=vit_mnist_smoke student.images=60 real_images=60 student.epochs=1 test_images=100",
    ),
    "real",
)


def test_rows_are_crossed_with_the_grid_and_the_seeds():
    cells = read_grid(
        {
            "base": TINY,
            "rows": {"with KD": {}, "without": {"kd_weight": 0}},
            "grid": {"temperature": [2, 4], "patch_weight": [0.5]},
            "seeds": [3, 1],
        }
    )
    assert [(c.name, c.seed) for c in cells[:3]] == [
        ("with KD, temperature=2, patch_weight=0.5", 3),
        ("with KD, temperature=2, patch_weight=0.5", 1),
        ("with KD, temperature=4, patch_weight=0.5", 3),
    ]
    assert (
        len(cells) == 8
        and cells[0].config().weights.temperature == 2.0
        and cells[-1].config().weights.kd == 0.0
    )
    assert (
        cells[0].source == "real" and "weights.temperature" not in cells[2].settings
    )  # 4 is the default: one key, one student


def test_a_list_is_a_grid_too():
    cells = read_grid(
        [{"name": "hot", "temperature": 8.0}, {"temperature": 1.0, "kd_weight": 2}], TINY, [0, 1]
    )
    assert [c.name for c in cells] == [
        "hot",
        "hot",
        "temperature=1, kd_weight=2",
        "temperature=1, kd_weight=2",
    ]


def test_drop_one_takes_the_weights_of_the_base():
    cells = read_grid({"base": {**TINY, "patch_weight": 0.0}, "drop_one": True})
    assert {c.name: c.settings.get("weights.kd", 1.0) for c in cells} == {
        "all": 1.0,
        "without KD": 0.0,
        "without CE": 1.0,
    }


def test_a_file_says_the_same(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(
        "base: {student_epochs: 2}\nrows:\n  all: {}\n  no labels: {ce_weight: 0}\nseeds: [0, 1]\n"
    )
    assert read_grid(path, TINY) == read_grid(
        {"rows": {"all": {}, "no labels": {"ce_weight": 0}}, "seeds": [0, 1]},
        {**TINY, "student_epochs": 2},
    )


@pytest.mark.parametrize(
    "grid, words",
    [
        ({"base": {"temprature": 2}}, "did you mean 'weights.temperature'"),
        ({"row": {}}, "did you mean 'rows'"),
        ({"grid": {"kd_wieght": [1]}}, "did you mean 'kd_weight'|weights"),
        ({"grid": {"kd_weight": 1}}, "a list of values"),
        ({"base": {"student_model": "vit_mnist_smok"}}, "did you mean 'vit_mnist_smoke'"),
        ({"base": {"source": "class probe"}}, "did you mean 'class probes'"),
        (
            {"base": {"temperature": 0}},
            "'weights.temperature' is impossible|'temperature' is impossible",
        ),
        ({"base": {"temperature": -1.0}}, "'temperature' is impossible"),
        ({"base": {"kd_weight": 0, "ce_weight": 0, "patch_weight": 0}}, "at least one above 0"),
        ({"base": {"student_epochs": 1.5}}, "'epochs' is impossible"),
        ({"base": {"student_images": -5}}, "'images' is impossible"),
        ({"grid": {"temperature": [2, 2]}}, "one name"),
        ({"base": {"student_lr": "fast"}}, "'lr' is impossible"),
        ({"base": {"student_epochs": True}}, "'epochs' is impossible"),
        ({"base": {"student_lr": float("nan")}}, "'lr' is impossible"),
        ({"base": {"student_lr": 0.0}}, "'lr' is impossible"),
        ({"base": {"schedules": "kd: up"}}, "schedule could not be read"),
        ({"base": {"mix": "cut"}}, "did you mean 'cutmix'|'mix' is impossible"),
        ({"seeds": [0, 0]}, "each once"),
        ({"seeds": []}, "at least one"),
        ({"seeds": [-1]}, "seed is no seed"),
        ({"seeds": ["a"]}, "seed is no seed"),
        ({"rows": [1]}, "wrong form"),
        ("text", "cannot be read"),
        (7, "wrong form"),
        ({"rows": {"a": {}, "b": {"temperature": 4.0}}}, "are the same student"),
        ([{"temperature": 2.0}, {"temperature": 2.0}], "one name"),
    ],
)
def test_bad_grids_are_said_before_anything_runs(grid, words):
    with pytest.raises(WorkbenchError, match=words):
        read_grid(grid, TINY)


def test_what_yaml_takes_for_text_is_a_number(tmp_path):
    (tmp_path / "grid.yaml").write_text(
        "base: {student_lr: 1e-3}\nrows: [{name: a, temperature: 4.0000001}, {temperature: 4.0000002}]\n"
        "seeds: 0,1\n"
    )
    cells = read_grid(tmp_path / "grid.yaml", TINY)
    assert cells[0].config().student.lr == 1e-3 and [c.seed for c in cells] == [0, 1, 0, 1]


def test_rows_of_one_adversarial_maker_learn_from_the_same_images():
    cells = read_grid(
        {"grid": {"student_model": ["vit_mnist_smoke", "vit_mnist_small"]}},
        {**TINY, "source": "adversarial"},
    )
    assert len({str(c.config().maker_settings()["adversarial"]) for c in cells}) == 1


def test_an_impossible_row_does_not_stop_the_others(store, ran):
    """Also one that is found out only when the teacher is there, or that fails in no way foreseen."""
    cells = [
        make_cell("no token", {**TINY, "hard_weight": 1.0}, 0),
        make_cell("no data", {**TINY, "data": "nowhere"}, 0),
        make_cell("fine", {**TINY, "temperature": 3.0}, 0),
    ]
    outcomes = ablation.run(cells, store, jobs=1, say=lambda line: None)
    assert [bool(o.artifact) for o in outcomes] == [False, False, True]
    assert "distillation token" in outcomes[0].error and "nowhere" in outcomes[1].error


def test_a_cell_survives_json():
    cell = make_cell("hot", {**TINY, "temperature": 8}, 3)
    assert Cell.of(json.loads(json.dumps(cell.as_dict()))) == cell
    assert set(cell.settings) <= set(DEFAULTS)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def ran(store):
    """(cells, what came of them): three that work, one that diverges, one whose loss cannot be had."""
    cells = [
        *read_grid({"drop_one": True}, TINY)[:2],
        *read_grid([{"name": "other"}], TINY, [1]),
        make_cell("diverges", {**TINY, "kd_weight": 1e300, "student_epochs": 4}, 0),
        make_cell("no token", {**TINY, "hard_weight": 1.0}, 0),
    ]
    said = []
    return cells, ablation.run(cells, store, jobs=1, say=said.append), said


def test_what_fails_does_not_lose_the_others(ran):
    cells, outcomes, said = ran
    assert [o.cell for o in outcomes] == cells and [bool(o.artifact) for o in outcomes] == [
        True,
        True,
        True,
        False,
        False,
    ]
    assert (
        outcomes[3].error.startswith("diverged") and "lower the learning rate" in outcomes[3].error
    )
    assert "distillation token" in outcomes[4].error and said[0] == "5 cells, 0 found, 5 to run"
    assert not any(o.cached for o in outcomes)


def test_a_cell_says_how_its_student_does(ran, store):
    cells, outcomes, _ = ran
    told = outcomes[0].artifact
    student = store.find(told.metrics["student"])
    assert told.metrics["accuracy"] == student.metrics["accuracy"] <= told.metrics["top5"] <= 1
    assert (
        told.json("history.json") == student.json("history.json")
        and told.metrics["train_images"] == 60
    )
    agreement = told.json("agreement.json")
    assert (
        told.metrics["agreement"] == pytest.approx(sum(agreement["cosine"]) / 10)
        and sum(agreement["count"]) == 100
    )
    assert {row["purpose"] for row in told.ledger} == {"evaluation"}


def test_what_ran_is_found_and_what_did_not_is_not(ran, store):
    cells, outcomes, _ = ran
    before = store.keys()
    again = ablation.run(cells[:3], store, say=pytest.fail)
    assert [o.artifact.key for o in again] == [o.artifact.key for o in outcomes[:3]] and all(
        o.cached for o in again
    )
    assert (
        ablation.find(store, make_cell("new", {**TINY, "temperature": 2.5}, 0)) is None
        and store.keys() == before
    )
    with pytest.raises(NotMade):
        store.find_only().get_or_make("stage", {}, lambda work: pytest.fail("made"))


def test_cells_of_one_row_differ_in_their_weights_only_by_seed(ran, store):
    cells, outcomes, _ = ran
    first, other = (store.find(outcomes[i].artifact.metrics["student"]) for i in (0, 2))
    assert (
        first.settings["train"] == other.settings["train"]
        and first.settings["config"]["seed"] != other.settings["config"]["seed"]
    )


def test_several_processes_give_the_same_bits_as_one(tmp_path, ran):
    """At the same number of threads: sums are split by threads, and split otherwise they round otherwise."""
    cells, before = ran[0], torch.get_num_threads()
    several, one = Store(tmp_path / "several"), Store(tmp_path / "one")
    try:
        torch.set_num_threads(2)  # two processes of one thread each
        again = ablation.run([*cells[:2], cells[4]], several, jobs=2, say=lambda line: None)
        torch.set_num_threads(1)
        shared = [key for key in several.keys() if not key.startswith(("student", "ablation"))]
        [
            shutil.copytree(several.root / key, one.root / key) for key in shared
        ]  # what both start from
        alone = ablation.run(cells[:2], one, jobs=1, say=lambda line: None)
    finally:
        torch.set_num_threads(before)
    assert [bool(o.artifact) for o in again] == [
        True,
        True,
        False,
    ] and "distillation token" in again[2].error
    for mine, theirs in zip(again[:2], alone, strict=True):
        assert mine.artifact.key == theirs.artifact.key
        first, second = (
            s.find(mine.artifact.metrics["student"]).path / "model.safetensors"
            for s in (several, one)
        )
        assert first.read_bytes() == second.read_bytes()


def _one(root, cell, say):
    say.put(ablation.run_cell(Store(root), Cell.of(cell)).manifest["made"])


def test_two_processes_that_want_one_key_train_it_once(tmp_path):
    cell = make_cell("one", {**TINY, "student_epochs": 2}, 0)
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    processes = [
        context.Process(target=_one, args=(str(tmp_path), cell.as_dict(), told)) for _ in range(2)
    ]
    [p.start() for p in processes]
    made = [told.get(timeout=120) for _ in processes]
    [p.join() for p in processes]
    assert (
        made[0] == made[1]
        and sum(key.startswith("ablation_cell") for key in Store(tmp_path).keys()) == 1
    )


def test_more_threads_than_cores_ask_no_worker_for_more_than_it_has(store, monkeypatch):
    asked = []
    monkeypatch.setattr(cells, "opened_queue", lambda *args, **options: nullcontext(()))
    monkeypatch.setattr(cells, "_fill", lambda queue, store, wanted, threads: asked.append(threads))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    with pytest.raises(KeyError):  # no answer
        ablation.run([make_cell("a", TINY, 99)], store, jobs=2, say=lambda line: None)
    assert asked == [max(1, processes.cores() // 2)]


def test_an_artifact_of_another_machine_may_come_late(store, monkeypatch):
    answers = iter([None, None, "made"])
    monkeypatch.setattr(Store, "find", lambda self, key: next(answers))
    assert cells._appearing(store, "key", 60) == "made"
    monkeypatch.setattr(Store, "find", lambda self, key: None)
    assert cells._appearing(store, "key", 0) is None


def test_an_impossible_number_of_processes(store, ran):
    with pytest.raises(WorkbenchError, match="number of processes"):
        ablation.run(ran[0], store, jobs=-1)


def test_finding_a_grid_again_takes_no_training(store, ran):
    start = time.perf_counter()
    ablation.run(ran[0][:3], store, say=pytest.fail)
    assert (
        time.perf_counter() - start < sum(o.artifact.metrics["seconds"] for o in ran[1][:3]) + 60
    )  # never a training
