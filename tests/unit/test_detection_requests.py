"""What detection can and cannot be asked for: refused before anything is trained, by one check for notebook and command; and
real-time teachers, which guide no GAN."""

import json
import math
from collections import defaultdict
from itertools import product

import pytest
from cells import NOTEBOOKS, run_cell
from folders import write_coco

from dfkd_lib import detection, presets
from dfkd_lib.core import Store, WorkbenchError
from dfkd_lib.datasets import generate_scenes
from dfkd_lib.detection import DetectionConfig, DetectionStudy
from dfkd_lib.detection.__main__ import DEFAULTS
from dfkd_lib.detection.__main__ import main as command_line
from dfkd_lib.detection.study import tasks

ATTO = "deimv2_atto"
TINY = "data.size=48 data.train_scenes=8 data.test_scenes=4 teacher.epochs=1 student.epochs=1"
TINY += (
    " teacher.batch_size=4 batch_size=4 student.model=detr_nano inverted_scenes=2 inversion.steps=2"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """COCO folders by name: "same" has the generated scenes' classes, "more" one without an object, "other" another's name."""
    found = {name: tmp_path_factory.mktemp(name) for name in ("same", "more", "other")}
    for (name, folder), split in product(found.items(), ("train", "val")):
        write_coco(generate_scenes(6, 96, seed=5), folder, split)
        file = folder / f"{split}.json"
        content = json.loads(file.read_text())
        if name == "more":
            content["categories"].append({"id": 9, "name": "kite"})
        if name == "other":
            content["categories"][0]["name"] = "kite"
        file.write_text(json.dumps(content))
    return {name: f"data={folder}" for name, folder in found.items()}


def asked_for(words: str, folders: dict) -> list[str]:
    """Settings, a folder by its short name, over tiny ones."""
    known = (folders.get(word, word).split("=", 1) for word in f"{TINY} {words}".split())
    return [f"{name}={value}" for name, value in dict(known).items()]


REFUSED = {
    "students=plain,nobody": "there is no nobody",
    "students=plain,aligned student.model=dfine_nano": "dfine_nano cannot be asked",
    f"students=plain,aligned teacher.model={ATTO}": f"{ATTO} cannot be asked",
    f"students=train losses.query_boxes=1 teacher.model={ATTO}": f"{ATTO} cannot be asked",
    "students=plain,synthetic data.size=56": "whose side 16 divides",
    f"students=vanilla teacher.model={ATTO}": "cannot be guided by deformable",
    f"students=layouts teacher.model={ATTO}": "students=plain,train,inverted",
    "students=plain student.weights=there_is_none.safetensors": "weights to start from are missing",
    "students=plain student.weights=data/teachers/detr_micro_scenes.safetensors": "does not fit",
    "same start=generated students=plain teacher.model=detr_nano": "teacher.model=detr_micro",
    "same start=generated students=aligned teacher.model=detr_micro student.model=dfine_nano": "cannot be asked",
    "more students=plain,synthetic": "a class has no object.*kite",
    "other students=plain,generated": "students=plain,train",
    "other students=plain teacher.source=shipped": "class names differ",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_trained(
    words, folders, monkeypatch, tmp_path
):
    def trained(*_, **__):
        raise AssertionError("something is trained")

    monkeypatch.setattr("dfkd_lib.detection.study.train", trained)
    monkeypatch.setattr("dfkd_lib.detection.__main__.Store", lambda: Store(tmp_path / "store"))
    out = str(tmp_path / "results.json")
    with pytest.raises(WorkbenchError, match=f"(?s){REFUSED[words]}"):
        command_line(["students", "--out", out, *asked_for(words, folders)])


@pytest.mark.parametrize(
    "words",
    [
        "data.size=56 students=plain,train,inverted,generated",
        f"teacher.model={ATTO} students=plain,train,inverted,generated",
        "student.model=dfine_nano students=train,synthetic,layouts",
        "more students=plain,train",
        "other start=generated students=plain,train teacher.model=detr_micro",
    ],
)
def test_what_only_other_students_need_is_not_asked_for(words, folders):
    config = DetectionConfig().override(DEFAULTS).override(" ".join(asked_for(words, folders)))
    DetectionStudy(None, config).check()


def test_a_notebooks_gans_are_checked_whatever_students_are_asked_for(folders):
    config = DetectionConfig().override(DEFAULTS)
    more = config.override(" ".join(asked_for("more students=plain", folders)))
    with pytest.raises(WorkbenchError, match=r"(?s)a class has no object.*kite"):
        DetectionStudy(None, more).check(gans=True)
    DetectionStudy(None, more.override(f"teacher.model={ATTO}")).check(gans=True)


def test_the_commands_students_are_the_notebooks_without_its_gans(capsys):
    config = DetectionConfig().override(DEFAULTS)
    quick = presets.load("detection", "quick")
    assert config.drawn == () and set(config.variants) == set(quick.variants) - set(quick.drawn)
    with pytest.raises(SystemExit):
        command_line(["--help"])
    assert f"students={config.students}" in capsys.readouterr().out
    assert config.override("students=plain,train,plain").variants == ("plain", "train")


@pytest.mark.slow
def test_a_real_time_teacher_teaches_without_gans(tmp_path, monkeypatch):
    """Its matched queries and its own finds, in real scenes, inverted and generated ones."""
    monkeypatch.setattr("dfkd_lib.detection.layouts.NOISE_IMAGES", 64)
    students = "train,inverted,generated"
    own = presets.load("detection", "quick", f"{TINY} teacher=train teacher.model={ATTO}")
    study = DetectionStudy(Store(tmp_path), own.override(f"students={students}"))
    study.check(gans=True)
    assert "no map" in study.without_gans.what and study.without_gans.got == ATTO
    names = defaultdict(object, study=study, gans={"attention GAN": own.gan})
    assert len(tasks(names)) == 4  # three students and the inverted scenes; no judge of them
    for name in students.split(","):
        made = study.student(name)
        (last,) = made.json("history.json")
        assert study.teacher.key in made.parents and study.teacher.settings["model"] == ATTO
        assert math.isfinite(last["distillation"]) and last["distillation"] > 0
        assert made.manifest["data_free"] == (name != "train")
    of_its_own = study.config.override("student.model=deimv2_atto")
    (last,) = DetectionStudy(study.store, of_its_own).student("train").json("history.json")
    assert last["own"] > 0 and last["distillation"] > 0
    step = detection.detection_step(own.losses)
    assert study.start(study.teacher, step) is None


@pytest.mark.slow
def test_notebook_40_with_a_real_time_teacher_says_what_it_leaves_out(
    tmp_path, monkeypatch, capsys
):
    """Its cells that teach, draw and measure."""
    monkeypatch.setattr("dfkd_lib.detection.layouts.NOISE_IMAGES", 64)
    monkeypatch.chdir(tmp_path)
    cells = json.loads((NOTEBOOKS / "40_detection_kd.ipynb").read_text())["cells"]
    source = {cell["id"].removeprefix("cell-"): "".join(cell["source"]) for cell in cells}
    names = run_cell(source["01"], {"__name__": "__main__"})
    names |= {"preset": "smoke", "students": "train,inverted", "interactive": False}
    names |= {"out_dir": str(tmp_path / "out"), "artifacts_dir": str(tmp_path / "artifacts")}
    names["overrides"] = f"{TINY} teacher.model={ATTO}"
    for cell in ("02", "04", "06", "08", "13", "14", "37", "16", "19"):
        run_cell(source[cell], names)
    printed = capsys.readouterr().out
    assert printed.count("No GANs, and no measures of drawn scenes: the GANs cannot be guided") == 1
    assert "Not measured" in printed and names["measured"] == {}
    assert list(names["drawn"]) == ["inversion"]
    assert list(names["made"]) == ["labels + teacher", "scenes inverted from the teacher"]
    stages = {key.rpartition("-")[0] for key in names["store"].keys()}
    assert "inverted_scenes" in stages and not stages & {"scene_gan", "object_probes"}
