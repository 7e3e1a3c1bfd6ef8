"""Teachers, students, GANs and detectors by name, with the papers' parameter counts."""

from dfkd_lib.models.create import MODELS, count_flops, count_parameters, create_model, model_names
from dfkd_lib.models.detectors import create_detector, detector_names
from dfkd_lib.models.gan import Discriminator, FieldGenerator, Generator
from dfkd_lib.models.load import Loaded, WeightsMissing, check_images, load_model
from dfkd_lib.models.weights import load_weights

__all__ = [
    "MODELS",
    "Discriminator",
    "FieldGenerator",
    "Generator",
    "Loaded",
    "WeightsMissing",
    "check_images",
    "count_flops",
    "count_parameters",
    "create_detector",
    "create_model",
    "detector_names",
    "load_model",
    "load_weights",
    "model_names",
]
