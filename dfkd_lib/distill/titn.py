"""TITN's training: CutMix or MixUp on the class token, the teacher's arg-max label on the distillation token."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from dfkd_lib.artifacts import Artifact, Store
from dfkd_lib.datasets import ImageSet
from dfkd_lib.distill.mixing import batch_transform
from dfkd_lib.distill.runner import load_trained, test_logits, train_classifier
from dfkd_lib.intervals import mean_interval
from dfkd_lib.losses import cutmix_loss, hard_distillation_loss
from dfkd_lib.models import count_flops
from dfkd_lib.training import TrainConfig


def titn_step(student: nn.Module, teacher: nn.Module | None, alpha: float = 0.5) -> Callable:
    """alpha * L_CM(class token, labels) + (1 - alpha) * CE(distillation token, arg max of the teacher).

    A student with one head has no distillation token: its loss is L_CM alone.

    Args:
        teacher: frozen, in evaluation mode; sees the mixed images. alpha: in [0, 1].

    Returns:
        A step for `training.fit` on (images, labels, labels of the mixed-in images, lam); see `mixing.cutmix`.
    Source: TITN paper, eq. 9 and 10.
    """
    def step(batch: tuple[Tensor, Tensor, Tensor, Tensor], progress: float) -> dict[str, Tensor]:
        images, labels, others, lam = batch
        output = student(images)
        if not isinstance(output, tuple):
            mix = cutmix_loss(output, labels, others, lam)
            return {"loss": mix, "mix": mix}
        with torch.no_grad():
            teacher_logits = teacher(images)
        mix = cutmix_loss(output[0], labels, others, lam)
        hard = hard_distillation_loss(output[1], teacher_logits)
        return {"loss": alpha * mix + (1 - alpha) * hard, "mix": mix, "hard": hard}

    return step


# name in the tables -> (model at the quick size, at the paper's, mix)
ROWS = {"ViT": ("vit_small_28", "vit_tiny_32", "cutmix"), "DeiT": ("deit_small_28", "deit_tiny_32", "cutmix"),
        "TNT": ("tnt_small", "tnt", "cutmix"), "TITN": ("titn_small", "titn", "cutmix"),
        "TITN MixUp": ("titn_small", "titn", "mixup"),
        "TITN large patch": ("titn_small_large_patch", "titn_large_patch", "cutmix")}
# C Tables 3-6, top-1 in %.
PAPER_TOP1 = {"cifar100": {"ViT": 70.79, "DeiT": 73.91, "TNT": 68.47, "TITN": 74.71, "TITN MixUp": 74.40,
                           "TITN large patch": 63.63},
              "cifar10": {"ViT": 86.33, "DeiT": 91.64, "TNT": 86.91, "TITN": 92.03, "TITN large patch": 85.39},
              "mnist": {"ViT": 99.40, "DeiT": 99.52, "TNT": 99.46, "TITN": 99.56}}


@dataclass(frozen=True)
class TitnRecipe:
    """TITN beside ViT, DeiT and TNT: same images, epochs, optimizer and mixing (C Tables 3-6).

    Args:
        scale: "small" (quick sizes) or "paper". alpha: weight of the class token's loss. images: real images, 0: all.
    """

    data: str = "mnist"
    size: int = 0
    test_images: int = 0
    scale: str = "small"
    images: int = 6000
    epochs: int = 4
    batch_size: int = 64
    optimizer: str = "adamw"
    lr: float = 2e-3
    weight_decay: float = 0.05
    augmentation: str = "shift"
    alpha: float = 0.5

    @classmethod
    def of(cls, parameters: dict) -> "TitnRecipe":
        """The recipe from a notebook's parameters (`globals()`), taking those it knows by name."""
        return cls(**{f.name: type(f.default)(parameters[f.name]) for f in fields(cls) if f.name in parameters})

    def run(self, store: Store, row: str, teacher: Artifact, train_set: ImageSet, test_set: ImageSet,
            seed: int) -> Artifact:
        """One model of `ROWS`, trained from the seed."""
        small, large, mix = ROWS[row]
        chosen = train_set.sample(self.images or len(train_set), 4)
        config = TrainConfig(self.epochs, self.batch_size, self.lr, optimizer=self.optimizer,
                             weight_decay=self.weight_decay, warmup_epochs=0.2, grad_clip=1.0, seed=seed)
        cnn = load_trained(teacher)
        return train_classifier(store, "titn", small if self.scale == "small" else large, chosen, test_set, config,
                                lambda model, _: titn_step(model, cnn, self.alpha), parents=[teacher],
                                settings={"mix": mix, "alpha": self.alpha, "augmentation": self.augmentation},
                                transform=batch_transform(self.augmentation, mix))


def scores(artifact: Artifact) -> dict[str, float]:
    """Top-1, top-5, macro precision, recall and F1, in %, on the artifact's test images."""
    from sklearn.metrics import precision_recall_fscore_support

    logits, labels = test_logits(artifact)
    precision, recall, f1, _ = precision_recall_fscore_support(labels, logits.argmax(1), average="macro", zero_division=0)
    top5 = (logits.topk(min(5, logits.shape[1]), 1).indices == labels[:, None]).any(1).float().mean().item()
    return {"top-1": 100 * artifact.metrics["accuracy"], "top-5": 100 * top5, "precision": 100 * float(precision),
            "recall": 100 * float(recall), "F1": 100 * float(f1)}


def gigaflops(artifact: Artifact) -> float:
    """10⁹ floating point operations of one image's forward pass (a multiply-add counts as two)."""
    known = artifact.settings["overrides"]
    model = load_trained(artifact)
    image = torch.zeros(1, known["in_chans"], known["img_size"], known["img_size"], device=next(model.parameters()).device)
    return count_flops(model, image) / 1e9


def table(runs: dict[str, list[Artifact]], data: str):
    """C Tables 3-6: one row a model, scores averaged over its seeds (± the 95 % interval of top-1), the paper's beside."""
    import pandas as pd

    rows = []
    for name, artifacts in runs.items():
        each = [scores(a) for a in artifacts]
        mean = {key: sum(s[key] for s in each) / len(each) for key in each[0]}
        rows.append({"model": name, **mean, "± 95 %": mean_interval([s["top-1"] for s in each])[1], "seeds": len(each),
                     "GFLOPs": gigaflops(artifacts[0]), "parameters": artifacts[0].metrics["parameters"],
                     "paper's top-1": PAPER_TOP1.get(data, {}).get(name, float("nan"))})
    return pd.DataFrame(rows)
