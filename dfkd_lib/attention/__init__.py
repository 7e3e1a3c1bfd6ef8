"""Attention of vision transformers at the price of fused attention: maps, probes, and what follows from them."""

from dfkd_lib.attention.capture import capture_attention
from dfkd_lib.attention.explain import (
    attention_rollout,
    detection_relevance,
    gradient_attention,
    legrad,
)
from dfkd_lib.attention.faithfulness import Faithfulness, insertion_deletion
from dfkd_lib.attention.features import nearest_patches, patch_components, patch_features
from dfkd_lib.attention.heads import HeadAblation, head_ablation, without_attention
from dfkd_lib.attention.points import attention_points
from dfkd_lib.attention.prefix import LAST, compiled_parts, outputs_and_probe
from dfkd_lib.attention.probes import (
    attention_map,
    attention_probe,
    attention_probes,
    class_attention_probe,
    class_probe_statistics,
    in_batches,
    logits_and_probe,
    on_patches,
    query_token,
    reduce_heads,
    resize_probe,
    token_rows,
    usual_token,
)
from dfkd_lib.attention.products import AttentionAsProducts
from dfkd_lib.attention.sites import (
    attention_sites,
    class_token,
    is_deformable,
    patch_grid,
    patch_tokens,
    pick,
    token_layout,
)
from dfkd_lib.attention.statistics import (
    MEASURES,
    Agreement,
    AttentionStatistics,
    attention_statistics,
    jensen_shannon,
    probe_agreement,
    rank_correlation,
)
