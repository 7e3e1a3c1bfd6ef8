"""The worked examples of notebooks/README.md: each trains or makes something as it stands, and an edit of it counts."""

from types import SimpleNamespace

import pytest
import torch
from cells import examples, names_of_30, run_cell
from steps import train_student

from dfkd_lib import distill, models
from dfkd_lib.core import WorkbenchError
from dfkd_lib.distill import KDWeights, StudentConfig, titn
from dfkd_lib.synthesis import Given, make_images
from dfkd_lib.training import TrainConfig

QUICK = {"epochs": 1, "batch_size": 20}


def test_a_loss_of_ones_own(tiny):
    store, images, teacher = tiny
    (source,) = examples("A loss of your own, in notebook 30")
    config = StudentConfig(**QUICK, model="vit_mnist_smoke", precision="fp32")

    def train(text):
        step = run_cell(text, names_of_30())["step"]
        return distill.train(store, config, step, images, images, teacher)

    made = train(source)
    logged = made.json("history.json")[0]
    assert {"kd", "ce", "patch", "similarity"} <= set(logged)
    parts_of_loss = logged["kd"] + logged["ce"] + logged["patch"] + 2 * logged["similarity"]
    assert logged["loss"] == pytest.approx(parts_of_loss, rel=1e-4)
    assert train(source).cached
    assert train(source.replace("ours @ ours.T", "ours @ theirs.T")).key != made.key


def test_a_maker_of_ones_own(tiny):
    store, _, teacher = tiny
    (source,) = examples("A maker of your own, in notebook 20")
    given = Given(teacher, tuple("0123456789"), (1, 28, 28))

    def make(text):
        names = {"__name__": "__main__", "torch": torch, "makers": {}}
        maker = run_cell(text, names)["makers"]["blind ascent"]
        return make_images(store, maker, given, 20)

    images, made = make(source)
    assert len(images) == 20 and not images.real and make(source)[1].cached
    assert make(source.replace("gradient.sign()", "gradient"))[1].key != made.key
    drawn = "to_uint8(images.detach()).cpu()"
    for wrong in (f"{drawn}[:-1]", f"{drawn}[..., :14]", "images.detach()", f"{drawn}.numpy()"):
        with pytest.raises(WorkbenchError, match="one image for each label") as caught:
            make(source.replace(drawn, wrong))
        assert caught.value.where == "BlindAscent.drawing" and "uint8" in caught.value.expected


@pytest.fixture
def tables(monkeypatch):
    """The tables that an example adds an entry to, put back afterwards."""
    for table in (models.MODELS, titn.ROWS):
        for name, entry in dict(table).items():
            monkeypatch.setitem(table, name, entry)
    yield
    models.MODELS.pop("conv_deit", None)
    titn.ROWS.pop("DeiT on convolutions", None)


def test_a_student_of_ones_own(tiny, tables):
    store, images, teacher = tiny
    added, shallow = examples("A student of your own, in notebooks 60 and 30")
    run_cell(added, {"__name__": "__main__", "titn": titn})
    student = titn.TitnConfig(scale="small").students()["DeiT on convolutions"]
    assert student.model == "conv_deit"
    config = TrainConfig(**QUICK, lr=1e-3, precision="fp32")
    weights = KDWeights(kd=0.0, ce=0.5, patch=0.0, hard=0.5)
    made = train_student(store, "titn", student.model, teacher, images, images, config, weights)
    expected = sum(p.numel() for p in models.create_model("conv_deit").parameters())
    assert made.metrics["parameters"] == expected

    step = run_cell(examples("A loss of your own, in notebook 30")[0], names_of_30())["step"]
    names = {
        "__name__": "__main__",
        "cfg": SimpleNamespace(student=StudentConfig(**QUICK, precision="fp32"), seeds=(0,)),
        "distill": distill,
        "rep": SimpleNamespace(artifact=lambda *made: None),
        "rows": [],
        "sources": {"synthetic": (images, [])},
        "step": step,
        "store": store,
        "students": {},
        "teacher": teacher,
        "test_set": images,
    }
    run_cell(shallow, names)
    (artifact,) = names["students"]["synthetic, depth 2"]
    deep = models.create_model("vit_mnist_small")
    assert artifact.metrics["parameters"] < sum(p.numel() for p in deep.parameters())
    assert len(names["rows"]) == 1
