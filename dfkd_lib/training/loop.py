"""The one training loop: any step function of named losses, checkpointed, resumable bit for bit, watched for bad numbers.

Under `accelerate launch` or torchrun all processes call `fit` alike. config.batch_size stays that of all together: each
takes its rows of the same batch, gradients are averaged, batch norms see the whole batch, and the main process alone
measures, prints and saves; weights and history are equal in all, and those of one process but for rounding. Chance inside a
step (dropout, noise) is another in each process. So is what a loss makes of images in pairs (diversity, intra-divergence,
statistics of a batch): it sees the rows of its own process. Losses over boxes are normalised over the whole batch, see
`processes.shared_count`.
"""

import inspect
import re
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dfkd_lib.attention import compiled_parts
from dfkd_lib.core import WorkbenchError, memory, processes
from dfkd_lib.training import parallel
from dfkd_lib.training.checkpoint import Checkpoint
from dfkd_lib.training.config import (
    DivergedError,
    TrainConfig,
    arithmetic,
    device,
    learning_rate,
    make_optimizer,
)
from dfkd_lib.training.progress import Progress, Totals

NO_COMPILER = re.compile(
    r"InvalidCxxCompiler|No working C\+\+ compiler|CppCompileError|TritonMissing|working triton"
)
# Between the seeds of processes: more than trainings have epochs, and seeds.
PROCESS_SEEDS = 1_000_000_007
CHECK_EVERY = 20  # steps between looks at the losses: a look waits for the device


class Batches(Protocol):
    """What `fit` trains on: `len()` is the steps an epoch.

    A call with the epoch and its random generator yields batches: tensors in tuples, lists, dicts or named tuples.
    """

    def __len__(self) -> int: ...

    def __call__(self, epoch: int, generator: torch.Generator) -> Iterator[Any]: ...


class TensorBatches:
    """Batches of tensors held in memory, in an order given by the loop's generator.

    Args:
        tensors: tensors with the same first dimension N.
        batch_size: rows a batch; the last, smaller one is dropped unless it is the only one.
        transform: (batch tuple, generator) -> batch tuple, applied to each batch.
    """

    def __init__(
        self, tensors: tuple[Tensor, ...], batch_size: int, transform: Callable | None = None
    ):
        lengths = {len(t) for t in tensors}
        if len(lengths) != 1 or 0 in lengths:
            raise WorkbenchError(
                "batches need tensors of one, positive length",
                got=[len(t) for t in tensors],
                fix="give as many labels as images, and at least one of each",
            )
        self.tensors, self.transform = tensors, transform
        self.batch_size = min(batch_size, len(tensors[0]))

    def __len__(self) -> int:
        return len(self.tensors[0]) // self.batch_size

    def to(self, target: torch.device) -> None:
        """Keep the tensors on that device, so that no step waits for a copy; on the host if they would fill half of it."""
        if target.type == "cuda":
            size = sum(t.numel() * t.element_size() for t in self.tensors)
            if size > torch.cuda.mem_get_info(target)[0] / 2:
                return
        self.tensors = tuple(t.to(target) for t in self.tensors)

    def __call__(self, epoch: int, generator: torch.Generator) -> Iterator[tuple[Tensor, ...]]:
        order = torch.randperm(len(self.tensors[0]), generator=generator)
        # Once an epoch, not at every step, which would wait for the one before.
        order = order.to(self.tensors[0].device)
        for rows in order[: len(self) * self.batch_size].split(self.batch_size):
            batch = tuple(t[rows] for t in self.tensors)
            yield self.transform(batch, generator) if self.transform else batch


