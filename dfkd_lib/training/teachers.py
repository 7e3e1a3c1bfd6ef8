"""Teachers: trained here by cross entropy, maybe with a guide, or a checkpoint that comes with the workbench."""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dfkd_lib.attention import outputs_and_probe
from dfkd_lib.core import WorkbenchError, artifacts, ledger, provenance
from dfkd_lib.core.artifacts import Artifact, Store
from dfkd_lib.datasets import ImageSet, check_classes_agree
from dfkd_lib.losses import kd_loss, label_loss
from dfkd_lib.models import MODELS, count_parameters, create_model, load_weights
from dfkd_lib.training.classifier import (
    check_fit,
    load_trained,
    reads_of,
    save_tested,
    train_classifier,
)
from dfkd_lib.training.config import Precision, Share, TrainConfig
from dfkd_lib.training.mixing import Augmentation, Batch, Kind, Mix

FOLDER = "data/teachers"
GUIDE_TEMPERATURE = 3.0  # T of DeiT's soft distillation


class ClassifierConfig(TrainConfig):
    """A classifier and its training; the defaults are paper A's (Table 3; the paper names neither epochs nor batch)."""

    model: str = Field(description="its architecture by name")
    images: int = Field(0, ge=0, description="a sample of so many of its images, 0: all")
    epochs: int = Field(50, ge=1, le=100_000, description="passes over its images")
    batch_size: int = Field(128, ge=1, le=65_536, description="images a step")
    lr: float = Field(gt=0, le=1, description="peak learning rate of AdamW")
    weight_decay: float = Field(0.025, ge=0, description="weight decay")
    grad_clip: float | None = Field(1.0, gt=0, description="largest gradient norm, or none")
    precision: Precision = Field("bf16", description="arithmetic: fp32, or bf16 by autocast")
    augmentation: Kind = Field("none", description="what is done to each of its images")
    mix: Mix = Field("none", description="how its images are mixed")
    erase: Share = Field(0.0, description="share of its images in which a rectangle is made grey")

    @property
    def augment(self) -> Augmentation:
        """What is done to each batch of its images."""
        return Augmentation(kind=self.augmentation, mix=self.mix, erase=self.erase)


class TeacherConfig(ClassifierConfig):
    """The teacher: one that comes with the workbench, or one trained on real images by cross entropy (A Table 3)."""

    main: ClassVar[str] = "source"

    source: Literal["shipped", "train"] = Field("train", description="where the teacher is from")
    shipped: str = Field("vit_mnist_small", description="name of the shipped one in data/teachers")
    model: str = Field("vit_mnist_teacher", description="architecture of the one trained here")
    lr: float = Field(1e-3, gt=0, le=1, description="peak learning rate of AdamW")
    guide: str = Field(
        "",
        description="a shipped classifier, such as a CNN, whose predictions it learns beside the labels; empty: none",
    )
    warmup_epochs: float = Field(1.0, ge=0, description="epochs of linear warm-up")
    augmentation: Kind = Field("shift", description="what is done to each of its images")


def label_step(model: nn.Module) -> Callable:
    """Cross entropy alone, no teacher: how teachers, baselines and DearKD's stage 2 are trained.

    The prediction of a model with two heads is the mean of their logits, the same that is tested.
    """

    def step(batch: Batch, progress: float) -> dict[str, Tensor]:
        ce = label_loss(_logits(model, batch), batch)
        return {"loss": ce, "ce": ce}

    return step


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    output, _ = outputs_and_probe(model, batch.images, probe=False)
    return (output[0] + output[1]) / 2 if isinstance(output, tuple) else output


def guided_step(model: nn.Module, guide: nn.Module) -> Callable:
    """Cross entropy, and the softened predictions of a frozen guide for the same images, however they are augmented or mixed.

    Source: DeiT's soft distillation (Touvron et al. 2021) with both terms at full weight.
    """

    def step(batch: Batch, progress: float) -> dict[str, Tensor]:
        with torch.no_grad():
            target = guide(batch.images)
        logits = _logits(model, batch)
        ce, kd = label_loss(logits, batch), kd_loss(logits, target, GUIDE_TEMPERATURE)
        return {"loss": ce + kd, "ce": ce, "kd": kd}

    return step


def train_teacher(
    store: Store,
    model_name: str,
    train_set: ImageSet,
    test_set: ImageSet,
    config: TrainConfig,
    augmentation: Augmentation = Augmentation(kind="shift"),
    stage: str = "teacher",
    guide: Artifact | None = None,
    **how: Any,
) -> Artifact:
    """A classifier trained by cross entropy, and by a guide's predictions if there is one, see `guided_step`.

    Args:
        how: overrides, parents, start, as for `train_classifier`.

    Raises:
        WorkbenchError: if a class has no image.
    """
    train_set.check_classes()
    own = store, stage, model_name, train_set, test_set, config
    how["augmentation"] = augmentation
    if guide is None:
        return train_classifier(*own, lambda model: (label_step(model), {}), **how)
    how["parents"] = [*how.get("parents", ()), guide]
    return train_classifier(
        *own, lambda model: (guided_step(model, load_trained(guide)), {}), **how
    )


def open_teacher(
    store: Store, config: TeacherConfig, train_set: ImageSet, test_set: ImageSet, seed: int = 0
) -> Artifact:
    """The teacher that a configuration names: shipped, or trained now on (a sample of) real images.

    Raises:
        WorkbenchError: if the shipped teacher knows other classes than the images.
    """
    if config.source == "shipped":
        return shipped_teacher(store, config.shipped, test_set)
    chosen = train_set.sample(config.images or len(train_set), 2)
    guide = shipped_teacher(store, config.guide, test_set) if config.guide else None
    how = (config.training(seed=seed), config.augment)
    return train_teacher(store, config.model, chosen, test_set, *how, guide=guide)


