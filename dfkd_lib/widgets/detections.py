"""The detection browser: an ipywidget whose front end (detections.js) holds every box: a threshold costs no kernel."""

from dataclasses import asdict, fields, replace
from pathlib import Path

import anywidget
import matplotlib
import numpy as np
import traitlets

from dfkd_lib import plots
from dfkd_lib.core.artifacts import resolve
from dfkd_lib.widgets.browse import FAINT, Browse, View, pack_found, pack_truth
from dfkd_lib.widgets.explorer import THUMB, rgb, thumbnails

HERE = Path(__file__).parent


class DetectionBrowser(anywidget.AnyWidget):
    """Browse detections scene by scene; made by `widgets.detection_browser`.

    Traits: `view`, a `View` as a dict, as the browser shows it; `error`, what was wrong with the last request, in full, or
    ""; `saved`, where the last figure went; `counts`, {detector: {"right", "wrong", "false", "missed"}} of all scenes at the
    present threshold, as the browser counted them.
    """

    _esm = HERE / "detections.js"
    _css = HERE / "detections.css"
    view = traitlets.Dict().tag(sync=True)
    error = traitlets.Unicode("").tag(sync=True)
    saved = traitlets.Unicode("").tag(sync=True)
    counts = traitlets.Dict().tag(sync=True)
    options = traitlets.Dict().tag(sync=True)

    def __init__(self, browse: Browse, start: View, out_dir: str | Path):
        self.browse, self.out = browse, resolve(out_dir)
        super().__init__()
        blocks, heads = browse.heads()
        self.options = {
            "detectors": list(browse.detectors),
            "data": list(browse.data),
            "blocks": blocks,
            "heads": heads,
            "faint": FAINT,
            "thumb": THUMB,
            "colors": list(plots.COLORS),
            "heat": (matplotlib.colormaps["magma"](np.arange(256))[:, :3] * 255)
            .astype(int)
            .tolist(),
        }
        self.view = asdict(browse.settle(start))
        self.on_msg(self._on_message)

    def choose(self, **changes) -> None:
        """Change the view by names of `View`; what cannot be had is said in `error`, and the last view stays."""
        self._try(lambda: self._chosen(changes))

    def figure(self):
        """The matplotlib figure of what is shown: the scene, and where the chosen detection looks."""
        view = self._view()
        shown = self.browse.scene(view.data, [view.scene], view.threshold)
        title = (
            f"{view.data}, scene {view.scene}"
            if len(self.browse.data) > 1
            else f"scene {view.scene}"
        )
        return plots.detection_compare(**shown, looks=self._looks(view), titles=[title])

    def _view(self) -> View:
        known = {f.name for f in fields(View)}
        return self.browse.settle(
            View(**{name: value for name, value in self.view.items() if name in known})
        )

    def _chosen(self, changes: dict) -> None:
        self.view = asdict(self.browse.settle(replace(self._view(), **changes)))

    def _looks(self, view: View) -> dict | None:
        if not view.chosen:
            return None
        found = self.browse.found(view.data)
        box = found[view.chosen][1][view.scene, view.query].numpy()
        looks = {}
        for name, look in self.browse.looks(view.data, view.scene, view.block, view.head).items():
            scores, boxes = (t[view.scene] for t in found[name])
            query = (
                view.query if name == view.chosen else partner(scores, boxes, box, view.threshold)
            )
            if query is not None and len(look.weights):
                looks[name] = [(look.weights[query].reshape(look.grid), boxes[query].numpy())]
        return looks

    def _on_message(self, _, content: dict, __) -> None:
        acts = {
            "ready": self._ready,
            "scenes": self._send_scenes,
            "images": self._send_images,
            "thumbs": self._send_thumbs,
            "look": self._send_looks,
            "save": self._save,
        }
        act = acts.get(content.get("do"))
        if act is not None:
            self._try(lambda: act(content))
        self.send({"kind": "done", "id": content.get("id", 0)})

    def _try(self, act) -> None:
        """Act; an error is shown in place, and the browser stays as it was."""
        self.error = ""
        try:
            act()
        except Exception as error:  # whatever it is: a widget has no other place to say it
            self.error = str(error) or repr(error)

    def _ready(self, content: dict) -> None:
        self._send_scenes({"data": self._view().data})

    def _send_scenes(self, content: dict) -> None:
        data = content["data"] or next(iter(self.browse.data))
        scenes, found = self.browse.data[data], self.browse.found(data)
        height, width = scenes.pixels.shape[2:]
        self.send(
            {
                "kind": "scenes",
                "data": data,
                "count": len(scenes),
                "classes": list(scenes.classes),
                "width": width,
                "height": height,
            },
            [*pack_truth(scenes), *(part for name in found for part in pack_found(*found[name]))],
        )

    def _send_images(self, content: dict) -> None:
        scenes = self.browse.data[content["data"]]
        rows = [row for row in content["rows"] if 0 <= row < len(scenes)]
        self.send(
            {"kind": "images", "data": content["data"], "rows": rows},
            [rgb(image) for image in scenes.pixels[rows].numpy()],
        )

    def _send_thumbs(self, content: dict) -> None:
        scenes = self.browse.data[content["data"]]
        rows = [row for row in content["rows"] if 0 <= row < len(scenes)]
        self.send(
            {"kind": "thumbs", "data": content["data"], "rows": rows}, [thumbnails(scenes, rows)]
        )

    def _send_looks(self, content: dict) -> None:
        asked = {name: content[name] for name in ("data", "scene", "block", "head")}
        looks = self.browse.looks(**asked)
        about = [
            {
                "grid": list(look.grid),
                "block": look.block,
                "blocks": look.blocks,
                "head": look.head,
                "why": look.why,
            }
            for look in looks.values()
        ]
        self.send(
            {"kind": "look", **asked, "looks": about},
            [np.ascontiguousarray(look.weights, np.float32).tobytes() for look in looks.values()],
        )

    def _save(self, content: dict) -> None:
        # What the browser shows may be ahead of the trait: it is sent along.
        self._chosen(
            {
                name: value
                for name, value in content["view"].items()
                if name in View.__dataclass_fields__
            }
        )
        view = self._view()
        parts = ["detections", view.data, str(view.scene), f"from{view.threshold:.2f}"]
        if view.chosen:
            head = f"head{view.head + 1}" if view.head >= 0 else "mean"
            parts += [view.chosen, f"query{view.query}", f"block{view.block}", head]
        stem = "_".join(
            "".join(c if c.isalnum() or c in "-." else "-" for c in part) for part in parts
        )
        folder, figure = self.out / "figures", self.figure()
        folder.mkdir(parents=True, exist_ok=True)
        for kind in ("svg", "pdf", "png"):
            figure.savefig(folder / f"{stem}.{kind}", bbox_inches="tight")
        self.saved = f"{folder / stem}.svg, .pdf, .png"


def partner(scores, boxes, box, threshold: float, iou: float = 0.5) -> int | None:
    """The query of another detector that answers for the same object: of those sure enough the one that overlaps most."""
    import torch
    from torchvision.ops import box_convert, box_iou

    sure = (scores.amax(-1) >= threshold).nonzero().flatten()
    if not len(sure):
        return None
    overlap = box_iou(
        box_convert(boxes[sure], "cxcywh", "xyxy"),
        box_convert(torch.as_tensor(box)[None], "cxcywh", "xyxy"),
    )
    return int(sure[overlap.argmax()]) if float(overlap.max()) >= iou else None