def fit(
    modules: dict[str, nn.Module],
    step: Callable,
    batches: Batches,
    config: TrainConfig,
    optimizers: dict[str, list[str]] | None = None,
    evaluate: Callable[[int], dict] | None = None,
    checkpoint: str | Path | None = None,
    label: str = "training",
    split: bool = True,
    renewed: Collection[str] = (),
) -> list[dict]:
    """Train `modules` in place by a step function and return the history, one dict an epoch.

    Args:
        modules: what is trained, saved and resumed, by name. Frozen networks stay out.
        step: `step(batch, progress)` with progress in [0, 1) -> {"loss": total to minimise, other: logged}; or a
            generator function that yields (optimizer name, such a dict) for each update of several optimizers.
        batches: of tensors, which are moved to the device.
        optimizers: {optimizer name: names in modules}; one optimizer, "main", over all of them by default.
        evaluate: called with the epoch (from 1) after each, modules in eval mode, no gradients; its dict of floats
            joins the history.
        checkpoint: folder to resume from and save to after each epoch.
        split: False: every process does all of every batch (where the images themselves are what is trained).
        renewed: optimizers that begin every epoch anew, without moments, because what they train does.

    Returns:
        [{"epoch", "lr", "seconds", "images_per_second", mean of each loss, what evaluate gave}].

    Raises:
        DivergedError: on a loss that is not finite.
        WorkbenchError: if memory runs out, a checkpoint is damaged, or the processes do not divide a batch or have
            gradients of different parameters.
    """
    split = split and processes.count() > 1
    if split:
        parallel.check_batch_size(config.batch_size, label)
    run = _Run(modules, step, batches, config, optimizers, label, split, renewed)
    saved = Checkpoint(checkpoint, modules, run.optimizers)
    history = _agreed(saved.load(), saved.file)
    if split:
        parallel.send_modules(modules.values())
    progress = Progress(label, config.epochs, len(batches), history)
    try:
        with torch.random.fork_rng(), saved.same_threads():
            run.epochs(history, progress, evaluate, saved)
    except (RuntimeError, MemoryError) as error:
        explained = _explained(error, config, label, len(history))
        if explained is error:
            raise
        raise explained from error
    finally:
        saved.finish()
        progress.close()
        for module in modules.values():
            module.eval()
    return history


def _explained(error: Exception, config: TrainConfig, label: str, done: int) -> Exception:
    """The error as one that a user can fix, where it is of such a kind; else itself."""
    text, got = str(error), f"{type(error).__name__}: {error}".split("\n")[0][:300]
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or memory.RAN_OUT.search(text):
        return WorkbenchError(
            "memory ran out in training",
            got=got,
            where=label,
            fix=f"lower batch_size (now {config.batch_size}) or the model's size; finished epochs are "
            f"kept and resumed ({done} of {config.epochs})",
        )
    if config.compile and NO_COMPILER.search(f"{type(error).__name__}: {text}"):
        return WorkbenchError(
            "torch.compile finds no compiler that works",
            got=got,
            where=label,
            expected="g++ or clang (the variable CXX names another); for GPUs Triton too",
            fix="install one, or train without compiling",
        )
    return error


def _agreed(history: list[dict], file: Path | None) -> list[dict]:
    """The history, which must be the main process's."""
    if processes.from_main(lambda: len(history)) != len(history):
        raise WorkbenchError(
            "this process does not see the checkpoint of the main one",
            got=f"{len(history)} epochs",
            where=file,
            fix="let all processes see one folder, or give no checkpoint",
        )
    return history


