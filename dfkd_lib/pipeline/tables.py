"""`dfkd tables`: the papers' tables beside ours; what they cost is said first, and what cannot be is refused."""

import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import pandas as pd

from dfkd_lib import jobs, presets, training
from dfkd_lib.core import (
    Artifact,
    BeingMade,
    NotMade,
    Store,
    WorkbenchError,
    images_behind,
    only_finding,
    provenance,
    purposes_text,
    resolve,
    save_json,
    without_waiting,
)
from dfkd_lib.metrics.intervals import interval_text
from dfkd_lib.pipeline.asked import Request
from dfkd_lib.pipeline.html import duration, place_figure, read_entry, write_page
from dfkd_lib.pipeline.task import printing
from dfkd_lib.reporting.papers import TABLES
from dfkd_lib.reporting.parts import Cell, Made
from dfkd_lib.reporting.results import value_text
from dfkd_lib.reporting.tables import configuration, open_table
from dfkd_lib.training import Effort

NIGHT_HOURS = 8.0  # that a night has, and a run at the papers' sizes without a GPU
ROOM = 0.9  # share of the free memory that a training may be expected to take
HEAD = "row,column,paper,ours,seeds,size,seconds,hardware,real images read,its teacher's,note"
SHOWN = HEAD.replace(",hardware", "").replace(",note", "")


@dataclass
class TableRun:
    """What comes of a table.

    Args:
        missing: {part that was to be made: what it is, equal where tables share it}. errors: {part: what happened}.
    """

    request: Request
    made: Made
    missing: dict[str, object]
    errors: dict[str, str]

    @property
    def seconds(self) -> float:
        """Seconds that the missing parts are estimated to take."""
        return total([self], "seconds")


@lru_cache(maxsize=16)
def opened(request: Request) -> Made:
    """The table, opened once in a process."""
    config = configuration(request.table, request.preset, request.data, request.overrides)
    return open_table(request.table, Store(request.artifacts), config)


def look(request: Request) -> TableRun:
    """A table with what is missing of it; trains nothing."""
    made = opened(request)
    missing: dict[str, object] = {}
    with only_finding():
        for name, part in made.parts.items():
            try:
                part.make()
            except NotMade as error:
                # The key is that of the first thing missing: of a part that needs others perhaps not its own.
                own = (TABLES[request.table].method, name, str(made.config)) if part.needs else ()
                missing[name] = (error.got, *own)
    return TableRun(request, made, missing, {})


def total(reports: Iterable[TableRun], of: str) -> float:
    """The sum of an effort's "seconds" or "operations" over all missing parts, each that several tables share once."""
    parts = {what: r.made.parts[name] for r in reports for name, what in r.missing.items()}
    return sum(getattr(effort, of) for part in parts.values() for effort in part.efforts)


def estimate_text(reports: Sequence[TableRun]) -> str:
    """What the tables will take, in words."""
    lines = [
        f"{r.request.table} ({r.request.data}, {r.request.preset}): {len(r.missing)} of {len(r.made.parts)} parts are to be made, "
        f"{total([r], 'operations'):.2g} operations, about {duration(r.seconds)}"
        for r in reports
    ]
    seconds = total(reports, "seconds")
    if seconds:
        rate = total(reports, "operations") / seconds / 1e9
        once = ", what tables share counted once," * (
            seconds < 0.999 * sum(r.seconds for r in reports)
        )
        lines.append(
            f"in all about {duration(seconds)}{once} on {provenance.machine()} at {rate:.0f} GFLOP/s, "
            "measured on a step of each network; measuring images comes on top"
        )
    return "\n".join(lines)


def refuse(reports: Sequence[TableRun], hours: float | None, processes: int) -> None:
    """Raise a WorkbenchError on what does not fit this machine's memory, or the time there is, with what would."""
    room = ROOM * training.free_memory() / processes
    for report in reports:
        for name in report.missing:
            for effort in report.made.parts[name].efforts:
                if effort.memory > room:
                    raise _too_large(report, name, effort, room)
    preset, on_cpu = reports[0].request.preset, training.device().type == "cpu"
    bounded = preset == "night" or preset == "paper" and on_cpu
    limit = hours or (NIGHT_HOURS if bounded else 0)
    if not limit or total(reports, "seconds") <= 3600 * limit:
        return
    raise WorkbenchError(
        "the papers' sizes want a GPU, and there is none here"
        if preset == "paper" and on_cpu
        else f"this does not fit {limit:g} hours",
        expected=f"at most {limit:g} h of training on {provenance.machine()}",
        got="; ".join(f"{r.request.name} about {duration(r.seconds)}" for r in reports),
        where=f"--preset {preset}",
        fix=_what_fits(reports, 3600 * limit),
    )


