"""Probe-guided classification from one configuration: teacher, class probes, makers' images and students, by key.

Notebooks 10, 20, 30, 35 and 70 share it, so that each of them runs alone and still finds what another has made.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator

from dfkd_lib import datasets, models, synthesis, training
from dfkd_lib.core import Artifact, Config, NoSuchNames, Seed, Seeds, Store, WorkbenchError
from dfkd_lib.datasets import DataConfig, ImageSet
from dfkd_lib.distill.classification import Step, StudentConfig, train
from dfkd_lib.distill.step import KDWeights
from dfkd_lib.synthesis import (
    CGAN,
    ContrastiveInversion,
    FastGenerator,
    FeatureConfig,
    FeatureSpace,
    Given,
    GuidedGenerator,
    Inversion,
    PenStrokes,
)
from dfkd_lib.training import Augmentation, Kind, TeacherConfig

Images = Annotated[int, Field(ge=10)]
Weight = Annotated[float, Field(ge=0, le=1000)]


class ClassificationConfig(Config):
    """Every setting of METHODS A2 and A3 and of the makers that see less; the defaults are the paper's where it names one."""

    data: DataConfig = DataConfig()
    seed: Seed = Field(0, description="of everything random that has no seed of its own")
    seeds: Seeds = Field((0, 1, 2, 3, 4), description="seeds of the repeats, comma-separated")
    teacher: TeacherConfig = TeacherConfig()
    train_images: Images = Field(60_000, description="real images for class probes and GAN")
    gan: CGAN = CGAN()
    student: StudentConfig = StudentConfig()
    weights: KDWeights = KDWeights()
    real_images: Images = Field(60_000, description="real images for the student that may see them")
    synthetic_images: Images = Field(50_000, description="synthetic ones for the one that may not")
    synthetic_augmentation: Literal["", *get_args(Kind)] = Field(
        "", description="what is done to each synthetic image (A §6.1), empty: as to real ones"
    )
    teacher_synthetic_epochs: int = Field(
        20, ge=0, description="passes of the teacher trained on synthetic images, 0: leave it out"
    )
    feature: FeatureConfig = FeatureConfig()
    makers: str = Field("", description="makers to compare, comma-separated; all by default")
    maker_images: Images = Field(
        50_000, description="images each maker makes for its student (inversions: fewer)"
    )
    inversion_images: Images = Field(10_000, description="images of each inversion")
    claim_images: int = Field(
        0, ge=0, description="real images of the equal-epoch comparison, 0: train_images"
    )
    guided: GuidedGenerator = GuidedGenerator()
    probe_weight: Weight = Field(1.0, description="of the consistency with class probes (maker 2)")
    adversarial_weight: Weight = Field(
        0.2, description="of the disagreement with a student (maker 3c)"
    )
    rival_model: str = Field(
        "", description="that student, and of makers 3d and 3e; '': the student's own architecture"
    )
    inversion: Inversion = Inversion()
    batch_norm_weight: Weight = Field(1.0, description="of the batch-norm statistics (maker 3a)")
    contrast_weight: Weight = Field(0.8, description="of the contrast with earlier images (3d)")
    disagreement_weight: Weight = Field(
        0.0, description="of the disagreement with a student of their own, rival_model (3d, 3e)"
    )
    pen: PenStrokes = PenStrokes()
    fast_rounds: int = Field(
        400, ge=1, description="batches that a meta-learnt generator learns from (maker 3e)"
    )
    fast_steps: int = Field(
        5, ge=1, le=1000, description="steps of each of its batches: Fast-5, Fast-10 (maker 3e)"
    )
    entropy_weight: Weight = Field(0.1, description="of the patch-similarity entropy (maker 3b)")

    @field_validator("makers", mode="after")
    @classmethod
    def _known_makers(cls, makers: str) -> str:
        if unknown := [name for name in _words(makers) if name not in MAKERS]:
            raise NoSuchNames("makers", unknown, MAKERS)
        return makers

    def maker_names(self) -> list[str]:
        """The makers to compare, in the order of every table."""
        asked = {*_words(self.makers)}
        return [name for name in (*MAKERS, *(asked - MAKERS.keys())) if name in asked or not asked]

    def student_for(self, images: ImageSet, student: StudentConfig | None = None) -> StudentConfig:
        """The student's settings (or others of its kind) for these images: made ones have an augmentation of their own."""
        student, kind = student or self.student, self.synthetic_augmentation
        return student.replace(augmentation=kind) if kind and not images.real else student

    def maker_settings(self) -> dict[str, synthesis.Maker]:
        """The makers of the comparison by name, each with the settings of this tree, in the order of every table."""
        return {name: make(self) for name, make in MAKERS.items()}


def _words(text: str) -> list[str]:
    """The words of a comma-separated text."""
    return [word for word in map(str.strip, text.split(",")) if word]


