"""The attention explorer: an ipywidget whose front end (explorer.js) draws on canvases what `Looker` finds."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import anywidget
import matplotlib
import numpy as np
import torch
import traitlets

from dfkd_lib import plots
from dfkd_lib.attention import attention_sites, token_layout
from dfkd_lib.core.artifacts import resolve
from dfkd_lib.datasets import ImageSet
from dfkd_lib.models.detectors import Detector
from dfkd_lib.widgets.look import WEIGHTS, Choice, Looker, Panel

HERE = Path(__file__).parent
PAGE = 30  # thumbnails at a time
THUMB = 44  # their side in pixels
SEARCHED = 2000  # images that are classified to find the wrong ones


class AttentionExplorer(anywidget.AnyWidget):
    """Look into models, image by image; made by `widgets.attention_explorer`.

    Traits: `choice`, a `Choice` as a dict, always one that was shown; `error`, what was wrong with the last request, in
    full, or ""; `saved`, where the last figure or parameters went; `latency`, milliseconds from a choice to its picture, as
    the browser saw it.
    """

    _esm = HERE / "explorer.js"
    _css = HERE / "explorer.css"
    choice = traitlets.Dict().tag(sync=True)
    error = traitlets.Unicode("").tag(sync=True)
    saved = traitlets.Unicode("").tag(sync=True)
    options = traitlets.Dict().tag(sync=True)
    latency = traitlets.Float(0.0).tag(sync=True)

    def __init__(self, looker: Looker, start: Choice, out_dir: str | Path, notebook: str):
        self.looker, self.out, self.notebook = looker, resolve(out_dir), notebook
        self.gallery = {"label": -1, "wrong": False, "page": None}
        self._said: dict[tuple[str, str], np.ndarray] = {}
        super().__init__()
        self.options = {
            "models": list(looker.models),
            "data": list(looker.data),
            "weights": list(WEIGHTS),
            "colors": (matplotlib.colormaps["magma"](np.arange(256))[:, :3] * 255)
            .astype(int)
            .tolist(),
            "parameters": bool(notebook),
        }
        self.on_msg(self._on_message)
        self._try(lambda: self._look(start))

    def choose(self, **changes) -> None:
        """Change the choice by names of `Choice`; what cannot be had is said in `error`, and the last picture stays."""
        self._try(lambda: self._chosen(changes))

    def figure(self):
        """The matplotlib figure of what is shown."""
        return plots.attention_panels(self.looker.look(Choice(**self.choice)))

    def _on_message(self, _, content: dict, __) -> None:
        asked, serial = content.get("do"), content.get("id", 0)
        if asked == "ready":
            before = self.error  # of the start: it stays to be read
            self._try(lambda: (self._look(Choice(**self.choice), serial), self._show_gallery()))
            self._tell(self.error or before, serial)
        elif asked == "choose":
            known = {
                name: value
                for name, value in content["changes"].items()
                if name in Choice.__dataclass_fields__
            }
            self._try(lambda: self._chosen(known, serial), serial)
        elif asked == "gallery":
            self.gallery = {**self.gallery, **content["changes"]}
            self._try(self._show_gallery, serial)
        elif asked == "save":
            self._try(
                self._save_figure if content.get("what") == "figure" else self._save_parameters,
                serial,
            )
        self.send({"kind": "done", "id": serial})

    def _chosen(self, changes: dict, serial: int = 0) -> None:
        before = asdict(Choice(**self.choice))
        if changes.get("model", before["model"]) != before["model"]:
            # Another model has other blocks, heads and tokens: begin at what shows it best.
            changes = {"block": -1, "head": -1, "token": "", "kind": "", **changes}
            if self._is_detector(changes["model"]) != self._is_detector(before["model"]):
                changes = {"data": "", "image": 0, "compare": "", "weights": "attention", **changes}
        if changes.get("data", before["data"]) != before["data"]:
            changes = {"image": 0, **changes}
        if (
            changes.get("kind", before["kind"]) != before["kind"]
            or changes.get("image", before["image"]) != before["image"]
        ):
            changes = {**({"token": ""} if self._is_detector(before["model"]) else {}), **changes}
        if changes.get("kind", before["kind"]) != before["kind"]:
            changes = {"block": -1, "head": -1, "token": "", "weights": "attention", **changes}
        self._look(replace(Choice(**before), **changes), serial)
        if (self.choice["data"], self.choice["model"]) != (before["data"], before["model"]):
            self.gallery = {"label": -1, "wrong": False, "page": None}
            self._show_gallery()

    def _is_detector(self, name: str) -> bool:
        return isinstance(self.looker.models.get(name), Detector)

    def _try(self, act, serial: int = 0) -> None:
        """Act; an error is shown in place, and the explorer stays as it was."""
        self.error = ""
        try:
            act()
        except Exception as error:  # whatever it is: a widget has no other place to say it
            self._tell(str(error) or repr(error), serial)

    def _tell(self, error: str, serial: int) -> None:
        self.error = error
        if error:
            self.send({"kind": "error", "id": serial, "text": error, "choice": self.choice})

    def _look(self, choice: Choice, serial: int = 0) -> None:
        settled = self.looker.settle(choice)
        panels = self.looker.look(settled)
        self.choice = asdict(settled)
        layout = (
            None
            if self._is_detector(settled.model)
            else token_layout(self.looker.models[settled.model])
        )
        heads = attention_sites(self.looker.models[settled.model], settled.kind)[
            settled.block
        ].heads
        named = (
            [
                n
                for n, i in (("class", layout.class_token), ("distillation", layout.distillation))
                if i is not None
            ]
            if layout
            else []
        )
        sent = [_pack(panel) for panel in panels]
        self.send(
            {
                "kind": "view",
                "id": serial,
                "choice": self.choice,
                "tokens": named,
                "heads": heads or 1,
                "images": len(self.looker.data[settled.data]),
                "panels": [meta for meta, _ in sent],
            },
            [buffer for _, buffers in sent for buffer in buffers],
        )

    def _show_gallery(self) -> None:
        choice = Choice(**self.choice)
        data = self.looker.data[choice.data]
        found, note = self._found(choice, data)
        pages = max(1, -(-len(found) // PAGE))
        page = self.gallery["page"]
        if page is None:  # where the chosen image is
            page = (
                int(np.flatnonzero(found == choice.image)[0]) // PAGE
                if choice.image in found
                else 0
            )
        page = min(max(0, page), pages - 1)
        shown = found[page * PAGE : (page + 1) * PAGE].tolist()
        said = self._said.get((choice.model, choice.data))
        labels = [
            data.classes[int(data.labels[i])] if isinstance(data, ImageSet) else "" for i in shown
        ]
        wrong = [
            bool(
                said is not None
                and i < len(said)
                and isinstance(data, ImageSet)
                and said[i] != int(data.labels[i])
            )
            for i in shown
        ]
        pixels = thumbnails(data, shown)
        self.send(
            {
                "kind": "gallery",
                "indices": shown,
                "labels": labels,
                "wrong": wrong,
                "side": THUMB,
                "page": page,
                "pages": pages,
                "found": len(found),
                "note": note,
                "label": self.gallery["label"],
                "only_wrong": self.gallery["wrong"],
                "classes": list(data.classes),
                "can_be_wrong": isinstance(data, ImageSet) and not self._is_detector(choice.model),
            },
            [pixels],
        )

    def _found(self, choice: Choice, data) -> tuple[np.ndarray, str]:
        """Places of the images that the gallery's filters leave, and a word on how they were found."""
        label, found, note = self.gallery["label"], np.arange(len(data)), ""
        if self.gallery["wrong"]:
            key = (choice.model, choice.data)
            if key not in self._said:
                self._said[key] = self.looker.predictions(*key, SEARCHED)
            said = self._said[key]
            found = np.flatnonzero(said != data.labels[: len(said)].numpy())
            note = (
                f"wrong among the first {len(said):,}"
                if len(said) < len(data)
                else f"wrong among all {len(said):,}"
            )
        if label >= 0:
            has = (
                (lambda i: int(data.labels[i]) == label)
                if isinstance(data, ImageSet)
                else (lambda i: bool((data.labels[i] == label).any()))
            )
            found = np.array([i for i in found.tolist() if has(i)], dtype=int)
            if not len(found):
                note = f"no such image of class {data.classes[label]}" + (
                    f" ({note})" if note else ""
                )
        return found, note

    def _save_figure(self) -> None:
        stem = self._stem()
        (self.out / "figures").mkdir(parents=True, exist_ok=True)
        figure = self.figure()
        for kind in ("svg", "pdf", "png"):
            figure.savefig(self.out / "figures" / f"{stem}.{kind}", bbox_inches="tight")
        self.saved = f"{self.out / 'figures' / stem}.svg, .pdf, .png"

    def _save_parameters(self) -> None:
        path = self.out / f"{self._stem()}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        # JSON is YAML: papermill reads it with -f, and quoting is never a question.
        path.write_text(json.dumps(Choice(**self.choice).parameters(), indent=1) + "\n")
        self.saved = f"papermill notebooks/{self.notebook}.ipynb out.ipynb -f {path}"

    def _stem(self) -> str:
        parts = [
            self.choice["model"],
            self.choice["data"],
            str(self.choice["image"]),
            f"block{self.choice['block'] + 1}",
            f"head{self.choice['head'] + 1}" if self.choice["head"] >= 0 else "mean",
            self.choice["token"] or "class",
        ]
        if self.choice["weights"] != "attention":
            parts.append(self.choice["weights"])
        if self.choice["compare"]:
            parts.append(f"and_{self.choice['compare']}_{self.choice['compare_image']}")
        return "explorer_" + "_".join(
            "".join(c if c.isalnum() or c in "-." else "-" for c in part) for part in parts
        )


