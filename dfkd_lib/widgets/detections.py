"""The detection browser: an ipywidget whose front end (detections.js) holds every box: a threshold costs no kernel."""

from pathlib import Path

import numpy as np
import traitlets

from dfkd_lib import plots
from dfkd_lib.widgets.base import StateWidget, front_end, picture, thumbnails
from dfkd_lib.widgets.browse import FAINT, Browse, View, pack_found, pack_truth


class DetectionBrowser(StateWidget):
    """Browse detections scene by scene; made by `widgets.detection_browser`.

    Traits: `view`, a `View` as a dict, as the browser shows it; `counts`, {detector: {"right", "wrong", "false",
    "missed"}} of all scenes at the present threshold, as the browser counted them; `error` and `saved` as in `Widget`.
    """

    _esm = front_end("detections")
    State = View
    counts = traitlets.Dict().tag(sync=True)

    def __init__(self, browse: Browse, start: View, out_dir: str | Path):
        self.browse = browse
        blocks, heads = browse.heads()
        names = {"detectors": list(browse.detectors), "data": list(browse.data)}
        names["scales"] = list(plots.SCALES)
        super().__init__(out_dir, blocks=blocks, heads=heads, faint=FAINT, **names)
        self.view = browse.settle(start).as_dict()

    def figure(self):
        """The matplotlib figure of what is shown: the scene, and the attention of the chosen detection."""
        view = self.state
        scene = self.browse.scene(view.data, [view.scene], view.threshold)
        several = f"{view.data}, " if len(self.browse.data) > 1 else ""
        looks = self.browse.shown_attention(view)
        titles = [f"{several}scene {view.scene}"]
        return plots.detection_compare(**scene, looks=looks, titles=titles)

    def _choose(self, changes: dict) -> None:
        self.view = self.browse.settle(self.state.replace(**changes)).as_dict()

    def do_scenes(self, content: dict) -> None:
        data = content["data"]
        scenes, found = self.browse.data[data], self.browse.found(data)
        height, width = scenes.shape[1:]
        about = {"count": len(scenes), "classes": list(scenes.classes)}
        about |= {"width": width, "height": height}
        buffers = [part for one in found.values() for part in pack_found(*one)]
        self.send({"kind": "scenes", "data": data, **about}, [*pack_truth(scenes), *buffers])

    def do_images(self, content: dict) -> None:
        scenes, rows = self._rows(content)
        buffers = [picture(image).tobytes() for image in scenes.pixels[rows].numpy()]
        self.send({"kind": "images", "data": content["data"], "rows": rows}, buffers)

    def do_thumbs(self, content: dict) -> None:
        scenes, rows = self._rows(content)
        message = {"kind": "thumbs", "data": content["data"], "rows": rows}
        self.send(message, [thumbnails(scenes, rows)])

    def _rows(self, content: dict) -> tuple:
        scenes = self.browse.data[content["data"]]
        return scenes, [row for row in content["rows"] if 0 <= row < len(scenes)]

    def do_look(self, content: dict) -> None:
        asked = {name: content[name] for name in ("data", "scene", "block", "head")}
        looks = [look._asdict() for look in self.browse.attention(**asked).values()]
        weights = [np.ascontiguousarray(look.pop("weights"), np.float32) for look in looks]
        self.send({"kind": "look", **asked, "looks": looks}, [one.tobytes() for one in weights])

    def do_save(self, content: dict) -> None:
        self._choose(content["view"])  # what the browser shows may be ahead of the trait
        view = self.state
        parts = ["detections", view.data, str(view.scene), f"from{view.threshold:.2f}"]
        if view.chosen:
            head = f"head{view.head + 1}" if view.head >= 0 else "mean"
            parts += [view.chosen, f"query{view.query}", f"block{view.block}", head]
        self._save(self.figure(), *parts)
