"""The one training loop: any step function of named losses, checkpointed, resumable bit for bit, watched for bad numbers."""

import inspect
import re
import time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dfkd_lib.core import WorkbenchError, memory, processes
from dfkd_lib.training import parallel
from dfkd_lib.training.batches import TensorBatches
from dfkd_lib.training.checkpoint import Checkpoint
from dfkd_lib.training.config import (
    DivergedError,
    TrainConfig,
    device,
    learning_rate,
    make_optimizer,
)
from dfkd_lib.training.progress import Progress, Totals

NO_COMPILER = re.compile(
    r"InvalidCxxCompiler|No working C\+\+ compiler|CppCompileError|TritonMissing|working triton"
)
PROCESS_SEEDS = (
    1_000_000_007  # between the seeds of processes: more than trainings have epochs, and seeds
)
CHECK_EVERY = 20  # steps between looks at the losses: a look waits for the device


def fit(
    modules: dict[str, nn.Module],
    step: Callable,
    batches,
    config: TrainConfig,
    optimizers: dict[str, list[str]] | None = None,
    evaluate: Callable[[int], dict] | None = None,
    checkpoint: str | Path | None = None,
    label: str = "training",
    split: bool = True,
) -> list[dict]:
    """Train `modules` in place by a step function and return the history, one dict an epoch.

    Under `accelerate launch` or torchrun all processes call this alike. config.batch_size stays that of all together:
    each takes its rows of the same batch, gradients are averaged, batch norms see the whole batch, and the main process
    alone measures, prints and saves; weights and history are equal in all, and those of one process but for rounding. Chance
    inside a step (dropout, noise) is another in each process. So is what a loss makes of images in pairs (diversity,
    intra-divergence, statistics of a batch): it sees the rows of its own process. Losses over boxes are normalised
    over the whole batch, see `processes.shared_count`.

    Args:
        modules: what is trained, saved and resumed, by name. Frozen networks stay out.
        step: `step(batch, progress)` with progress in [0, 1) -> {"loss": total to minimise, other: logged}; or a
            generator function that yields (optimizer name, such a dict) for each update of several optimizers.
        batches: `len()` is the steps an epoch; called with (epoch, generator) it yields batches (tensors in tuples,
            lists, dicts or named tuples, which are moved to the device).
        optimizers: {optimizer name: names in modules}; one optimizer, "main", over all of them by default.
        evaluate: called with the epoch (from 1) after each, modules in eval mode, no gradients; its dict of floats
            joins the history. checkpoint: folder to resume from and save to after each epoch.
        split: False: every process does all of every batch (where the images themselves are what is trained).

    Returns:
        [{"epoch", "lr", "seconds", "images_per_second", mean of each loss, what evaluate gave}].

    Raises:
        DivergedError: on a loss that is not finite. WorkbenchError: if memory runs out, a checkpoint is damaged, or the
            processes do not divide a batch or have gradients of different parameters.
    """
    where, split = device(), split and processes.count() > 1
    if split:
        parallel.check_batch_size(config.batch_size, label)
    if isinstance(batches, TensorBatches):
        batches.to(where)
    for module in modules.values():
        module.to(where)
    made = {
        name: make_optimizer([modules[m] for m in names], config)
        for name, names in (optimizers or {"main": list(modules)}).items()
    }
    saved = Checkpoint(checkpoint, modules, made)
    history = _agreed(saved.load(), saved.file)
    if split:
        parallel.send_modules(modules.values())
    progress = Progress(label, config.epochs, len(batches), history)
    run = _Run(where, modules, step, batches, config, made, progress, label, split)
    try:
        with torch.random.fork_rng(), saved.same_threads():
            run.epochs(history, evaluate, saved)
    except (RuntimeError, MemoryError) as error:
        explained = _explained(error, config, label, len(history))
        if explained is error:
            raise
        raise explained from error
    finally:
        progress.close()
        run.uncompile()
        for module in modules.values():
            module.eval()
    return history


