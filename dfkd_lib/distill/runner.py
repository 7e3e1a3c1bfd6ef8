"""From a step function to a classifier in the store: build, train by the one loop, test, save."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dfkd_lib import training
from dfkd_lib.core import WorkbenchError, artifacts, ledger
from dfkd_lib.core.artifacts import Artifact, Store
from dfkd_lib.datasets import ImageSet, to_float
from dfkd_lib.distill.mixing import Augmentation, Batch
from dfkd_lib.models import MODELS, count_parameters, create_model, load_weights

CURVE_IMAGES = 2000  # test images behind the accuracy-per-epoch curve; the final figure always uses all of them


def frozen(model: nn.Module) -> nn.Module:
    """The model in evaluation mode, without gradients, on the training device."""
    return model.eval().requires_grad_(False).to(training.device())


def predict(model: nn.Module, images: Tensor, batch_size: int = 512) -> Tensor:
    """Logits (N, K) float32 on the CPU of uint8 images (N, C, H, W), in evaluation mode."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        logits = torch.cat(
            [model(to_float(batch).to(device)).float().cpu() for batch in images.split(batch_size)]
        )
    model.train(was_training)
    return logits


def evaluate(model: nn.Module, test_set: ImageSet) -> tuple[float, Tensor]:
    """Top-1 accuracy in [0, 1] on a set, and the logits (N, K) float32 behind it."""
    logits = predict(model, test_set.images)
    return (logits.argmax(1) == test_set.labels).float().mean().item(), logits


def check_fit(model: nn.Module, images: ImageSet, what: str) -> None:
    """Raise unless the model takes these images and has one output for each of their classes."""
    try:
        with torch.inference_mode():
            outputs = frozen(model)(torch.zeros(1, *images.shape, device=training.device()))
    except (AssertionError, RuntimeError) as error:
        raise WorkbenchError(
            f"{what} does not take these images",
            expected="images of the size it was made for",
            got=f"{images.shape} (C, H, W) of {images.name}: {str(error)[:200]}",
            fix="build it with img_size and in_chans of the images, or resize them",
        ) from None
    if outputs.shape[-1] != images.num_classes:
        raise WorkbenchError(
            f"{what} and the images have different classes",
            expected=f"{images.num_classes} classes",
            got=f"{outputs.shape[-1]} outputs",
            where=images.name,
            fix="give num_classes to the model",
        )


def check_classes_agree(expected: Sequence[str], got: Sequence[str], where: str) -> None:
    """Raise unless both name the same classes in the same order: label k must mean one thing."""
    if tuple(expected) != tuple(got):
        raise WorkbenchError(
            "class names differ, so labels would mean different things",
            expected=", ".join(expected),
            got=", ".join(got),
            where=where,
            fix="give every split a folder for each class, of one "
            "name; if a teacher has other classes, train one on these images (teacher=train) "
            "or give your own (shipped=/path)",
        )


def reads_of(*sets: tuple[ImageSet, str]) -> dict[str, str]:
    """The ledger's declaration {split: purpose} for the real ones among (set, purpose) pairs."""
    declared: dict[str, str] = {}
    for images, purpose in sets:
        if images.real:
            declared[images.split] = (
                f"{declared[images.split]}, {purpose}" if images.split in declared else purpose
            )
    return declared


