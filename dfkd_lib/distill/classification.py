"""Students of classification: any step of named losses against a frozen teacher (A Algorithm 1, B stage 1, C).

Where augmentation leaves every image as it is, the teacher's targets are computed once and serve all epochs and students;
else it sees each batch anew.
"""

import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Annotated, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from dfkd_lib.attention import LAST, attention_sites, pick
from dfkd_lib.core import Artifact, Store, WorkbenchError
from dfkd_lib.datasets import ImageSet
from dfkd_lib.distill.step import KDWeights, kd_step
from dfkd_lib.distill.targets import (
    EARLY_STAGE,
    LiveTeacher,
    StoredTeacher,
    has_probe,
    teacher_targets,
)
from dfkd_lib.losses import LOSSES, NEEDS
from dfkd_lib.models import EarlyAligner, create_model, early_channels
from dfkd_lib.training import (
    GIVEN,
    ClassifierConfig,
    Share,
    bound,
    check_fit,
    load_trained,
    shape_of,
    train_classifier,
)

Step = Callable[..., dict[str, Tensor]]
Blocks = Annotated[tuple[int, ...], Field(min_length=1)]


class StudentConfig(ClassifierConfig):
    """A student and its training; the defaults are paper A's (Table 3; the paper names neither epochs nor batch)."""

    also: ClassVar[dict[str, str]] = {
        "model": "student_model",
        "batch_size": "batch_size",
        "augmentation": "augmentation",
        "mix": "mix",
        "erase": "erase",
    }

    model: str = Field("deit_xtiny_patch4_28", description="the student's name")
    lr: float = Field(7.5e-4, gt=0, le=1, description="peak learning rate of AdamW")
    betas: tuple[Share, Share] = Field((0.5, 0.999), description="of AdamW")
    warmup_epochs: float = Field(0.5, ge=0, description="epochs of linear warm-up")
    patch_blocks: Blocks = Field(
        LAST, description="blocks whose probes the patch losses match, from the end if negative"
    )
    teacher_blocks: Blocks = Field(
        LAST, description="blocks of the teacher that these are matched with, one each"
    )
    block_weights: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (1.0,), min_length=1, description="weight of each pair in the patch losses, or one of all"
    )
    watch: int = Field(
        0, ge=0, le=100, description="test images whose attention is kept after every epoch"
    )

    @model_validator(mode="after")
    def _blocks_in_pairs(self) -> Self:
        pairs = len(self.patch_blocks)
        if len(self.teacher_blocks) != pairs or len(self.block_weights) not in (1, pairs):
            raise ValueError(
                "as many teacher_blocks, and block_weights if not one, as patch_blocks"
            )
        if not sum(self.block_weights):
            raise ValueError("block_weights of which one at least is above 0")
        if self.matches_others and self.compile:
            raise ValueError("compile=False where other blocks than the last are matched")
        return self

    @property
    def matches_others(self) -> bool:
        """Whether the patch losses match other blocks than the last."""
        return not self.patch_blocks == self.teacher_blocks == LAST

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
        """The teacher's stored targets on images, where augmentation leaves every one as it is."""
        if self.augment.keeps_images:
            how = self.teacher_blocks, self.precision
            return teacher_targets(store, teacher, images, parents, *how)
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
    needs: Collection[str] = ("probe",),
) -> Artifact:
    """A student distilled from a frozen teacher, by a step of the caller's or the library's; see `training.train_classifier`.

    Args:
        config: of the student; step and teacher give the probes of its `patch_blocks` and `teacher_blocks`.
        step: `step(student, batch, teacher)` → {"loss": scalar to minimise, other names: scalars to log}. `batch` is a
            `training.Batch`; `teacher(batch)` gives `Targets`. It may ask for `progress`, the share of training done in
            [0, 1). Its code is part of the student's key. Or weights, for `kd_step`.
        images: what it learns from; if synthetic, the ledger refuses any real image but for evaluation by `test_set`.
        seed: of weights, order and dropout; config.seed by default. parents: what made the synthetic images.
        overrides: for `create_model`.
        needs: what the step reads of the teacher beside its logits: "probe", or "early features", its early map, for
            which the step may ask for an `aligner`, trained beside the student.

    Raises:
        WorkbenchError: if teacher and images differ in classes or size; if a loss needs what teacher or student lack; if the
            step's result is no named losses, it changes its batch, or asks for what is not there.
    """
    images, settings = config.chosen(images), {}
    network = load_trained(teacher)
    check_fit(network, images, "the teacher")
    if isinstance(step, KDWeights):
        check_losses(step, config.untrained(images, overrides), network, images)
        needs, settings = step.needs, {"weights": step.record()}
        step = kd_step(step, config.patch_blocks, config.block_weights)
    settings |= _matching(config, network, images, overrides) if "probe" in needs else {}
    early = "early features" in needs
    align = aligner(network, images.shape) if early else lambda student: {}
    _check_parameters(step, (*GIVEN, "aligner") if early else GIVEN)
    stored = None if early else config.targets(store, teacher, images, parents)
    live = "probe" in needs, early, config.compile, config.teacher_blocks
    return train_classifier(
        store,
        stage or f"student_{'real' if images.real else 'synthetic'}",
        config.model,
        images,
        test_set,
        config.training(seed=config.seed if seed is None else seed),
        _step_maker(step, stored or LiveTeacher(network, *live), align),
        overrides=overrides,
        settings=settings,
        augmentation=config.augment,
        parents=[teacher, *parents, *filter(None, [stored])],
        watch=config.watch,
    )


