"""From a step function to a classifier in the store: build, train by the one loop, test, save."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from timm.utils.misc import natural_key
from torch import Tensor, nn

from dfkd_lib.attention import attention_probe, usual_token
from dfkd_lib.core import WorkbenchError, artifacts, ledger
from dfkd_lib.core.artifacts import Artifact, Store
from dfkd_lib.datasets import ImageSet, check_classes_agree, to_float
from dfkd_lib.models import MODELS, count_parameters, create_model, load_weights
from dfkd_lib.training.config import TrainConfig, arithmetic, device
from dfkd_lib.training.loop import TensorBatches, fit
from dfkd_lib.training.mixing import KINDS, Augmentation, Batch

CURVE_IMAGES = 2000  # test images behind the accuracy-per-epoch curve; the final figure always uses all of them


def shape_of(images: ImageSet, overrides: dict | None = None) -> dict:
    """What `create_model` needs to know of images and their classes, and overrides of the architecture."""
    shape = {"img_size": images.shape[1], "in_chans": images.shape[0]}
    return {"num_classes": images.num_classes, **shape, **(overrides or {})}


def frozen(model: nn.Module) -> nn.Module:
    """The model in evaluation mode, without gradients, on the training device."""
    return model.eval().requires_grad_(False).to(device())


def predict(model: nn.Module, images: Tensor, batch_size: int = 128) -> Tensor:
    """Logits (N, K) float32 on the CPU of uint8 images (N, C, H, W), in evaluation mode."""
    where, was_training = next(model.parameters()).device, model.training
    model.eval()
    with torch.inference_mode():
        parts = (to_float(part).to(where) for part in images.split(batch_size))
        logits = torch.cat([model(part).float().cpu() for part in parts])
    model.train(was_training)
    return logits


def evaluate(model: nn.Module, test_set: ImageSet) -> tuple[float, Tensor]:
    """Top-1 accuracy in [0, 1] on a set, and the logits (N, K) float32 behind it; see `check_outputs`."""
    check_outputs(model, test_set, "the model")
    logits = predict(model, test_set.images)
    return (logits.argmax(1) == test_set.labels).float().mean().item(), logits


def check_fit(model: nn.Module, images: ImageSet, what: str) -> None:
    """Raise unless the model takes these images and has one output for each of their classes, see `check_outputs`."""
    # Outside of inference mode: weights that move to a GPU inside it can never learn.
    model = frozen(model)
    try:
        with torch.inference_mode():
            outputs = model(torch.zeros(1, *images.shape, device=device()))
    except (AssertionError, RuntimeError) as error:
        raise WorkbenchError(
            f"{what} does not take these images",
            expected="images of the size it was made for",
            got=f"{images.shape} (C, H, W) of {images.name}: {str(error)[:200]}",
            fix="build it with img_size and in_chans of the images, or resize them",
        ) from None
    classifies = getattr(model, "classifies", True)  # False: a backbone from elsewhere
    if outputs.shape[-1] != images.num_classes or not classifies:
        raise WorkbenchError(
            f"{what} and the images have different classes",
            expected=f"{images.num_classes} classes",
            got=f"{outputs.shape[-1]} {'outputs' if classifies else 'features, and no classifier'}",
            where=images.name,
            fix="give num_classes to the model" if classifies else "take a model with a classifier",
        )
    check_outputs(model, images, what)


def check_outputs(model: nn.Module, images: ImageSet, what: str) -> None:
    """Raise if a model that names its outputs (`classes`) names others than the images, or in another order; and if one
    from elsewhere names none, where it depends on its trainer's way of sorting which class each output is."""
    known = getattr(model, "classes", images.classes)
    if known:
        check_classes_agree(known, images.classes, f"{what} and {images.name}")
        return
    # torchvision sorts folders as text, timm and others by the numbers in their names.
    others = tuple(sorted(images.classes, key=natural_key))
    if others != images.classes:
        texts = (
            ", ".join(names[:6]) + ", …" * (len(names) > 6) for names in (images.classes, others)
        )
        raise WorkbenchError(
            f"{what} does not name its outputs, and the names of these classes are sorted in two ways",
            expected="a model with class names",
            got=" or ".join(f"({text})" for text in texts),
            where=images.name,
            fix='write the names, in the order of its outputs, as "classes" into the .json beside its weights '
            "(of a transformers folder: as id2label into config.json)",
        )


