"""Steps of one's own of both GANs: what their training cannot use is refused at the first step, with its place."""

import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from cells import run_cell
from torch import nn

from dfkd_lib.core import Store, WorkbenchError, artifacts
from dfkd_lib.core.code import stage_fingerprint
from dfkd_lib.datasets import Scenes, generate_scenes
from dfkd_lib.detection import SceneGAN
from dfkd_lib.detection.probes import SIDE
from dfkd_lib.detection.scene_gan import PROBES, scene_gan_step
from dfkd_lib.models import create_detector
from dfkd_lib.synthesis import CGAN, Given, class_probes, gan_step
from dfkd_lib.training import Batch, bound
from dfkd_lib.training.check import bound_updates, place_of

SMALL = {"epochs": 1, "precision": "fp32", "lam": 0.0, "d_width": 8, "width": 16}
# Steps of both GANs: `loss` is one of the generator's.
HEADS = {
    "images": "def step(nets, real, labels, lam):\n    loss = nets.generator(labels, *nets.generator.noise(len(real))).mean()\n",
    "scenes": "def step(nets, batch, lam):\n    real, (codes, _) = batch.images, nets.encode(batch)\n"
    "    loss = nets.generator(batch.labels, batch.boxes, *codes).mean()\n",
}
REFUSED = {
    "yield 'generator', {'adversarial': loss}": "yields no loss",
    "yield 'generator', loss": "yields no loss",
    "yield 'generator', {'loss': loss, 'other': 1.0}": "yields something else than a number",
    "yield 'generator', {'loss': loss[None]}": "yields something else than a number",
    "yield 'generator', {'loss': loss.detach()}": "yields a loss without gradient",
    "yield {'loss': loss}": "yields something else than an update",
    "yield 'critic', {'loss': loss}": "yields losses for an unknown optimizer",
    "yield ['critic'], {'loss': loss}": "yields losses for an unknown optimizer",
    "return {'loss': loss}": "returns what it should yield",
    "return ('generator', {'loss': loss})": "returns what it should yield",
    "loss.backward()": "returns what it should yield",
    "if loss is None: yield": "yields no update",
    "real.zero_()\n    yield 'generator', {'loss': loss}": "changes its batch",
}


@pytest.fixture(scope="module")
def trainers(tiny):
    """{name of a GAN: a function that trains it by a step, None: by the library's}."""
    store, images, teacher = tiny
    given = Given(
        teacher, images.classes, images.shape, class_probes(store, teacher, images), images
    )
    scenes = Scenes.of(generate_scenes(8, 48))
    classes = list(scenes.classes)

    def make(work):
        torch.manual_seed(0)
        detector = create_detector("detr_nano", len(classes))
        artifacts.save_tensors(work / "model.safetensors", detector.state_dict())
        artifacts.save_tensors(work / PROBES, {"probes": torch.rand(len(classes), SIDE**2)})
        return {"classes": classes}

    known = store.get_or_make("detector", {"model": "detr_nano"}, make)

    def train(store, gan, given, step):
        return (gan.with_step(step) if step else gan).train(store, *given)

    return {
        "images": partial(train, gan=CGAN(**SMALL, batch_size=20), given=[given]),
        "scenes": partial(train, gan=SceneGAN(**SMALL, batch_size=4), given=[scenes, known, known]),
    }


def step_of(name: str, ending: str):
    return run_cell(f"{HEADS[name]}    {ending}\n", {"__name__": "__main__"})["step"]


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("ending", REFUSED)
def test_a_gans_step_that_cannot_train_is_refused_with_its_place(trainers, tmp_path, name, ending):
    with pytest.raises(WorkbenchError, match=f"the step {REFUSED[ending]}") as caught:
        trainers[name](Store(tmp_path), step=step_of(name, ending))
    error = caught.value
    assert error.where.startswith("<cell ") and error.where.endswith(", line 1")
    assert error.expected and error.got and error.fix


@pytest.mark.parametrize("name, wrong", [("images", "scenes"), ("scenes", "images")])
def test_a_gans_step_that_takes_something_else_is_refused(trainers, tmp_path, name, wrong):
    step = step_of(wrong, "yield 'generator', {'loss': loss}")
    with pytest.raises(WorkbenchError, match="cannot be called as a GAN's") as caught:
        trainers[name](Store(tmp_path), step=step)
    assert "line 1" in caught.value.where and "lam" in caught.value.got


