"""Students of an ablation on one worker process and on several, and what a task costs that does nothing."""

import tempfile
import time
from collections.abc import Iterator

from bench.growth import Growth
from bench.rows import Effort, Row, quartiles
from dfkd_lib import ablation, jobs
from dfkd_lib.core import WorkbenchError, processes
from dfkd_lib.core.artifacts import Store

CELLS, TASKS, WORKERS = 8, 8, (1, 2, 4)
BASE = {
    "source": "real",
    "teacher": "shipped",
    "student_model": "vit_mnist_mini_patch7",
    "student_images": 4000,
    "student_epochs": 3,
    "test_images": 500,
}
SETTING = (
    f"{CELLS} students of 155,018 parameters, {BASE['student_images']:,} images, {BASE['student_epochs']} epochs, "
    "1 thread each"
)


def students(workers: int) -> tuple[float, float]:
    """Seconds for all cells on so many worker processes of one thread, and seconds until these had started.

    What the cells share is there before, and the libraries are loaded; one process is a cluster as several are.
    """
    cells = ablation.read_grid({"grid": {"temperature": [float(2**i) for i in range(CELLS)]}}, BASE)
    with tempfile.TemporaryDirectory() as folder:
        saved, begun = [cell.as_dict() for cell in cells], time.perf_counter()
        with jobs.opened(workers, None, lambda *_: None, inline=False) as tasks:
            needs = tasks.needs(threads=1)
            ready = [
                tasks.submit(f"ready-{i}", ablation.prepare, folder, saved, needs=needs)
                for i in range(workers)
            ]
            [future.result() for future in ready]
            start = time.perf_counter()
            done = [
                tasks.submit(f"cell-{i}", ablation.work, folder, cell, needs=needs)
                for i, cell in enumerate(saved)
            ]
            errors = [error for future in done if (error := future.result()[1])]
            end = time.perf_counter()
        made = [key for key in Store(folder).keys() if key.startswith("ablation_cell")]
        if errors or len(made) != CELLS:
            raise WorkbenchError(
                "a student of the bench was not trained", got=errors[:1], where="bench.workers"
            )
    return end - start, start - begun


def nothing(tell: jobs.Tell, needs: jobs.Needs) -> None:
    """A task that is done at once."""


def empty_tasks(count: int) -> float:
    """Seconds that so many tasks take which do nothing, on two workers, one after another as a run hands them in."""
    with jobs.opened(2, None, lambda *_: None) as tasks:
        needs = tasks.needs(threads=1)
        tasks.submit("warm", nothing, needs=needs).result()
        start = time.perf_counter()
        [tasks.submit(f"task-{place}", nothing, needs=needs).result() for place in range(count)]
        return time.perf_counter() - start


def rows(effort: Effort) -> Iterator[Row]:
    """Two workers against one, in turns, and how long workers take to be ready."""
    rounds = [
        {workers: students(workers) for workers in WORKERS[:2]}
        for _ in range(max(1, min(effort.rounds, 3)))
    ]
    one, two = ([each[workers][0] for each in rounds] for workers in WORKERS[:2])
    yield Row(
        "workers",
        "ablation on two workers",
        SETTING,
        "one worker",
        quartiles(two)[1],
        quartiles(one)[1],
        "s",
        quartiles([first / second for first, second in zip(one, two, strict=True)]),
        len(rounds),
        ">= 1.8 x",
        f"libraries loaded; two workers took {quartiles([each[2][1] for each in rounds])[1]:.1f} s to be ready",
    )


def growth() -> list[Growth]:
    """Seconds of the same students by workers, and of empty tasks by their number."""
    counts = tuple(TASKS * times for times in (1, 4, 16))
    return [
        Growth(
            "workers",
            f"{CELLS} students of an ablation",
            WORKERS,
            tuple(students(n)[0] for n in WORKERS),
            (),
            (-1, 0),
            f"one thread each, on {processes.cores()} cores: more workers than cores gain nothing",
        ),
        Growth(
            "tasks",
            "empty tasks on two workers",
            counts,
            tuple(map(empty_tasks, counts)),
            (),
            (1, 0),
            "the price of handing in a task",
        ),
    ]
