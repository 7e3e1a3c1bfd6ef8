"""The attention explorer: an ipywidget whose front end (explorer.js) draws on canvases the panels of a `Viewer`."""

import hashlib
from pathlib import Path
from typing import get_args

import numpy as np

from dfkd_lib.attention import attention_sites, token_layout
from dfkd_lib.datasets import ImageSet
from dfkd_lib.widgets.base import StateWidget, color_table, front_end, picture, thumbnails
from dfkd_lib.widgets.choice import Choice, Colours, Weights
from dfkd_lib.widgets.measured import can_be_followed, followed
from dfkd_lib.widgets.panel import Panel
from dfkd_lib.widgets.viewer import Viewer

PAGE = 30  # thumbnails at a time
SEARCHED = 2000  # images that are classified to find the wrong ones
EVERYTHING = {"label": -1, "wrong": False, "page": None}
# What begins anew with another model (which has other blocks, heads and tokens), or with another kind of attention.
FRESH = {"block": -1, "head": -1, "token": "", "without": "", "weights": "attention"}
# What of a panel is sent as it is.
PLAIN = (
    "title prediction prefix row query block head blocks kind kinds queries labels agreement cover "
    "nearest epoch epochs tints shares"
)


class AttentionExplorer(StateWidget):
    """Look into models, image by image; made by `widgets.attention_explorer`.

    Traits: `view`, a `Choice` as a dict, always one that was shown; `error` and `saved` as in `Widget`.
    """

    _esm = front_end("explorer")
    State = Choice

    def __init__(
        self,
        viewer: Viewer,
        start: Choice,
        out_dir: str | Path,
        notebook: str,
        parameters: dict | None = None,
    ):
        self.viewer, self.notebook, self.parameters = viewer, notebook, parameters or {}
        self.gallery = EVERYTHING
        self._wrong: dict[tuple[str, str], tuple[np.ndarray, str]] = {}
        names = {"models": list(viewer.models), "data": list(viewer.data)}
        names |= {"weights": get_args(Weights), "parameters": bool(notebook)}
        maps = {name: color_table(name) for name in get_args(Colours)}
        super().__init__(out_dir, maps=maps, **names)
        self._try(lambda: self._show(start))
        self._start_error = self.error

    def figure(self):
        """The matplotlib figure of what is shown."""
        return self.viewer.figure(self.state)

    def do_ready(self, _: dict) -> None:
        self.error, self._start_error = self._start_error, ""  # it stays to be read
        self._show(self.state)
        self._show_gallery()

    def do_choose(self, content: dict) -> None:
        self._choose(content["changes"])

    def do_gallery(self, content: dict) -> None:
        self.gallery = {**self.gallery, **content["changes"]}
        self._show_gallery()

    def do_own(self, content: dict) -> None:
        """An image that was dropped, pasted or picked: kept beside the figures, so that a saved view finds it again."""
        sent, name = bytes(content["buffers"][0]), Path(content["name"])
        kind = name.suffix if name.suffix[1:].isalnum() else ".png"
        place = self._place("own", [name.stem, hashlib.sha256(sent).hexdigest()[:8]])
        path = place.with_name(place.name + kind)
        path.write_bytes(sent)
        self._choose({"data": str(path), "image": 0})

    def do_measure(self, _: dict) -> None:
        self.send({"kind": "measured", **followed(self.viewer, self.state)})

    def do_save(self, content: dict) -> None:
        parts = ["explorer", *self._parts()]
        if content.get("what") == "figure":
            self._save(self.figure(), *parts)
        else:
            shown = {**self.parameters, "view": self.state.text()}
            self.saved = self._save_parameters(self.notebook, shown, *parts)

    def _choose(self, changes: dict) -> None:
        before = self.state
        asked = before.replace(**changes)
        self._show(before.replace(**{**self._reset(before, asked), **changes}))
        if (self.view["data"], self.view["model"]) != (before.data, before.model):
            self.gallery = EVERYTHING
            self._show_gallery()

    def _reset(self, before: Choice, asked: Choice) -> dict:
        """What cannot stay as it was before this was asked for."""
        detector, fitting = self.viewer.is_detector, self.viewer.fitting
        other = asked.differences(before)
        reset: dict = {}
        if "model" in other and asked.model in self.viewer.models:
            reset = {name: FRESH[name] for name in FRESH if name != "weights"} | {"kind": ""}
            alike = detector(asked.model) == detector(before.model)
            # Nothing is shown where the first choice could not be had.
            shown = bool(before.data)
            if not alike or not shown or not fitting.fits(asked.model, before.data):
                reset |= {"data": "", "image": 0, "compare": "", "weights": "attention"}
            elif before.weights not in fitting.ways(asked.model, before.data):
                reset["weights"] = "attention"
        if "data" in other:
            reset |= {"image": 0, "token": ""}
            known = asked.model in self.viewer.models and asked.data in self.viewer.data
            if known and asked.weights not in fitting.ways(asked.model, asked.data):
                reset["weights"] = "attention"
        if "image" in other and detector(before.model):
            reset["token"] = ""  # queries are of an image
        if "kind" in other:
            reset |= FRESH
        if other.keys() & {"compare", "without"}:  # one of them at a time
            reset |= {"without": ""} if asked.compare != before.compare else {"compare": ""}
        for what in ("model", "data"):  # what stood beside changes places with what is chosen
            if what in other and before.compare == f"{what}:{getattr(asked, what)}":
                reset["compare"] = f"{what}:{getattr(before, what)}"
        return reset

    def _show(self, choice: Choice) -> None:
        settled = self.viewer.settle(choice)
        packed = [_pack(panel) for panel in self.viewer.panels(settled)]
        self.view = settled.as_dict()
        model, tokens = self.viewer.models[settled.model], []
        if not self.viewer.is_detector(settled.model):
            layout = token_layout(model)
            special = {"class": layout.class_token, "distillation": layout.distillation}
            tokens = [name for name, place in special.items() if place is not None]
        message = {
            "kind": "view",
            "choice": self.view,
            "tokens": tokens,
            "heads": attention_sites(model, settled.kind)[settled.block].heads or 1,
            "measurable": can_be_followed(self.viewer, settled),
            "possible": self.viewer.fitting.possible(settled.model, settled.data),
            "panels": [meta for meta, _ in packed],
        }
        self.send(message, [buffer for _, buffers in packed for buffer in buffers])

    def _show_gallery(self) -> None:
        choice = self.state
        detector = self.viewer.is_detector(choice.model)
        data = self.viewer.fitting.images(choice.model, choice.data)
        found, note = self._found(choice, data)
        pages, page = max(1, -(-len(found) // PAGE)), self.gallery["page"]
        if page is None:  # where the chosen image is
            place = np.flatnonzero(found == choice.image)
            page = int(place[0]) // PAGE if len(place) else 0
        page = min(max(0, page), pages - 1)
        shown = found[page * PAGE : (page + 1) * PAGE].tolist()
        wrong, _ = self._wrong.get((choice.model, choice.data), ((), ""))
        message = {
            "kind": "gallery",
            "indices": shown,
            "labels": [self.viewer.class_of(choice.data, image) or "" for image in shown],
            "wrong": [image < len(wrong) and bool(wrong[image]) for image in shown],
            "page": page,
            "pages": pages,
            "found": len(found),
            "note": note,
            "label": self.gallery["label"],
            "only_wrong": self.gallery["wrong"],
            "classes": list(data.classes),
            "can_be_wrong": isinstance(data, ImageSet) and not detector,
        }
        self.send(message, [thumbnails(data, shown)])

    def _found(self, choice: Choice, data) -> tuple[np.ndarray, str]:
        """Places of the images that the gallery's filters leave, and a note on how they were found."""
        label, found, note = self.gallery["label"], np.arange(len(data)), ""
        if self.gallery["wrong"]:
            key = (choice.model, choice.data)
            if key not in self._wrong:
                self._wrong[key] = self.viewer.wrong(*key, SEARCHED)
            wrong, why = self._wrong[key]
            found = np.flatnonzero(wrong)
            among = f"{'all' if len(wrong) == len(data) else 'the first'} {len(wrong):,}"
            note = f"wrong among {among}" + (why and f" ({why})")
        if label >= 0:
            has = np.array([bool((data.labels[i] == label).any()) for i in found], dtype=bool)
            found = found[has]
            if not len(found):
                note = f"no such image of class {data.classes[label]}" + (note and f" ({note})")
        return found, note

    def _parts(self) -> list[str]:
        """What is shown, for the names of files."""
        c = self.state
        data = c.data if c.data in self.viewer.data else Path(c.data).stem
        head = f"head{c.head + 1}" if c.head >= 0 else "mean"
        parts = [c.model, data, str(c.image), f"block{c.block + 1}", head, c.token or "class"]
        parts += [c.weights] if c.weights != "attention" else []
        parts += [f"without_{c.without}"] if c.without else []
        return parts + ([f"and_{c.compare}_{c.compare_image}"] if c.compare else [])


def _pack(panel: Panel) -> tuple[dict, list[bytes]]:
    """A panel as JSON and buffers: image RGB uint8; weights uint16 as shares of each row's maximum; the rows' maxima
    float32; overview float32; class probe float32."""
    top = panel.weights.max(-1, keepdims=True)
    shares = np.round(panel.weights / np.maximum(top, 1e-12) * 65535).astype(np.uint16)
    meta = {name: getattr(panel, name) for name in PLAIN.split()} | {
        "width": panel.image.shape[2],
        "height": panel.image.shape[1],
        "grid": list(panel.grid),
        "rows": len(panel.weights),
        "overview": None if panel.overview is None else list(panel.overview.shape[:2]),
        "class_probe": panel.class_probe is not None,
        "boxes": None if panel.boxes is None else np.asarray(panel.boxes, float).tolist(),
    }
    arrays = (() if one is None else one for one in (top, panel.overview, panel.class_probe))
    floats = [np.ascontiguousarray(one, np.float32).tobytes() for one in arrays]
    return meta, [picture(panel.image).tobytes(), shares.tobytes(), *floats]
