"""Teachers, students, GANs and detectors by name, with the papers' parameter counts."""

from dfkd_lib.models import detectors, gan, scene_gan
from dfkd_lib.models.cnn import early_channels, logits_and_early_map
from dfkd_lib.models.convert import convert
from dfkd_lib.models.create import (
    MODELS,
    count_flops,
    count_parameters,
    create_model,
    has_batch_norm,
    model_names,
)
from dfkd_lib.models.dearkd import EarlyAligner
from dfkd_lib.models.detector import NARROW, Detections, Detector, pixel_mask
from dfkd_lib.models.detectors import create_detector, detector_names
from dfkd_lib.models.gan import Discriminator, FieldGenerator, Generator
from dfkd_lib.models.hub import WeightsMissing
from dfkd_lib.models.images import check_images, expected_shape
from dfkd_lib.models.load import Loaded, load_model
from dfkd_lib.models.realtime import REALTIME, RealTimeDetector
from dfkd_lib.models.scene_gan import SceneDiscriminator, SceneEncoder, SceneGenerator
from dfkd_lib.models.shapes import hooked, layer_shapes
from dfkd_lib.models.timm_form import timm_form
from dfkd_lib.models.titles import display_name
from dfkd_lib.models.weights import load_weights
