"""Grids are read and checked, cells are run where missing, in one process or several, and found again."""

import json
import multiprocessing
import shutil
from contextlib import nullcontext
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from ablation_cells import TINY
from cells import run_cell as notebook_cell

from dfkd_lib import ablation, losses, models
from dfkd_lib.ablation import Cell, cells, make_cell, read_grid
from dfkd_lib.ablation.grid import DEFAULTS
from dfkd_lib.core import (
    NotMade,
    OtherCode,
    Store,
    WorkbenchError,
    as_sent,
    only_finding,
    processes,
)
from dfkd_lib.jobs import Needs


def test_rows_are_crossed_with_the_grid_and_the_seeds():
    rows = {"with KD": {}, "without": {"kd_weight": 0}}
    crossed = {"temperature": [2, 4], "patch_weight": [0.5]}
    cells = read_grid({"base": TINY, "rows": rows, "grid": crossed, "seeds": [3, 1]})
    assert [(c.name, c.seed) for c in cells[:3]] == [
        ("with KD, temperature=2, patch_weight=0.5", 3),
        ("with KD, temperature=2, patch_weight=0.5", 1),
        ("with KD, temperature=4, patch_weight=0.5", 3),
    ]
    first, last = cells[0].config().weights, cells[-1].config().weights
    assert len(cells) == 8 and (first.temperature, last.kd) == (2.0, 0.0)
    # 4 is the default: one key, one student.
    assert cells[0].source == "real" and "weights.temperature" not in cells[2].settings


def test_a_list_is_a_grid_too():
    rows = [{"name": "hot", "temperature": 8.0}, {"temperature": 1.0, "kd_weight": 2}]
    names = [cell.name for cell in read_grid(rows, TINY, [0, 1])]
    assert names == ["hot"] * 2 + ["temperature=1, kd_weight=2"] * 2


def test_drop_one_takes_the_weights_of_the_base():
    cells = read_grid({"base": {**TINY, "patch_weight": 0.0}, "drop_one": True})
    found = {c.name: c.settings.get("weights.kd", 1.0) for c in cells}
    assert found == {"all": 1.0, "without KD": 0.0, "without CE": 1.0}


def test_a_file_gives_what_a_dict_gives(tmp_path):
    path = tmp_path / "grid.yaml"
    text = "base: {student_lr: 1e-3, student.betas: [0.8, 0.95]}\nrows:\n  all: {}\n  no labels: {ce_weight: 0}\n"
    rows = {"all": {}, "no labels": {"ce_weight": 0}}
    same = {"base": {"student_lr": 1e-3, "student.betas": [0.8, 0.95]}, "rows": rows}
    for mark in (b"", b"\xef\xbb\xbf"):
        path.write_bytes(mark + f"{text}seeds: 0,1\n".encode())
        assert read_grid(path, TINY) == read_grid({**same, "seeds": [0, 1]}, TINY)
    assert read_grid(path, TINY)[0].config().student.betas == (0.8, 0.95)


