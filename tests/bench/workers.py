"""Students of an ablation on two worker processes beside one."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from bench.comparison import Comparison, Pair, Ways
from dfkd_lib import ablation, jobs
from dfkd_lib.core import Store, WorkbenchError

CELLS = 8
BASE = {
    "source": "real",
    "teacher": "shipped",
    "student_model": "vit_mnist_mini_patch7",
    "student_images": 4000,
    "student_epochs": 3,
    "test_images": 500,
}
TWO, ONE = "ablation on two workers", "one worker"


def students(workers: int, count: int = CELLS, base: dict = BASE) -> float:
    """Seconds for so many cells on so many worker processes of one thread.

    What the cells share is there before, and the libraries are loaded; one process is a cluster as several are.
    """
    grid = {"grid": {"temperature": [float(2**i) for i in range(count)]}}
    cells = [cell.as_dict() for cell in ablation.read_grid(grid, base)]
    with (
        tempfile.TemporaryDirectory() as folder,
        jobs.opened(workers, None, lambda *_: None, inline=False) as tasks,
    ):
        needs = tasks.needs(threads=1)
        ready = [
            tasks.submit(f"ready-{i}", ablation.prepare, folder, cells, needs=needs)
            for i in range(workers)
        ]
        [future.result() for future in ready]
        start = time.perf_counter()
        done = [
            tasks.submit(f"cell-{i}", ablation.work, folder, cell, needs=needs)
            for i, cell in enumerate(cells)
        ]
        errors = [error for future in done if (error := future.result()[1])]
        seconds = time.perf_counter() - start
        made = [key for key in Store(folder).keys() if key.startswith("ablation_cell")]
    if errors or len(made) != count:
        raise WorkbenchError("a student of the bench was not trained", got=errors[:1])
    return seconds


@contextmanager
def ways() -> Iterator[Ways]:
    """All cells on two workers, and on one."""
    yield Ways({TWO: partial(students, 2), ONE: partial(students, 1)})


COMPARISONS = (
    Comparison(
        "workers",
        f"{CELLS} students, {BASE['student_images']:,} images, {BASE['student_epochs']} epochs, 1 thread each",
        ways,
        (Pair(TWO, ONE, ">= 1.8"),),
        unit="s",
        per=1,
        most=3,
        warm=False,
    ),
)
