"""The summary counts real images through everything that a stage was made from."""

import numpy as np

from dfkd_lib.core import counts, ledger
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
    assert student["itself data-free"] == "yes" and student["images itself"] == 0
    assert student["images behind"] == 60000, (
        "the GAN's 6,000 are among the teacher's 60,000 of the same split"
    )
    assert "mnist/train 60,000 (training)" in student["made from reads"]
    assert "mnist/train 6,000 (training the discriminator)" in student["made from reads"]
    assert student["reads itself"] == "mnist/test 10,000 (evaluation)"
    assert table.loc["synthesize"]["reads itself"] == "none"
    assert (
        table.loc["teacher"]["itself data-free"] == "no"
        and table.loc["teacher"]["images behind"] == 0
    )


def test_teachers_and_priors_count_once_for_each_split(tmp_path):
    store, images = Store(tmp_path), np.arange(5)

    def made(stage: str, parents, **splits: int):
        def make(work):
            for split, count in splits.items():
                ledger.read(split, images[:count])

        return store.get_or_make(stage, {}, make, parents, dict.fromkeys(splits, "training"))

    teacher, prior = made("teacher", [], a=5), made("prior", [], a=3, b=2)
    student = made("student", [teacher, made("images", [teacher, prior])])
    found = counts.images_behind(store, student)
    assert found == {("a", "training"): 5, ("b", "training"): 2}
    assert counts.total_text(found) == "7"
    assert counts.images_behind(store, student, without=teacher.key)["a", "training"] == 3
    assert counts.most_images(student.ledger) == {}
    row = read("not recorded", "training", 0)
    unknown = counts.most_images([row])
    assert counts.total_text(unknown) == "0 and others that nobody recorded"
    assert counts.purposes_text(unknown) == "0 and others that nobody recorded"
    both = counts.most_images([row, TRAINING, TEST])
    assert counts.purposes_text(both) == "60,000 (training) and others that nobody recorded"


def test_the_table_says_what_kept_other_images_away_and_what_a_checkpoint_brings():
    shipped = record("teacher", [], TEST, {**TRAINING, "inherited": True})
    unknown = record("own", [], {**read("not recorded", "training", 0), "inherited": True})
    guarded = {**record("student", [], TEST), "guard": ledger.ISOLATED}
    table = summary.ledger_table({"a": shipped, "b": unknown, "c": guarded}).set_index("stage")
    assert list(table["undeclared images"]) == ["not recorded", "isolated", "not recorded"]
    assert list(table["itself data-free"]) == ["not recorded", "yes", "no"]
    assert list(table["images itself"]) == [0, 0, 0]
    assert table.loc["teacher", "images behind"] == 60000
    assert table.loc["own", "made from reads"] == "not recorded (training)"


def test_splits_add_up_and_purposes_do_not():
    found = {
        ("a", "training"): 5,
        ("a", "class attention probes"): 3,
        ("b", "training"): 2,
        ("a", "evaluation"): 100,
    }
    assert summary.learned_from(found) == 7


def test_parents_are_found_in_the_store_and_one_that_is_gone_is_left_out(tmp_path):
    store = Store(tmp_path)
    parent = store.get_or_make("first", {"a": 1}, lambda work: {})
    child = store.get_or_make("second", {"b": 2}, lambda work: {}, [parent])
    parents = [*child.parents, "first-0123456789abcdef"]
    behind = summary.artifacts_behind(
        {"10_x": {"artifacts": [record("second", parents) | {"key": child.key}]}}, store
    )
    assert set(behind) == {parent.key, child.key} and len(summary.ledger_table(behind)) == 2


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
