"""Named sets of notebook parameters: `smoke` for tests, `quick` for a laptop, `paper` for the papers' own settings.

A notebook's `parameters` cell holds the quick values already, so an entry here names only what differs from that cell.
`PROFILES[profile][notebook][parameter]` is a plain scalar (int, float, str or bool); the pipeline checks each one
against the notebook before any kernel starts. Lists are comma-separated strings, as in `"0,1,2"`.
"""

NOTEBOOKS = (
    "00_start_here",
    "10_attention_probes",
    "20_gan_fid",
    "30_classification_kd",
    "40_detection_kd",
    "50_early_kd",
    "60_titn",
    "70_deploy",
    "90_summary",
)

SMOKE: dict[str, dict] = {
    "00_start_here": {},
    "10_attention_probes": {},
    "20_gan_fid": {},
    "30_classification_kd": {},
    "40_detection_kd": {},
    "50_early_kd": {},
    "60_titn": {},
    "70_deploy": {},
    "90_summary": {},
}

QUICK: dict[str, dict] = {
    "00_start_here": {},
    "10_attention_probes": {},
    "20_gan_fid": {},
    "30_classification_kd": {},
    "40_detection_kd": {},
    "50_early_kd": {},
    "60_titn": {},
    "70_deploy": {},
    "90_summary": {},
}

PAPER: dict[str, dict] = {
    "00_start_here": {},
    "10_attention_probes": {},
    "20_gan_fid": {},
    "30_classification_kd": {},
    "40_detection_kd": {},
    "50_early_kd": {},
    "60_titn": {},
    "70_deploy": {},
    "90_summary": {},
}

PROFILES: dict[str, dict[str, dict]] = {"smoke": SMOKE, "quick": QUICK, "paper": PAPER}