class Watch(nn.Module):
    """Keeps the probes of a network's last block, epoch by epoch, in its buffer `probes`, float32 (epochs + 1, n, N).

    It stands among the trained modules, so that the loop saves and resumes what it has kept; it has no weights, draws no
    random number and changes nothing of the training. When an epoch is over the loop puts its modules in evaluation mode.

    Args:
        model: with attention; its probe is the class token's, or without one the mean over patches.
        images: uint8 (n, C, H, W).
        epochs: how many there will be.

    Raises:
        WorkbenchError: for a model without attention.
    """

    probes: Tensor
    epoch: Tensor

    def __init__(self, model: nn.Module, images: Tensor, epochs: int):
        super().__init__()
        self.images, self.model = images, [model]  # in a list: it is no module of this one
        first = self.look()
        self.register_buffer("probes", first.new_zeros(epochs + 1, *first.shape))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.long))
        self.probes[0] = first
        super().train(False)

    @torch.no_grad()
    def look(self) -> Tensor:
        """The probes (n, N), float32, of the model in evaluation mode."""
        (model,) = self.model
        was_training = model.training
        pixels = to_float(self.images).to(next(model.parameters()).device)
        found = attention_probe(model.eval(), pixels, token=usual_token(model))
        model.train(was_training)
        return found

    def train(self, mode: bool = True) -> "Watch":
        """Count where an epoch begins, look where it ends."""
        if mode and not self.training:
            self.epoch += 1
        elif not mode and self.training:
            self.probes[self.epoch] = self.look().to(self.probes)
        return super().train(mode)


def reads_of(*sets: tuple[ImageSet, str]) -> dict[str, str | dict[str, np.ndarray]]:
    """The ledger's declaration for the real ones among (set, purpose) pairs; of one split for several, each with its places."""
    declared: dict[str, dict[str, np.ndarray]] = {}
    for images, purpose in sets:
        if images.split is not None:
            places = declared.setdefault(images.split, {})
            own = np.asarray(images.places)
            places[purpose] = np.union1d(places.get(purpose, own), own)
    return {s: next(iter(p)) if len(p) == 1 else p for s, p in declared.items()}


def train_classifier(
    store: Store,
    stage: str,
    model_name: str,
    train_set: ImageSet,
    test_set: ImageSet,
    config: TrainConfig,
    make_step: Callable,
    *,
    settings: dict | None = None,
    overrides: dict | None = None,
    augmentation: Augmentation = Augmentation(),
    parents: Sequence[Artifact] = (),
    start: Artifact | None = None,
    watch: int = 0,
) -> Artifact:
    """Train a classifier by a step function and store it, with its history and its logits on the test images.

    Args:
        stage: name of the stage in keys and ledger.
        model_name, overrides: for `create_model`; its initial weights come from config.seed, or from the artifact `start`.
        train_set: what it learns from; real or synthetic. test_set: real images for evaluation alone.
        make_step: model → (step function, {name: module} trained beside the model).
        settings: everything else that the result depends on (of the step); part of the key.
        augmentation: from images of the set to what the step receives; part of the key.
        parents: artifacts it was made from (teacher, synthetic images).
        watch: test images of which `Watch` keeps the attention, "probes" and "images" of attention.safetensors.

    Returns:
        Artifact with model.safetensors, history.json, test_logits.safetensors; metrics "accuracy" (all test images,
        last epoch), "parameters", "train_images", "images_per_second".
    """
    check_classes_agree(train_set.classes, test_set.classes, f"{train_set.name}, {test_set.name}")
    # The whole configuration, not its name alone: a named model that is changed must not be found by an old key.
    overrides = {**MODELS.get(model_name, (None, {}))[1], **shape_of(train_set, overrides)}
    known: dict = {"model": model_name, "overrides": overrides, "config": config.as_dict()}
    known |= {"train": train_set.fingerprint, "test": test_set.fingerprint}
    known |= {"classes": list(train_set.classes), "train_name": train_set.name}
    known |= {"augmentation": augmentation.as_dict(), **(settings or {})}
    known |= {"watch": watch} if watch else {}

    def make(work: Path) -> dict:
        torch.manual_seed(config.seed)
        model = create_model(model_name, **overrides)
        check_fit(model, train_set, f"model {model_name}")
        model.requires_grad_(True)
        if start is not None:
            check_classes_agree(start.settings["classes"], train_set.classes, str(start.path))
            model.load_state_dict(start.tensors())
        sets, label = (train_set, test_set), f"{stage} {model_name}"
        return _trained(work, model, make_step, *sets, config, augmentation, label, watch)

    ancestors = [*parents, *([start] if start else [])]
    reads = reads_of((train_set, "training"), (test_set, ledger.EVALUATION))
    code = [MODELS.get(model_name), KINDS[augmentation.kind]]
    return store.get_or_make(stage, known, make, ancestors, reads, code=code)


