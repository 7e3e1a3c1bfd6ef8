"""Settings of a training run, its device, its optimizer and its learning rate."""

import math
from dataclasses import asdict, dataclass

import torch
from torch import nn

from dfkd_lib.core import WorkbenchError, is_number, processes


class DivergedError(WorkbenchError):
    """A loss became infinite or not a number; the checkpoint of the last good epoch is kept."""


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training run; part of the artifact's key.

    Args:
        epochs: passes over the batches. batch_size: images a step. lr: peak learning rate.
        optimizer: "adamw", "adam" or "sgd"; betas for the first two, momentum for the last.
        weight_decay: not applied to biases and norms under adamw.
        schedule: "cosine" to 0, or "constant"; warmup_epochs of linear warm-up before either.
        grad_clip: largest gradient norm, or None. precision: "fp32" or "bf16" (autocast).
        seed: of initial weights (where a caller seeds them from it), data order, augmentation and dropout.
        compile: by torch.compile, which takes a minute and a C++ compiler before the first step, and pays in long
            trainings. A network that a loss looks into is compiled round the place it looks at, but for timm's plain ViT.
    """

    epochs: int
    batch_size: int
    lr: float
    optimizer: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    momentum: float = 0.9
    schedule: str = "cosine"
    warmup_epochs: float = 0.0
    grad_clip: float | None = None
    precision: str = "fp32"
    seed: int = 0
    compile: bool = False

    def __post_init__(self):
        whole = {
            name: isinstance(getattr(self, name), int) for name in ("epochs", "batch_size", "seed")
        }
        rules = {
            "epochs": whole["epochs"] and is_number(self.epochs, 1),
            "batch_size": whole["batch_size"] and is_number(self.batch_size, 1),
            "lr": is_number(self.lr) and self.lr > 0,
            "seed": whole["seed"] and is_number(self.seed, 0, 2**63),
            "betas": isinstance(self.betas, (tuple, list))
            and [is_number(b, 0, 1) for b in self.betas] == [True] * 2,
            "momentum": is_number(self.momentum, 0, 1),
            "compile": isinstance(self.compile, bool),
            "grad_clip": self.grad_clip is None or is_number(self.grad_clip) and self.grad_clip > 0,
            "optimizer": self.optimizer in ("adamw", "adam", "sgd"),
            "weight_decay": is_number(self.weight_decay, 0),
            "schedule": self.schedule in ("cosine", "constant"),
            "precision": self.precision in ("fp32", "bf16"),
            "warmup_epochs": is_number(self.warmup_epochs, 0),
        }
        for name, holds in rules.items():
            if not holds:
                raise WorkbenchError(
                    "a training setting is impossible",
                    where=f"TrainConfig.{name}",
                    got=getattr(self, name),
                    fix="see the docstring of TrainConfig for the values",
                )

    def as_dict(self) -> dict:
        return asdict(self)


def device() -> torch.device:
    """The device this process trains on: CUDA or MPS where there is one, else the CPU."""
    found = processes.state().device
    return torch.device("cpu") if found.type == "cpu" else found


def make_optimizer(modules: list[nn.Module], config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of `config` over every trainable parameter of `modules`, each once."""
    parameters = list(
        {id(p): p for m in modules for p in m.parameters() if p.requires_grad}.values()
    )
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
    if config.optimizer == "adam":
        return torch.optim.Adam(
            parameters, config.lr, betas=config.betas, weight_decay=config.weight_decay
        )
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], config.lr, betas=config.betas)


def learning_rate(config: TrainConfig, epoch: float) -> float:
    """The learning rate after `epoch` epochs (a fraction counts), by schedule and warm-up."""
    if epoch < config.warmup_epochs:
        return config.lr * (epoch + 1e-3) / config.warmup_epochs
    if config.schedule == "constant":
        return config.lr
    share = (epoch - config.warmup_epochs) / max(config.epochs - config.warmup_epochs, 1e-9)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
