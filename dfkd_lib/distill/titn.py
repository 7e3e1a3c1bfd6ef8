"""TITN's training: CutMix or MixUp on the class token, the teacher's arg-max label on the distillation token."""

from pathlib import Path
from typing import Literal

import pandas as pd
import yaml
from pydantic import Field

from dfkd_lib.core import Artifact, Config, Seeds, Store
from dfkd_lib.datasets import DataConfig, ImageSet
from dfkd_lib.distill.classification import Step, StudentConfig, train
from dfkd_lib.distill.cnn import CNNConfig
from dfkd_lib.distill.scores import SCORES, gigaflops, scores
from dfkd_lib.distill.step import KDWeights
from dfkd_lib.metrics.intervals import interval_text, mean_interval
from dfkd_lib.models import display_name
from dfkd_lib.training import Augmentation, Kind, Optimizer, Precision, TrainConfig, train_teacher

# name in the tables -> (model at the quick size, at the paper's, mix)
ROWS = {
    "ViT": ("vit_small_28", "vit_tiny_32", "cutmix"),
    "DeiT": ("deit_small_28", "deit_tiny_32", "cutmix"),
    "TNT": ("tnt_small", "tnt", "cutmix"),
    "TITN": ("titn_small", "titn", "cutmix"),
    "TITN MixUp": ("titn_small", "titn", "mixup"),
    "TITN large patch": ("titn_small_large_patch", "titn_large_patch", "cutmix"),
}
ONE_HEAD = ("ViT", "TNT")
# The paper's numbers: scores of Tables 3-5, cost of Table 3, and those of Table 2, Figure 5 and Table 6.
_READ = yaml.safe_load(Path(__file__).with_name("papers.yaml").read_text(encoding="utf-8"))
PAPER, PAPER_COST, PAPER_TEACHERS = _READ["titn"], _READ["cost"], _READ["teachers"]
PAPER_OPTIMIZERS, PAPER_DROP = _READ["optimizers"], _READ["drop"]


