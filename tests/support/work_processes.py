"""What several processes do in test_processes.py: `accelerate launch tests/work_processes.py PART FOLDER`.

Also called there in one process, so that both do just the same. Each process writes what it saw to FOLDER/<PART>-<processes>-<rank>.json.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from steps import train_student
from torch import nn

from dfkd_lib import training
from dfkd_lib.core import WorkbenchError, processes
from dfkd_lib.core.artifacts import Store, file_hash
from dfkd_lib.datasets import generate_scenes, load_images
from dfkd_lib.detection import DetectionWeights, SceneBatches, answers, detection_step, open_shipped
from dfkd_lib.distill import KDWeights
from dfkd_lib.training import (
    Augmentation,
    TensorBatches,
    TrainConfig,
    label_step,
    shipped_teacher,
    train_classifier,
)


def digest(modules) -> float:
    """A number that tells whether weights are the same, to the last bit."""
    values = [value for module in modules for value in module.state_dict().values()]
    return float(sum(place * value.double().sum() for place, value in enumerate(values, 1)))


def students(store: Store) -> dict:
    """A KD student of MNIST images, shifted anew at each step, in fp32 and, for an epoch, in bf16: curves, ledger, digest."""
    train = load_images("mnist", "train").sample(512, 0)
    test = load_images("mnist", "test").sample(200, 0)
    teacher, found = shipped_teacher(store, "vit_mnist_small", test), {}
    for name, epochs, precision in (("fp32", 3, "fp32"), ("bf16", 2, "bf16")):
        config = TrainConfig(
            epochs=epochs, batch_size=32, lr=5e-3, warmup_epochs=0.5, precision=precision
        )
        config = config.replace(grad_clip=1.0, weight_decay=0.01)
        given = (teacher, train, test, config, KDWeights(), Augmentation(kind="shift"))
        art = train_student(store, "student", "vit_mnist_smoke", *given)
        found[name] = {
            "key": art.key,
            "cached": art.cached,
            "history": art.json("history.json"),
            "ledger": art.ledger,
            "weights": {k: v.flatten()[:50].tolist() for k, v in art.tensors().items()},
            "accuracy": art.metrics["accuracy"],
        }
    return found


def detector() -> dict:
    """The shipped detector distilled into itself, on scenes with unequally many objects that are none of its own.

    One that has learnt nothing has queries all alike: which of them is paired with an object then hangs on the last bit.
    Adam would make as much of that bit, where a gradient is nearly 0, as of any: so SGD.
    """
    scenes = generate_scenes(12, 80, 0, "train")
    teacher = open_shipped("detr_micro_scenes")
    student = open_shipped("detr_micro_scenes").requires_grad_(True)
    without_chance(student)
    weights = DetectionWeights(giou=2.0, box_distillation=1.0, attention_distillation=1.0)
    history = training.fit(
        {"detector": student},
        training.bound(detection_step(weights), student, answers(teacher)),
        SceneBatches(scenes, 6),
        TrainConfig(epochs=2, batch_size=6, lr=1e-3, optimizer="sgd", grad_clip=1.0),
    )
    return {"history": history, "digest": digest([student])}


def without_chance(module: nn.Module) -> None:
    """Dropout off: it is another in each process."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)


def normed() -> dict:
    """A CNN with batch norms: history and digest, running statistics among it."""
    train = load_images("mnist", "train").sample(96, 1)
    torch.manual_seed(3)
    below = nn.Conv2d(1, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()
    model = nn.Sequential(*below, nn.Linear(8 * 169, 10), nn.BatchNorm1d(10))
    batches = TensorBatches((train.images.float() / 255, train.labels), 24)

    def step(batch, progress):
        return {"loss": nn.functional.cross_entropy(model(batch[0]), batch[1])}

    config = TrainConfig(epochs=2, batch_size=24, lr=0.1, optimizer="sgd")
    history = training.fit({"m": model}, step, batches, config)
    return {
        "history": history,
        "digest": digest([model]),
        "running": model[1].running_var.tolist(),
    }


def said(work) -> str:
    """The first line of the error that `work` ends with, "" for none."""
    try:
        work()
    except (WorkbenchError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def refusals(store: Store) -> dict:
    """What goes wrong in one process goes wrong in all, and afterwards they still work together."""
    model, mine = nn.Linear(4, 1), processes.rank() == processes.count() - 1
    batches = TensorBatches((torch.randn(24, 4, generator=torch.Generator().manual_seed(0)),), 6)
    other, config = nn.Linear(4, 1), TrainConfig(epochs=1, batch_size=6, lr=0.1)

    def fine(batch, progress):
        return {"loss": model(batch[0]).square().mean()}

    def bad(batch, progress):
        return {"loss": model(batch[0]).square().mean() * (float("nan") if mine else 1.0)}

    def unlike(batch, progress):
        models = [model, other] if mine else [model]
        return {"loss": sum(m(batch[0]).square().mean() for m in models)}

    def fails(work):
        if mine:
            raise WorkbenchError("only the last process fails")

    def measured(epoch):
        raise ValueError("only the main process measures")

    good = {"m": model}
    return {
        "measuring": said(lambda: training.fit(good, fine, batches, config, evaluate=measured)),
        "odd": said(
            lambda: training.fit(good, bad, batches, TrainConfig(epochs=1, batch_size=7, lr=0.1))
        ),
        "diverged": said(lambda: training.fit(good, bad, batches, config)),
        "unlike": said(lambda: training.fit({"m": model, "o": other}, unlike, batches, config)),
        "one": said(lambda: store.get_or_make("refused", {}, fails)),
        "differ": said(lambda: store.get_or_make("differ", {"rank": processes.rank()}, fails)),
        "after": processes.from_main(lambda: "still together"),
    }


def killed(folder: Path, store: Store) -> dict:
    """A classifier of three epochs; the last process dies in the second if FOLDER/kill is there."""
    train = load_images("mnist", "train").sample(128, 0)
    test = load_images("mnist", "test").sample(100, 0)
    steps = 0

    def make_step(model):
        step = label_step(model)

        def counted(batch, progress):
            nonlocal steps
            steps += 1
            if steps == 6 and (folder / "kill").exists() and processes.rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(batch, progress)

        return counted, {}

    config = TrainConfig(epochs=3, batch_size=32, lr=1e-3)
    made = (store, "student", "vit_mnist_smoke", train, test, config, make_step)
    art = train_classifier(*made)
    return {
        "history": art.json("history.json"),
        "steps": steps,
        "weights": file_hash(art.path / "model.safetensors"),
    }


def main(part: str, folder: Path) -> None:
    store = Store(folder / f"{part}-store{processes.count()}")
    found = {"killed": killed(folder, store)}
    if part == "all":
        found |= {
            "students": students(store),
            "again": students(store),
            "detector": detector(),
            "normed": normed(),
        }
        found["refusals"] = refusals(store) if processes.count() > 1 else {}
    (folder / f"{part}-{processes.count()}-{processes.rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
