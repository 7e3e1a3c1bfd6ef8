"""Arrays in, matplotlib `Figure` out."""

from dfkd_lib.plots.attention import (class_probe_grid, image_map_probe, probe_pipeline)
from dfkd_lib.plots.classification import confusion, loss_components
from dfkd_lib.plots.deploy import trade_off
from dfkd_lib.plots.detection import detection_grid, measure_curves
from dfkd_lib.plots.explorer import attention_panels
from dfkd_lib.plots.images import image_rows, to_display
from dfkd_lib.plots.summary import real_images, stage_seconds
from dfkd_lib.plots.style import COLORS, bars, curves, new_figure

__all__ = ["COLORS", "attention_panels", "bars", "class_probe_grid", "confusion", "curves", "detection_grid",
           "image_map_probe", "image_rows", "loss_components", "measure_curves", "new_figure", "probe_pipeline",
           "real_images", "stage_seconds", "to_display", "trade_off"]
