"""Rows on the terminal, and as a folder of bench.json, bench.csv and bench.md."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch

from bench.comparison import Row
from dfkd_lib import training
from dfkd_lib.core import provenance, save_json
from dfkd_lib.reporting.results import markdown_table

HEAD = ("what", "peer", "setting", "ours", "peer's", "unit", "times as fast (25-75 %)")
HEAD += ("rounds", "asked", "note")


def number(value: float | None) -> str:
    """A figure to three digits, or a dash."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def cells(row: Row) -> tuple[str, ...]:
    """A row as text, by HEAD."""
    ratio = "-" if row.ratio is None else "{1:.2f} ({0:.2f}-{2:.2f})".format(*row.ratio)
    figures = (number(row.ours), number(row.theirs), row.unit, ratio, str(row.rounds or ""))
    return f"{row.bench}: {row.what}", row.peer, row.setting, *figures, row.asked, row.note


def line(row: Row) -> str:
    """A row as a line of the terminal's table."""
    widths = (46, 34, 44, 9, 9, 9, 20, 4, 10, 0)
    shown = zip(cells(row), widths, strict=True)
    return " ".join(f"{text:<{width}}" for text, width in shown).rstrip()


def save(rows: Sequence[Row], folder: Path, seconds: float) -> None:
    """Write everything.

    Args:
        seconds: how long the measuring took.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = {
        **provenance.describe(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "threads": torch.get_num_threads(),
        "device": str(training.device()),
        "seconds": round(seconds, 1),
    }
    save_json(folder / "bench.json", {"provenance": known, "rows": [asdict(row) for row in rows]})
    table = pd.DataFrame(map(cells, rows), columns=HEAD)
    table.to_csv(folder / "bench.csv", index=False)
    about = (
        f"{known['hardware']['cpu']}, {known['threads']} threads, {known['device']}, torch {known['versions']['torch']}, "
        f"commit {(known['git']['commit'] or 'unknown')[:7]}, {known['date'][:10]}"
    )
    (folder / "bench.md").write_text(f"{about}\n\n{markdown_table(HEAD, table.values)}\n")
