"""What a running training tells: a bar or lines for people, a file for a widget in another process."""

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
    """Sums of named losses over an epoch, kept on the device; looked at now and then for bad numbers."""

    def __init__(self):
        self.sums, self.count = {}, {}

    def add(self, losses: dict) -> None:
        for name, value in losses.items():
            value = (
                value.detach().float() if isinstance(value, Tensor) else torch.tensor(float(value))
            )
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
        return {name: (value / self.count[name]).item() for name, value in self.sums.items()}


class Progress:
    """A bar with remaining time on a terminal or in a notebook; one line an epoch in batch logs; a file, if asked for.

    The variable DFKD_PROGRESS chooses "bar", "lines" or "none". DFKD_PROGRESS_FILE names a JSON file that holds, at most
    half a second old: "label", "epoch" (in progress, from 1), "epochs", "step", "steps", "left" (seconds, or None), "losses"
    (means of this epoch so far) and "history" (rows of the finished epochs).
    """

    def __init__(self, label: str, epochs: int, steps: int, history: list[dict]):
        style = os.environ.get("DFKD_PROGRESS") or (
            "bar" if sys.stderr.isatty() or _in_lab() else "lines"
        )
        self.style, self.label, self.epochs, self.steps, self.history = (
            style,
            label,
            epochs,
            steps,
            history,
        )
        self.start, self.before, self.step_number = time.perf_counter(), len(history) * steps, 0
        self.file, self.written = os.environ.get("DFKD_PROGRESS_FILE"), 0.0
        if not processes.is_main():
            style = self.style = "none"
            self.file = None
        self._write({})
        if style == "bar":
            from tqdm.auto import tqdm

            self.bar = tqdm(
                total=epochs * steps, initial=self.before, desc=label, unit="step", leave=False
            )

    def step(self, totals: Totals) -> None:
        self.step_number += 1
        if self.style == "bar":
            self.bar.update()
        # Reading the losses waits for the device: not at every step.
        if self.file and time.perf_counter() - self.written > WRITE_SECONDS:
            self._write(totals.means())

    def epoch(self, row: dict) -> None:
        self.step_number = 0
        shown = " ".join(
            f"{k} {v:.4g}"
            for k, v in row.items()
            if isinstance(v, float) and k not in ("lr", "seconds")
        )
        if self.style == "bar":
            self.bar.set_postfix_str(shown[:80])
        elif self.style == "lines":
            print(
                f"{self.label} epoch {row['epoch']}/{self.epochs} {shown} | {self._left() or 0:.0f} s left",
                flush=True,
            )
        self._write({})

    def close(self) -> None:
        if self.style == "bar":
            self.bar.close()

    def _left(self) -> float | None:
        """Seconds that the remaining steps will take, by those of this process; None before the first."""
        done = len(self.history) * self.steps + self.step_number
        if done == self.before:
            return None
        return (
            (time.perf_counter() - self.start)
            / (done - self.before)
            * (self.epochs * self.steps - done)
        )

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
    return "ipykernel" in sys.modules and hasattr(
        sys.modules.get("ipykernel.zmqshell"), "ZMQInteractiveShell"
    )
