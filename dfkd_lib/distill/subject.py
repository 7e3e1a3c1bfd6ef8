"""A model to look into, with images that fit it: the study's own, or anybody's."""

from typing import NamedTuple

import torch
from torch import nn

from dfkd_lib.core import Artifact, resolve
from dfkd_lib.datasets import DataConfig, ImageSet, check_classes_agree, load_images
from dfkd_lib.distill.study import Study
from dfkd_lib.models import (
    WeightsMissing,
    check_images,
    count_parameters,
    create_model,
    load_model,
)
from dfkd_lib.training import TeacherConfig, frozen, load_trained, open_model


class Subject(NamedTuple):
    """A model to look into, with images that fit it.

    Args:
        name: short, for titles. model: frozen. artifact: what it was made from, for keys. about: where it comes from.
        train_set, test_set: images behind class probes, and images to look at; the same if the data has no splits.
        missing: what was asked for and is not shown, in words; "" where it is shown.
    """

    name: str
    model: nn.Module
    artifact: Artifact
    about: str
    train_set: ImageSet
    test_set: ImageSet
    missing: str = ""


def open_subject(
    study: Study, name: str = "", weights: str = "", download: bool = False, fallback: bool = False
) -> Subject:
    """The model that a name stands for.

    Args:
        name: "" for the teacher, "untrained" for its architecture before training, "student" for the student on real
            images; else as for `models.load_model`: a timm name, a safetensors file, a folder in transformers' format.
        weights, download: as for `models.load_model`.
        fallback: where pretrained weights are neither on disk nor to be downloaded, the workbench's own teacher takes the
            model's place, and `missing` says so.

    Raises:
        WeightsMissing: where they are, without `fallback`.
        WorkbenchError: if it cannot be had, or does not take the images.
    """
    if name == "untrained":
        settings, seed = study.teacher.settings, study.config.seed
        torch.manual_seed(seed)
        model = frozen(create_model(settings["model"], **settings["overrides"]))
        about = f"{settings['model']}, weights drawn from seed {seed}"
        return _opened(study, "before training", model, about, study.train_set, study.test_set)
    if name in ("", "student"):
        artifact, short = study.student("real") if name else study.teacher, name or "teacher"
        about = (
            f"{short} {artifact.settings['model']}: {artifact.metrics['parameters']:,} parameters, "
            f"test accuracy {artifact.metrics['accuracy']:.4f} on {len(study.test_set):,} images"
        )
        model = load_trained(artifact)
        return Subject(short, model, artifact, about, study.train_set, study.test_set)
    try:
        model = frozen(load_model(name, weights, download=download))
    except WeightsMissing as missing:
        if fallback:
            return _own_instead(study, missing)
        fix = f"{missing.fix}, or see the workbench's own teacher in its place (fallback=True)"
        raise WeightsMissing(**{**vars(missing), "fix": fix}) from None
    sets = _sets_for(study, model)
    for images in sets:
        check_images(model, images.shape, images.name)
    short = name.rstrip("/").split("/")[-1].removesuffix(".safetensors")
    return _opened(study, short, model, model.source, *sets)


def _own_instead(study: Study, missing: WeightsMissing) -> Subject:
    data = study.config.data
    if not data.named and not resolve(data.name).is_dir():
        load_images(data.name, "test")  # raises, and says what is expected there
    own = study
    # The default shipped teacher knows MNIST, whatever the missing model was to see.
    if data.name != "mnist":
        shipped = TeacherConfig(source="shipped")
        own = Study(study.store, study.config.replace(data=DataConfig(), teacher=shipped))
    found = open_subject(own)
    return found._replace(
        missing=f"{missing.what}: the workbench's own teacher is shown in its place, with its own images, "
        f"{found.test_set.name}"
    )


def _sets_for(study: Study, model: nn.Module) -> tuple[ImageSet, ImageSet]:
    """Training and test images at the size a loaded model takes; of a folder without splits, all images for both."""
    config, folder = study.config, resolve(study.config.data.name)
    if config.data.named or not folder.is_dir():
        return study.train_set, study.test_set
    how = {"size": config.data.size or model.img_size, "channels": model.in_chans}
    if not any((folder / split).is_dir() for split in ("train", "test", "val")):
        every = load_images(str(folder), "all", **how, max_images=config.train_images)
        return every, every
    train = load_images(str(folder), "train", **how, max_images=config.train_images)
    test = load_images(str(folder), "test", **how, max_images=config.data.test_images)
    check_classes_agree(train.classes, test.classes, f"{train.name} and {test.name}")
    return train, test


def _opened(
    study: Study, name: str, model: nn.Module, about: str, train: ImageSet, test: ImageSet
) -> Subject:
    artifact = open_model(study.store, name, model)
    about = f"{about}; {count_parameters(model):,} parameters"
    return Subject(name, model, artifact, about, train, test)
