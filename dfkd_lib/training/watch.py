"""Attention of a network while it learns: where it looks in a few fixed images, before training and after each epoch."""

import torch
from torch import Tensor, nn

from dfkd_lib.attention import attention_probe, usual_token
from dfkd_lib.datasets import to_float


class Watch(nn.Module):
    """Keeps the probes of a network's last block, epoch by epoch, in its buffer `probes`, float32 (epochs + 1, n, N).

    It stands among the trained modules, so that the loop saves and resumes what it has kept; it has no weights, draws no
    random number and changes nothing of the training. When an epoch is over the loop puts its modules in evaluation mode.

    Args:
        model: with attention; its probe is the class token's, or without one the mean over patches.
        images: uint8 (n, C, H, W).
        epochs: how many there will be.

    Raises:
        WorkbenchError: for a model without attention.
    """

    probes: Tensor
    epoch: Tensor

    def __init__(self, model: nn.Module, images: Tensor, epochs: int):
        super().__init__()
        self.images, self.model = images, [model]  # in a list: it is no module of this one
        first = self.look()
        self.register_buffer("probes", first.new_zeros(epochs + 1, *first.shape))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.long))
        self.probes[0] = first
        super().train(False)

    @torch.no_grad()
    def look(self) -> Tensor:
        """The probes (n, N), float32, of the model in evaluation mode."""
        (model,) = self.model
        was_training = model.training
        pixels = to_float(self.images).to(next(model.parameters()).device)
        found = attention_probe(model.eval(), pixels, token=usual_token(model))
        model.train(was_training)
        return found

    def train(self, mode: bool = True) -> "Watch":
        """Count where an epoch begins, look where it ends."""
        if mode and not self.training:
            self.epoch += 1
        elif not mode and self.training:
            self.probes[self.epoch] = self.look().to(self.probes)
        return super().train(mode)
