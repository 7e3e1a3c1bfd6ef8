"""Students of classification: any step of named losses against a frozen teacher (A Algorithm 1, B stage 1, C)."""

import inspect
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dfkd_lib.core import Artifact, Store, WorkbenchError
from dfkd_lib.datasets import ImageSet
from dfkd_lib.distill.step import kd_step
from dfkd_lib.distill.targets import (
    LiveTeacher,
    StoredTeacher,
    has_probe,
    teacher_targets,
)
from dfkd_lib.distill.weights import KDWeights
from dfkd_lib.models import create_model
from dfkd_lib.models.cnn import early_channels
from dfkd_lib.models.dearkd import EarlyAligner
from dfkd_lib.training import (
    Augmentation,
    Precision,
    TrainConfig,
    bound,
    check_classes_agree,
    check_fit,
    keeps_images,
    load_trained,
    train_classifier,
)
from dfkd_lib.training.config import Share

Step = Callable[..., dict[str, Tensor]]
GIVEN = (
    "student",
    "batch",
    "teacher",
    "progress",
)  # what a step may ask for by name, beside its own modules


class StudentConfig(TrainConfig):
    """A student and its training; the defaults are paper A's (Table 3; the paper names neither epochs nor batch)."""

    model: str = Field(
        "deit_xtiny_patch4_28",
        description="the student's name",
        json_schema_extra={"also": "student_model"},
    )
    images: int = Field(0, ge=0, description="a sample of so many of its images, 0: all")
    epochs: int = Field(50, ge=1, le=100_000, description="passes over its images")
    batch_size: int = Field(
        128, ge=1, le=65_536, description="images a step", json_schema_extra={"also": "batch_size"}
    )
    lr: float = Field(7.5e-4, gt=0, le=1, description="peak learning rate of AdamW")
    betas: tuple[Share, Share] = Field((0.5, 0.999), description="of AdamW")
    weight_decay: float = Field(0.025, ge=0, description="weight decay")
    warmup_epochs: float = Field(0.5, ge=0, description="epochs of linear warm-up")
    grad_clip: float | None = Field(1.0, gt=0, description="largest gradient norm, or none")
    precision: Precision = Field("bf16", description="arithmetic: fp32, or bf16 by autocast")
    augmentation: Literal["none", "shift", "autoaugment"] = Field(
        "none", description="what is done to each of its images"
    )
    mix: Literal["none", "cutmix", "mixup"] = Field("none", description="how its images are mixed")
    early_stage: int = Field(
        1, ge=0, le=5, description="early map of a CNN teacher that early features are aligned to"
    )


