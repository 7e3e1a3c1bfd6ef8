"""Teachers, and students distilled from them: probe-guided KD (A), early features (B), a distillation token (C)."""

from collections.abc import Sequence

import torch
from torch import nn

from dfkd_lib.core import WorkbenchError
from dfkd_lib.core.artifacts import Artifact, Store
from dfkd_lib.datasets import ImageSet
from dfkd_lib.distill.mixing import Augmentation, keeps_images
from dfkd_lib.distill.runner import (
    check_classes_agree,
    check_fit,
    load_trained,
    shipped_teacher,
    train_classifier,
)
from dfkd_lib.distill.step import distill_step, label_step
from dfkd_lib.distill.targets import has_probe, live_targets, stored_targets, teacher_targets
from dfkd_lib.distill.weights import KDWeights
from dfkd_lib.models import create_model
from dfkd_lib.models.cnn import early_channels
from dfkd_lib.models.dearkd import EarlyAligner
from dfkd_lib.training import TrainConfig


def train_teacher(
    store: Store,
    model_name: str,
    train_set: ImageSet,
    test_set: ImageSet,
    config: TrainConfig,
    augmentation: Augmentation = Augmentation(kind="shift"),
    overrides: dict | None = None,
    stage: str = "teacher",
    parents: Sequence[Artifact] = (),
) -> Artifact:
    """A classifier trained by cross entropy alone; see `train_classifier`.

    Raises:
        WorkbenchError: if a class has no image.
    """
    train_set.check_classes()
    return train_classifier(
        store,
        stage,
        model_name,
        train_set,
        test_set,
        config,
        lambda model, _: label_step(model),
        overrides=overrides,
        augmentation=augmentation,
        parents=parents,
    )


def obtain_teacher(
    store: Store,
    how: str,
    shipped: str,
    model_name: str,
    train_set: ImageSet,
    test_set: ImageSet,
    config: TrainConfig,
) -> Artifact:
    """The shipped teacher of that name (how="shipped"), or `model_name` trained here on real images (how="train").

    Raises:
        WorkbenchError: if `how` is neither, or the shipped teacher knows other classes than the images.
    """
    if how == "train":
        return train_teacher(store, model_name, train_set, test_set, config)
    if how != "shipped":
        raise WorkbenchError(
            "no such way to a teacher",
            expected="shipped or train",
            got=how,
            where="teacher",
            fix="choose one of them",
        )
    return shipped_teacher(store, shipped, test_set)


def train_student(
    store: Store,
    stage: str,
    model_name: str,
    teacher: Artifact,
    train_set: ImageSet,
    test_set: ImageSet,
    config: TrainConfig,
    weights: KDWeights = KDWeights(),
    augmentation: Augmentation = Augmentation(),
    overrides: dict | None = None,
    parents: Sequence[Artifact] = (),
    early_stage: int = 1,
) -> Artifact:
    """A student distilled from a frozen teacher on real or synthetic images; see `train_classifier`.

    Where the augmentation leaves every image as it is, which is looked at and not assumed, the teacher is asked once and
    its answers are kept for all epochs, students and ablations; else it sees each batch anew.

    Args:
        train_set: if synthetic, no real image is read but for evaluation, and the ledger holds the stage to it.
        weights: which losses teach; see `KDWeights`. parents: what made the synthetic images.
        early_stage: which early map of a CNN teacher is aligned, from 0, where the early loss is used.

    Raises:
        WorkbenchError: if teacher and images differ in classes or size; if a loss in use needs what teacher or student
            lack (attention, a distillation token, early maps).
    """
    frozen_teacher = load_trained(teacher)
    check_fit(frozen_teacher, train_set, "the teacher")
    check_classes_agree(
        teacher.settings.get("classes", train_set.classes),
        train_set.classes,
        f"teacher and {train_set.name}",
    )
    shape = {
        "num_classes": train_set.num_classes,
        "img_size": train_set.shape[1],
        "in_chans": train_set.shape[0],
    }
    with torch.random.fork_rng(devices=[]):
        check_losses(
            weights,
            create_model(model_name, **{**shape, **(overrides or {})}),
            frozen_teacher,
            train_set,
            early_stage,
        )
    early = early_stage if weights.uses("early") else None
    kept = kept_targets(store, teacher, train_set, weights, augmentation, parents)
    made_from = [teacher, *parents, *([kept] if kept else [])]

    def make_step(model, _):
        # Live, a probe that no loss asks for is not worth its time; kept, it is there anyway.
        targets = (
            stored_targets(kept)
            if kept
            else live_targets(
                frozen_teacher, weights.uses("patch") and has_probe(frozen_teacher), early
            )
        )
        if early is None:
            return distill_step(model, targets, weights)
        aligner = EarlyAligner(
            model.embed_dim,
            early_channels(frozen_teacher, early, shape["img_size"], shape["in_chans"]),
        )
        return distill_step(model, targets, weights, aligner), {"aligner": aligner}

    settings = {"weights": weights.as_dict(), **({} if early is None else {"early_stage": early})}
    return train_classifier(
        store,
        stage,
        model_name,
        train_set,
        test_set,
        config,
        make_step,
        overrides=overrides,
        settings=settings,
        augmentation=augmentation,
        parents=made_from,
    )


