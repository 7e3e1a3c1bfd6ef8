"""What a notebook leaves behind: its report, the papers' tables, the summary over all notebooks, what is published.

- `report`: `Report`, tables over seeds, the papers' numbers.
- `notebooks`: what a notebook says of itself, and headline results.
- `papers`: the papers' own numbers, and their tables by name.
- `tables`: what each table of the papers is made of, from `parts`; `figures`: what stands beside paper A's.
- `results`: results files read back.
- `summary`: real images behind every stage, time.
- `tex`: LaTeX of tables, and a folder of a run's figures for a paper.
- `card`: a classifier in timm's layout with its model card, for the hub.
- `trackers`: what a run's notebooks leave behind, for trackio, tensorboard and wandb.
- `published`: the README of published results.
"""

__all__ = [
    "card",
    "figures",
    "notebooks",
    "papers",
    "parts",
    "published",
    "report",
    "results",
    "summary",
    "tables",
    "tex",
    "trackers",
]
