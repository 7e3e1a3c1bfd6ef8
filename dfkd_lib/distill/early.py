"""DearKD: stage 1 distils a CNN's early features and labels into a transformer; stage 2 trains it without any teacher."""

from collections.abc import Sequence
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, Field

from dfkd_lib.core import Artifact, Config, Seeds, Store
from dfkd_lib.datasets import DataConfig, ImageSet
from dfkd_lib.distill.classification import Step, StudentConfig, train
from dfkd_lib.distill.cnn import CNNConfig
from dfkd_lib.distill.step import KDWeights
from dfkd_lib.synthesis import Given, Inversion, make_images
from dfkd_lib.training import Augmentation, Kind, Precision, TrainConfig, train_teacher


def _different(values: tuple[float, ...]) -> tuple[float, ...]:
    if not values or len(set(values)) < len(values):
        raise ValueError("different shares, at least one")
    return values


Shares = Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], AfterValidator(_different)]


class Arm(NamedTuple):
    """What of DearKD a run has: its attention, a distillation token with the CNN's label, the CNN's early features, stages."""

    convolutional: bool = False
    hard: bool = False
    early: bool = False
    stages: int = 1

    @property
    def distils(self) -> bool:
        """Whether the CNN teaches it."""
        return self.hard or self.early


# Name in tables -> what it has; neighbours differ in one thing.
ARMS = {
    "DearKD": Arm(True, True, True, 2),
    "DearKD, stage 1 alone": Arm(True, True, True),
    "plain": Arm(),
    "DeiT": Arm(hard=True),
    "convolutional attention": Arm(convolutional=True),
    "early features": Arm(early=True),
}


class EarlyConfig(Config):
    """DearKD against a plain ViT of its size at shares of the training data, every run with as many image passes.

    The source at hand gives no weight of the two distillation losses beside CE, so 1.
    """

    data: DataConfig = DataConfig()
    seeds: Seeds = Field((0, 1, 2), description="seeds of the repeats, comma-separated")
    shares: Shares = Field(
        (0.1, 0.25, 0.5, 1.0), description="shares of the images, each above 0 and at most 1"
    )
    student: str = Field("dearkd_tiny_32", description="name of DearKD's student")
    baseline: str = Field("dearkd_baseline_32", description="name of the plain ViT")
    patch_size: int = Field(4, ge=1, le=64, description="pixels of a patch of both")
    images: int = Field(60_000, ge=10, description="real images the shares are taken from")
    passes: int = Field(6_000_000, ge=1, description="images seen in training, in all")
    first_stage: float = Field(0.6, gt=0, lt=1, description="part of the passes in stage 1")
    hard_weight: float = Field(1.0, ge=0, description="λ of the CNN's label")
    early_weight: float = Field(1.0, ge=0, description="λ of its early features")
    batch_size: int = Field(512, ge=1, description="images a step")
    lr: float = Field(1e-3, gt=0, le=1, description="peak learning rate of AdamW")
    weight_decay: float = Field(0.05, ge=0, description="weight decay")
    precision: Precision = Field("fp32", description="arithmetic: fp32, or bf16 by autocast")
    augmentation: Kind = Field("shift", description="what is done to each image")
    feature: CNNConfig = CNNConfig(epochs=10)
    inversion: Inversion = Inversion(batch_norm=1.0, intra=1.0)
    inversion_images: int = Field(10_000, ge=10, description="images of DF-DearKD, inverted")

    def teacher(self, store: Store, train_set: ImageSet, test_set: ImageSet) -> Artifact:
        """The CNN teacher: shipped, or trained on real images by cross entropy."""
        return self.feature.opened(store, train_set, test_set)

    def inverted(
        self, store: Store, teacher: Artifact, test_set: ImageSet, intra: bool = True
    ) -> tuple[ImageSet, Artifact]:
        """DF-DearKD's images: the CNN inverted, with its intra-divergence or without."""
        weight = self.inversion.intra if intra else 0.0
        maker = self.inversion.replace(background=self.data.background, intra=weight)
        given = Given(teacher, test_set.classes, test_set.shape)
        return make_images(store, maker, given, self.inversion_images)

    def training(self, images: int, part: float, seed: int) -> TrainConfig:
        """So many epochs that a share of `images` is passed over as often as `passes` and `part` ask for."""
        epochs = max(1, round(self.passes * part / images))
        return TrainConfig(
            epochs=epochs,
            batch_size=min(self.batch_size, images),
            lr=self.lr,
            weight_decay=self.weight_decay,
            warmup_epochs=min(1.0, 0.1 * epochs),
            grad_clip=1.0,
            precision=self.precision,
            seed=seed,
        )

    def run(
        self,
        store: Store,
        variant: str,
        teacher: Artifact,
        pool: ImageSet,
        test_set: ImageSet,
        share: float,
        seed: int,
        step: Step | None = None,
        parents: Sequence[Artifact] = (),
    ) -> list[Artifact]:
        """The stages of one run of an arm (see `ARMS`), the last of which is the result.

        Args:
            parents: what made the pool, if it is synthetic.
            step: of stage 1, see `distill.train`; it may ask for `aligner`. The library's own by default.
        """
        arm = ARMS[variant]
        chosen = pool.sample(max(pool.num_classes, round(share * len(pool))), seed)
        model, overrides = self.architecture(arm)

        def by_labels(part: float, stage: str, start: Artifact | None = None) -> Artifact:
            config = self.training(len(chosen), part, seed)
            how = {"augmentation": Augmentation(kind=self.augmentation), "overrides": overrides}
            how |= {"stage": stage, "start": start, "parents": parents}
            return train_teacher(store, model, chosen, test_set, config, **how)

        if not arm.distils:
            return [by_labels(1.0, "plain_vit")]
        part = self.first_stage if arm.stages == 2 else 1.0
        own = {"model": model, "augmentation": self.augmentation}
        config = StudentConfig(**self.training(len(chosen), part, seed), **own)
        hard, early = self.hard_weight * arm.hard, self.early_weight * arm.early
        step = step or KDWeights(kd=0.0, patch=0.0, hard=hard, early=early)
        how = {"stage": "dearkd_stage1", "parents": parents, "overrides": overrides}
        how["needs"] = ("early features",) if arm.early else ()
        first = train(store, config, step, chosen, test_set, teacher, **how)
        if arm.stages == 1:
            return [first]
        return [first, by_labels(1 - self.first_stage, "dearkd_stage2", first)]

    def architecture(self, arm: Arm) -> tuple[str, dict]:
        """(the name of an arm's model, what of it changes)."""
        overrides = {"patch_size": self.patch_size}
        if arm.convolutional:
            return self.student, overrides | ({} if arm.hard else {"distilled": False})
        return self.baseline, overrides | ({"distilled": True} if arm.hard else {})
