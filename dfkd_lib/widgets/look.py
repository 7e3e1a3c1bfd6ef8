"""What the attention explorer shows for a choice: from models, images and a choice to panels of arrays, no widget in it."""

import shlex
from dataclasses import asdict, dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dfkd_lib import attention
from dfkd_lib.attention import capture_attention
from dfkd_lib.attention.sites import pick
from dfkd_lib.core import WorkbenchError
from dfkd_lib.core.config import parse_overrides
from dfkd_lib.datasets import ImageSet, SceneSet, to_float
from dfkd_lib.detection import sure
from dfkd_lib.models import check_images
from dfkd_lib.models.detectors import Detector

WEIGHTS = ("attention", "rollout", "gradient")


@dataclass(frozen=True)
class Choice:
    """What is looked at, as plain scalars: the explorer's state, and notebook 10's parameter `view`.

    Args:
        model, data: names among those given to the explorer; "" is the first. image: its place in the data.
        block: from the end if negative. head: -1 is the mean of the heads.
        token: whose attention: "class", "distillation", or the number of a patch; of a detection's query for kind "cross".
            "" is the class token, or a detector's surest query.
        kind: "encoder" or, for a detector, "cross"; "" is what shows a model best.
        weights: "attention", "rollout", or "gradient" (gradient-weighted attention of the predicted class).
        compare: "", "model:NAME" for the same image in another model, or "data:NAME" for an image of the same class from
            other data. compare_image: which of that class's images there.
        threshold: score from which a detection is shown, 0..1.
    """

    model: str = ""
    data: str = ""
    image: int = 0
    block: int = -1
    head: int = -1
    token: str = ""
    kind: str = ""
    weights: str = "attention"
    compare: str = ""
    compare_image: int = 0
    threshold: float = 0.5

    @classmethod
    def read(cls, text: str) -> "Choice":
        """The choice that `text` wrote, as notebook 10's parameter `view`: "image=3 head=1"; "" is the default one.

        Raises:
            WorkbenchError: on a name that is none of these, or a value of another type.
        """
        pairs, kinds = parse_overrides(text), {f.name: type(f.default) for f in fields(cls)}
        try:
            return cls(**{name: kinds[name](value) for name, value in pairs.items()})
        except (KeyError, ValueError) as error:
            raise WorkbenchError(
                "a view cannot be read",
                expected="name=value with a name of " + ", ".join(kinds),
                got=text,
                where="view",
                fix=f"correct {error}",
            ) from None

    def text(self) -> str:
        """What differs from the default choice, as `read` takes it."""
        start = Choice()
        pairs = [(k, v) for k, v in asdict(self).items() if v != getattr(start, k)]
        return " ".join(shlex.quote(f"{name}={value}") for name, value in pairs)

    def parameters(self) -> dict:
        """The same as parameters of notebook 10."""
        return {"view": self.text()}


class Panel(NamedTuple):
    """One image under one model.

    Args:
        title, prediction: what it is, and what the model predicts of it. image: uint8 (C, H, W). grid: (rows, columns) of patches.
        weights: float32 (R, N), the attention of each of R tokens on N patches, at the chosen block and head; (1, N) of
            the chosen token alone for rollout and gradient-weighted attention.
        prefix: tokens before the patches among the rows. row: the chosen token's row. query: the chosen detection's.
        overview: float32 (blocks, heads, N), the chosen token's attention everywhere; None where weights are no attention.
        block, head: from 0; head -1 is the mean. class_probe: (N,) of the image's class at this block, or None.
        boxes: float (n, 4) cxcywh in [0, 1], with queries (n,) and labels [n], of a detector; else None.
        kind: of attention. kinds: those the model has.
    """

    title: str
    prediction: str
    image: np.ndarray
    grid: tuple[int, int]
    weights: np.ndarray
    prefix: int
    row: int
    query: int | None
    overview: np.ndarray | None
    block: int
    head: int
    blocks: int
    class_probe: np.ndarray | None
    boxes: np.ndarray | None
    queries: list[int]
    labels: list[str]
    kind: str
    kinds: tuple[str, ...]

    @property
    def probe(self) -> np.ndarray:
        """The chosen token's attention on the patches (N,)."""
        return self.weights[self.row]

    @property
    def agreement(self) -> float | None:
        """The cosine of the probe and the class probe in [0, 1], or None without one."""
        if self.class_probe is None:
            return None
        norms = np.linalg.norm(self.probe) * np.linalg.norm(self.class_probe)
        return float(self.probe @ self.class_probe / norms) if norms > 0 else None


