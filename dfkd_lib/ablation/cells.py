"""Cells of an ablation: found by key, or trained, several at a time in processes of their own."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from dfkd_lib import jobs, training
from dfkd_lib.ablation.grid import Cell
from dfkd_lib.attention import in_batches, probe_agreement
from dfkd_lib.core import WorkbenchError, artifacts, ledger, processes
from dfkd_lib.core.artifacts import Artifact, NotMade, Store
from dfkd_lib.core.files import is_full
from dfkd_lib.distill import has_probe, scores
from dfkd_lib.jobs import Job, Queue, WorkerLost, opened_queue
from dfkd_lib.training import DivergedError, load_trained, reads_of

LOST = (
    "its worker process died, more than once, most likely for want of memory; lower the number of processes (jobs) or "
    "batch_size"
)
DISK_SECONDS = 60  # that a disk elsewhere may take to show here what a worker has written there
AGREEMENT_IMAGES = 1000  # test images on which teacher and student are compared


class Outcome(NamedTuple):
    """What came of a cell: its artifact, or None and what happened; `cached` if it was found, not made now."""

    cell: Cell
    artifact: Artifact | None
    error: str
    cached: bool


def run_cell(store: Store, cell: Cell) -> Artifact:
    """The cell's student, and how it does: trained now, or found by key.

    Returns:
        Artifact of stage "ablation_cell" with history.json, and agreement.json (by class: mean cosine of the teacher's and
        the student's attention probes, half width of its 95 % interval over images; null where one has no probe, or where a
        class has fewer than two of the images looked at). Metrics:
        "accuracy", "top5", "precision", "recall", "f1" in [0, 1] on "test_images" test images; "agreement" (mean over
        classes) and "agreement_half", or None; "train_images", "parameters", "seconds" of training, "student" (its key).

    Raises:
        WorkbenchError: whatever stands in the way of its teacher, images or training.
    """
    study = cell.study(store)
    teacher, student = study.teacher, study.student(cell.source, cell.seed)
    looked = study.test_set.sample(AGREEMENT_IMAGES, 0)

    def make(work: Path) -> dict:
        reached, agreement = scores(student), _agreement(student, teacher, looked)
        artifacts.save_json(work / "history.json", student.json("history.json"))
        artifacts.save_json(work / "agreement.json", agreement)
        told = {"agreement": None, "agreement_half": None}
        if agreement:
            count = len(agreement["cosine"])
            told = {
                "agreement": sum(agreement["cosine"]) / count,
                "agreement_half": sum(half**2 for half in agreement["half"]) ** 0.5 / count,
            }
        return {
            "accuracy": reached.pop("top1"),
            **reached,
            **told,
            "test_images": len(study.test_set),
            "train_images": student.metrics["train_images"],
            "parameters": student.metrics["parameters"],
            "seconds": student.seconds,
            "student": student.key,
        }

    return store.get_or_make(
        "ablation_cell",
        {"agreement_images": looked.fingerprint},
        make,
        [student, teacher],
        reads_of((looked, ledger.EVALUATION)),
    )


def _agreement(student: Artifact, teacher: Artifact, images) -> dict | None:
    models = [load_trained(student), load_trained(teacher)]
    few = (
        torch.bincount(images.labels, minlength=images.num_classes).min() < 2
    )  # no interval, or no mean, of some class
    if few or not all(map(has_probe, models)):
        return None
    found = probe_agreement(*models, in_batches(images.images, images.labels), images.num_classes)
    return {
        "classes": list(images.classes),
        "cosine": found.mean[0].tolist(),
        "half": found.half[0].tolist(),
        "count": found.count.tolist(),
    }


def find(store: Store, cell: Cell) -> Artifact | None:
    """The cell's artifact if all of it has been made before, else None; trains nothing."""
    try:
        return run_cell(store.find_only(), cell)
    except NotMade:
        return None


