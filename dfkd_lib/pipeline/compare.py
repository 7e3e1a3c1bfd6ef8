"""Two runs beside each other: one page of what differs between them."""

import math
from itertools import permutations
from pathlib import Path

from dfkd_lib.core import WorkbenchError, resolve
from dfkd_lib.core.explain import differing
from dfkd_lib.metrics.intervals import FEWEST, paired_difference
from dfkd_lib.pipeline.html import duration, entries, fallbacks_of, read_metrics, write_page
from dfkd_lib.pipeline.parameters import OWN
from dfkd_lib.reporting.results import (
    commit_text,
    metrics_of,
    read_results,
    repeats_text,
    value_text,
)

Row = tuple[str, ...]


def run_rows(a: dict, b: dict) -> list[Row]:
    """Profile, code, time, machine and command of both runs, and the versions that differ."""

    def about(results: dict) -> dict[str, str]:
        known = results["provenance"]
        machine = known.get("hardware", {})
        return {
            "profile": str(results["profile"]),
            "code": commit_text(known.get("git", {})),
            "started": str(known.get("started", "")),
            "time": duration(known.get("seconds")),
            "machine": ", ".join(str(machine[k]) for k in ("cpu", "cores", "gpu") if k in machine),
            "command": str(known.get("command", "")),
            "notebooks": ", ".join(name[:2] for name in results["notebooks"]),
        }

    first, second = about(a), about(b)
    versions = (results["provenance"].get("versions", {}) for results in (a, b))
    rows = [(name, first[name], second[name]) for name in first]
    return rows + [(f"version of {name}", str(x), str(y)) for name, x, y in differing(*versions)]


def parameters_of(result: dict) -> dict[str, str]:
    """{name: text} of a notebook's parameters and typed settings, without the pipeline's own."""
    settings = {name: entry[0] for name, entry in result.get("settings", {}).items()}
    known = result.get("parameters", {}) | settings
    return {name: value_text(value) for name, value in known.items() if name not in OWN}


def metric_row(a: list[float] | str, b: list[float] | str) -> Row:
    """(A, B, B − A, p) of one metric as text; the interval and p where it is paired over three seeds or more."""
    texts = [repeats_text(a), repeats_text(b)]
    if isinstance(a, str) or isinstance(b, str):
        return *texts, "", ""
    if len(a) == len(b) >= FEWEST:
        gap = paired_difference(a, b)
        p = f"{gap['p']:.2g}" if math.isfinite(gap["p"]) else ""
        return *texts, "{difference:+.3g} [{low:+.3g}, {high:+.3g}]".format(**gap), p
    return *texts, f"{sum(b) / len(b) - sum(a) / len(a):+.3g}", ""


def artifact_rows(a: list[dict], b: list[dict]) -> list[Row]:
    """(stage, shared, A alone, B alone, functions that differ) of every stage whose artifacts differ."""

    def stage_of(artifact: dict) -> str:
        return artifact["key"].rpartition("-")[0]

    def functions_of(artifacts: dict[str, dict]) -> set[tuple[str, str]] | None:
        tables = [one.get("code", {}).get("functions") for one in artifacts.values()]
        return None if None in tables else {pair for table in tables for pair in table.items()}

    rows = []
    for stage in dict.fromkeys(stage_of(one) for one in [*a, *b]):
        first, second = ({one["key"]: one for one in x if stage_of(one) == stage} for x in (a, b))
        if first.keys() != second.keys():
            alone = [
                ", ".join(sorted(x.keys() - y.keys())) for x, y in permutations((first, second))
            ]
            code, other = functions_of(first), functions_of(second)
            differ = "not recorded"
            if code is not None and other is not None:
                differ = ", ".join(sorted({name for name, _ in code ^ other}))
            shared = len(first.keys() & second.keys())
            rows.append((stage, str(shared), *alone, differ))
    return rows


def figure_pairs(folders: list[Path], saved: list[dict]) -> list[list[dict | None]]:
    """The figures of a notebook that either run has, side by side."""
    found = []
    for folder, one in zip(folders, saved, strict=True):
        placed = (entry for kind, entry in entries(folder, one) if kind == "figures")
        found.append({entry["name"]: {**entry, "links": []} for entry in placed})
    return [[one.get(name) for one in found] for name in found[0] | found[1]]


def write_comparison(a: str | Path, b: str | Path, out: str | Path | None, command: str) -> Path:
    """Write one page of what differs between two run folders; returns its path.

    Args:
        a, b: the folders. out: where compare.html goes; None: into b. command: that makes the page again.

    Raises:
        WorkbenchError: if a folder is not that of a run, or the page cannot be written.
    """
    folders = [resolve(a), resolve(b)]
    results = [read_results(folder) for folder in folders]
    parameters, artifacts, metrics, figures, equal = [], [], [], [], 0
    for name in sorted(results[0]["notebooks"].keys() & results[1]["notebooks"].keys()):
        both = [one["notebooks"][name] for one in results]
        saved = [read_metrics(folder, name) for folder in folders]
        parameters += [(name, *row) for row in differing(*map(parameters_of, both))]
        records = [
            s.get("artifacts") or r.get("artifacts", []) for r, s in zip(both, saved, strict=True)
        ]
        artifacts += [(name, *row) for row in artifact_rows(*records)]
        first, second = (dict(metrics_of(one.get("metrics", {}))) for one in both)
        changed = list(differing(first, second))
        equal += len(first | second) - len(changed)
        metrics += [(name, key, *metric_row(x, y)) for key, x, y in changed]
        if pairs := figure_pairs(folders, saved):
            figures.append((name, pairs))
    contents = [(2, name.lower(), name) for name in ("Runs", "Parameters", "Code", "Metrics")]
    contents += [(2, f"f-{name}", f"Figures of {name}") for name, _ in figures]
    folder = folders[1] if out is None else resolve(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return write_page(
            folder / "compare.html",
            "compare.html.j2",
            {
                f"{side}, {name}": text
                for side, one in zip("AB", results, strict=True)
                for name, text in fallbacks_of(one["notebooks"]).items()
            },
            title="Two runs compared",
            names=[str(folder) for folder in folders],
            runs=run_rows(*results),
            parameters=parameters,
            artifacts=artifacts,
            metrics=metrics,
            equal=equal,
            figures=figures,
            contents=contents,
            command=command,
            provenance={},
        )
    except OSError as error:
        raise WorkbenchError(
            "the page cannot be written", got=error, where=folder, fix="give another --out"
        ) from None
