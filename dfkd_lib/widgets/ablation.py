"""The ablation panel: set the weights of the losses, run, compare."""

from collections.abc import Callable, Sequence

from dfkd_lib import plots
from dfkd_lib.distill import KDWeights
from dfkd_lib.errors import WorkbenchError


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
