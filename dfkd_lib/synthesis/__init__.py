"""Makers of training images behind one shape, by what they may see: real images, class probes, or the teacher alone."""

from dfkd_lib.synthesis.canvas import (
    Draws,
    balanced_labels,
    crop_middle,
    generate,
    kept_epochs,
    kept_states,
    latent_walk,
    pad_to_gan,
    plain_generator,
)
from dfkd_lib.synthesis.cgan import CGAN, WATCH_EVERY, Networks, gan_step
from dfkd_lib.synthesis.contrastive import ContrastiveInversion
from dfkd_lib.synthesis.fast import FastGenerator
from dfkd_lib.synthesis.given import Given, class_probes
from dfkd_lib.synthesis.guided import GuidedGenerator
from dfkd_lib.synthesis.inversion import Canvas, Inversion
from dfkd_lib.synthesis.make import Maker, make_images, open_images
from dfkd_lib.synthesis.measure import (
    CURVE_IMAGES,
    FeatureConfig,
    FeatureSpace,
    JudgeConfig,
    distance_curve,
    feature_space,
    fitted,
    measure_images,
    open_features,
    real_features,
    train_judge,
)
from dfkd_lib.synthesis.rival import MemoryBank
from dfkd_lib.synthesis.strokes import PenStrokes
