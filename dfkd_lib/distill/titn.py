"""TITN's training: CutMix or MixUp on the class token, the teacher's arg-max label on the distillation token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dfkd_lib.artifacts import Artifact, Store
from dfkd_lib.datasets import ImageSet
from dfkd_lib.distill.mixing import batch_transform
from dfkd_lib.distill.runner import check_fit, load_trained, test_logits, train_classifier
from dfkd_lib.errors import WorkbenchError
from dfkd_lib.intervals import accuracy_interval
from dfkd_lib.losses import cutmix_loss, hard_distillation_loss
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
    def step(batch: Sequence[Tensor], progress: float) -> dict[str, Tensor]:
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


@dataclass(frozen=True)
class Contender:
    """A row of the paper's tables: the model by size, how images are mixed, and whether a teacher is heard."""

    paper: str
    small: str
    mix: str = "cutmix"
    distilled: bool = True

    def model(self, size: str) -> str:
        if size not in ("small", "paper"):
            raise WorkbenchError("no such size", expected="small or paper", got=size, where="size")
        return self.paper if size == "paper" else self.small


CONTENDERS = {
    "ViT": Contender("vit_tiny_32", "vit_small_28", distilled=False),
    "DeiT": Contender("deit_tiny_32", "deit_small_28"),
    "TNT": Contender("tnt", "tnt_small", distilled=False),
    "TITN": Contender("titn", "titn_small"),
    "TITN (MixUp)": Contender("titn", "titn_small", mix="mixup"),
    "TITN (large patch)": Contender("titn_large_patch", "titn_small_large_patch"),
}

# (top-1 %, top-5 %, precision, recall, F1, "GFLOPs") where the paper gives them: Tables 3, 4 and 5.
PAPER = {
    "cifar100": {"teacher": (79.80, 94.51, 0.77, 0.80, 0.79, 448.47), "ViT": (70.79, 89.55, 0.65, 0.71, 0.68, 93.37),
                 "DeiT": (73.91, 91.91, 0.71, 0.74, 0.73, 98.84), "TNT": (68.47, 88.44, 0.61, 0.68, 0.64, 105.93),
                 "TITN": (74.71, 92.28, 0.72, 0.75, 0.74, 111.40),
                 "TITN (MixUp)": (74.40, 92.53, 0.70, 0.74, 0.72, 111.40),
                 "TITN (large patch)": (63.63, 85.93, 0.58, 0.64, 0.61, 36.09)},
    "cifar10": {"teacher": (95.98, 99.92), "ViT": (86.33, 99.41), "DeiT": (91.64, 99.73), "TNT": (86.91, 99.38),
                "TITN": (92.03, 99.80), "TITN (large patch)": (85.39, 99.31)},
    "mnist": {"teacher": (99.75, 100.0), "ViT": (99.40, 100.0), "DeiT": (99.52, 100.0), "TNT": (99.46, 100.0),
              "TITN": (99.56, 100.0)},
}
PAPER_COLUMNS = ("top-1 (%)", "top-5 (%)", "precision", "recall", "F1", "GFLOPs")
PAPER_TABLE = {"cifar100": "C Table 3", "cifar10": "C Table 4", "mnist": "C Table 5"}
PAPER_BATCH = 1024  # images behind the paper's GFLOPs: its figures are multiply-adds of one batch, see `cost_table`


def train_contender(store: Store, label: str, size: str, teacher: Artifact, train_set: ImageSet, test_set: ImageSet,
                    config: TrainConfig, alpha: float = 0.5, beta: float = 0.5,
                    augmentation: str = "shift") -> Artifact:
    """One row of Tables 3-5, trained by `titn_step`; see `train_classifier`.

    Args:
        label: a key of CONTENDERS. size: "small" or "paper". alpha: of eq. 10. beta: of Beta(beta, beta) for lam.
        teacher: heard by students with a distillation token only; the others do not depend on it.

    Raises:
        WorkbenchError: on an unknown label or size, or a teacher that does not take these images.
    """
    if label not in CONTENDERS:
        raise WorkbenchError("no such model in the comparison", expected=", ".join(CONTENDERS), got=label, where="models")
    contender = CONTENDERS[label]
    frozen_teacher = load_trained(teacher) if contender.distilled else None
    if contender.distilled:
        check_fit(frozen_teacher, train_set, "the teacher")
    settings = {"mix": contender.mix, "beta": beta, "augmentation": augmentation}
    return train_classifier(store, "titn" if contender.distilled else "titn_undistilled", contender.model(size), train_set,
                            test_set, config, lambda model, _: titn_step(model, frozen_teacher, alpha),
                            settings=settings | ({"alpha": alpha} if contender.distilled else {}),
                            transform=batch_transform(augmentation, contender.mix, beta),
                            parents=[teacher] if contender.distilled else [])


def measures(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Top-1 and top-5 accuracy in %, and macro precision, recall and F1 in [0, 1], of logits (N, K), labels (N,).

    Top-5 of fewer than six classes counts as many as there are but one. A class that is never predicted has precision 0.
    """
    from sklearn.metrics import precision_recall_fscore_support

    top = logits.topk(min(5, logits.shape[1] - 1), dim=1).indices
    precision, recall, f1, _ = precision_recall_fscore_support(labels.numpy(), logits.argmax(1).numpy(), average="macro",
                                                               labels=range(logits.shape[1]), zero_division=0)
    return {"top-1 (%)": 100 * (logits.argmax(1) == labels).float().mean().item(),
            "top-5 (%)": 100 * (top == labels[:, None]).any(1).float().mean().item(),
            "precision": float(precision), "recall": float(recall), "F1": float(f1)}


def comparison_table(rows: dict[str, Artifact], data: str):
    """The paper's Tables 3-5 with ours: {label or "teacher": artifact} → accuracy, its interval, and the paper's beside.

    Precision, recall and F1 are means over classes. Where the paper gives no value the cell is empty.
    """
    import pandas as pd

    table = []
    for label, artifact in rows.items():
        logits, labels = test_logits(artifact)
        found = measures(logits, labels)
        low, high = accuracy_interval(round(found["top-1 (%)"] * len(labels) / 100), len(labels))
        known = dict(zip(PAPER_COLUMNS, PAPER.get(data, {}).get(label, ()), strict=False))
        table.append({"model": f"{label} ({artifact.settings['model']})", "top-1 (%)": found["top-1 (%)"],
                      "95 % interval": f"{100 * low:.2f} – {100 * high:.2f}",
                      **{name: found[name] for name in PAPER_COLUMNS[1:5]},
                      **{f"paper {name}": known.get(name, float("nan")) for name in PAPER_COLUMNS[:5]}})
    return pd.DataFrame(table).dropna(axis="columns", how="all")


def cost_table(rows: dict[str, Artifact], flops: dict[str, int]):
    """Parameters, operations of one image, and multiply-adds of 1024 images beside the paper's "GFLOPs" (Table 3).

    Args:
        flops: {label: floating-point operations of one image}, two for each multiply-add.
    """
    import pandas as pd

    return pd.DataFrame([{
        "model": f"{label} ({artifact.settings['model']})", "parameters": artifact.metrics["parameters"],
        "MFLOP an image": flops[label] / 1e6, "G multiply-adds, 1024 images": flops[label] / 2 * PAPER_BATCH / 1e9,
        "paper's GFLOPs": (*PAPER["cifar100"].get(label, ()), *[float("nan")] * 6)[5],
        "images/s in training": artifact.metrics.get("images_per_second", float("nan")),
    } for label, artifact in rows.items()])