def _explained(error: Exception, config: TrainConfig, label: str, done: int) -> Exception:
    """The error as one that a user can fix, where it is of such a kind; else itself."""
    said = f"{type(error).__name__}: {error}"
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or memory.RAN_OUT.search(
        str(error)
    ):
        return WorkbenchError(
            "memory ran out in training",
            got=str(error).split("\n")[0][:300],
            where=label,
            fix=f"lower batch_size (now {config.batch_size}) or the model's size; finished epochs are "
            f"kept and resumed ({done} of {config.epochs})",
        )
    if config.compile and NO_COMPILER.search(said):
        return WorkbenchError(
            "torch.compile finds no compiler that works",
            got=said.split("\n")[0][:300],
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


def _evaluated(modules: dict, evaluate: Callable | None, epoch: int) -> dict:
    if evaluate is None:
        return {}
    for module in modules.values():
        module.eval()
    with torch.no_grad():
        return {name: float(value) for name, value in evaluate(epoch).items()}


@dataclass
class _Run:
    """What an epoch needs, together."""

    device: torch.device
    modules: dict
    step: Callable
    batches: object
    config: TrainConfig
    optimizers: dict
    progress: Progress
    label: str
    split: bool

    def __post_init__(self):
        self.many = inspect.isgeneratorfunction(self.step)
        self.norms = (
            parallel.common_norms(self.modules.values(), self.config.compile)
            if self.split
            else nullcontext()
        )
        self.unequal = torch.zeros((), dtype=torch.bool, device=self.device)
        if self.config.compile:
            for module in self.modules.values():
                module.compile()

    def epochs(self, history: list[dict], evaluate: Callable | None, saved: Checkpoint) -> None:
        """The epochs that the history lacks: each trained by all, then measured and saved by the main process."""
        for epoch in range(len(history), self.config.epochs):
            row = self.epoch(epoch)

            def ended(epoch: int = epoch, row: dict = row) -> dict:
                self.check_weights(epoch)
                done = row | _evaluated(self.modules, evaluate, epoch + 1)
                memory.check(self.label)
                saved.save([*history, done])
                return done

            history.append(processes.from_main(ended))
            self.progress.epoch(history[-1])

    def uncompile(self) -> None:
        """What looks into a finished model (attention, export) wants it as it was written."""
        for module in self.modules.values() if self.config.compile else ():
            module._compiled_call_impl = None

    def epoch(self, epoch: int) -> dict:
        from accelerate.utils import send_to_device

        # Seeding by (seed, epoch), not by carrying generator states, is what makes a resumed run equal to an unbroken one.
        seed = self.config.seed * 100_003 + epoch
        torch.manual_seed(seed + (processes.rank() * PROCESS_SEEDS if self.split else 0))
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules.values():
            module.train()
        totals, steps, images, start, lr = (
            Totals(),
            len(self.batches),
            0,
            time.perf_counter(),
            self.config.lr,
        )
        for index, batch in enumerate(self.batches(epoch, generator)):
            lr = self._set_lr(epoch + index / steps)
            images += _rows(batch)
            batch = parallel.own_rows(batch, self.label) if self.split else batch
            batch = send_to_device(batch, self.device, non_blocking=True)
            self._step(batch, (epoch + index / steps) / self.config.epochs, totals)
            if index % CHECK_EVERY == CHECK_EVERY - 1 or index == steps - 1:
                self._check(totals, epoch, index)
            self.progress.step(totals)
        if self.split:
            totals.share()
        memory.check(self.label)
        seconds = time.perf_counter() - start
        return {
            "epoch": epoch + 1,
            "lr": lr,
            "seconds": round(seconds, 3),
            "images_per_second": round(images / seconds, 1),
            **totals.means(),
        }

    def _set_lr(self, epoch: float) -> float:
        lr = learning_rate(self.config, epoch)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = lr
        return lr

    def _step(self, batch, progress: float, totals: Totals) -> None:
        autocast = torch.autocast(self.device.type, torch.bfloat16, self.config.precision == "bf16")
        if not self.many:
            with self._inside(autocast):
                losses = self.step(batch, progress)
            self._update("main", losses, totals)
            return
        updates = self.step(batch, progress)
        while True:
            with self._inside(autocast):
                name, losses = next(updates, (None, None))
            if name is None:
                return
            self._update(name, losses, totals)

    @contextmanager
    def _inside(self, autocast):
        with autocast, self.norms, processes.splitting() if self.split else nullcontext():
            yield

    def _update(self, name: str, losses: dict, totals: Totals) -> None:
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        parameters = [
            p for group in optimizer.param_groups for p in group["params"] if p.requires_grad
        ]
        if self.split:
            self.unequal |= parallel.average_gradients(parameters)
        if self.config.grad_clip:
            nn.utils.clip_grad_norm_(
                [p for p in parameters if p.grad is not None], self.config.grad_clip
            )
        optimizer.step()
        prefix = "" if not self.many else f"{name}_"
        totals.add({k if k != "loss" else f"{prefix}loss": v for k, v in losses.items()})

    def check_weights(self, epoch: int) -> None:
        """Raise if weights went bad, so that neither a checkpoint nor a result is ever made of them."""
        for module_name, module in self.modules.items():
            for name, value in module.state_dict().items():
                if value.is_floating_point() and not torch.isfinite(value).all():
                    raise DivergedError(
                        f"{self.label}: weights are no longer finite numbers",
                        got=f"{module_name}.{name}",
                        where=f"after epoch {epoch + 1}",
                        fix="lower the learning rate (now "
                        f"{self.config.lr}) or set grad_clip; the last good epoch is kept",
                    )

    def _check(self, totals: Totals, epoch: int, index: int) -> None:
        if self.split and bool(
            self.unequal
        ):  # the same in all: each has seen every process's counts
            raise WorkbenchError(
                "processes have gradients of different parameters",
                where=self.label,
                fix="let the step use the same parameters whatever the rows of a batch",
            )
        bad = totals.bad(self.split)
        if bad:
            raise DivergedError(
                f"{self.label}: a loss is no longer a finite number",
                got=", ".join(bad),
                where=f"epoch {epoch + 1}, by step {index + 1} of {len(self.batches)}",
                fix=f"lower the learning rate (now {self.config.lr}) or set grad_clip; check the "
                "images for NaN; the last good epoch is kept",
            )


def _rows(batch) -> int:
    """The number of rows of a batch's first tensor."""
    if isinstance(batch, dict):
        batch = tuple(batch.values())
    if isinstance(batch, (tuple, list)):
        return _rows(batch[0]) if batch else 0
    return len(batch) if isinstance(batch, Tensor) else 1
