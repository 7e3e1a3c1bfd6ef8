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
    attention_by_epoch,
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
    accuracies,
    average_precision_bars,
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
from dfkd_lib.plots.scenes import SCALES, detection_compare, detection_grid, drawn_scenes
from dfkd_lib.plots.style import COLORS, STYLE, new_figure
