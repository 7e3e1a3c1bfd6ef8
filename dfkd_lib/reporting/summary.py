"""What all notebooks found: headline results beside the papers', the real images behind each stage, the time."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from dfkd_lib.core import WorkbenchError
from dfkd_lib.core.artifacts import Store, resolve
from dfkd_lib.core.ledger import EVALUATION
from dfkd_lib.metrics.intervals import mean_interval


@dataclass(frozen=True)
class Headline:
    """A result to read first: where it is measured, how it is written, and what the paper gives for it."""

    notebook: str
    metric: str
    label: str
    paper: str = ""
    reference: str = ""
    percent: bool = False

    def text(self, value: object) -> str:
        """The measured value as a person reads it: a percentage where `percent` says so, a list as mean ± interval."""
        if (
            isinstance(value, list)
            and value
            and all(isinstance(one, (int, float)) for one in value)
        ):
            mean, half = mean_interval(value)
            interval = f" ± {half * (100 if self.percent else 1):.2g}" if len(value) > 1 else ""
            return f"{self.text(mean).removesuffix(' %')}{interval}{' %' if self.percent else ''}"
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return str(value)
        return (
            f"{100 * value:.2f} %"
            if self.percent
            else f"{value:,}"
            if isinstance(value, int)
            else f"{value:.3g}"
        )


HEADLINES: tuple[Headline, ...] = (
    Headline(
        "30_classification_kd",
        "teacher_real_accuracy",
        "teacher, trained on real images",
        "98.75 %",
        "A Table 4",
        percent=True,
    ),
    Headline(
        "30_classification_kd",
        "student_real_accuracy",
        "student, real images",
        "97.75 %",
        "A Table 4",
        percent=True,
    ),
    Headline(
        "30_classification_kd",
        "student_synthetic_accuracy",
        "student, synthetic images only",
        "96.73 %",
        "A Table 4",
        percent=True,
    ),
    Headline(
        "20_gan_fid",
        "frechet_vanilla",
        "Fréchet distance, vanilla GAN",
        "27 (Inception)",
        "A Table 2",
    ),
    Headline(
        "20_gan_fid",
        "frechet_augmented",
        "Fréchet distance, augmented GAN",
        "23 (Inception)",
        "A Table 2",
    ),
    Headline(
        "20_gan_fid",
        "student of class probes",
        "student, images made from class probes only",
        percent=True,
    ),
    Headline(
        "20_gan_fid",
        "student of adversarial",
        "student, images made from the teacher only",
        percent=True,
    ),
    Headline(
        "40_detection_kd",
        "teacher_AP50",
        "detection teacher, AP50",
        "",
        "A Figure 17",
        percent=True,
    ),
    Headline(
        "40_detection_kd",
        "student_train_AP50",
        "detection student, AP50",
        "",
        "A Figure 19",
        percent=True,
    ),
    Headline(
        "40_detection_kd",
        "student_synthetic_AP50",
        "detection student, synthetic scenes only, AP50",
        "",
        "A Figure 19",
        percent=True,
    ),
    Headline("60_titn", "titn_top1", "TITN, top-1", "99.56 %", "C Tables 3-6", percent=True),
    Headline(
        "70_deploy", "student_int8_accuracy", "student as int8 ONNX", "", "A §4", percent=True
    ),
    Headline(
        "70_deploy",
        "int8_times_smaller_than_teacher",
        "times smaller than the teacher, int8",
        "",
        "A §4",
    ),
)


def headlines(notebooks: dict[str, dict]) -> list[dict]:
    """The results to read first, those of `HEADLINES` that were measured.

    Args:
        notebooks: {name: {"metrics": {…}, …}}, as in results.json.

    Returns:
        rows {label, value, paper, reference}, all strings.
    """
    rows = []
    for wanted in HEADLINES:
        value = notebooks.get(wanted.notebook, {}).get("metrics", {}).get(wanted.metric)
        if value is not None:
            # The papers' figures named here are MNIST's: beside other data they would mislead.
            same = notebooks[wanted.notebook]["metrics"].get("data", "mnist") == "mnist"
            rows.append(
                {
                    "label": wanted.label,
                    "value": wanted.text(value),
                    "paper": wanted.paper if same else "",
                    "reference": wanted.reference,
                }
            )
    return rows


def read_reports(out_dir: str | Path) -> dict[str, dict]:
    """What each notebook's report saved in `<out_dir>/metrics`, by notebook; {} if none has run."""
    folder = resolve(out_dir) / "metrics"
    reports = {}
    for path in sorted(folder.glob("*.json")):
        try:
            reports[path.stem] = dict(json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise WorkbenchError(
                "what a notebook saved cannot be read",
                got=error,
                where=path,
                fix=f"run notebook {path.stem} again",
            ) from None
    return reports


def headline_table(reports: dict[str, dict]) -> pd.DataFrame:
    """The headline results as a table: result, ours, paper, reference."""
    rows = [
        (row["label"], row["value"], row["paper"], row["reference"]) for row in headlines(reports)
    ]
    return pd.DataFrame(rows, columns=["result", "ours", "paper", "where in the paper"])


def artifacts_behind(reports: dict[str, dict], store: Store) -> dict[str, dict]:
    """Every artifact that the notebooks used, and all it was made from: {key: {stage, seconds, ledger, parents}}."""
    found: dict[str, dict] = {}
    for report in reports.values():
        for record in report.get("artifacts", []):
            found[record["key"]] = record
    waiting = [
        parent for record in found.values() for parent in record["parents"] if parent not in found
    ]
    while waiting:
        key = waiting.pop()
        artifact = None if key in found else store.find(key)
        if artifact is not None:
            found[key] = {
                "stage": artifact.stage,
                "seconds": artifact.seconds,
                "ledger": artifact.ledger,
                "parents": artifact.parents,
            }
            waiting += artifact.parents
    return found


def ancestors(key: str, artifacts: dict[str, dict]) -> set[str]:
    """The keys of everything an artifact was made from, directly or not, without itself."""
    seen: set[str] = set()
    waiting = list(artifacts[key]["parents"])
    while waiting:
        parent = waiting.pop()
        if parent in artifacts and parent not in seen:
            seen.add(parent)
            waiting += artifacts[parent]["parents"]
    return seen


def most_images(rows: Iterable[dict]) -> dict[tuple[str, str], int]:
    """{(split, purpose): images}: the most that any one row read, as rows of one split mostly read the same images."""
    most: dict[tuple[str, str], int] = {}
    for row in rows:
        place = (row["split"], row["purpose"])
        most[place] = max(most.get(place, 0), row["images"])
    return {place: count for place, count in sorted(most.items()) if count}


def in_words(counts: dict[tuple[str, str], int]) -> str:
    """Counts as text: `mnist/train 60,000 (training)`; "none" if there are none."""
    return (
        "; ".join(f"{split} {count:,} ({purpose})" for (split, purpose), count in counts.items())
        or "none"
    )


def learned_from(counts: dict[tuple[str, str], int]) -> int:
    """Real images read for anything but evaluation, each split counted once."""
    splits: dict[str, int] = {}
    for (split, purpose), count in counts.items():
        if purpose != EVALUATION:
            splits[split] = max(splits.get(split, 0), count)
    return sum(splits.values())


def ledger_table(artifacts: dict[str, dict]) -> pd.DataFrame:
    """How many real images every stage saw, and why: itself, and through all that it was made from.

    Stages with the same counts share a row. What a checkpoint brought from a training done elsewhere counts as made
    from. Where several ancestors read one split for one purpose, the largest number stands, for they mostly read the
    same images; it is the least that can lie behind the stage.

    Returns:
        columns stage, artifacts (how many share the row), reads itself, made from reads, data-free (whether neither the
        stage itself nor a training it took in learns from a real image), images itself, images behind (numbers,
        evaluation left out), seconds.
    """
    rows = []
    for key, record in artifacts.items():
        own = most_images(row for row in record["ledger"] if not row.get("inherited"))
        elsewhere = [row for row in record["ledger"] if row.get("inherited")]
        before = [
            row for parent in ancestors(key, artifacts) for row in artifacts[parent]["ledger"]
        ]
        behind = most_images([*elsewhere, *before])
        rows.append(
            (
                record["stage"],
                in_words(own),
                in_words(behind),
                "no" if learned_from(most_images(record["ledger"])) else "yes",
                learned_from(own),
                learned_from(behind),
                record["seconds"],
            )
        )
    names = [
        "stage",
        "reads itself",
        "made from reads",
        "data-free",
        "images itself",
        "images behind",
    ]
    table = pd.DataFrame(rows, columns=[*names, "seconds"])
    grouped = table.groupby(names, sort=False)["seconds"].agg(["count", "sum"]).reset_index()
    grouped = grouped.rename(columns={"count": "artifacts", "sum": "seconds"}).sort_values(
        ["stage", "images behind"]
    )
    return grouped[["stage", "artifacts", *names[1:], "seconds"]].reset_index(drop=True)


def largest_by_stage(ledger: pd.DataFrame) -> pd.DataFrame:
    """One row a stage of a ledger table: the largest counts of images, itself and behind, in the ledger's order."""
    return (
        ledger.groupby("stage", sort=False)[["images itself", "images behind"]].max().reset_index()
    )


def time_table(reports: dict[str, dict]) -> pd.DataFrame:
    """Where the time went: for each notebook its seconds, what it made and found, and its peak memory in MB."""
    rows = []
    for name, report in reports.items():
        made = [record for record in report.get("artifacts", []) if not record["cached"]]
        found = [record for record in report.get("artifacts", []) if record["cached"]]
        spent, saved = (
            round(sum(record["seconds"] for record in kind), 1) for kind in (made, found)
        )
        rows.append(
            (
                name,
                round(report["seconds"], 1),
                len(made),
                spent,
                len(found),
                saved,
                round(report["peak_memory_mb"]),
            )
        )
    return pd.DataFrame(
        rows,
        columns=[
            "notebook",
            "seconds",
            "made",
            "seconds making",
            "found",
            "seconds saved",
            "peak memory (MB)",
        ],
    )
