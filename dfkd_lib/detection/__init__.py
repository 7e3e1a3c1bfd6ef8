"""DETR teacher and student: scenes in, matching, losses, training, COCO AP (data-free KD paper, section 7-9)."""

from dfkd_lib.detection.curves import confusion, precision_recall_curves
from dfkd_lib.detection.distill import DetectionTerms, detection_step, load_detector, shown, train_detector
from dfkd_lib.detection.evaluate import average_precision, detections, evaluate_ap, predict
from dfkd_lib.detection.recipe import ARMS, DetectionRecipe, ap_table, seen_table
from dfkd_lib.detection.shipped import open_shipped, ship_detector, shipped_detector
from dfkd_lib.detection.source import SceneSource

__all__ = ["ARMS", "DetectionRecipe", "DetectionTerms", "SceneSource", "ap_table", "average_precision", "confusion",
           "detection_step", "detections", "evaluate_ap", "load_detector", "open_shipped", "precision_recall_curves",
           "predict", "seen_table",
           "ship_detector", "shipped_detector", "shown", "train_detector"]
