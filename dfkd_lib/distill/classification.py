"""Probe-guided classification KD (METHODS A3): L = λ_KD L_KD + λ_CE L_CE + λ_patch L_patch."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfkd_lib.artifacts import Artifact, Store, save_tensors
from dfkd_lib.attention import logits_and_probe
from dfkd_lib.datasets import ImageSet, random_shift, to_float
from dfkd_lib.distill.runner import check_fit, load_trained, reads_of, shipped_teacher, train_classifier
from dfkd_lib.errors import WorkbenchError
from dfkd_lib.losses import kd_loss, patch_probe_loss
from dfkd_lib.training import TrainConfig, device


@dataclass(frozen=True)
class KDWeights:
    """λ of each loss component (≥ 0, not all 0) and the temperature T (> 0) of the distillation loss (A eq. 8-10)."""

    kd: float = 1.0
    ce: float = 1.0
    patch: float = 1.0
    temperature: float = 4.0

    def __post_init__(self):
        weights = (self.kd, self.ce, self.patch)
        if min(weights) < 0 or max(weights) == 0:
            raise WorkbenchError("the loss weights are impossible", expected="λ ≥ 0, at least one above 0",
                                 got=f"KD {self.kd}, CE {self.ce}, patch {self.patch}", where="KDWeights",
                                 mend="give at least one component a positive weight")
        if not self.temperature > 0:
            raise WorkbenchError("the temperature must be positive", expected="T > 0", got=self.temperature,
                                 where="KDWeights", mend="usual values are 1 to 8")


def drop_one(weights: KDWeights) -> dict[str, KDWeights]:
    """The one-component-out ablation: {"all": …, "without KD": …, "without CE": …, "without patch": …}.

    A component whose weight is 0 already, or that is the only one, has no row.
    """
    parts = {"KD": "kd", "CE": "ce", "patch": "patch"}
    used = [name for name in parts.values() if getattr(weights, name) > 0]
    return {"all": weights} | {f"without {shown}": replace(weights, **{name: 0.0}) for shown, name in parts.items()
                               if name in used and len(used) > 1}


def shift_and_scale(pixels: int) -> Callable:
    """A batch transform: shifts by up to `pixels`, then floats in [-1, 1]."""
    return lambda batch, generator: (to_float(random_shift(batch[0], pixels, generator)), *batch[1:])


def train_teacher(store: Store, model_name: str, train_set: ImageSet, test_set: ImageSet, config: TrainConfig,
                  shift: int = 2, overrides: dict | None = None, stage: str = "teacher",
                  parents: Sequence[Artifact] = ()) -> Artifact:
    """A teacher trained by cross entropy on images shifted by up to `shift` pixels; see `train_classifier`."""
    def make_step(model, _):
        def step(batch, progress):
            loss = F.cross_entropy(model(batch[0]).float(), batch[1])
            return {"loss": loss}
        return step

    train_set.check_classes()
    return train_classifier(store, stage, model_name, train_set, test_set, config, make_step, settings={"shift": shift},
                            overrides=overrides, transform=shift_and_scale(shift), parents=parents)


def obtain_teacher(store: Store, how: str, shipped: str, model_name: str, train_set: ImageSet, test_set: ImageSet,
                   config: TrainConfig) -> Artifact:
    """The shipped teacher of that name (how="shipped"), or `model_name` trained here on real images (how="train").

    Raises:
        WorkbenchError: if `how` is neither, or the shipped teacher knows other classes than the images.
    """
    if how == "train":
        return train_teacher(store, model_name, train_set, test_set, config)
    if how != "shipped":
        raise WorkbenchError("no such way to a teacher", expected="shipped or train", got=how, where="teacher")
    return shipped_teacher(store, shipped, test_set)


def kd_step(student: nn.Module, targets: Callable, weights: KDWeights) -> Callable:
    """The step of Algorithm 1: the three weighted losses against the teacher's targets.

    Args:
        targets: batch → (teacher logits (B, K), teacher probe (B, M)). Components with weight 0 are still logged.
    """
    def step(batch: Sequence[Tensor], progress: float) -> dict[str, Tensor]:
        images, labels = batch[:2]
        teacher_logits, teacher_probe = targets(batch)
        logits, probe = logits_and_probe(student, images)
        losses = {"kd": kd_loss(logits, teacher_logits, weights.temperature),
                  "ce": F.cross_entropy(logits.float(), labels), "patch": patch_probe_loss(probe, teacher_probe)}
        total = sum(weight * losses[name] for name, weight in
                    (("kd", weights.kd), ("ce", weights.ce), ("patch", weights.patch)) if weight)
        return {"loss": total, **losses}

    return step


def teacher_targets(store: Store, teacher: Artifact, train_set: ImageSet,
                    parents: Sequence[Artifact] = ()) -> Artifact:
    """The teacher's logits and probes on images that never change, computed once: targets.safetensors, float32.

    Counted by the ledger if the images are real; rows are in the order of the set.
    """
    def make(work: Path) -> dict:
        model = load_trained(teacher)
        device = next(model.parameters()).device
        with torch.inference_mode():
            pairs = [logits_and_probe(model, to_float(batch).to(device)) for batch in train_set.images.split(512)]
        save_tensors(work / "targets.safetensors", {"logits": torch.cat([p[0] for p in pairs]).float(),
                                                    "probes": torch.cat([p[1] for p in pairs])})
        return {"images": len(train_set)}

    return store.get_or_make("teacher_targets", {"images": train_set.fingerprint}, make, [teacher, *parents],
                             reads_of((train_set, "teacher targets")))


def stored_targets(kept: Artifact) -> Callable:
    """(images, labels, rows) → the stored logits and probes of those rows."""
    tensors = {name: value.to(device()) for name, value in kept.tensors("targets.safetensors").items()}
    return lambda batch: (tensors["logits"][batch[2]], tensors["probes"][batch[2]])


def live_targets(teacher: nn.Module) -> Callable:
    """(images, …) → the teacher's logits and probes of just these images: needed where augmentation changes them."""
    def targets(batch):
        with torch.no_grad():
            return logits_and_probe(teacher, batch[0])
    return targets


