"""The papers' own numbers, to stand beside ours, and their tables by name, all of papers.yaml; imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

_READ = yaml.safe_load(Path(__file__).with_name("papers.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Table:
    """A table of a paper.

    Args:
        title: what it is. method: of `presets.METHODS`. data: named sets that it can be of, the first by default.
        deviations: lines on what differs from the paper whatever the preset.
        unused: beginnings of settings that change nothing in it.
        choice: whether it compares settings to choose from: then a tenth of the training images measures.
    """

    title: str
    method: str
    data: Sequence[str]
    deviations: Sequence[str] = ()
    unused: Sequence[str] = ()
    choice: bool = False


TABLES: dict[str, Table] = {name: Table(**entry) for name, entry in _READ["tables"].items()}
# Name of a figure of a paper -> (what draws it, what it shows).
FIGURES: dict[str, list[str]] = _READ["figures"]


def paper_number(data: str, metric: str) -> tuple[float | None, str]:
    """(a paper's number for a metric on a data set, its place in the paper); (None, "") where no paper gives one."""
    for place, numbers in _READ["numbers"].items():
        if metric in numbers.get(data, ()):
            return numbers[data][metric], place
    if metric == "titn_top1":
        from dfkd_lib.distill import titn  # imports torch: only where it is needed

        if data in titn.PAPER:
            return titn.PAPER[data]["TITN"][0] / 100, "C Tables 3-6"
    return None, ""
