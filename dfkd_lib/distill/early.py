"""DearKD: stage 1 distils a CNN's early features and labels into a transformer; stage 2 trains it without any teacher."""

from pydantic import Field

from dfkd_lib.core import Artifact, Config, Seeds, Store
from dfkd_lib.datasets import DataConfig, ImageSet
from dfkd_lib.distill.classification import Step, StudentConfig, train
from dfkd_lib.distill.weights import KDWeights
from dfkd_lib.synthesis import JudgeConfig, train_judge
from dfkd_lib.training import Augmentation, Kind, TrainConfig, train_teacher


class EarlyConfig(Config):
    """DearKD against a plain ViT of its size at shares of the training data, every run with as many image passes.

    The source at hand gives no weight of the two distillation losses beside CE, so 1.
    """

    data: DataConfig = DataConfig()
    seeds: Seeds = Field((0, 1, 2), description="seeds of the repeats, comma-separated")
    shares: str = Field("0.1,0.25,0.5,1", description="shares of the images, comma-separated")
    student: str = Field("dearkd_tiny_32", description="name of DearKD's student")
    baseline: str = Field("dearkd_baseline_32", description="name of the plain ViT")
    patch_size: int = Field(4, ge=1, le=64, description="pixels of a patch of both")
    images: int = Field(60_000, ge=10, description="real images the shares are taken from")
    passes: int = Field(6_000_000, ge=1, description="images seen in training, in all")
    first_stage: float = Field(0.6, gt=0, lt=1, description="part of the passes in stage 1")
    early_stage: int = Field(1, ge=0, le=5, description="early map of the CNN that is distilled")
    hard_weight: float = Field(1.0, ge=0, description="λ of the CNN's label")
    early_weight: float = Field(1.0, ge=0, description="λ of its early features")
    batch_size: int = Field(512, ge=1, description="images a step")
    lr: float = Field(1e-3, gt=0, le=1, description="peak learning rate of AdamW")
    weight_decay: float = Field(0.05, ge=0, description="weight decay")
    augmentation: Kind = Field("shift", description="what is done to each image")
    feature: JudgeConfig = JudgeConfig(epochs=10)

    def teacher(self, store: Store, train_set: ImageSet, test_set: ImageSet) -> Artifact:
        """The CNN teacher, trained on real images by cross entropy."""
        return train_judge(store, self.feature, train_set, test_set)

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
    ) -> list[Artifact]:
        """The stages of one run, the last of which is the result: "DearKD" (two stages) or "plain" (one).

        Args:
            step: of stage 1, see `distill.train`; it may ask for `aligner`. The library's own by default.
        """
        chosen = pool.sample(max(pool.num_classes, round(share * len(pool))), seed)
        overrides = {"patch_size": self.patch_size}

        def by_labels(model: str, part: float, stage: str, start: Artifact | None) -> Artifact:
            config = self.training(len(chosen), part, seed)
            how = {"augmentation": Augmentation(kind=self.augmentation), "overrides": overrides}
            return train_teacher(
                store, model, chosen, test_set, config, stage=stage, start=start, **how
            )

        if variant == "plain":
            return [by_labels(self.baseline, 1.0, "plain_vit", None)]
        config = StudentConfig(
            **self.training(len(chosen), self.first_stage, seed),
            model=self.student,
            augmentation=self.augmentation,
            early_stage=self.early_stage,
        )
        weights = KDWeights(kd=0.0, patch=0.0, hard=self.hard_weight, early=self.early_weight)
        first = train(
            store,
            config,
            step or weights,
            chosen,
            test_set,
            teacher,
            stage="dearkd_stage1",
            overrides=overrides,
            needs=("early features",),
        )
        return [first, by_labels(self.student, 1 - self.first_stage, "dearkd_stage2", first)]
