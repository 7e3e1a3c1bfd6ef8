"""What the attention explorer shows for a choice: from models, images and a choice to panels of arrays, no widget in it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dfkd_lib import attention, plots, training
from dfkd_lib.attention import capture_attention
from dfkd_lib.attention.sites import pick
from dfkd_lib.core import WorkbenchError, one_of
from dfkd_lib.datasets import ImageSet, SceneSet
from dfkd_lib.metrics import sure
from dfkd_lib.models import Detector, check_images
from dfkd_lib.widgets.choice import Choice
from dfkd_lib.widgets.fitting import Data, Fitting, batch_of, resized
from dfkd_lib.widgets.panel import Panel


def named(things, fallback: str) -> dict:
    """A dict as it is, one at least; one thing by itself under the name `fallback`."""
    found = dict(things) if isinstance(things, dict) else {fallback: things}
    if not found:
        fix = "give one, or several by name in a dict"
        raise WorkbenchError("there is nothing to show", expected=fallback, got="none", fix=fix)
    return found


class Viewer:
    """Opens images under models as a choice asks.

    Args:
        models: {name: model in evaluation mode}. data: {name: ImageSet or SceneSet}.
        class_probes: {name of a model: {name of a class: (blocks, N)}}.
        learning: {name of a model: {"images": uint8 (n, C, H, W), "probes": (epochs + 1, n, N)}} of `student.watch`.
    """

    def __init__(
        self,
        models: dict[str, nn.Module],
        data: dict[str, Data],
        class_probes: dict[str, dict[str, Tensor]] | None = None,
        learning: dict[str, dict[str, Tensor]] | None = None,
    ):
        self.models, self.data, self.class_probes = models, dict(data), class_probes or {}
        self.fitting = Fitting(models, self.data, learning or {})
        for name, probes in self.class_probes.items():
            if not isinstance(probes, dict):
                raise WorkbenchError(
                    "class probes are given by the name of their class",
                    expected="{model: {class: probe}}",
                    got=type(probes).__name__,
                    where=f"class_probes of {name}",
                    fix="give {model: dict(zip(images.classes, probes))}, of the images they are means over",
                )

    def is_detector(self, model: str) -> bool:
        """Whether a model of that name is a detector."""
        return isinstance(self.models.get(model), Detector)

    def kinds(self, model: str) -> tuple[str, ...]:
        """The kinds of attention that a model has, its usual one first."""
        return ("cross", "encoder") if self.is_detector(model) else ("encoder",)

    def class_of(self, data: str, image: int) -> str | None:
        """The name of an image's class, or None for a scene."""
        images = self.data.get(data)
        return images.classes[images.labels[image]] if isinstance(images, ImageSet) else None

    def settle(self, choice: Choice) -> Choice:
        """The choice with every default filled in and everything checked; WorkbenchError if it cannot be had."""
        model = choice.model or next(iter(self.models))
        one_of("model", model, self.models)
        scenes = self.is_detector(model)
        fitting = [n for n in self.data if not choice.data and self.fitting.fits(model, n)]
        fitting.sort(key=lambda n: isinstance(self.data[n], SceneSet) != scenes)
        data = choice.data or next(iter(fitting or self.data))
        images = self.fitting.images(model, data)
        kind = choice.kind or self.kinds(model)[0]
        one_of("kind", kind, self.kinds(model))
        if choice.compare not in ("", "models"):
            what, _, name = choice.compare.partition(":")
            one_of("comparison", what, ("model", "data", "models"))
            one_of(what, name, self.models if what == "model" else self.data)
        if not choice.data and not choice.image and isinstance(images, SceneSet):
            # It opens on something to see.
            full = (i for i, labels in enumerate(images.labels) if len(labels))
            choice = choice.replace(image=next(full, 0))
        within(choice.image, 0, len(images) - 1, "image", data)
        sites = attention.attention_sites(self.models[model], kind)
        block = pick(choice.block, len(sites), "block")
        heads = sites[block].heads
        head = -1 if choice.head == -1 or not heads else pick(choice.head, heads, "head")
        return choice.replace(model=model, data=data, kind=kind, block=block, head=head)

    def panels(self, choice: Choice) -> list[Panel]:
        """The panels of a choice: one, or two or more where it compares.

        Raises:
            WorkbenchError: for a model without attention, anything out of range, images that do not fit the model.
        """
        choice = self.settle(choice)
        first, (what, _, name) = self._panel(choice), choice.compare.partition(":")
        off, others = [self._without(choice)] if choice.without else [], []
        if what in ("model", "models"):
            models = [m for m in self.fitting.beside(choice.data) if m != choice.model]
            others = [self._for_other(choice, m) for m in ([name] if name else models)]
        elif what == "data":
            others = [choice.replace(data=name, image=self._partner(choice, name))]
            if choice.weights == "components":  # one basis for both
                first = self._panel(choice, *others)
        return [first, *off, *(self._beside(first, other, choice) for other in others)]

    def figure(self, choice: Choice):
        """The panels of a choice as a matplotlib figure."""
        how = {"covering": choice.overlay, "colours": choice.colours}
        return plots.attention_panels(self.panels(choice), one_scale=choice.scale == "one", **how)

    def _beside(self, first: Panel, choice: Choice, chosen: Choice) -> Panel:
        """The second panel; a patch that is chosen in the first is the one at the same place in the image here."""
        if not choice.token.isdigit() or choice.kind == "cross":
            return self._panel(choice, chosen)
        here = self._panel(choice.replace(token=""), chosen)  # what grid it has
        patch = here.patch_at(first.place(int(choice.token)))
        return self._panel(choice.replace(token=str(patch)), chosen)

    def _without(self, choice: Choice) -> Panel:
        """The panel of the same model without the attention of a block or head."""
        block, head = choice.gone
        with attention.without_attention(self.models[choice.model], block, head, choice.kind):
            panel = self._panel(choice)
        what = f"block {block + 1}" + ("" if head is None else f", head {head + 1}")
        return replace(panel, title=f"{panel.title}, without {what}")

    def _for_other(self, choice: Choice, name: str) -> Choice:
        """The choice for a second model, which may have fewer blocks or heads: the same share of its depth, its mean."""
        alike = self.is_detector(name) == self.is_detector(choice.model)
        kind = choice.kind if alike else self.kinds(name)[0]
        mine = attention.attention_sites(self.models[choice.model], choice.kind)
        other = attention.attention_sites(self.models[name], kind)
        block = round(choice.block * (len(other) - 1) / max(1, len(mine) - 1))
        head = choice.head if choice.head < (other[block].heads or 0) else -1
        # Queries are numbered by each detector for itself: of another, that of the highest score is shown.
        token = "" if kind == "cross" else choice.token
        return choice.replace(model=name, kind=kind, block=block, head=head, token=token)

    def _partner(self, choice: Choice, name: str) -> int:
        """The image of other data that stands beside the chosen one: of its class, `compare_image`-th, round and round."""
        other, label = self.data[name], self.class_of(choice.data, choice.image)
        if label is None or not isinstance(other, ImageSet):
            return choice.compare_image % len(other)
        place = other.classes.index(label) if label in other.classes else -1
        found = (other.labels == place).nonzero().flatten()
        if not len(found):
            what = f"no image of class {label}"
            fix = "choose an image of another class, or other data"
            raise WorkbenchError(what, expected="one at least", got="none", where=name, fix=fix)
        return int(found[choice.compare_image % len(found)])

    @torch.inference_mode()
    def _panel(self, choice: Choice, first: Choice | None = None) -> Panel:
        """One image under one model; `first` is the choice that it stands beside."""
        model, data = self.models[choice.model], self.fitting.images(choice.model, choice.data)
        pixels, size = data.subset([choice.image]).images, ""
        if first and (side := self.fitting.sized(choice.model, choice.data)):
            pixels, size = resized(pixels, (side, side)), f" resized to {side} x {side}"
        known = choice.data in self.data
        shown_as = f"{choice.data} {choice.image}" if known else Path(choice.data).name
        if self.is_detector(choice.model):
            shown = self._detector(choice, model, pixels)
        else:
            shown = self._classifier(choice, model, pixels, first)
        return Panel(
            title=f"{choice.model} · {shown_as}{size}",
            image=pixels[0].numpy(),
            block=choice.block,
            head=choice.head,
            kind=choice.kind,
            kinds=self.kinds(choice.model),
            blocks=len(attention.attention_sites(model, choice.kind)),
            cover=_cover(model, shown["grid"], *pixels.shape[-2:]),
            way=choice.weights,
            **shown,
        )

    def _classifier(
        self, choice: Choice, model: nn.Module, pixels: Tensor, first: Choice | None
    ) -> dict:
        check_images(model, tuple(pixels.shape[1:]), choice.data)
        batch = batch_of(model, pixels)
        layout, row = attention.token_layout(model), _row(model, choice.token)
        logits, found, overview = _look(model, batch, choice.block, row)
        patches = attention.on_patches(model, found, batch)[0]
        shown = {
            "grid": attention.patch_grid(model, patches.shape[-1], *pixels.shape[-2:]),
            "class_probe": self._class_probe(choice, patches.shape[-1]),
            "prediction": self._prediction(choice, model, logits[0]),
        }
        if choice.weights == "attention":
            prefix, row = layout.prefix, row % patches.shape[1]
            weights = _weights(choice, patches, overview[..., layout.patches])
            return shown | {"row": row, "prefix": prefix, **weights}
        if choice.weights == "learning":
            return shown | self._learning(choice)
        if choice.weights == "components":
            return shown | {"class_probe": None} | self._components(choice, model, batch, first)
        if choice.weights == "similarity":
            return shown | self._similar(choice, model, batch, first)
        if choice.weights == "legrad":  # of the class, whatever token it is read off
            return shown | {"class_probe": None} | _one_row(attention.legrad(model, batch))
        rollout = choice.weights == "rollout"
        explain = attention.attention_rollout if rollout else attention.gradient_attention
        token: str | int = choice.token or ("class" if layout.class_token is not None else "0")
        token = int(token) if token.isdigit() else token
        return shown | _one_row(explain(model, batch, token=token))

    def _learning(self, choice: Choice) -> dict:
        """What was kept of a watched image after an epoch."""
        if "learning" not in self.fitting.ways(choice.model, choice.data):
            raise WorkbenchError(
                "nobody watched this model learn from these images",
                expected=", ".join(f"{m} on {d}" for m, d in self.fitting.watched.items())
                or "none",
                got=f"{choice.model} on {choice.data}",
                where="weights",
                fix="train it with student.watch=4 and give attention_explorer(learning={its name: the artifact's "
                "attention.safetensors})",
            )
        probes = self.fitting.learning[choice.model]["probes"]
        epoch = pick(choice.epoch, len(probes), "epoch")
        about = {"epoch": epoch, "epochs": len(probes) - 1, "class_probe": None}
        return _one_row(probes[epoch, choice.image][None]) | about

    def _components(
        self, choice: Choice, model: nn.Module, batch: Tensor, beside: Choice | None
    ) -> dict:
        """The components of the patches here, of one basis with those of another image in the same model."""
        features = here = attention.patch_features(model, batch, choice.block)
        if beside and beside.model == choice.model:
            there = self._features(model, beside)
            if there.shape == here.shape:
                features = torch.cat([here, there])
        found = attention.patch_components(features)
        tints = (255 * found.values[0]).round().int().tolist()
        shares = found.shares.tolist()
        return _one_row(found.values[:1, :, 0]) | {"tints": tints, "shares": shares}

    def _features(self, model: nn.Module, choice: Choice) -> Tensor:
        """The patch features (1, N, width) of another choice's image in this model."""
        pixels = self.fitting.images(choice.model, choice.data).subset([choice.image]).images
        return attention.patch_features(model, batch_of(model, pixels), choice.block)

    def _similar(
        self, choice: Choice, model: nn.Module, batch: Tensor, first: Choice | None
    ) -> dict:
        """The cosines (N, N), where above 0, of patches with those here: of this image, or of the first in the same model."""
        there = here = attention.patch_features(model, batch, choice.block)[0]
        if first and first.model == choice.model:
            found = self._features(model, first)[0]
            here = found if len(found) == len(there) else here  # grids differ: by itself
        cosines = torch.cosine_similarity(here[:, None], there[None], dim=-1).clamp(min=0)
        rows, columns = attention.patch_grid(model, len(here), *batch.shape[-2:])
        middle = rows // 2 * columns + columns // 2
        row = _number(choice.token) if choice.token.isdigit() else middle
        chosen = {"row": pick(row, len(here), "token"), "prefix": 0, "nearest": here is not there}
        return {"weights": _array(cosines), **chosen}

    def _prediction(self, choice: Choice, model: nn.Module, logits: Tensor) -> str:
        true = self.class_of(choice.data, choice.image)
        classifies = getattr(model, "classifies", True)  # False: a backbone from elsewhere
        chance = f" ({100 * float(logits.softmax(0).amax()):.1f} %)" if choice.without else ""
        predicted = f"predicted {_output(model, int(logits.argmax()))}{chance}"
        predicted = predicted if classifies else "no classifier"
        return predicted if true is None else f"class {true}, {predicted}"

    def _class_probe(self, choice: Choice, patches: int) -> np.ndarray | None:
        """The class probe of the image's class at the chosen block, where there is one and the class token is chosen."""
        probes, model = self.class_probes.get(choice.model, {}), self.models[choice.model]
        label = self.class_of(choice.data, choice.image)
        has_token = attention.token_layout(model).class_token is not None
        if label is None or not has_token or choice.token not in ("", "class"):
            return None
        probe = probes.get(label)
        fits = probe is not None and probe.shape == (len(attention.attention_sites(model)), patches)
        return _array(probe[choice.block]) if fits else None

    def _detector(self, choice: Choice, model: Detector, pixels: Tensor) -> dict:
        if pixels.shape[1] != 3:
            raise WorkbenchError(
                "a detector takes colour images",
                expected="3 channels",
                got=f"{pixels.shape[1]} channels",
                where=choice.data,
                fix="choose other data",
            )
        batch = batch_of(model, pixels)
        with capture_attention(model, None, None, kind=choice.kind) as captured:
            detected = model(batch)
        scores, boxes = detected.logits[0].sigmoid()[..., :-1].cpu(), detected.boxes[0].cpu()
        order = scores.amax(-1).argsort(descending=True).tolist()
        found = sure(scores, boxes, choice.threshold)
        maps = torch.stack([one[0] for one in captured.values()])  # (blocks, heads, T, S)
        best = order[0] if choice.kind == "cross" else 0
        row = best if choice.token in ("", "class") else _number(choice.token)
        pick(row, maps.shape[2], "token")
        names = [_output(model, label) for label in found["labels"].tolist()]
        several = f"{len(names)} detections of score ≥ {choice.threshold:g}"
        if choice.weights == "attention":
            weights = {"row": row, **_weights(choice, maps[choice.block], maps[:, :, row])}
        elif choice.weights != "gradient" or choice.kind != "cross":
            raise WorkbenchError(
                "a detector has no such weights",
                expected="attention, or gradient of a detection",
                got=f"{choice.weights} for kind {choice.kind}",
                where="weights",
                fix="choose one of these",
            )
        else:
            relevance = attention.detection_relevance(model, batch, row)
            weights = {"weights": _array(relevance), "row": 0}
        return weights | {
            "prediction": "1 detection" if len(names) == 1 else several,
            "grid": attention.patch_grid(model, maps.shape[-1], *pixels.shape[-2:]),
            "query": row if choice.kind == "cross" else None,
            "boxes": found["boxes"],
            "queries": order[: len(names)],
            "labels": [f"{name} {s:.2f}" for name, s in zip(names, found["scores"], strict=True)],
        }

    def wrong(self, model: str, data: str, count: int) -> tuple[np.ndarray, str]:
        """Which of the first `count` images a classifier takes for another class, bool (n,), by the names of both; and a note
        on classes of which that cannot be told."""
        images, net = self.data[data], self.models[model]
        check_images(net, images.shape, data)
        first, names = images.subset(range(min(count, len(images)))), getattr(net, "classes", None)
        if not names:
            return np.zeros(len(first), bool), "not known: the model's outputs have no names"
        found = training.predict(net, first.images).argmax(-1)
        true = np.array(images.classes)[first.labels.numpy()]
        unknown = [name for name in images.classes if name not in names]
        note = f"the model has no class {', '.join(unknown[:3])}{', …' * (len(unknown) > 3)}"
        said = np.array([_output(net, label) for label in found.tolist()])
        return (said != true) & ~np.isin(true, unknown), note if unknown else ""


