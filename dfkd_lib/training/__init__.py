"""The one training loop, and what it is told: configuration, batches, checkpoints, progress."""

from dfkd_lib.training.batches import TensorBatches
from dfkd_lib.training.checkpoint import Checkpoint, restore
from dfkd_lib.training.config import (
    DivergedError,
    TrainConfig,
    device,
    learning_rate,
    make_optimizer,
)
from dfkd_lib.training.loop import fit

__all__ = [
    "Checkpoint",
    "DivergedError",
    "TensorBatches",
    "TrainConfig",
    "device",
    "fit",
    "learning_rate",
    "make_optimizer",
    "restore",
]
