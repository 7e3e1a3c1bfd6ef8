"""Cells of an ablation: found by key, or trained, several at a time in processes of their own."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from dfkd_lib import core, jobs, training
from dfkd_lib.ablation.grid import DEFAULTS, Cell
from dfkd_lib.attention import in_batches, probe_agreement
from dfkd_lib.core import (
    Artifact,
    NotMade,
    OtherCode,
    Store,
    WorkbenchError,
    fingerprint,
    ledger,
    only_finding,
    processes,
    save_json,
)
from dfkd_lib.core.files import is_full
from dfkd_lib.distill import Study, has_probe, scores
from dfkd_lib.jobs import Job, Queue, SavedJobs, WorkerLost, opened_queue
from dfkd_lib.models import MODELS
from dfkd_lib.training import DivergedError, load_trained, reads_of

LOST = (
    "its worker process died, more than once, most likely for want of memory; lower the number of processes (jobs) or "
    "batch_size"
)
DISK_SECONDS = 60  # that a disk elsewhere may take to show here what a worker has written there
AGREEMENT_IMAGES = 1000  # test images on which teacher and student are compared
SHARED = "shared"  # the job that makes what the cells share


class Outcome(NamedTuple):
    """What came of a cell: its artifact, or None and what happened; `cached` if it was found, not made now."""

    cell: Cell
    artifact: Artifact | None
    error: str
    cached: bool


def run_cell(store: Store, cell: Cell, step: Callable | None = None) -> Artifact:
    """The cell's student, and how it does: trained now, or found by key.

    Args:
        step: a training step in place of the library's, see `distill.train`.

    Returns:
        Artifact of stage "ablation_cell" with history.json, and agreement.json (by class: mean cosine of the teacher's and
        the student's attention probes, half width of its 95 % interval over images; null where one has no probe, or where a
        class has fewer than two of the images compared). Metrics:
        "accuracy", "top5", "precision", "recall", "f1" in [0, 1] on "test_images" test images; "agreement" (mean over
        classes) and "agreement_half", or None; "train_images", "parameters", "seconds" of training, "student" (its key).

    Raises:
        WorkbenchError: whatever stands in the way of its teacher, images or training.
    """
    study = cell.study(store)
    teacher, student = study.teacher, study.student(cell.source, cell.seed, step)
    compared = study.test_set.sample(AGREEMENT_IMAGES, 0)

    def make(work: Path) -> dict:
        reached, agreement = scores(student), _agreement(student, teacher, compared)
        save_json(work / "history.json", student.json("history.json"))
        save_json(work / "agreement.json", agreement)
        mean = half = None
        if agreement:
            count = len(agreement["cosine"])
            mean = sum(agreement["cosine"]) / count
            half = sum(half**2 for half in agreement["half"]) ** 0.5 / count
        return {
            "accuracy": reached.pop("top1"),
            **reached,
            "agreement": mean,
            "agreement_half": half,
            "test_images": len(study.test_set),
            "train_images": student.metrics["train_images"],
            "parameters": student.metrics["parameters"],
            "seconds": student.seconds,
            "student": student.key,
        }

    return store.get_or_make(
        "ablation_cell",
        {"agreement_images": compared.fingerprint},
        make,
        [student, teacher],
        reads_of((compared, ledger.EVALUATION)),
    )


def _agreement(student: Artifact, teacher: Artifact, images) -> dict | None:
    """The probes' agreement by class; None without probes, and where a class has too few images for an interval."""
    models = [load_trained(student), load_trained(teacher)]
    fewest = torch.bincount(images.labels, minlength=images.num_classes).min()
    if fewest < 2 or not all(map(has_probe, models)):
        return None
    found = probe_agreement(*models, in_batches(images.images, images.labels), images.num_classes)
    return {
        "classes": list(images.classes),
        "cosine": found.mean[0].tolist(),
        "half": found.half[0].tolist(),
        "count": found.count.tolist(),
    }


def find(store: Store, cell: Cell, step: Callable | None = None) -> Artifact | None:
    """The cell's artifact if all of it has been made before, else None; trains nothing."""
    try:
        with only_finding():
            return run_cell(store, cell, step)
    except NotMade:
        return None