def _pack(panel: Panel) -> tuple[dict, list[bytes]]:
    """A panel as JSON and buffers: image RGB uint8; weights uint16 as shares of each row's maximum; the rows' maxima
    float32; overview float32; class probe float32."""
    top = panel.weights.max(-1, keepdims=True)
    quantised = np.round(panel.weights / np.maximum(top, 1e-12) * 65535).astype(np.uint16)
    nothing = np.zeros(0, np.float32)
    overview = nothing if panel.overview is None else panel.overview.astype(np.float32)
    meta = {
        "title": panel.title,
        "said": panel.prediction,
        "width": panel.image.shape[2],
        "height": panel.image.shape[1],
        "grid": list(panel.grid),
        "rows": len(panel.weights),
        "prefix": panel.prefix,
        "row": panel.row,
        "query": panel.query,
        "block": panel.block,
        "head": panel.head,
        "blocks": panel.blocks,
        "kind": panel.kind,
        "kinds": list(panel.kinds),
        "overview": list(overview.shape[:2]) if panel.overview is not None else None,
        "agreement": panel.agreement,
        "class_probe": panel.class_probe is not None,
        "boxes": None if panel.boxes is None else np.asarray(panel.boxes, float).tolist(),
        "queries": panel.queries,
        "labels": panel.labels,
    }
    probe = nothing if panel.class_probe is None else panel.class_probe.astype(np.float32)
    return meta, [
        rgb(panel.image),
        quantised.tobytes(),
        top.astype(np.float32).tobytes(),
        overview.tobytes(),
        probe.tobytes(),
    ]


def rgb(image: np.ndarray) -> bytes:
    """uint8 (C, H, W) of one or three channels as H·W·3 bytes."""
    return np.ascontiguousarray(
        np.broadcast_to(np.moveaxis(image, 0, -1), (*image.shape[1:], 3))
    ).tobytes()


def thumbnails(data, places: list[int]) -> bytes:
    """The images at these places, fitted into squares of THUMB pixels, one after the other as RGB."""
    if not places:
        return b""
    pixels = data.subset(places).images.float()
    height, width = pixels.shape[-2:]
    scale = THUMB / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    # Small images keep their pixels, large ones are averaged.
    small = (
        torch.nn.functional.interpolate(pixels, size, mode="nearest")
        if scale >= 1
        else torch.nn.functional.interpolate(pixels, size, mode="bilinear", antialias=True)
    )
    canvas = torch.zeros(len(places), pixels.shape[1], THUMB, THUMB)
    top, left = (THUMB - size[0]) // 2, (THUMB - size[1]) // 2
    canvas[..., top : top + size[0], left : left + size[1]] = small
    return b"".join(rgb(image) for image in canvas.round().clamp(0, 255).to(torch.uint8).numpy())
