"""Scenes from a GAN conditioned on a layout, with and without the frozen teacher's attention (METHODS A4).

The augmented GAN differs from the vanilla one by λ > 0 alone: architecture, seed, order of data and random numbers are one.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dfkd_lib import training
from dfkd_lib.core import WorkbenchError, artifacts
from dfkd_lib.core.artifacts import Artifact, Store
from dfkd_lib.core.processes import shared_count
from dfkd_lib.detection.batches import SCENES, SceneBatches
from dfkd_lib.detection.distill import load_detector
from dfkd_lib.detection.probes import class_object_probes, object_consistency_loss, object_probes
from dfkd_lib.detection.source import SceneSource
from dfkd_lib.models.detectors import Detector
from dfkd_lib.models.scene_gan import SceneDiscriminator, SceneGenerator
from dfkd_lib.synthesis.cgan import WATCH_EVERY
from dfkd_lib.training import TrainConfig

TOGETHER = 128  # scenes drawn at a time
SHIFT, STRETCH = 0.06, 0.15  # by which a layout that is drawn anew moves, and changes in size (log)


@dataclass(frozen=True)
class SceneGAN:
    """The GAN of scenes: reads real scenes with their layouts, and class probes; λ = 0 is the vanilla one.

    Args:
        config: of the training. lam: λ ≥ 0 of the attention loss (A eq. 5). width, d_width, latent: of generator and
            discriminator. attention_share: of each batch, (0, 1], that the attention loss is taken on.
    """

    config: TrainConfig
    lam: float = 1.0
    width: int = 128
    d_width: int = 32
    latent: int = 32
    attention_share: float = 0.25

    def __post_init__(self):
        if not self.lam >= 0:
            raise WorkbenchError(
                "the weight of the attention loss is impossible",
                expected="λ >= 0",
                got=self.lam,
                where="SceneGAN.lam",
                fix="give 0 for the vanilla GAN",
            )
        if not 0 < self.attention_share <= 1:
            raise WorkbenchError(
                "the share of a batch is impossible",
                expected="0 < attention_share <= 1",
                got=self.attention_share,
                where="SceneGAN",
                fix="give 1 for whole batches",
            )

    def settings(self) -> dict:
        return {**asdict(self), "config": self.config.as_dict()}

    def generator(self, classes: int, side: int) -> SceneGenerator:
        return SceneGenerator(classes, side, self.latent, self.width)

    def train(
        self, store: Store, source: SceneSource, teacher: Artifact, probes: Artifact
    ) -> Artifact:
        """The trained GAN: generator.safetensors, layouts.safetensors (those of its training scenes), history.json.

        Args:
            source: of the training scenes, square and of a side that 16 divides. teacher: a detector of these classes.
            probes: `object_probe_artifact` of both.

        Raises:
            WorkbenchError: if the scenes are not square or of an odd size. DivergedError: if it diverges.
        """
        check_sides(source)
        settings = {
            **self.settings(),
            "train": source.identity("train"),
            "classes": teacher.metrics["classes"],
            "side": source.size,
        }
        return store.get_or_make(
            "scene_gan",
            settings,
            lambda work: self._fit(work, source, teacher, probes),
            [teacher, probes],
            {source.split("train"): "training the discriminator"},
        )

    def _fit(self, work: Path, source: SceneSource, teacher: Artifact, probes: Artifact) -> dict:
        torch.manual_seed(self.config.seed)
        classes = len(teacher.metrics["classes"])
        modules = {
            "generator": self.generator(classes, source.size),
            "discriminator": SceneDiscriminator(classes, self.d_width),
        }
        batches = SceneBatches(source.load("train"), self.config.batch_size)
        step = scene_gan_step(
            *modules.values(),
            load_detector(teacher),
            probes.tensors("probes.safetensors")["probes"],
            self.lam,
            len(batches) * self.config.epochs,
            self.attention_share,
        )
        history = training.fit(
            modules,
            step,
            batches,
            self.config,
            {name: [name] for name in modules},
            checkpoint=work / "checkpoint",
            label=f"scene GAN λ={self.lam:g} seed {self.config.seed}",
        )
        artifacts.save_tensors(work / "generator.safetensors", modules["generator"].state_dict())
        artifacts.save_tensors(
            work / "layouts.safetensors", {"labels": batches.labels, "boxes": batches.boxes}
        )
        artifacts.save_json(work / "history.json", history)
        return {
            "images_per_second": history[-1]["images_per_second"],
            "train_scenes": len(batches.images),
        }


def check_sides(source: SceneSource) -> None:
    """WorkbenchError unless a GAN can draw scenes of this size: square, of a side that 16 divides."""
    if source.shortest or source.size % 16:
        raise WorkbenchError(
            "the GAN draws square scenes whose side 16 divides",
            expected="size = 64, 80, 96, ...",
            got=f"shortest {source.shortest}" if source.shortest else f"size {source.size}",
            where="SceneGAN",
            fix="set size to such a number, and shortest to 0",
        )


def scene_gan_step(
    generator: SceneGenerator,
    discriminator: SceneDiscriminator,
    teacher: Detector,
    probes: Tensor,
    lam: float,
    total_steps: int,
    share: float = 1.0,
) -> Callable:
    """The step of the GAN of scenes: L_D of parts and of objects, then L_G = L_adv + λ L_attention (A eq. 5).

    Args:
        teacher: frozen. probes: class probes of its objects (K, D). lam: λ ≥ 0; at 0 the attention loss is measured now
            and then and has no gradient. total_steps: of the training. share: of a batch, (0, 1], that the attention
            loss is taken on: scenes are independent, so a part gives the same loss and gradient in the mean, at its share of
            the cost.
    """

    def attention(fake: Tensor, labels: Tensor, boxes: Tensor) -> Tensor:
        with torch.autocast(
            fake.device.type, enabled=False
        ):  # bf16 has too few digits for these small differences
            some = max(1, round(share * len(fake)))
            fake, labels, boxes = fake[:some].float(), labels[:some], boxes[:some]
            seen = object_probes(teacher, fake, labels, boxes)[0]
            return object_consistency_loss(seen, probes, labels[labels >= 0])

    def step(batch, progress: float) -> Iterator[tuple[str, dict]]:
        real, labels, boxes = batch
        order = torch.randperm(len(labels))
        asked, where = labels[order], boxes[order]  # layouts of other scenes of the batch
        noise = [n.to(real.device) for n in generator.noise(len(labels), labels.shape[1])]
        fake = generator(asked, where, *noise)
        on_real, on_fake = (
            discriminator(real, labels, boxes),
            discriminator(fake.detach(), asked, where),
        )
        yield (
            "discriminator",
            {"loss": sum(map(_real, on_real)) + sum(_real(-verdict) for verdict in on_fake)},
        )
        discriminator.requires_grad_(
            False
        )  # its weights need no gradient while the generator learns
        adversarial = sum(map(_real, discriminator(fake, asked, where)))
        if lam > 0:
            consistency = attention(fake, asked, where)
            total = adversarial + lam * consistency
            yield "generator", {"loss": total, "adversarial": adversarial, "attention": consistency}
        else:
            watched = {}
            if round(progress * total_steps) % WATCH_EVERY == 0:
                with torch.no_grad():
                    watched = {"attention": attention(fake, asked, where)}
            yield "generator", {"loss": adversarial, "adversarial": adversarial, **watched}
        discriminator.requires_grad_(True)

    return step


def _real(verdict: Tensor) -> Tensor:
    """Cross entropy of logits with "real"; 0 of none, as a batch may hold no object."""
    return F.softplus(-verdict.float()).sum() / shared_count(verdict.numel(), verdict)


def object_probe_artifact(store: Store, source: SceneSource, teacher: Artifact) -> Artifact:
    """The class probes of a teacher's objects in the training scenes: probes.safetensors "probes" (K, SIDE²)."""

    def make(work: Path) -> dict:
        scenes = source.load("train")
        batches = SceneBatches(scenes, TOGETHER, augment=None)
        rows = torch.arange(len(scenes)).split(TOGETHER)
        pixels = scenes.images
        probes = class_object_probes(
            load_detector(teacher),
            ((pixels[r].float() / 255, batches.labels[r], batches.boxes[r]) for r in rows),
            len(scenes.classes),
        )
        artifacts.save_tensors(work / "probes.safetensors", {"probes": probes})
        return {"scenes": len(scenes)}

    return store.get_or_make(
        "object_probes",
        {"train": source.identity("train")},
        make,
        [teacher],
        {source.split("train"): "class probes"},
    )


