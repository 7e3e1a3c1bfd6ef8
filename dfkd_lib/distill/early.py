"""DearKD: stage 1 distils a CNN's early features and labels into a transformer; stage 2 trains it without any teacher."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfkd_lib.artifacts import Artifact, Store
from dfkd_lib.datasets import ImageSet
from dfkd_lib.distill.mixing import batch_transform
from dfkd_lib.distill.runner import load_trained, train_classifier
from dfkd_lib.losses import hard_distillation_loss
from dfkd_lib.models.cnn import early_channels, logits_and_early_map
from dfkd_lib.models.dearkd import DearKD, EarlyAligner
from dfkd_lib.training import TrainConfig


def early_step(student: DearKD, aligner: EarlyAligner, teacher: nn.Module, stage: int, hard_weight: float = 1.0,
               early_weight: float = 1.0) -> Callable:
    """Stage 1: CE on the class token, hard distillation on the distillation token, MSE of aligned early features.

    Args:
        teacher: frozen CNN in evaluation mode. stage: which of its early maps is distilled.
        hard_weight, early_weight: factors of the two distillation losses beside CE, which has 1.

    Returns:
        A step for `training.fit` on (images float (B, C, H, W), labels int64 (B,)).
    Source: DearKD (CVPR 2022), stage 1; the source at hand gives no weights, so they are parameters.
    """
    def step(batch: tuple[Tensor, Tensor], progress: float) -> dict[str, Tensor]:
        images, labels = batch
        with torch.no_grad():
            teacher_logits, teacher_map = logits_and_early_map(teacher, images, stage)
        tokens = student.forward_early(images)
        class_logits, dist_logits = student.forward_late(tokens)
        ce = F.cross_entropy(class_logits.float(), labels)
        hard = hard_distillation_loss(dist_logits, teacher_logits)
        early = F.mse_loss(aligner(tokens, teacher_map.shape[2:]).float(), teacher_map.float())
        return {"loss": ce + hard_weight * hard + early_weight * early, "ce": ce, "hard": hard, "early": early}

    return step


def plain_step(student: nn.Module) -> Callable:
    """Stage 2 and the baseline: cross entropy of the model's own prediction, with no teacher at all.

    The prediction of a model with two heads is the mean of their logits, the same that is tested.
    Source: DearKD (CVPR 2022), stage 2.
    """
    def step(batch: tuple[Tensor, Tensor], progress: float) -> dict[str, Tensor]:
        images, labels = batch
        output = student(images)
        logits = (output[0] + output[1]) / 2 if isinstance(output, tuple) else output
        ce = F.cross_entropy(logits.float(), labels)
        return {"loss": ce, "ce": ce}

    return step


@dataclass(frozen=True)
class EarlyRecipe:
    """DearKD against a plain ViT of its size at shares of the training data, every run with as many image passes.

    Args:
        images: size of the whole pool, which the shares are taken from. passes: images seen in training, in all.
        first_stage: part of them in stage 1. early_stage: which early map of the CNN is distilled.
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
    batch_size: int = 64
    lr: float = 2e-3
    weight_decay: float = 0.05
    augmentation: str = "shift"

    @classmethod
    def of(cls, parameters: dict) -> "EarlyRecipe":
        """The recipe from a notebook's parameters (`globals()`), taking those it knows by name."""
        return cls(**{f.name: type(f.default)(parameters[f.name]) for f in fields(cls) if f.name in parameters})

    def config(self, images: int, part: float, seed: int) -> TrainConfig:
        """So many epochs that a share of `images` is passed over as often as `passes` and `part` ask for."""
        epochs = max(1, round(self.passes * part / images))
        return TrainConfig(epochs, min(self.batch_size, images), self.lr, weight_decay=self.weight_decay,
                           warmup_epochs=min(1.0, 0.1 * epochs), grad_clip=1.0, seed=seed)

    def run(self, store: Store, arm: str, teacher: Artifact, pool: ImageSet, test_set: ImageSet, share: float,
            seed: int) -> list[Artifact]:
        """The stages of one run, the last of which is the result: arm "DearKD" (two) or "plain" (one)."""
        chosen = pool.sample(max(pool.num_classes, round(share * len(pool))), seed)
        common = {"overrides": {"patch_size": self.patch_size}, "transform": batch_transform(self.augmentation)}
        known = {"augmentation": self.augmentation}
        if arm == "plain":
            return [train_classifier(store, "plain_vit", self.baseline, chosen, test_set,
                                     self.config(len(chosen), 1.0, seed), lambda model, _: plain_step(model),
                                     settings=known, **common)]
        cnn = load_trained(teacher)
        channels = early_channels(cnn, self.early_stage, chosen.shape[1], chosen.shape[0])

        def first(model, _):
            aligner = EarlyAligner(model.embed_dim, channels)
            return early_step(model, aligner, cnn, self.early_stage), {"aligner": aligner}

        one = train_classifier(store, "dearkd_stage1", self.student, chosen, test_set,
                               self.config(len(chosen), self.first_stage, seed), first, parents=[teacher],
                               settings={**known, "early_stage": self.early_stage}, **common)
        two = train_classifier(store, "dearkd_stage2", self.student, chosen, test_set,
                               self.config(len(chosen), 1 - self.first_stage, seed), lambda model, _: plain_step(model),
                               start=one, settings=known, **common)
        return [one, two]
