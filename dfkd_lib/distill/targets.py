"""Teacher targets: computed once and stored where the images never change, else at every batch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dfkd_lib.attention import LAST, class_token, compiled_parts, outputs_and_probe, patch_tokens
from dfkd_lib.core import WorkbenchError, artifacts
from dfkd_lib.core.artifacts import Artifact, Store
from dfkd_lib.core.files import whole_files
from dfkd_lib.datasets import ImageSet, to_float
from dfkd_lib.models import hooked, logits_and_early_map
from dfkd_lib.training import Batch, Precision, arithmetic, device, load_trained, reads_of

SHARD = 8192  # images a file
EARLY_STAGE = 1  # of a CNN's feature maps, the one that early features are aligned to
BATCH = 128  # images of a forward pass: on a CPU a third faster than 512, whose activations leave the cache


class Targets(NamedTuple):
    """Teacher targets of a batch: logits (B, K); attention probe (B, M), of P blocks (B, P, M), or None; early feature map
    (B, C, h, w) or None."""

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
    parents: Sequence[Artifact] = (),
    blocks: tuple[int, ...] = LAST,
    precision: Precision = "fp32",
) -> Artifact:
    """The teacher's logits, and probes of these blocks if it has any, on images that never change, computed once in this
    arithmetic.

    Float16, in files targets-00000.safetensors, … of 8192 rows in the order of the set; a run that was killed goes on with
    its next file. The ledger counts the images if they are real.
    """

    def make(work: Path) -> dict:
        model, finished = load_trained(teacher), whole_files(work)
        probed = has_probe(model)
        for number, images in enumerate(train_set.images.split(SHARD)):
            path = work / f"targets-{number:05d}.safetensors"
            if path.name in finished:
                continue
            with torch.inference_mode(), arithmetic(precision):
                parts = (to_float(part).to(device()) for part in images.split(BATCH))
                found = [outputs_and_probe(model, part, probed, None, blocks) for part in parts]
            logits, probes = zip(*found, strict=True)
            tensors = {"logits": torch.cat(logits).half()}
            if probed:
                tensors["probes"] = torch.cat(probes).half()
            artifacts.save_tensors(path, tensors)
            artifacts.note_whole(work, path)
        return {"images": len(train_set), "probes": probed}

    settings = {"images": train_set.fingerprint, "shard": SHARD, "kept": "float16"}
    settings["precision"] = precision
    settings |= {"blocks": list(blocks)} if blocks != LAST else {}
    reads = reads_of((train_set, "teacher targets"))
    return store.get_or_make("teacher_targets", settings, make, [teacher, *parents], reads)


class StoredTeacher:
    """Batch → the stored targets of its rows, float32; `.logits` (N, K) and `.probes` (N, M), of P blocks (N, P, M), or None
    hold all of them.

    Args:
        artifact: of `teacher_targets`.
    """

    def __init__(self, artifact: Artifact):
        files = sorted(path.name for path in artifact.path.glob("targets-*.safetensors"))
        parts = [artifact.tensors(name) for name in files]
        kept = {n: torch.cat([part[n] for part in parts]).to(device()) for n in parts[0]}
        self.logits, self.probes = kept["logits"], kept.get("probes")

    def __call__(self, batch: Batch) -> Targets:
        rows = batch.rows.to(self.logits.device)
        probe = None if self.probes is None else self.probes[rows].float()
        return Targets(self.logits[rows].float(), probe)


class LiveTeacher:
    """Batch → targets of just these images: needed where augmentation changes them.

    Computed, as stored targets are, in the arithmetic of the student's training (bf16 where that is asked for).

    Args:
        teacher: frozen.
        probed: also its attention probe, if it has one.
        early: also its early feature map (a CNN's), and no probe.
        compiled: by torch.compile, where it is a plain ViT.
        blocks: whose probes are wanted.
    """

    def __init__(
        self,
        teacher: nn.Module,
        probed: bool = True,
        early: bool = False,
        compiled: bool = False,
        blocks: tuple[int, ...] = LAST,
    ):
        self.teacher, self.early, self.blocks = teacher, early, blocks
        for part in compiled_parts(teacher) if compiled else ():
            if part is not teacher:
                part.compile(dynamic=False)
        self.probed = probed and has_probe(teacher)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Targets:
        if self.early:
            logits, early = logits_and_early_map(self.teacher, batch.images, EARLY_STAGE)
            return Targets(logits, None, early)
        asked = self.probed, None, self.blocks
        return Targets(*outputs_and_probe(self.teacher, batch.images, *asked))


@contextmanager
def early_tokens(student: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, the patch tokens (B, N, width) that leave a student's early blocks: a list filled by its forward pass.

    Those of DearKD are its convolutional ones; of any other transformer with `blocks`, the first half of them.

    Raises:
        WorkbenchError: for a model without blocks.
    """
    early, blocks = getattr(student, "early_blocks", None), getattr(student, "blocks", None)
    if not early and not blocks:
        raise WorkbenchError(
            "this student has no early blocks to align",
            got=type(student).__name__,
            where="early weight",
            expected="a vision transformer with blocks",
            fix="set early_weight to 0, or choose another student",
        )
    # DearKD's early blocks hold patches alone; elsewhere class and distillation tokens stand beside them.
    block = early[-1] if early else blocks[(len(blocks) - 1) // 2]
    places = slice(None) if early else patch_tokens(student)
    found: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple, output: Tensor | tuple) -> None:
        # TNT's blocks give (pixels, tokens).
        found.append((output[-1] if isinstance(output, tuple) else output)[:, places])

    with hooked([block], note):
        yield found