def train(
    store: Store,
    config: StudentConfig,
    step: Step,
    images: ImageSet,
    test_set: ImageSet,
    teacher: Artifact,
    *,
    seed: int | None = None,
    stage: str = "",
    parents: Sequence[Artifact] = (),
    overrides: dict | None = None,
    modules: Callable[[nn.Module], dict[str, nn.Module]] | None = None,
    settings: dict | None = None,
    early: bool = False,
) -> Artifact:
    """A student distilled from a frozen teacher by a step of the caller's.

    Where the augmentation leaves every image as it is, which is tested and not assumed, the teacher's targets are computed
    once and serve all epochs and students; else it sees each batch anew.

    Args:
        step: `step(student, batch, teacher)` → {"loss": scalar to minimise, other names: scalars to log}. `batch` is a
            `training.Batch`; `teacher(batch)` gives `Targets`. It may ask for `progress`, the share of training done in
            [0, 1), and for modules of `modules`, by name. Its code is part of the student's key.
        images: what it learns from; if synthetic, the ledger refuses any real image but for evaluation.
        test_set: real images for evaluation alone. teacher: the frozen teacher's artifact.
        seed: of weights, order and dropout; config.seed by default. stage: name in keys and ledger.
        parents: what made the synthetic images. overrides: for `create_model`.
        modules: the student → modules trained beside it. settings: more of what the step depends on, for the record.
        early: whether targets hold the teacher's feature map of stage `config.early_stage` (a CNN's) in place of a probe.

    Returns:
        The student's artifact, see `training.train_classifier`.

    Raises:
        WorkbenchError: if teacher and images differ in classes or size; if the step returns no loss, no scalars or a loss
            without gradient, changes its batch, or asks for what is not there.
    """
    names = [
        name
        for name, one in inspect.signature(step).parameters.items()
        if name not in GIVEN and one.default is one.empty
    ]
    if names and modules is None:
        raise WorkbenchError(
            "the step asks for what nobody gives it",
            expected=", ".join(GIVEN),
            got=", ".join(names),
            where="step",
            fix="correct its parameters, or give modules=…",
        )
    images = images.sample(config.images or len(images), 1)
    frozen_teacher = load_trained(teacher)
    check_fit(frozen_teacher, images, "the teacher")
    known = teacher.settings.get("classes", images.classes)
    check_classes_agree(known, images.classes, f"teacher and {images.name}")
    augmentation = Augmentation(kind=config.augmentation, mix=config.mix)
    weights = getattr(step, "weights", None)
    stage_seen = config.early_stage if early else None
    targets = None
    if not early and keeps_images(augmentation, images):
        targets = teacher_targets(store, teacher, images, parents)

    def make_step(student: nn.Module, _: ImageSet) -> tuple[Callable, dict[str, nn.Module]]:
        # A probe that no loss asks for is not worth its time.
        probed = has_probe(frozen_teacher) and (weights is None or weights.uses("patch"))
        answers = (
            StoredTeacher(targets) if targets else LiveTeacher(frozen_teacher, probed, stage_seen)
        )
        beside = modules(student) if modules else {}
        return bound(step, student, answers, beside), beside

    return train_classifier(
        store,
        stage or f"student_{'real' if images.real else 'synthetic'}",
        config.model,
        images,
        test_set,
        config.training(**({} if seed is None else {"seed": seed})),
        make_step,
        overrides=overrides,
        settings=settings,
        augmentation=augmentation,
        parents=[teacher, *parents, *([targets] if targets else [])],
    )


def train_student(
    store: Store,
    config: StudentConfig,
    images: ImageSet,
    test_set: ImageSet,
    teacher: Artifact,
    weights: KDWeights = KDWeights(),
    *,
    seed: int | None = None,
    stage: str = "",
    parents: Sequence[Artifact] = (),
    overrides: dict | None = None,
) -> Artifact:
    """A student by the library's own step, `kd_step`, with a weight for each loss; see `train`.

    Raises:
        WorkbenchError: if a loss in use needs what teacher or student lack (attention, a distillation token, early maps).
    """
    shape = {
        "num_classes": images.num_classes,
        "img_size": images.shape[1],
        "in_chans": images.shape[0],
        **(overrides or {}),
    }
    frozen_teacher = load_trained(teacher)
    check_fit(frozen_teacher, images, "the teacher")
    with torch.random.fork_rng(devices=[]):
        student = create_model(config.model, **shape)
        check_losses(weights, student, frozen_teacher, images, config.early_stage)
    early, settings = weights.uses("early"), {"weights": weights.as_dict()}
    if early:
        settings["early_stage"] = config.early_stage
    return train(
        store,
        config,
        kd_step(weights),
        images,
        test_set,
        teacher,
        seed=seed,
        stage=stage,
        parents=parents,
        overrides=overrides,
        modules=aligners(frozen_teacher, config.early_stage, images.shape) if early else None,
        settings=settings,
        early=early,
    )


def aligners(
    teacher: nn.Module, early_stage: int, shape: tuple[int, int, int]
) -> Callable[[nn.Module], dict[str, nn.Module]]:
    """The student → {"aligner": from its early tokens to the CNN teacher's feature map of that stage} (B stage 1).

    Args:
        shape: (C, H, W) of the images.
    """
    channels = early_channels(teacher, early_stage, shape[1], shape[0])

    def modules(student: nn.Module) -> dict[str, nn.Module]:
        return {"aligner": EarlyAligner(student.embed_dim, channels)}

    return modules


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
