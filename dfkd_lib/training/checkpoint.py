"""Weights, optimizer states and history after each epoch, to go on from."""

import os
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from dfkd_lib.errors import WorkbenchError, is_number


class Checkpoint:
    """Weights, optimizer states and history after an epoch, in one file replaced atomically."""

    def __init__(self, folder, modules: dict, optimizers: dict):
        self.file = Path(folder) / "checkpoint.pt" if folder else None
        self.modules, self.optimizers, self.threads = modules, optimizers, None

    def save(self, history: list) -> None:
        if self.file is None:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.file.with_suffix(".tmp")
        torch.save({"modules": {n: m.state_dict() for n, m in self.modules.items()},
                    "optimizers": {n: o.state_dict() for n, o in self.optimizers.items()}, "history": history,
                    "threads": torch.get_num_threads()}, temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, self.file)

    @contextmanager
    def same_threads(self):
        """As many threads as the epochs before had: sums are split by threads, and only so do they round alike."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def load(self) -> list:
        """The history so far (empty without a checkpoint), after restoring weights and optimizer states."""
        if self.file is None or not self.file.exists():
            return []
        try:
            state = torch.load(self.file, map_location="cpu", weights_only=True)
            for name, module in self.modules.items():
                module.load_state_dict(state["modules"][name])
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(state["optimizers"][name])
            history, threads = state["history"], state.get("threads")
            if not isinstance(history, list) or not all(isinstance(row, dict) for row in history):
                raise ValueError("its history is no list of epochs")
            if threads is not None and not is_number(threads, 1, 4096):
                raise ValueError(f"its number of threads is {threads}")
        except Exception as error:  # the reader of a damaged file raises whatever it stumbles over
            raise WorkbenchError("a checkpoint cannot be resumed", got=str(error)[:500] or type(error).__name__, where=self.file,
                                 expected="what an earlier epoch of this very training left",
                                 mend="delete that file; this stage starts from its first epoch") from None
        self.threads = threads
        return history


def restore(folder: str | Path, modules: dict[str, nn.Module]) -> list[dict]:
    """Load the last good epoch's weights from a checkpoint folder into `modules`; its history, [] if there is none."""
    return Checkpoint(folder, modules, {}).load()