class _Run:
    """What an epoch needs, together."""

    def __init__(
        self,
        modules: dict[str, nn.Module],
        step: Callable,
        batches: Batches,
        config: TrainConfig,
        optimizers: dict[str, list[str]] | None,
        label: str,
        split: bool,
        renewed: Collection[str],
    ):
        self.renewed = renewed
        self.modules, self.step, self.batches, self.config = modules, step, batches, config
        self.label, self.split, self.device = label, split, device()
        if isinstance(batches, TensorBatches):
            batches.to(self.device)
        for module in modules.values():
            module.to(self.device)
        optimizers = optimizers or {"main": list(modules)}
        self.optimizers = {
            name: make_optimizer([modules[m] for m in names], config)
            for name, names in optimizers.items()
        }
        self.several = inspect.isgeneratorfunction(step)
        compiled = config.compile
        self.norms = parallel.common_norms(modules.values(), compiled) if split else nullcontext()
        self.unequal = torch.zeros((), dtype=torch.bool, device=self.device)
        self.calls: dict[nn.Module, Callable | None] = {}
        for part in [p for m in modules.values() for p in compiled_parts(m)] if compiled else ():
            part.compile(dynamic=False)  # every batch has one shape
            self.calls[part], part._compiled_call_impl = part._compiled_call_impl, None

    @contextmanager
    def compiled(self) -> Iterator[None]:
        """Inside, the modules are compiled; what measures or looks into a network wants it as it was."""
        for part, call in self.calls.items():
            part._compiled_call_impl = call
        try:
            yield
        finally:
            for part in self.calls:
                part._compiled_call_impl = None

    def epochs(
        self, history: list[dict], progress: Progress, evaluate: Callable | None, saved: Checkpoint
    ) -> None:
        """The epochs that the history lacks: each trained by all, then measured and saved by the main process."""
        for epoch in range(len(history), self.config.epochs):
            with self.compiled():
                row = self.epoch(epoch, progress)

            def ended(epoch: int = epoch, row: dict = row) -> dict:
                self.check_weights(epoch)
                if evaluate:
                    for module in self.modules.values():
                        module.eval()
                    with torch.no_grad():
                        row |= {name: float(value) for name, value in evaluate(epoch + 1).items()}
                memory.check(self.label)
                at_once = self.device.type == "cpu" or epoch == self.config.epochs - 1
                saved.save([*history, row], at_once)
                return row

            history.append(processes.from_main(ended))
            progress.epoch(history[-1])

    def epoch(self, epoch: int, progress: Progress) -> dict:
        """One pass over the batches: a row of the history."""
        from accelerate.utils import find_batch_size, send_to_device

        # Seeding by (seed, epoch), not by carrying generator states, is what makes a resumed run equal to an unbroken one.
        seed = self.config.seed * 100_003 + epoch
        torch.manual_seed(seed + (processes.rank() * PROCESS_SEEDS if self.split else 0))
        generator = torch.Generator().manual_seed(seed)
        for name in self.renewed:
            self.optimizers[name].state.clear()
        for module in self.modules.values():
            module.train()
        totals, steps, images = Totals(), len(self.batches), 0
        start, lr = time.perf_counter(), self.config.lr
        for index, batch in enumerate(self.batches(epoch, generator)):
            lr = self.set_lr(epoch + index / steps)
            images += find_batch_size(batch)
            batch = parallel.own_rows(batch, self.label) if self.split else batch
            batch = send_to_device(batch, self.device, non_blocking=True)
            self.take_step(batch, (epoch + index / steps) / self.config.epochs, totals)
            if index % CHECK_EVERY == CHECK_EVERY - 1 or index == steps - 1:
                self.check(totals, epoch, index)
            progress.step(totals)
        if self.split:
            totals.share()
        memory.check(self.label)
        seconds = time.perf_counter() - start
        speed = {"seconds": round(seconds, 3), "images_per_second": round(images / seconds, 1)}
        return {"epoch": epoch + 1, "lr": lr, **speed, **totals.means()}

    def set_lr(self, epoch: float) -> float:
        """Set the learning rate after so many epochs, and return it."""
        lr = learning_rate(self.config, epoch)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = lr
        return lr

    def take_step(self, batch: Any, progress: float, totals: Totals) -> None:
        """Every update of a batch."""
        one = (("main", self.step(batch, progress)) for _ in range(1))
        updates = self.step(batch, progress) if self.several else one
        while True:
            with self.inside():
                update = next(updates, None)
            if update is None:
                return
            name, losses = update
            self.update(name, losses, totals)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """What a step's forward passes run in."""
        splitting = processes.splitting() if self.split else nullcontext()
        with arithmetic(self.config.precision), self.norms, splitting:
            yield

    def update(self, name: str, losses: dict[str, Tensor], totals: Totals) -> None:
        """One step of an optimizer."""
        optimizer = self.optimizers[name]
        optimizer.zero_grad()
        losses["loss"].backward()
        groups = (group["params"] for group in optimizer.param_groups)
        parameters = [p for group in groups for p in group if p.requires_grad]
        if self.split:
            self.unequal |= parallel.average_gradients(parameters)
        if self.config.grad_clip:
            held = [p for p in parameters if p.grad is not None]
            nn.utils.clip_grad_norm_(held, self.config.grad_clip)
        optimizer.step()
        loss = f"{name}_loss" if self.several else "loss"
        totals.add({loss if key == "loss" else key: value for key, value in losses.items()})

    def check_weights(self, epoch: int) -> None:
        """Raise if weights went bad, so that neither a checkpoint nor a result is ever made of them."""
        for module_name, module in self.modules.items():
            for name, value in module.state_dict().items():
                if value.is_floating_point() and not torch.isfinite(value).all():
                    what, where = "weights are no longer finite numbers", f"after epoch {epoch + 1}"
                    self.diverged(what, f"{module_name}.{name}", where)

    def check(self, totals: Totals, epoch: int, index: int) -> None:
        """Raise if a loss went bad, or processes have gradients of different parameters."""
        # The same in all: each has seen every process's counts.
        if self.split and bool(self.unequal):
            raise WorkbenchError(
                "processes have gradients of different parameters",
                where=self.label,
                fix="let the step use the same parameters whatever the rows of a batch",
            )
        bad = totals.bad(self.split)
        if bad:
            where = f"epoch {epoch + 1}, by step {index + 1} of {len(self.batches)}"
            self.diverged("a loss is no longer a finite number", ", ".join(bad), where)

    def diverged(self, what: str, got: str, where: str) -> None:
        """Raise the error of a training that went bad."""
        raise DivergedError(
            f"{self.label}: {what}",
            got=got,
            where=where,
            fix=f"lower the learning rate (now {self.config.lr}) or set grad_clip; check the images for NaN; the last "
            "good epoch is kept",
        )