def run(
    cells: Sequence[Cell],
    store: Store,
    jobs: int = 0,
    say: Callable[[str], None] = print,
    scheduler: str | None = None,
) -> list[Outcome]:
    """Run the cells that are missing, several at a time; one that fails or diverges does not stop the others.

    A broken-off run is simply started again: finished cells are found, the others go on from their last epoch. So does a
    cell whose process is lost.

    Args:
        jobs: cells at a time, each in a process with its share of this machine's threads; 0: one for each thread, as far as
            memory goes, on a CPU; 1 (in this process) on an accelerator.
        scheduler: address of a running Dask cluster that takes the cells instead; its workers see the store's folder.

    Returns:
        One Outcome a cell, in order.

    Raises:
        WorkbenchError: if jobs is negative, no cluster answers at `scheduler`, the store's disk
            takes no more, or not one cell can be run.
    """
    if jobs < 0:
        raise WorkbenchError(
            "an impossible number of processes",
            expected="0 (as many as cores) or more",
            got=jobs,
            where="jobs",
        )
    outcomes = _found(cells, store)
    missing = {f"cell-{place}": place for place in range(len(cells)) if place not in outcomes}
    if missing:
        found = sum(outcome.cached for outcome in outcomes.values())
        say(f"{len(cells)} cells, {found} found, {len(missing)} to run")
        jobs = jobs or most_processes()
        # The threads follow from what was asked, not from how many cells are missing: they decide the last bits.
        threads = (
            None if scheduler else max(1, min(torch.get_num_threads(), processes.cores()) // jobs)
        )
        with opened_queue(min(jobs, len(missing)), scheduler, note=say) as queue:
            _fill(queue, store, {name: cells[place] for name, place in missing.items()}, threads)
            answers = ((missing[job.name], answer) for job, answer in queue if job.name in missing)
            _collect(cells, len(missing), store, answers, outcomes, say)
    if outcomes and not any(outcome.artifact for outcome in outcomes.values()):
        raise WorkbenchError(
            "none of the students could be trained",
            got=outcomes[0].error,
            where=store.root,
            fix="see what happened to the first; what is finished is kept",
        )
    return [outcomes[place] for place in range(len(cells))]


def _fill(queue: Queue, store: Store, cells: dict[str, Cell], threads: int | None) -> None:
    """Queue these cells by name, and before them, where several may run at a time, what they share."""
    root, before = str(store.root), []
    if not queue.cluster.alone:
        known = [cell.as_dict() for cell in cells.values()]
        queue.add(Job("shared", prepare, (root, known), threads=threads))
        before = ["shared"]  # if it fails, each cell says what it lacks
    for name, cell in cells.items():
        queue.add(Job(name, work, (root, cell.as_dict()), after=before, threads=threads))


def _collect(cells, count, store, answers, outcomes, say) -> None:
    """Put the answers of so many cells among the outcomes as they come, and say so."""
    start, patience = time.perf_counter(), DISK_SECONDS
    for done, (place, answer) in enumerate(answers, 1):
        key, error = _result(answer)
        made = _appearing(store, key, patience) if key else None
        if key and made is None:
            patience = 0  # nor will the others
            error = f"its worker has made {key}, but not in this {store.root}: give a folder that all machines share"
        outcomes[place] = Outcome(cells[place], made, error, False)
        left = (time.perf_counter() - start) / done * (count - done)
        if is_full(error):  # the students are not to blame
            raise WorkbenchError(
                "a student cannot be written to disk, and no other could",
                got=error,
                where=store.root,
                fix="free room on that disk, or choose another; then run it again: what is finished "
                "is kept",
            )
        result = f"{100 * made.metrics['accuracy']:.2f} %" if made else error.split("\n")[0]
        name = f"{cells[place].name}, seed {cells[place].seed}"
        say(f"{done}/{count} {name}: {result} | {left:.0f} s left")


def _result(answer: object) -> tuple[str | None, str]:
    """(key or None, error) of what the queue gives of a cell."""
    if isinstance(answer, WorkerLost):
        return None, LOST
    return (None, describe(answer)) if isinstance(answer, BaseException) else answer


def _appearing(store: Store, key: str, seconds: float) -> Artifact | None:
    """What another machine has just made: a network disk may deny it for a while, having been asked before it was there."""
    until = time.monotonic() + seconds
    while (made := store.find(key)) is None and time.monotonic() < until:
        time.sleep(0.5)
        os.listdir(store.root)  # looks anew
    return made


def _found(cells: Sequence[Cell], store: Store) -> dict[int, Outcome]:
    """What is known without training: by place, the cells that have been made, and those that are impossible."""
    outcomes: dict[int, Outcome] = {}
    for place, cell in enumerate(cells):
        try:
            made = find(store, cell)
        except Exception as error:  # one impossible row must not stop the others
            outcomes[place] = Outcome(cell, None, describe(error), False)
        else:
            if made:
                outcomes[place] = Outcome(cell, made, "", True)
    return outcomes


def describe(error: BaseException) -> str:
    """An error of a cell as text; a divergence says so first."""
    if isinstance(error, WorkbenchError):
        return f"diverged: {error}" if isinstance(error, DivergedError) else str(error)
    return f"{type(error).__name__}: {error}"


def most_processes() -> int:
    """Cells at a time if nobody says: one for each accelerator, or one for each thread, as far as memory goes."""
    most = jobs.most_processes()
    return (
        most
        if training.device().type == "cuda"
        else 1
        if training.device().type != "cpu"
        else max(1, min(torch.get_num_threads(), most))
    )


def prepare(tell: jobs.Tell, needs: jobs.Needs, root: str, cells: list[dict]) -> list[dict]:
    """A task: make once what the cells of a store share, teachers and images; returns those that are to be run.

    Without this the first cells would only wait for each other.
    """
    store, known = Store(root), [Cell.of(saved) for saved in cells]
    found = _found(known, store)
    missing = [cell for place, cell in enumerate(known) if place not in found]
    with jobs.alone_in_process(needs.threads):
        for cell in missing:
            try:
                cell.study(store).prepare(cell.source)
            except Exception:  # its own task will say so
                continue
    return [cell.as_dict() for cell in missing]


def work(tell: jobs.Tell, needs: jobs.Needs, root: str, saved: dict) -> tuple[str | None, str]:
    """A task: run one cell of a store; its key, or None and what happened."""
    try:
        with jobs.alone_in_process(needs.threads):
            return run_cell(Store(root), Cell.of(saved)).key, ""
    except Exception as error:  # as text, which survives the way back
        return None, describe(error)
