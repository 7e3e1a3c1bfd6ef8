"""Ablations as data: a grid of settings times seeds, run where missing, as one tidy table with paired tests."""

from dfkd_lib.ablation.cells import Outcome, find, prepare, run, run_cell, work
from dfkd_lib.ablation.grid import (
    SOURCES,
    Cell,
    base_of,
    cells_of,
    make_cell,
    read_grid,
    rows_without,
)
from dfkd_lib.ablation.jobs import Jobs
from dfkd_lib.ablation.table import (
    by_class,
    crossed,
    fidelity,
    histories,
    pairwise,
    short_table,
    sizes,
    summary,
    tidy,
    verdicts,
)

__all__ = [
    "SOURCES",
    "Cell",
    "Jobs",
    "Outcome",
    "base_of",
    "by_class",
    "cells_of",
    "crossed",
    "fidelity",
    "find",
    "histories",
    "make_cell",
    "pairwise",
    "prepare",
    "read_grid",
    "rows_without",
    "run",
    "run_cell",
    "short_table",
    "sizes",
    "summary",
    "tidy",
    "verdicts",
    "work",
]
