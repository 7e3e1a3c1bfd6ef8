"""The one training loop: any step function of named losses, checkpointed, resumable bit for bit, watched for bad numbers."""

import inspect
import math
import os
import pickle
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dfkd_lib.errors import WorkbenchError

NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
CHECK_EVERY = 20  # steps between looks at the losses: a look waits for the device


class DivergedError(WorkbenchError):
    """A loss became infinite or not a number; the checkpoint of the last good epoch is kept."""


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training run; part of the artifact's key.

    Args:
        epochs: passes over the batches. batch_size: images a step. lr: peak learning rate.
        optimizer: "adamw", "adam" or "sgd"; betas for the first two, momentum for the last.
        weight_decay: not applied to biases and norms under adamw.
        schedule: "cosine" to 0, or "constant"; warmup_epochs of linear warm-up before either.
        grad_clip: largest gradient norm, or None. precision: "fp32" or "bf16" (autocast).
        seed: of initial weights (where a caller seeds them from it), data order, augmentation and dropout.
    """

    epochs: int
    batch_size: int
    lr: float
    optimizer: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    momentum: float = 0.9
    schedule: str = "cosine"
    warmup_epochs: float = 0.0
    grad_clip: float | None = None
    precision: str = "fp32"
    seed: int = 0
    compile: bool = False

    def __post_init__(self):
        rules = {"epochs": self.epochs >= 1, "batch_size": self.batch_size >= 1, "lr": 0 < self.lr < math.inf,
                 "optimizer": self.optimizer in ("adamw", "adam", "sgd"), "weight_decay": self.weight_decay >= 0,
                 "schedule": self.schedule in ("cosine", "constant"), "precision": self.precision in ("fp32", "bf16"),
                 "warmup_epochs": 0 <= self.warmup_epochs < math.inf}
        for name, holds in rules.items():
            if not holds:
                raise WorkbenchError("a training setting is impossible", where=f"TrainConfig.{name}",
                                     got=getattr(self, name), mend="see the docstring of TrainConfig for the values")

    def as_dict(self) -> dict:
        return asdict(self)


def device() -> torch.device:
    """The device this process trains on: CUDA or MPS where there is one, else the CPU."""
    from accelerate import PartialState

    return PartialState().device


class TensorBatches:
    """Batches of tensors held in memory, in an order given by the loop's generator.

    Args:
        tensors: tensors with the same first dimension N. batch_size: rows a batch; the last, smaller one is dropped
            unless it is the only one. transform: (batch tuple, generator) -> batch tuple, applied to each batch.
    """

    def __init__(self, tensors: tuple[Tensor, ...], batch_size: int, transform: Callable | None = None):
        lengths = {len(t) for t in tensors}
        if len(lengths) != 1 or 0 in lengths:
            raise WorkbenchError("batches need tensors of one, positive length", got=[len(t) for t in tensors],
                                 mend="give as many labels as images, and at least one of each")
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
        for rows in order[:len(self) * self.batch_size].split(self.batch_size):
            batch = tuple(t[rows.to(t.device)] for t in self.tensors)
            yield self.transform(batch, generator) if self.transform else batch


def make_optimizer(modules: list[nn.Module], config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of `config` over every trainable parameter of `modules`, each once."""
    parameters = list({id(p): p for m in modules for p in m.parameters() if p.requires_grad}.values())
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, config.lr, betas=config.betas, weight_decay=config.weight_decay)
    groups = [{"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
              {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], config.lr, betas=config.betas)


def learning_rate(config: TrainConfig, epoch: float) -> float:
    """The learning rate after `epoch` epochs (a fraction counts), by schedule and warm-up."""
    if epoch < config.warmup_epochs:
        return config.lr * (epoch + 1e-3) / config.warmup_epochs
    if config.schedule == "constant":
        return config.lr
    share = (epoch - config.warmup_epochs) / max(config.epochs - config.warmup_epochs, 1e-9)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


class _Totals:
    """Sums of named losses over an epoch, kept on the device; looked at now and then for bad numbers."""

    def __init__(self):
        self.sums, self.count = {}, {}

    def add(self, losses: dict) -> None:
        for name, value in losses.items():
            value = value.detach().float() if isinstance(value, Tensor) else torch.tensor(float(value))
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.count[name] = self.count.get(name, 0) + 1

    def bad(self) -> list[str]:
        if not self.sums:
            return []
        device = next((v.device for v in self.sums.values() if v.device.type != "cpu"), "cpu")
        finite = torch.isfinite(torch.stack([v.to(device) for v in self.sums.values()])).tolist()
        return [name for name, good in zip(self.sums, finite, strict=True) if not good]

    def means(self) -> dict[str, float]:
        return {name: (value / self.count[name]).item() for name, value in self.sums.items()}


class _Progress:
    """A bar with remaining time on a terminal or in a notebook; one line an epoch in batch logs."""

    def __init__(self, label: str, epochs: int, steps: int, done: int):
        style = os.environ.get("DFKD_PROGRESS") or ("bar" if sys.stderr.isatty() or _in_lab() else "lines")
        self.style, self.label, self.epochs, self.start, self.done = style, label, epochs, time.perf_counter(), done
        if style == "bar":
            from tqdm.auto import tqdm

            self.bar = tqdm(total=epochs * steps, initial=done * steps, desc=label, unit="step", leave=False)

    def step(self) -> None:
        if self.style == "bar":
            self.bar.update()

    def epoch(self, row: dict) -> None:
        shown = " ".join(f"{k} {v:.4g}" for k, v in row.items() if isinstance(v, float) and k not in ("lr", "seconds"))
        if self.style == "bar":
            self.bar.set_postfix_str(shown[:80])
        elif self.style == "lines":
            left = (time.perf_counter() - self.start) / (row["epoch"] - self.done) * (self.epochs - row["epoch"])
            print(f"{self.label} epoch {row['epoch']}/{self.epochs} {shown} | {left:.0f} s left", flush=True)

    def close(self) -> None:
        if self.style == "bar":
            self.bar.close()


def _in_lab() -> bool:
    return "ipykernel" in sys.modules and hasattr(sys.modules.get("ipykernel.zmqshell"), "ZMQInteractiveShell")


class _Checkpoint:
    """Weights, optimizer states and history after an epoch, in one file replaced atomically."""

    def __init__(self, folder, modules: dict, optimizers: dict):
        self.file = Path(folder) / "checkpoint.pt" if folder else None
        self.modules, self.optimizers = modules, optimizers

    def save(self, history: list) -> None:
        if self.file is None:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.file.with_suffix(".tmp")
        torch.save({"modules": {n: m.state_dict() for n, m in self.modules.items()},
                    "optimizers": {n: o.state_dict() for n, o in self.optimizers.items()}, "history": history}, temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, self.file)

    def load(self) -> list:
        """The history so far (empty without a checkpoint), after restoring weights and optimizer states."""
        if self.file is None or not self.file.exists():
            return []
        try:
            state = torch.load(self.file, map_location="cpu", weights_only=True)
            for name, module in self.modules.items():
                module.load_state_dict(state["modules"][name])
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(state["optimizers"][name])
        except (RuntimeError, KeyError, ValueError, EOFError, OSError, pickle.UnpicklingError) as error:
            raise WorkbenchError("a checkpoint cannot be resumed", got=str(error)[:500], where=self.file,
                                 mend="delete that file; this stage starts from its first epoch") from None
        return state["history"]


def restore(folder: str | Path, modules: dict[str, nn.Module]) -> list[dict]:
    """Load the last good epoch's weights from a checkpoint folder into `modules`; its history, [] if there is none."""
    return _Checkpoint(folder, modules, {}).load()


def fit(modules: dict[str, nn.Module], step: Callable, batches, config: TrainConfig,
        optimizers: dict[str, list[str]] | None = None, evaluate: Callable[[int], dict] | None = None,
        checkpoint: str | Path | None = None, label: str = "training") -> list[dict]:
    """Train `modules` in place by a step function and return the history, one dict an epoch.

    Args:
        modules: what is trained, saved and resumed, by name. Frozen networks stay out.
        step: `step(batch, progress)` with progress in [0, 1) -> {"loss": total to minimise, other: logged}; or a
            generator function that yields (optimizer name, such a dict) for each update of several optimizers.
        batches: `len()` is the steps an epoch; called with (epoch, generator) it yields batches (tensors in tuples,
            lists or dicts, which are moved to the device).
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
    saved = _Checkpoint(checkpoint, modules, made)
    history = saved.load()
    progress = _Progress(label, config.epochs, len(batches), len(history))
    run = _Run(accelerator, modules, step, batches, config, made, progress, label)
    try:
        with torch.random.fork_rng():
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
    progress: _Progress
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
        totals, steps, images, start, lr = _Totals(), len(self.batches), 0, time.perf_counter(), self.config.lr
        for index, batch in enumerate(self.batches(epoch, generator)):
            lr = self._set_lr(epoch + index / steps)
            batch, size = _to_device(batch, self.accelerator.device)
            images += size
            self._step(batch, (epoch + index / steps) / self.config.epochs, totals)
            if index % CHECK_EVERY == CHECK_EVERY - 1 or index == steps - 1:
                self._check(totals, epoch, index)
            self.progress.step()
        seconds = time.perf_counter() - start
        return {"epoch": epoch + 1, "lr": lr, "seconds": round(seconds, 3),
                "images_per_second": round(images / seconds, 1), **totals.means()}

    def _set_lr(self, epoch: float) -> float:
        lr = learning_rate(self.config, epoch)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = lr
        return lr

    def _step(self, batch, progress: float, totals: _Totals) -> None:
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

    def _update(self, name: str, losses: dict, totals: _Totals) -> None:
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

    def _check(self, totals: _Totals, epoch: int, index: int) -> None:
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
        return type(batch)(v for v, _ in moved), moved[0][1] if moved else 0
    return batch, 1
