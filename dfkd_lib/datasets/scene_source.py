"""Where the scenes of an experiment come from, named before they are drawn or read."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import ClassVar, Self

from pydantic import Field, model_validator

from dfkd_lib.core import Artifact, Config, Seed, resolve
from dfkd_lib.datasets.coco import load_coco
from dfkd_lib.datasets.coco_read import changing, has_split
from dfkd_lib.datasets.config import stamp
from dfkd_lib.datasets.scenes import SceneSet, generate_scenes

GENERATED = "scenes"  # the name of the generated aerial scenes, which stand for a real data set
PROBE = 16  # scenes that identify a generated set
SCENES = "scenes.safetensors"


@dataclass(frozen=True)
class Scenes:
    """Scenes by name; drawn or read when they are loaded.

    Args:
        load: gives them.
        identity: what tells them from others, for an artifact's settings.
        classes: names, in the order of the labels.
        split: name in the ledger; None for scenes of no data set, whose labels are not read.
        parent: the artifact that holds them, if one does.
        folder: where they are read from; "" for those that are drawn.
    """

    load: Callable[[], SceneSet]
    identity: dict
    classes: tuple[str, ...]
    split: str | None = None
    parent: Artifact | None = None
    folder: str = ""

    @classmethod
    def of(cls, scenes: "Scenes | SceneSet | Artifact") -> "Scenes":
        """Scenes in memory, or those that an artifact of a generator holds."""
        if isinstance(scenes, SceneSet):
            identity = {"scenes": scenes.fingerprint}
            return cls(lambda: scenes, identity, scenes.classes, scenes.split)
        if isinstance(scenes, Artifact):
            classes = tuple(scenes.settings.get("classes") or ())
            load = partial(open_scenes, scenes)
            return cls(load, {"artifact": scenes.key}, classes, None, scenes)
        return scenes


class SceneConfig(Config):
    """Scenes for training and testing: generated ones, or a COCO folder; the defaults are A §8's sizes."""

    main: ClassVar[str] = "name"

    name: str = Field(
        GENERATED,
        description="scenes (generated), or a folder: COCO's train/, train.json, val/, val.json, or YOLO's data.yaml",
    )
    size: int = Field(512, ge=32, le=2048, description="side of the square scenes in pixels")
    shortest: int = Field(
        800, ge=0, le=2048, description="shortest side of a folder's whole frames, 0: squares"
    )
    crop: float = Field(
        0.0, ge=0, le=100, description="cut frames to this many times an object's size, 0: whole"
    )
    crops: int = Field(1, ge=1, le=1000, description="such crops of each training frame")
    crop_spread: float = Field(
        1.0, ge=1, le=10, description="multi-scale: crops from crop / this to crop * this"
    )
    crop_anywhere: float = Field(
        0.0, ge=0, le=1, description="share of crops that lie anywhere: empty sky"
    )
    crop_whole: float = Field(
        0.0, ge=0, le=1, description="share of crops that show the whole frame"
    )
    empty: int = Field(
        0,
        ge=0,
        le=100,
        description="windows of empty ground of each training frame, of which detectors learn those they fire on",
    )
    calibration: float = Field(
        0.0,
        ge=0,
        le=0.9,
        description="share of a folder's training videos held back to calibrate scores, where it has no val beside test",
    )
    train_scenes: int = Field(5000, ge=1, le=10**7, description="generated training scenes")
    test_scenes: int = Field(1000, ge=1, le=10**6, description="generated scenes that measure")
    seed: Seed = Field(0, description="of the generated scenes and of the crops")

    @model_validator(mode="after")
    def _cut_or_whole(self) -> Self:
        if self.shortest and self.cropped:
            raise ValueError(
                "frames cannot be both cut around objects and resized whole: set crop or shortest to 0"
            )
        if self.cropped and self.crop < self.crop_spread:
            raise ValueError(
                "crops smaller than their objects: set crop above crop_spread (1 or more)"
            )
        if self.empty and not self.crop and self.name != GENERATED:
            raise ValueError("empty ground is cut as objects are: set crop, or empty to 0")
        return self

    @property
    def cropped(self) -> bool:
        """Whether the scenes are crops of larger frames."""
        return bool(self.crop) and self.name != GENERATED

    @property
    def calibrates(self) -> bool:
        """Whether there are scenes to calibrate scores on, that neither train nor test."""
        return self.calibration > 0 or (self.name != GENERATED and _own(resolve(self.name)))

    def scenes(self, split: str, frames: bool = False) -> Scenes:
        """The scenes of split "train", "test", "calibration" (if it `calibrates`), "empty" (windows of training frames
        without an object) or "synthetic" (always generated, of no data set, as many as "train"); or a folder's whole
        `frames`, at their own size.

        Scene i of a generated set depends on seed and i alone, so its first scenes stand for the program that drew it:
        thousands need not be drawn to find an artifact that was made from them.
        """
        if self.name != GENERATED and split != "synthetic":
            folder = resolve(self.name)
            load = partial(_load, self, split, frames, stamp(changing(folder)))
            found = load()
            # Where the folder lies and what it is called says nothing about its scenes.
            own = {name: value for name, value in self.as_dict().items() if name != "name"}
            own = {"frames": split} if frames else own
            identity = {**own, "scenes": found.fingerprint}
            return Scenes(load, identity, found.classes, found.split, folder=self.name)
        split = "val" if split == "calibration" else split
        count = self.train_scenes if split in ("train", "synthetic") else self.test_scenes
        first = generate_scenes(min(PROBE, count), self.size, self.seed, split)
        identity = {"generated": split, "count": count, "size": self.size, "seed": self.seed}
        identity["scenes"] = first.fingerprint
        load = partial(_generated, count, self.size, self.seed, split)
        return Scenes(load, identity, first.classes, first.split)


