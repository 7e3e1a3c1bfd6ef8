"""The ablation widget without its browser: messages in, state out, against a small queue that trains nothing."""

import json
from pathlib import Path

import pandas as pd
import pytest
from ablation_cells import artifact
from cells import run_cell

from dfkd_lib import ablation, widgets
from dfkd_lib.ablation import BASE as DEFAULTS
from dfkd_lib.ablation import Cell, Outcome
from dfkd_lib.core import WorkbenchError, fingerprint
from dfkd_lib.pipeline.parameters import read_notebook
from dfkd_lib.presets import load
from dfkd_lib.widgets.settings import Settings

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
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
    """`SavedJobs` in one file: nothing runs but what a test says has run."""

    def __init__(self, folder):
        self.folder, self.file, self.woken = folder, folder / "jobs.json", 0
        if not self.file.exists():
            self._write([])

    def all(self):
        return json.loads(self.file.read_text())

    def _write(self, jobs):
        self.file.write_text(json.dumps(jobs))

    def submit(self, cell, first=False):
        jobs = self.all()
        waiting = [i for i, job in enumerate(jobs) if job["state"] == "queued"]
        count = (self.file.parent / "count").open("ab")  # as many bytes as jobs so far
        count.write(b".")
        job = {"id": f"job{count.tell()}", "cell": cell, "state": "queued", "error": ""}
        jobs.insert(
            waiting[0] if first and waiting else len(jobs),
            {**job, "key": None, "seconds": 0.0, "progress": None},
        )
        self._write(jobs)

    def set(self, job, **what):
        self._write([{**one, **what} if one["id"] == job else one for one in self.all()])

    def stop(self, job):
        was = next(one["state"] for one in self.all() if one["id"] == job)
        if was in ("queued", "running"):
            self.set(job, state="stopped")
        return was

    def forget(self, job):
        self._write([one for one in self.all() if one["id"] != job])

    def wake(self):
        self.woken += 1


def history(*accuracies):
    losses = {"lr": 0.1, "kd": 1.0, "ce": 0.5, "patch": 0.1}
    return [
        {"epoch": i, **losses, "loss": 2.0 / i, "test_accuracy": a}
        for i, a in enumerate(accuracies, 1)
    ]


class Shelf(dict):
    """A store of artifacts that were never trained: key -> artifact, and the key that a cell finds."""

    def put(self, key, accuracy, cell=None):
        rows, measured = history(accuracy / 2, accuracy), {"agreement": 0.8, "test_images": 10_000}
        self[key] = artifact(key, accuracy, rows, **measured)
        self[key].cell = cell
        return self[key]

    def find(self, key):
        return self.get(key)


@pytest.fixture
def shelf():
    return Shelf()


@pytest.fixture
def lab(tmp_path, shelf, monkeypatch):
    """make(**more) -> a widget on the one queue of this test, with the messages it has sent in `sent`."""
    monkeypatch.setattr(
        ablation,
        "find",
        lambda store, cell, step: next((a for a in store.values() if a.cell == cell), None),
    )

    def make(base=BASE, **more):
        box = widgets.ablation_lab(
            base,
            shelf,
            tmp_path / "out",
            jobs=Queue(tmp_path),
            students=["vit_mnist_smoke", "deit_small_28"],
            **more,
        )
        box.sent = []
        box.send = lambda content, buffers=None: box.sent.append(
            json.loads(json.dumps(content, allow_nan=False))
        )
        return box

    return make


def ask(box, do, **content):
    """The state (or "same") that the widget answers with."""
    box.sent.clear()
    box._on_message(box, {"id": 1, "do": do, "values": dict(box.values), **content}, [])
    (answer,) = box.sent
    return answer


def finish(box, job, key, accuracy, shelf):
    shelf.put(key, accuracy)
    box.jobs.set(job, state="finished", key=key, seconds=12.0)


def outcome(name, settings, seed, key, accuracy, shelf):
    cell = Cell(name, settings, seed)
    return Outcome(cell, shelf.put(key, accuracy, cell), "", True)


def test_run_goes_before_all_that_wait_and_queue_behind_them(lab):
    box = lab()
    ask(box, "queue", values={**box.values, "weights.kd": 2, "seeds": "0,1"})
    state = ask(box, "run", values={**box.values, "weights.kd": 3, "seeds": "4,5"})
    assert [(job["name"], job["seed"]) for job in state["jobs"]] == [
        ("KD 3", 4),
        ("KD 3", 5),
        ("KD 2", 0),
        ("KD 2", 1),
    ]
    assert box.status == "2 runs next: KD 3" and box.error == "" and box.values["weights.kd"] == 3
    cell = Cell.of(box.jobs.all()[0]["cell"])
    expected = {**BASE_CELL, "weights.kd": 3.0}
    assert cell == Cell("KD 3", expected, 4)
    assert cell.config().weights.kd == 3 and cell.config().student.epochs == 3
    ask(box, "queue")
    assert "already queued" in box.status and len(box.jobs.all()) == 4
    ask(box, "run", values={**box.values, "weights.kd": 2, "seeds": "1"})
    assert "moved to the front" in box.status
    assert [job["cell"]["seed"] for job in box.jobs.all()] == [1, 4, 5, 0]


