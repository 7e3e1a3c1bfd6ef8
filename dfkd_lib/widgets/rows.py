"""Finished cells as the rows of the ablation widget's table: what is told of each, of two compared, and their figures."""

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
from dfkd_lib.widgets.settings import Settings

# What a history tells besides losses.


@dataclass(frozen=True)
class Row:
    """A finished cell. how: "found" or "run". job: id of the job that made it, or ""."""

    cell: Cell
    artifact: Artifact
    how: str
    history: list
    job: str = ""

    @classmethod
    def of(cls, cell: Cell, artifact: Artifact, how: str, job: str = "") -> "Row":
        return cls(cell, artifact, how, artifact.json("history.json"), job)

    @property
    def id(self) -> str:
        return self.artifact.key

    @property
    def accuracy(self) -> float:
        """Share in [0, 1] of all test images."""
        return self.artifact.metrics["accuracy"]

    def told(self, settings: Settings) -> dict:
        """The row as JSON: accuracies in percent with Wilson's 95 % interval of the test sample."""
        metrics = self.artifact.metrics
        total = metrics["test_images"]
        low, high = intervals.accuracy_interval(round(self.accuracy * total), total)
        differs = settings.differences(self.cell.settings)
        return {
            "id": self.id,
            "name": self.cell.name,
            "differs": "" if differs == self.cell.name else differs,
            "seed": self.cell.seed,
            "accuracy": 100 * self.accuracy,
            "low": 100 * low,
            "high": 100 * high,
            "test_images": total,
            "agreement": metrics.get("agreement"),
            "half": metrics.get("agreement_half"),
            "loss": self.history[-1].get("loss") if self.history else None,
            "seconds": metrics.get("seconds"),
            "epochs": len(self.history),
            "how": self.how,
            "job": self.job,
        }

    def curve(self) -> dict:
        """Its history under the name that legends show."""
        return {
            "id": self.id,
            "name": f"{self.cell.name}, seed {self.cell.seed}",
            "history": self.history,
        }

    def outcome(self) -> Outcome:
        return Outcome(self.cell, self.artifact, "", self.how == "found")


def compared(rows: Sequence[Row], settings: Settings) -> str:
    """What can be said of the rows: of two settings their difference, paired by seed if two seeds are common."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(settings.identity(row.cell.settings), []).append(row)
    if len(groups) == 1 and len(rows) > 1:
        mean, half = intervals.mean_interval([100 * row.accuracy for row in rows])
        return f"{rows[0].cell.name}: {mean:.2f} ± {half:.2f} % (95 % t interval over {len(rows)} seeds)."
    if len(groups) != 2:
        return (
            ""
            if len(groups) < 2
            else f"{len(groups)} settings overlaid; check the rows of two for their difference."
        )
    first, second = groups.values()
    names = f"“{second[0].cell.name}” minus “{first[0].cell.name}”"
    a, b = ({row.cell.seed: 100 * row.accuracy for row in group} for group in (first, second))
    common = sorted(set(a) & set(b))
    if len(common) > 1:
        found = intervals.paired_difference(
            [a[seed] for seed in common], [b[seed] for seed in common]
        )
        p = "" if math.isnan(found["p"]) else f", p = {found['p']:.2g}"
        verdict = (
            "the interval excludes 0"
            if found["low"] > 0 or found["high"] < 0
            else "no difference can be told"
        )
        left = len(a) + len(b) - 2 * len(common)
        return (
            f"{names}: {_signed(found['difference'])} points, 95 % interval {_signed(found['low'])} to "
            f"{_signed(found['high'])}{p} "
            f"(paired over {len(common)} common seeds): {verdict}."
            + (f" Left out: {left} without a partner of its seed." if left else "")
        )
    means = [sum(side.values()) / len(side) for side in (a, b)]
    why = (
        "one seed is no evidence: run both with the same two seeds or more"
        if len(common) == 1
        else "their seeds differ, so nothing is paired, and one seed is no evidence: run both with the same two seeds or more"
    )
    return f"{names}: {_signed(means[1] - means[0])} points. Take care: {why}."


def _signed(points: float) -> str:
    return f"{points:+.2f}".replace("-", "−")


def figures(rows: Sequence[Row], settings: Settings) -> dict:
    """{name: matplotlib figure} of rows: their accuracies, and their curves."""
    named = distinct(rows, settings)
    histories: dict[str, list] = {}
    for row in named:
        histories.setdefault(row.cell.name, []).append(row.history)
    cells = ablation.tidy([row.outcome() for row in named])
    return {
        "accuracy": plots.ablation_accuracy(cells, ablation.summary(cells)),
        "curves": plots.ablation_curves(histories),
    }


def distinct(rows: Sequence[Row], settings: Settings) -> list[Row]:
    """The rows with one name and one dict of settings for equal settings, and other names for others.

    Cells of several notebooks may lie in one store, each under a name of its own for the same settings.
    """
    first: dict[str, Cell] = {}
    for row in rows:
        same = settings.identity(row.cell.settings)
        if same in first:
            continue
        taken, name = {cell.name for cell in first.values()}, row.cell.name
        if name in taken:
            name = settings.name(row.cell.settings)
        while name in taken:
            name += "'"
        first[same] = replace(row.cell, name=name)
    return [
        replace(row, cell=replace(first[settings.identity(row.cell.settings)], seed=row.cell.seed))
        for row in rows
    ]


def save_figures(rows: Sequence[Row], settings: Settings, out: Path) -> list[Path]:
    """Each figure of the rows as svg, pdf and png under `out`/figures; WorkbenchError without rows."""
    if not rows:
        raise WorkbenchError(
            "there is nothing to draw",
            expected="at least one finished run",
            got="none",
            fix="run one first",
        )
    # Named by what is drawn, so that another selection does not overwrite it.
    digest = hashlib.sha256(" ".join(sorted(row.id for row in rows)).encode()).hexdigest()[:8]
    folder, saved = out / "figures", []
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures(rows, settings).items():
        for kind in ("svg", "pdf", "png"):
            saved.append(folder / f"ablation_{name}_{digest}.{kind}")
            figure.savefig(saved[-1], bbox_inches="tight")
    return saved
