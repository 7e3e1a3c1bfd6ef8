"""How good made images are: measured against real ones in a feature space of choice, after the makers are done.

Measuring is a stage of its own, so that what reads real images to measure is never behind the images themselves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from dfkd_lib import metrics
from dfkd_lib.core import Artifact, Config, Store, WorkbenchError, artifacts, ledger
from dfkd_lib.datasets import ImageSet, check_classes_agree
from dfkd_lib.models import display_name, load_model
from dfkd_lib.synthesis.canvas import balanced_labels, kept_states
from dfkd_lib.synthesis.given import Given
from dfkd_lib.training import (
    Augmentation,
    TrainConfig,
    frozen,
    load_trained,
    open_model,
    reads_of,
    train_teacher,
)

CURVE_IMAGES = 2000  # images behind each point of a distance over epochs


@dataclass(frozen=True)
class FeatureSpace:
    """A network whose features distances are taken in, and the classifier that tells what classes images look like.

    Args:
        name: for people and in keys.
        artifact: the network; None for Inception.
        extract: uint8 images (N, C, H, W) → (N, D) on the CPU.
        judge: a classifier of the data set's classes, for the score and lost classes.
    """

    name: str
    artifact: Artifact | None
    extract: Callable[[Tensor], Tensor]
    judge: Artifact

    @property
    def parents(self) -> list[Artifact]:
        return list({one.key: one for one in (self.judge, self.artifact) if one}.values())

    def check_classes(self, images: ImageSet) -> None:
        """Raise unless the judge knows the images' classes, in their order."""
        known, where = self.judge.settings.get("classes", ()), f"the judge and {images.name}"
        check_classes_agree(known, images.classes, where)

    def of(self, images: Tensor, labels: Tensor) -> metrics.Features:
        """Features and the judge's logits of uint8 images with their labels."""
        values, logits = metrics.features_and_logits(load_trained(self.judge), images)
        if self.artifact is None or self.artifact.key != self.judge.key:
            values = self.extract(images)
        return metrics.Features(values.float(), labels, logits.float(), self.name)


def fitted(model: nn.Module, size: int, channels: int, images: Tensor) -> Tensor:
    """uint8 images (N, C, H, W) as a network of other size and channels wants them: resized, grey repeated; uint8."""
    if images.shape[1] != channels:
        if images.shape[1] != 1:
            raise WorkbenchError(
                "the feature network takes other channels",
                expected=channels,
                got=images.shape[1],
                fix="choose a network for colour images",
            )
        images = images.expand(-1, channels, -1, -1)
    if images.shape[-1] == size:
        return images
    how = {"mode": "bilinear", "align_corners": False, "antialias": True}
    return F.interpolate(images.float(), (size, size), **how).round().clamp(0, 255).to(torch.uint8)


class JudgeConfig(Config):
    """The data set's own classifier: what makes features and judges which classes images look like."""

    model: str = Field("cnn_small", description="the data set's own classifier")
    images: int = Field(60_000, ge=10, description="real images it is trained on")
    epochs: int = Field(5, ge=1, le=1000, description="passes over them")


class FeatureConfig(JudgeConfig):
    """The space that distances are taken in, and the data set's own classifier, which judges classes there."""

    main: ClassVar[str] = "space"
    also: ClassVar[dict[str, str]] = {"space": "features"}

    space: str = Field(
        "classifier",
        description="classifier, teacher, inception, a timm name or a safetensors file",
    )
    fid_images: int = Field(
        10_000, ge=50, description="made images, and at most as many real ones, behind a distance"
    )
    download: bool = Field(False, description="whether pretrained weights may be fetched")


def train_judge(
    store: Store,
    config: JudgeConfig,
    train_set: ImageSet,
    test_set: ImageSet,
    seed: int = 0,
    augmentation: Augmentation = Augmentation(kind="shift"),
) -> Artifact:
    """The classifier of a configuration, trained by cross entropy."""
    how = {"weight_decay": 0.01, "warmup_epochs": 0.2, "precision": "bf16", "seed": seed}
    training = TrainConfig(epochs=config.epochs, batch_size=128, lr=2e-3, **how)
    chosen = train_set.sample(config.images, 3 + seed)
    return train_teacher(store, config.model, chosen, test_set, training, augmentation)


