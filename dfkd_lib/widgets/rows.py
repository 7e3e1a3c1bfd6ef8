"""Finished cells as lines of the ablation widget's table: what is shown of each, of two compared, and their figures."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dfkd_lib import ablation, plots
from dfkd_lib.ablation import Cell, Outcome
from dfkd_lib.core import WorkbenchError
from dfkd_lib.core.artifacts import Artifact
from dfkd_lib.metrics import intervals
from dfkd_lib.widgets.base import save_figure
from dfkd_lib.widgets.settings import Settings

ONE_SEED = "one seed is no evidence: run both with the same two seeds or more"


@dataclass(frozen=True)
class Line:
    """A finished cell. how: "found" or "run". job: id of the job that made it, or ""."""

    cell: Cell
    artifact: Artifact
    how: str
    history: list
    job: str = ""

    @classmethod
    def of(cls, cell: Cell, artifact: Artifact, how: str, job: str = "") -> "Line":
        return cls(cell, artifact, how, artifact.json("history.json"), job)

    @property
    def id(self) -> str:
        return self.artifact.key

    @property
    def title(self) -> str:
        return f"{self.cell.name}, seed {self.cell.seed}"

    @property
    def accuracy(self) -> float:
        """Percent of all test images."""
        return 100 * self.artifact.metrics["accuracy"]

    def as_dict(self, settings: Settings) -> dict:
        """The line as JSON: accuracies in percent with Wilson's 95 % interval of the test sample."""
        metrics = self.artifact.metrics
        total = metrics["test_images"]
        low, high = intervals.accuracy_interval(round(metrics["accuracy"] * total), total)
        differs = settings.differences(self.cell.settings)
        return {
            "id": self.id,
            "name": self.cell.name,
            "differs": "" if differs == self.cell.name else differs,
            "seed": self.cell.seed,
            "accuracy": self.accuracy,
            "low": 100 * low,
            "high": 100 * high,
            "agreement": metrics.get("agreement"),
            "half": metrics.get("agreement_half"),
            "loss": self.history[-1].get("loss") if self.history else None,
            "seconds": metrics.get("seconds"),
            "how": self.how,
            "job": self.job,
        }


def compared(lines: Sequence[Line], settings: Settings) -> str:
    """What can be said of the lines: of two settings their difference, paired by seed if two seeds are common."""
    groups: dict[str, dict[int, float]] = {}
    names: dict[str, str] = {}
    for line in lines:
        same = settings.identity(line.cell.settings)
        groups.setdefault(same, {})[line.cell.seed] = line.accuracy
        names.setdefault(same, line.cell.name)
    if len(groups) == 1 and len(lines) > 1:
        mean, half = intervals.mean_interval([line.accuracy for line in lines])
        name = lines[0].cell.name
        return f"{name}: {mean:.2f} ± {half:.2f} % (95 % t interval over {len(lines)} seeds)."
    if len(groups) > 2:
        return f"{len(groups)} settings overlaid; check the lines of two for their difference."
    if len(groups) < 2:
        return ""
    a, b = groups.values()
    first, second = names.values()
    return f"“{second}” minus “{first}”: {_difference(a, b)}"


def _difference(a: dict[int, float], b: dict[int, float]) -> str:
    """b − a in words: {seed: percent} of each."""
    common = sorted(set(a) & set(b))
    if len(common) < 2:
        means = [sum(side.values()) / len(side) for side in (a, b)]
        why = ONE_SEED if common else f"their seeds differ, so nothing is paired, and {ONE_SEED}"
        return f"{_signed(means[1] - means[0])} points. Take care: {why}."
    found = intervals.paired_difference(*([side[seed] for seed in common] for side in (a, b)))
    p = "" if math.isnan(found["p"]) else f", p = {found['p']:.2g}"
    clear = found["low"] > 0 or found["high"] < 0
    verdict = "the interval excludes 0" if clear else "the interval includes 0"
    left = len(a) + len(b) - 2 * len(common)
    return (
        f"{_signed(found['difference'])} points, 95 % interval {_signed(found['low'])} to "
        f"{_signed(found['high'])}{p} (paired over {len(common)} common seeds): {verdict}."
        + (f" Left out: {left} without a partner of its seed." if left else "")
    )


def _signed(points: float) -> str:
    return f"{points:+.2f}".replace("-", "−")


def distinct(lines: Sequence[Line], settings: Settings) -> list[Line]:
    """The lines with one name and one dict of settings for equal settings, and other names for others.

    Cells of several notebooks may lie in one store, each under a name of its own for the same settings.
    """
    first: dict[str, Cell] = {}
    for line in lines:
        same = settings.identity(line.cell.settings)
        if same in first:
            continue
        taken, name = {cell.name for cell in first.values()}, line.cell.name
        if name in taken:
            name = settings.name(line.cell.settings)
        while name in taken:
            name += "'"
        first[same] = replace(line.cell, name=name)
    cells = (first[settings.identity(line.cell.settings)] for line in lines)
    return [
        replace(line, cell=replace(cell, seed=line.cell.seed))
        for line, cell in zip(lines, cells, strict=True)
    ]


def save_figures(lines: Sequence[Line], settings: Settings, out: Path) -> str:
    """The lines' accuracies and curves as figures under `out`/figures, and where; WorkbenchError without lines."""
    if not lines:
        raise WorkbenchError(
            "there is nothing to draw",
            expected="at least one finished run",
            got="none",
            fix="run one first",
        )
    named, histories = distinct(lines, settings), {}
    for line in named:
        histories.setdefault(line.cell.name, []).append(line.history)
    outcomes = [Outcome(line.cell, line.artifact, "", line.how == "found") for line in named]
    cells = ablation.tidy(outcomes)
    figures = {
        "accuracy": plots.ablation_accuracy(cells, ablation.summary(cells)),
        "curves": plots.ablation_curves(histories),
    }
    # Named by what is drawn, so that another selection does not overwrite it.
    digest = hashlib.sha256(" ".join(sorted(line.id for line in lines)).encode()).hexdigest()[:8]
    stems = [out / "figures" / f"ablation_{name}_{digest}" for name in figures]
    for stem, figure in zip(stems, figures.values(), strict=True):
        save_figure(figure, stem)
    return f"saved as svg, pdf, png: {', '.join(map(str, stems))}"
