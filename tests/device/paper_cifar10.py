"""Paper A's CIFAR-10 pair at the papers' sizes on one GPU, in minutes: CNN, teacher, student, GAN, student of its images.

    python tests/device/paper_cifar10.py --data FOLDER --out DIR [--size tiny] [--only teacher] [--set teacher.epochs=150]

FOLDER holds train/<class>/*.jpg and test/<class>/*.jpg, or is "cifar10". Each stage goes into a store below --work and is
found there by a second call; one that was broken off goes on with its last epoch on disk. After each stage DIR/record.json
holds what was measured so far; weights lie beside it in float16, in parts of at most 15 MB (`cat NAME.safetensors.* >
NAME.safetensors`).
"""

import argparse
import ast
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from dfkd_lib import distill, synthesis, training
from dfkd_lib.core import Artifact, Store, provenance, save_json
from dfkd_lib.datasets import ImageSet, load_images
from dfkd_lib.distill import KDWeights, StudentConfig
from dfkd_lib.metrics.intervals import accuracy_interval
from dfkd_lib.models import count_flops
from dfkd_lib.training import TeacherConfig

PART = 15 << 20  # bytes
TRAINING = 3  # times the operations of a forward pass
MIXED = {"mix": "either", "precision": "bf16", "compile": True}
STUDENT: dict[str, Any] = {
    **MIXED,
    "model": "vit_cifar_student",
    "augmentation": "flip",
    "epochs": 45,
    "batch_size": 512,
    "warmup_epochs": 3.0,
}
# A Table 1, 3; what the paper does not name (passes, batches, augmentation) was chosen before anything was tested.
PAPER: dict[str, dict[str, Any]] = {
    "cnn": {
        "model": "resnet18_32",
        "epochs": 40,
        "batch_size": 512,
        "lr": 0.2,
        "optimizer": "sgd",
        "precision": "bf16",
        "weight_decay": 5e-4,
        "warmup_epochs": 3.0,
        "augmentation": "flip",
    },
    # From nothing it wants a CNN's guidance, or many more passes ("guide": "") and a policy of augmentation ("randaugment").
    "teacher": {
        **MIXED,
        "model": "deit_base_patch4_32",
        "guide": "cnn",
        "epochs": 130,
        "batch_size": 1024,
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "weight_decay": 0.05,
        "warmup_epochs": 5.0,
        "augmentation": "flip",
    },
    "student_real": STUDENT,
    "gan": {"epochs": 25, "batch_size": 256, "attention_share": 0.5, "images": 50_000},
    "student_gan": STUDENT,
}
# The same lines at a size for a CPU.
TINY: dict[str, dict[str, Any]] = {
    "cnn": {"epochs": 1, "batch_size": 16, "model": "wrn_16_1"},
    "teacher": {
        "epochs": 2,
        "batch_size": 16,
        "warmup_epochs": 0.0,
        "compile": False,
        "overrides": {"width": 24, "depth": 2},
    },
    "student_real": {
        "epochs": 1,
        "batch_size": 16,
        "compile": False,
        "overrides": {"width": 16, "depth": 2},
    },
    "gan": {"epochs": 1, "batch_size": 16, "width": 16, "d_width": 8, "images": 40},
}
TINY["student_gan"] = TINY["student_real"]