@pytest.mark.parametrize(
    "values, words, field",
    [
        ({"weights.kd": 0, "weights.ce": 0, "weights.patch": 0}, "at least one above 0", ""),
        ({"weights.temperature": 0}, "greater than 0", "weights.temperature"),
        ({"weights.temperature": -1}, "'temperature' is impossible", "weights.temperature"),
        ({"weights.kd": None}, "'kd' is impossible", "weights.kd"),
        ({"weights.ce": -0.5}, "'ce' is impossible", "weights.ce"),
        ({"student.epochs": 0}, "'epochs' is impossible", "student.epochs"),
        ({"student.epochs": 2.5}, "valid integer", "student.epochs"),
        ({"synthetic_images": 0}, "'synthetic_images' is impossible", "synthetic_images"),
        ({"student.lr": 0}, "'lr' is impossible", "student.lr"),
        ({"student.lr": True}, "'lr' is impossible", "student.lr"),
        ({"seeds": "0,1,1"}, "'seeds' is impossible", "seeds"),
        ({"seeds": ""}, "'seeds' is impossible", "seeds"),
        ({"seeds": "a"}, "'seeds' is impossible", "seeds"),
        ({"student.model": "vit_mnist_smok"}, "vit_mnist_smoke", "student.model"),
        ({"source": "thin air"}, "there is no", "source"),
        ({"weights.schedules": "kd: 1"}, "schedule", "weights.schedules"),
        ({"colour": 1}, "no such control", ""),
    ],
)
def test_bad_values_are_reported_in_place_and_nothing_is_submitted(lab, values, words, field):
    box = lab()
    state = ask(box, "run", values={**box.values, **values})
    assert words in box.error and "expected" in box.error and box.field == field
    assert state["jobs"] == [] and box.status == ""
    ask(box, "run", values=box.settings.values())
    assert box.error == "" and box.field == "" and len(box.jobs.all()) == 1  # still usable


def test_what_ran_before_answers_at_once(lab, shelf):
    box = lab()
    (cell,) = box.settings.cells({**box.values, "weights.kd": 2.0})
    shelf.put("ablation_cell-1", 0.9712, cell)
    state = ask(box, "run", values={**box.values, "weights.kd": 2})
    (row,) = state["rows"]
    assert state["jobs"] == [] and "97.12 %" in box.status and "nothing was run" in box.status
    assert (row["name"], row["how"], row["seed"], row["agreement"]) == ("KD 2", "found", 0, 0.8)
    assert row["accuracy"] == pytest.approx(97.12) and row["low"] == pytest.approx(96.77, abs=0.02)
    assert row["high"] == pytest.approx(97.43, abs=0.02) and row["loss"] == 1.0


def test_the_state_is_sent_only_if_it_has_changed(lab, shelf):
    box = lab()
    state = ask(box, "run")
    assert ask(box, "poll", seen=state["version"])["kind"] == "same" and box.jobs.woken == 2
    progress = {
        "label": "student",
        "epoch": 2,
        "epochs": 3,
        "step": 4,
        "steps": 9,
        "left": 3.0,
        "losses": {"loss": float("nan"), "kd": 1},
        "history": history(0.5),
    }
    box.jobs.set("job1", state="running", progress=progress)
    running = ask(box, "poll", seen=state["version"])
    assert running["kind"] == "state"
    assert running["jobs"][0]["progress"]["losses"] == {
        "loss": None,
        "kd": 1,
    }
    assert ask(box, "ready")["kind"] == "state"
    finish(box, "job1", "ablation_cell-2", 0.9, shelf)
    done = ask(box, "poll", seen=running["version"])
    assert done["jobs"] == [] and [row["how"] for row in done["rows"]] == ["run"]
    assert done["curves"][0]["history"] == history(0.45, 0.9)  # stays in the charts


