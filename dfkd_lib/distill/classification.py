"""Students of classification: any step of named losses against a frozen teacher (A Algorithm 1, B stage 1, C).

Where augmentation leaves every image as it is, the teacher's targets are computed once and serve all epochs and students;
else it sees each batch anew.
"""

import inspect
from collections.abc import Callable, Collection, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from dfkd_lib.core import Artifact, Store, WorkbenchError
from dfkd_lib.datasets import ImageSet
from dfkd_lib.distill.step import kd_step
from dfkd_lib.distill.targets import LiveTeacher, StoredTeacher, has_probe, teacher_targets
from dfkd_lib.distill.weights import KDWeights
from dfkd_lib.losses import LOSSES, NEEDS
from dfkd_lib.models import EarlyAligner, create_model, early_channels
from dfkd_lib.training import (
    GIVEN,
    Augmentation,
    Kind,
    Mix,
    Precision,
    Share,
    TrainConfig,
    augmentation_of,
    bound,
    check_fit,
    keeps_images,
    load_trained,
    shape_of,
    train_classifier,
)

Step = Callable[..., dict[str, Tensor]]


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
    augmentation: Kind = Field(
        "none",
        description="what is done to each of its images",
        json_schema_extra={"also": "augmentation"},
    )
    mix: Mix = Field(
        "none", description="how its images are mixed", json_schema_extra={"also": "mix"}
    )
    erase: Share = Field(
        0.0,
        description="share of its images in which a rectangle is made grey",
        json_schema_extra={"also": "erase"},
    )
    early_stage: int = Field(
        1, ge=0, le=5, description="early map of a CNN teacher that early features are aligned to"
    )

    watch: int = Field(
        0, ge=0, le=100, description="test images whose attention is kept after every epoch"
    )

    @property
    def augment(self) -> Augmentation:
        """What is done to each batch of its images."""
        return augmentation_of(self.augmentation, self.mix, self.erase)

    def untrained(self, images: ImageSet, overrides: dict | None = None) -> nn.Module:
        """The student's model before training; WorkbenchError if it cannot take such images."""
        with torch.random.fork_rng(devices=[]):
            return create_model(self.model, **shape_of(images, overrides))

    def chosen(self, images: ImageSet) -> ImageSet:
        """The sample of a set that the student learns from."""
        return images.sample(self.images or len(images), 1)

    def targets(
        self, store: Store, teacher: Artifact, images: ImageSet, parents: Sequence[Artifact]
    ) -> Artifact | None:
        """The teacher's stored targets on images, where augmentation leaves every one as it is, which is tested."""
        if keeps_images(self.augment, images):
            return teacher_targets(store, teacher, images, parents)
        return None


def train(
    store: Store,
    config: StudentConfig,
    step: Step | KDWeights,
    images: ImageSet,
    test_set: ImageSet,
    teacher: Artifact,
    *,
    seed: int | None = None,
    stage: str = "",
    parents: Sequence[Artifact] = (),
    overrides: dict | None = None,
    modules: Callable[[nn.Module], dict[str, nn.Module]] | None = None,
    needs: Collection[str] = ("probe",),
) -> Artifact:
    """A student distilled from a frozen teacher, by a step of the caller's or by the library's with these weights.

    Args:
        step: `step(student, batch, teacher)` → {"loss": scalar to minimise, other names: scalars to log}. `batch` is a
            `training.Batch`; `teacher(batch)` gives `Targets`. It may ask for `progress`, the share of training done in
            [0, 1), and for modules of `modules`, by name. Its code is part of the student's key. Or weights, for `kd_step`.
        images: what it learns from; if synthetic, the ledger refuses any real image but for evaluation by `test_set`.
        seed: of weights, order and dropout; config.seed by default. parents: what made the synthetic images.
        overrides, modules: for `create_model`; the student → modules trained beside it.
        needs: what the step reads of the teacher beside its logits: "probe", or "early features", its map of stage
            `config.early_stage`, for which the step may ask for an `aligner`.

    Returns:
        The student's artifact, see `training.train_classifier`.

    Raises:
        WorkbenchError: if teacher and images differ in classes or size; if a loss needs what teacher or student lack; if the
            step's result is no named losses, it changes its batch, or asks for what is not there.
    """
    images, settings = config.chosen(images), {}
    network = _fitting_teacher(teacher, images)
    if isinstance(step, KDWeights):
        check_losses(step, config.untrained(images, overrides), network, images, config.early_stage)
        step, needs, settings = kd_step(step), step.needs, {"weights": step.record()}
    early_stage = config.early_stage if "early features" in needs else None
    if early_stage is not None:
        settings["early_stage"] = early_stage
        modules = modules or aligners(network, early_stage, images.shape)
    _check_parameters(step, modules is not None)
    stored = config.targets(store, teacher, images, parents) if early_stage is None else None
    live = stored or LiveTeacher(network, "probe" in needs, early_stage, config.compile)
    return train_classifier(
        store,
        stage or f"student_{'real' if images.real else 'synthetic'}",
        config.model,
        images,
        test_set,
        config.training(**({} if seed is None else {"seed": seed})),
        _step_maker(step, live, modules),
        overrides=overrides,
        settings=settings,
        augmentation=config.augment,
        parents=[teacher, *parents, *filter(None, [stored])],
        watch=config.watch,
    )