Data = ImageSet | SceneSet


def named(things, fallback: str) -> dict:
    """A dict as it is; one thing by itself under the name `fallback`."""
    return dict(things) if isinstance(things, dict) else {fallback: things}


def class_of(data: Data, image: int) -> int | None:
    """The class of an image, or None for a scene."""
    return int(data.labels[image]) if isinstance(data, ImageSet) else None


class Looker:
    """Looks at images through models as a choice says.

    Args:
        models: {name: model in evaluation mode}. data: {name: ImageSet or SceneSet}.
        class_probes: {name of a model: (K, blocks, N), or (K, N) for its last block}.
    """

    def __init__(
        self,
        models: dict[str, nn.Module],
        data: dict[str, Data],
        class_probes: dict[str, Tensor] | None = None,
    ):
        if not models or not data:
            raise WorkbenchError(
                "nothing to explore",
                expected="at least one model and one set of images",
                got=f"{len(models)} models, {len(data)} sets",
                where="attention_explorer",
                fix="give attention_explorer(model, images)",
            )
        self.models, self.data, self.class_probes = models, data, class_probes or {}

    def settle(self, choice: Choice) -> Choice:
        """The choice with every default filled in and everything checked; WorkbenchError if it cannot be had."""
        model = choice.model or next(iter(self.models))
        data = choice.data or next(
            (n for n, d in self.data.items() if self._goes(model, d)), next(iter(self.data))
        )
        _one_of(model, self.models, "model")
        _one_of(data, self.data, "data")
        _one_of(choice.weights, WEIGHTS, "weights")
        kinds = self.kinds(model)
        kind = choice.kind or kinds[0]
        _one_of(kind, kinds, "kind")
        if choice.compare:
            what, _, name = choice.compare.partition(":")
            _one_of(what, ("model", "data"), "compare (before the colon)")
            _one_of(name, self.models if what == "model" else self.data, "compare")
        if not 0 <= choice.image < len(self.data[data]):
            raise WorkbenchError(
                "no such image",
                expected=f"0..{len(self.data[data]) - 1}",
                got=choice.image,
                where=data,
                fix="choose an image of this data",
            )
        sites = attention.attention_sites(self.models[model], kind)
        block = pick(choice.block, len(sites), "block")
        heads = sites[block].heads
        head = -1 if choice.head == -1 or not heads else pick(choice.head, heads, "head")
        return replace(choice, model=model, data=data, kind=kind, block=block, head=head)

    def _goes(self, model: str, data: Data) -> bool:
        return isinstance(self.models[model], Detector) == isinstance(data, SceneSet)

    def kinds(self, model: str) -> tuple[str, ...]:
        """The kinds of attention a model can be looked at by."""
        return ("cross", "encoder") if isinstance(self.models[model], Detector) else ("encoder",)

    def look(self, choice: Choice) -> list[Panel]:
        """The panels of a choice: one, or two where it compares.

        Raises:
            WorkbenchError: for a model without attention, anything out of range, images that do not fit the model.
        """
        choice = self.settle(choice)
        first = self._panel(choice, choice.model, choice.data, choice.image)
        what, _, name = choice.compare.partition(":")
        if what == "model":
            return [
                first,
                self._panel(self._for_other(choice, name), name, choice.data, choice.image),
            ]
        if what == "data":
            return [first, self._panel(choice, choice.model, name, self._partner(choice, name))]
        return [first]

    def _for_other(self, choice: Choice, name: str) -> Choice:
        """The choice for a second model, which may have fewer blocks or heads: the same share of its depth, its mean."""
        kind = choice.kind if choice.kind in self.kinds(name) else self.kinds(name)[0]
        mine = attention.attention_sites(self.models[choice.model], choice.kind)
        other = attention.attention_sites(self.models[name], kind)
        block = (
            round(choice.block * (len(other) - 1) / max(1, len(mine) - 1))
            if len(other) != len(mine)
            else choice.block
        )
        head = choice.head if choice.head < (other[block].heads or 0) else -1
        # Queries are numbered by each detector for itself: of another, its surest is shown.
        token = "" if kind == "cross" else choice.token
        return replace(choice, kind=kind, block=block, head=head, token=token)

    def _partner(self, choice: Choice, name: str) -> int:
        """The image of other data that stands beside the chosen one: of its class, `compare_image`-th, round and round."""
        other, wanted = self.data[name], class_of(self.data[choice.data], choice.image)
        if wanted is None or not isinstance(other, ImageSet):
            return choice.compare_image % len(other)
        label = self.data[choice.data].classes[wanted]
        found = (
            (other.labels == other.classes.index(label)).nonzero().flatten()
            if label in other.classes
            else ()
        )
        if not len(found):
            raise WorkbenchError(
                f"no image of class {label}",
                expected=f"an image of class {label} to compare with",
                got="0 images",
                where=name,
                fix="choose an image of another class, or other data",
            )
        return int(found[choice.compare_image % len(found)])

    @torch.inference_mode()
    def _panel(self, choice: Choice, model_name: str, data_name: str, image: int) -> Panel:
        model, data = self.models[model_name], self.data[data_name]
        pixels = (
            data.images[image : image + 1]
            if not isinstance(data, ImageSet)
            else data.subset([image]).images
        )
        title = f"{model_name} · {data_name} {image}"
        if isinstance(model, Detector):
            return _detector_panel(model, pixels, choice, title, data.classes)
        check_images(model, tuple(pixels.shape[1:]), data_name)
        return self._classifier_panel(choice, model, model_name, data, pixels, image, title)

    def _classifier_panel(
        self,
        choice: Choice,
        model,
        model_name: str,
        data: Data,
        pixels: Tensor,
        image: int,
        title: str,
    ) -> Panel:
        batch = to_float(pixels).to(next(model.parameters()).device)
        layout, row = attention.token_layout(model), _row(model, choice.token)
        with (
            capture_attention(model, None, row) as rows,
            capture_attention(model, (choice.block,), None) as maps,
        ):
            logits = model(batch)
        patches = maps[choice.block][0][..., layout.patches]
        grid = attention.patch_grid(model, patches.shape[-1], *pixels.shape[-2:])
        overview = torch.stack([row[0] for row in rows.values()])[..., layout.patches]
        weights = patches.mean(0) if choice.head < 0 else patches[choice.head]
        prefix = layout.prefix
        if choice.weights != "attention":
            explain = (
                attention.attention_rollout
                if choice.weights == "rollout"
                else attention.gradient_attention
            )
            token = int(choice.token) if choice.token.isdigit() else choice.token or "class"
            weights, row, prefix, overview = explain(model, batch, token=token), 0, 1, None
        probe, label = self._class_probe(model_name, choice, data, image), class_of(data, image)
        names = getattr(model, "classes", None) or data.classes
        said = int(logits.argmax())
        told = f"predicted {names[said] if said < len(names) else said}"
        told = f"class {data.classes[label]}, {told}" if label is not None else told
        return Panel(
            title,
            told,
            pixels[0].numpy(),
            grid,
            _array(weights),
            prefix,
            row % len(weights),
            None,
            None if overview is None else _array(overview),
            choice.block,
            choice.head,
            len(rows),
            probe if probe is not None and probe.shape[-1] == patches.shape[-1] else None,
            None,
            [],
            [],
            choice.kind,
            self.kinds(model_name),
        )

    def _class_probe(self, name: str, choice: Choice, data: Data, image: int) -> np.ndarray | None:
        probes, label = self.class_probes.get(name), class_of(data, image)
        if (
            probes is None
            or label is None
            or choice.token not in ("", "class")
            or label >= len(probes)
        ):
            return None
        if probes.ndim == 3:
            return _array(probes[label, choice.block])
        last = len(attention.attention_sites(self.models[name])) - 1
        return _array(probes[label]) if choice.block == last else None

    def predictions(self, model: str, data: str, count: int) -> np.ndarray:
        """The class (int64, (n,)) that a classifier gives to each of the first `count` images."""
        images, net = self.data[data], self.models[model]
        count = min(count, len(images))
        check_images(net, images.shape, data)
        device = next(net.parameters()).device
        with torch.inference_mode():
            said = [
                net(to_float(batch).to(device)).argmax(-1).cpu()
                for batch in images.subset(range(count)).images.split(64)
            ]
        return torch.cat(said).numpy()


