"""Rows of the benches on the terminal, and as a folder of bench.json, bench.csv, bench.md, bench.png and bench.svg."""

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from matplotlib.figure import Figure

from bench.picture import ratios
from bench.rows import Row
from dfkd_lib import training
from dfkd_lib.core import environment
from dfkd_lib.core.artifacts import save_json

HEAD = (
    "what",
    "peer",
    "setting",
    "ours",
    "peer's",
    "unit",
    "times as fast (25-75 %)",
    "rounds",
    "asked",
    "note",
)


def provenance(seconds: float) -> dict:
    """Commit, machine, versions, date, threads and training device of a bench, and how long it took."""
    import time

    return {
        **environment.describe(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "threads": torch.get_num_threads(),
        "device": str(training.device()),
        "seconds": round(seconds, 1),
    }


def number(value: float | None) -> str:
    """A figure to three digits, or a dash."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def cells(row: Row) -> tuple[str, ...]:
    """A row as text, by HEAD."""
    ratio = "-" if row.ratio is None else "{1:.2f} ({0:.2f}-{2:.2f})".format(*row.ratio)
    return (
        f"{row.bench}: {row.what}",
        row.peer,
        row.setting,
        number(row.ours),
        number(row.theirs),
        row.unit,
        ratio,
        str(row.rounds or ""),
        row.asked,
        row.note,
    )


def line(row: Row) -> str:
    """A row as a line of the terminal's table."""
    what, peer, setting, ours, theirs, unit, ratio, rounds, asked, note = cells(row)
    figures = (
        f"{ours:>9} {theirs:>9} {unit:<9}{ratio:<20}{rounds:>4}" if row.ours is not None else ""
    )
    return f"{what:<46} {peer:<34} {setting:<34}{figures} {f'asked {asked}' if asked else ''} {note}".rstrip()


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table of GitHub's Markdown."""
    shown = [HEAD, ("---",) * len(HEAD), *map(cells, rows)]
    return (
        "\n".join(
            "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in each) + " |"
            for each in shown
        )
        + "\n"
    )


def picture(rows: Sequence[Row], about: str = "") -> Figure:
    """Every ratio of the rows as a dot with its range, on a logarithmic axis."""
    shown = [row for row in rows if row.ratio is not None]
    return ratios(
        [f"{row.what}, {row.setting}" for row in shown],
        [row.peer for row in shown],
        [row.bench for row in shown],
        [row.ratio for row in shown],
        about,
    )


def save(rows: Sequence[Row], folder: Path, seconds: float) -> None:
    """Write everything; the picture only if a row has a ratio."""
    folder.mkdir(parents=True, exist_ok=True)
    known = provenance(seconds)
    save_json(folder / "bench.json", {"provenance": known, "rows": [asdict(row) for row in rows]})
    with open(folder / "bench.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([HEAD, *map(cells, rows)])
    machine, commit = known["hardware"], (known["git"]["commit"] or "unknown")[:7]
    about = (
        f"{machine['cpu']}, {known['threads']} threads, {known['device']}, torch {known['versions']['torch']}, "
        f"commit {commit}, {known['date'][:10]}"
    )
    (folder / "bench.md").write_text(f"{about}\n\n{markdown(rows)}", encoding="utf-8")
    if any(row.ratio for row in rows):
        figure = picture(rows, about)
        for kind in ("png", "svg"):
            figure.savefig(folder / f"bench.{kind}")