def settings(size: str, changes: list[str]) -> dict[str, dict[str, Any]]:
    """Those of each stage: the paper's, or with the tiny ones over them, and `stage.name=value` over those."""
    found = {name: dict(values) for name, values in PAPER.items()}
    if size == "tiny":
        found = {name: {**values, **TINY[name]} for name, values in found.items()}
    for change in changes:
        place, _, value = change.partition("=")
        stage, _, name = place.partition(".")
        if stage not in found or not name or not value:
            sys.exit(f"error: {change}: expected stage.name=value, stages: {', '.join(found)}")
        try:
            found[stage][name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[stage][name] = value
    return found


def product_rate(device: torch.device) -> float:
    """Operations a second of a bf16 matrix product on this device."""
    side, rounds = (8192, 20) if device.type == "cuda" else (512, 2)
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    wait(device)
    start = time.perf_counter()
    for _ in range(rounds):
        a @ b
    wait(device)
    return 2 * side**3 * rounds / (time.perf_counter() - start)


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Record:
    """What was measured, on disk after every stage."""

    def __init__(self, folder: Path, commit: str, sets: dict[str, ImageSet]):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.device = folder, training.device()
        file = folder / "record.json"
        known = json.loads(file.read_text())["stages"] if file.is_file() else {}
        self.content = {
            "commit": commit or provenance.commit(),
            "hardware": provenance.hardware(),
            "versions": provenance.versions(),
            "images": {name: [len(one), one.fingerprint] for name, one in sets.items()},
            "bf16 product, operations a second": product_rate(self.device),
            "stages": known,
        }

    def add(self, name: str, made: Artifact, chosen: dict, **more: object) -> None:
        """One stage: its settings, its result, its speed."""
        history = made.json("history.json") if (made.path / "history.json").is_file() else []
        row = {"key": made.key, "settings": chosen, **made.metrics, "seconds": made.seconds, **more}
        if history:
            speeds = sorted(epoch["images_per_second"] for epoch in history)
            row |= {"images_per_second": speeds[len(speeds) // 2], "history": history}
        if "accuracy" in made.metrics:
            total = self.content["images"]["test"][0]
            correct = round(made.metrics["accuracy"] * total)
            row["accuracy_95"] = accuracy_interval(correct, total)
        if self.device.type == "cuda":
            row["peak_gpu_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
            torch.cuda.reset_peak_memory_stats()
        row["ledger"] = made.ledger
        self.content["stages"][name] = row
        save_json(self.folder / "record.json", self.content)
        shown = {k: v for k, v in row.items() if k not in ("history", "ledger", "settings")}
        print(f"{name}: {json.dumps(shown)}", flush=True)

    def share(self, model: torch.nn.Module, images: ImageSet, speed: float) -> float:
        """The share of the device's bf16 product that a training at so many images a second reaches."""
        sample = torch.zeros(1, *images.shape, device=self.device)
        operations = TRAINING * count_flops(model, sample) * speed
        return operations / self.content["bf16 product, operations a second"]

    def weights(self, name: str, made: Artifact, file: str = "model.safetensors") -> None:
        """The weights of a stage in float16, in parts."""
        known = made.tensors(file)
        content = save({k: v.half() if v.is_floating_point() else v for k, v in known.items()})
        for number, begin in enumerate(range(0, len(content), PART)):
            part = self.folder / f"{name}.safetensors.{number:02d}"
            part.write_bytes(content[begin : begin + PART])


class Pair:
    """The stages, each of which asks for those before it."""

    def __init__(self, store: Store, sets: dict[str, ImageSet], chosen: dict, record: Record):
        self.store, self.sets, self.chosen, self.record = store, sets, chosen, record
        self.done: dict[str, Artifact] = {}

    def stage(self, name: str) -> Artifact:
        """A stage, made or found; recorded once a run."""
        if name not in self.done:
            print(f"{name} …", flush=True)
            self.done[name] = getattr(self, name)()
        return self.done[name]

    def cnn(self) -> Artifact:
        return self._add("cnn", self._teacher("cnn"))

    def teacher(self) -> Artifact:
        return self._add("teacher", self._teacher("teacher"))

    def _teacher(self, name: str) -> Artifact:
        """A teacher trained by labels alone, or with a guide."""
        chosen, sets = dict(self.chosen[name]), (self.sets["train"], self.sets["test"])
        guide, overrides = chosen.pop("guide", ""), chosen.pop("overrides", None)
        config = TeacherConfig(**chosen)
        own = (self.store, config.model, *sets, config.training(), config.augment)
        more = {"guide": self.stage(guide) if guide else None, "overrides": overrides}
        return training.train_teacher(*own, stage=name, **more)

    def _add(self, name: str, made: Artifact) -> Artifact:
        speed = made.metrics["images_per_second"]
        share = self.record.share(training.load_trained(made), self.sets["test"], speed)
        self.record.add(name, made, self.chosen[name], share_of_product=share)
        self.record.weights(name, made)
        return made

    def _student(self, name: str, images: ImageSet, *parents: Artifact) -> Artifact:
        chosen, sets = dict(self.chosen[name]), (images, self.sets["test"])
        more = {"parents": parents, "overrides": chosen.pop("overrides", None)}
        config = StudentConfig(**chosen)
        teacher = self.stage("teacher")
        made = distill.train(self.store, config, KDWeights(), *sets, teacher, **more)
        return self._add(name, made)

    def student_real(self) -> Artifact:
        return self._student("student_real", self.sets["train"])

    def gan(self) -> Artifact:
        chosen, teacher, real = dict(self.chosen["gan"]), self.stage("teacher"), self.sets["train"]
        count = chosen.pop("images")
        probes = synthesis.class_probes(self.store, teacher, real)
        given = synthesis.Given(teacher, real.classes, real.shape, probes=probes, real=real)
        maker = synthesis.CGAN(**chosen)
        self.images, made = synthesis.make_images(self.store, maker, given, count)
        trained = maker.train(self.store, given)
        self.record.add("gan", trained, self.chosen["gan"])
        self.record.weights("gan", trained, last_generator(trained))
        self._sheet()
        return made

    def _sheet(self) -> None:
        """The first images of each class, as a picture."""
        from torchvision.utils import save_image

        classes = self.images.num_classes
        first = self.images.images[: 8 * classes].view(-1, classes, *self.images.shape)
        rows = first.transpose(0, 1).flatten(0, 1)
        save_image(rows / 255, self.record.folder / "gan.png", nrow=len(first))

    def student_gan(self) -> Artifact:
        made = self.stage("gan")
        return self._student("student_gan", self.images, made)


def last_generator(trained: Artifact) -> str:
    """The file of a GAN's last epoch."""
    return max(path.name for path in trained.path.glob("generator-*.safetensors"))


def main(arguments: list[str] | None = None) -> None:
    """Run the stages that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help='folder of class folders, or "cifar10"')
    parser.add_argument("--out", required=True, type=Path, help="record, weights, picture")
    parser.add_argument("--work", default="data/artifacts", help="the store")
    parser.add_argument("--size", choices=["paper", "tiny"], default="paper")
    parser.add_argument("--only", default=",".join(PAPER), help="stages, in order")
    parser.add_argument("--set", action="append", default=[], metavar="STAGE.NAME=VALUE")
    parser.add_argument("--commit", default="", help="where there is no git")
    args = parser.parse_args(arguments)
    chosen, names = settings(args.size, args.set), args.only.split(",")
    if unknown := set(names) - set(PAPER):
        sys.exit(f"error: no such stage: {', '.join(unknown)}; there are {', '.join(PAPER)}")
    if args.size == "paper" and training.device().type == "cpu":
        sys.exit("error: the papers' sizes want a GPU, and there is none here; --size tiny runs")
    start = time.perf_counter()
    sets = {split: load_images(args.data, split) for split in ("train", "test")}
    if args.size == "tiny":
        sets = {split: images.sample(80) for split, images in sets.items()}
    print(f"images read in {time.perf_counter() - start:.1f} s", flush=True)
    pair = Pair(Store(args.work), sets, chosen, Record(args.out, args.commit, sets))
    for name in names:
        pair.stage(name)
    print(f"all in {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