@pytest.mark.parametrize(
    "grid, words",
    [
        ({"base": {"temprature": 2}}, "did you mean 'weights.temperature'"),
        ({"row": {}}, "did you mean 'rows'"),
        ({"grid": {"kd_wieght": [1]}}, "there is no setting 'kd_wieght'"),
        ({"grid": {"kd_weight": 1}}, "valid list"),
        ({"grid": {"kd_weight": []}}, "at least 1 item"),
        ({"base": {"student_model": "vit_mnist_smok"}}, "did you mean 'vit_mnist_smoke'"),
        ({"base": {"source": "class probe"}}, "did you mean 'class probes'"),
        ({"base": {"jobs": 2}}, "no setting of a cell"),
        ({"rows": {"a": {"seeds": 2}}}, "no setting of a cell"),
        ({"base": {"temperature": 0}}, "temperature' is impossible"),
        ({"base": {"kd_weight": 0, "ce_weight": 0, "patch_weight": 0}}, "at least one above 0"),
        ({"grid": {"temperature": [2, 2]}}, "one name"),
        ({"base": {"student_epochs": True}}, "epochs' is impossible"),
        ({"base": {"student_lr": 0.0}}, "lr' is impossible"),
        ({"base": {"schedules": "kd: up"}}, "schedule could not be read"),
        ({"seeds": [0, 0]}, "different whole numbers"),
        ({"seeds": []}, "at least one"),
        ({"seeds": ["a"]}, "seeds' is impossible"),
        ({"rows": [1]}, "wrong form"),
        ({"rows": {"a": 1}}, "'rows.a' is impossible"),
        ("text", "cannot be read"),
        (7, "wrong form"),
        ({"rows": {"a": {}, "b": {"temperature": 4.0}}}, "are the same student"),
        ([{"temperature": 2.0}, {"temperature": 2.0}], "one name"),
        ({"grid": dict.fromkeys(("kd_weight", "ce_weight"), list(range(200)))}, "too large"),
    ],
)
def test_bad_grids_are_refused_before_anything_runs(grid, words):
    with pytest.raises(WorkbenchError, match=words) as caught:
        read_grid(grid, TINY)
    assert caught.value.fix


def test_rows_of_one_adversarial_maker_learn_from_the_same_images():
    grid = {"grid": {"student_model": ["vit_mnist_smoke", "vit_mnist_small"]}}
    cells = read_grid(grid, {**TINY, "source": "adversarial"})
    assert len({str(c.config().maker_settings()["adversarial"]) for c in cells}) == 1


def test_a_cell_survives_json():
    cell = make_cell("hot", {**TINY, "temperature": 8, "student.betas": [0.8, 0.95]}, 3)
    assert Cell.of(json.loads(json.dumps(asdict(cell)))) == cell
    assert set(cell.settings) <= set(DEFAULTS)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def ran(store):
    """(cells, what came of them, what was printed): three that work, and three that fail, each in a way of its own."""
    cells = [
        *read_grid({"drop_one": True}, TINY)[:2],
        *read_grid([{"name": "other"}], TINY, [1]),
        make_cell("diverges", {**TINY, "kd_weight": 1e300, "student_epochs": 4}, 0),
        make_cell("no token", {**TINY, "hard_weight": 1.0}, 0),
        make_cell("no data", {**TINY, "data": "nowhere"}, 0),
    ]
    printed = []
    return cells, ablation.run(cells, store, jobs=1, say=printed.append), printed


def test_what_fails_does_not_lose_the_others(ran):
    cells, outcomes, printed = ran
    assert [o.cell for o in outcomes] == cells and not any(o.cached for o in outcomes)
    assert [bool(o.artifact) for o in outcomes] == [True] * 3 + [False] * 3
    diverged, no_token, no_data = (o.error for o in outcomes[3:])
    assert diverged.startswith("diverged") and "lower the learning rate" in diverged
    assert "distillation token" in no_token and "nowhere" in no_data
    assert printed[0] == "6 cells, 0 found, 5 to run"


def test_a_cell_tells_how_its_student_does(ran, store):
    made, other = ran[1][0].artifact, ran[1][2].artifact
    student, again = (store.find(one.metrics["student"]) for one in (made, other))
    assert made.metrics["accuracy"] == student.metrics["accuracy"] <= made.metrics["top5"] <= 1
    assert made.json("history.json") == student.json("history.json")
    agreement = made.json("agreement.json")
    assert made.metrics["agreement"] == pytest.approx(sum(agreement["cosine"]) / 10)
    assert made.metrics["train_images"] == 60 and sum(agreement["count"]) == 100
    assert {row["purpose"] for row in made.ledger} == {"evaluation"}
    # Cells of one row differ in their weights only, by the seed.
    assert student.settings["train"] == again.settings["train"]
    assert student.settings["config"]["seed"] != again.settings["config"]["seed"]


