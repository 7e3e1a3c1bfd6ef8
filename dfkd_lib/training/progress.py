"""How far a running training is: a bar or lines for people, a file for a widget in another process."""

import json
import math
import os
import sys
import time

import torch
from torch import Tensor

from dfkd_lib.core import processes

WRITE_SECONDS = 0.5


class Totals:
    """Sums of named losses over an epoch, held on the device; read now and then for bad numbers."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count: dict[str, int] = {}

    def add(self, losses: dict) -> None:
        """Add a step's losses."""
        for name, value in losses.items():
            value = torch.as_tensor(value).detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.count[name] = self.count.get(name, 0) + 1

    def _stacked(self) -> Tensor:
        device = next((v.device for v in self.sums.values() if v.device.type != "cpu"), "cpu")
        return torch.stack([v.to(device) for v in self.sums.values()])

    def share(self) -> None:
        """Take the means over all processes, each of which comes here with losses of the same names."""
        means = processes.total(self._stacked()) / processes.count()
        self.sums = dict(zip(self.sums, means, strict=True))

    def bad(self, of_all: bool = False) -> list[str]:
        """The losses that are no finite numbers, in this process or in any."""
        if not self.sums:
            return []
        sums = self._stacked()
        finite = torch.isfinite(processes.total(sums) if of_all else sums).tolist()
        return [name for name, good in zip(self.sums, finite, strict=True) if not good]

    def means(self) -> dict[str, float]:
        """The mean of each loss so far."""
        return {name: (value / self.count[name]).item() for name, value in self.sums.items()}


class Progress:
    """A bar with remaining time on a terminal or in a notebook; one line an epoch in batch logs; a file, if asked for.

    The variable DFKD_PROGRESS chooses "bar", "lines" or "none". DFKD_PROGRESS_FILE names a JSON file that holds, at most
    half a second old: "label", "epoch" (in progress, from 1), "epochs", "step", "steps", "left" (seconds, or None), "losses"
    (means of this epoch so far) and "history" (rows of the finished epochs).
    """

    def __init__(self, label: str, epochs: int, steps: int, history: list[dict]):
        self.label, self.epochs, self.steps, self.history = label, epochs, steps, history
        self.start, self.before, self.step_number = time.perf_counter(), len(history) * steps, 0
        main = processes.is_main()
        self.file, self.written = os.environ.get("DFKD_PROGRESS_FILE") if main else None, 0.0
        style = os.environ.get("DFKD_PROGRESS") or (
            "bar" if sys.stderr.isatty() or _in_lab() else "lines"
        )
        self.lines, self.bar = style == "lines" and main, None
        self._write({})
        if style == "bar" and main:
            from tqdm.auto import tqdm

            how = {"initial": self.before, "desc": label, "unit": "step", "leave": False}
            self.bar = tqdm(total=epochs * steps, **how)

    def step(self, totals: Totals) -> None:
        """A step is done."""
        self.step_number += 1
        if self.bar is not None:
            self.bar.update()
        # Reading the losses waits for the device: not at every step.
        if self.file and time.perf_counter() - self.written > WRITE_SECONDS:
            self._write(totals.means())

    def epoch(self, row: dict) -> None:
        """An epoch is done, which is the last of the history."""
        self.step_number = 0
        losses = {k: v for k, v in row.items() if k not in ("epoch", "lr", "seconds")}
        shown = " ".join(f"{name} {value:.4g}" for name, value in losses.items())
        if self.bar is not None:
            self.bar.set_postfix_str(shown[:80])
        if self.lines:
            left = f"{self._left() or 0:.0f} s left"
            print(f"{self.label} epoch {row['epoch']}/{self.epochs} {shown} | {left}", flush=True)
        self._write({})

    def close(self) -> None:
        """The training is over."""
        if self.bar is not None:
            self.bar.close()

    def _left(self) -> float | None:
        """Seconds that the remaining steps will take, by those of this process; None before the first."""
        done = len(self.history) * self.steps + self.step_number
        if done == self.before:
            return None
        each = (time.perf_counter() - self.start) / (done - self.before)
        return each * (self.epochs * self.steps - done)

    def _write(self, losses: dict) -> None:
        if not self.file:
            return
        self.written = time.perf_counter()
        state = {
            "label": self.label,
            "epoch": min(len(self.history) + 1, self.epochs),
            "epochs": self.epochs,
            "step": self.step_number,
            "steps": self.steps,
            "left": self._left(),
            "losses": {k: v for k, v in losses.items() if math.isfinite(v)},
            "history": self.history,
        }
        temporary = f"{self.file}.tmp"
        with open(temporary, "w") as file:
            json.dump(state, file)
        os.replace(temporary, self.file)


def _in_lab() -> bool:
    return "ZMQInteractiveShell" in vars(sys.modules.get("ipykernel.zmqshell", sys))
