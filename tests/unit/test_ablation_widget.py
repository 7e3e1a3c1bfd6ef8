"""The ablation widget without its browser: messages in, state out, against a small queue that trains nothing."""

import copy
import json

import pandas as pd
import pytest
from ablation_cells import artifact
from cells import run_cell

from dfkd_lib import ablation, widgets
from dfkd_lib.ablation import BASE as DEFAULTS
from dfkd_lib.ablation import Cell, Outcome
from dfkd_lib.core import REPOSITORY, WorkbenchError, fingerprint
from dfkd_lib.pipeline.parameters import read_notebook
from dfkd_lib.presets import load
from dfkd_lib.widgets.settings import Settings

NOTEBOOK = REPOSITORY / "notebooks" / "35_ablation.ipynb"
# A notebook's own settings, some of them the defaults.
BASE = {
    "student.model": "vit_mnist_smoke",
    "student.epochs": 3,
    "student.lr": 0.003,
    "real_images": 300,
    "synthetic_images": 6000,
    "weights.temperature": 4.0,
    "source": "augmented GAN",
    "seeds": "0",
}
# What of it differs from the defaults: a cell's settings.
BASE_CELL = {k: v for k, v in BASE.items() if k not in ("weights.temperature", "source", "seeds")}


class Queue:
    """`SavedJobs` in memory: nothing runs but what a test says has run."""

    def __init__(self, folder):
        self.folder, self.jobs, self.count, self.woken = folder, [], 0, 0

    def all(self):
        return copy.deepcopy(self.jobs)

    def submit(self, cell, first=False):
        self.count += 1
        job = {"id": f"job{self.count}", "cell": cell, "state": "queued", "error": "", "key": None}
        waiting = [i for i, other in enumerate(self.jobs) if other["state"] == "queued"]
        place = waiting[0] if first and waiting else len(self.jobs)
        self.jobs.insert(place, job | {"seconds": 0.0, "progress": None})

    def set(self, job, **what):
        next(one for one in self.jobs if one["id"] == job).update(what)

    def stop(self, job):
        was = next(one["state"] for one in self.jobs if one["id"] == job)
        if was in ("queued", "running"):
            self.set(job, state="stopped")
        return was

    def forget(self, job):
        self.jobs = [one for one in self.jobs if one["id"] != job]

    def wake(self):
        self.woken += 1


def history(*accuracies):
    losses = {"lr": 0.1, "kd": 1.0, "ce": 0.5, "patch": 0.1}
    return [
        {"epoch": i, **losses, "loss": 2.0 / i, "test_accuracy": a}
        for i, a in enumerate(accuracies, 1)
    ]


class Shelf(dict):
    """A store of artifacts that were never trained: key -> artifact, and the cell that finds it."""

    def put(self, key, accuracy, cell=None):
        rows, measured = history(accuracy / 2, accuracy), {"agreement": 0.8, "test_images": 10_000}
        self[key] = artifact(key, accuracy, rows, **measured)
        self[key].cell = cell
        return self[key]

    def find(self, key):
        return self.get(key)

    def outcome(self, name, seed, accuracy, **changes):
        """A finished cell of the notebook's settings but for these changes; its key ends in its number, from 1."""
        cell = Cell(name, {**BASE_CELL, **changes}, seed)
        return Outcome(cell, self.put(f"ablation_cell-{len(self) + 1}", accuracy, cell), "", True)


@pytest.fixture
def shelf():
    return Shelf()


@pytest.fixture
def lab(tmp_path, shelf, monkeypatch):
    """make(base, **more) -> a widget on the one queue of this test, with the messages it has sent in `sent`."""

    def find(store, cell, step):
        return next((one for one in store.values() if one.cell == cell), None)

    def make(base=BASE, **more):
        box = widgets.ablation_lab(base, shelf, tmp_path / "out", jobs=jobs, **more)
        box.sent = []
        box.send = lambda content, buffers=None: box.sent.append(
            json.loads(json.dumps(content, allow_nan=False))
        )
        return box

    monkeypatch.setattr(ablation, "find", find)
    jobs = Queue(tmp_path)
    return make


def ask(box, do, changes=None, **content):
    """The state (or "same") that the widget answers with; changes: of what its controls show."""
    box.sent.clear()
    values = {**box.values, **(changes or {})}
    box._on_message(box, {"id": 1, "do": do, "values": values, **content}, [])
    (answer,) = box.sent
    return answer


