"""What all notebooks found: headline results beside the papers', the real images behind each stage, the time."""

import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from dfkd_lib.core import Store, WorkbenchError, learned_from, most_images, resolve
from dfkd_lib.core.ledger import NOT_RECORDED
from dfkd_lib.reporting.notebooks import COLUMNS, headlines, read_notebooks

SUMMARY = "90_summary"
Counts = dict[tuple[str, str], int]  # (split, purpose) -> images


def read_reports(*places: str | Path) -> dict[str, dict]:
    """What each notebook's report, the summary's own left out, saved in the first of these folders that has any; prints which."""
    every = (sorted((resolve(place) / "metrics").glob("*.json")) for place in places)
    found = ([path for path in paths if path.stem != SUMMARY] for paths in every)
    reports: dict[str, dict] = {}
    for path in next(filter(None, found), []):
        if not reports:
            print(f"the reports of {path.parents[1]}")
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
    table = pd.DataFrame(headlines(reports, read_notebooks()), columns=COLUMNS)
    names = {"label": "result", "value": "ours", "reference": "where in the paper"}
    return table.rename(columns=names)


def artifacts_behind(reports: dict[str, dict], store: Store) -> dict[str, dict]:
    """Every artifact that the notebooks used, and all it was made from: {key: {stage, seconds, ledger, guard, settings,
    parents}}."""
    found = {record["key"]: record for r in reports.values() for record in r.get("artifacts", [])}
    waiting = [parent for record in found.values() for parent in record["parents"]]
    while waiting:
        key = waiting.pop()
        artifact = None if key in found else store.find(key)
        if artifact is not None:
            names = ("stage", "seconds", "ledger", "guard", "settings", "parents")
            found[key] = {name: getattr(artifact, name) for name in names}
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


def reads(key: str, artifacts: dict[str, dict]) -> tuple[Counts, Counts]:
    """(what a stage read itself, what all that it was made from read)."""
    ledger = artifacts[key]["ledger"]
    before = [row for row in ledger if row.get("inherited")]
    before += [row for one in ancestors(key, artifacts) for row in artifacts[one]["ledger"]]
    own = most_images(row for row in ledger if not row.get("inherited"))
    return own, most_images(before)


def in_words(counts: Counts) -> str:
    """Counts as text: `mnist/train 60,000 (training)`; "none" if there are none."""
    texts = (
        f"{split}{f' {count:,}' * (split != NOT_RECORDED)} ({purpose})"
        for (split, purpose), count in counts.items()
    )
    return "; ".join(texts) or "none"


def data_free_of(ledger: Iterable[dict]) -> str:
    """Whether a stage, and a training that it took in, learned from no real image: "yes", "no", or that nobody recorded it."""
    counts = most_images(ledger)
    known = all(split != NOT_RECORDED for split, _ in counts)
    return "no" if learned_from(counts) else "yes" if known else NOT_RECORDED


LEDGER = (
    "stage",
    "reads itself",
    "made from reads",
    "itself data-free",
    "undeclared images",
    "images itself",
    "images behind",
    "seconds",
)


def ledger_table(artifacts: dict[str, dict]) -> pd.DataFrame:
    """How many real images every stage saw, and why: itself, and through all that it was made from.

    Stages with the same counts share a row. What a checkpoint brought from a training done elsewhere counts as made
    from. Where several ancestors read one split for one purpose, the largest number stands, for they mostly read the
    same images; it is the least that can lie behind the stage.

    Returns:
        columns stage, artifacts (how many share the row), reads itself, made from reads, itself data-free (whether
        neither it nor a training it took in learns from a real image), undeclared images (what kept them from it, of
        `core.ledger.GUARDS`), images itself, images behind (numbers, evaluation left out), seconds.
    """
    rows = []
    for key, record in artifacts.items():
        own, behind = reads(key, artifacts)
        texts = in_words(own), in_words(behind), data_free_of(record["ledger"])
        guard, images = record.get("guard", NOT_RECORDED), (learned_from(own), learned_from(behind))
        rows.append((record["stage"], *texts, guard, *images, record["seconds"]))
    groups = pd.DataFrame(rows, columns=LEDGER).groupby([*LEDGER[:-1]], sort=False)["seconds"]
    table = groups.agg(artifacts="count", seconds="sum").reset_index()
    table.insert(1, "artifacts", table.pop("artifacts"))
    return table.sort_values(["stage", "images behind"]).reset_index(drop=True)


def largest_by_stage(ledger: pd.DataFrame) -> pd.DataFrame:
    """One row a stage of a ledger table: the largest counts of images, itself and behind, in the ledger's order."""
    counts = ledger.groupby("stage", sort=False)[["images itself", "images behind"]]
    return counts.max().reset_index()


def time_table(reports: dict[str, dict]) -> pd.DataFrame:
    """Where the time went: for each notebook its seconds, what it made and found, and its peak memory in MB."""
    rows = []
    for name, report in reports.items():
        row = {"notebook": name, "seconds": round(report["seconds"], 1)}
        for cached, count, spent in (
            (False, "made", "seconds making"),
            (True, "found", "seconds saved"),
        ):
            seconds = [a["seconds"] for a in report.get("artifacts", []) if a["cached"] is cached]
            row |= {count: len(seconds), spent: round(sum(seconds), 1)}
        rows.append(row | {"peak memory (MB)": round(report["peak_memory_mb"])})
    return pd.DataFrame(rows)