def draw_scenes(
    store: Store, gan: SceneGAN, trained: Artifact, count: int, seed: int = 0
) -> Artifact:
    """`count` scenes of a trained GAN, of its layouts moved a little: scenes.safetensors "pixels", "labels", "boxes".

    Drawing reads no real image; that the layouts, and the GAN, come from real scenes stands in the ledger of its parent.

    Returns:
        Artifact for `batches.open_scenes`: pixels uint8 (N, 3, S, S), labels int64 (N, M), -1 for none, boxes (N, M, 4):
        what was asked for, which a detector may or may not see.
    """
    settings = {
        "gan": trained.key,
        "classes": trained.settings["classes"],
        "count": count,
        "seed": seed,
    }

    def make(work: Path) -> dict:
        model = gan.generator(len(settings["classes"]), trained.settings["side"])
        model.load_state_dict(trained.tensors("generator.safetensors"))
        device, kept = training.device(), trained.tensors("layouts.safetensors")
        model.eval().to(device)
        random = torch.Generator().manual_seed(seed)
        chosen = torch.randint(len(kept["labels"]), (count,), generator=random)
        labels, boxes = moved_layouts(kept["labels"][chosen], kept["boxes"][chosen], random)
        pixels = []
        with torch.inference_mode():
            for rows in torch.arange(count).split(TOGETHER):
                noise = model.noise(len(rows), labels.shape[1], random)
                drawn = model(*(t.to(device) for t in (labels[rows], boxes[rows], *noise)))
                pixels.append((255 * drawn).round().clamp(0, 255).to(torch.uint8).cpu())
        artifacts.save_tensors(
            work / SCENES, {"pixels": torch.cat(pixels), "labels": labels, "boxes": boxes}
        )
        return {"scenes": count}

    return store.get_or_make("synthetic_scenes", settings, make, [trained])


def moved_layouts(labels: Tensor, boxes: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Layouts mirrored (1/2), each object moved and stretched by a little chance and kept inside its scene."""
    count, most = labels.shape

    def uniform(*shape: int) -> Tensor:
        return 2 * torch.rand(*shape, generator=random) - 1

    mirror = torch.rand(count, generator=random) < 0.5
    centre, size = (
        boxes[..., :2].clone(),
        boxes[..., 2:] * torch.exp(STRETCH * uniform(count, most, 1)),
    )
    centre[mirror, :, 0] = 1 - centre[mirror, :, 0]
    size = size.clamp(max=1)
    centre = torch.maximum(
        torch.minimum(centre + SHIFT * uniform(count, most, 2), 1 - size / 2), size / 2
    )
    return labels, torch.where(labels[..., None] >= 0, torch.cat([centre, size], -1), 0.0)