def _trained(
    work: Path,
    model: nn.Module,
    make_step: Callable,
    train_set: ImageSet,
    test_set: ImageSet,
    config: TrainConfig,
    augmentation: Augmentation,
    label: str,
    watch: int,
) -> dict:
    """Train the model, store it in `work`, and return its metrics."""
    step, beside = make_step(model)
    modules: dict[str, nn.Module] = {"model": model, **beside}
    if watch:
        modules["watch"] = Watch(model, test_set.sample(watch).images, config.epochs)
    batches = TensorBatches(
        (train_set.images, train_set.labels, torch.arange(len(train_set))),
        config.batch_size,
        lambda batch, generator: augmentation(Batch(*batch), generator),
    )
    curve = test_set.sample(CURVE_IMAGES, seed=0)

    def measured(epoch: int) -> dict[str, float]:
        with arithmetic(config.precision):
            return {"test_accuracy": evaluate(model, curve)[0]}

    how: dict = {"evaluate": measured, "checkpoint": work / "checkpoint", "label": label}
    history = fit(modules, step, batches, config, **how)
    if isinstance(seen := modules.get("watch"), Watch):
        kept = {"probes": seen.probes, "images": seen.images}
        artifacts.save_tensors(work / "attention.safetensors", kept)
    metrics = save_tested(work, model, test_set, history)
    speed = history[-1]["images_per_second"]
    return {**metrics, "train_images": len(train_set), "images_per_second": speed}


def save_tested(work: Path, model: nn.Module, test_set: ImageSet, history: list[dict]) -> dict:
    """Write a classifier, its history and its logits on the test images; its "accuracy" and "parameters"."""
    accuracy, logits = evaluate(model, test_set)
    tested = {"logits": logits.half(), "labels": test_set.labels}
    artifacts.save_tensors(work / "model.safetensors", model.state_dict())
    artifacts.save_tensors(work / "test_logits.safetensors", tested)
    artifacts.save_json(work / "history.json", history)
    return {"accuracy": accuracy, "parameters": count_parameters(model)}


def load_trained(artifact: Artifact) -> nn.Module:
    """The classifier of an artifact, rebuilt from its settings, frozen, on the training device; `classes` names its outputs."""
    model = create_model(artifact.settings["model"], **artifact.settings["overrides"])
    load_weights(model, artifact.tensors(), artifact.path)
    model.classes = tuple(artifact.settings.get("classes") or ()) or None  # type: ignore[assignment]
    return frozen(model)


def test_logits(artifact: Artifact) -> tuple[Tensor, Tensor]:
    """(logits float32 (N, K), labels int64 (N,)) of a classifier's artifact on its test images, from disk."""
    tested = artifact.tensors("test_logits.safetensors")
    return tested["logits"].float(), tested["labels"]


# A name that pytest would take for a test.
test_logits.__test__ = False  # type: ignore[attr-defined]
