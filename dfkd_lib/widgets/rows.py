"""Finished cells as lines of the ablation widget's table: what is shown of each, and of several compared."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dfkd_lib import ablation
from dfkd_lib.ablation import Cell, Outcome
from dfkd_lib.core import Artifact
from dfkd_lib.metrics import intervals
from dfkd_lib.widgets.settings import Settings


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

    @property
    def outcome(self) -> Outcome:
        return Outcome(self.cell, self.artifact, "", self.how == "found")

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
    """The comparison of the lines in words: each setting against the first, paired by seed, or the mean of a single setting."""
    named = distinct(lines, settings)
    names = list(dict.fromkeys(line.cell.name for line in named))
    if len(names) > 1:
        found = ablation.summary(ablation.tidy(line.outcome for line in named))
        return " ".join([f"Against “{names[0]}”.", *ablation.verdicts(found)])
    if len(lines) < 2:
        return ""
    mean, half = intervals.mean_interval([line.accuracy for line in lines])
    return f"{names[0]}: {mean:.2f} ± {half:.2f} % (95 % t interval over {len(lines)} seeds)."


def distinct(lines: Sequence[Line], settings: Settings) -> list[Line]:
    """The lines with one name and one dict of settings for equal settings, and other names for others.

    Cells of several notebooks may lie in one store, each under a name of its own for the same settings.
    """
    first: dict[str, Cell] = {}
    found = []
    for line in lines:
        same = settings.identity(line.cell.settings)
        if same not in first:
            taken, name = {cell.name for cell in first.values()}, line.cell.name
            if name in taken:
                name = settings.name(line.cell.settings)
            while name in taken:
                name += "'"
            first[same] = replace(line.cell, name=name)
        found.append(replace(line, cell=replace(first[same], seed=line.cell.seed)))
    return found