def test_another_widget_on_the_same_jobs_finds_everything_again(lab, shelf):
    box = lab()
    for weight in (1, 2, 3, 4):
        ask(box, "queue", values={**box.values, "weights.kd": weight})
    finish(box, "job1", "ablation_cell-1", 0.91, shelf)
    box.jobs.set("job2", state="running", progress=None)
    box.jobs.set("job3", state="failed", error="diverged: loss is nan at epoch 2")
    before, again = ask(box, "ready"), lab()
    state = ask(again, "ready")
    assert state == before
    assert [job["state"] for job in state["jobs"]] == [
        "running",
        "failed",
        "queued",
    ]
    assert "nan at epoch 2" in state["jobs"][1]["error"]
    assert state["rows"][0]["name"] == "as the notebook"
    # Seen from a notebook with other values the same cell is another row.
    other = lab({**BASE, "weights.kd": 2.0})
    assert ask(other, "ready")["rows"][0]["name"] == "KD 1" and other.values["weights.kd"] == 2.0


def test_stop_go_on_and_clear(lab, shelf):
    box = lab()
    ask(box, "queue", values={**box.values, "seeds": "0,1"})
    assert [job["id"] for job in ask(box, "stop", job="job2")["jobs"]] == ["job1"]
    assert "taken out" in box.status
    box.jobs.set("job1", state="running")
    assert ask(box, "stop", job="job1")["jobs"][0]["state"] == "stopped"
    assert "go on from there" in box.status
    state = ask(box, "again", job="job1")
    assert [(job["state"], job["seed"]) for job in state["jobs"]] == [("queued", 0)]
    finish(box, state["jobs"][0]["id"], "ablation_cell-1", 0.9, shelf)
    (row,) = ask(box, "poll")["rows"]
    assert ask(box, "clear", job=row["job"])["rows"] == []
    assert box.jobs.all() == [] and "ablation_cell-1" in shelf
    # Two pages: what has ended since this one looked is not said to have been stopped.
    ask(box, "queue", values=box.values)
    box.jobs.set(box.jobs.all()[0]["id"], state="failed")
    stopped = ask(box, "stop", job=box.jobs.all()[0]["id"])
    assert stopped["jobs"][0]["state"] == "failed" and "failed already" in box.status
    ask(box, "stop", job="job77")
    assert "no longer there" in box.error


def test_a_step_of_the_notebooks_own_is_queued_and_told_from_the_librarys(
    lab, tmp_path, monkeypatch
):
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


def test_running_again_takes_the_place_of_the_stopped_record(lab):
    box = lab()
    ask(box, "run")
    box.jobs.set("job1", state="stopped")
    assert [job["state"] for job in ask(box, "run")["jobs"]] == ["queued"]


def test_settings_are_compared_by_pairs_of_seeds(lab, shelf):
    shown = [
        outcome("all", BASE_CELL, seed, f"ablation_cell-a{seed}", 0.90 + seed / 100, shelf)
        for seed in (0, 1, 2)
    ]
    shown += [
        outcome(
            "without KD",
            {**BASE_CELL, "weights.kd": 0.0},
            seed,
            f"ablation_cell-b{seed}",
            0.92 + seed / 100 + extra,
            shelf,
        )
        for seed, extra in ((0, 0.0), (1, 0.001), (2, -0.001))
    ]
    box = lab(shown=shown)
    rows = ask(box, "ready")["rows"]
    assert [(row["name"], row["seed"]) for row in rows][:4] == [
        ("all", 0),
        ("all", 1),
        ("all", 2),
        ("without KD", 0),
    ]
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
    box = lab(shown=[outcome("all", BASE_CELL, 0, "ablation_cell-a0", 0.9, shelf)])
    ask(box, "run")
    assert "found" in box.status and len(ask(box, "poll")["rows"]) == 1 and box.jobs.all() == []
    state = ask(box, "run", values={**box.values, "seeds": "1"})
    assert state["jobs"][0]["name"] == "all"  # the same settings, another seed: the same row
    # The number of real images is no setting of a student on made ones.
    ask(box, "run", values={**box.values, "real_images": 77, "seeds": "0"})
    assert "found" in box.status and "all, seed 0" in box.status


def test_the_parameters_file_is_what_the_notebook_takes(lab, shelf, tmp_path):
    longer = {**BASE_CELL, "student.epochs": 9, "student.mix": "cutmix"}
    box = lab(
        shown=[
            outcome("longer", longer, seed, f"ablation_cell-{seed}", 0.9, shelf) for seed in (2, 5)
        ]
    )
    ask(box, "parameters", values={**box.values, "weights.kd": 2.5, "seeds": "0,1"})
    (path,) = (tmp_path / "out").glob("*.yaml")
    saved = json.loads(path.read_text())
    assert saved["seeds"] == "0,1" and saved["source"] == "augmented GAN"
    # Whatever the preset says, the notebook trains what the controls showed.
    expected = {**BASE_CELL, "weights.kd": 2.5}
    config = load("ablation", "paper", saved["overrides"])
    assert ablation.base_of(config, saved["source"]) == {**expected, "source": "augmented GAN"}
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
    assert box.values["student.epochs"] == 9
    assert box.values["student.mix"] == "cutmix"
    assert box.values["seeds"] == "5"
    ask(box, "reset")
    assert box.values == box.settings.values() and box.values["seeds"] == "0"


