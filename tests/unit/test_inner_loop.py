"""What happens between two looks at the losses: nothing waits for the device, images stay uint8; and torch.compile."""

import os
import shutil
import sys
from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from steps import distill_step, gan_step
from torch import nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode

from dfkd_lib import training
from dfkd_lib.attention import outputs_and_probe
from dfkd_lib.core import WorkbenchError
from dfkd_lib.datasets import generate_scenes, load_images, to_float
from dfkd_lib.detection import DetectionWeights, SceneBatches, answers, detection_step
from dfkd_lib.distill import KDWeights, LiveTeacher
from dfkd_lib.models import Discriminator, Generator, create_detector, create_model
from dfkd_lib.synthesis.canvas import pad_to_gan
from dfkd_lib.training import Augmentation, Batch, TensorBatches, TrainConfig, loop

# What makes the host wait for a GPU: numbers read off, sizes that hang on values, copies to the host.
WAITS = (
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "unique",
    "equal",
    "is_nonzero",
    "bincount",
    "repeat_interleave",
)


class Waits(TorchDispatchMode):
    """Counts the operations that would wait for a device; not those of an optimizer, whose step counts lie on the host."""

    def __init__(self):
        super().__init__()
        self.seen, self.quiet = Counter(), False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        masked = name in ("index", "index_put", "index_put_") and any(
            isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        if not self.quiet and (
            masked or any(name.lstrip("_").startswith(wait.lstrip("_")) for wait in WAITS)
        ):
            self.seen["transformers" if _asked_by_transformers() else name] += 1
        return func(*args, **(kwargs or {}))


def _asked_by_transformers() -> bool:
    """Whether that library's own code, the nearest that is not torch's, made the call."""
    frame = sys._getframe(2)
    while frame and f"{os.sep}torch{os.sep}" in frame.f_code.co_filename:
        frame = frame.f_back
    return f"{os.sep}transformers{os.sep}" in frame.f_code.co_filename


@contextmanager
def counted(monkeypatch):
    """The waits inside the loop's steps (step function, backward, clipping, sums), between its looks."""
    waits, step = Waits(), loop._Run.take_step

    def watched(*args):
        with waits:
            return step(*args)

    monkeypatch.setattr(loop._Run, "take_step", watched)
    hooks = [
        register_optimizer_step_pre_hook(lambda *_: setattr(waits, "quiet", True)),
        register_optimizer_step_post_hook(lambda *_: setattr(waits, "quiet", False)),
    ]
    yield waits.seen
    for hook in hooks:
        hook.remove()


@pytest.fixture(scope="module")
def images():
    return load_images("mnist", "train").sample(64, 0)


def batches_of(images, augmentation=Augmentation(kind="shift"), seen=None):
    def transform(batch, generator):
        if seen is not None:
            seen.append(batch[0].dtype)
        return augmentation(Batch(*batch), generator)

    return TensorBatches((images.images, images.labels, torch.arange(len(images))), 16, transform)


def frozen_teacher():
    torch.manual_seed(1)
    return create_model("vit_mnist_smoke").eval().requires_grad_(False)


def fit(model, step, batches, **config):
    """One epoch of training, unless the configuration says otherwise."""
    config = TrainConfig(**{"epochs": 1, "batch_size": 16, "lr": 1e-3, **config})
    return training.fit({"m": model}, step, batches, config)


def fit_gan(images, lam, **config):
    parts = {
        "generator": Generator(10, 1, width=32),
        "discriminator": Discriminator(10, 1, 8, 0.1),
    }
    step = gan_step(*parts.values(), frozen_teacher(), torch.full((10, 49), 1 / 49), lam, 28, 4)
    batches = TensorBatches(
        (images.images, images.labels), 16, lambda b, _: (pad_to_gan(to_float(b[0])), b[1])
    )
    config = TrainConfig(epochs=1, batch_size=16, lr=1e-3, **config)
    return training.fit(parts, step, batches, config, {name: [name] for name in parts})


def test_the_counter_counts(monkeypatch):
    model = nn.Linear(4, 1)

    def step(batch, progress):
        loss = model(batch[0]).square().mean()
        return {"loss": loss, "seen": loss.item() + float(batch[0][batch[0] > 0].sum())}

    with counted(monkeypatch) as seen:
        fit(model, step, TensorBatches((torch.randn(16, 4),), 8))
    assert seen["_local_scalar_dense"] == 4 and seen["index"] == 2


@pytest.mark.parametrize(
    "augmentation", [Augmentation(kind="shift"), Augmentation(kind="shift", mix="cutmix")]
)
def test_no_wait_in_the_step_of_a_student(images, monkeypatch, augmentation):
    student = create_model("vit_mnist_smoke")
    step = distill_step(student, LiveTeacher(frozen_teacher()), KDWeights())
    with counted(monkeypatch) as seen:
        fit(student, step, batches_of(images, augmentation), grad_clip=1.0, precision="bf16")
    assert not seen


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_no_wait_in_the_step_of_the_gan(images, monkeypatch, lam):
    with counted(monkeypatch) as seen:
        fit_gan(images, lam, optimizer="adam", grad_clip=5.0)
    assert not seen


def test_the_step_of_a_detector_waits_for_its_pairing_alone(monkeypatch):
    """Hungarian matching is done on the host: one copy of the costs there a pairing (objects; teacher's queries).

    Of a DETR, transformers itself asks: whether a mask masks (encoder, decoder), and in training after each encoder layer
    whether its output is finite.
    """
    scenes = generate_scenes(8, 48, 0, "train")
    teacher, student = (create_detector("detr_nano", len(scenes.classes)) for _ in range(2))
    weights = DetectionWeights(giou=2.0, box_distillation=1.0, attention_distillation=1.0)
    frozen = answers(teacher.eval().requires_grad_(False))
    step, copies = detection_step(weights), []

    def taken(batch, _):
        return step(student, batch, frozen)

    monkeypatch.setattr(
        "dfkd_lib.detection.matching._assigned",
        lambda cost: (
            copies.append(1) or torch.arange(cost.shape[1]).expand(cost.shape[:2]) % cost.shape[2]
        ),
    )
    with counted(monkeypatch) as seen:
        fit(student, taken, SceneBatches(scenes, 4), grad_clip=1.0)
    layers = len(student.network.model.encoder.layers)
    assert len(copies) == 4 and set(seen) == {"transformers"}
    assert seen["transformers"] <= 2 * (
        2 * 2 * 2 + layers
    )  # 2 steps of 2 networks: a mask's look is two operations


def test_images_stay_uint8_until_they_are_augmented(images):
    seen = []
    batches = batches_of(images, seen=seen)
    batches.to(torch.device("cpu"))
    (first, *_) = batches(0, torch.Generator().manual_seed(0))
    assert set(seen) == {torch.uint8}
    assert batches.tensors[0].dtype == torch.uint8
    assert first.images.dtype == torch.float32


@pytest.fixture
def traced(monkeypatch):
    """torch.compile without its C++: the graphs are taken and run as they are. Counts those of whole modules."""
    count, whole = Counter(), torch.compile

    def graphs(model, **_):
        def backend(graph, inputs):
            count["graphs"] += 1
            return graph.forward

        return whole(model, backend=backend)

    def compile_module(module, **_):
        module._compiled_call_impl = graphs(module._call_impl)

    monkeypatch.setattr(nn.Module, "compile", compile_module)
    yield count
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["vit_mnist_smoke", "titn_small"])
def test_compiled_students_learn_as_others(images, traced, tmp_path, name):
    """Every loss, the patch loss of captured attention too; the checkpoint goes on uncompiled, keys unchanged."""
    found = {}
    for compiled in (False, True):
        torch.manual_seed(0)
        student = create_model(name)
        names = list(student.state_dict())
        step = distill_step(student, LiveTeacher(frozen_teacher()), KDWeights())
        config = TrainConfig(epochs=1, batch_size=16, lr=1e-3, compile=compiled)
        found[compiled] = training.fit(
            {"m": student}, step, batches_of(images), config, checkpoint=tmp_path / str(compiled)
        )
        assert list(student.state_dict()) == names and student._compiled_call_impl is None
    for loss in ("loss", "kd", "ce", "patch"):
        assert found[True][0][loss] == pytest.approx(found[False][0][loss], rel=1e-4)
    assert traced["graphs"] >= 1
    fresh = create_model(name)
    assert training.restore(tmp_path / "True", {"m": fresh}) == found[True]
    with torch.no_grad():
        assert outputs_and_probe(fresh.eval(), torch.zeros(2, 1, 28, 28))[1].shape[0] == 2


