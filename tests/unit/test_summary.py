"""The summary counts real images through everything that a stage was made from."""

from dfkd_lib.core.artifacts import Store
from dfkd_lib.reporting import summary


def read(split: str, purpose: str, images: int, **more) -> dict:
    return {"stage": "any", "split": split, "purpose": purpose, "images": images, **more}


def record(stage: str, parents=(), *reads: dict, seconds: float = 1.0) -> dict:
    return {"stage": stage, "seconds": seconds, "ledger": [*reads], "parents": [*parents]}


TRAINING, TEST = read("mnist/train", "training", 60000), read("mnist/test", "evaluation", 10000)
CHAIN = {
    "teacher": record("teacher", [], TRAINING, TEST),
    "gan": record("cgan", ["teacher"], read("mnist/train", "training the discriminator", 6000)),
    "images": record("synthesize", ["gan"]),
    "student 0": record("student", ["teacher", "images"], TEST),
    "student 1": record("student", ["teacher", "images"], TEST, seconds=3.0),
}


def test_images_are_counted_through_ancestors():
    assert summary.ancestors("student 0", CHAIN) == {"teacher", "images", "gan"}
    table = summary.ledger_table(CHAIN).set_index("stage")
    student = table.loc["student"]
    assert (student["artifacts"], student["seconds"]) == (2, 4.0)
    assert student["data-free"] == "yes" and student["images itself"] == 0
    assert student["images behind"] == 60000, (
        "the GAN's 6,000 are among the teacher's 60,000 of the same split"
    )
    assert "mnist/train 60,000 (training)" in student["made from reads"]
    assert "mnist/train 6,000 (training the discriminator)" in student["made from reads"]
    assert student["reads itself"] == "mnist/test 10,000 (evaluation)"
    assert table.loc["synthesize"]["reads itself"] == "none"
    assert table.loc["teacher"]["data-free"] == "no" and table.loc["teacher"]["images behind"] == 0


def test_a_checkpoint_brings_the_reads_of_its_training():
    shipped = record("teacher", [], TEST, {**TRAINING, "inherited": True})
    row = summary.ledger_table({"shipped": shipped}).iloc[0]
    assert row["data-free"] == "no" and row["images itself"] == 0 and row["images behind"] == 60000


def test_a_training_that_nobody_recorded_is_no_data_free_one():
    unknown = record("teacher", [], {**read("not recorded", "training", 0), "inherited": True})
    row = summary.ledger_table({"own": unknown}).iloc[0]
    assert row["data-free"] == "not recorded"
    assert row["made from reads"] == "not recorded (training)"


def test_splits_add_up_and_purposes_do_not():
    counts = {
        ("a", "training"): 5,
        ("a", "class attention probes"): 3,
        ("b", "training"): 2,
        ("a", "evaluation"): 100,
    }
    assert summary.learned_from(counts) == 7


def test_parents_are_found_in_the_store(tmp_path):
    store = Store(tmp_path)
    parent = store.get_or_make("first", {"a": 1}, lambda work: {})
    child = store.get_or_make("second", {"b": 2}, lambda work: {}, [parent])
    reports = {"10_x": {"artifacts": [record("second", child.parents) | {"key": child.key}]}}
    assert set(summary.artifacts_behind(reports, store)) == {parent.key, child.key}


def test_a_parent_that_is_gone_is_left_out(tmp_path):
    reports = {"10_x": {"artifacts": [record("second", ["first-0123456789abcdef"]) | {"key": "k"}]}}
    assert set(summary.artifacts_behind(reports, Store(tmp_path))) == {"k"}
    assert len(summary.ledger_table(summary.artifacts_behind(reports, Store(tmp_path)))) == 1


def test_the_reports_are_those_of_the_first_folder_that_has_any(tmp_path, capsys):
    for day, notebooks in {"b": ["30_x"], "c": ["20_y"], "a": ["90_summary"]}.items():
        (tmp_path / day / "metrics").mkdir(parents=True)
        for name in notebooks:
            (tmp_path / day / "metrics" / f"{name}.json").write_text(f'{{"notebook": "{name}"}}')
    found = summary.read_reports(*(tmp_path / day for day in "0abc"))
    assert found == {"30_x": {"notebook": "30_x"}}
    assert capsys.readouterr().out == f"the reports of {tmp_path / 'b'}\n"


def test_nothing_run_yet_is_an_empty_summary(tmp_path):
    reports = summary.read_reports(tmp_path)
    tables = (summary.headline_table(reports), summary.time_table(reports))
    assert reports == {} and all(table.empty for table in (*tables, summary.ledger_table({})))