def train_classifier(
    store: Store,
    stage: str,
    model_name: str,
    train_set: ImageSet,
    test_set: ImageSet,
    config: training.TrainConfig,
    make_step: Callable,
    *,
    settings: dict | None = None,
    overrides: dict | None = None,
    augmentation: Augmentation = Augmentation(),
    parents: Sequence[Artifact] = (),
    start: Artifact | None = None,
) -> Artifact:
    """Train a classifier by a step function and keep it, with its history and its logits on the test images.

    Args:
        stage: name of the stage in keys and ledger. model_name, overrides: for `create_model`; its initial weights
            come from config.seed, or from the artifact `start`.
        train_set: what it learns from; real or synthetic. test_set: real images for evaluation alone.
        make_step: model, train_set → step function, or (step function, {name: module} trained beside the model).
        settings: everything else that the result depends on (of the step); part of the key.
        augmentation: from images of the set to what the step receives; part of the key.
        parents: artifacts it was made from (teacher, synthetic images).

    Returns:
        Artifact with model.safetensors, history.json, test_logits.safetensors; metrics "accuracy" (all test images,
        last epoch), "parameters", "train_images", "images_per_second".
    """
    overrides = {
        "num_classes": train_set.num_classes,
        "img_size": train_set.shape[1],
        "in_chans": train_set.shape[0],
        **(overrides or {}),
    }
    check_classes_agree(
        train_set.classes, test_set.classes, f"{train_set.name} and {test_set.name}"
    )
    # The whole configuration, not its name alone: a named model that is changed must not be found by an old key.
    overrides = {**MODELS.get(model_name, (None, {}))[1], **overrides}
    known = {
        "model": model_name,
        "overrides": overrides,
        "config": config.as_dict(),
        "train": train_set.fingerprint,
        "test": test_set.fingerprint,
        "classes": list(train_set.classes),
        "train_name": train_set.name,
        "augmentation": augmentation.as_dict(),
        **(settings or {}),
    }

    def make(work: Path) -> dict:
        torch.manual_seed(config.seed)
        model = create_model(model_name, **overrides)
        check_fit(model, train_set, f"model {model_name}")
        model.requires_grad_(True)
        if start is not None:
            model.load_state_dict(start.tensors())
        made = make_step(model, train_set)
        step, beside = made if isinstance(made, tuple) else (made, {})
        batches = training.TensorBatches(
            (train_set.images, train_set.labels, torch.arange(len(train_set))),
            config.batch_size,
            lambda batch, generator: augmentation(Batch(*batch), generator),
        )
        curve = test_set.sample(CURVE_IMAGES, seed=0)
        history = training.fit(
            {"model": model, **beside},
            step,
            batches,
            config,
            checkpoint=work / "checkpoint",
            evaluate=lambda epoch: {"test_accuracy": evaluate(model, curve)[0]},
            label=f"{stage} {model_name}",
        )
        accuracy, logits = evaluate(model, test_set)
        artifacts.save_tensors(work / "model.safetensors", model.state_dict())
        artifacts.save_tensors(
            work / "test_logits.safetensors", {"logits": logits.half(), "labels": test_set.labels}
        )
        artifacts.save_json(work / "history.json", history)
        return {
            "accuracy": accuracy,
            "parameters": count_parameters(model),
            "train_images": len(train_set),
            "images_per_second": history[-1]["images_per_second"],
        }

    ancestors = [*parents, *([start] if start else [])]
    return store.get_or_make(
        stage,
        known,
        make,
        ancestors,
        reads_of((train_set, "training"), (test_set, ledger.EVALUATION)),
    )


def load_trained(artifact: Artifact) -> nn.Module:
    """The classifier of an artifact, rebuilt from its settings, frozen, on the training device."""
    model = create_model(artifact.settings["model"], **artifact.settings["overrides"])
    load_weights(model, artifact.tensors(), artifact.path)
    return frozen(model)


def test_logits(artifact: Artifact) -> tuple[Tensor, Tensor]:
    """(logits float32 (N, K), labels int64 (N,)) of a classifier's artifact on its test images, from disk."""
    kept = artifact.tensors("test_logits.safetensors")
    return kept["logits"].float(), kept["labels"]


test_logits.__test__ = False  # a name that pytest would take for a test