def _array(values: Tensor) -> np.ndarray:
    return values.detach().float().cpu().numpy()


def _one_of(name: str, known, where: str) -> None:
    if name not in known:
        raise WorkbenchError(
            f"no such {where.split()[0]}",
            expected=", ".join(known),
            got=name,
            where=where,
            fix="choose one of the expected",
        )


def _row(model: nn.Module, token: str) -> int:
    """The row of a token named as in `Choice`; a model without class token is looked at from its first patch."""
    layout = attention.token_layout(model)
    if token in ("", "class", "distillation"):
        return (
            attention.query_token(model, token or "class")
            if token or layout.class_token is not None
            else layout.prefix
        )
    return attention.query_token(model, _number(token))


def _number(token: str) -> int:
    if not token.isdigit():
        raise WorkbenchError(
            "no such token",
            expected="class, distillation, or the number of a patch or query from 0",
            got=token,
            where="token",
            fix="choose one of these",
        )
    return int(token)


def _detector_panel(model: Detector, pixels: Tensor, choice: Choice, title: str, classes) -> Panel:
    if pixels.shape[1] != 3:
        raise WorkbenchError(
            "a detector looks at colour images",
            expected="3 channels",
            got=f"{pixels.shape[1]} channels",
            where=title,
            fix="choose other data",
        )
    batch = pixels.to(next(model.parameters()).device).float() / 255
    blocks = len(attention.attention_sites(model, choice.kind))
    with capture_attention(model, None, None, kind=choice.kind) as maps:
        detected = model(batch)
    found = sure(
        detected.logits[0].sigmoid()[..., :-1].cpu(), detected.boxes[0].cpu(), choice.threshold
    )
    scores = detected.logits[0].sigmoid()[..., :-1].amax(-1)
    order = scores.argsort(descending=True).tolist()
    shown = order[: len(found["boxes"])]
    maps = torch.stack([m[0] for m in maps.values()])  # (blocks, heads, T, S)
    row = (
        _number(choice.token)
        if choice.token not in ("", "class")
        else order[0]
        if choice.kind == "cross"
        else 0
    )
    pick(row, maps.shape[2], "token")
    weights, overview = maps[choice.block], _array(maps[:, :, row])
    weights = weights.mean(0) if choice.head < 0 else weights[choice.head]
    if choice.weights != "attention":
        if choice.weights == "rollout" or choice.kind != "cross":
            raise WorkbenchError(
                "a detector has no such weights",
                expected="attention, or gradient of a detection",
                got=f"{choice.weights} for kind {choice.kind}",
                where="weights",
                fix="choose one of these",
            )
        weights, overview = attention.detection_relevance(model, batch, row), None
    labels = [
        f"{classes[int(k)] if int(k) < len(classes) else int(k)} {score:.2f}"
        for k, score in zip(found["labels"], found["scores"], strict=True)
    ]
    told = (
        f"{len(shown)} detections of score ≥ {choice.threshold:g}"
        if len(shown) != 1
        else "1 detection"
    )
    return Panel(
        title,
        told,
        pixels[0].numpy(),
        attention.patch_grid(model, maps.shape[-1], *pixels.shape[-2:]),
        _array(weights),
        0,
        row % len(weights),
        row if choice.kind == "cross" else None,
        overview,
        choice.block,
        choice.head,
        blocks,
        None,
        found["boxes"],
        shown,
        labels,
        choice.kind,
        ("cross", "encoder"),
    )
