"""The papers' tables: the presets hold METHODS.md's numbers, costs are counted, what cannot be is refused first."""

import csv
import json
import re
import subprocess
import sys
from itertools import product

import pytest
import torch
from PIL import Image
from torch import nn

from dfkd_lib import presets
from dfkd_lib.core import REPOSITORY, Store, WorkbenchError, provenance
from dfkd_lib.distill import early, titn
from dfkd_lib.models import model_names
from dfkd_lib.pipeline import tables
from dfkd_lib.pipeline.asked import chosen
from dfkd_lib.reporting.papers import TABLES, Table, paper_number
from dfkd_lib.reporting.parts import Cell, Made, Part
from dfkd_lib.reporting.tables import BUILDERS, configuration, open_table
from dfkd_lib.training import Effort, classifier_effort, effort

METHODS = (REPOSITORY / "dfkd_lib" / "METHODS.md").read_text()


def methods_table(head: str) -> list[list[str]]:
    """The rows of the table of METHODS.md whose first line begins so."""
    lines = METHODS[METHODS.index(f"| {head}") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def numbers(cells):
    return [None if cell == "–" else float(cell) for cell in cells]


SETTINGS = methods_table("method | data | setting")[2:]


@pytest.mark.parametrize("method, data, name, value, source", SETTINGS)
def test_the_paper_preset_holds_what_methods_says(method, data, name, value, source):
    for one in presets.PROFILES if data == "–" else [data]:
        config = presets.of_preset(method, "paper", one)
        assert config.override({name: value}) == config, f"{one}: {config[name]}"


def test_the_papers_figures_are_those_of_methods():
    sets = ["mnist", "cifar10", "cifar100"]
    for data, (_, vanilla, augmented) in zip(sets, methods_table("A Table 2, FID")[2:]):
        assert paper_number(data, "frechet_vanilla") == (float(vanilla), "A Table 2")
        assert paper_number(data, "frechet_augmented") == (float(augmented), "A Table 2")
    pairs = {row[0]: numbers(row[1:]) for row in methods_table("A Tables 4, 5")[2:]}
    names = {"MNIST": ("mnist", "A Table 4"), "CIFAR-10": ("cifar10", "A Table 5")}
    for title, source in product(names, ("real", "synthetic")):
        column = "true data" if source == "real" else source
        for who, number in zip(("teacher", "student"), pairs[f"{title}, {column}"]):
            found, place = paper_number(names[title][0], f"{who}_{source}_accuracy")
            assert 100 * found == pytest.approx(number) and place == names[title][1]
    for name, *figures in methods_table("C Table 2, CIFAR-100")[2:]:
        assert titn.PAPER_TEACHERS[name] == numbers(figures)
    (head, _, *rows) = methods_table("C Tables 3-5, top-1")
    for row in rows:
        known = titn.PAPER[row[0].lower().replace("-", "")]
        for name, number in zip(head[1:], numbers(row[1:])):
            assert (known[name][0] if name in known else None) == number, (row[0], name)


def linear(images=1000, batch_size=50, **how):
    def inputs(count):
        return (torch.zeros(count, 300),)

    return Effort(f"linear {how}", lambda: nn.Linear(300, 200), inputs, images, batch_size, **how)


def test_operations_and_memory_of_a_linear_layer_are_known():
    learning, looking = linear(), linear(learns=False)
    assert looking.operations == 1000 * 2 * 300 * 200
    assert learning.operations == 3 * looking.operations
    assert looking.memory == 4 * 300 * 200 + 4 * 200
    # Weights, gradients and Adam's two moments; of each image of the batch the input.
    assert learning.memory == 4 * looking.memory + 4 * 50 * 300
    assert learning.memory_of(2) < learning.memory and learning.seconds > 0
    assert learning.fitting_batch(learning.memory_of(32)) == 32 and learning.fitting_batch(10) == 0


def test_a_rate_is_measured_once(monkeypatch):
    shape = {"img_size": 8, "in_chans": 1, "num_classes": 3}
    first = classifier_effort("cnn_small", shape, 5)
    assert first.seconds
    monkeypatch.setattr(effort, "_measure", None)
    assert classifier_effort("cnn_small", shape, 50).seconds == pytest.approx(10 * first.seconds)


def refused(call, *args):
    with pytest.raises(WorkbenchError) as caught:
        call(*args)
    return caught.value


@pytest.mark.parametrize(
    "names, data, settings, fix",
    [
        (["A3"], "", [], "did you mean"),
        (["A4"], "cifar10", [], "A5"),
        (["A4"], "nowhere", [], "leave --data out"),
        (["A4"], "mnits", [], "did you mean 'mnist'"),
        (["A4"], "", ["A4.studnt.epochs=1"], "did you mean 'student.epochs'"),
        (["A4"], "", ["student.epochs=1"], "--set A4."),
        (["A4"], "", ["A5.seeds=0"], "--set A4."),
    ],
)
def test_what_is_no_table_no_data_and_no_setting_is_refused(names, data, settings, fix, tmp_path):
    error = refused(chosen, names, "smoke", data, settings, str(tmp_path))
    assert fix in error.fix


def test_data_go_to_the_tables_they_are_of(tmp_path):
    folder = photographs(tmp_path / "photographs", 0)
    asked = chosen(["a4", "A5", "C6"], "smoke", folder, ["a5.seeds=3"], str(tmp_path))
    assert [one.data for one in asked] == ["mnist", folder, folder]
    assert [one.overrides for one in asked] == ["", "seeds=3", ""]
    config = configuration("A5", "paper", folder, "seeds=3")
    assert config.teacher.model == "deit_base_patch4_32" and config.seeds == (3,)
    for word in ("1" * 400, "a\0b", "no/such/place"):  # can be no folder
        assert presets.data_set(word) == word


def test_a_table_of_several_sets_of_images_is_one_for_each(tmp_path):
    folder = photographs(tmp_path / "photo,graphs", 0)
    asked = chosen(["A2", "C3"], "smoke", "mnist, cifar10", ["A2.seeds=3"], str(tmp_path))
    assert [(one.name, one.table, one.data) for one in asked] == [
        ("A2_mnist", "A2", "mnist"),
        ("A2_cifar10", "A2", "cifar10"),
        ("C3", "C3", "cifar100"),
    ]
    assert [one.overrides for one in asked] == ["seeds=3", "seeds=3", ""]
    (one,) = chosen(["A2"], "smoke", folder, [], str(tmp_path))
    assert (one.name, one.data) == ("A2", folder)
    with pytest.raises(WorkbenchError, match="none of these tables"):
        chosen(["A2"], "smoke", "mnist,cifra10", [], str(tmp_path))


def test_data_that_are_not_there_are_refused_with_what_would(tmp_path):
    error = refused(
        tables.opened, tables.Request("C3", "smoke", "cifar100", "", str(tmp_path), "C3")
    )
    assert "folder of class folders" in error.fix


def report(efforts, preset, names=("one",), table="A4"):
    made = Made(configuration(table, "smoke", "mnist"), {n: Part(list, efforts) for n in names})
    asked = tables.Request(table, preset, "mnist", "", "unused", table)
    return tables.TableRun(asked, made, {name: (table, name) for name in names}, {})


def hours(count):
    """An effort of so many hours here."""
    one = linear()
    return linear(images=one.images * count * 3600 / one.seconds)


def test_what_two_tables_share_is_counted_once(small_table, capsys):
    """Parts without needs are the same by key; of others, whose own keys are not known yet, method, name and settings count."""
    asked = chosen(["T", "T2"], "smoke", "", [], small_table[0])
    reports = [tables.look(one) for one in asked]
    alone = 4 * linear().seconds
    assert [report.seconds for report in reports] == pytest.approx([alone, alone])
    assert tables.total(reports, "seconds") == pytest.approx(alone)
    assert "shared" not in tables.estimate_text(reports[:1])
    assert "what tables share counted once" in tables.estimate_text(reports)
    tables.refuse([reports[0]], 1.5 * alone / 3600, 1)
    tables.refuse(reports, 1.5 * alone / 3600, 1)


def photographs(folder, count):
    """A folder as CIFAR-10's, of so many images of noise in each class and split; returns it."""
    noise = torch.Generator().manual_seed(0)
    for split, name in product(("train", "test"), presets.CIFAR_CLASSES["cifar10"]):
        (folder / split / name).mkdir(parents=True)
        for place in range(count):
            pixels = torch.randint(256, (32, 32, 3), generator=noise, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / split / name / f"{place}.png")
    return str(folder)


def test_a_teachers_guide_costs_a_pass_of_each_image(tmp_path):
    """A teacher that is trained in the shipped one's place sees the CNN's predictions for every image it learns."""
    folder, artifacts = photographs(tmp_path / "cifar", 1), str(tmp_path / "artifacts")
    costs = []
    for guide in ("cnn_cifar10", ""):
        settings = ["A5.teacher.source=train", f"A5.teacher.guide={guide}"]
        (asked,) = chosen(["A5"], "smoke", folder, settings, artifacts)
        costs.append(tables.opened(asked).parts["teacher"].efforts)
    (learning, looking), (alone,) = costs
    assert learning.images == looking.images == alone.images and learning.name == alone.name
    assert looking.name.startswith("resnet11 ") and not looking.learns


def test_a_shipped_cnn_costs_b_and_c_a_look_at_the_test_images(tmp_path):
    """And their students a pass of it; but C2 trains each of the CNNs that it chooses from."""
    folder, artifacts = photographs(tmp_path / "cifar", 2), str(tmp_path / "artifacts")
    taught = {"B": "DeiT, 100 %, seed 0", "C4": "TITN, seed 0"}
    for table, student in taught.items():
        (asked,) = chosen([table], "quick", folder, [], artifacts)
        parts = tables.opened(asked).parts
        (looking,) = parts["teacher"].efforts
        assert looking.name.startswith("resnet11 ") and looking.images == 20 and not looking.learns
        learning, seen = parts[student].efforts
        assert seen.name == looking.name and seen.images == learning.images and learning.learns
    (asked,) = chosen(["C2"], "quick", folder, [], artifacts)
    efforts = [effort for part in tables.opened(asked).parts.values() for effort in part.efforts]
    assert all(one.learns for one in efforts) and len({one.name.split()[0] for one in efforts}) == 2


def test_c4_and_c6_share_teacher_and_titn(tmp_path):
    folder, artifacts = photographs(tmp_path / "cifar", 1), str(tmp_path / "artifacts")

    def looked(*settings):
        asked = chosen(["C4", "C6"], "smoke", folder, settings, artifacts)
        return (tables.look(one).missing for one in asked)

    c4, c6 = looked()
    assert {"teacher", "TITN, seed 0"} < c6.keys() < c4.keys() and c6.items() < c4.items()
    _, other = looked("C6.alpha=0.3")
    assert set(other.items()) & set(c4.items()) == {("teacher", c4["teacher"])}


@pytest.mark.parametrize(
    "words, fix",
    [
        (["A3"], "did you mean"),
        (["A4", "--data", "mnits"], "'mnist'"),
        (["A4", "--preset", "quik"], "'quick'"),
        (["A4", "--jobs", "0"], "give 1"),
        ([], "A2L"),
    ],
)
def test_a_typo_is_answered_before_torch_is_imported(words, fix):
    code = f"import sys; from dfkd_lib import cli; cli.main(['tables', *{words}]); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and fix in (done.stderr if words else done.stdout), done.stderr


def test_what_does_not_fit_the_time_is_refused_with_what_would():
    """A night has eight hours, and so have the papers' sizes without a GPU."""
    tables.refuse([report([hours(7.9)], "night")], None, 1)
    several = [report([hours(7)], "night"), report([hours(2)], "night", table="C5")]
    error = refused(tables.refuse, several, None, 1)
    assert "8 hours" in error.what and "dfkd tables C5" in error.fix
    names = ("one, seed 0", "one, seed 1")
    error = refused(tables.refuse, [report([hours(7)], "night", names)], None, 1)
    assert "--hours 1" in error.fix
    tables.refuse([report([hours(7)], "night", names)], 15, 1)
    tables.refuse([report([hours(1)], "paper")], None, 1)
    error = refused(tables.refuse, [report([hours(100)], "paper")], None, 1)
    assert "GPU" in error.what and "--preset night" in error.fix
    tables.refuse([report([hours(100)], "quick")], None, 1)


def test_what_does_not_fit_memory_is_refused_with_the_batch_that_would(monkeypatch):
    large = linear(batch_size=4096, setting="student.batch_size")
    monkeypatch.setattr(tables.training, "free_memory", lambda: large.memory_of(300) / tables.ROOM)
    error = refused(tables.refuse, [report([large], "smoke")], None, 1)
    assert error.fix == "--set A4.student.batch_size=256 would"


def test_a_cell_that_a_preset_leaves_out_says_so_and_every_teacher_of_c_is_built(tmp_path):
    store = Store(tmp_path / "artifacts")
    made = open_table(
        "A4", store, configuration("A4", "smoke", "mnist", "teacher_synthetic_epochs=0")
    )
    (cell,) = [c for c in made.cells if (c.row, c.column) == ("teacher", "synthetic")]
    assert not cell.parts and "teacher_synthetic_epochs" in cell.note and cell.paper == 97.32
    made = open_table("C2", store, configuration("C2", "paper", "mnist", "data.test_images=10"))
    optimizers = {f"vgg16_bn, {name}" for name in titn.PAPER_OPTIMIZERS}
    assert {cell.row for cell in made.cells} == {*titn.PAPER_TEACHERS, *optimizers}
    assert all(cell.parts and {*titn.PAPER_TEACHERS} < {*model_names()} for cell in made.cells)


def test_the_arms_of_b_differ_in_one_thing_each():
    def differences(a, b):
        return sum(x != y for x, y in zip(early.ARMS[a], early.ARMS[b]))

    for name in ("DeiT", "convolutional attention", "early features"):
        assert differences(name, "plain") == 1
    assert differences("DearKD", "DearKD, stage 1 alone") == 1


@pytest.fixture
def small_table(monkeypatch, tmp_path):
    """A table of two students whose training is to write a number down."""
    store = Store(tmp_path / "artifacts")

    def student(seed):
        def make(work):
            if seed == 9:
                raise ValueError("it broke")
            return {"accuracy": 0.5 + seed / 10, "parameters": 7}

        return [store.get_or_make("student", {"seed": seed}, make)]

    def build(given):
        parts = {f"student, seed {s}": Part(lambda s=s: student(s), (linear(),)) for s in (0, 1, 9)}
        parts["teacher"] = Part(lambda: student(5), (linear(),))
        cells = [
            Cell("student", "<top-1>", tuple(parts)[:2], paper=61.5),
            Cell("broken", "top-1", ("student, seed 9",)),
            Cell("none", "top-1", note="its weights are missing"),
        ]
        return Made(given.config, parts, cells)

    for name in ("T", "T2"):
        table = Table("A small table", "classification", ("mnist",))
        monkeypatch.setitem(TABLES, name, table)
        monkeypatch.setitem(BUILDERS, name, build)
    tables.opened.cache_clear()
    yield str(tmp_path / "artifacts"), str(tmp_path / "out")
    tables.opened.cache_clear()


def test_a_table_is_made_once_and_written_with_papers_figure_ours_and_notes(small_table, capsys):
    artifacts, out = small_table
    asked = chosen(["T"], "smoke", "", [], artifacts)
    how = (asked, out, 1, None, None, "dfkd tables T")
    page, whole = tables.run_tables(*how)
    said = capsys.readouterr().err
    assert not whole and re.search(r"4 of 4 parts .*operations, about", said.splitlines()[0])
    head, first, broken, none = csv.reader((page.parent / "tables" / "T.csv").open())
    row = dict(zip(head, first))
    shown = ("61.5", "50.00, 60.00 (n = 2)", "7 parameters")
    assert (row["paper"], row["ours"], row["size"]) == shown
    assert row["hardware"] == provenance.machine() and row["real images read"] == "0"
    assert "it broke" in broken[-1] and none[3] == "–" and none[-1] == "its weights are missing"
    text = page.read_text()
    assert (
        "&lt;top-1&gt;" in text and "its weights are missing" in text and "student.epochs" in text
    )
    saved = json.loads((page.parent / "results.json").read_text())["tables"]["T"]
    assert saved["cells"][0]["values"] == [50.0, 60.0]
    (page.parent / "results.json").unlink()
    tables.run_tables(*how)  # the others are found, and where they were made is known
    assert "1 of 4 parts" in capsys.readouterr().err
    again = dict(zip(*list(csv.reader((page.parent / "tables" / "T.csv").open()))[:2]))
    assert again == row


@pytest.mark.slow
def test_every_table_is_made_of_a_few_images(tmp_path):
    """C5 and B on digits, A2 and A5 on photographs of ten classes, each cell with a number or what is missing."""
    small = ["A2.seeds=0", "A5.seeds=0", "C6.seeds=0", "B.passes=60", "B.seeds=0", "C5.images=20"]
    asked = chosen(
        ["A2", "A5", "B", "C5", "C6"],
        "smoke",
        photographs(tmp_path / "cifar", 6),
        [*small, "A2.feature.fid_images=50", "A2.gan.epochs=1", "C5.seeds=0"],
        str(tmp_path / "artifacts"),
    )
    page, whole = tables.run_tables(asked, str(tmp_path / "out"), 1, None, None, "dfkd tables")
    assert whole
    text = page.read_text()
    for table, number in (("A2", 4), ("A2", 8), ("A5", 4), ("A5", 8), ("A5", 11)):
        section = text.split(f'<h2 id="{table}">')[1].split("<h2 ")[0]
        assert f"(A Figure {number})" in section
    assert len([*(page.parent / "figures").glob("*.svg")]) == 5
    for name, table in json.loads((page.parent / "results.json").read_text())["tables"].items():
        for cell in table["cells"]:
            assert cell["ours"] != "–" or "not measured" in cell["note"], (name, cell)
            if cell["column"] == "no real image":
                assert (cell["real images read"], cell["its teacher's"]) == ("0", "60 (training)")