def test_several_modules_are_compiled(images, traced):
    history = fit_gan(images, 1.0, compile=True)
    assert traced["graphs"] >= 2 and torch.isfinite(torch.tensor(history[0]["generator_loss"]))


def square(model):
    return lambda batch, progress: {"loss": model(batch[0]).square().mean()}


def test_without_a_compiler_the_error_says_so():
    from torch._inductor import config as inductor
    from torch._inductor import cpp_builder

    cpp_builder.cpp_compiler_search.cache_clear()
    model = nn.Sequential(nn.Linear(5, 3), nn.GELU())
    no_compiler = {"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}
    with inductor.patch(no_compiler), pytest.raises(WorkbenchError, match="no compiler that works"):
        fit(model, square(model), TensorBatches((torch.randn(8, 5),), 4), compile=True)
    torch._dynamo.reset()
    cpp_builder.cpp_compiler_search.cache_clear()


@pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler here"
)
def test_a_module_compiled_in_earnest_learns_as_another():
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
        batches = TensorBatches(
            (torch.randn(16, 4, generator=torch.Generator().manual_seed(0)),), 8
        )
        history = fit(model, square(model), batches, epochs=2, lr=0.1, compile=compiled)
        found.append(history[-1]["loss"])
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    torch._dynamo.reset()
