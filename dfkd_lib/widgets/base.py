"""What all widgets share: the front end's source, errors in place, figures and parameters saved, images as bytes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import anywidget
import matplotlib
import numpy as np
import traitlets
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from PIL.Image import Resampling

from dfkd_lib import plots
from dfkd_lib.core import Config, resolve, save_json

HERE = Path(__file__).parent
THUMB = 44  # side of a thumbnail in pixels


def front_end(name: str) -> str:
    """The JavaScript module of a widget: what all of them share, then its own."""
    return "\n".join((HERE / f"{part}.js").read_text() for part in ("common", name))


class Widget(anywidget.AnyWidget):
    """A widget whose front end sends {"do": name, …}, answered by the method `do_name`; errors are shown in place.

    Traits: `error`, what was wrong with the last request, in full, or ""; `saved`, where the last figure or parameters went.
    """

    _css = (HERE / "widgets.css").read_text()
    options = traitlets.Dict().tag(sync=True)
    error = traitlets.Unicode("").tag(sync=True)
    saved = traitlets.Unicode("").tag(sync=True)

    def __init__(self, out_dir: str | Path, **options):
        self.out = resolve(out_dir)
        super().__init__()
        shared = {"thumb": THUMB, "colors": list(plots.COLORS), "heat": color_table("magma")}
        self.options = {**shared, **options}
        self.on_msg(self._on_message)

    def _on_message(self, _, content: dict, buffers) -> None:
        act = getattr(self, f"do_{content.get('do')}", None)
        if act is not None:
            self._try(lambda: act({**content, "buffers": buffers}))
        self._answer(content)

    def _answer(self, content: dict) -> None:
        self.send({"kind": "done", "id": content.get("id", 0), "asked": content.get("do")})

    def _try(self, act: Callable[[], object]) -> None:
        """Act; an error is shown in place, and the widget stays as it was."""
        self.error = ""
        try:
            act()
        except Exception as error:  # whatever it is: a widget has no other place to report it
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        self.error = str(error) or repr(error)

    def _save(self, figure: Figure, *parts: str) -> None:
        """Save a figure as svg, pdf and png under the names of what it shows."""
        stem = self._place("figures", parts)
        for kind in ("svg", "pdf", "png"):
            figure.savefig(f"{stem}.{kind}", bbox_inches="tight")
        self.saved = f"{stem}.svg, .pdf, .png"

    def _save_parameters(self, notebook: str, parameters: dict, *parts: str) -> str:
        """Save a notebook's parameters as papermill reads them with -f; returns its command."""
        path = f"{self._place('', parts)}.yaml"
        save_json(path, parameters)  # JSON is YAML
        return f"papermill notebooks/{notebook}.ipynb out.ipynb -f {path}"

    def _place(self, folder: str, parts: Sequence[str]) -> Path:
        """A file without suffix in the folder of outputs, named by parts that may hold anything."""
        plain = ("".join(c if c.isalnum() or c in "-." else "-" for c in part) for part in parts)
        place = self.out / folder / "_".join(plain)
        place.parent.mkdir(parents=True, exist_ok=True)
        return place


class StateWidget(Widget):
    """A widget that shows what a configuration asks for.

    Traits: `view`, a `State` as a dict, always one that can be shown; `error` and `saved` as in `Widget`.
    """

    State: ClassVar[type[Config]]
    view = traitlets.Dict().tag(sync=True)

    @property
    def state(self) -> Config:
        """The view, checked."""
        return self.State(**self.view)

    def choose(self, **changes) -> None:
        """Change the view by names of `State`; what cannot be had is reported in `error`, and the last view stays."""
        self._try(lambda: self._choose(changes))


def color_table(name: str) -> list:
    """The 256 colours of a colour map, [red, green, blue] from 0 to 255."""
    return (matplotlib.colormaps[name](np.arange(256))[:, :3] * 255).astype(int).tolist()


def picture(image: np.ndarray) -> Image.Image:
    """uint8 (C, H, W) of one or three channels in colours."""
    return Image.fromarray(plots.to_display(image)).convert("RGB")


def thumbnails(data, places: Sequence[int]) -> bytes:
    """The images at these places, fitted into squares of THUMB pixels, one after the other as RGB."""

    def fitted(image: np.ndarray) -> bytes:
        # Small images keep their pixels, large ones are averaged.
        how = Resampling.NEAREST if max(image.shape[1:]) <= THUMB else Resampling.BILINEAR
        return ImageOps.pad(picture(image), (THUMB, THUMB), how).tobytes()

    return b"".join(map(fitted, data.subset(places).images.numpy())) if len(places) else b""
