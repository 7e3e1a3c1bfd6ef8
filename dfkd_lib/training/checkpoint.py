"""Weights, optimizer states and history after each epoch, to go on from."""

import copy
import hashlib
import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from dfkd_lib.core import WorkbenchError, processes
from dfkd_lib.core.files import file_hash, replacing
from dfkd_lib.training.parallel import send_modules

DIGEST = 32  # bytes of SHA-256 at the end of a checkpoint, over all before it; torch.load does not mind them


class Checkpoint:
    """Weights, optimizer states and history after an epoch, in one file replaced atomically."""

    def __init__(self, folder: str | Path | None, modules: dict, optimizers: dict):
        self.file = Path(folder) / "checkpoint.pt" if folder else None
        self.modules, self.optimizers = modules, optimizers
        self.threads: int | None = None
        self.next = 0.0  # when writing is due, by the monotonic clock
        self.later: dict | None = None  # the state of an epoch whose writing was put off

    def save(self, history: list, at_once: bool = True) -> None:
        """Write the state after the history's last epoch; nothing without a folder.

        `at_once` False: at most a tenth of the time goes into writing, for a GPU may do an epoch in less than that takes;
        what is put off is copied for `finish`.
        """
        if self.file is None:
            return
        state = {
            "modules": {n: m.state_dict() for n, m in self.modules.items()},
            "optimizers": {n: o.state_dict() for n, o in self.optimizers.items()},
            "history": history,
            "threads": torch.get_num_threads(),
        }
        put_off = not at_once and time.monotonic() < self.next
        self.later = copy.deepcopy(state) if put_off else None
        if not put_off:
            self._write(self.file, state)

    def finish(self) -> None:
        """Write what was put off: at the end of a training, whatever ended it."""
        if self.file is not None and self.later is not None:
            self._write(self.file, self.later)
            self.later = None

    def _write(self, path: Path, state: dict) -> None:
        began = time.monotonic()
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            torch.save(state, temporary)
            with open(temporary, "ab") as file:
                file.write(bytes.fromhex(file_hash(temporary)))
        self.next = time.monotonic() + 10 * (time.monotonic() - began)

    @contextmanager
    def same_threads(self) -> Iterator[None]:
        """As many threads as the epochs before had: sums are split by threads, and only so do they round alike."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def load(self) -> list:
        """The history so far (empty without a checkpoint), after restoring weights and optimizer states.

        A checkpoint whose bytes have changed is set aside, with a note: the training starts from its first epoch.
        """
        if self.file is None or not self.file.exists():
            return []
        content = self.file.read_bytes()
        if hashlib.sha256(memoryview(content)[:-DIGEST]).digest() != content[-DIGEST:]:
            aside = self.file.replace(self.file.with_suffix(".damaged"))
            what = "a checkpoint is damaged: this training starts from its first epoch"
            print(f"{what}; it is kept as {aside} until that is done", flush=True)
            return []
        try:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            for name, module in self.modules.items():
                module.load_state_dict(state["modules"][name])
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(state["optimizers"][name])
        except Exception as error:  # of another training: whatever the reader stumbles over
            raise WorkbenchError(
                "a checkpoint cannot be resumed",
                got=str(error)[:500] or type(error).__name__,
                where=self.file,
                expected="what an earlier epoch of this very training left",
                fix="delete that file; this stage starts from its first epoch",
            ) from None
        self.threads = state["threads"]
        return state["history"]


def restore(folder: str | Path, modules: dict[str, nn.Module]) -> list[dict]:
    """Load the last good epoch's weights from a checkpoint folder into `modules`; its history, [] if there is none.

    Of several processes, all of which call this, the main one reads the folder: it alone has written there.
    """
    history = processes.from_main(lambda: Checkpoint(folder, modules, {}).load())
    send_modules(modules.values())
    return history