def _matching(
    config: StudentConfig, teacher: nn.Module, images: ImageSet, overrides: dict | None
) -> dict[str, list]:
    """The blocks that are matched, as settings of the key, none if these are the last; WorkbenchError if there is none such."""
    if not config.matches_others:
        return {}
    asked = {"patch_blocks": config.untrained(images, overrides), "teacher_blocks": teacher}
    for name, model in asked.items():
        for block in getattr(config, name) if has_probe(model) else ():
            pick(block, len(attention_sites(model)), "block")
    names = (*asked, "block_weights")
    return {name: list(getattr(config, name)) for name in names}


def _step_maker(
    step: Step, teacher: Artifact | LiveTeacher, align: Callable[[nn.Module], dict]
) -> Callable[[nn.Module], tuple[Callable, dict[str, nn.Module]]]:
    """The student → its step for the training loop, and the modules trained beside it."""

    def make_step(student: nn.Module) -> tuple[Callable, dict[str, nn.Module]]:
        answers = teacher if isinstance(teacher, LiveTeacher) else StoredTeacher(teacher)
        beside = align(student)
        return bound(step, student, answers, beside), beside

    return make_step


def _check_parameters(step: Step, known: Sequence[str]) -> None:
    """Refuse a step that asks for something by a name that nothing has."""
    parameters = inspect.signature(step).parameters.items()
    names = [k for k, one in parameters if k not in known and one.default is one.empty]
    if names:
        raise WorkbenchError(
            "the step asks for what nobody gives it",
            expected=", ".join(known),
            got=", ".join(names),
            where="step",
            fix='correct its parameters, or say needs=("early features",) for an aligner',
        )


def aligner(
    teacher: nn.Module, shape: tuple[int, int, int]
) -> Callable[[nn.Module], dict[str, nn.Module]]:
    """The student → {"aligner": from its early tokens to the CNN teacher's early map} (B stage 1).

    Args:
        shape: (C, H, W) of the images.
    """
    channels = early_channels(teacher, EARLY_STAGE, shape[1], shape[0])
    return lambda student: {"aligner": EarlyAligner(student.embed_dim, channels)}


def check_losses(
    weights: KDWeights, student: nn.Module, teacher: nn.Module, images: ImageSet
) -> None:
    """Raise a WorkbenchError, before anything is trained, if a loss in use needs what student or teacher do not have."""
    models = {"teacher": teacher, "student": student}
    for name in weights.used:
        for need in LOSSES[name].needs:
            if who := _lacking(need, student, teacher, images):
                raise WorkbenchError(
                    f"the {name} loss cannot be had from this {who}",
                    expected=NEEDS[need],
                    got=type(models[who]).__name__,
                    where=f"{name}_weight",
                    fix=f"set {name}_weight to 0, or choose another {who}",
                )


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