def finish(box, job, key, accuracy, shelf):
    shelf.put(key, accuracy)
    box.jobs.set(job, state="finished", key=key, seconds=12.0)


def test_run_goes_before_all_that_wait_and_queue_behind_them(lab):
    box = lab()
    ask(box, "queue", {"weights.kd": 2, "seeds": "0,1"})
    state = ask(box, "run", {"weights.kd": 3, "seeds": "4,5"})
    jobs = [(job["name"], job["seed"]) for job in state["jobs"]]
    assert jobs == [("KD 3", 4), ("KD 3", 5), ("KD 2", 0), ("KD 2", 1)]
    assert box.status == "2 runs next: KD 3" and box.error == "" and box.values["weights.kd"] == 3
    cell = Cell.of(box.jobs.all()[0]["cell"])
    assert cell == Cell("KD 3", {**BASE_CELL, "weights.kd": 3.0}, 4)
    assert cell.config().weights.kd == 3 and cell.config().student.epochs == 3
    ask(box, "queue")
    assert "already queued" in box.status and len(box.jobs.all()) == 4
    ask(box, "run", {"weights.kd": 2, "seeds": "1"})
    assert "moved to the front" in box.status
    assert [job["cell"]["seed"] for job in box.jobs.all()] == [1, 4, 5, 0]


@pytest.mark.parametrize(
    "values, words, field",
    [
        ({"weights.kd": 0, "weights.ce": 0, "weights.patch": 0}, "at least one above 0", ""),
        ({"weights.temperature": 0}, "greater than 0", "weights.temperature"),
        ({"weights.kd": None}, "kd' is impossible", "weights.kd"),
        ({"student.epochs": 0}, "epochs' is impossible", "student.epochs"),
        ({"student.epochs": 2.5}, "valid integer", "student.epochs"),
        ({"student.lr": True}, "lr' is impossible", "student.lr"),
        ({"seeds": "0,1,1"}, "seeds' is impossible", "seeds"),
        ({"seeds": ""}, "seeds' is impossible", "seeds"),
        ({"student.model": "vit_mnist_smok"}, "vit_mnist_smoke", "student.model"),
        ({"source": "thin air"}, "there is no", "source"),
        ({"weights.schedules": "kd: 1"}, "schedule", "weights.schedules"),
        ({"colour": 1}, "no such control", ""),
    ],
)
def test_bad_values_are_reported_in_place_and_nothing_is_submitted(lab, values, words, field):
    box = lab()
    state = ask(box, "run", values)
    assert words in box.error and "expected" in box.error and box.field == field
    assert state["jobs"] == [] and box.status == ""
    box.values = box.settings.values()
    ask(box, "run")
    assert box.error == "" and box.field == "" and len(box.jobs.all()) == 1  # still usable


def test_what_ran_before_answers_at_once(lab, shelf):
    box = lab()
    (cell,) = box.settings.cells({**box.values, "weights.kd": 2.0})
    shelf.put("ablation_cell-1", 0.9712, cell)
    state = ask(box, "run", {"weights.kd": 2})
    (row,) = state["rows"]
    assert state["jobs"] == [] and "97.12 %" in box.status and "nothing was run" in box.status
    assert (row["name"], row["how"], row["seed"], row["agreement"]) == ("KD 2", "found", 0, 0.8)
    assert row["accuracy"] == pytest.approx(97.12) and row["low"] == pytest.approx(96.77, abs=0.02)
    assert row["high"] == pytest.approx(97.43, abs=0.02) and row["loss"] == 1.0


def test_the_state_is_sent_only_if_it_has_changed(lab, shelf):
    box = lab()
    state = ask(box, "run")
    assert ask(box, "poll", seen=state["version"])["kind"] == "same" and box.jobs.woken == 2
    progress = {"epoch": 2, "losses": {"loss": float("nan"), "kd": 1}, "history": history(0.5)}
    box.jobs.set("job1", state="running", progress=progress)
    running = ask(box, "poll", seen=state["version"])
    assert running["kind"] == "state"
    assert running["jobs"][0]["progress"]["losses"] == {"loss": None, "kd": 1}
    assert ask(box, "ready")["kind"] == "state"
    finish(box, "job1", "ablation_cell-2", 0.9, shelf)
    done = ask(box, "poll", seen=running["version"])
    assert done["jobs"] == [] and [row["how"] for row in done["rows"]] == ["run"]
    assert done["curves"][0]["history"] == history(0.45, 0.9)  # stays in the charts


