"""One training over several processes: which of them this is, what they agree on, and what they add up.

`accelerate launch` and torchrun say how many processes there are in the variable WORLD_SIZE. With one of them, as nearly
always, nothing here does anything, and neither torch.distributed nor Accelerate is touched.

Tensors go by Accelerate's own process group (NCCL between GPUs, gloo between CPUs). Messages between processes, and waiting
for one another, go by a second group over the CPU: neither ever waits for a device, nor meets a gradient half way.
"""

import atexit
import os
from collections.abc import Callable
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

from dfkd_lib.core.errors import WorkbenchError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
LONGEST = timedelta(days=2)  # that one waits for others: another run may be making the same thing
PATIENCE = timedelta(seconds=30)  # of a process that failed, for the others to come to one place
_parted = ""  # why this process can no longer follow the others
_splitting = False  # whether each process works on a part of one batch now


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count() -> int:
    """The number of processes of this run, 1 unless a launcher started several."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK") or 0) if count() > 1 else 0


def is_main() -> bool:
    """Whether this process is the one that prints, writes and measures."""
    return rank() == 0


@lru_cache(maxsize=1)
def state():
    """Accelerate's state of this process, which holds its device; starts the process groups if there are several."""
    import torch
    from accelerate import PartialState

    # Left to itself, where there is no GPU Accelerate takes each of torchrun's processes for the only one, and only its
    # bigger class listens to its own variable.
    forced = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    found = PartialState(cpu=forced or count() > 1 and not torch.accelerator.device_count())
    if found.num_processes != count():
        raise WorkbenchError(
            "the processes of this run did not find each other",
            expected=f"{count()} processes",
            got=found.num_processes,
            where="WORLD_SIZE",
            fix="start with accelerate launch --multi_gpu --num_processes N (without GPUs too) or torchrun "
            "--nproc-per-node N",
        )
    if count() > 1:
        atexit.register(found.destroy_process_group)
    return found


@lru_cache(maxsize=1)
def _messages():
    """The group for messages, a gloo one whatever the device."""
    import torch.distributed as dist

    state()
    return dist.new_group(backend="gloo", timeout=LONGEST)


def _distributed():
    """torch.distributed, its groups at work; WorkbenchError in a process that has left the others."""
    import torch.distributed as dist

    if _parted:
        raise WorkbenchError(
            "this process has left the others and cannot go on",
            got=_parted,
            fix="fix that error and start again; finished epochs are kept",
        )
    state()
    return dist


def from_main(make: Callable[[], T]) -> T:
    """What `make` gives in the main process, in all of them; only the main one calls it. An error is raised in all.

    What it gives must be of plain types, or an error class that can be sent.
    """
    if count() == 1:
        return make()
    dist = _distributed()
    answer: list = [None, None]
    failed: Exception | None = None
    if is_main():
        try:
            answer[0] = make()
        except WorkbenchError as error:
            failed = answer[1] = error
        except Exception as error:  # of other libraries: may not survive the way, its text does
            failed, text = error, f"{type(error).__name__}: {error}"[:1000]
            answer[1] = WorkbenchError("the main process failed", got=text)
    dist.broadcast_object_list(answer, 0, _messages())
    if failed or answer[1]:
        raise failed or answer[1]
    return answer[0]


@contextmanager
def together(what: str):
    """All processes do the body; if it fails in any of them, it raises in all.

    One that failed waits a while for the others to come here. If they do not, they wait for it inside the body: then it can
    only end, whereupon the launcher ends the others.

    Raises:
        WorkbenchError: in a process that succeeded where another failed. What the body raises, where it does.
    """
    if count() == 1:
        yield
        return
    _distributed()
    try:
        yield
    except Exception as error:
        _answers(f"process {rank()}: {type(error).__name__}: {error}"[:1000], PATIENCE)
        raise
    failed = [answer for answer in _answers("", LONGEST) or [] if answer]
    if failed:
        raise WorkbenchError(f"{what}: another process failed", got=failed[0], fix="see its error")


def _answers(own: str, patience: timedelta) -> list[str] | None:
    """What all processes answer here, "" for well; None if they do not come in time, after which none may be asked again."""
    global _parted
    import torch.distributed as dist

    answers: list = [None] * count()
    try:
        dist.monitored_barrier(_messages(), patience)
        dist.all_gather_object(answers, own, _messages())
        return answers
    except RuntimeError as error:
        _parted = own or str(error)
        if own:
            return None
        raise WorkbenchError(
            "another process of this run is gone", got=str(error)[:300], fix="see its error"
        ) from None


def total(tensor: "Tensor") -> "Tensor":
    """The sum of a tensor over all processes, in place: every process must come here with one of the same shape."""
    if count() > 1:
        _distributed().all_reduce(tensor)
    return tensor


@contextmanager
def splitting():
    """Inside, each process works on its own rows of one batch, so that `shared_count` and `gathered` speak of all of it."""
    global _splitting
    _splitting = count() > 1
    try:
        yield
    finally:
        _splitting = False


def shared_count(number: "Tensor | float", like: "Tensor | None" = None) -> "Tensor | float":
    """How many things of a batch a loss is the mean over, as each process is to divide by: at least one in all.

    A loss over things that images have unequally many of (boxes) must be divided by their number in the whole batch, or
    several processes would minimise something else than one. Divided by the mean of the counts over processes, the mean
    of the processes' losses and gradients is that of the whole batch.

    Args:
        number: of this process's rows, a tensor of any shape without gradient, or a plain number. like: a tensor on the
            device, where `number` is a plain one.
    """
    import torch

    if not _splitting:
        return number.clamp(min=1) if isinstance(number, torch.Tensor) else max(number, 1)
    own = torch.as_tensor(number, device=None if like is None else like.device).detach()
    mean = total(own.float().clone()) / count()
    return mean.clamp(min=1 / count())


def gathered(rows: "Tensor") -> "Tensor":
    """The rows (B / P, ...) of all P processes in their order: (B, ...); without gradient."""
    if not _splitting:
        return rows
    import torch

    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(count())]
    _distributed().all_gather(parts, rows.detach().contiguous())
    return torch.cat(parts)


def send_from_main(tensors) -> None:
    """Give every process the main one's values of these tensors, in place."""
    if count() > 1:
        dist = _distributed()
        for tensor in tensors:
            dist.broadcast(tensor, 0)