_generated = cache(generate_scenes)


@cache
def _load(config: SceneConfig, split: str, frames: bool, changed: tuple) -> SceneSet:
    """The scenes of a folder, read anew where `changed` is another."""
    own, view = _own(resolve(config.name)), {}
    # Frames that measure are all cut in one fixed way (seed 0), so that every detector is asked the same.
    if not frames and config.shortest:
        view = {"shortest": config.shortest}
    elif not frames:
        view = {"size": config.size, "crop": config.crop or None}
    if split == "test":
        return load_coco(config.name, "test", **view)
    if split == "calibration" and own:
        return load_coco(config.name, "val", **view)
    view["held_back"] = 0.0 if own else config.calibration
    if split == "calibration":
        return load_coco(config.name, "train", calibrating=True, **view)
    if view.get("crop"):
        names = ("seed", "crops", "crop_spread", "crop_anywhere", "crop_whole")
        view |= {name: getattr(config, name) for name in names}
    if split == "empty":
        view |= {"empty": True, "crops": config.empty, "crop_anywhere": 0.0, "crop_whole": 0.0}
    return load_coco(config.name, "train", **view)


def _own(folder: Path) -> bool:
    """Whether a folder has scenes to calibrate on beside those that test."""
    return has_split(folder, "test") and has_split(folder, "val")


def open_scenes(artifact: Artifact) -> SceneSet:
    """Scenes that an artifact holds, of split None: drawn by a generator, they belong to no data set.

    Args:
        artifact: its file scenes.safetensors holds pixels uint8 (N, 3, H, W) and, padded as by `detection.padded`, labels and
            boxes (the layout that was asked for); its settings name the "classes".
    """
    tensors, classes = artifact.tensors(SCENES), artifact.settings["classes"]
    present = [rows >= 0 for rows in tensors["labels"]]
    boxes, labels = (
        [rows[there] for rows, there in zip(tensors[name], present, strict=True)]
        for name in ("boxes", "labels")
    )
    return SceneSet(tensors["pixels"], boxes, labels, tuple(classes), f"scenes of {artifact.key}")
