"""Arrays in, matplotlib `Figure` out."""

from dfkd_lib.plots.ablation import (
    ablation_accuracy,
    ablation_curves,
    ablation_grid,
    fidelity_by_class,
    fidelity_scatter,
)
from dfkd_lib.plots.attention import (
    agreement_by_class,
    attention_profile,
    class_probe_grid,
    class_probe_spread,
    explanations,
    head_ablation,
    image_map_probe,
    insertion_deletion,
    nearest_patches,
    patch_colours,
    probe_pipeline,
)
from dfkd_lib.plots.charts import (
    average_precision_bars,
    bars,
    class_counts,
    confusion,
    curves,
    detection_confusion,
    loss_components,
    measure_curves,
    precision_recall_plot,
    real_images,
    stage_seconds,
)
from dfkd_lib.plots.diagrams import distillation_diagram, gan_diagram, titn_diagram
from dfkd_lib.plots.explorer import attention_panels
from dfkd_lib.plots.images import image_rows, neighbours, to_display
from dfkd_lib.plots.measures import (
    accuracy_against_distance,
    distance_by_class,
    fidelity_diversity,
    trade_off,
)
from dfkd_lib.plots.scenes import detection_compare, detection_grid, drawn_scenes
from dfkd_lib.plots.style import COLORS, STYLE, new_figure

__all__ = [
    "STYLE",
    "COLORS",
    "ablation_accuracy",
    "ablation_curves",
    "ablation_grid",
    "accuracy_against_distance",
    "agreement_by_class",
    "attention_panels",
    "attention_profile",
    "average_precision_bars",
    "bars",
    "class_counts",
    "class_probe_grid",
    "class_probe_spread",
    "confusion",
    "curves",
    "detection_compare",
    "detection_confusion",
    "detection_grid",
    "distance_by_class",
    "distillation_diagram",
    "drawn_scenes",
    "explanations",
    "fidelity_by_class",
    "fidelity_diversity",
    "fidelity_scatter",
    "gan_diagram",
    "head_ablation",
    "image_map_probe",
    "insertion_deletion",
    "image_rows",
    "loss_components",
    "measure_curves",
    "nearest_patches",
    "neighbours",
    "new_figure",
    "patch_colours",
    "precision_recall_plot",
    "probe_pipeline",
    "real_images",
    "stage_seconds",
    "titn_diagram",
    "to_display",
    "trade_off",
]