def test_what_ran_is_found_and_what_did_not_is_not(ran, store):
    cells, outcomes, _ = ran
    before = store.keys()
    again = ablation.run(cells[:3], store, say=pytest.fail)
    assert [o.artifact.key for o in again] == [o.artifact.key for o in outcomes[:3]]
    assert all(o.cached for o in again)
    assert ablation.find(store, make_cell("new", {**TINY, "temperature": 2.5}, 0)) is None
    assert store.keys() == before
    with pytest.raises(NotMade), only_finding():
        store.get_or_make("stage", {}, lambda work: pytest.fail("made"))


def test_several_processes_give_the_same_bits_as_one(tmp_path, ran):
    """At the same number of threads: sums are split by threads, and split otherwise they round otherwise."""
    cells, before = ran[0], torch.get_num_threads()
    several, one = Store(tmp_path / "several"), Store(tmp_path / "one")
    try:
        torch.set_num_threads(2)  # two processes of one thread each
        again = ablation.run([*cells[:2], cells[4]], several, jobs=2, say=lambda line: None)
        torch.set_num_threads(1)
        for key in several.keys():  # what both start from
            if not key.startswith(("student", "ablation")):
                shutil.copytree(several.root / key, one.root / key)
        alone = ablation.run(cells[:2], one, jobs=1, say=lambda line: None)
    finally:
        torch.set_num_threads(before)
    assert [bool(o.artifact) for o in again] == [True, True, False]
    assert "distillation token" in again[2].error
    for mine, theirs in zip(again[:2], alone, strict=True):
        assert mine.artifact.key == theirs.artifact.key
        student = mine.artifact.metrics["student"]
        first, second = (s.find(student).path / "model.safetensors" for s in (several, one))
        assert first.read_bytes() == second.read_bytes()


# -- a step and code of the notebook's own


def defined(source, name):
    """What a cell of a notebook defines."""
    return notebook_cell(source, {"__name__": "__main__", "losses": losses})[name]


STEP = """
def step(student, batch, teacher):
    return {"loss": losses.kd_loss(student(batch.images), teacher(batch).logits, 2.0)}
"""


def test_a_step_of_the_notebooks_own_trains_the_cells_here(ran, store):
    step, cells = defined(STEP, "step"), ran[0][:1]
    (outcome,) = ablation.run(cells, store, 1, step=step, say=lambda line: None)
    assert outcome.artifact.key != ran[1][0].artifact.key
    assert set(outcome.artifact.json("history.json")[0]) & {"kd", "ce", "patch"} == set()
    assert ablation.run(cells, store, step=step, say=pytest.fail)[0].cached
    assert ablation.run(cells, store, say=pytest.fail)[0].artifact.key == ran[1][0].artifact.key


def test_a_step_of_the_notebooks_own_goes_to_other_processes_under_the_same_keys(ran, store):
    text = STEP.replace("2.0", "temperature")
    step = notebook_cell(text, {"__name__": "__main__", "losses": losses, "temperature": 3.0})
    outcomes = ablation.run(ran[0][:2], store, 2, step=step["step"], say=lambda line: None)
    assert not any(outcome.error for outcome in outcomes)
    found = ablation.run(ran[0][:2], store, 1, step=step["step"], say=pytest.fail)
    assert [o.artifact.key for o in found] == [o.artifact.key for o in outcomes]
    assert all(o.cached for o in found)