def train_student(store: Store, stage: str, model_name: str, teacher: Artifact, train_set: ImageSet,
                  test_set: ImageSet, config: TrainConfig, weights: KDWeights = KDWeights(), shift: int = 0,
                  overrides: dict | None = None, parents: Sequence[Artifact] = ()) -> Artifact:
    """A student distilled from a frozen teacher on real or synthetic images (Algorithm 1); see `train_classifier`.

    Args:
        train_set: if synthetic, no real image is read but for evaluation, and the ledger holds the stage to it.
        shift: augmentation by up to that many pixels; the teacher then sees each shifted batch anew.
        parents: what made the synthetic images.

    Raises:
        WorkbenchError: if teacher and images differ in classes or size, or the teacher has no class token.
    """
    frozen_teacher = load_trained(teacher)
    check_fit(frozen_teacher, train_set, "the teacher")

    made_from = [teacher, *parents]
    if shift == 0:
        kept = teacher_targets(store, teacher, train_set, parents)
        made_from.append(kept)

    def make_step(model, _):
        return kd_step(model, stored_targets(kept) if shift == 0 else live_targets(frozen_teacher), weights)

    return train_classifier(store, stage, model_name, train_set, test_set, config, make_step, overrides=overrides,
                            settings={"weights": asdict(weights), "shift": shift},
                            transform=_keep_rows(shift), parents=made_from)


def _keep_rows(shift: int) -> Callable | None:
    # Without shifts the rows' numbers must reach the step: they find the stored targets.
    return None if shift == 0 else shift_and_scale(shift)