@pytest.mark.parametrize("name, own", [("images", gan_step), ("scenes", scene_gan_step)])
def test_the_check_changes_neither_weights_nor_losses(trainers, tmp_path, name, own):
    def step(*given):
        yield from own(*given)

    found = []
    for number, one in enumerate((None, step, partial(step))):
        made = trainers[name](Store(tmp_path / str(number)), step=one)
        (row,) = made.json("history.json")
        file = next(made.path.glob("generator*.safetensors"))
        losses = {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")}
        found.append((losses, file.read_bytes()))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("kind", [CGAN, SceneGAN])
def test_keys_do_not_know_the_check(monkeypatch, kind):
    gan = kind()

    def make(work):
        return gan._fit(work)

    known = stage_fingerprint(make)
    assert f"{kind.__name__}._fit" in known.table
    monkeypatch.setattr(kind, "_fit", kind._fit.__wrapped__)
    assert stage_fingerprint(make).digest == known.digest


def test_an_optimizer_that_comes_late_is_checked_when_it_comes():
    loss = torch.ones((), requires_grad=True)

    def step(turn):
        yield "generator", {"loss": loss}
        if turn:
            yield "discriminator", {"total": loss}

    run = bound_updates(step)
    assert [name for name, _ in run(0)] == [name for name, _ in run(0)] == ["generator"]
    with pytest.raises(WorkbenchError, match="yields no loss"):
        list(run(1))


def test_the_batch_is_looked_at_in_the_first_step_alone():
    loss, batch = torch.ones((), requires_grad=True), torch.zeros(2)

    def step(*given):
        given[0].add_(torch.tensor(float(len(seen))))
        yield "generator", {"loss": loss}

    seen = []
    run = bound_updates(step)
    list(run(batch))
    seen.append(1)
    list(run(batch))
    with pytest.raises(WorkbenchError, match="changes its batch") as caught:
        list(bound_updates(step)(batch))
    assert "given[0]" in caught.value.expected


class Own:
    def __call__(self, student, batch):
        return {"loss": student(batch.images).mean().expand(self.shape)}

    shape = ()


class OwnModule(nn.Module):
    def forward(self, student):
        return {}


def line_of(function) -> str:
    return f"{__file__}, line {function.__code__.co_firstlineno}"


def test_the_place_of_a_step_is_that_of_the_function_or_class_beneath():
    assert place_of(line_of) == line_of(line_of)
    assert place_of(partial(partial(line_of), 1)) == f"line_of, {line_of(line_of)}"
    assert place_of(Own()) == f"Own, {line_of(Own.__call__)}"
    assert place_of(partial(Own())) == f"Own, {line_of(Own.__call__)}"
    assert place_of(Own().__call__) == line_of(Own.__call__)
    assert place_of(OwnModule()) == f"OwnModule, {line_of(OwnModule.forward)}"
    assert place_of(len) == repr(len)


def test_the_place_of_what_a_notebook_defines_is_its_cell_and_line(monkeypatch):
    cells = ["", "1 + 1", "x = 1\n\ndef step():\n    pass\n\nother = lambda: 0\n"]
    names = {}
    exec(compile(cells[2], "cell-2", "exec"), names)
    compiler = SimpleNamespace(get_code_name=lambda raw, transformed, number: f"cell-{number}")
    shell = SimpleNamespace(user_ns={"In": cells}, compile=compiler)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert place_of(names["step"]) == "cell [2], line 3"
    assert place_of(partial(names["step"])) == "step, cell [2], line 3"
    assert place_of(names["other"]) == "cell [2], line 6"


@pytest.mark.parametrize("shape", [(1,), (1, 1), (2,)])
def test_a_loss_is_a_scalar(shape):
    batch, model = Batch(torch.rand(2, 3), torch.arange(2), torch.arange(2)), nn.Linear(3, 1)
    own = Own()
    assert bound(own, model, None)(batch, 0.0)["loss"].shape == ()
    own.shape = shape
    with pytest.raises(WorkbenchError, match="something else than a number") as caught:
        bound(own, model, None)(batch, 0.0)
    assert str(shape) in caught.value.got and caught.value.where.startswith("Own, ")
