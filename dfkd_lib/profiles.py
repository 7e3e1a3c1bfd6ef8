"""Notebooks, and what profiles change of notebooks whose settings are parameters of their own."""

NOTEBOOKS = (
    "00_start_here",
    "10_attention_probes",
    "20_gan_fid",
    "30_classification_kd",
    "35_ablation",
    "40_detection_kd",
    "50_early_kd",
    "60_titn",
    "70_deploy",
    "90_summary",
)
PROFILES: dict[str, dict[str, dict]] = {"smoke": {}, "quick": {}, "paper": {}}
