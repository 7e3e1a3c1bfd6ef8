"""DETR teacher and student: scenes in, matching, losses, training, COCO AP (data-free KD paper, section 7-9)."""

from dfkd_lib.detection.batches import open_scenes
from dfkd_lib.detection.curves import confusion, precision_recall_curves
from dfkd_lib.detection.distill import (
    DetectionTerms,
    detection_step,
    load_detector,
    predictions,
    shown,
    train_detector,
)
from dfkd_lib.detection.evaluate import average_precision, detections, evaluate_ap, predict
from dfkd_lib.detection.recipe import ARMS, GANS, DetectionRecipe
from dfkd_lib.detection.shipped import open_shipped, ship_detector, shipped_detector
from dfkd_lib.detection.source import SceneSource
from dfkd_lib.detection.synthesis import SceneGAN, draw_scenes
from dfkd_lib.detection.tables import (
    ap_table,
    arms_difference,
    class_table,
    measures_table,
    seen_table,
)
from dfkd_lib.detection.tiles import predict_tiled

__all__ = [
    "ARMS",
    "GANS",
    "DetectionRecipe",
    "DetectionTerms",
    "SceneGAN",
    "SceneSource",
    "ap_table",
    "arms_difference",
    "average_precision",
    "class_table",
    "confusion",
    "detection_step",
    "detections",
    "draw_scenes",
    "evaluate_ap",
    "load_detector",
    "measures_table",
    "open_scenes",
    "open_shipped",
    "precision_recall_curves",
    "predict",
    "predictions",
    "predict_tiled",
    "seen_table",
    "ship_detector",
    "shipped_detector",
    "shown",
    "train_detector",
]