def kept_targets(
    store: Store,
    teacher: Artifact,
    train_set: ImageSet,
    weights: KDWeights,
    augmentation: Augmentation = Augmentation(),
    parents: Sequence[Artifact] = (),
) -> Artifact | None:
    """The teacher's answers that are kept for all epochs and students, or None where it must see each batch anew."""
    if weights.uses("early") or not keeps_images(augmentation, train_set):
        return None
    return teacher_targets(store, teacher, train_set, parents)


def check_losses(
    weights: KDWeights,
    student: nn.Module,
    teacher: nn.Module,
    images: ImageSet,
    early_stage: int = 1,
) -> None:
    """Raise a WorkbenchError, before anything is trained, if a loss in use needs what student or teacher do not have."""

    def refuse(name: str, who: str, model: nn.Module, needs: str) -> None:
        raise WorkbenchError(
            f"the {name} loss cannot be had from this {who}",
            expected=needs,
            got=type(model).__name__,
            where=f"{name}_weight",
            fix=f"set {name}_weight to 0, or choose another {who}",
        )

    if weights.uses("patch"):
        for who, model in (("teacher", teacher), ("student", student)):
            if not has_probe(model):
                refuse("patch", who, model, "a transformer with a class token")
    if weights.uses("hard") or weights.uses("soft"):
        check_fit(student, images, "the student")
        with torch.no_grad():
            # One row would do, but a batch norm in training wants two.
            output = student.train()(
                torch.zeros(2, *images.shape, device=next(student.parameters()).device)
            )
        if not isinstance(output, tuple):
            refuse(
                "hard" if weights.uses("hard") else "soft",
                "student",
                student,
                "a student with a distillation token",
            )
    if weights.uses("early"):
        if not hasattr(teacher, "forward_intermediates") or has_probe(teacher):
            refuse(
                "early",
                "teacher",
                teacher,
                "a CNN whose early feature maps can be seen (cnn_small, vgg16_bn)",
            )
        try:
            early_channels(teacher, early_stage, images.shape[1], images.shape[0])
        except (IndexError, AssertionError, ValueError) as error:
            raise WorkbenchError(
                "the teacher has no such early map",
                got=f"{early_stage}: {error}",
                where="early_stage",
                expected="a stage of the CNN, from 0",
                fix="cnn_small has 0..2, vgg16_bn 0..5",
            ) from None
        if not hasattr(student, "embed_dim"):
            refuse("early", "student", student, "a vision transformer with blocks")
