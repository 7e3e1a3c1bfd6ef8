"""Cells of an ablation: found by key, or trained, several at a time in processes of their own."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from dfkd_lib import artifacts, ledger, training
from dfkd_lib.ablation.grid import Cell
from dfkd_lib.artifacts import Artifact, NotMade, Store
from dfkd_lib.attention import in_batches, probe_agreement
from dfkd_lib.distill import load_trained
from dfkd_lib.distill.runner import reads_of
from dfkd_lib.distill.scores import scores
from dfkd_lib.distill.targets import has_probe
from dfkd_lib.errors import WorkbenchError
from dfkd_lib.training import DivergedError

PROCESS_BYTES = 2e9  # memory that a process of a small student takes, with its share of torch
AGREEMENT_IMAGES = 1000  # test images on which teacher and student are compared
BROKEN = ("its process ended without a word, most likely for want of memory; lower the number of processes "
          "(jobs) or batch_size")


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
    recipe = cell.recipe()
    teacher, student = recipe.teacher_artifact(store), recipe.student(store, cell.source, cell.seed)
    looked = recipe.test_set.sample(AGREEMENT_IMAGES, 0)

    def make(work: Path) -> dict:
        reached, agreement = scores(student), _agreement(student, teacher, looked)
        artifacts.save_json(work / "history.json", student.json("history.json"))
        artifacts.save_json(work / "agreement.json", agreement)
        told = {"agreement": None, "agreement_half": None}
        if agreement:
            count = len(agreement["cosine"])
            told = {"agreement": sum(agreement["cosine"]) / count,
                    "agreement_half": sum(half**2 for half in agreement["half"]) ** 0.5 / count}
        return {"accuracy": reached.pop("top1"), **reached, **told, "test_images": len(recipe.test_set),
                "train_images": student.metrics["train_images"], "parameters": student.metrics["parameters"],
                "seconds": student.seconds, "student": student.key}

    return store.get_or_make("ablation_cell", {"agreement_images": looked.fingerprint}, make, [student, teacher],
                             reads_of((looked, ledger.EVALUATION)))


def _agreement(student: Artifact, teacher: Artifact, images) -> dict | None:
    models = [load_trained(student), load_trained(teacher)]
    few = torch.bincount(images.labels, minlength=images.num_classes).min() < 2  # no interval, or no mean, of some class
    if few or not all(map(has_probe, models)):
        return None
    found = probe_agreement(*models, in_batches(images.images, images.labels), images.num_classes)
    return {"classes": list(images.classes), "cosine": found.mean[0].tolist(), "half": found.half[0].tolist(),
            "count": found.count.tolist()}


def find(store: Store, cell: Cell) -> Artifact | None:
    """The cell's artifact if all of it has been made before, else None; trains nothing."""
    try:
        return run_cell(store.looking(), cell)
    except NotMade:
        return None


def run(cells: Sequence[Cell], store: Store, jobs: int = 0, say: Callable[[str], None] = print) -> list[Outcome]:
    """Run the cells that are missing, several at a time; one that fails or diverges does not stop the others.

    A broken-off run is simply started again: finished cells are found, the others go on from their last epoch.

    Args:
        jobs: cells at a time, each in a process with its share of this process's threads; 0: one for each thread, as far as
            memory goes, on a CPU; 1 (in this process) on an accelerator.

    Returns:
        One Outcome a cell, in order.

    Raises:
        WorkbenchError: if jobs is negative, or what all cells need (teacher, images) cannot be made.
    """
    if jobs < 0:
        raise WorkbenchError("an impossible number of processes", expected="0 (as many as cores) or more", got=jobs,
                             where="jobs")
    outcomes: dict[int, Outcome] = {}
    for place, cell in enumerate(cells):
        try:
            made = find(store, cell)
        except Exception as error:  # one impossible row must not stop the others
            outcomes[place] = Outcome(cell, None, said(error), False)
        else:
            if made:
                outcomes[place] = Outcome(cell, made, "", True)
    missing = [place for place in range(len(cells)) if place not in outcomes]
    if missing:
        found = sum(outcome.cached for outcome in outcomes.values())
        say(f"{len(cells)} cells, {found} found, {len(missing)} to run")
        jobs = jobs or most_processes()
        # The threads follow from what was asked, not from how many cells are missing: they decide the last bits.
        threads = max(1, torch.get_num_threads() // jobs)
        results = _in_turn(cells, missing, store, threads) if min(jobs, len(missing)) == 1 else \
            _in_processes(cells, missing, store, min(jobs, len(missing)), threads)
        start = time.perf_counter()
        for done, (place, made, error) in enumerate(results, 1):
            outcomes[place] = Outcome(cells[place], made, error, False)
            left = (time.perf_counter() - start) / done * (len(missing) - done)
            told = f"{100 * made.metrics['accuracy']:.2f} %" if made else error.split("\n")[0]
            say(f"{done}/{len(missing)} {cells[place].name}, seed {cells[place].seed}: {told} | {left:.0f} s left")
    return [outcomes[place] for place in range(len(cells))]


def said(error: Exception) -> str:
    """What happened to a cell, in words; a divergence says so first."""
    if isinstance(error, WorkbenchError):
        return f"diverged: {error}" if isinstance(error, DivergedError) else str(error)
    return f"{type(error).__name__}: {error}"


def most_processes() -> int:
    """Cells at a time if nobody says: 1 on an accelerator, else the threads of this process, as far as memory goes."""
    if training.device().type != "cpu":
        return 1
    return max(1, min(torch.get_num_threads(), int(psutil.virtual_memory().available / PROCESS_BYTES)))


def _in_turn(cells, missing, store, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for place in missing:
            try:
                yield place, run_cell(store, cells[place]), ""
            except Exception as error:  # whatever it is, the other cells are to run
                yield place, None, said(error)
    finally:
        torch.set_num_threads(before)


def _in_processes(cells, missing, store, jobs, threads):
    """(place, artifact, error) of each missing cell as it is done."""
    for place in missing:
        # What cells share is made once, here, with all the threads; the processes would only wait for each other.
        try:
            recipe = cells[place].recipe()
            recipe.teacher_artifact(store), recipe.training_images(store, cells[place].source)
        except Exception:  # its own process will say so
            continue
    broken = []
    for place, key, error in _pooled(cells, missing, store, jobs, threads):
        if error == BROKEN:
            broken.append(place)
        else:
            yield place, store.find(key) if key else None, error
    for place in broken:  # a process that dies takes its neighbours along: alone, only the one to blame fails again
        for _, key, error in _pooled(cells, [place], store, 1, threads):
            yield place, store.find(key) if key else None, error


def _pooled(cells, places, store, jobs, threads):
    """(place, key, error) of each cell as its process answers."""
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _start, (threads,))
    try:
        waiting = {pool.submit(_work, str(store.root), cells[place].as_dict()): place for place in places}
        for future in as_completed(waiting):
            try:
                yield waiting[future], *future.result()
            except BrokenProcessPool:
                yield waiting[future], None, BROKEN
    except BaseException:
        # Ctrl-C, or the caller is gone: end the trainings now, their last checkpoints are on disk.
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _start(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.environ["DFKD_PROGRESS"] = "none"
    torch.set_num_threads(threads)


def _work(root: str, saved: dict) -> tuple[str | None, str]:
    try:
        return run_cell(Store(root), Cell.of(saved)).key, ""
    except Exception as error:  # as text, which survives the way back to the parent
        return None, said(error)
