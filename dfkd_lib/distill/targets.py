"""What a frozen teacher says of images: computed once and kept where the images never change, else at every batch."""

from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dfkd_lib.attention import class_token, outputs_and_probe
from dfkd_lib.core import WorkbenchError, artifacts
from dfkd_lib.core.artifacts import Artifact, Store
from dfkd_lib.core.files import whole_files
from dfkd_lib.datasets import ImageSet, to_float
from dfkd_lib.distill.mixing import Batch
from dfkd_lib.distill.runner import load_trained, reads_of
from dfkd_lib.models.cnn import logits_and_early_map
from dfkd_lib.training import device

SHARD = 8192  # images a file


class Targets(NamedTuple):
    """A teacher's word on a batch: logits (B, K), attention probe (B, M) or None, early feature map (B, C, h, w) or None."""

    logits: Tensor
    probe: Tensor | None = None
    early: Tensor | None = None


def has_probe(model: nn.Module) -> bool:
    """Whether a model has an attention probe: attention, and a class token."""
    try:
        class_token(model)
    except WorkbenchError:
        return False
    return True


def teacher_targets(
    store: Store,
    teacher: Artifact,
    train_set: ImageSet,
    parents: tuple[Artifact, ...] | list[Artifact] = (),
) -> Artifact:
    """The teacher's logits, and its probes if it has any, on images that never change, computed once.

    Float16, in files targets-00000.safetensors, … of 8192 rows in the order of the set; a run that was killed goes on with
    its next file. The ledger counts the images if they are real.
    """

    def make(work: Path) -> dict:
        model = load_trained(teacher)
        probed, where, kept_files = (
            has_probe(model),
            next(model.parameters()).device,
            whole_files(work),
        )
        for number, images in enumerate(train_set.images.split(SHARD)):
            path = work / f"targets-{number:05d}.safetensors"
            if path.name in kept_files:
                continue
            with torch.inference_mode():
                said = [_say(model, to_float(part).to(where), probed) for part in images.split(512)]
            kept = {"logits": torch.cat([s.logits for s in said]).half()}
            if probed:
                kept["probes"] = torch.cat([s.probe for s in said]).half()
            artifacts.save_tensors(path, kept)
            artifacts.note_whole(work, path)
        return {"images": len(train_set), "probes": probed}

    return store.get_or_make(
        "teacher_targets",
        {"images": train_set.fingerprint, "shard": SHARD, "kept": "float16"},
        make,
        [teacher, *parents],
        reads_of((train_set, "teacher targets")),
    )


def _say(model: nn.Module, images: Tensor, probed: bool) -> Targets:
    return Targets(*outputs_and_probe(model, images, probed))


def stored_targets(kept: Artifact) -> Callable[[Batch], Targets]:
    """Batch → the kept logits and probes of its rows, float32."""
    files = sorted(path.name for path in kept.path.glob("targets-*.safetensors"))
    parts = [kept.tensors(name) for name in files]
    logits = torch.cat([part["logits"] for part in parts]).to(device())
    probes = (
        torch.cat([part["probes"] for part in parts]).to(device())
        if kept.metrics["probes"]
        else None
    )

    def targets(batch: Batch) -> Targets:
        rows = batch.rows.to(logits.device)
        return Targets(logits[rows].float(), None if probes is None else probes[rows].float())

    return targets


def live_targets(
    teacher: nn.Module, probed: bool = True, early_stage: int | None = None
) -> Callable[[Batch], Targets]:
    """Batch → what the frozen teacher says of just these images: needed where augmentation changes them.

    Computed in the arithmetic of the student's training (bf16 where that is asked for); kept targets are made in fp32.

    Args:
        probed: also its attention probe. early_stage: also its feature map of that stage (a CNN's).
    """

    @torch.no_grad()
    def targets(batch: Batch) -> Targets:
        if early_stage is not None:
            logits, early = logits_and_early_map(teacher, batch.images, early_stage)
            return Targets(logits, None, early)
        return _say(teacher, batch.images, probed)

    return targets


@contextmanager
def early_tokens(student: nn.Module):
    """Catch the patch tokens (B, N, width) that leave a student's early blocks during a forward pass, in a list.

    Those of DearKD are its convolutional ones; of any other transformer with `blocks`, the first half of them.

    Raises:
        WorkbenchError: for a model without blocks.
    """
    from dfkd_lib.attention import patch_tokens

    early, blocks = getattr(student, "early_blocks", None), getattr(student, "blocks", None)
    if not early and not blocks:
        raise WorkbenchError(
            "this student has no early blocks to align",
            got=type(student).__name__,
            where="early weight",
            expected="a vision transformer with blocks",
            fix="set early_weight to 0, or another student",
        )
    caught: list[Tensor] = []
    # DearKD's early blocks hold patches alone; elsewhere class and distillation tokens stand beside them.
    block, places = (
        (early[-1], slice(None))
        if early
        else (blocks[(len(blocks) - 1) // 2], patch_tokens(student))
    )

    def keep(module, args, output):
        # TNT's blocks give (pixels, tokens).
        caught.append((output[-1] if isinstance(output, tuple) else output)[:, places])

    handle = block.register_forward_hook(keep)
    try:
        yield caught
    finally:
        handle.remove()
