"""Settings of a training run, its device, its optimizer and its learning rate."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, PrivateAttr
from torch import nn

from dfkd_lib.attention import AttentionAsProducts
from dfkd_lib.core import Config, WorkbenchError, fingerprint, processes

Precision = Literal["fp32", "bf16"]
Optimizer = Literal["adamw", "adam", "sgd", "rmsprop"]
Share = Annotated[float, Field(ge=0, le=1)]


class DivergedError(WorkbenchError):
    """A loss became infinite or not a number; the checkpoint of the last good epoch is kept."""


class TrainConfig(Config):
    """Settings of one training run; part of the artifact's key.

    `compile` runs torch.compile, which takes a C++ compiler and up to a minute before the first step and pays in long
    trainings. timm's plain ViT is compiled block by block, once for all of them; another network that a loss looks into,
    round the place it looks at.
    Weight decay is not applied to biases and norms under AdamW.
    """

    epochs: int = Field(ge=1, description="passes over the batches")
    batch_size: int = Field(ge=1, description="images a step, of all processes together")
    lr: float = Field(gt=0, description="peak learning rate")
    optimizer: Optimizer = Field("adamw", description="optimizer")
    betas: tuple[Share, Share] = Field((0.9, 0.999), description="of AdamW and Adam")
    weight_decay: float = Field(0.0, ge=0, description="weight decay")
    momentum: float = Field(0.9, ge=0, le=1, description="of SGD")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="of the learning rate")
    warmup_epochs: float = Field(0.0, ge=0, description="epochs of linear warm-up")
    grad_clip: float | None = Field(None, gt=0, description="largest gradient norm, or none")
    precision: Precision = Field("fp32", description="arithmetic: fp32, or bf16 by autocast")
    seed: int = Field(
        0, ge=0, lt=2**63, description="of initial weights, data order, augmentation and dropout"
    )
    compile: bool = Field(False, description="by torch.compile: slow to start, then faster")

    def training(self, **changes: object) -> "TrainConfig":
        """The settings of the training alone, of a configuration that has others beside them."""
        names = TrainConfig.model_fields
        return TrainConfig(**{**{name: getattr(self, name) for name in names}, **changes})


class StepConfig(TrainConfig):
    """Settings of a training whose step a caller may replace by one of their own; its code is then part of the key.

    `own_step` is the library's: a step of the same code, comments and annotations aside, is taken for it.
    """

    own_step: ClassVar[Callable | None] = None
    _step: Callable | None = PrivateAttr(None)

    def with_step(self, step: Callable) -> Self:
        """These settings with a step of the caller's."""
        changed, own = self.replace(), self.own_step
        same = own is not None and fingerprint(step).digest == fingerprint(own).digest
        changed._step = None if same else step
        return changed

    def replace(self, **changes: object) -> Self:
        """A copy with these settings changed, of the same step."""
        changed = super().replace(**changes)
        changed._step = self._step
        return changed


def device() -> torch.device:
    """The device this process trains on: CUDA or MPS where there is one, else the CPU."""
    found = processes.state().device
    return torch.device("cpu") if found.type == "cpu" else found


@contextmanager
def arithmetic(precision: Precision) -> Iterator[None]:
    """The context of a forward pass in this arithmetic, with attention as is quickest in it; see `AttentionAsProducts`."""
    half, where = precision == "bf16", device().type
    products = AttentionAsProducts() if half and where == "cpu" else nullcontext()
    with torch.autocast(where, torch.bfloat16, half), products:
        yield


def make_optimizer(modules: list[nn.Module], config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of `config` over every trainable parameter of `modules`, each once."""
    every = (p for module in modules for p in module.parameters() if p.requires_grad)
    parameters, decay = list(dict.fromkeys(every)), config.weight_decay
    # One kernel for all parameters: of a small student's step the loop over them is a tenth.
    fused = True if parameters and parameters[0].device.type in ("cpu", "cuda") else None
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, config.lr, weight_decay=decay)
    how: dict = {"lr": config.lr, "weight_decay": decay, "fused": fused}
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=config.momentum, **how)
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, betas=config.betas, **how)
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], betas=config.betas, **how)


def learning_rate(config: TrainConfig, epoch: float) -> float:
    """The learning rate after `epoch` epochs (a fraction counts), by schedule and warm-up."""
    if epoch < config.warmup_epochs:
        return config.lr * (epoch + 1e-3) / config.warmup_epochs
    if config.schedule == "constant":
        return config.lr
    share = (epoch - config.warmup_epochs) / max(config.epochs - config.warmup_epochs, 1e-9)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