def run(
    cells: Sequence[Cell],
    store: Store,
    jobs: int = 0,
    say: Callable[[str], None] = print,
    scheduler: str | None = None,
    step: Callable | None = None,
) -> list[Outcome]:
    """Run the cells that are missing, several at a time; one that fails or diverges does not stop the others.

    A broken-off run is simply started again: finished cells are found, the others go on from their last epoch. So does a
    cell whose process is lost.

    Args:
        jobs: cells at a time, each in a process with its share of this machine's threads; 0: one for each thread, as far as
            memory goes, on a CPU; 1 (in this process) on an accelerator.
        scheduler: address of a running Dask cluster that takes the cells instead; its workers see the store's folder.
        step: a training step in place of the library's, see `distill.train`; other processes get it by `core.as_sent`.

    Returns:
        One Outcome a cell, in order.

    Raises:
        WorkbenchError: if jobs is negative, no cluster answers at `scheduler`, the store's disk takes no more, or not one
            cell can be run; before anything is trained, if the step cannot go to other processes, or the library is
            another there than in this one (a notebook has changed a loss or a student).
    """
    if jobs < 0:
        raise WorkbenchError(
            "an impossible number of processes",
            expected="0 (as many as cores) or more",
            got=jobs,
            where="jobs",
            fix="jobs=0",
        )
    outcomes = _found(cells, store, step)
    missing = {f"cell-{place}": place for place in range(len(cells)) if place not in outcomes}
    if missing:
        found = sum(outcome.cached for outcome in outcomes.values())
        say(f"{len(cells)} cells, {found} found, {len(missing)} to run")
        jobs = jobs or most_processes()
        # The threads follow from what was asked, not from how many cells are missing: they decide the last bits.
        threads = (
            None if scheduler else max(1, min(torch.get_num_threads(), processes.cores()) // jobs)
        )
        named = {name: cells[place] for name, place in missing.items()}
        with opened_queue(min(jobs, len(missing)), scheduler, note=say) as queue:
            _fill(queue, store, named, threads, step)
            for name, outcome in _outcomes(queue, store, named, say):
                outcomes[missing[name]] = outcome
    if outcomes and not any(outcome.artifact for outcome in outcomes.values()):
        raise WorkbenchError(
            "none of the students could be trained",
            got=outcomes[0].error,
            where=store.root,
            fix="see what happened to the first; what is finished is kept",
        )
    return [outcomes[place] for place in range(len(cells))]


def _fill(
    queue: Queue, store: Store, cells: dict[str, Cell], threads: int | None, step: Callable | None
) -> None:
    """Queue these cells by name, and before them, where several may run at a time, what they share."""
    root, before, own = str(store.root), [], None
    if not queue.cluster.alone:
        step, own = None, None if step is None else core.as_sent(step)
        sent = [as_sent(cell, own) for cell in cells.values()]
        queue.add(Job(SHARED, prepare, (root, sent), threads=threads))
        before = [SHARED]  # if it fails, each cell reports what it lacks
    for name, cell in cells.items():
        queue.add(Job(name, work, (root, as_sent(cell, own), step), after=before, threads=threads))


def _outcomes(
    queue: Queue, store: Store, cells: dict[str, Cell], say: Callable[[str], None]
) -> Iterator[tuple[str, Outcome]]:
    """What comes of these cells as they end, each with a line on how it did."""
    start, patience, done = time.perf_counter(), DISK_SECONDS, 0
    for job, answer in queue:
        if job.name not in cells:
            if isinstance(answer, OtherCode):  # of all of them, and nothing is trained yet
                raise answer
            continue
        cell, done = cells[job.name], done + 1
        if isinstance(answer, BaseException):
            answer = None, LOST if isinstance(answer, WorkerLost) else describe(answer)
        key, error = answer
        made = _appearing(store, key, patience) if key else None
        if key and made is None:
            patience = 0  # nor will the others
            error = f"its worker has made {key}, but not in this {store.root}: give a folder that all machines share"
        if is_full(error):  # the students are not to blame
            raise WorkbenchError(
                "a student cannot be written to disk, and no other could",
                got=error,
                where=store.root,
                fix="free room on that disk, or choose another; then run it again: what is finished is kept",
            )
        left = (time.perf_counter() - start) / done * (len(cells) - done)
        result = f"{100 * made.metrics['accuracy']:.2f} %" if made else error.split("\n")[0]
        say(f"{done}/{len(cells)} {cell.name}, seed {cell.seed}: {result} | {left:.0f} s left")
        yield job.name, Outcome(cell, made, error, False)


def _appearing(store: Store, key: str, seconds: float) -> Artifact | None:
    """What another machine has just made: a network disk may deny it for a while, having been asked before it was there."""
    until = time.monotonic() + seconds
    while (made := store.find(key)) is None and time.monotonic() < until:
        time.sleep(0.5)
        os.listdir(store.root)  # has the disk read anew
    return made


def _found(cells: Sequence[Cell], store: Store, step: Callable | None = None) -> dict[int, Outcome]:
    """What is known without training: by place, the cells that have been made, and those that are impossible."""
    outcomes: dict[int, Outcome] = {}
    for place, cell in enumerate(cells):
        try:
            if made := find(store, cell, step):
                outcomes[place] = Outcome(cell, made, "", True)
        except Exception as error:  # one impossible row must not stop the others
            outcomes[place] = Outcome(cell, None, describe(error), False)
    return outcomes


def describe(error: BaseException) -> str:
    """An error of a cell as text; a divergence begins so."""
    if isinstance(error, WorkbenchError):
        return f"diverged: {error}" if isinstance(error, DivergedError) else str(error)
    return f"{type(error).__name__}: {error}"


def most_processes() -> int:
    """Cells at a time by default: one for each CUDA device, one on other accelerators, or one for each thread of a CPU."""
    most, kind = jobs.most_processes(), training.device().type
    if kind == "cuda":
        return most
    return max(1, min(torch.get_num_threads(), most)) if kind == "cpu" else 1


def tasks(names: Mapping[str, object]) -> dict[str, Callable[[], object]]:
    """The cells of notebook 35's grid as `distill.tasks` gives what other notebooks train."""
    return {
        f"{cell.name}, seed {cell.seed}": partial(run_cell, names["store"], cell)
        for cell in names["cells"]
    }


# -- in the process that trains --------------------------------------------------------------------------------------


def as_sent(cell: Cell, step: dict | None = None) -> dict:
    """A cell as another process takes it, with the identity of the code that is to train it.

    Args:
        step: in place of the library's, as `core.as_sent` gives it.
    """
    return {**asdict(cell), "code": _code(cell.settings), "step": step}


def _code(settings: dict) -> str:
    builder = MODELS.get(settings.get("student.model", DEFAULTS["student.model"]))
    return fingerprint(run_cell, Study, builder).digest


def _received(sent: dict, from_disk: bool = False) -> tuple[Cell, Callable | None]:
    """The cell and step that `as_sent` was given; OtherCode if this process would train it by other code."""
    if sent["code"] != _code(sent["settings"]):
        raise OtherCode(
            "this cell was asked for by a process with other code than the one that would train it",
            expected="the library as its files say: other processes know neither losses and students that a notebook "
            "has changed nor what has changed since they were started",
            where=f"{sent['name']}, seed {sent['seed']}",
            fix="give a step of your own as step=, or jobs=1; after a change of the library restart the kernel and workers",
        )
    own = sent["step"]
    return Cell.of(sent), None if own is None else core.received(own, from_disk)


def prepare(tell: jobs.Tell, needs: jobs.Needs, root: str, cells: list[dict]) -> None:
    """A job: make once what the cells of a store share, teachers and images; else the first would wait for each other."""
    store = Store(root)
    with jobs.alone_in_process(needs.threads):
        for cell, step in [_received(sent) for sent in cells]:
            with suppress(Exception):  # its own job will report it
                if find(store, cell, step) is None:
                    cell.study(store).prepare(cell.source)


def work(
    tell: jobs.Tell,
    needs: jobs.Needs,
    root: str,
    sent: dict,
    step: Callable | None = None,
    from_disk: bool = False,
) -> tuple[str | None, str]:
    """A job: run one cell of a store; its key, or None and what happened.

    Args:
        step: in place of the library's, where this is the process that was given it.
        from_disk: whether the cell was kept there; then a step of it must be `core.signed`.
    """
    try:
        with jobs.alone_in_process(needs.threads):
            cell, own = _received(sent, from_disk)
            return run_cell(Store(root), cell, step if own is None else own).key, ""
    except Exception as error:  # as text, which survives the way back
        return None, describe(error)


def saved_jobs(store: Store) -> SavedJobs:
    """The queue of a store on disk; its cells, as `as_sent` gives them, are trained in a process of its own."""
    return SavedJobs(store.root / ".jobs", ["-m", "dfkd_lib.ablation", str(store.root)])
