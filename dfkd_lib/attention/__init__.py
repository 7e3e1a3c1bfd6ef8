"""Attention of vision transformers at the price of fused attention: maps, probes, class probes."""

from dfkd_lib.attention.capture import attention_weights, capture_attention
from dfkd_lib.attention.probes import (ClassProbes, attention_map, attention_probe, attention_probes,
                                       class_attention_probe, class_probe_statistics, in_batches, logits_and_probe,
                                       probe_from_rows, query_token)
from dfkd_lib.attention.sites import (KINDS, Site, TokenLayout, attention_sites, patch_grid, patch_tokens, prefix_tokens,
                                      token_layout)

__all__ = ["KINDS", "ClassProbes", "Site", "TokenLayout", "attention_map", "attention_probe", "attention_probes",
           "attention_sites", "attention_weights", "capture_attention", "class_attention_probe", "class_probe_statistics",
           "in_batches", "logits_and_probe", "patch_grid", "patch_tokens", "prefix_tokens", "probe_from_rows",
           "query_token", "token_layout"]