def test_notebook_35_takes_what_is_saved_from_it(lab, tmp_path):
    declared = read_notebook(NOTEBOOKS / "35_ablation.ipynb")
    config = load("ablation", "smoke", "student.epochs=3")
    box = lab({**ablation.base_of(config), "seeds": "0,1"}, notebook="35_ablation")
    changes = {"source": "class probes", "weights.kd": 2, "weights.schedules": "kd: 1@0 0@1"}
    ask(box, "parameters", values={**box.values, **changes})
    (path,) = (tmp_path / "out").glob("*.yaml")
    saved = json.loads(path.read_text())
    assert set(saved) <= set(declared.parameters)
    again = load("ablation", "quick", saved["overrides"], source=saved["source"])
    weights = config.weights.replace(kd=2.0, schedules="kd: 1@0 0@1")
    changed = config.replace(weights=weights, seeds=again.seeds, source="class probes")
    assert box.error == "" and again == changed


def test_figures_are_saved_of_the_checked_rows(lab, shelf, tmp_path):
    # Two settings under one name, as two notebooks may leave them in one store.
    shown = [
        outcome("all", BASE_CELL, 0, "ablation_cell-a", 0.9, shelf),
        outcome("all", {**BASE_CELL, "student.epochs": 9}, 0, "ablation_cell-b", 0.8, shelf),
    ]
    box = lab(shown=shown)
    ask(box, "figure")
    assert box.error == ""
    names = sorted(path.name for path in (tmp_path / "out" / "figures").iterdir())
    assert len(names) == 6 and {name.split("_")[1] for name in names} == {"accuracy", "curves"}
    assert box.status.startswith("saved")


def test_a_setting_is_renamed_for_good(lab, shelf):
    shown = [
        outcome("all", BASE_CELL, 0, "ablation_cell-a", 0.9, shelf),
        outcome("all", BASE_CELL, 1, "ablation_cell-b", 0.8, shelf),
        outcome("hot", {**BASE_CELL, "weights.temperature": 9.0}, 0, "ablation_cell-c", 0.7, shelf),
    ]
    box = lab(shown=shown)
    box.checked = ["ablation_cell-a"]
    rows = ask(box, "rename", name="  as in the\npaper ")["rows"]
    named = ["as in the paper", "as in the paper", "hot"]
    assert [row["name"] for row in rows] == named and "renamed" in box.status
    # Another seed of it, and the widget made anew on the same jobs.
    assert ask(box, "run", values={**box.values, "seeds": "5"})["jobs"][0]["name"] == named[0]
    assert [row["name"] for row in ask(lab(shown=shown), "ready")["rows"]] == named
    for name in ("hot", " ", "x" * 81, "\x1b[1m"):
        ask(box, "rename", name=name)
        assert "cannot be its name" in box.error
    box.checked = ["ablation_cell-a", "ablation_cell-c"]
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
    shown = [
        outcome("=1+1", BASE_CELL, 0, "ablation_cell-a", 0.9, shelf),
        outcome("hot", {**BASE_CELL, "weights.temperature": 9.0}, 0, "ablation_cell-b", 0.8, shelf),
    ]
    box = lab(shown=shown)
    ask(box, "csv")
    box.checked = ["ablation_cell-b"]
    ask(box, "csv")
    tables = [pd.read_csv(path) for path in (tmp_path / "out" / "tables").glob("*.csv")]
    both, one = sorted(tables, key=len, reverse=True)
    assert list(both["row"]) == ["'=1+1", "hot"] and list(both["accuracy (%)"]) == [90, 80]
    assert list(one["row"]) == ["hot"] and box.status.startswith("1 run saved as")


def test_without_anything_finished_there_is_no_figure(lab):
    box = lab()
    ask(box, "figure")
    assert "no run has finished" in box.error


def test_what_failed_in_the_notebook_is_said_and_what_is_damaged_does_not_stop_the_widget(
    lab, shelf
):
    box = lab(shown=[Outcome(Cell("all", BASE_CELL, 0), None, "diverged: loss is inf", False)])
    ask(box, "run", values={**box.values, "weights.kd": 2})
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
    shown = [
        outcome("all", BASE_CELL, seed, f"ablation_cell-{seed}", 0.9, shelf) for seed in (0, 1)
    ]
    figure = widgets.ablation_lab(BASE, shelf, shown=shown, interactive=False)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["all"]