def _guided(config: ClassificationConfig, **weights) -> GuidedGenerator:
    return config.guided.replace(seed=config.seed, background=config.data.background, **weights)


def _inversion(config: ClassificationConfig, **weights) -> Inversion:
    return config.inversion.replace(background=config.data.background, **weights)


def _adversarial(config: ClassificationConfig, **changes) -> GuidedGenerator:
    weight, rival = config.adversarial_weight, config.rival_model or config.student.model
    return _guided(config, adversarial=weight, student_model=rival, **changes)


def _fitted(config: ClassificationConfig, kind: type, **own) -> synthesis.Maker:
    """A maker with the weights, batches and steps of the inversion, but for its rate: that is of pixels."""
    known = kind.model_fields.keys() - {"lr"}
    shared = {name: value for name, value in config.inversion if name in known}
    how = {"background": config.data.background, "batch_norm": config.batch_norm_weight}
    if config.disagreement_weight:
        how["decision_adversarial"] = config.disagreement_weight
        how["student_model"] = config.rival_model or config.student.model
    return kind(**{**shared, **how, **own})


# Name in every table -> the maker of a configuration.
MAKERS: dict[str, Callable[[ClassificationConfig], synthesis.Maker]] = {
    "vanilla GAN": lambda config: config.gan.replace(seed=config.seed, lam=0.0),
    "augmented GAN": lambda config: config.gan.replace(seed=config.seed),
    "class probes": lambda config: _guided(config, attention=config.probe_weight),
    "inversion (CNN)": lambda config: _inversion(config, batch_norm=config.batch_norm_weight),
    "inversion (ViT)": lambda config: _inversion(config, patch_entropy=config.entropy_weight),
    "adversarial": _adversarial,
    "adversarial (no prior)": lambda config: _adversarial(config, strokes=False, ink=0, blank=0),
    "contrastive memory": lambda config: _fitted(
        config, ContrastiveInversion, contrast=config.contrast_weight
    ),
    "fast": lambda config: _fitted(
        config, FastGenerator, rounds=config.fast_rounds, inner=config.fast_steps, seed=config.seed
    ),
    "pen strokes": lambda config: config.pen.replace(background=config.data.background),
}


class AttentionConfig(ClassificationConfig):
    """`ClassificationConfig`, and what notebook 10 looks at beside its teacher."""

    model: str = Field(
        "", description="a timm name, owner/name on the hub, a file or a folder, empty: the teacher"
    )
    checkpoint: str = Field(
        "", description="a .safetensors file for that timm name, empty: its pretrained weights"
    )
    second: str = Field(
        "auto", description="the model beside it: student, untrained, none, or as for model"
    )
    block: int = Field(-1, ge=-100, le=99, description="block, from the end if negative")
    detector: str = Field("detr_micro_scenes", description="a shipped detector, empty: none")
    view: str = Field("", description="the explorer's start, as its Save parameters writes it")
    examples: int = Field(3, ge=1, le=12, description="images in Figure 1")
    statistics_images: int = Field(5000, ge=10, description="test images behind statistics")
    scenes: int = Field(100, ge=1, le=10_000, description="generated scenes for the detector")
    download: bool = Field(False, description="fetch pretrained weights that are not on this disk")
    fallback: bool = Field(
        False,
        description="show the workbench's own teacher where the weights asked for are missing",
    )


class AblationConfig(ClassificationConfig):
    """`ClassificationConfig`, and the grid that notebook 35 runs on top of it."""

    grid: str = Field(
        "", description="a YAML file of settings and seeds, empty: one loss left out at a time"
    )
    baseline: str = Field("", description="the setting others are compared with, empty: the first")
    source: Literal["real", *MAKERS] = Field("augmented GAN", description="images")
    jobs: int = Field(0, ge=0, le=1024, description="students at a time, 0: as many as threads")