def open_model(store: Store, name: str, model: nn.Module) -> Artifact:
    """A model from elsewhere under a key of its weights, so that what is made from it is found again."""
    digest = hashlib.sha256()
    for key, value in model.state_dict().items():
        content = value.detach().float().cpu().numpy().tobytes()
        digest.update(f"{key} {tuple(value.shape)}".encode() + content)
    return store.get_or_make(
        "opened_model",
        {"name": name, "weights": digest.hexdigest()[:16]},
        lambda work: {"parameters": count_parameters(model)},
        code=[type(model)],
    )


def _files(name: str, folder: str | Path) -> tuple[Path, Path]:
    base = artifacts.resolve(folder) / name
    return base.with_name(f"{base.name}.safetensors"), base.with_name(f"{base.name}.json")


def write_shipped(
    artifact: Artifact,
    name: str,
    command: str,
    folder: str | Path = FOLDER,
    inherited: Iterable[dict] = (),
    **known: object,
) -> Path:
    """Write an artifact's weights (kernels as float16) and, with what is `known` beside, its record; returns the weights'
    path.

    Args:
        inherited: ledger rows of what it learnt from, such as a guide.
    """
    file, about = _files(name, folder)
    file.parent.mkdir(parents=True, exist_ok=True)
    # Vectors stay float32: running variances can be smaller than float16 resolves.
    weights = {
        key: value.half() if value.is_floating_point() and value.ndim > 1 else value
        for key, value in artifact.tensors().items()
    }
    artifacts.save_tensors(file, weights)
    record = {
        "command": command,
        "model": artifact.settings["model"],
        "seed": artifact.settings["config"]["seed"],
        **known,
        "seconds": artifact.seconds,
        "made": artifact.manifest["made"],
        "ledger": [*artifact.ledger, *inherited],
        "provenance": provenance.describe(),
        "history": artifact.json("history.json"),
    }
    artifacts.save_json(about, record)
    return file


def read_shipped(name: str, folder: str | Path = FOLDER) -> tuple[Path, dict]:
    """The weights' path and the record, which names at least a "model".

    Raises:
        WorkbenchError: if a file is missing, or the record cannot be used.
    """
    weights, about = _files(name, folder)
    for path in (weights, about):
        if not path.is_file():
            raise WorkbenchError(
                "a shipped teacher is missing",
                expected=path.name,
                where=path.parent,
                fix="choose teacher=train, or restore the file from the repository",
            )
    try:
        record = json.loads(about.read_bytes())
        record["model"]
    except (ValueError, TypeError, KeyError) as error:
        raise WorkbenchError(
            "the record beside a checkpoint cannot be used",
            where=about,
            got=repr(error)[:200],
            expected='JSON with at least {"model": "name for create_model", "overrides": {}}',
            fix="write that file",
        ) from None
    return weights, record


def shipped_teacher(
    store: Store, name: str, test_set: ImageSet, folder: str | Path = FOLDER
) -> Artifact:
    """A teacher that comes with the workbench (or any safetensors file with its .json), tested and put in the store.

    Args:
        name: `<folder>/<name>.safetensors` (or an absolute path without suffix) beside `<name>.json`, which holds "model"
            and "overrides" for `create_model`, "classes", the names of its outputs in their order, and, where known,
            "config", "train_images", "history" and "ledger" (the real images it was trained on; if absent the summary says
            that nobody recorded them).

    Raises:
        WorkbenchError: if a file is missing, damaged, or does not fit the model it names.
    """
    weights, found = read_shipped(name, folder)
    nobody = {"stage": "teacher", "split": ledger.NOT_RECORDED, "purpose": "training", "images": 0}
    unknown: dict = {"overrides": {}, "config": {}, "train_images": None, "history": []}
    record = {**unknown, "ledger": [nobody], **found}
    where = f"teacher {name} and {test_set.name}"
    if not isinstance(record.get("classes"), list):
        names = json.dumps(list(test_set.classes))
        raise WorkbenchError(
            "nobody recorded which class each output of a teacher stands for",
            expected='"classes": names in the order of its outputs',
            got=record.get("classes"),
            where=weights.with_suffix(".json"),
            fix=f'add them to that file; if its outputs are in the order of these images: "classes": {names}',
        )
    check_classes_agree(record["classes"], test_set.classes, where)
    settings = {
        "shipped": artifacts.file_hash(weights),
        "test": test_set.fingerprint,
        **{key: record[key] for key in ("model", "overrides", "config", "classes", "ledger")},
    }

    def make(work: Path) -> dict:
        model = create_model(record["model"], **record["overrides"])
        load_weights(model, artifacts.load_tensors(weights), weights)
        check_fit(model, test_set, f"teacher {name}")
        metrics = save_tested(work, model, test_set, record["history"])
        return {**metrics, "train_images": record["train_images"], "shipped": True}

    reads, code = reads_of((test_set, ledger.EVALUATION)), [MODELS.get(record["model"])]
    how = {"reads": reads, "inherited": record["ledger"], "code": code}
    return store.get_or_make("teacher", settings, make, **how)


def ship_teacher(
    artifact: Artifact,
    name: str,
    command: str,
    folder: str | Path = FOLDER,
    inherited: Iterable[dict] = (),
) -> Path:
    """Write an artifact's weights and their record where `shipped_teacher` finds them; returns the path, see `write_shipped`."""
    known = {key: artifact.settings[key] for key in ("overrides", "config", "classes")}
    known |= {key: artifact.metrics[key] for key in ("parameters", "train_images")}
    known["test_accuracy"] = artifact.metrics["accuracy"]
    return write_shipped(artifact, name, command, folder, inherited, **known)
