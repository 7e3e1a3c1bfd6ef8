"""The stages of probe-guided classification KD in their order, from plain parameters, each made or found by its key.

Notebooks 10, 20, 30 and 70 share it, so that each of them runs alone and still finds what another has made.
"""

import hashlib
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import nn

from dfkd_lib import distill, metrics, synthesis
from dfkd_lib.core import WorkbenchError, is_number, printable
from dfkd_lib.core.artifacts import Artifact, Store, resolve
from dfkd_lib.datasets import ImageSet, load_images
from dfkd_lib.distill import Augmentation, KDWeights
from dfkd_lib.models import WeightsMissing, check_images, count_parameters, create_model, load_model
from dfkd_lib.synthesis import CGAN, FeatureSpace, Given, fitted
from dfkd_lib.training import TrainConfig


def parse_seeds(text: str) -> list[int]:
    """The seeds of a comma-separated list; WorkbenchError if one is repeated (it would count as an independent run)."""
    seeds = [int(part) for part in text.split(",")]
    if len(set(seeds)) < len(seeds):
        raise WorkbenchError(
            "a seed is repeated",
            expected="different seeds",
            got=text,
            where="seeds",
            fix="equal seeds give equal runs, which are no independent evidence: name each once",
        )
    return seeds


TEACHER_BATCH = 128  # images a step
NAMED = ("mnist", "digits", "cifar10", "cifar100")


@lru_cache(maxsize=6)
def _known_images(data: str, split: str, size: int | None, stamp: tuple) -> ImageSet:
    """Images of a split, read once however many students of a grid want them; `stamp` is what makes a changed folder new."""
    return load_images(data, split, size=size)


def _stamp(data: str) -> tuple:
    """When the folders of a data folder were last changed, by adding or removing files; () for a named set."""
    folder = resolve(data)
    if data in NAMED or not folder.is_dir():
        return ()
    return tuple(
        sorted(
            (str(path), path.stat().st_mtime_ns)
            for path in [folder, *folder.glob("*/"), *folder.glob("*/*/")]
        )
    )


class Subject(NamedTuple):
    """A model to look into, with images that fit it.

    Args:
        name: short, for titles. model: frozen. artifact: what it was made from, for keys. said: where it comes from.
        train_set, test_set: images behind class probes, and images to look at; the same if the data has no splits.
    """

    name: str
    model: nn.Module
    artifact: Artifact
    said: str
    train_set: ImageSet
    test_set: ImageSet


