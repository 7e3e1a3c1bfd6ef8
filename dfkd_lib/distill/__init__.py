"""Students: KD with patch probes (A), early features (B), a distillation token (C); makers compared by their students."""

from dfkd_lib.distill import comparison, early, titn
from dfkd_lib.distill.classification import StudentConfig, check_losses, train
from dfkd_lib.distill.comparison import chosen_makers, compare_makers, equal_epochs, may_see
from dfkd_lib.distill.early import EarlyConfig
from dfkd_lib.distill.scores import scores
from dfkd_lib.distill.step import KDWeights, drop_one, kd_step, known_step
from dfkd_lib.distill.study import (
    MAKERS,
    AblationConfig,
    AttentionConfig,
    ClassificationConfig,
    Study,
)
from dfkd_lib.distill.subject import Subject, open_subject
from dfkd_lib.distill.targets import (
    LiveTeacher,
    StoredTeacher,
    Targets,
    early_tokens,
    has_probe,
    teacher_targets,
)
from dfkd_lib.distill.titn import TitnConfig
