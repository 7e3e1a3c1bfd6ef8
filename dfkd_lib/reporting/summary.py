"""What all notebooks found: headline results beside the papers', the real images behind each stage, the time."""

import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from dfkd_lib.core import WorkbenchError
from dfkd_lib.core.artifacts import Store, resolve
from dfkd_lib.core.ledger import EVALUATION
from dfkd_lib.reporting.notebooks import headlines, read_notebooks


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
    """The headline results beside the papers' as a table, of the notebooks of this repository."""
    names = {"label": "result", "value": "ours", "reference": "where in the paper"}
    columns = ["label", "value", "seeds", "size", "paper", "reference"]
    rows = headlines(reports, read_notebooks())
    return pd.DataFrame(rows, columns=columns).rename(columns=names)


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
        row = {"notebook": name, "seconds": round(report["seconds"], 1)}
        for cached, made, spent in (
            (False, "made", "seconds making"),
            (True, "found", "seconds saved"),
        ):
            seconds = [a["seconds"] for a in report.get("artifacts", []) if a["cached"] is cached]
            row |= {made: len(seconds), spent: round(sum(seconds), 1)}
        rows.append(row | {"peak memory (MB)": round(report["peak_memory_mb"])})
    return pd.DataFrame(rows)