def test_another_widget_on_the_same_jobs_finds_everything_again(lab, shelf):
    box = lab()
    for weight in (1, 2, 3, 4):
        ask(box, "queue", {"weights.kd": weight})
    finish(box, "job1", "ablation_cell-1", 0.91, shelf)
    box.jobs.set("job2", state="running", progress=None)
    box.jobs.set("job3", state="failed", error="diverged: loss is nan at epoch 2")
    before, again = ask(box, "ready"), lab()
    state = ask(again, "ready")
    assert state == before
    assert [job["state"] for job in state["jobs"]] == ["running", "failed", "queued"]
    assert "nan at epoch 2" in state["jobs"][1]["error"]
    assert state["rows"][0]["name"] == "as the notebook"
    # Seen from a notebook with other values the same cell is another row.
    other = lab({**BASE, "weights.kd": 2.0})
    assert ask(other, "ready")["rows"][0]["name"] == "KD 1" and other.values["weights.kd"] == 2.0


def test_stop_go_on_and_clear(lab, shelf):
    box = lab()
    ask(box, "queue", {"seeds": "0,1"})
    assert [job["id"] for job in ask(box, "stop", job="job2")["jobs"]] == ["job1"]
    assert "taken out" in box.status
    box.jobs.set("job1", state="running")
    assert ask(box, "stop", job="job1")["jobs"][0]["state"] == "stopped"
    assert "go on from there" in box.status
    # Run puts a new record in its place, and so does going on.
    assert [job["state"] for job in ask(box, "run", {"seeds": "0"})["jobs"]] == ["queued"]
    box.jobs.set("job3", state="stopped")
    state = ask(box, "again", job="job3")
    assert [(job["state"], job["seed"]) for job in state["jobs"]] == [("queued", 0)]
    finish(box, state["jobs"][0]["id"], "ablation_cell-1", 0.9, shelf)
    (row,) = ask(box, "poll")["rows"]
    assert ask(box, "clear", job=row["job"])["rows"] == []
    assert box.jobs.all() == [] and "ablation_cell-1" in shelf
    # Two pages: what has ended since this one looked is not said to have been stopped.
    ask(box, "queue")
    box.jobs.set(box.jobs.all()[0]["id"], state="failed")
    stopped = ask(box, "stop", job=box.jobs.all()[0]["id"])
    assert stopped["jobs"][0]["state"] == "failed" and "failed already" in box.status
    ask(box, "stop", job="job77")
    assert "no longer there" in box.error