class TitnConfig(Config):
    """TITN beside ViT, DeiT and TNT: same images, epochs, optimizer and mixing (C Tables 3-6); defaults are paper C's."""

    data: DataConfig = DataConfig(name="cifar10", background=0.0)
    seeds: Seeds = Field((0, 1, 2), description="seeds of the repeats, comma-separated")
    scale: Literal["small", "paper"] = Field("paper", description="sizes of the models")
    images: int = Field(0, ge=0, description="real images they are trained on, 0: all")
    epochs: int = Field(300, ge=1, description="passes over them")
    batch_size: int = Field(1024, ge=1, description="images a step")
    optimizer: Optimizer = Field("sgd", description="optimizer")
    lr: float = Field(0.1, gt=0, le=1, description="peak learning rate")
    weight_decay: float = Field(1e-4, ge=0, description="weight decay")
    precision: Precision = Field("fp32", description="arithmetic: fp32, or bf16 by autocast")
    augmentation: Kind = Field("autoaugment", description="what is done to each image")
    alpha: float = Field(0.5, ge=0, le=1, description="weight of the class token's loss (C eq. 10)")
    feature: CNNConfig = CNNConfig(model="vgg16_bn", images=60_000, epochs=600)
    recipe: Literal["paper", "short"] = Field(
        "paper",
        description="training of a CNN that does not ship: as the students', or AdamW alone",
    )

    def teacher(self, store: Store, train_set: ImageSet, test_set: ImageSet) -> Artifact:
        """The CNN teacher: shipped, or trained on real images by cross entropy, with CutMix in the paper's recipe."""
        if self.recipe == "short" or self.feature.source == "shipped":
            return self.feature.opened(store, train_set, test_set)
        chosen = train_set.sample(self.feature.images, 3)
        config = self.training().replace(epochs=self.feature.epochs)
        augment = Augmentation(kind=self.augmentation, mix="cutmix")
        return train_teacher(store, self.feature.model, chosen, test_set, config, augment)

    def training(self) -> TrainConfig:
        """The settings of a training, of students and of the teacher in the paper's recipe (C §4.1)."""
        return TrainConfig(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            optimizer=self.optimizer,
            weight_decay=self.weight_decay,
            warmup_epochs=0.2,
            grad_clip=1.0,
            precision=self.precision,
        )

    def students(self) -> dict[str, StudentConfig]:
        """{name in the tables: its settings}, in the tables' order."""
        return {
            name: StudentConfig(
                **self.training(),
                model=small if self.scale == "small" else large,
                augmentation=self.augmentation,
                mix=mix,
            )
            for name, (small, large, mix) in ROWS.items()
        }

    def overrides(self, name: str, side: int) -> dict | None:
        """What of a small model's architecture another size of images than its own changes: as many patches as ever."""
        if self.scale == "paper" or side == 28:
            return None
        return {"patch_size": side // (2 if name == "TITN large patch" else 4)}

    def run(
        self,
        store: Store,
        name: str,
        teacher: Artifact,
        train_set: ImageSet,
        test_set: ImageSet,
        seed: int,
        step: Step | None = None,
        student: StudentConfig | None = None,
    ) -> Artifact:
        """One model of the tables, trained from the seed.

        Args:
            step: of a model with a distillation token, see `distill.train`; the library's own by default.
            student: its settings; those of its name by default.
        """
        student = (student or self.students()[name]).replace(seed=seed)
        chosen = train_set.sample(self.images or len(train_set), 4)
        how = {"stage": "titn", "overrides": self.overrides(name, chosen.shape[1])}
        if name in ONE_HEAD:  # no distillation token, no teacher: the class token's loss alone
            config, augment = student.training(), student.augment
            return train_teacher(store, student.model, chosen, test_set, config, augment, **how)
        weights = KDWeights(kd=0.0, ce=self.alpha, patch=0.0, hard=1 - self.alpha)
        return train(store, student, step or weights, chosen, test_set, teacher, **how)


def schooling(teacher: Artifact) -> str:
    """What a CNN learned from, "50,000 images, 30 epochs", trained here or shipped; "not recorded" where nobody knows."""
    images, epochs = teacher.metrics["train_images"], teacher.settings["config"].get("epochs")
    return f"{images:,} images, {epochs} epochs" if images and epochs else "training not recorded"


def runs_table(runs: dict[str, list[Artifact]]) -> pd.DataFrame:
    """One line a run, in numbers: model, seed, the scores of C Table 3 (%), parameters."""
    rows = [
        {
            "model": name,
            "seed": run.settings["config"]["seed"],
            **{SCORES[key]: 100 * value for key, value in scores(run).items()},
            "parameters": run.metrics["parameters"],
        }
        for name, artifacts in runs.items()
        for run in artifacts
    ]
    return pd.DataFrame(rows)


def table(runs: dict[str, list[Artifact]], teacher: Artifact, data: str) -> pd.DataFrame:
    """C Tables 3-5: the teacher and each model; every score (%) as mean ± 95 % interval over its seeds, cost of one image in
    10⁹ multiply-adds (GMACs), and the paper's scores in the same order, as many as it gives."""
    rows = []
    for name, artifacts in ({"teacher": [teacher]} | runs).items():
        each, paper = [scores(a) for a in artifacts], PAPER.get(data, {}).get(name, ())
        row = {"model": name if name in ROWS else display_name(artifacts[0].settings["model"])}
        row |= {shown: interval_text([100 * s[key] for s in each]) for key, shown in SCORES.items()}
        row["seeds"] = len(each)
        row["GMACs"] = gigaflops(artifacts[0]) / 2
        row["parameters"] = artifacts[0].metrics["parameters"]
        row["paper"] = " / ".join(f"{value:g}" for value in paper) or "–"
        rows.append(row)
    return pd.DataFrame(rows)


def drop_table(runs: dict[str, list[Artifact]], teacher: Artifact, data: str) -> pd.DataFrame:
    """C Table 6: top-1 (%) of the teacher, of each model that learns from it, the difference, and what both cost."""
    before, rows = 100 * scores(teacher)["top1"], []
    for name, artifacts in runs.items():
        if name in ONE_HEAD:
            continue
        after = [100 * scores(a)["top1"] for a in artifacts]
        costs = [f"{gigaflops(one) / 2:.3g}" for one in (teacher, artifacts[0])]
        sizes = [f"{one.metrics['parameters']:,}" for one in (teacher, artifacts[0])]
        macs, millions = PAPER_COST.get(name, (0, 0))
        in_paper = (data, name) == ("cifar10", "TITN")
        rows.append(
            {
                "teacher → student": f"{display_name(teacher.settings['model'])} → {name}",
                "teacher": before,
                "student": interval_text(after),
                "difference": mean_interval(after)[0] - before,
                "GMACs": " → ".join(costs),
                "parameters": " → ".join(sizes),
                "paper's cost": f"{macs / 1024:.3g}\u00a0G, {millions:.2f}\u00a0M" if macs else "–",
                "paper": " → ".join(map(str, PAPER_DROP)) if in_paper else "–",
            }
        )
    return pd.DataFrame(rows)