def test_a_step_that_cannot_go_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    cell, store = make_cell("a", TINY, 0), Store(tmp_path)
    sent = ablation.as_sent(cell, as_sent(defined(STEP, "step")))
    sent["step"]["digest"] = "of another Python"
    assert "Python" in ablation.work(None, Needs(), str(tmp_path), sent)[1]
    with pytest.raises(OtherCode, match="PYTHONPATH"):
        ablation.prepare(None, Needs(), str(tmp_path), [sent])
    held = "class Held:\n    def __reduce__(self): raise OSError\nheld = Held()\n"
    step = defined(f"{held}def step(student, batch, teacher): return held", "step")
    queue = SimpleNamespace(cluster=SimpleNamespace(alone=False), add=pytest.fail)
    monkeypatch.setattr(cells, "opened_queue", lambda *args, **options: nullcontext(queue))
    with pytest.raises(WorkbenchError, match="(?s)cannot be sent.*jobs=1"):
        ablation.run([cell], store, 2, step=step, say=lambda line: None)
    assert store.keys() == []


LOSS = "def kd_loss(student, teacher, temperature):\n    return (student - teacher).square().mean()"
STUDENT = "def builder(num_classes=10, img_size=28, in_chans=1): ..."


@pytest.mark.parametrize("changed", ["a loss", "a student"])
def test_what_a_notebook_has_changed_is_reported_before_workers_train_anything(
    changed, tmp_path, monkeypatch
):
    store, cell = Store(tmp_path), make_cell("a", {**TINY, "student_epochs": 2}, 0)
    sent = ablation.as_sent(cell)
    if changed == "a loss":
        monkeypatch.setattr(losses.classification, "kd_loss", defined(LOSS, "kd_loss"))
    else:
        builder = defined(STUDENT, "builder")
        monkeypatch.setitem(models.MODELS, "vit_mnist_smoke", (builder, {}))
    key, error = ablation.work(None, Needs(), str(tmp_path), sent)
    assert key is None and "other code" in error
    with pytest.raises(OtherCode):
        ablation.prepare(None, Needs(), str(tmp_path), [sent])
    assert ablation.as_sent(cell)["code"] != sent["code"] and store.keys() == []


def test_a_run_ends_at_once_if_its_workers_have_other_code(store, monkeypatch):
    error = OtherCode("other code")
    queue = [(SimpleNamespace(name=cells.SHARED), error)]
    monkeypatch.setattr(cells, "opened_queue", lambda *args, **options: nullcontext(queue))
    monkeypatch.setattr(cells, "_fill", lambda *args: None)
    with pytest.raises(OtherCode):
        ablation.run([make_cell("a", TINY, 98)], store, jobs=2, say=lambda line: None)


def _one(root, cell, made):
    made.put(ablation.run_cell(Store(root), cell).manifest["made"])


def test_two_processes_that_want_one_key_train_it_once(tmp_path):
    cell = make_cell("one", {**TINY, "student_epochs": 2}, 0)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    started = [context.Process(target=_one, args=(str(tmp_path), cell, queue)) for _ in range(2)]
    for process in started:
        process.start()
    made = [queue.get(timeout=120) for _ in started]
    for process in started:
        process.join()
    keys = [key for key in Store(tmp_path).keys() if key.startswith("ablation_cell")]
    assert made[0] == made[1] and len(keys) == 1


def test_more_threads_than_cores_ask_no_worker_for_more_than_it_has(store, monkeypatch):
    asked = []
    monkeypatch.setattr(cells, "opened_queue", lambda *args, **options: nullcontext(()))
    monkeypatch.setattr(cells, "_fill", lambda *args: asked.append(args[3]))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    with pytest.raises(KeyError):  # no answer
        ablation.run([make_cell("a", TINY, 99)], store, jobs=2, say=lambda line: None)
    assert asked == [max(1, processes.cores() // 2)]


def test_an_artifact_of_another_machine_may_come_late_and_processes_are_counted(store, monkeypatch):
    answers = iter([None, None, "made"])
    monkeypatch.setattr(Store, "find", lambda self, key: next(answers))
    assert cells._appearing(store, "key", 60) == "made"
    monkeypatch.setattr(Store, "find", lambda self, key: None)
    assert cells._appearing(store, "key", 0) is None
    with pytest.raises(WorkbenchError, match="number of processes"):
        ablation.run([], store, jobs=-1)