def test_a_step_of_the_notebooks_own_is_queued_and_told_apart(lab, tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    names = run_cell("def step(student, batch, teacher): return scale", {"__name__": "__main__"})
    names["scale"] = 2.0
    ask(lab(), "queue")
    box = lab(step=names["step"])
    state = ask(box, "queue")
    assert [job["name"] for job in state["jobs"]] == ["step of the library", "as the notebook"]
    ask(box, "queue")
    assert "already queued" in box.status
    step = box.jobs.all()[-1]["cell"]["step"]
    assert step["digest"] == fingerprint(names["step"]).digest and step["signature"]
    box.jobs.set("job2", state="stopped")
    ask(box, "again", job="job2")
    assert box.jobs.all()[0]["cell"]["step"] == step
    names["scale"] = 3.0
    ask(box, "run")
    assert "run the widget's cell again" in box.error


def test_settings_are_compared_by_pairs_of_seeds(lab, shelf):
    shown = [shelf.outcome("all", seed, 0.90 + seed / 100) for seed in (0, 1, 2)]
    for seed, accuracy in enumerate((0.92, 0.931, 0.939)):
        shown.append(shelf.outcome("without KD", seed, accuracy, **{"weights.kd": 0.0}))
    box = lab(shown=shown)
    rows = ask(box, "ready")["rows"]
    names = [(row["name"], row["seed"]) for row in rows]
    assert names == [(name, seed) for name in ("all", "without KD") for seed in (0, 1, 2)]
    assert rows[3]["differs"] == "KD 0"
    box.checked = [row["id"] for row in rows]
    state = ask(box, "compare")
    expected = (
        "Against “all”. without KD: better, +2.00 points [+1.75, +2.25], Holm p = 0.00083, 3 seeds."
    )
    assert state["compared"] == expected and len(state["curves"]) == 6
    box.checked = [rows[0]["id"], rows[3]["id"]]
    assert "from one seed; no interval" in ask(box, "compare")["compared"]
    box.checked = [rows[0]["id"], rows[4]["id"]]
    assert "no seed in common" in ask(box, "compare")["compared"]
    box.checked = [row["id"] for row in rows[:3]]
    assert "all: 91.00 ± 2.48 %" in ask(box, "compare")["compared"]
    assert ask(box, "alone")["overlaid"] == []
    box.checked = []
    ask(box, "compare")
    assert "no line is checked" in box.error


def test_a_row_of_the_notebook_keeps_its_name_and_stands_once(lab, shelf):
    box = lab(shown=[shelf.outcome("all", 0, 0.9)])
    ask(box, "run")
    assert "found" in box.status and len(ask(box, "poll")["rows"]) == 1 and box.jobs.all() == []
    state = ask(box, "run", {"seeds": "1"})
    assert state["jobs"][0]["name"] == "all"  # the same settings, another seed: the same row
    # The number of real images is no setting of a student on made ones.
    ask(box, "run", {"real_images": 77, "seeds": "0"})
    assert "found" in box.status and "all, seed 0" in box.status


def test_the_parameters_file_is_what_the_notebook_takes(lab, shelf, tmp_path):
    longer = {"student.epochs": 9, "student.mix": "cutmix"}
    box = lab(shown=[shelf.outcome("longer", seed, 0.9, **longer) for seed in (2, 5)])
    changes = {"weights.kd": 2.5, "weights.schedules": "kd: 1@0 0@1"}
    ask(box, "parameters", {**changes, "seeds": "0,1"})
    (path,) = (tmp_path / "out").glob("*.yaml")
    saved = json.loads(path.read_text())
    assert saved["seeds"] == "0,1" and saved["source"] == "augmented GAN"
    # Whatever the preset says, the notebook trains what the controls showed.
    assert set(saved) <= set(read_notebook(NOTEBOOK).parameters)
    expected = {**BASE_CELL, **changes, "source": "augmented GAN"}
    config = load("ablation", "paper", saved["overrides"])
    assert ablation.base_of(config, saved["source"]) == expected
    assert box.status == f"papermill notebooks/35_ablation.ipynb out.ipynb -f {path}"
    path.unlink()
    rows = ask(box, "ready")["rows"]
    box.checked = [row["id"] for row in rows]
    ask(box, "parameters")
    (path,) = (tmp_path / "out").glob("*.yaml")
    saved = json.loads(path.read_text())
    assert "student.mix=cutmix" in saved["overrides"] and "epochs=9" in saved["overrides"]
    assert saved["seeds"] == "2,5"
    ask(box, "use", row=rows[1]["id"])
    assert box.values == {**box.settings.values(), **longer, "seeds": "5"}
    ask(box, "reset")
    assert box.values == box.settings.values() and box.values["seeds"] == "0"


def test_figures_are_saved_of_the_checked_rows(lab, shelf, tmp_path):
    # Two settings under one name, as two notebooks may leave them in one store.
    other = shelf.outcome("all", 0, 0.8, **{"student.epochs": 9})
    box = lab(shown=[shelf.outcome("all", 0, 0.9), other])
    ask(box, "figure")
    assert box.error == ""
    names = sorted(path.name for path in (tmp_path / "out" / "figures").iterdir())
    assert len(names) == 6 and {name.split("_")[1] for name in names} == {"accuracy", "curves"}
    assert box.status.startswith("saved")


def test_a_setting_is_renamed_for_good(lab, shelf):
    shown = [shelf.outcome("all", 0, 0.9), shelf.outcome("all", 1, 0.8)]
    shown.append(shelf.outcome("hot", 0, 0.7, **{"weights.temperature": 9.0}))
    box = lab(shown=shown)
    box.checked = ["ablation_cell-1"]
    rows = ask(box, "rename", name="  as in the\npaper ")["rows"]
    named = ["as in the paper", "as in the paper", "hot"]
    assert [row["name"] for row in rows] == named and "renamed" in box.status
    # Another seed of it, and the widget made anew on the same jobs.
    assert ask(box, "run", {"seeds": "5"})["jobs"][0]["name"] == named[0]
    assert [row["name"] for row in ask(lab(shown=shown), "ready")["rows"]] == named
    for name in ("hot", " ", "x" * 81, "\x1b[1m"):
        ask(box, "rename", name=name)
        assert "cannot be its name" in box.error
    box.checked = ["ablation_cell-1", "ablation_cell-3"]
    ask(box, "rename", name="both")
    assert "a name is of one setting" in box.error
    assert [row["name"] for row in ask(box, "poll")["rows"]] == named
    state = ask(box, "compare")
    assert [curve["setting"] for curve in state["curves"]] == [named[0], "hot"]


@pytest.mark.parametrize("damaged", ["[1]", "{", '{"a": 1}'])
def test_a_damaged_file_of_names_is_as_good_as_none(lab, tmp_path, damaged):
    (tmp_path / "names").write_text(damaged)
    assert ask(lab(), "ready")["rows"] == []


def test_the_checked_rows_are_saved_as_csv(lab, shelf, tmp_path):
    hot = {"weights.temperature": 9.0}
    box = lab(shown=[shelf.outcome("=1+1", 0, 0.9), shelf.outcome("hot", 0, 0.8, **hot)])
    ask(box, "csv")
    box.checked = ["ablation_cell-2"]
    ask(box, "csv")
    tables = [pd.read_csv(path) for path in (tmp_path / "out" / "tables").glob("*.csv")]
    both, one = sorted(tables, key=len, reverse=True)
    assert list(both["row"]) == ["'=1+1", "hot"] and list(both["accuracy (%)"]) == [90, 80]
    assert list(one["row"]) == ["hot"] and box.status.startswith("1 run saved as")


def test_what_failed_in_the_notebook_is_said_and_what_is_gone_does_not_stop_the_widget(lab):
    box = lab(shown=[Outcome(Cell("all", BASE_CELL, 0), None, "diverged: loss is inf", False)])
    ask(box, "figure")
    assert "no run has finished" in box.error
    ask(box, "run", {"weights.kd": 2})
    box.jobs.set("job1", state="finished", key="ablation_cell-gone")
    state = ask(box, "poll")
    assert state["lost"] == ["all, seed 0: diverged: loss is inf"]
    assert state["jobs"][0]["state"] == "failed"
    assert "no longer on this disk" in state["jobs"][0]["error"]


def test_the_controls_are_those_of_the_configuration(lab):
    box = lab()
    controls = {control["name"]: control for control in box.options["controls"]}
    names, known = list(controls), DEFAULTS.settings()
    assert names[:3] == ["weights.kd", "weights.ce", "weights.patch"] and names[-1] == "seeds"
    assert set(names) - {"source", "seeds"} <= set(known) and set(names) == set(box.values)
    for name, control in controls.items():
        if control["kind"] in ("int", "float"):
            assert control["low"] <= box.values[name] <= control["reach"] and control["step"] > 0
            assert known[name].high is None or control["reach"] <= known[name].high
    choices = [value for value, _ in controls["student.mix"]["choices"]]
    assert tuple(choices) == known["student.mix"].choices
    assert known["weights.kd"].help in controls["weights.kd"]["help"]
    with pytest.raises(WorkbenchError, match="temperature"):
        Settings({"temperatur": 3.0})


def test_students_are_the_transformers_that_take_the_images():
    choices = dict(Settings(BASE).by_name["student.model"]["choices"])
    assert list(choices)[0] == "vit_mnist_smoke" and "7.83 k" in choices["vit_mnist_smoke"]
    assert "vit_mnist_mini_patch7" in choices
    assert not {"cnn_small", "vgg16_bn", "titn"} & set(choices)


def test_not_interactive_it_is_the_figure_of_what_is_shown(shelf):
    shown = [shelf.outcome("all", seed, 0.9) for seed in (0, 1)]
    figure = widgets.ablation_lab(BASE, shelf, shown=shown, interactive=False)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["all"]
