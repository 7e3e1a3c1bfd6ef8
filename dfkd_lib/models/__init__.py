"""Teachers, students, GANs and detectors by name, with the papers' parameter counts."""

from dfkd_lib.models.create import MODELS, count_flops, count_parameters, create_model, model_names
from dfkd_lib.models.detectors import create_detector, detector_names
from dfkd_lib.models.gan import Discriminator, Generator

__all__ = ["MODELS", "Discriminator", "Generator", "count_flops", "count_parameters", "create_detector", "create_model",
           "detector_names", "model_names"]
