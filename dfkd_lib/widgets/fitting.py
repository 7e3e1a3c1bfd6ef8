"""Which models take which images, and which choices a model has: what the explorer offers, and what stands beside."""

import os
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from dfkd_lib import attention
from dfkd_lib.core import WorkbenchError, resolve
from dfkd_lib.datasets import ImageSet, SceneSet, read_image, to_float
from dfkd_lib.models import Detector, check_images, expected_shape

Data = ImageSet | SceneSet
OWN_SIDE = 640  # longest side in pixels of an own image under a model that takes any size


class Fitting:
    """What can be shown of these models and images; each pair is tried once.

    Args:
        models: {name: model in evaluation mode}. data: {name: ImageSet or SceneSet}.
        learning: {name of a model: its attention.safetensors of `student.watch`}.
    """

    def __init__(
        self, models: dict[str, nn.Module], data: dict[str, Data], learning: dict[str, dict]
    ):
        self.models, self.data, self.learning = models, data, learning
        self.watched = {name: watched_name(data, one["images"]) for name, one in learning.items()}
        self._tried: dict[tuple, bool] = {}
        self._own: dict[tuple, SceneSet] = {}

    def images(self, model: str, data: str) -> Data:
        """The images of a name; of the path of an image file that image, as this model takes it.

        A model of one size gets the middle square of the image at that size, any other its whole.

        Raises:
            WorkbenchError: if it is neither, or the file cannot be read.
        """
        if data in self.data:
            return self.data[data]
        net = self.models[model]
        known = None if isinstance(net, Detector) else expected_shape(net)
        if (data, known) not in self._own:
            self._own[data, known] = _own(data, list(self.data), *(known or (3, None)))
        return self._own[data, known]

    def fits(self, model: str, data: str) -> bool:
        """Whether the model takes these images as they are, and has attention to look at."""

        net, images = self.models[model], self.images(model, data)
        detects = isinstance(net, Detector)

        def look() -> None:
            attention.attention_sites(net)
            if not detects:
                check_images(net, tuple(images.shape), data)

        return (images.shape[0] == 3 or not detects) and self._try((model, data), look)

    def sized(self, model: str, data: str) -> int | None:
        """The side in pixels at which the model takes these images where it does not as they are; None where it does."""
        known = None if self.fits(model, data) else expected_shape(self.models[model])
        return known[1] if known and known[0] == self.images(model, data).shape[0] else None

    def beside(self, data: str) -> list[str]:
        """The models that can be shown with these images, at another size if need be."""
        return [m for m in self.models if self.fits(m, data) or self.sized(m, data)]

    def possible(self, model: str, data: str) -> dict[str, list[str]]:
        """What can be chosen instead of, or beside, a model and its data, by names of `Choice`."""
        beside = [f"model:{m}" for m in self.beside(data)]
        beside += ["models"] * (len(beside) > 2)
        fitting = [d for d in self.data if self.fits(model, d)]
        return {
            "model": [m for m in self.models if any(self.fits(m, d) for d in self.data)],
            "data": fitting,
            "compare": ["", *beside, *(f"data:{d}" for d in fitting)],
            "weights": self.ways(model, data),
        }

    def ways(self, model: str, data: str) -> list[str]:
        """The weights that can be shown of a model: rollout needs a map of every block, gradients a class too, LeGrad a
        stack of blocks besides, similarity the tokens of every block."""
        net = self.models[model]
        if isinstance(net, Detector):
            return ["attention", "gradient"]

        def works(what: str, explain: Callable, *more) -> bool:
            def look() -> None:
                explain(net, batch_of(net, self.images(model, data).subset([0]).images), *more)

            return self._try((model, what), look)

        with torch.inference_mode():
            followed = works("rollout", attention.attention_rollout, 0)
            alike = works("features", attention.patch_features)
        classified = followed and getattr(net, "classifies", True)
        stacked = classified and works("legrad", attention.legrad)
        possible = {"rollout": followed, "gradient": classified, "legrad": stacked}
        possible |= {"similarity": alike, "components": alike}
        possible["learning"] = self.watched.get(model) == data
        return ["attention", *(way for way, can in possible.items() if can)]

    def _try(self, key: tuple, look) -> bool:
        if key not in self._tried:
            try:
                look()
                self._tried[key] = True
            except Exception:  # whatever it is, it cannot be shown
                self._tried[key] = False
        return self._tried[key]


def watched_name(data: dict[str, Data], images: Tensor) -> str:
    """The name, in `data` from now on, of images that were watched while models learned: one for all of the same images."""
    name, number = "watched", 1
    while name in data and not torch.equal(data[name].images, images):
        number += 1
        name = f"watched {number}"
    if name not in data:
        data[name] = _without_objects(images, name)
    return name


def batch_of(model: nn.Module, pixels: Tensor) -> Tensor:
    """Images uint8 (B, C, H, W) as a model takes them, on its device: a detector in [0, 1], any other in [-1, 1]."""
    device = next(model.parameters()).device
    if isinstance(model, Detector):
        return pixels.to(device).float() / 255
    return to_float(pixels).to(device)


def resized(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Images uint8 (B, C, H, W) at another size, (height, width)."""
    how = {"mode": "bilinear", "antialias": True}
    return interpolate(pixels.float(), size, **how).round().clamp(0, 255).byte()


def _own(data: str, names: list[str], channels: int, side: int | None) -> SceneSet:
    """The image of a file as a scene without objects, (1, channels, side, side), or as it is up to `OWN_SIDE`."""
    path = resolve(data)
    if not os.path.isfile(path):
        raise WorkbenchError(
            "no such data",
            expected=f"{', '.join(names)}, or the path of an image file",
            got=data,
            where="data",
            fix="choose one of the expected; a relative path begins at the repository",
        )
    pixels = read_image(path, "L" if channels == 1 else "RGB", side, crop=True)
    planes = torch.from_numpy(pixels.copy()).reshape(*pixels.shape[:2], -1).movedim(-1, 0)[None]
    if not side and (most := max(planes.shape[-2:])) > OWN_SIDE:
        height, width = (max(1, round(n * OWN_SIDE / most)) for n in planes.shape[-2:])
        planes = resized(planes, (height, width))
    return _without_objects(planes.contiguous(), path.name)


def _without_objects(images: Tensor, name: str) -> SceneSet:
    """Images uint8 (n, C, H, W) of which nobody says what they show."""
    boxes, labels = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
    return SceneSet(images, [boxes] * len(images), [labels] * len(images), (name,), origin=name)