class Study:
    """What a configuration asks for, each part made or found by its key when it is first used.

    Args:
        store: where everything is kept. config: the settings.
    """

    def __init__(self, store: Store, config: ClassificationConfig):
        self.store, self.config = store, config

    @cached_property
    def _splits(self) -> tuple[ImageSet, ImageSet]:
        return datasets.load_splits(self.config.data)

    @property
    def full_train(self) -> ImageSet:
        """All real training images."""
        return self._splits[0]

    @property
    def test_set(self) -> ImageSet:
        """The real test images that measure every model."""
        return self._splits[1]

    @cached_property
    def train_set(self) -> ImageSet:
        """The real images that class probes and GAN see."""
        return self.full_train.sample(self.config.train_images, 0)

    @cached_property
    def claim_set(self) -> ImageSet:
        """The real images that both GANs of the equal-epoch comparison see."""
        return self.train_set.sample(self.config.claim_images or len(self.train_set))

    @cached_property
    def teacher(self) -> Artifact:
        """The teacher: shipped, or trained on real training images."""
        config = self.config
        return training.open_teacher(self.store, config.teacher, *self._splits, config.seed)

    @cached_property
    def cnn_teacher(self) -> Artifact:
        """The CNN that makers by batch-norm statistics invert: the teacher, if it has any; else a CNN of their own, not the
        one that judges, which would flatter them."""
        if models.has_batch_norm(self.teacher.settings["model"]):
            return self.teacher
        return synthesis.train_judge(self.store, self.config.feature, *self._splits, seed=1)

    @cached_property
    def probes(self) -> Artifact:
        """The teacher's class probes on the images of `train_set`."""
        return synthesis.class_probes(self.store, self.teacher, self.train_set)

    def inputs(self, maker: synthesis.Maker) -> Given:
        """What a maker may use, and no more: what its `sees` names, and a CNN teacher if it inverts batch norms."""
        teacher = self.cnn_teacher if getattr(maker, "batch_norm", 0) else self.teacher
        return Given(
            teacher,
            self.test_set.classes,
            self.test_set.shape,
            self.probes if "class probes" in maker.sees else None,
            self.train_set if "real images" in maker.sees else None,
        )

    def made(self, maker: synthesis.Maker, count: int) -> tuple[ImageSet, Artifact]:
        """`count` images of a maker, an inversion's at most `inversion_images`, and their artifact."""
        if isinstance(maker, (Inversion, ContrastiveInversion)):
            count = self.config.inversion_images
        seed = self.config.seed + 1000
        return synthesis.make_images(self.store, maker, self.inputs(maker), count, seed)

    def images(self, source: str) -> tuple[ImageSet, list[Artifact]]:
        """What a student of that source is trained on, and what made it.

        Args:
            source: "real", "synthetic" (the augmented GAN's) or the name of a maker.

        Raises:
            WorkbenchError: if there is no such source.
        """
        config = self.config
        if source == "real":
            return self.full_train.sample(config.real_images, 1), []
        makers = config.maker_settings()
        maker = makers.get("augmented GAN" if source == "synthetic" else source)
        if maker is None:
            raise WorkbenchError(
                "no such source of images",
                expected=", ".join(("real", "synthetic", *MAKERS)),
                got=source,
                where="source",
                fix="choose one of them",
            )
        images, artifact = self.made(maker, config.synthetic_images)
        return images, [artifact]

    def student(self, source: str, seed: int | None = None, step: Step | None = None) -> Artifact:
        """A student on the images of a source, by the library's step or one of the caller's; see `train`."""
        config = self.config.student.replace(seed=self.config.seed if seed is None else seed)
        config.untrained(self.test_set)  # refused, if it does not fit, before a teacher is trained
        images, parents = self.images(source)
        return self.student_on(images, parents, config, step)

    def student_on(
        self,
        images: ImageSet,
        parents: Sequence[Artifact],
        config: StudentConfig,
        step: Step | None = None,
    ) -> Artifact:
        """A student of the configuration's kind on these images."""
        config = self.config.student_for(images, config)
        step, test_set = step or self.config.weights, self.test_set
        return train(self.store, config, step, images, test_set, self.teacher, parents=parents)

    def prepare(self, source: str) -> None:
        """Make what all students on a source share: the teacher, the images, and teacher targets if they are stored."""
        images, parents = self.images(source)
        student = self.config.student_for(images)
        if "early features" not in self.config.weights.needs:
            student.targets(self.store, self.teacher, student.chosen(images), parents)

    def teacher_on_synthetic(self) -> Artifact:
        """The teacher's architecture trained on synthetic images and their labels alone (a cell of A Table 4)."""
        images, parents = self.images("synthetic")
        epochs, seed = self.config.teacher_synthetic_epochs, self.config.seed
        config = self.config.teacher.training(epochs=epochs, warmup_epochs=0.2, seed=seed)
        own = self.store, self.teacher.settings["model"], images, self.test_set, config
        augment = Augmentation(kind=self.config.synthetic_augmentation or "shift")
        how = {"stage": "teacher_synthetic", "parents": parents}
        return training.train_teacher(*own, augment, **how)

    @cached_property
    def space(self) -> FeatureSpace:
        """The space that distances are taken in; WorkbenchError if its network's weights are absent."""
        feature = self.config.feature
        return synthesis.feature_space(self.store, feature, *self._splits, lambda: self.teacher)

    @cached_property
    def reference(self) -> Artifact:
        """Features of the real images that distances are taken to: at most `fid_images` of `train_set`."""
        few = self.train_set.sample(self.config.feature.fid_images)
        return synthesis.real_features(self.store, few, self.space)

    def measures(self, images: ImageSet, artifact: Artifact, rounds: int = 100) -> Artifact:
        """All measures of made images, see `synthesis.measure_images`."""
        count = self.config.feature.fid_images
        return synthesis.measure_images(
            self.store, images, artifact, self.reference, self.space, count, rounds
        )
