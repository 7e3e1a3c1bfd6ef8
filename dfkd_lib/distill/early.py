"""DearKD: stage 1 distils a CNN's early features and labels into a transformer; stage 2 trains it without any teacher."""

from dataclasses import dataclass, fields

from dfkd_lib.core.artifacts import Artifact, Store
from dfkd_lib.datasets import ImageSet
from dfkd_lib.distill.classification import train_student, train_teacher
from dfkd_lib.distill.mixing import Augmentation
from dfkd_lib.distill.runner import train_classifier
from dfkd_lib.distill.step import label_step
from dfkd_lib.distill.weights import KDWeights
from dfkd_lib.training import TrainConfig


@dataclass(frozen=True)
class EarlyRecipe:
    """DearKD against a plain ViT of its size at shares of the training data, every run with as many image passes.

    Args:
        images: size of the whole pool, which the shares are taken from. passes: images seen in training, in all.
        first_stage: part of them in stage 1. early_stage: which early map of the CNN is distilled. hard_weight,
            early_weight: of the two distillation losses beside CE; the source at hand gives none, so 1.
        patch_size: pixels; student, baseline: names for `create_model`.
    """

    data: str = "mnist"
    size: int = 0
    test_images: int = 0
    student: str = "dearkd_small"
    baseline: str = "dearkd_baseline_small"
    patch_size: int = 7
    images: int = 6000
    passes: int = 24_000
    first_stage: float = 0.6
    early_stage: int = 1
    hard_weight: float = 1.0
    early_weight: float = 1.0
    batch_size: int = 64
    lr: float = 2e-3
    weight_decay: float = 0.05
    augmentation: str = "shift"

    @classmethod
    def of(cls, parameters: dict) -> "EarlyRecipe":
        """The recipe from a notebook's parameters (`globals()`), taking those it knows by name."""
        return cls(
            **{
                f.name: type(f.default)(parameters[f.name])
                for f in fields(cls)
                if f.name in parameters
            }
        )

    def config(self, images: int, part: float, seed: int) -> TrainConfig:
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
        arm: str,
        teacher: Artifact,
        pool: ImageSet,
        test_set: ImageSet,
        share: float,
        seed: int,
    ) -> list[Artifact]:
        """The stages of one run, the last of which is the result: arm "DearKD" (two) or "plain" (one)."""
        chosen = pool.sample(max(pool.num_classes, round(share * len(pool))), seed)
        common = {
            "overrides": {"patch_size": self.patch_size},
            "augmentation": Augmentation(kind=self.augmentation),
        }
        if arm == "plain":
            return [
                train_teacher(
                    store,
                    self.baseline,
                    chosen,
                    test_set,
                    self.config(len(chosen), 1.0, seed),
                    stage="plain_vit",
                    **common,
                )
            ]
        weights = KDWeights(kd=0.0, patch=0.0, hard=self.hard_weight, early=self.early_weight)
        one = train_student(
            store,
            "dearkd_stage1",
            self.student,
            teacher,
            chosen,
            test_set,
            self.config(len(chosen), self.first_stage, seed),
            weights,
            early_stage=self.early_stage,
            **common,
        )
        two = train_classifier(
            store,
            "dearkd_stage2",
            self.student,
            chosen,
            test_set,
            self.config(len(chosen), 1 - self.first_stage, seed),
            lambda model, _: label_step(model),
            start=one,
            **common,
        )
        return [one, two]