def feature_space(
    store: Store,
    config: FeatureConfig,
    train_set: ImageSet,
    test_set: ImageSet,
    teacher: Callable[[], Artifact],
) -> FeatureSpace:
    """The space that a configuration names.

    Args:
        teacher: gives the teacher, called where the space is that of its tokens.

    Raises:
        WorkbenchError: if the network's weights are absent.
    """
    if config.space == "inception":
        metrics.check_inception(config.download)  # before anything is trained
    judge = train_judge(store, config, train_set, test_set)
    if config.space == "classifier":
        name = f"{display_name(judge.settings['model'])} trained on {train_set.name.split('/')[0]}"
        return FeatureSpace(name, judge, lambda images: images, judge)
    if config.space == "teacher":
        artifact = teacher()
        name = f"tokens of the teacher {display_name(artifact.settings['model'])}"
        extract = partial(metrics.token_features, load_trained(artifact))
        return FeatureSpace(name, artifact, extract, judge)
    if config.space == "inception":
        extract = partial(metrics.inception_features, download=config.download)
        return FeatureSpace("Inception", None, extract, judge)
    model = frozen(load_model(config.space, download=config.download))
    opened = open_model(store, config.space, model)

    def resized(images: Tensor) -> Tensor:
        parts = (fitted(model, model.img_size, model.in_chans, part) for part in images.split(256))
        return torch.cat([metrics.classifier_features(model, part) for part in parts])

    return FeatureSpace(f"{config.space} {opened.key[-8:]}", opened, resized, judge)


def real_features(store: Store, images: ImageSet, space: FeatureSpace) -> Artifact:
    """Features of real images, kept: features.safetensors "values" (N, D), "labels", "logits" (N, K)."""
    space.check_classes(images)

    def make(work: Path) -> dict:
        found = space.of(images.images, images.labels)
        tensors = {name: getattr(found, name) for name in ("values", "labels", "logits")}
        artifacts.save_tensors(work / "features.safetensors", tensors)
        return {"images": len(images), "dimensions": found.values.shape[1]}

    settings = {"images": images.fingerprint, "space": space.name}
    reads = reads_of((images, ledger.EVALUATION))
    return store.get_or_make("real_features", settings, make, space.parents, reads)


def open_features(made: Artifact) -> metrics.Features:
    """The features of a `real_features` artifact."""
    tensors = made.tensors("features.safetensors")
    return metrics.Features(**tensors, space=made.settings["space"])


def measure_images(
    store: Store,
    images: ImageSet,
    artifact: Artifact,
    reference: Artifact,
    space: FeatureSpace,
    count: int = 10_000,
    rounds: int = 100,
) -> Artifact:
    """All measures of (at most `count` of) the images against the reference: measures.json, for `metrics.Measures.from_dict`.

    Args:
        artifact: of the images.
        reference: `real_features` in the same space.
        rounds: bootstrap replicates.

    Returns:
        Artifact with the `metrics.Row` of all images as metrics, its distance as "frechet", "reference_images" and
        "warnings".
    """
    space.check_classes(images)

    def make(work: Path) -> dict:
        chosen = images.sample(count)
        mine = space.of(chosen.images, chosen.labels)
        found = metrics.measure(open_features(reference), mine, images.num_classes, rounds)
        saved = found.as_dict()
        artifacts.save_json(work / "measures.json", saved)
        row = saved["rows"][0]
        others = {"frechet": row["distance"], "reference_images": row["real_images"]}
        return {**row, **others, "warnings": found.warnings}

    settings = {"space": space.name, "count": count, "rounds": rounds}
    return store.get_or_make("measures", settings, make, [artifact, reference, *space.parents])


def distance_curve(
    store: Store, maker, trained: Artifact, given: Given, reference: Artifact, space: FeatureSpace
) -> Artifact:
    """Fréchet distance of 2,000 images from each state that a generator's training kept: curve.json, [{"epoch",
    "frechet"}]."""

    def make(work: Path) -> dict:
        mu, sigma = metrics.statistics(open_features(reference).values)
        labels, rows = balanced_labels(CURVE_IMAGES, len(given.classes)), []
        for epoch in kept_states(trained):
            values = space.of(maker.drawing(trained, given, epoch)(labels, 0), labels).values
            distance = metrics.frechet_distance_to(mu, sigma, values)
            rows.append({"epoch": epoch, "frechet": distance})
        artifacts.save_json(work / "curve.json", rows)
        return {"points": len(rows), "images": CURVE_IMAGES}

    settings, parents = {"space": space.name, "images": CURVE_IMAGES}, space.parents
    return store.get_or_make("distance_curve", settings, make, [trained, reference, *parents])