@dataclass(frozen=True)
class ClassificationRecipe:
    """Every parameter of METHODS A2 and A3 as a plain scalar; the defaults are the quick profile's.

    Args:
        data: a data set's name or folder. size: pixels to resize a folder's images to, 0: as they are.
        seed: of the student, of its generator and of the choice of images.
        teacher: "shipped" (the file named by `shipped`) or "train" (teacher_model on teacher_images, 0: all).
        test_images: real test images that measure, 0: all.
        train_images: real images for class probes and GAN. gan_*, d_width, dropout, lam: see `synthesis.CGAN`.
        features: space of distances, see `feature_space`; feature_*: of the data set's own classifier.
        fid_images: made images, and at most as many real ones, behind a distance.
        synthetic_images, real_images: what students are trained on; student_images: a sample of so many of them, 0: all.
        *_weight, temperature, schedules: see `KDWeights`. early_stage: which early map of a CNN teacher is aligned.
        augmentation, mix: of the students' images, see `Augmentation`.
    """

    data: str = "mnist"
    size: int = 0
    seed: int = 0
    teacher: str = "shipped"
    shipped: str = "vit_mnist_small"
    teacher_model: str = "vit_mnist_small"
    teacher_epochs: int = 10
    teacher_lr: float = 1e-3
    teacher_images: int = 0
    test_images: int = 0
    train_images: int = 10_000
    gan_epochs: int = 4
    gan_batch: int = 32
    gan_lr: float = 1e-3
    gan_width: int = 128
    d_width: int = 32
    dropout: float = 0.1
    attention_share: float = 1.0
    lam: float = 1.0
    features: str = "classifier"
    feature_model: str = "cnn_small"
    feature_images: int = 20_000
    feature_epochs: int = 2
    fid_images: int = 10_000
    student_model: str = "vit_mnist_mini_patch7"
    student_epochs: int = 5
    student_lr: float = 3e-3
    batch_size: int = 64
    real_images: int = 30_000
    synthetic_images: int = 30_000
    kd_weight: float = 1.0
    ce_weight: float = 1.0
    patch_weight: float = 1.0
    hard_weight: float = 0.0
    soft_weight: float = 0.0
    early_weight: float = 0.0
    temperature: float = 4.0
    schedules: str = ""
    early_stage: int = 1
    student_precision: str = "fp32"
    student_compile: bool = False
    student_images: int = 0
    augmentation: str = "none"
    mix: str = "none"

    def __post_init__(self):
        for field in fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            low = -1 if field.name == "background" else 0
            fits = (
                isinstance(value, kind) and printable(value)
                if kind is str
                else isinstance(value, bool)
                if kind is bool
                else is_number(value, low)
                and (kind is float or isinstance(value, int) and value < 2**32)
            )
            if not fits:
                expected = {str: "text in one line", bool: "True or False"}.get(
                    kind, f"a finite {kind.__name__} from {low}"
                )
                raise WorkbenchError(
                    f"the setting '{field.name}' is impossible",
                    expected=expected,
                    got=value,
                    where=type(self).__name__,
                    fix=f"its default is {field.default!r}",
                )

    @classmethod
    def of(cls, parameters: dict) -> "ClassificationRecipe":
        """The recipe from a notebook's parameters (`globals()`), taking those it knows by name."""
        known = {f.name: type(f.default) for f in fields(cls)}
        return cls(
            **{name: kind(parameters[name]) for name, kind in known.items() if name in parameters}
        )

    def _load(self, split: str) -> ImageSet:
        return _known_images(self.data, split, self.size or None, _stamp(self.data))

    @cached_property
    def full_train(self) -> ImageSet:
        """All real training images."""
        return self._load("train")

    @cached_property
    def test_set(self) -> ImageSet:
        """The real test images that measure every model."""
        images = self._load("test")
        return images.sample(self.test_images or len(images), 0)

    @cached_property
    def train_set(self) -> ImageSet:
        """The real images that class probes and GAN see."""
        return self.full_train.sample(self.train_images, 0)

    @property
    def weights(self) -> KDWeights:
        return KDWeights(
            kd=self.kd_weight,
            ce=self.ce_weight,
            patch=self.patch_weight,
            temperature=self.temperature,
            hard=self.hard_weight,
            soft=self.soft_weight,
            early=self.early_weight,
            schedules=self.schedules,
        )

    def teacher_artifact(self, store: Store) -> Artifact:
        """The teacher: shipped, or trained on all real training images."""
        config = TrainConfig(
            epochs=self.teacher_epochs,
            batch_size=TEACHER_BATCH,
            lr=self.teacher_lr,
            weight_decay=0.025,
            warmup_epochs=1.0,
            grad_clip=1.0,
            precision="bf16",
            seed=self.seed,
        )
        return distill.obtain_teacher(
            store,
            self.teacher,
            self.shipped,
            self.teacher_model,
            self.full_train.sample(self.teacher_images or len(self.full_train), 2),
            self.test_set,
            config,
        )

    def feature_artifact(self, store: Store) -> Artifact:
        """The data set's own classifier: what makes features, and judges which classes images look like."""
        config = TrainConfig(
            epochs=self.feature_epochs,
            batch_size=128,
            lr=2e-3,
            weight_decay=0.01,
            warmup_epochs=0.2,
            precision="bf16",
            seed=0,
        )
        return distill.train_teacher(
            store,
            self.feature_model,
            self.full_train.sample(self.feature_images, 3),
            self.test_set,
            config,
        )

    def feature_space(self, store: Store, download: bool = False) -> FeatureSpace:
        """The space of `features`: "classifier" (the data set's own), "teacher" (its tokens), "inception" (where its
        weights are on disk or may be downloaded), or a model as for `models.load_model` with its pretrained weights.

        Raises:
            WorkbenchError: if the network's weights are absent.
        """
        if self.features == "inception":
            metrics.check_inception(download)  # before anything is trained
        judge = self.feature_artifact(store)
        if self.features == "classifier":
            return FeatureSpace(
                f"{judge.settings['model']} on {self.data}", judge, lambda images: images, judge
            )
        if self.features == "teacher":
            teacher = self.teacher_artifact(store)
            return FeatureSpace(
                f"tokens of the teacher {teacher.settings['model']}",
                teacher,
                lambda images: metrics.token_features(distill.load_trained(teacher), images),
                judge,
            )
        if self.features == "inception":
            return FeatureSpace(
                "Inception",
                None,
                lambda images: metrics.inception_features(images, download=download),
                judge,
            )
        model = distill.frozen(load_model(self.features, download=download))
        opened = self._opened(
            store, self.features, model, model.source, self.train_set, self.test_set
        )

        def extract(images: torch.Tensor) -> torch.Tensor:
            return torch.cat(
                [
                    metrics.classifier_features(model, fitted(model.img_size, model.in_chans, part))
                    for part in images.split(256)
                ]
            )

        return FeatureSpace(
            f"{self.features} {opened.artifact.key[-8:]}", opened.artifact, extract, judge
        )

    def given(self, store: Store) -> Given:
        """What the GAN is given: teacher, class probes, real images."""
        teacher = self.teacher_artifact(store)
        return Given(
            teacher,
            self.test_set.classes,
            self.test_set.shape,
            synthesis.class_probes(store, teacher, self.train_set),
            self.train_set,
        )

    def gan_maker(self, lam: float | None = None, seed: int | None = None) -> CGAN:
        """The cGAN with that λ (0: vanilla) and seed; the recipe's own by default."""
        config = TrainConfig(
            epochs=self.gan_epochs,
            batch_size=self.gan_batch,
            lr=self.gan_lr,
            optimizer="adam",
            betas=(0.5, 0.999),
            weight_decay=2e-5,
            schedule="constant",
            precision="bf16",
            seed=self.seed if seed is None else seed,
        )
        return CGAN(
            config=config,
            lam=self.lam if lam is None else lam,
            width=self.gan_width,
            d_width=self.d_width,
            dropout=self.dropout,
            attention_share=self.attention_share,
        )

    def gan(self, store: Store, lam: float | None = None, seed: int | None = None) -> Artifact:
        """The trained GAN of `gan_maker`."""
        return self.gan_maker(lam, seed).train(store, self.given(store))

    def synthetic(self, store: Store, count: int | None = None) -> tuple[ImageSet, Artifact]:
        """Synthetic training images from the augmented GAN."""
        return synthesis.make_images(
            store,
            self.gan_maker(),
            self.given(store),
            count or self.synthetic_images,
            seed=self.seed + 1000,
        )

    def student_config(self, seed: int | None = None, epochs: int | None = None) -> TrainConfig:
        return TrainConfig(
            epochs=epochs or self.student_epochs,
            batch_size=self.batch_size,
            lr=self.student_lr,
            betas=(0.5, 0.999),
            weight_decay=0.025,
            warmup_epochs=0.5,
            grad_clip=1.0,
            precision=self.student_precision,
            seed=self.seed if seed is None else seed,
            compile=self.student_compile,
        )

    def training_images(self, store: Store, source: str) -> tuple[ImageSet, list[Artifact]]:
        """What a student of that source is trained on, and what made it: "real" or "synthetic" (the augmented GAN's).

        Raises:
            WorkbenchError: if there is no such source.
        """
        if source == "real":
            return self.full_train.sample(self.real_images, 1), []
        if source == "synthetic":
            images, kept = self.synthetic(store)
            return images, [kept]
        raise WorkbenchError(
            "no such source of images",
            expected="real or synthetic",
            got=source,
            where="source",
            fix="choose one of them",
        )

    def distilled(
        self, store: Store, images: ImageSet, parents: list[Artifact], config: TrainConfig
    ) -> Artifact:
        """A student of the recipe's kind on these images, by Algorithm 1."""
        chosen = images.sample(self.student_images or len(images), 1)
        return distill.train_student(
            store,
            f"student_{'real' if images.real else 'synthetic'}",
            self.student_model,
            self.teacher_artifact(store),
            chosen,
            self.test_set,
            config,
            self.weights,
            Augmentation(kind=self.augmentation, mix=self.mix),
            parents=parents,
            early_stage=self.early_stage,
        )

    def shared(self, store: Store, source: str) -> None:
        """Make what all students on a source share: the teacher, the images, and the teacher's answers if they are kept."""
        images, parents = self.training_images(store, source)
        chosen = images.sample(self.student_images or len(images), 1)
        distill.kept_targets(
            store,
            self.teacher_artifact(store),
            chosen,
            self.weights,
            Augmentation(kind=self.augmentation, mix=self.mix),
            parents,
        )

    def student(self, store: Store, source: str, seed: int | None = None) -> Artifact:
        """A student on the images of a source, see `training_images`; the recipe's own seed by default."""
        shape = (
            self.test_set.shape
        )  # the student must fit the images, known before a teacher is trained
        with torch.random.fork_rng(devices=[]):
            create_model(
                self.student_model,
                num_classes=self.test_set.num_classes,
                img_size=shape[1],
                in_chans=shape[0],
            )
        return self.distilled(
            store, *self.training_images(store, source), self.student_config(seed)
        )

    def teacher_on_synthetic(self, store: Store, epochs: int) -> Artifact:
        """The teacher's architecture trained on synthetic images and their labels alone (a cell of A Table 4)."""
        images, kept = self.synthetic(store)
        config = TrainConfig(
            epochs=epochs,
            batch_size=TEACHER_BATCH,
            lr=self.teacher_lr,
            weight_decay=0.025,
            warmup_epochs=0.2,
            grad_clip=1.0,
            precision="bf16",
            seed=self.seed,
        )
        name = self.teacher_artifact(store).settings["model"]
        return distill.train_teacher(
            store, name, images, self.test_set, config, stage="teacher_synthetic", parents=[kept]
        )

    def subject(
        self, store: Store, name: str = "", weights: str = "", download: bool = False
    ) -> Subject:
        """A model to look into.

        Args:
            name: "" for the teacher, "untrained" for its architecture before training, "student" for the student on real
                images; else as for `models.load_model`: a timm name, a safetensors file, a folder in transformers' format.
            weights, download: as for `models.load_model`. Where pretrained weights are neither on disk nor to be
                downloaded, the teacher takes the model's place, and `said` tells so.

        Raises:
            WorkbenchError: if it cannot be had, or does not take the images.
        """
        if name == "untrained":
            teacher = self.teacher_artifact(store)
            torch.manual_seed(self.seed)
            model = distill.frozen(
                create_model(teacher.settings["model"], **teacher.settings["overrides"])
            )
            return self._opened(
                store,
                "before training",
                model,
                f"{teacher.settings['model']}, weights drawn from seed {self.seed}",
                self.train_set,
                self.test_set,
            )
        if name in ("", "student"):
            made = self.student(store, "real") if name else self.teacher_artifact(store)
            said = (
                f"{name or 'teacher'} {made.settings['model']}: {made.metrics['parameters']:,} parameters, test "
                f"accuracy {made.metrics['accuracy']:.4f} on {len(self.test_set):,} images"
            )
            return Subject(
                name or "teacher",
                distill.load_trained(made),
                made,
                said,
                self.train_set,
                self.test_set,
            )
        try:
            model = distill.frozen(load_model(name, weights, download=download))
        except WeightsMissing as missing:
            if self.data not in NAMED and not resolve(self.data).is_dir():
                load_images(self.data, "test")  # raises, and says what is expected there
            # The shipped teacher knows MNIST, whatever images the missing model was to look at.
            own = (
                self
                if self.data == "mnist"
                else replace(self, data="mnist", size=0, teacher="shipped")
            ).subject(store)
            return own._replace(
                said=f"{missing}\nSo the workbench's own teacher is looked into instead, with its own "
                f"images, {own.test_set.name}: {own.said}"
            )
        sets = self._sets_for(model)
        for images in sets:
            check_images(model, images.shape, images.name)
        return self._opened(
            store,
            name.rstrip("/").split("/")[-1].removesuffix(".safetensors"),
            model,
            model.source,
            *sets,
        )

    def _sets_for(self, model: nn.Module) -> tuple[ImageSet, ImageSet]:
        """Training and test images at the size a loaded model takes; of a folder without splits, all images for both."""
        folder = resolve(self.data)
        if self.data in NAMED or not folder.is_dir():
            return self.train_set, self.test_set
        how = {"size": self.size or model.img_size, "channels": model.in_chans}
        if not any((folder / split).is_dir() for split in ("train", "test", "val")):
            every = load_images(self.data, "all", **how, max_images=self.train_images)
            return every, every
        return tuple(
            load_images(self.data, split, **how, max_images=count)
            for split, count in (("train", self.train_images), ("test", self.test_images))
        )

    def _opened(
        self, store: Store, name: str, model: nn.Module, said: str, train: ImageSet, test: ImageSet
    ) -> Subject:
        """A model from elsewhere under a key of its weights, so that what is made from it is found again."""
        digest = hashlib.sha256()
        for key, value in model.state_dict().items():
            digest.update(
                f"{key} {tuple(value.shape)}".encode()
                + value.detach().float().cpu().numpy().tobytes()
            )
        made = store.get_or_make(
            "opened_model",
            {"name": name, "weights": digest.hexdigest()[:16]},
            lambda work: {"parameters": count_parameters(model)},
        )
        return Subject(
            name, model, made, f"{said}; {count_parameters(model):,} parameters", train, test
        )
