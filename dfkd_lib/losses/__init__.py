"""One pure function for each equation of the papers, and the table of every named loss."""

from dfkd_lib.losses.classification import (
    attention_consistency_loss,
    cutmix_loss,
    hard_distillation_loss,
    kd_loss,
    label_loss,
    patch_kl_loss,
    patch_mse_loss,
    patch_probe_loss,
)
from dfkd_lib.losses.detection import (
    TeacherTargets,
    attention_distillation_loss,
    box_distillation_loss,
    box_loss,
    classification_loss,
    detection_losses,
    distillation_loss,
    feature_distillation_loss,
    giou_apart,
    giou_loss,
    objectness,
    own_loss,
    query_box_loss,
    query_feature_loss,
    query_logit_loss,
    resize_maps,
)
from dfkd_lib.losses.schedule import Schedule, read_schedules
from dfkd_lib.losses.synthesis import (
    attention_outputs,
    batch_norm_loss,
    batch_norm_losses,
    contrastive_loss,
    decision_adversarial_loss,
    disagreement,
    diversity_loss,
    ink,
    intra_divergence_loss,
    logit_distance,
    patch_similarity_entropy,
    patch_similarity_loss,
    total_variation,
)
from dfkd_lib.losses.table import (
    DETECTION_LOSSES,
    LOSSES,
    MAKER_LOSSES,
    NEEDS,
    Loss,
    StudentOutputs,
    Weights,
    loss_titles,
    weights_of,
)