def _fitting_teacher(teacher: Artifact, images: ImageSet) -> nn.Module:
    """The frozen teacher; WorkbenchError if it does not take these images and classes."""
    network = load_trained(teacher)
    check_fit(network, images, "the teacher")
    return network


def _step_maker(
    step: Step, teacher: Artifact | LiveTeacher, modules: Callable | None
) -> Callable[[nn.Module], tuple[Callable, dict[str, nn.Module]]]:
    """The student → its step for the training loop, and the modules trained beside it."""

    def make_step(student: nn.Module) -> tuple[Callable, dict[str, nn.Module]]:
        answers = teacher if isinstance(teacher, LiveTeacher) else StoredTeacher(teacher)
        beside = modules(student) if modules else {}
        return bound(step, student, answers, beside), beside

    return make_step


def _check_parameters(step: Step, more: bool) -> None:
    """Refuse a step that asks for something by a name that nothing has."""
    parameters = inspect.signature(step).parameters.items()
    names = [k for k, one in parameters if k not in GIVEN and one.default is one.empty]
    if names and not more:
        raise WorkbenchError(
            "the step asks for what nobody gives it",
            expected=", ".join(GIVEN),
            got=", ".join(names),
            where="step",
            fix="correct its parameters, or give modules=…",
        )


def aligners(
    teacher: nn.Module, early_stage: int, shape: tuple[int, int, int]
) -> Callable[[nn.Module], dict[str, nn.Module]]:
    """The student → {"aligner": from its early tokens to the CNN teacher's feature map of that stage} (B stage 1).

    Args:
        shape: (C, H, W) of the images.
    """
    channels = early_channels(teacher, early_stage, shape[1], shape[0])
    return lambda student: {"aligner": EarlyAligner(student.embed_dim, channels)}


def check_losses(
    weights: KDWeights,
    student: nn.Module,
    teacher: nn.Module,
    images: ImageSet,
    early_stage: int = 1,
) -> None:
    """Raise a WorkbenchError, before anything is trained, if a loss in use needs what student or teacher do not have."""
    models = {"teacher": teacher, "student": student}
    for name in weights.used:
        for need in LOSSES[name].needs:
            who = _lacking(need, student, teacher, images)
            if who:
                raise WorkbenchError(
                    f"the {name} loss cannot be had from this {who}",
                    expected=NEEDS[need],
                    got=type(models[who]).__name__,
                    where=f"{name}_weight",
                    fix=f"set {name}_weight to 0, or choose another {who}",
                )
    if "early features" in weights.needs:
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


def _lacking(need: str, student: nn.Module, teacher: nn.Module, images: ImageSet) -> str:
    """Which of "teacher" and "student" lacks what a loss needs; "" for neither."""
    if need == "probe":
        fits = {"teacher": has_probe(teacher), "student": has_probe(student)}
    elif need == "distillation token":
        check_fit(student, images, "the student")
        # One image would do, but a batch norm in training wants two.
        blank = torch.zeros(2, *images.shape, device=next(student.parameters()).device)
        with torch.no_grad():
            fits = {"student": isinstance(student.train()(blank), tuple)}
    else:
        is_cnn = hasattr(teacher, "forward_intermediates") and not has_probe(teacher)
        fits = {"teacher": is_cnn, "student": hasattr(student, "embed_dim")}
    return next((who for who, has in fits.items() if not has), "")
