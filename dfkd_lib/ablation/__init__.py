"""Ablations as data: a grid of settings times seeds, run where missing, as one tidy table with paired tests."""

from dfkd_lib.ablation.cells import (
    Outcome,
    as_sent,
    find,
    prepare,
    run,
    run_cell,
    saved_jobs,
    work,
)
from dfkd_lib.ablation.grid import (
    BASE,
    DEFAULTS,
    Cell,
    base_of,
    cells_of,
    make_cell,
    read_grid,
    resolved,
)
from dfkd_lib.ablation.table import (
    by_class,
    crossed,
    fidelity,
    fidelity_verdict,
    histories,
    pairs_verdict,
    pairwise,
    short_table,
    sizes,
    summary,
    tidy,
    verdicts,
)
