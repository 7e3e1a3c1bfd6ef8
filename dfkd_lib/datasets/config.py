"""Which images: a named set or a folder, at which size, and how many of them measure."""

import os
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field

from dfkd_lib.core import Config, resolve
from dfkd_lib.datasets.images import ImageSet, check_classes_agree, evenly
from dfkd_lib.datasets.sources import NAMED, load_images

HELD_OUT_SEED = 6  # of the choice of images that validate


class DataConfig(Config):
    """Images of a data set for training and testing."""

    main: ClassVar[str] = "name"
    also: ClassVar[dict[str, str]] = {"background": "background"}

    name: str = Field(
        "mnist", description="mnist, digits, cifar10, cifar100 or a folder with train/<class>/*.png"
    )
    size: int = Field(
        0,
        ge=0,
        le=1024,
        description="pixels a folder's images are resized to, digits padded to; 0: as they are",
    )
    test_images: int = Field(0, ge=0, description="real test images that measure, 0: all")
    validation: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="share of the training images that is held out and measures in place of the test images: for choices",
    )
    background: float = Field(
        -1.0, ge=-1, le=1, description="value of an empty pixel: -1 for digits, 0 for photographs"
    )

    @property
    def named(self) -> bool:
        """Whether the images are those of a named set rather than a folder's."""
        return self.name in NAMED


def load_splits(config: DataConfig) -> tuple[ImageSet, ImageSet]:
    """All real training images, and the (sample of) test images that measure every model.

    With `validation` a share of the training images measures instead, evenly over the classes and always the same; nothing
    learns from them, and no test image is read.

    Raises:
        WorkbenchError: see `load_images`; if a split lacks a class of the other.
    """
    changed = stamp(
        Path(place)
        for folder in (resolve(config.name), resolve("data") / config.name)
        for split in ("train", "test", "val")
        for place, *_ in os.walk(folder / split, followlinks=True)
    )
    if config.validation:
        every = _known_images(config.name, "train", config.size or None, changed)
        held = evenly(every.labels, max(1, round(config.validation * len(every))), HELD_OUT_SEED)
        learns = torch.ones(len(every), dtype=torch.bool)
        learns[held] = False
        validation = replace(every.subset(~learns), name=f"{every.name}, held out")
        return every.subset(learns), validation.sample(config.test_images or len(held), 0)
    test = _known_images(config.name, "test", config.size or None, changed)
    train = _known_images(config.name, "train", config.size or None, changed)
    check_classes_agree(train.classes, test.classes, f"{train.name} and {test.name}")
    return train, test.sample(config.test_images or len(test), 0)


@lru_cache(maxsize=6)
def _known_images(data: str, split: str, size: int | None, changed: tuple) -> ImageSet:
    """Images of a split, read once however many students of a grid want them; anew where `changed` is another."""
    return load_images(data, split, size=size)


def stamp(places: Iterable[Path]) -> tuple:
    """When these files and folders last changed, those that are there: how an open kernel sees that its data did."""
    return tuple(sorted((str(p), p.stat().st_mtime_ns) for p in places if p.exists()))
