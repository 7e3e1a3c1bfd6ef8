"""What a maker of images is given: a teacher always, and, as its budget allows, class probes, real images, a student."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dfkd_lib.attention import (
    attention_sites,
    class_probe_statistics,
    class_token,
    in_batches,
    pick,
    reduce_heads,
)
from dfkd_lib.core import Artifact, Store, WorkbenchError, artifacts
from dfkd_lib.datasets import ImageSet, check_classes_agree
from dfkd_lib.training import check_fit, device, load_trained, reads_of


@dataclass(frozen=True)
class Given:
    """What images may be made from; a maker takes what its budget names and nothing else.

    Args:
        teacher: a frozen classifier.
        classes: K names.
        shape: (C, S, S) of the images to make.
        probes: `class_probes` of that teacher.
        real: real images.
        student: for a competition with the teacher.
    """

    teacher: Artifact
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    probes: Artifact | None = None
    real: ImageSet | None = None
    student: Artifact | None = None

    @property
    def wanted(self) -> dict:
        """What images are asked for, as settings of a key."""
        return {"classes": list(self.classes), "shape": list(self.shape)}

    @property
    def blank(self) -> ImageSet:
        """One black image of the shape that is asked for, of the first class, to try models on."""
        pixels, label = torch.zeros(1, *self.shape, dtype=torch.uint8), torch.zeros(1).long()
        return ImageSet(pixels, label, self.classes, f"images of {self.shape} that are to be made")

    def needed(self, name: str, otherwise: str) -> Any:
        """What stands under a name; WorkbenchError if nothing does, with what to do without it."""
        if getattr(self, name) is None:
            raise WorkbenchError(
                f"this maker needs Given({name}=…)", fix=f"give it, or {otherwise}", where="Given"
            )
        return getattr(self, name)

    def load_teacher(self) -> nn.Module:
        """The frozen teacher on the training device; WorkbenchError if it does not take such images and classes."""
        return self._load(self.teacher, "the teacher")

    def load_student(self) -> nn.Module:
        """The frozen student of a competition."""
        student = self.needed("student", "set the weight of the competition to 0")
        return self._load(student, "the student")

    def _load(self, artifact: Artifact, what: str) -> nn.Module:
        channels, height, width = self.shape
        if height != width:
            raise WorkbenchError(
                "makers make square images",
                expected="(C, S, S)",
                got=self.shape,
                where="Given.shape",
                fix="resize the images (size=…)",
            )
        model = load_trained(artifact)
        check_fit(model, self.blank, what)
        return model

    def load_probes(self, teacher: nn.Module) -> Tensor:
        """Class probes (K, N) on the training device; WorkbenchError if they are not of this teacher and these classes."""
        made = "make them with synthesis.class_probes"
        probes = self.needed("probes", f"{made}, or set the weight of the attention loss to 0")
        class_token(teacher)  # refuses a teacher without one
        if self.teacher.key not in probes.parents:
            raise WorkbenchError(
                "the class probes are of another teacher",
                expected=self.teacher.key,
                got=", ".join(probes.parents),
                where=probes.path,
                fix=f"{made} and this teacher",
            )
        known, where = probes.settings["classes"], f"{probes.path} and the images to make"
        check_classes_agree(known, self.classes, where)
        return probes.tensors("probes.safetensors")["probes"].to(device())


def class_probes(
    store: Store,
    teacher: Artifact,
    images: ImageSet,
    block: int = -1,
    model: nn.Module | None = None,
    probe: Callable[[Tensor], Tensor] = reduce_heads,
    token: str = "class",
) -> Artifact:
    """The teacher's class attention probes on a (real) set, with their spread.

    Args:
        model: the teacher itself, where the artifact holds no weights (a model from elsewhere).
        probe: how heads become a probe, see `attention.class_probe_statistics`; part of the key.
        token: "class", or "mean" for a model without class token; likewise.

    Returns:
        Artifact with probes.safetensors: "probes" (K, N) float32 of the block that was asked for; "mean" and "std"
        (K, blocks, N) of every block, or of that one alone where heads differ in number, as patches do then (PiT, Swin);
        "count" (K,), images of each class.
    """

    def make(work: Path) -> dict:
        network = load_trained(teacher) if model is None else model
        batches = in_batches(images.images, images.labels)
        every = len({site.heads for site in attention_sites(network)}) == 1
        asked = None if every else block
        found = class_probe_statistics(network, batches, images.num_classes, asked, probe, token)
        if not every:
            found = found._replace(mean=found.mean[:, None], std=found.std[:, None])
        place = pick(block, found.mean.shape[1], "block") if every else 0
        chosen = found.mean[:, place].contiguous()
        artifacts.save_tensors(work / "probes.safetensors", {"probes": chosen, **found._asdict()})
        return {"images": len(images), "patches": chosen.shape[1]}

    reads = reads_of((images, "class attention probes"))
    settings = {"images": images.fingerprint, "classes": list(images.classes)}
    settings |= {"block": block, "token": token}
    return store.get_or_make("class_probes", settings, make, [teacher], reads, code=[probe])
