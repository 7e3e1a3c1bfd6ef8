"""Interactive views; with interactive=False each gives the static figure that it would first show."""

from pathlib import Path

from dfkd_lib import plots
from dfkd_lib.widgets.ablation import ablation_panel
from dfkd_lib.widgets.look import Choice, Looker, Panel, named

__all__ = ["Choice", "Looker", "Panel", "ablation_panel", "attention_explorer"]


def attention_explorer(models, data, interactive: bool = True, *, class_probes=None, start: Choice | None = None,
                       out_dir: str | Path = "reports/quick", notebook: str = ""):
    """See where a vision transformer looks: choose model, image, block, head and token, and compare.

    Args:
        models: a model, or {name: model}: classifiers of any kind `attention.capture_attention` can read, for images in
            [-1, 1], and detectors of `models.create_detector`. data: an ImageSet, a SceneSet, or {name: set of either kind}.
        class_probes: {name of a model: (K, blocks, N) or, of its last block, (K, N)}; for one model just the tensor.
        start: what is shown first. out_dir: where "save" puts figures, and parameters for `notebook` (its name) if one has
            `Choice`'s as view_*.

    Returns:
        An ipywidget, or the static figure of `start` if not interactive.

    Raises:
        WorkbenchError: not interactive: for whatever the widget would say in place.
    """
    models, data = named(models, "model"), named(data, getattr(data, "name", "images"))
    if class_probes is not None:
        class_probes = named(class_probes, next(iter(models)))
    looker, start = Looker(models, data, class_probes), start or Choice()
    if not interactive:
        return plots.attention_panels(looker.look(start))
    from dfkd_lib.widgets.explorer import AttentionExplorer

    return AttentionExplorer(looker, start, out_dir, notebook)
