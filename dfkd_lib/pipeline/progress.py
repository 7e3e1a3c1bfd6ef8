"""What a terminal or a batch log shows of a run."""

import sys
import time
from collections.abc import Callable

from dfkd_lib.pipeline.execute import SUCCEEDED, Outcome
from dfkd_lib.pipeline.html import duration, memory

GUESS_SECONDS = 60.0  # for a notebook that has not been run before


class Progress:
    """A bar with the remaining time on a terminal; in a batch log one line for each start, end and epoch.

    Args:
        names: notebooks to run. expected: seconds each took in an earlier run, where there was one.
        log: gets each line; stderr by default.
    """

    def __init__(
        self, names: list[str], expected: dict[str, float], log: Callable[[str], None] | None = None
    ):
        self.count, self.finished, self.running = len(names), set(), {}
        self.guessed = {name for name in names if not expected.get(name)}
        self.expected = {name: max(expected.get(name) or GUESS_SECONDS, 1.0) for name in names}
        self.bar = None
        if log is None and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(
                total=sum(self.expected.values()),
                bar_format="{percentage:3.0f}%|{bar:30}| {desc}",
                file=sys.stderr,
                leave=False,
            )
            log = tqdm.write
        self.log = log or (lambda line: print(line, file=sys.stderr, flush=True))

    def started(self, name: str, messages: dict, where: str = "") -> None:
        """A notebook begins; `messages` will hold the share of its cells that are done. where: " on HOST", or nothing."""
        self.running[name] = (time.perf_counter(), messages)
        number = len(self.finished) + len(self.running)
        self.log(f"[{number}/{self.count}] {name} starts{where}")

    def line(self, name: str, text: str) -> None:
        self.log(f"    {name}: {text}")

    def ended(self, name: str, outcome: Outcome) -> None:
        self.running.pop(name, None)
        self.finished.add(name)
        peak = f", peak memory {memory(outcome.peak_memory_mb)}" if outcome.peak_memory_mb else ""
        self.log(f"    {name} {outcome.status} after {duration(outcome.seconds)}{peak}")
        if outcome.status != SUCCEEDED and outcome.error:
            self.log("      " + outcome.error.replace("\n", "\n      "))

    def refresh(self) -> None:
        """Redraw the bar: seconds expected for what is finished, seconds spent on what runs."""
        if self.bar is None:
            return
        done = sum(self.expected[name] for name in self.finished)
        for name, (start, messages) in list(self.running.items()):
            spent, expected = time.perf_counter() - start, self.expected[name]
            done += max(min(spent, 0.95 * expected), messages.get("done", 0) * expected)
        self.bar.n = done
        about = "very roughly" if self.guessed - self.finished else "about"
        left = duration(self.bar.total - done)
        self.bar.set_description_str(f"{', '.join(self.running)} · {about} {left} left")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