def _too_large(report: TableRun, name: str, effort: Effort, room: float) -> WorkbenchError:
    batch, table = effort.fitting_batch(room), report.request.table
    fits = f"--set {table}.{effort.setting}={batch}" if batch and effort.setting else ""
    return WorkbenchError(
        f"{name} of table {table} would not fit in memory",
        expected=f"at most {room / 1e9:.1f} GB, which are free",
        got=f"about {effort.memory / 1e9:.1f} GB: {effort.name}, batch {effort.batch_size}",
        where=f"--preset {report.request.preset}",
        fix=f"{fits} would" if fits else "a smaller preset (--preset night), or more memory",
    )


def _what_fits(reports: Sequence[TableRun], limit: float) -> str:
    """What to ask for instead: some of the tables, or a smaller preset, a GPU, more hours."""
    fits: list[TableRun] = []
    for report in sorted(reports, key=lambda r: r.seconds):
        fits += [report] * (total([*fits, report], "seconds") <= limit)
    if fits:
        by_data: dict[str, list[str]] = {}
        for report in fits:
            by_data.setdefault(report.request.data, []).append(report.request.table)
        calls = (f"dfkd tables {' '.join(names)} --data {data}" for data, names in by_data.items())
        return f"these fit: {'; '.join(calls)}; --hours allows more"
    smaller = "night" if reports[0].request.preset == "paper" else "quick"
    return f"--preset {smaller}, a GPU, or --hours {math.ceil(total(reports, 'seconds') / 3600)}"


def make_part(
    tell: jobs.Tell, needs: jobs.Needs, request: Request, name: str
) -> float | jobs.Later:
    """A job: make one part of a table; the seconds it took, or that another process is making some of it."""
    start = time.perf_counter()
    with jobs.alone_in_process(needs.threads):
        try:
            with without_waiting(), printing(tell):
                opened(request).parts[name].make()
        except BeingMade as error:
            return jobs.Later(str(error.got))
    return time.perf_counter() - start


def train(reports: Sequence[TableRun], processes: int, threads: int | None, log: Callable) -> None:
    """Make what is missing through one queue; errors go into the runs."""
    by_table = {report.request.name: report for report in reports}
    waiting = sum(len(report.missing) for report in reports)
    if not waiting:
        return

    def hear(job: jobs.Job, message: dict) -> None:
        if "line" in message:
            log(f"    {job.name}: {message['line']}")

    with jobs.opened_queue(min(processes, waiting), None, hear, log) as queue:
        for table, report in by_table.items():
            for name in report.missing:
                needs = [n for n in report.made.parts[name].needs if n in report.missing]
                built_on = tuple(f"{table}: {need}" for need in needs)
                args = (report.request, name)
                queue.add(jobs.Job(f"{table}: {name}", make_part, args, built_on, threads=threads))
        for job, answer in queue:
            table, _, name = job.name.partition(": ")
            waiting -= 1
            if isinstance(answer, float):
                log(f"{job.name}: {duration(answer)} | {waiting} left")
            else:
                by_table[table].errors[name] = str(answer)
                log(f"{job.name}: not made: {str(answer)}")


def cell_row(report: TableRun, cell: Cell, found: dict[str, list[Artifact]]) -> dict[str, object]:
    """A cell as a line of the page: the paper's figure, ours, its size, time, hardware and real images."""
    parts = [name for name in cell.parts if name in found]
    lost = [f"{name}: {report.errors[name]}" for name in cell.parts if name in report.errors]
    values = [cell.value(found[name]) for name in parts]
    row: dict[str, object] = dict.fromkeys(HEAD.split(","), "–")
    row |= {"row": cell.row, "column": cell.column}
    row["note"] = "; ".join([cell.note, *lost]).strip("; ")
    if cell.paper is not None:
        row["paper"] = f"{cell.paper:.4g}"
    if not values:
        return row
    store, teacher = Store(report.request.artifacts), found.get("teacher", [None])[0]
    first = found[parts[0]][0]
    seconds = sum(artifact.seconds for name in parts for artifact in found[name]) / len(parts)
    key = "" if teacher is None or first is teacher else teacher.key
    own = images_behind(store, first, without=key)
    row |= {
        "ours": interval_text(values, ".2f"),
        "values": values,
        "seeds": len(values),
        "size": _size(first),
        "seconds": f"{seconds:.3g}",
        "hardware": ", ".join(dict.fromkeys(found[name][0].hardware for name in parts)),
        "real images read": purposes_text(own),
    }
    if teacher is not None and first is not teacher:
        row["its teacher's"] = purposes_text(images_behind(store, teacher))
    return row


