"""DETR teacher and student: scenes in, matching, losses, training, COCO AP (data-free KD paper, section 7-9)."""

from dfkd_lib.detection.aligned import QueryAligner, inputs_if_shared, shared_losses
from dfkd_lib.detection.batches import Batch, SceneBatches, padded
from dfkd_lib.detection.config import VARIANTS, DetectionConfig
from dfkd_lib.detection.detector import (
    DetectorConfig,
    detections,
    load_detector,
    open_shipped,
    predict,
    predictions,
    ship_detector,
    shipped_detector,
    train,
)
from dfkd_lib.detection.inversion import SceneInversion
from dfkd_lib.detection.layouts import sampled_layouts
from dfkd_lib.detection.probes import object_consistency_loss, object_probes
from dfkd_lib.detection.scene_gan import (
    SceneGAN,
    SceneNetworks,
    likeness_loss,
    real_loss,
    scene_gan_step,
)
from dfkd_lib.detection.step import (
    DetectionWeights,
    Queries,
    answers,
    asked,
    detection_step,
    feature_losses,
    features_first,
    objects,
    pair_objects,
    pair_teacher,
    queries,
    same_parts,
)
from dfkd_lib.detection.study import DetectionStudy
from dfkd_lib.detection.tables import (
    ap_table,
    calibration_table,
    class_table,
    compared,
    gain_table,
    measures_table,
    pairs,
    seen_table,
    truth,
    with_objects,
)
from dfkd_lib.detection.tiles import predict_tiled
