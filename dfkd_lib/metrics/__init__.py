"""Measures of synthetic images against real ones, in the feature space of a network and tied to it; COCO AP; intervals."""

from dfkd_lib.metrics import intervals
from dfkd_lib.metrics.calibration import Scaling, calibration_error, fit_scaling, judged
from dfkd_lib.metrics.coco import FAINT, THRESHOLD, average_precision, same_classes, sure
from dfkd_lib.metrics.coverage import memorisation, near_duplicates, nearest, prdc
from dfkd_lib.metrics.detection_curves import confusion, matched, precision_recall_curves
from dfkd_lib.metrics.distances import (
    frechet_distance,
    frechet_distance_from_features,
    frechet_distance_to,
    kernel_distance,
    statistics,
)
from dfkd_lib.metrics.features import (
    check_inception,
    classifier_features,
    features_and_logits,
    inception_features,
    scores_and_features,
    token_features,
)
from dfkd_lib.metrics.score import score
from dfkd_lib.metrics.summary import Features, Measures, Row, measure
