"""Interactive views; with interactive=False each gives the static figure that it would first show."""

from collections.abc import Callable, Sequence
from pathlib import Path

from dfkd_lib import plots
from dfkd_lib.ablation import Outcome, saved_jobs, summary, tidy
from dfkd_lib.widgets.browse import Browse, View
from dfkd_lib.widgets.choice import Choice
from dfkd_lib.widgets.panel import Panel
from dfkd_lib.widgets.viewer import Viewer, named


def attention_explorer(
    models,
    data,
    interactive: bool = True,
    *,
    class_probes=None,
    learning: dict | None = None,
    start: Choice | None = None,
    out_dir: str | Path = "reports/quick",
    notebook: str = "",
    parameters: dict | None = None,
):
    """The attention of a vision transformer: choose model, image, block, head and token, and compare.

    Args:
        models: a model, or {name: model}: classifiers of any kind `attention.capture_attention` can read, for images in
            [-1, 1], and detectors of `models.create_detector`. data: an ImageSet, a SceneSet, or {name: set of either kind}.
        class_probes: {name of a model (one by itself is "model"): {name of a class: (blocks, N)}}. Classes of models, probes
            and data are compared by name: a model's are its attribute `classes`.
        learning: {name of a model: attention.safetensors of its artifact}, kept by `student.watch`: choose weights "learning"
            and go through the epochs.
        start: what is shown first. out_dir: where "save" puts figures, and parameters for `notebook` (its name) if one has
            the parameter `view`. parameters: other parameters of that notebook, saved beside the view.

    Returns:
        An ipywidget, or the static figure of `start` if not interactive.

    Raises:
        WorkbenchError: not interactive: for whatever the widget would report in place.
    """
    models, data = named(models, "model"), named(data, getattr(data, "name", "images"))
    viewer, start = Viewer(models, data, class_probes, learning), start or Choice()
    if not interactive:
        return viewer.figure(start)
    from dfkd_lib.widgets.explorer import AttentionExplorer

    return AttentionExplorer(viewer, start, out_dir, notebook, parameters)


def detection_browser(
    detectors: dict,
    scenes,
    predictions: dict | None = None,
    interactive: bool = True,
    *,
    threshold: float = 0.5,
    examples: int = 8,
    out_dir: str | Path = "reports/quick",
):
    """Browse what detectors find in scenes beside what is there, at any threshold, and the attention of a detection.

    A detection is right where it is paired with an object of its class, by `metrics.matched` at IoU 0.5.

    Args:
        detectors: {name: detector of `models.create_detector`, or None where only predictions are at hand}.
        scenes: a SceneSet, or {name: SceneSet}. predictions: {name of a detector: (scores (N, Q, classes), boxes
            (N, Q, 4))} as `detection.predict` gives them, or {name of a set: such a dict}; what is missing is detected.
        threshold: score from which a detection counts, 0..1. examples: scenes in the static figure, those first in which the
            detectors differ most.
        out_dir: where "save" puts figures.

    Returns:
        An ipywidget, or the static figure if not interactive.

    Raises:
        WorkbenchError: if detectors, predictions and scenes have different classes or sizes.
    """
    data, found = named(scenes, "scenes"), predictions or {}
    found = found if isinstance(scenes, dict) else {"scenes": found}
    browse = Browse(named(detectors, "detector"), data, found)
    view = browse.settle(View(threshold=threshold))
    if not interactive:
        order = (-browse.disagreement(view.data, threshold)).argsort(kind="stable")[:examples]
        shown = browse.scene(view.data, sorted(order.tolist()), threshold)
        return plots.detection_compare(**shown)
    from dfkd_lib.widgets.detections import DetectionBrowser

    return DetectionBrowser(browse, view, out_dir)


def ablation_lab(
    base: dict,
    store,
    out_dir: str | Path = "reports/quick",
    notebook: str = "35_ablation",
    shown: Sequence[Outcome] = (),
    interactive: bool = True,
    jobs=None,
    step: Callable | None = None,
):
    """Set loss weights, student and images, run students in a process of their own, watch, stop and compare them.

    Args:
        base: the notebook's own values: settings of `ClassificationConfig`, "source" ("real" or a maker's name) and, if it
            has them, "seeds". store: where runs are found and stored. out_dir: where figures and parameter files go.
        notebook: that parameter files are for. shown: cells to begin the table with.
        jobs: the queue to use; default: the store's own. step: a training step in place of the library's, as `shown` were
            trained by.

    Returns:
        An ipywidget, or the static figure of `shown` if not interactive.

    Raises:
        WorkbenchError: on a name in `base` that is none of these, or a step that cannot go to another process.
    """
    if not interactive:
        cells = tidy(shown)
        return plots.ablation_accuracy(cells, summary(cells))
    from dfkd_lib.widgets.ablation import AblationLab
    from dfkd_lib.widgets.settings import Settings

    jobs = jobs or saved_jobs(store)
    return AblationLab(Settings(base), store, jobs, shown, out_dir, notebook, step)
