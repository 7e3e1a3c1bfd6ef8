"""Every setting of detection distillation as one typed tree."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from dfkd_lib.core import Config, Seed, Seeds, Sides
from dfkd_lib.datasets import GENERATED, SceneConfig
from dfkd_lib.detection.detector import DetectorConfig, Name, Passes
from dfkd_lib.detection.inversion import SceneInversion
from dfkd_lib.detection.scene_gan import SceneGAN
from dfkd_lib.detection.step import DetectionWeights
from dfkd_lib.metrics import THRESHOLD
from dfkd_lib.training import Precision


class DetectionTeacher(DetectorConfig):
    """The teacher: one that comes with the workbench, or one trained on the labelled training scenes (A §8)."""

    main: ClassVar[str] = "source"
    also: ClassVar[dict[str, str]] = {
        "pretrained": "pretrained",
        "weights": "weights",
        "backbone_weights": "backbone_weights",
    }

    source: Literal["shipped", "train"] = Field("train", description="where the teacher is from")
    shipped: str = Field("detr_micro_scenes", description="the shipped one's name in data/teachers")
    epochs: Passes = 300


class DetectionStudent(DetectorConfig):
    """A student; the default is the paper's ResNet-18 (METHODS A4 on its count)."""

    also: ClassVar[dict[str, str]] = {
        "batch_size": "batch_size",
        "precision": "precision",
        "augment": "augment",
        "backbone_weights": "student_backbone",
    }

    model: Name = "detr_resnet18_2x2"
    epochs: Passes = 150
    precision: Precision = Field("bf16", description="arithmetic of training")
    inherit: bool = Field(
        False,
        description="start a student's transformer and heads as its teacher's, if of one shape",
    )


class DetectionConfig(Config):
    """Every setting of METHODS A4; the defaults are the paper's where it names one."""

    also: ClassVar[dict[str, str]] = {"seeds": "gan_seeds", "students": "arms"}

    data: SceneConfig = SceneConfig()
    seed: Seed = Field(0, description="of scenes, teacher and students")
    teacher: DetectionTeacher = DetectionTeacher()
    start: Literal["nothing", "generated"] = Field(
        "nothing", description="start a folder's detectors from ones of the generated scenes"
    )
    student: DetectionStudent = DetectionStudent()
    losses: DetectionWeights = DetectionWeights()
    gan: SceneGAN = SceneGAN()
    gan_scenes: int = Field(
        0, ge=0, le=10**7, description="scenes a GAN draws for a student, 0: as many as it saw"
    )
    inversion: SceneInversion = SceneInversion()
    inverted_scenes: int = Field(
        1000, ge=1, le=10**7, description="scenes that are inverted from the teacher for a student"
    )
    seeds: Seeds = Field(
        (0, 1, 2),
        description="seeds of both GANs, the first one's teach students; and of the students whose gain by a teacher is compared",
    )
    students: str = Field(
        "",
        description="students, comma-separated, of train, plain, aligned, synthetic, vanilla, layouts, inverted, generated; empty: all of them",
    )
    tile: Sides = Field(
        (0,),
        description="measure on a folder's whole frames in tiles of so many pixels, of several sides if objects are of very different sizes; 0: as large as training crops are",
    )
    second_look: bool = Field(
        True,
        description="look again at the surer detections found in tiles, in windows about them that are cut as training crops are",
    )
    examples: int = Field(8, ge=1, le=64, description="scenes that are shown")
    threshold: float = Field(
        THRESHOLD, ge=0, le=1, description="score from which a detection is shown"
    )

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        others = [
            f"{who}.{name}"
            for who in ("teacher", "student")
            for name in ("pretrained", "weights", "backbone_weights")
            if self[who][name]
        ]
        if self.from_generated and others:
            raise ValueError(
                f"a detector cannot start from two kinds of weights: start=generated and {', '.join(others)}"
            )
        unknown = set(self.variants) - set(VARIANTS)
        if unknown:
            raise ValueError(f"students of {', '.join(VARIANTS)}: there is no {', '.join(unknown)}")
        return self

    @property
    def from_generated(self) -> bool:
        """Whether detectors start from ones of the generated scenes."""
        return self.start == "generated" and self.data.name != GENERATED

    @property
    def variants(self) -> tuple[str, ...]:
        """The students asked for, by their short names."""
        names = (name.strip() for name in self.students.split(","))
        return tuple(dict.fromkeys(filter(None, names))) or tuple(VARIANTS)

    @property
    def drawn(self) -> tuple[str, ...]:
        """The students asked for that learn from what a GAN draws."""
        return tuple(name for name in self.variants if name in DRAWN)

    @property
    def compared(self) -> tuple[str, ...]:
        """The students asked for whose gain by a teacher is measured over seeds; none unless two of them and two seeds are."""
        names = tuple(name for name in ARMS if name in self.variants)
        return names if min(len(names), len(self.seeds)) > 1 else ()


# Short name of a student, as in metrics -> what it learns from.
VARIANTS = {
    "train": "labels + teacher",
    "plain": "labels alone",
    "aligned": "labels + teacher's queries",
    "synthetic": "attention GAN's scenes",
    "vanilla": "vanilla GAN's scenes",
    "layouts": "attention GAN's scenes, teacher's layouts",
    "inverted": "scenes inverted from the teacher",
    "generated": "generated scenes",
}
# Students of the training scenes and their labels: without a teacher, with matched, with query-aligned distillation.
ARMS = ("plain", "train", "aligned")
# Students of scenes that a GAN draws.
DRAWN = ("synthetic", "vanilla", "layouts")
