"""Image makers behind one shape: the conditional GAN, vanilla and transformer-augmented, → a synthetic `ImageSet`."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfkd_lib import artifacts, training
from dfkd_lib.artifacts import Artifact, Store
from dfkd_lib.attention import attention_probe, class_probe_statistics, in_batches
from dfkd_lib.attention.sites import pick
from dfkd_lib.datasets import ImageSet, to_float, to_uint8
from dfkd_lib.distill import load_trained
from dfkd_lib.errors import WorkbenchError
from dfkd_lib.fid import classifier_features, frechet_distance, inception_features, statistics
from dfkd_lib.losses import attention_consistency_loss
from dfkd_lib.models import Discriminator, Generator
from dfkd_lib.models.gan import SIDE

WATCH_EVERY = 8  # steps between looks at the attention loss of a vanilla GAN, which does not learn from it
CURVE_IMAGES = 2000  # generated images behind the distance-per-epoch curve


def pad_to_gan(images: Tensor) -> Tensor:
    """Float images (B, C, S, S) in [-1, 1], S ≤ 32 → (B, C, 32, 32), black around them (A2)."""
    before = (SIDE - images.shape[-1]) // 2
    after = SIDE - images.shape[-1] - before
    return F.pad(images, (before, after, before, after), value=-1.0)


def crop_from_gan(images: Tensor, side: int) -> Tensor:
    """The middle (B, C, side, side) of generated images (B, C, 32, 32): the inverse of `pad_to_gan`."""
    before = (SIDE - side) // 2
    return images[..., before:before + side, before:before + side]


def class_probes(store: Store, teacher: Artifact, images: ImageSet, block: int = -1,
                 model: nn.Module | None = None) -> Artifact:
    """The teacher's class attention probes on a (real) set, kept with their spread.

    Args:
        model: the teacher itself, where the artifact holds no weights (a model from elsewhere).

    Returns:
        Artifact with probes.safetensors: "probes" (K, N) float32 of the block that was asked for; "mean" and "std"
        (K, blocks, N) of every block; "count" (K,), images of each class.
    """
    def make(work: Path) -> dict:
        looked = load_trained(teacher) if model is None else model
        found = class_probe_statistics(looked, in_batches(images.images, images.labels), images.num_classes, block=None)
        chosen = found.mean[:, pick(block, found.mean.shape[1], "block")].contiguous()
        artifacts.save_tensors(work / "probes.safetensors", {"probes": chosen, **found._asdict()})
        return {"images": len(images), "patches": chosen.shape[1]}

    reads = {images.split: "class attention probes"} if images.real else {}
    settings = {"images": images.fingerprint, "block": block, "kept": "mean and spread of every block"}
    return store.get_or_make("class_probes", settings, make, [teacher], reads)


def features_of(images: Tensor, feature_model: Artifact | None) -> Tensor:
    """Features (N, D) of uint8 images: of the given classifier's last layer, or Inception's where it is None."""
    if feature_model is None:
        return inception_features(images)
    return classifier_features(load_trained(feature_model), images)


def real_features(store: Store, images: ImageSet, feature_model: Artifact | None) -> Artifact:
    """Statistics and features of real images in one feature space, kept: features.safetensors "mu", "sigma"."""
    def make(work: Path) -> dict:
        mu, sigma = statistics(features_of(images.images, feature_model))
        artifacts.save_tensors(work / "features.safetensors", {"mu": mu, "sigma": sigma})
        return {"images": len(images), "dimensions": len(mu)}

    reads = {images.split: "reference of the Fréchet distance"} if images.real else {}
    settings = {"images": images.fingerprint, "features": feature_model.key if feature_model else "inception-2048"}
    return store.get_or_make("real_features", settings, make, [feature_model] if feature_model else [], reads)


def gan_step(generator: Generator, discriminator: Discriminator, teacher: nn.Module, probes: Tensor, lam: float,
             side: int, steps: int = 1, epochs: int = 1) -> Callable:
    """The step of the conditional GAN: L_D, then L_G = L_adv + λ L_attention (A eq. 5).

    λ = 0 is the vanilla GAN: the attention loss is then measured but has no gradient. Both arms draw the same random
    numbers in the same order, so from one seed they differ in λ alone.

    Args:
        teacher: frozen ViT with a class token for side × side images. probes: its class probes (K, N). lam: λ ≥ 0.
        steps, epochs: of the training, for knowing the place of a step in its epoch.
    """
    def attention(fake: Tensor, labels: Tensor) -> Tensor:
        return attention_consistency_loss(attention_probe(teacher, crop_from_gan(fake, side)), probes[labels])

    @torch.no_grad()
    def watched(fake: Tensor, labels: Tensor, progress: float) -> dict[str, Tensor]:
        # The vanilla arm does not learn from it, so a look now and then is enough for its curve.
        place = round(progress * epochs * steps) % steps
        return {"attention": attention(fake, labels)} if place % WATCH_EVERY == 0 else {}

    def step(batch, progress: float) -> Iterator[tuple[str, dict]]:
        real, labels = batch[:2]
        noise = torch.randn(len(real), generator.latent, device=real.device)
        wanted = torch.randint(len(probes), (len(real),), device=real.device)
        fake = generator(noise, wanted)
        on_real, on_fake = discriminator(real, labels), discriminator(fake.detach(), wanted)
        d_loss = (F.binary_cross_entropy_with_logits(on_real.float(), torch.ones_like(on_real.float()))
                  + F.binary_cross_entropy_with_logits(on_fake.float(), torch.zeros_like(on_fake.float())))
        yield "discriminator", {"loss": d_loss}
        discriminator.requires_grad_(False)  # its weights need no gradient while the generator learns
        verdict = discriminator(fake, wanted).float()
        adversarial = F.binary_cross_entropy_with_logits(verdict, torch.ones_like(verdict))
        if lam > 0:
            consistency = attention(fake, wanted)
            loss = adversarial + lam * consistency
            yield "generator", {"loss": loss, "adversarial": adversarial, "attention": consistency}
        else:
            yield "generator", {"loss": adversarial, "adversarial": adversarial, **watched(fake, wanted, progress)}
        discriminator.requires_grad_(True)

    return step


def generate(generator: Generator, labels: Tensor, seed: int, side: int, batch_size: int = 500) -> Tensor:
    """uint8 images (N, C, side, side) of the classes asked for; the noise comes from `seed` alone."""
    device = next(generator.parameters()).device
    source = torch.Generator().manual_seed(seed)
    generator.eval()
    made = []
    with torch.inference_mode():
        for part in labels.split(batch_size):
            noise = torch.randn(len(part), generator.latent, generator=source)
            made.append(to_uint8(crop_from_gan(generator(noise.to(device), part.to(device)), side)).cpu())
    return torch.cat(made)


def balanced_labels(count: int, num_classes: int) -> Tensor:
    """0, 1, …, K−1, 0, 1, … : `count` labels, as even over the classes as can be."""
    return torch.arange(count) % num_classes


def train_cgan(store: Store, train_set: ImageSet, teacher: Artifact, probes: Artifact, reference: Artifact,
               feature_model: Artifact | None, config: training.TrainConfig, lam: float, width: int = 512,
               d_width: int = 64, latent: int = 100, dropout: float = 0.25, fid_images: int = 10_000) -> Artifact:
    """Train the conditional GAN on real images and measure its Fréchet distance after each epoch (METHODS A2).

    Args:
        teacher, probes: the ViT and its class probes. lam: λ of the attention loss; 0 is the vanilla GAN.
        reference: `real_features`. feature_model: the same one that `reference` was made with.
        width, d_width, latent, dropout: of generator and discriminator. fid_images: generated for the last distance.

    Returns:
        Artifact with generator.safetensors and history.json (losses, "attention", "frechet" on 2,000 images an epoch);
        metrics "frechet" (fid_images images, last epoch), "images_per_second".

    Raises:
        WorkbenchError: if λ < 0 or images are larger than 32 × 32. DivergedError: on bad numbers.
    """
    if lam < 0:
        raise WorkbenchError("the weight of the attention loss is impossible", expected="λ >= 0", got=lam)
    if train_set.shape[1] > SIDE or train_set.shape[1] != train_set.shape[2]:
        raise WorkbenchError("the conditional GAN makes 32 × 32 images", expected=f"square images of at most {SIDE} pixels",
                             got=train_set.shape, where=train_set.name, mend="resize the images (size=32)")
    side, channels, classes = train_set.shape[1], train_set.shape[0], train_set.num_classes
    settings = {"data": train_set.fingerprint, "classes": list(train_set.classes), "channels": channels, "side": side,
                "lam": lam, "width": width, "d_width": d_width, "latent": latent, "dropout": dropout,
                "config": config.as_dict(), "fid_images": fid_images}

    def make(work: Path) -> dict:
        guide, class_probe = load_trained(teacher), probes.tensors("probes.safetensors")["probes"]
        real = reference.tensors("features.safetensors")
        torch.manual_seed(config.seed)
        generator = Generator(classes, channels, latent, width)
        discriminator = Discriminator(classes, channels, d_width, dropout)
        device = training.device()

        def distance(count: int) -> float:
            images = generate(generator, balanced_labels(count, classes), config.seed + 1, side)
            return frechet_distance(real["mu"], real["sigma"], *statistics(features_of(images, feature_model)))

        batches = training.TensorBatches((train_set.images, train_set.labels), config.batch_size,
                                         lambda batch, _: (pad_to_gan(to_float(batch[0])), batch[1]))
        history = training.fit({"generator": generator, "discriminator": discriminator},
                               gan_step(generator, discriminator, guide, class_probe.to(device), lam, side, len(batches),
                                        config.epochs), batches,
                               config, {"generator": ["generator"], "discriminator": ["discriminator"]},
                               evaluate=lambda epoch: {"frechet": distance(CURVE_IMAGES)},
                               checkpoint=work / "checkpoint", label=f"cGAN λ={lam:g} seed {config.seed}")
        artifacts.save_tensors(work / "generator.safetensors", generator.state_dict())
        artifacts.save_json(work / "history.json", history)
        return {"frechet": distance(fid_images), "images_per_second": history[-1]["images_per_second"]}

    return store.get_or_make("cgan", settings, make, [teacher, probes, reference],
                             {train_set.split: "training the discriminator"} if train_set.real else {})


def probe_guided_gan(store: Store, train_set: ImageSet, teacher: Artifact, feature_model: Artifact | None,
                     config: training.TrainConfig, lam: float, **settings) -> Artifact:
    """`train_cgan` with the class probes and the reference statistics it needs, each made or found by key."""
    probes = class_probes(store, teacher, train_set)
    reference = real_features(store, train_set, feature_model)
    return train_cgan(store, train_set, teacher, probes, reference, feature_model, config, lam, **settings)


def load_generator(gan: Artifact) -> Generator:
    """The trained generator of a `train_cgan` artifact, in evaluation mode on the training device."""
    known = gan.settings
    generator = Generator(len(known["classes"]), known["channels"], known["latent"], known["width"])
    generator.load_state_dict(gan.tensors("generator.safetensors"))
    return generator.eval().to(training.device())


def synthesize(store: Store, gan: Artifact, count: int, seed: int = 0) -> tuple[ImageSet, Artifact]:
    """`count` synthetic images, even over the classes, from a trained generator: (ImageSet, its artifact).

    Reads no real image itself; what the generator has read stands in the ledger of its parents.
    """
    known = gan.settings
    labels = balanced_labels(count, len(known["classes"]))

    def make(work: Path) -> dict:
        images = generate(load_generator(gan), labels, seed, known["side"])
        artifacts.save_tensors(work / "images.safetensors", {"images": images, "labels": labels})
        return {"images": count}

    kept = store.get_or_make("synthetic", {"count": count, "seed": seed}, make, [gan])
    tensors = kept.tensors("images.safetensors")
    return ImageSet(tensors["images"], tensors["labels"], tuple(known["classes"]), f"synthetic ({kept.key})"), kept