def shipped_teacher(
    store: Store, name: str, test_set: ImageSet, folder: str | Path = "data/teachers"
) -> Artifact:
    """A teacher that comes with the workbench (or any safetensors file with its .json), tested and put in the store.

    Args:
        name: `<folder>/<name>.safetensors` (or an absolute path without suffix) beside `<name>.json`, which says
            "model" and "overrides" for `create_model`, and, where known, "config", "train_images", "history" and
            "ledger" (the real images it was trained on; if absent the summary says that nobody recorded them).

    Raises:
        WorkbenchError: if a file is missing, damaged, or does not fit the model it names.
    """
    base = artifacts.resolve(folder) / name
    weights, about = (base.with_name(f"{base.name}.{kind}") for kind in ("safetensors", "json"))
    for path in (weights, about):
        if not path.is_file():
            raise WorkbenchError(
                "a shipped teacher is missing",
                expected=path.name,
                where=path.parent,
                fix="choose teacher='train', or restore the file from the repository",
            )
    record = _read_record(about)
    settings = {
        "model": record["model"],
        "overrides": record["overrides"],
        "shipped": artifacts.file_hash(weights),
        "config": record["config"],
        "test": test_set.fingerprint,
        "ledger": record["ledger"],
    }
    check_classes_agree(
        record.get("classes", test_set.classes),
        test_set.classes,
        f"teacher {name} and {test_set.name}",
    )

    def make(work: Path) -> dict:
        model = create_model(record["model"], **record["overrides"])
        load_weights(model, artifacts.load_tensors(weights), weights)
        check_fit(model, test_set, f"teacher {name}")
        accuracy, logits = evaluate(model, test_set)
        artifacts.save_tensors(work / "model.safetensors", model.state_dict())
        artifacts.save_tensors(
            work / "test_logits.safetensors", {"logits": logits.half(), "labels": test_set.labels}
        )
        artifacts.save_json(work / "history.json", record["history"])
        return {
            "accuracy": accuracy,
            "parameters": count_parameters(model),
            "train_images": record["train_images"],
            "shipped": True,
        }

    return store.get_or_make(
        "teacher",
        settings,
        make,
        reads=reads_of((test_set, ledger.EVALUATION)),
        inherited=record["ledger"],
    )


def _read_record(about: Path) -> dict:
    """What is known of a checkpoint, with a place for everything that is not."""
    try:
        record = {
            "overrides": {},
            "config": {},
            "train_images": None,
            "history": [],
            "ledger": [
                {"stage": "teacher", "split": "not recorded", "purpose": "training", "images": 0}
            ],
            **json.loads(about.read_text()),
        }
        record["model"]
    except (ValueError, TypeError, KeyError) as error:
        raise WorkbenchError(
            "the record beside a checkpoint cannot be used",
            where=about,
            got=repr(error)[:200],
            expected='JSON with at least {"model": "name for create_model", "overrides": {}}',
            fix="write that file",
        ) from None
    return record


def ship_teacher(
    artifact: Artifact, name: str, command: str, folder: str | Path = "data/teachers"
) -> Path:
    """Write an artifact's weights (float16) and their record where `shipped_teacher` finds them; returns the path."""
    base = artifacts.resolve(folder) / name
    base.parent.mkdir(parents=True, exist_ok=True)
    weights = {k: v.half() if v.is_floating_point() else v for k, v in artifact.tensors().items()}
    artifacts.save_tensors(base.with_name(f"{base.name}.safetensors"), weights)
    keep = {key: artifact.settings[key] for key in ("model", "overrides", "config", "classes")}
    artifacts.save_json(
        base.with_name(f"{base.name}.json"),
        {
            "command": command,
            **keep,
            "seed": keep["config"]["seed"],
            "test_accuracy": artifact.metrics["accuracy"],
            "parameters": artifact.metrics["parameters"],
            "train_images": artifact.metrics["train_images"],
            "seconds": artifact.seconds,
            "made": artifact.manifest["made"],
            "ledger": artifact.ledger,
            "provenance": artifacts.provenance(),
            "history": artifact.json("history.json"),
        },
    )
    return base.with_name(f"{base.name}.safetensors")