def _look(model: nn.Module, batch: Tensor, block: int, row: int) -> tuple[Tensor, Tensor, Tensor]:
    """The output, the map of a block (1, heads, T, S), and a token's row in every block, (blocks, heads, S).

    Where a block has other tokens or heads than this one (stages, windows), or no map at all, its rows are zero.
    """
    try:
        with (
            capture_attention(model, None, row) as rows,
            capture_attention(model, (block,), None) as maps,
        ):
            output = model(batch)
    except WorkbenchError:
        with capture_attention(model, (block,), None) as maps:
            output = model(batch)
        rows = {block: maps[block][:, :, pick(row, maps[block].shape[2], "token")]}
    own = rows[block]
    every = (rows.get(index, own[:0]) for index in range(len(attention.attention_sites(model))))
    blank = torch.zeros_like(own[0])
    overview = torch.stack([x[0] if x.shape == own.shape else blank for x in every])
    return output, maps[block], overview


def _cover(model: nn.Module, grid: tuple[int, int], height: int, width: int) -> tuple[float, float]:
    """The shares of an image's height and width that whole patches cover; what is left over no patch sees."""
    rows, columns = attention.token_layout(model).patch or (0, 0)
    if not rows or grid != (height // rows, width // columns):
        return 1.0, 1.0
    return grid[0] * rows / height, grid[1] * columns / width


def _output(model: nn.Module, label: int) -> str:
    """The name of a model's output, its number where nobody knows it."""
    names = getattr(model, "classes", None) or ()
    return names[label] if label < len(names) else f"output {label}"


def _weights(choice: Choice, maps: Tensor, overview: Tensor) -> dict:
    """The attention (heads, T, N) of the chosen head, or the heads' mean, beside that of every block and head."""
    chosen = maps.mean(0) if choice.head < 0 else maps[choice.head]
    return {"weights": _array(chosen), "overview": _array(overview)}


def _one_row(values: Tensor) -> dict:
    """Weights (1, N) that are no patch's own: of the class, or of a token that is not among the rows."""
    return {"weights": _array(values), "row": 0, "prefix": 1}


def _array(values: Tensor) -> np.ndarray:
    return values.detach().float().cpu().numpy()


def within(value: float, low: float, high: float, what: str, where: str) -> None:
    """Refuse a number outside its bounds."""
    if not low <= value <= high:
        _refuse(what, f"{low}..{high}", value, where)


def _refuse(what: str, expected: str, got: object, where: str) -> None:
    fix = "choose one of the expected"
    raise WorkbenchError(f"no such {what}", expected=expected, got=got, where=where, fix=fix)


def _row(model: nn.Module, token: str) -> int:
    """The row of a token named as in `Choice`; of a model without class token by default its first patch."""
    layout = attention.token_layout(model)
    if token in ("", "class", "distillation"):
        if not token and layout.class_token is None:
            return layout.prefix
        return attention.query_token(model, token or "class")
    return attention.query_token(model, _number(token))


def _number(token: str) -> int:
    if not token.isdigit():
        expected = "class, distillation, or the number of a patch or query from 0"
        _refuse("token", expected, token, "token")
    return int(token)
