"""Scenes from a VAE-GAN conditioned on a layout, with and without the frozen teacher's attention (METHODS A4)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dfkd_lib import training
from dfkd_lib.core import Artifact, Store, WorkbenchError, artifacts
from dfkd_lib.core.processes import shared_count
from dfkd_lib.datasets import SCENES, Scenes, SceneSet, check_classes_agree
from dfkd_lib.detection.batches import Batch, SceneBatches
from dfkd_lib.detection.detector import load_detector
from dfkd_lib.detection.layouts import STATISTICS, sampled_layouts
from dfkd_lib.detection.probes import (
    check_objects,
    class_object_probes,
    object_consistency_loss,
    object_probes,
)
from dfkd_lib.models import SceneDiscriminator, SceneEncoder, SceneGenerator
from dfkd_lib.models.scene_gan import Normal
from dfkd_lib.synthesis import WATCH_EVERY, Networks
from dfkd_lib.training import Precision, StepConfig

TOGETHER = 128  # scenes drawn at a time
SHIFT, STRETCH = 0.06, 0.15  # by which a layout that is drawn anew moves, and changes in size (log)
PROBES = "probes.safetensors"
SPREAD = 0.1  # standard deviation that a pixel of a drawn scene is granted about the real one
CODED = 2048  # scenes whose codes tell how those of new ones lie


@dataclass
class SceneNetworks(Networks):
    """What the step of the GAN of scenes works on: as of the GAN of images, its teacher a detector that sees whole scenes,
    and an encoder; `judged`: whether the discriminator plays yet."""

    side: int = 0  # nothing is cropped
    encoder: SceneEncoder | None = None
    judged: bool = True

    def encode(self, batch: Batch) -> tuple[tuple[Tensor, ...], Tensor]:
        """Codes of a batch's skies and objects for the generator, with texture at random, and their divergence from a
        standard normal distribution, Σ KL, mean over scenes."""
        skies, things = self.encoder(*batch[:3])
        present = batch.labels >= 0
        *_, texture = self.generator.noise(*batch.labels.shape)
        drawn = things[0].new_zeros(*present.shape, things[0].shape[1])
        drawn = drawn.index_put(present.nonzero(as_tuple=True), _drawn_of(*things))
        apart = sum(_divergence(*part) for part in (skies, things)) / len(present)
        return (_drawn_of(*skies), drawn, texture.to(drawn.device)), apart


def _drawn_of(mean: Tensor, log_variance: Tensor) -> Tensor:
    return mean + (log_variance / 2).exp() * torch.randn_like(mean)


def _divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum()


def likeness_loss(drawn: Tensor, real: Tensor) -> Tensor:
    """Squared difference of scenes (B, 3, S, S) over 2 · `SPREAD`², summed over a scene, mean over scenes: the negative log
    likelihood of a VAE but for a constant (Kingma and Welling 2014)."""
    return (drawn - real).square().sum() / (2 * SPREAD**2 * len(real))


def real_loss(scores: tuple[Tensor, Tensor]) -> Tensor:
    """Cross entropy of the discriminator's logits with "real": mean over parts of scenes (B, 1, H, W), plus mean over
    objects (n,); n may be 0."""
    return sum(F.softplus(-s.float()).sum() / shared_count(s.numel(), s) for s in scores)


def scene_gan_step(nets: SceneNetworks, batch: Batch, lam: float) -> Iterator[tuple[str, dict]]:
    """The step of the GAN of scenes: L_D of parts and of objects, then L_G = L_adv + λ L_attention (A eq. 5) + the VAE's loss.

    λ = 0 is the vanilla GAN: the attention loss is then measured now and then but has no gradient. Both variants draw the
    same random numbers in the same order, so from one seed they differ in λ alone. Yields (optimizer's name, named losses).
    """
    layout = batch.labels, batch.boxes
    codes, apart = nets.encode(batch)
    fake = nets.generator(*layout, *codes)
    if nets.judged:
        on_real = nets.discriminator(batch.images, *layout)
        on_fake = nets.discriminator(fake.detach(), *layout)
        d_loss = real_loss(on_real) + real_loss([-score for score in on_fake])
        yield "discriminator", {"loss": d_loss}
    found = {"likeness": likeness_loss(fake, batch.images), "divergence": apart}
    total = 1e-3 * (found["likeness"] + apart)
    with nets.judging() as discriminator:
        if nets.judged:
            found["adversarial"] = real_loss(discriminator(fake, *layout))
            total = total + found["adversarial"]
        if lam > 0 or nets.watching:
            part = nets.part(fake)
            labels, boxes = (one[part] for one in layout)
            with torch.set_grad_enabled(lam > 0):
                probes, _ = object_probes(nets.teacher, fake[part], labels, boxes)
                attention = object_consistency_loss(probes, nets.probes, labels[labels >= 0])
            found["attention"], total = attention, total + lam * attention
        yield "generator", {"loss": total, **found}


class SceneGAN(StepConfig):
    """The GAN of scenes: reads real scenes with their layouts, and class probes for its attention loss; λ = 0 is vanilla."""

    own_step: ClassVar = staticmethod(scene_gan_step)
    also: ClassVar[dict[str, str]] = {"batch_size": "gan_batch"}

    epochs: int = Field(100, ge=1, le=100_000, description="passes over the training scenes")
    judged_from: float = Field(
        0.4, ge=0, lt=1, description="share of the training after which the discriminator plays"
    )
    batch_size: int = Field(32, ge=2, le=4096, description="scenes a step")
    lr: float = Field(4e-4, gt=0, le=1, description="learning rate of Adam")
    optimizer: Literal["adam"] = Field("adam", description="optimizer")
    betas: tuple[float, float] = Field((0.5, 0.999), description="of Adam")
    schedule: Literal["cosine", "constant"] = Field("constant", description="of the learning rate")
    precision: Precision = Field("bf16", description="arithmetic: fp32, or bf16 by autocast")
    lam: float = Field(
        1.0, ge=0, le=1000, title="λ", description="weight of the attention loss (A eq. 5)"
    )
    attention_share: float = Field(
        1.0, gt=0, le=1, description="share of each batch the attention loss is taken on"
    )
    width: int = Field(512, ge=16, le=4096, description="channels of the generator's first layers")
    d_width: int = Field(64, ge=4, le=1024, description="of the discriminator's first layer")
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay of a moving average of the generator that draws in its place, 0: none",
    )
    latent: int = Field(32, ge=1, description="length of each noise vector")

    def networks(self, classes: int, side: int) -> dict[str, torch.nn.Module]:
        """A new generator, discriminator and encoder of square scenes of that side, untrained."""
        made = {
            "generator": SceneGenerator(classes, side, self.latent, self.width),
            "discriminator": SceneDiscriminator(classes, self.d_width),
            "encoder": SceneEncoder(classes, side, self.latent),
        }
        return {name: one.to(memory_format=torch.channels_last) for name, one in made.items()}

    def train(self, store: Store, scenes: Scenes, teacher: Artifact, probes: Artifact) -> Artifact:
        """The trained GAN: generator.safetensors, layouts.safetensors (those of its training scenes), history.json.

        Raises:
            WorkbenchError: if the scenes are not square, or 16 does not divide their side. DivergedError: if it diverges.
        """
        known = teacher.metrics["classes"]
        check_classes_agree(known, scenes.classes, "the teacher and the training scenes")
        own = {"train": scenes.identity, "classes": known}
        reads = {scenes.split: "training the discriminator"}

        def make(work: Path) -> dict:
            return self._fit(work, scenes.load(), teacher, probes)

        settings, parents = {**self.as_dict(), **own}, [teacher, probes]
        return store.get_or_make("scene_gan", settings, make, parents, reads)

    def _fit(self, work: Path, scenes: SceneSet, teacher: Artifact, probes: Artifact) -> dict:
        check_side(*scenes.shape[1:])
        torch.manual_seed(self.seed)
        side, config = scenes.shape[-1], self.training()
        modules = self.networks(len(teacher.metrics["classes"]), side)
        batches = SceneBatches(scenes, self.batch_size)
        class_probes = probes.tensors(PROBES)["probes"].to(training.device())
        frozen = {"teacher": load_detector(teacher), "probes": class_probes}
        nets = SceneNetworks(**modules, **frozen, attention_share=self.attention_share)
        steps, chosen = len(batches) * self.epochs, self._step or self.own_step
        names = {"generator": ["generator", "encoder"], "discriminator": ["discriminator"]}
        if self.ema:
            averaging = get_ema_multi_avg_fn(self.ema)
            mean = AveragedModel(modules["generator"], multi_avg_fn=averaging, use_buffers=True)
            modules["mean"] = mean.requires_grad_(False)

        def step(batch: Batch, progress: float) -> Iterator[tuple[str, dict]]:
            nets.watching = round(progress * steps) % WATCH_EVERY == 0
            nets.judged = progress >= self.judged_from
            yield from chosen(nets, batch, self.lam)
            if self.ema:
                mean.update_parameters(modules["generator"])

        label, saved = f"scene GAN λ={self.lam:g} seed {self.seed}", work / "checkpoint"
        history = training.fit(modules, step, batches, config, names, checkpoint=saved, label=label)
        drawing = mean.module if self.ema else modules["generator"]
        drawing.fit_prior(*_codes(modules["encoder"], batches))
        artifacts.save_tensors(work / "generator.safetensors", drawing.state_dict())
        layouts = {"labels": batches.labels, "boxes": batches.boxes}
        artifacts.save_tensors(work / "layouts.safetensors", layouts)
        artifacts.save_json(work / "history.json", history)
        speed = history[-1]["images_per_second"]
        return {"images_per_second": speed, "train_scenes": len(batches.images), "side": side}

    # No decorator, whose name would count in the key: what is checked decides no result.
    _fit = training.checks_step(_fit)

    def draw(
        self,
        store: Store,
        trained: Artifact,
        count: int,
        seed: int = 0,
        statistics: Artifact | None = None,
    ) -> Artifact:
        """`count` scenes of the trained GAN, of its layouts moved a little or of ones drawn from a teacher's `layout_statistics`,
        as an artifact for `open_scenes`: pixels uint8 (N, 3, S, S), and the layout that was asked for, which a detector may or
        may not find.

        Drawing reads no real image; that the layouts, and the GAN, come from real scenes stands in the ledger of its parent.
        """
        classes = trained.settings["classes"]

        def make(work: Path) -> dict:
            model = self.networks(len(classes), trained.metrics["side"])["generator"]
            model.load_state_dict(trained.tensors("generator.safetensors"))
            training.frozen(model)
            random = torch.Generator().manual_seed(seed)
            if statistics is None:
                layouts = trained.tensors("layouts.safetensors")
                chosen = torch.randint(len(layouts["labels"]), (count,), generator=random)
                found = (layouts[name][chosen] for name in ("labels", "boxes"))
                labels, boxes = moved_layouts(*found, random)
            else:
                labels, boxes = sampled_layouts(statistics.tensors(STATISTICS), count, random)
            pixels = []
            with torch.inference_mode():
                for rows in torch.arange(count).split(TOGETHER):
                    noise = model.noise(len(rows), labels.shape[1], random)
                    inputs = (labels[rows], boxes[rows], *model.codes(labels[rows], *noise))
                    drawn = model(*(t.to(training.device()) for t in inputs))
                    pixels.append((255 * drawn).round().clamp(0, 255).to(torch.uint8).cpu())
            drawn = {"pixels": torch.cat(pixels), "labels": labels, "boxes": boxes}
            artifacts.save_tensors(work / SCENES, drawn)
            return {"scenes": count}

        settings = {"gan": trained.key, "classes": classes, "count": count, "seed": seed}
        parents = [trained, *([] if statistics is None else [statistics])]
        return store.get_or_make("synthetic_scenes", settings, make, parents)


@torch.inference_mode()
def _codes(encoder: SceneEncoder, batches: SceneBatches) -> tuple[Normal, Normal, Tensor]:
    """The codes of real skies and objects, as `SceneGenerator.fit_prior` takes them, on the CPU."""
    parts = []
    for rows in torch.arange(len(batches.images))[:CODED].split(TOGETHER):
        batch = batches.rows(rows).to(training.device())
        skies, things = encoder(*batch[:3])
        parts.append((*skies, *things, batch.labels[batch.labels >= 0]))
    *codes, labels = (torch.cat(one).cpu() for one in zip(*parts, strict=True))
    return tuple(codes[:2]), tuple(codes[2:]), labels


def check_side(height: int, width: int) -> None:
    """WorkbenchError unless a GAN can draw scenes of this size: square, of a side that 16 divides."""
    if height != width or height % 16:
        raise WorkbenchError(
            "the GAN draws square scenes whose side 16 divides",
            expected="size = 64, 80, 96, ...",
            got=f"{height} × {width}",
            where="SceneGAN",
            fix="set size to such a number, and shortest to 0",
        )


def object_probe_artifact(store: Store, scenes: Scenes, teacher: Artifact) -> Artifact:
    """The class probes of a teacher's objects in labelled scenes: probes.safetensors "probes" (K, SIDE²)."""

    known = teacher.metrics["classes"]
    check_classes_agree(known, scenes.classes, "the teacher and the scenes of its probes")

    def make(work: Path) -> dict:
        known = scenes.load()
        check_objects(known)
        batches = SceneBatches(known, TOGETHER)
        detector, classes = load_detector(teacher), len(scenes.classes)
        probes = class_object_probes(detector, batches.in_order(), classes)
        artifacts.save_tensors(work / PROBES, {"probes": probes})
        return {"scenes": len(batches.images)}

    reads = {scenes.split: "class probes"}
    return store.get_or_make("object_probes", {"train": scenes.identity}, make, [teacher], reads)


def moved_layouts(labels: Tensor, boxes: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Layouts, labels (N, M) and boxes (N, M, 4), mirrored (1/2), each object moved and stretched by a little chance and
    kept inside its scene."""
    count, most = labels.shape

    def uniform(*shape: int) -> Tensor:
        return 2 * torch.rand(*shape, generator=random) - 1

    mirror = torch.rand(count, generator=random) < 0.5
    size = boxes[..., 2:] * torch.exp(STRETCH * uniform(count, most, 1))
    centre, size = boxes[..., :2].clone(), size.clamp(max=1)
    centre[mirror, :, 0] = 1 - centre[mirror, :, 0]
    moved = torch.minimum(centre + SHIFT * uniform(count, most, 2), 1 - size / 2)
    moved = torch.cat([torch.maximum(moved, size / 2), size], -1)
    return labels, torch.where(labels[..., None] >= 0, moved, 0.0)
