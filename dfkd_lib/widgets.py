"""Interactive views; with interactive=False each gives the static figure that it would first show."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from dfkd_lib import plots
from dfkd_lib.attention import attention_sites, attention_map, attention_probe
from dfkd_lib.datasets import ImageSet, to_float
from dfkd_lib.distill import KDWeights
from dfkd_lib.errors import WorkbenchError


@torch.inference_mode()
def attention_figure(model: nn.Module, images: ImageSet, index: int, block: int = -1, head: int | None = None):
    """The figure of the attention explorer: one image, its map, its probe and the probe laid over it.

    Args:
        index: of the image in the set. block: index. head: index, or None for the mean.
    """
    one = images.subset([index])
    batch = to_float(one.images).to(next(model.parameters()).device)
    maps = attention_map(model, batch, block)
    maps = maps.mean(1) if head is None else maps[:, head]
    probe = attention_probe(model, batch, block, head)
    said = images.classes[int(model(batch).argmax())]
    true = images.classes[int(one.labels[0])]
    return plots.image_map_probe(one.images, maps.cpu(), probe.cpu(), [f"{true}, predicted {said}"])


def attention_explorer(model: nn.Module, images: ImageSet, interactive: bool = True):
    """Choose a class, an image, a block and a head, and see where the class token looks.

    Returns:
        An ipywidgets box, or the static figure of image 0 and the last block if not interactive.
    """
    if not interactive:
        return attention_figure(model, images, 0)
    import ipywidgets as w
    from IPython.display import display

    blocks = [site.module for site in attention_sites(model)]
    names = [("all classes", -1), *((name, k) for k, name in enumerate(images.classes))]
    chosen = w.Dropdown(options=names, description="class")
    place = w.IntSlider(0, 0, len(images) - 1, description="image", continuous_update=False)
    block = w.IntSlider(len(blocks), 1, len(blocks), description="block", continuous_update=False)
    head = w.Dropdown(description="head")
    picture = w.Output()

    def rows() -> torch.Tensor:
        return (images.labels == chosen.value).nonzero().flatten() if chosen.value >= 0 else torch.arange(len(images))

    def limits(_=None) -> None:
        place.max, place.value = max(len(rows()) - 1, 0), 0
        heads = blocks[block.value - 1].num_heads
        head.options = [("mean of heads", None), *((f"head {i + 1}", i) for i in range(heads))]

    def draw(_=None) -> None:
        with picture:
            picture.clear_output(wait=True)
            found = rows()
            if not len(found):
                print(f"no image of class {images.classes[chosen.value]} in {images.name}: choose another")
                return
            try:
                display(attention_figure(model, images, int(found[place.value]), block.value - 1, head.value))
            except WorkbenchError as error:
                print(error)

    limits()
    chosen.observe(limits, "value")
    for control in (chosen, place, block, head):
        control.observe(draw, "value")
    draw()
    return w.VBox([w.HBox([chosen, place]), w.HBox([block, head]), picture])


def ablation_panel(run: Callable[[KDWeights], tuple[float, list[dict]]], start: KDWeights, shown: Sequence[tuple],
                   interactive: bool = True):
    """Set the weights of the losses by sliders, press Run, and compare the student with those before it.

    Args:
        run: weights → (test accuracy in [0, 1], history); what it has made before it should find by key.
        start: the sliders' first values. shown: (name, accuracy) of results to start the comparison with.

    Returns:
        An ipywidgets box, or the bar chart of `shown` if not interactive.
    """
    results = list(shown)

    def chart():
        return plots.bars([name for name, _ in results], [100 * value for _, value in results],
                          "test accuracy (%)", title="student by loss weights")

    if not interactive:
        return chart()
    import ipywidgets as w
    from IPython.display import display

    limits = {"kd": (0, 4), "ce": (0, 4), "patch": (0, 4), "temperature": (1, 10)}
    sliders = {name: w.FloatSlider(getattr(start, name), min=low, max=high, step=0.25, description=name)
               for name, (low, high) in limits.items()}
    button = w.Button(description="Run", button_style="primary", icon="play")
    picture = w.Output()

    def show() -> None:
        with picture:
            picture.clear_output(wait=True)
            display(chart())

    def press(_) -> None:
        button.disabled, button.description = True, "training…"
        try:
            weights = KDWeights(**{name: slider.value for name, slider in sliders.items()})
            accuracy, _history = run(weights)
            label = f"KD {weights.kd:g}\nCE {weights.ce:g}\npatch {weights.patch:g}\nT {weights.temperature:g}"
            if label not in [name for name, _ in results]:
                results.append((label, accuracy))
            show()
        except WorkbenchError as error:
            with picture:
                print(error)
        finally:
            button.disabled, button.description = False, "Run"

    button.on_click(press)
    show()
    return w.VBox([w.HBox(list(sliders.values())[:2]), w.HBox(list(sliders.values())[2:]), button, picture])
