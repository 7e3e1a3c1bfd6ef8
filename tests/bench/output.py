"""Rows on the terminal, and as a folder of bench.json, bench.csv, bench.md, bench.png and bench.svg."""

import csv
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bench.comparison import Row
from dfkd_lib import training
from dfkd_lib.core import provenance, save_json
from dfkd_lib.plots.style import COLORS, STYLE, new_figure

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
    what, peer, setting, *figures, asked, note = cells(row)
    widths = (9, 9, 9, 20, 4)
    shown = " ".join(f"{text:<{width}}" for text, width in zip(figures, widths, strict=True))
    asked = f"asked {asked}" if asked else ""
    return f"{what:<46} {peer:<34} {setting:<44} {shown} {asked} {note}".rstrip()


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table of GitHub's Markdown."""
    shown = [HEAD, ("---",) * len(HEAD), *map(cells, rows)]
    clean = [[cell.replace("|", "/").replace("\n", " ") for cell in each] for each in shown]
    return "\n".join(f"| {' | '.join(each)} |" for each in clean) + "\n"


def picture(rows: Sequence[Row], about: str = "") -> Figure:
    """Every ratio as a dot with a bar over its quartiles, log axis, a line at 1, a colour for each bench.

    Args:
        about: written below.
    """
    shown = [row for row in rows if row.ratio is not None]
    names = list(dict.fromkeys(row.bench for row in shown))
    with matplotlib.rc_context(STYLE):
        figure, ax = new_figure(width=9, height=1.6 + 0.38 * len(shown))
        places = range(len(shown) - 1, -1, -1)
        for place, row in zip(places, shown, strict=True):
            low, middle, high = row.ratio
            color = COLORS[names.index(row.bench) % len(COLORS)]
            ax.plot([low, high], [place] * 2, color=color, lw=3, alpha=0.5)
            ax.plot([middle], [place], "o", color=color, markersize=6)
            ax.annotate(
                number(middle),
                (max(high, middle), place),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        ax.axvline(1, color="black", lw=1)
        ax.set_xscale("log")
        # Room for the figures beside the dots.
        lows, highs = [row.ratio[0] for row in shown], [row.ratio[2] for row in shown]
        ax.set_xlim(min(0.5, 0.8 * min(lows)), max(2.0, 2.6 * max(highs)))
        ax.xaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
        labels = [f"{r.bench}: {r.what}, {r.setting}\nagainst {r.peer}" for r in shown]
        ax.set_yticks(places, labels, fontsize=8)
        ax.set_ylim(-0.7, len(shown) - 0.3)
        ax.set_xlabel("times as fast as the peer")
        if about:
            figure.supxlabel(about, fontsize=7, x=0.01, ha="left")
    return figure


def save(rows: Sequence[Row], folder: Path, seconds: float) -> None:
    """Write everything; the picture only if a row has a ratio.

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
    with open(folder / "bench.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([HEAD, *map(cells, rows)])
    about = (
        f"{known['hardware']['cpu']}, {known['threads']} threads, {known['device']}, torch {known['versions']['torch']}, "
        f"commit {(known['git']['commit'] or 'unknown')[:7]}, {known['date'][:10]}"
    )
    (folder / "bench.md").write_text(f"{about}\n\n{markdown(rows)}", encoding="utf-8")
    if any(row.ratio for row in rows):
        figure = picture(rows, about)
        for kind in ("png", "svg"):
            figure.savefig(folder / f"bench.{kind}")
