"""The one training loop: any step function of named losses, checkpointed, resumable bit for bit, watched for bad numbers."""

import inspect
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dfkd_lib.errors import WorkbenchError
from dfkd_lib.training.batches import TensorBatches
from dfkd_lib.training.checkpoint import Checkpoint
from dfkd_lib.training.config import DivergedError, TrainConfig, learning_rate, make_optimizer
from dfkd_lib.training.progress import Progress, Totals

NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
CHECK_EVERY = 20  # steps between looks at the losses: a look waits for the device


def fit(modules: dict[str, nn.Module], step: Callable, batches, config: TrainConfig,
        optimizers: dict[str, list[str]] | None = None, evaluate: Callable[[int], dict] | None = None,
        checkpoint: str | Path | None = None, label: str = "training") -> list[dict]:
    """Train `modules` in place by a step function and return the history, one dict an epoch.

    Args:
        modules: what is trained, saved and resumed, by name. Frozen networks stay out.
        step: `step(batch, progress)` with progress in [0, 1) -> {"loss": total to minimise, other: logged}; or a
            generator function that yields (optimizer name, such a dict) for each update of several optimizers.
        batches: `len()` is the steps an epoch; called with (epoch, generator) it yields batches (tensors in tuples,
            lists, dicts or named tuples, which are moved to the device).
        optimizers: {optimizer name: names in modules}; one optimizer, "main", over all of them by default.
        evaluate: called with the epoch (from 1) after each, modules in eval mode, no gradients; its dict of floats
            joins the history. checkpoint: folder to resume from and save to after each epoch.

    Returns:
        [{"epoch", "lr", "seconds", "images_per_second", mean of each loss, what evaluate gave}].

    Raises:
        DivergedError: on a loss that is not finite. WorkbenchError: if memory runs out, or a checkpoint is damaged.
    """
    from accelerate import Accelerator

    accelerator = Accelerator()
    if accelerator.num_processes > 1:
        raise WorkbenchError("one training over several processes is not there yet", got=f"{accelerator.num_processes} "
                             "processes", expected="1", where=label, mend="start without accelerate launch; several "
                             "notebooks run at a time with --jobs")
    if isinstance(batches, TensorBatches):
        batches.to(accelerator.device)
    for module in modules.values():
        module.to(accelerator.device)
    made = {name: make_optimizer([modules[m] for m in names], config)
            for name, names in (optimizers or {"main": list(modules)}).items()}
    saved = Checkpoint(checkpoint, modules, made)
    history = saved.load()
    progress = Progress(label, config.epochs, len(batches), history)
    run = _Run(accelerator, modules, step, batches, config, made, progress, label)
    try:
        with torch.random.fork_rng(), saved.same_threads():
            for epoch in range(len(history), config.epochs):
                row = run.epoch(epoch)
                run.check_weights(epoch)
                row |= _evaluated(modules, evaluate, epoch + 1)
                history.append(row)
                saved.save(history)
                progress.epoch(row)
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or NO_MEMORY.search(str(error)):
            raise WorkbenchError("memory ran out in training", got=str(error).split("\n")[0][:300], where=label,
                                 mend=f"lower batch_size (now {config.batch_size}) or the model's size; finished "
                                 f"epochs are kept and resumed ({len(history)} of {config.epochs})") from error
        raise
    finally:
        progress.close()
        for module in modules.values():
            module.eval()
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

    accelerator: object
    modules: dict
    step: Callable
    batches: object
    config: TrainConfig
    optimizers: dict
    progress: Progress
    label: str

    def __post_init__(self):
        self.many = inspect.isgeneratorfunction(self.step)
        if self.config.compile:
            for module in self.modules.values():
                module.compile()

    def epoch(self, epoch: int) -> dict:
        # Seeding by (seed, epoch), not by carrying generator states, is what makes a resumed run equal to an unbroken one.
        torch.manual_seed(self.config.seed * 100_003 + epoch)
        generator = torch.Generator().manual_seed(self.config.seed * 100_003 + epoch)
        for module in self.modules.values():
            module.train()
        totals, steps, images, start, lr = Totals(), len(self.batches), 0, time.perf_counter(), self.config.lr
        for index, batch in enumerate(self.batches(epoch, generator)):
            lr = self._set_lr(epoch + index / steps)
            batch, size = _to_device(batch, self.accelerator.device)
            images += size
            self._step(batch, (epoch + index / steps) / self.config.epochs, totals)
            if index % CHECK_EVERY == CHECK_EVERY - 1 or index == steps - 1:
                self._check(totals, epoch, index)
            self.progress.step(totals)
        seconds = time.perf_counter() - start
        return {"epoch": epoch + 1, "lr": lr, "seconds": round(seconds, 3),
                "images_per_second": round(images / seconds, 1), **totals.means()}

    def _set_lr(self, epoch: float) -> float:
        lr = learning_rate(self.config, epoch)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = lr
        return lr

    def _step(self, batch, progress: float, totals: Totals) -> None:
        autocast = torch.autocast(self.accelerator.device.type, torch.bfloat16, self.config.precision == "bf16")
        if not self.many:
            with autocast:
                losses = self.step(batch, progress)
            self._update("main", losses, totals)
            return
        updates = self.step(batch, progress)
        while True:
            with autocast:
                name, losses = next(updates, (None, None))
            if name is None:
                return
            self._update(name, losses, totals)

    def _update(self, name: str, losses: dict, totals: Totals) -> None:
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(losses["loss"])
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if self.config.grad_clip:
            nn.utils.clip_grad_norm_(parameters, self.config.grad_clip)
        optimizer.step()
        prefix = "" if not self.many else f"{name}_"
        totals.add({k if k != "loss" else f"{prefix}loss": v for k, v in losses.items()})

    def check_weights(self, epoch: int) -> None:
        """Raise if weights went bad, so that neither a checkpoint nor a result is ever made of them."""
        for module_name, module in self.modules.items():
            for name, value in module.state_dict().items():
                if value.is_floating_point() and not torch.isfinite(value).all():
                    raise DivergedError(f"{self.label}: weights are no longer finite numbers", got=f"{module_name}.{name}",
                                        where=f"after epoch {epoch + 1}", mend="lower the learning rate (now "
                                        f"{self.config.lr}) or set grad_clip; the last good epoch is kept")

    def _check(self, totals: Totals, epoch: int, index: int) -> None:
        bad = totals.bad()
        if bad:
            raise DivergedError(f"{self.label}: a loss is no longer a finite number", got=", ".join(bad),
                                where=f"epoch {epoch + 1}, by step {index + 1} of {len(self.batches)}",
                                mend=f"lower the learning rate (now {self.config.lr}) or set grad_clip; check the "
                                "images for NaN; the last good epoch is kept")


def _to_device(batch, target: torch.device):
    """The batch with its tensors on the device, and the number of rows of its first tensor."""
    if isinstance(batch, Tensor):
        return batch.to(target, non_blocking=True), len(batch)
    if isinstance(batch, dict):
        moved = {k: _to_device(v, target)[0] for k, v in batch.items()}
        return moved, len(next(iter(batch.values())))
    if isinstance(batch, (tuple, list)):
        moved = [_to_device(v, target) for v in batch]
        parts = (v for v, _ in moved)
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts), moved[0][1] if moved else 0
    return batch, 1
