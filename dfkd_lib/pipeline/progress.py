"""What a terminal or a batch log sees of a run."""

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
        say: gets each line; stderr by default.
    """

    def __init__(
        self, names: list[str], expected: dict[str, float], say: Callable[[str], None] | None = None
    ):
        self.names, self.finished, self.running = names, {}, {}
        self.expected = {name: max(expected.get(name) or GUESS_SECONDS, 1.0) for name in names}
        self.guessed = {name for name in names if not expected.get(name)}
        self.bar = None
        if say is None and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(
                total=sum(self.expected.values()),
                bar_format="{percentage:3.0f}%|{bar:30}| {desc}",
                file=sys.stderr,
                leave=False,
            )
            say = tqdm.write
        self.say = say or (lambda line: print(line, file=sys.stderr, flush=True))

    def started(self, name: str, told: dict, where: str = "") -> None:
        """A notebook begins; `told` will hold the share of its cells that are done. where: " on HOST", or nothing."""
        self.running[name] = (time.perf_counter(), told)
        self.say(
            f"[{len(self.finished) + len(self.running)}/{len(self.names)}] {name} starts{where}"
        )

    def line(self, name: str, text: str) -> None:
        self.say(f"    {name}: {text}")

    def ended(self, name: str, outcome: Outcome) -> None:
        self.running.pop(name, None)
        self.finished[name] = outcome
        peak = f", peak memory {memory(outcome.peak_memory_mb)}" if outcome.peak_memory_mb else ""
        self.say(f"    {name} {outcome.status} after {duration(outcome.seconds)}{peak}")
        if outcome.status != SUCCEEDED and outcome.error:
            self.say("      " + outcome.error.replace("\n", "\n      "))

    def note(self, text: str) -> None:
        self.say(text)

    def refresh(self) -> None:
        """Redraw the bar: seconds expected for what is finished, seconds spent on what runs."""
        if self.bar is None:
            return
        done = sum(self.expected[name] for name in self.finished)
        for name, (start, told) in list(self.running.items()):
            spent = time.perf_counter() - start
            done += max(
                min(spent, 0.95 * self.expected[name]), told.get("done", 0) * self.expected[name]
            )
        self.bar.n = done
        about = "very roughly" if self.guessed - set(self.finished) else "about"
        self.bar.set_description_str(
            f"{', '.join(self.running)} · {about} {duration(self.bar.total - done)} left"
        )

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
