"""The one training loop, its configuration, batches and checkpoints; classifiers and teachers trained by it."""

from dfkd_lib.training.check import GIVEN, bound, checks_step
from dfkd_lib.training.checkpoint import Checkpoint, restore
from dfkd_lib.training.classifier import (
    check_fit,
    evaluate,
    frozen,
    load_trained,
    predict,
    reads_of,
    shape_of,
    test_logits,
    train_classifier,
)
from dfkd_lib.training.config import (
    DivergedError,
    Optimizer,
    Precision,
    Share,
    StepConfig,
    TrainConfig,
    arithmetic,
    device,
    learning_rate,
    make_optimizer,
)
from dfkd_lib.training.effort import Effort, classifier_effort, free_memory
from dfkd_lib.training.loop import Batches, TensorBatches, fit
from dfkd_lib.training.mixing import Augmentation, Batch, Kind, Mix
from dfkd_lib.training.teachers import (
    ClassifierConfig,
    TeacherConfig,
    guided_step,
    label_loss,
    label_step,
    open_model,
    open_teacher,
    read_shipped,
    ship_teacher,
    shipped_teacher,
    train_teacher,
    write_shipped,
)