def _size(artifact: Artifact) -> str:
    """Parameters and images of a classifier; width and epochs of a GAN."""
    known, settings = artifact.metrics, artifact.settings
    texts = [
        (known.get("parameters"), "parameters"),
        (known.get("train_images"), "images"),
        (settings.get("width"), "channels"),
        (settings.get("config", settings).get("epochs"), "epochs"),
    ]
    return ", ".join(f"{value:,} {what}" for value, what in texts if value)


def deviations(report: TableRun, rows: Sequence[dict]) -> list[str]:
    """One line on each thing that differs from the paper whatever the settings: of the table, of the images, of cells."""
    request, lines = report.request, list(TABLES[report.request.table].deviations)
    if presets.data_set(request.data) != request.data:
        lines.append(
            f"images of {request.data}: other files than the paper's, whose figures do not transfer"
        )
    for note in dict.fromkeys(row["note"] for row in rows if row["note"]):
        cells = [f"{row['row']} ({row['column']})" for row in rows if row["note"] == note]
        lines.append(note if len(cells) == len(rows) else f"{', '.join(cells)}: {note}")
    return lines


def settings(report: TableRun) -> list[tuple[str, str, str]]:
    """(setting, here, in the paper preset) of what differs and changes something in the table."""
    request, unused = report.request, ("data.name", *TABLES[report.request.table].unused)
    paper = configuration(request.table, "paper", presets.data_set(request.data))
    return [
        (name, value_text(ours), value_text(theirs))
        for name, (ours, theirs) in report.made.config.differences(paper).items()
        if not name.startswith(unused)
    ]


def write(reports: Iterable[TableRun], out: Path, estimate: str, command: str) -> Path:
    """Write tables.html, a CSV for each table and results.json; returns the page's path."""
    content, sections = {}, []
    for report in reports:
        found = {}
        with only_finding():
            for name, part in report.made.parts.items():
                with suppress(NotMade):
                    found[name] = part.make()
        rows = [cell_row(report, cell, found) for cell in report.made.cells]
        name = report.request.name
        content[name] = {
            "title": report.request.title,
            "cells": rows,
            "deviations": deviations(report, rows),
            "settings": settings(report),
            "keys": {part: [one.key for one in made] for part, made in found.items()},
            "hardware": {part: made[0].hardware for part, made in found.items()},
            "errors": report.errors,
        }
        (out / "tables").mkdir(parents=True, exist_ok=True)
        table = pd.DataFrame(rows, columns=HEAD.split(","))
        table.to_csv(out / "tables" / f"{name}.csv", index=False)
        body = table[SHOWN.split(",")].values
        places = dict.fromkeys(content[name]["hardware"].values())
        sections.append((name, content[name], "; ".join(places), body, drawn(report, out)))
    known = provenance.describe()
    save_json(
        out / "results.json",
        {"tables": content, "estimate": estimate, "command": command, "provenance": known},
    )
    return write_page(
        out / "tables.html",
        "tables.html.j2",
        {},
        title="The papers' tables beside ours",
        estimate=estimate,
        head=SHOWN.split(","),
        sections=sections,
        contents=[(2, name, table["title"]) for name, table in content.items()],
        command=command,
        provenance=known,
    )


def drawn(report: TableRun, out: Path) -> list[dict]:
    """The figures of a table whose parts are there, saved under figures/, as entries of the page."""
    entries = []
    with only_finding():
        for name, figure in report.made.figures.items():
            file = f"{report.request.name}_{name}"
            with suppress(NotMade):
                picture, about = figure.draw(), f"{figure.caption}; {report.request.title}"
                (out / "figures").mkdir(parents=True, exist_ok=True)
                for kind in ("svg", "pdf"):
                    path = out / "figures" / f"{file}.{kind}"
                    picture.savefig(path, bbox_inches="tight", metadata={"Creator": None})
                note = {"name": file, "caption": about, "paper": figure.paper}
                entries.append({"label": "", **(place_figure(out, read_entry(note)) or {})})
    return entries


def run_tables(
    requests: Sequence[Request],
    out: str,
    processes: int,
    threads: int | None,
    hours: float | None,
    command: str,
) -> tuple[Path, bool]:
    """Estimate, refuse or make, and write; (the page's path, whether every part was made)."""
    log = partial(print, file=sys.stderr, flush=True)
    # One folder for a call with no --data, and one for each choice of others: none overwrites another's page.
    others = [r.data for r in requests if r.data != TABLES[r.table].data[0]]
    named = "_".join([requests[0].preset, *dict.fromkeys(Path(data).name for data in others)])
    folder = resolve(out or f"reports/tables_{named}")
    reports = [look(request) for request in requests]
    estimate = estimate_text(reports)
    log(estimate)
    refuse(reports, hours, processes)
    train(reports, processes, threads, log)
    return write(reports, folder, estimate, command), not any(r.errors for r in reports)
